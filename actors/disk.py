"""The disk as a shard at work sees it: looked at now and then, so that creations stop in time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..flow.engine import Engine
from ..flow.limits import DISK_CHECK_SECONDS
from ..flow.replies import Rejected

logger = logging.getLogger("shardflow.shard")


class DiskWatch:
    """Decides whether a shard's disk takes creations; cheap to ask before every batch."""

    def __init__(self, engine: Engine, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._now_s = now_s
        self._look_at_s = now_s()
        self._refusal: Rejected | None = None

    def refusal(self) -> Rejected | None:
        """Return what creations are told now; None = they are let in.

        Raises:
            CorruptLog: the log was deleted.
        """
        now_s = self._now_s()
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + DISK_CHECK_SECONDS
            self._engine.log.look()
        elif (self._refusal is not None) == self._engine.log.space.is_full:
            return self._refusal
        was_full = self._refusal is not None
        self._refusal = self._engine.refusal()
        if self._refusal is not None and not was_full:
            logger.warning("the shard refuses creations: %s", self._refusal.refused.message)
        elif self._refusal is None and was_full:
            logger.warning("the shard takes creations again: %s", self._engine.log.space.where)
        return self._refusal
