"""Durable queues and state-machine workflows in one directory: the public names of shardflow.

This folder is installed as `shardflow` itself, beside the rooms `actors`, `flow` and `sdk`.
Imports here are absolute, so that they mean the same wherever a tool reads this file.
"""

from __future__ import annotations

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("shardflow")
