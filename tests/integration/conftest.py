"""What these tests share: a place for a store, and processes that open it."""

from __future__ import annotations

from support.fixtures import clients, path

__all__ = ["clients", "path"]
