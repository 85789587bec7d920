"""A store whose shards are processes: this process's own, or those of the one that hosts it.

One object for both, because an attached process becomes the host when the host is gone: its links,
and whatever waits at them, stay.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import msgspec
import pykka

from ..flow.errors import FlowError, ShardUnavailable, StoreLocked
from ..flow.host import Clock
from ..flow.limits import HOST_REST_SECONDS, SILENT_SECONDS_MAX, START_SECONDS_MAX
from ..flow.queries import Stats, Tick
from ..flow.replies import Rejected
from .directory import Directory
from .future import ReplyFuture, answered
from .hosting import Hosting
from .notices import HostFacts
from .router import Connect, RouterActor
from .supervisor import can_spawn

logger = logging.getLogger("shardflow.host")

T = TypeVar("T")

_CLOSE_S = 30.0
_POLL_S = 0.1


class ProcessPort:
    """Routes to shard processes, and hosts them if it owns the directory, now or later.

    `facts`: how to host, if the directory's lock is ours; else what the host has told.

    Raises:
        FlowError: no shard serves at all; the first shard's reason.
    """

    def __init__(
        self, directory: Directory, facts: HostFacts, clock: Clock, *, owns: bool, sync: bool
    ) -> None:
        self.shards = directory.shards
        self.clock = clock
        self._directory = directory
        self._facts = facts
        self._token = ""
        """Of the host that we are attached to: each has another."""
        self._sync = sync
        self._pid = os.getpid()
        self._is_closed = False
        self._gate = threading.Lock()
        """Held while this process becomes the host, and while it closes."""
        self._hosting: Hosting | None = None
        self._has_taken_over = False
        self._may_host_at_s = 0.0
        paths = [directory.notices.socket_path(shard) for shard in range(self.shards)]
        self._router = RouterActor.launch(paths, self)
        try:
            if owns:
                self._host()
                self._await_start()
            else:
                for shard in range(self.shards):
                    self.ref.tell(Connect(shard))
                self._await_answers()
        except BaseException:
            self.close(_CLOSE_S)
            raise

    @property
    def ref(self) -> pykka.ActorRef[RouterActor]:
        """The router's Pykka reference."""
        return self._router.actor_ref

    @property
    def role(self) -> Literal["host", "attached"]:
        """Whether the shards are this process's own, as of now."""
        return "attached" if self._hosting is None else "host"

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
        answered(self.submit(Tick(now_ms), _nothing), _CLOSE_S)

    def processes(self) -> list[dict[str, Any]]:
        """Return what is known of each shard's process: pid; of own ones flows and recovery_ms."""
        if self._hosting is not None:
            told = [dict(child.told) for child in self._hosting.children]
            return told or [{} for _ in range(self.shards)]
        welcomes = [link.welcome for link in self._router.links]
        return [{} if welcome is None else {"pid": welcome.pid} for welcome in welcomes]

    def close(self, timeout_s: float | None) -> None:
        """Stop the shards, if they are ours, then the threads; safe to repeat and after a fork."""
        with self._gate:
            if self._is_closed:
                return
            self._is_closed = True
        if os.getpid() != self._pid:
            return
        if self._hosting is not None:
            self._hosting.stop(_CLOSE_S if timeout_s is None else timeout_s)
        self.ref.stop(block=True)

    def abandon(self) -> None:
        """In a forked child: let go of what it has inherited, all of which is the parent's."""
        # Whoever held it does not live here.
        self._gate = threading.Lock()
        if self._hosting is not None:
            self._hosting.release_pipes()
        self._router.abandon()

    # ---- the router's keeper, in its thread ----

    def prepare(self) -> bool:
        """Host, if nobody does any more; else find out how to connect to the host's shards."""
        if self._hosting is not None:
            return True
        try:
            if self._take_over():
                return False  # The supervisor says when they serve.
            facts = self._directory.host()
            if facts is None:
                return False
            facts.check(self._directory.path, sync=self._sync, manual=self._facts.manual)
            token = self._directory.notices.token()
        except FlowError as error:
            self._fail_lost(error)
            return False
        except (OSError, RuntimeError) as error:
            # A RuntimeError: no thread can be started, as at the end of a program.
            logger.debug("%s cannot be attached to: %s", self._directory.path, error)
            return False
        if token != self._token:
            self._facts, self._token = facts, token
            self._router.follow(facts.pid)
            pid, path = os.getpid(), self._directory.path
            logger.info("process %d attaches to %s, hosted by %d", pid, path, facts.pid)
            for link in self._router.links:
                link.token = token
                link.revive()
        return True

    def missed(self, shard: int) -> None:
        """Tell callers of a shard that the host has given up; wait on for any other."""
        if self._hosting is None:
            error = self._directory.notices.why_down(shard)
            if error is not None:
                self._router.links[shard].fail(error)

    def given_up(self) -> None:
        """Leave hosting to others if none of our shards starts: the fault may be this process's."""
        with self._gate:
            hosting = self._hosting
            if self._is_closed:
                return
            if hosting is not None:
                if not (self._has_taken_over and hosting.has_failed):
                    return
                logger.error("process %d hosts %s no more", os.getpid(), self._directory.path)
                self._hosting = None
                self._may_host_at_s = time.monotonic() + HOST_REST_SECONDS
                hosting.stop(_CLOSE_S)
                self._directory.owner.unlock()
        # Also for what a shard of a hosting that is over leaves in the inbox.
        self._router.seek()

    def _take_over(self) -> bool:
        """Host the store if its owner is gone; the kernel sees to it that only one does."""
        if not can_spawn() or time.monotonic() < self._may_host_at_s:
            return False
        owner = self._directory.owner
        with self._gate:
            if self._is_closed:
                return False
            try:
                owner.lock()
            except StoreLocked:
                return False
            former, path = self._facts.pid, self._directory.path
            logger.info("process %d takes over %s from %d", os.getpid(), path, former)
            self._has_taken_over = True
            try:
                self._host()
            except BaseException:
                self._hosting = None
                owner.unlock()
                raise
        return True

    def _host(self) -> None:
        self._router.follow(None)
        self._facts = msgspec.structs.replace(self._facts, pid=os.getpid())
        self._hosting = Hosting(self._directory, self._facts, self.clock, self._router)
        self._hosting.start()

    def _fail_lost(self, error: FlowError) -> None:
        for link in self._router.links:
            if link.channel is None:
                link.fail(error)

    # ---- opening ----

    def _await_start(self) -> None:
        """Wait until our own shards serve, or have been given up."""
        assert self._hosting is not None
        deadline_s = time.monotonic() + START_SECONDS_MAX
        for child in self._hosting.children:
            # In slices: an endless wait in the main thread would not see Ctrl-C.
            while not child.settled.wait(_POLL_S):
                if time.monotonic() > deadline_s:
                    raise _never_started(child.shard)
        errors = [child.error for child in self._hosting.children if child.error is not None]
        if len(errors) == self.shards:
            raise errors[0]
        while not self._hosting.reconciled.wait(_POLL_S):
            if time.monotonic() > deadline_s:
                raise _never_started(0)

    def _await_answers(self) -> None:
        """Wait until each shard has answered something, whoever hosts it."""
        deadline_s = time.monotonic() + START_SECONDS_MAX
        errors: list[FlowError] = []
        for link in self._router.links:
            future: ReplyFuture[None] = ReplyFuture(_raise_refused)
            link.submit(Stats(False), future)
            silent_s = 0.0
            while silent_s < SILENT_SECONDS_MAX:
                try:
                    future.get(timeout=_POLL_S)
                except pykka.Timeout:
                    # Connected and silent: it hangs, and its callers will be told so.
                    silent_s = 0.0 if link.channel is None else silent_s + _POLL_S
                except FlowError as error:
                    errors.append(error)
                    break
                else:
                    break
                if time.monotonic() > deadline_s:
                    raise _never_started(link.shard)
        if len(errors) == self.shards:
            raise errors[0]


def _never_started(shard: int) -> ShardUnavailable:
    return ShardUnavailable(
        f"shard {shard} has not begun to serve in {START_SECONDS_MAX} seconds; see its output on "
        "stderr, and open the store again",
        shard=shard,
        reason="start timed out",
    )


def _nothing(reply: Any) -> None:
    return None


def _raise_refused(reply: Any) -> None:
    if isinstance(reply, Rejected):
        raise reply.refused.error()
