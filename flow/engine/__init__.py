"""One shard: where decisions meet the log. The only room that knows both."""

from __future__ import annotations

from ..log.recover import begin
from .copy import adopt
from .engine import Answer, Engine, Request

__all__ = ["Answer", "Engine", "Request", "adopt", "begin"]
