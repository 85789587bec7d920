"""LocalPort: a whole store behind `submit`, with its shards inside this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import msgspec
import pykka

from ..flow.beside import cold_folder
from ..flow.engine import Engine
from ..flow.errors import ShardUnavailable
from ..flow.host import Clock, DiskFiles, Files, SetClock, SystemEntropy
from ..flow.queries import Tick
from ..flow.settings import Settings
from .courier import Courier, start_courier
from .future import ReplyFuture, answered
from .local import LocalLink
from .reconcile import reconcile_policies
from .routes import Routes
from .service import Service
from .staging import Staging
from .ticker import TickerActor

logger = logging.getLogger("shardflow.shard")

T = TypeVar("T")

_CLOSE_S = 30.0
_POLL_S = 0.1


class LocalPort:
    """Shards inside this process: for tests, small tools and frozen programs."""

    def __init__(
        self,
        files: Sequence[Files],
        settings: Settings,
        clock: Clock,
        *,
        sync: bool,
        manual: bool,
        may_begin: bool = True,
    ) -> None:
        self.shards = len(files)
        self._files = files
        self.clock = clock
        self._pid = os.getpid()
        self._is_closed = False
        self._courier: Courier | None = None
        self._ticker: pykka.ActorRef[TickerActor] | None = None
        self.links = [
            LocalLink(
                shard,
                self._builder(files[shard], settings, shard, sync=sync, may_begin=may_begin),
            )
            for shard in range(self.shards)
        ]
        self._routes = Routes(self.links)
        refused = [link.refused for link in self.links if link.refused is not None]
        if len(refused) == self.shards:
            self.close(None)
            raise refused[0].refused.error()
        if not manual:
            self._ticker = TickerActor.start(self.links, clock.now_ms)
        reconcile_policies(self.links, lambda: None)
        self._courier = start_courier(self.links)

    def _builder(
        self, files: Files, settings: Settings, shard: int, *, sync: bool, may_begin: bool
    ) -> Callable[[], Service]:
        own = msgspec.structs.replace(settings, shard=shard, shards=self.shards)

        def build() -> Service:
            if not files.lock():
                raise ShardUnavailable(f"shard {shard} is locked by another store", shard=shard)
            try:
                engine = Engine(
                    files,
                    SystemEntropy(),
                    own,
                    sync=sync,
                    may_begin=may_begin,
                    folder=cold_folder(files) if isinstance(files, DiskFiles) else None,
                )
            except BaseException:
                files.unlock()
                raise
            if engine.cold_fault is not None:
                logger.warning("shard %d: %s", shard, engine.cold_fault)
            staging = Staging(files.folder if isinstance(files, DiskFiles) else None)
            return Service(engine, self.clock, relaxed=not sync, staging=staging)

        return build

    @property
    def role(self) -> Literal["host"]:
        """Whose the shards are: this process's own."""
        return "host"

    def submit(
        self, request: Any, read: Callable[[Any], T], until_ms: int | None = None
    ) -> ReplyFuture[T]:
        """Send a request to where it belongs."""
        return self._routes.submit(request, read, until_ms)

    def now_ms(self) -> int:
        """Return the store's time."""
        return self.clock.now_ms()

    def tick(self, now_ms: int) -> None:
        """Let every shard do what time has made due."""
        if isinstance(self.clock, SetClock):
            self.clock.set(now_ms)
        for link in self.links:
            future = ReplyFuture(_nothing)
            link.submit(Tick(now_ms), future)
            answered(future, _CLOSE_S)

    def close(self, timeout_s: float | None) -> None:
        """Close the engines; safe to repeat and after a fork."""
        if self._is_closed:
            return
        self._is_closed = True
        if os.getpid() != self._pid:
            return  # The files are shared with the process that opened them, and still its own.
        if self._courier is not None:
            self._courier.stop()
        if self._ticker is not None:
            self._ticker.stop(block=True)
        for link in self.links:
            link.close()

    def abandon(self) -> None:
        """In a forked child: let go of what it has inherited, all of which is the parent's."""
        for files in self._files:
            if isinstance(files, DiskFiles):
                files.abandon()


def _nothing(reply: Any) -> None:
    return None
