"""One shard: where decisions meet the log. The only room that knows both."""

from __future__ import annotations

from .engine import Answer, Batch, Engine, Request

__all__ = ["Answer", "Batch", "Engine", "Request"]
