"""One shard: where decisions meet the log. The only room that knows both."""

from __future__ import annotations

from ..log.recover import begin
from ..log.space import RESERVE_NAME
from .copy import adopt
from .engine import Answer, Engine, Request

__all__ = ["RESERVE_NAME", "Answer", "Engine", "Request", "adopt", "begin"]
