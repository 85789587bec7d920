"""Ports: a whole store behind `submit`, with shards in processes or inside this one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import pykka

from ..flow.commands import PolicyAdopt
from ..flow.engine import Engine
from ..flow.errors import ShardUnavailable
from ..flow.host import Clock, Files, SetClock, SystemEntropy
from ..flow.limits import START_SECONDS_MAX
from ..flow.queries import PolicyGet, Tick
from ..flow.replies import Data
from ..flow.settings import Settings
from .courier import Courier, start_courier
from .directory import Directory
from .future import ReplyFuture
from .local import LocalLink
from .port import Link
from .router import Connect, GiveUp, RouterActor
from .routes import Routes
from .service import Service
from .supervisor import SupervisorActor
from .ticker import TickerActor

T = TypeVar("T")

_CLOSE_S = 30.0
_POLL_S = 0.1


class ProcessPort:
    """Hosts one process per shard, and routes to them.

    Raises:
        FlowError: no shard starts at all; the first shard's reason.
    """

    def __init__(
        self, directory: Directory, settings: Settings, clock: Clock, *, sync: bool, manual: bool
    ) -> None:
        self.shards = directory.shards
        self.clock = clock
        self._pid = os.getpid()
        self._is_closed = False
        self._close_lock = threading.Lock()
        self._courier: Courier | None = None
        token = directory.new_token()
        paths = [directory.socket_path(shard) for shard in range(self.shards)]
        self._router = RouterActor.launch(paths, token)

        def config_of(shard: int) -> dict[str, Any]:
            return {
                "shard": shard,
                "path": str(directory.shard_path(shard)),
                "socket": str(paths[shard]),
                "settings": msgspec.to_builtins(
                    msgspec.structs.replace(settings, shard=shard, shards=self.shards)
                ),
                "sync": sync,
                "clock_ms": clock.now_ms() if manual else None,
                "token": token,
                "host_pid": self._pid,
            }

        self._supervisor = SupervisorActor.launch(
            self.shards,
            config_of,
            lambda shard: self.ref.tell(Connect(shard)),
            lambda shard, error: self.ref.tell(GiveUp(shard, error)),
        )
        try:
            self._await_start()
        except BaseException:
            self.close(_CLOSE_S)
            raise

    @property
    def ref(self) -> pykka.ActorRef[RouterActor]:
        """The router's Pykka reference."""
        return self._router.actor_ref

    def submit(
        self, request: Any, read: Callable[[Any], T], until_ms: int | None = None
    ) -> ReplyFuture[T]:
        """Send a request to where it belongs."""
        return self._router.routes.submit(request, read, until_ms)

    def now_ms(self) -> int:
        """Return the store's time."""
        return self.clock.now_ms()

    def tick(self, now_ms: int) -> None:
        """Move the shards' clocks; return when they have done what became due."""
        _answered(self.submit(Tick(now_ms), _nothing))

    def processes(self) -> list[dict[str, Any]]:
        """Return what is known of each shard's process: pid, flows at start, recovery_ms."""
        return [dict(child.told) for child in self._supervisor.children]

    def close(self, timeout_s: float | None) -> None:
        """Stop the shards, then the threads; safe to repeat and after a fork."""
        with self._close_lock:
            if self._is_closed:
                return
            self._is_closed = True
        if os.getpid() != self._pid:
            return
        if self._courier is not None:
            self._courier.stop()
        self._supervisor.actor_ref.stop(block=True)
        self._supervisor.stop_children(_CLOSE_S if timeout_s is None else timeout_s)
        self.ref.stop(block=True)

    def _await_start(self) -> None:
        deadline_s = time.monotonic() + START_SECONDS_MAX
        for child in self._supervisor.children:
            # In slices: an endless wait in the main thread would not see Ctrl-C.
            while not child.settled.wait(_POLL_S):
                if time.monotonic() > deadline_s:
                    raise _never_started(child.shard)
        errors = [child.error for child in self._supervisor.children if child.error is not None]
        if len(errors) == self.shards:
            raise errors[0]
        reconcile_policies(self._router.links)
        self._courier = start_courier(self._router.links)


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
        reconcile_policies(self.links)
        self._courier = start_courier(self.links)

    def _builder(
        self, files: Files, settings: Settings, shard: int, *, sync: bool, may_begin: bool
    ) -> Callable[[], Service]:
        own = msgspec.structs.replace(settings, shard=shard, shards=self.shards)

        def build() -> Service:
            if not files.lock():
                raise ShardUnavailable(f"shard {shard} is locked by another store", shard=shard)
            try:
                engine = Engine(files, SystemEntropy(), own, sync=sync, may_begin=may_begin)
            except BaseException:
                files.unlock()
                raise
            return Service(engine, self.clock, relaxed=not sync)

        return build

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
            _answered(future)

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


def reconcile_policies(links: Sequence[Link]) -> None:
    """Bring every shard to the newest generation of every policy.

    A host that died between a policy's decision and the last adoption leaves shards behind.
    """
    told = [_ask(link, PolicyGet(None)) for link in links]
    served = [(link, r.data) for link, r in zip(links, told, strict=True) if isinstance(r, Data)]
    newest: dict[str, dict[str, Any]] = {}
    for _, policies in served:
        for policy in policies:
            have = newest.get(policy["type"])
            if have is None or have["generation"] < policy["generation"]:
                newest[policy["type"]] = policy
    for link, policies in served:
        generations = {policy["type"]: policy["generation"] for policy in policies}
        for name, policy in newest.items():
            if generations.get(name, 0) < policy["generation"]:
                _ask(link, PolicyAdopt(name, policy["policy"], policy["generation"]))


def _never_started(shard: int) -> ShardUnavailable:
    return ShardUnavailable(
        f"shard {shard} has not begun to serve in {START_SECONDS_MAX} seconds; see its output on "
        "stderr, and open the store again",
        shard=shard,
        reason="start timed out",
    )


def _ask(link: Link, request: Any) -> Any:
    future: ReplyFuture[Any] = ReplyFuture(_as_it_is)
    link.submit(request, future)
    return _answered(future)


def _answered(future: ReplyFuture[T]) -> T:
    try:
        return future.get(timeout=_CLOSE_S)
    except pykka.Timeout:
        raise ShardUnavailable(
            f"a shard has not answered for {_CLOSE_S} seconds", reason="no answer"
        ) from None


def _as_it_is(reply: Any) -> Any:
    return reply


def _nothing(reply: Any) -> None:
    return None
