"""A shard inside the caller's process: the same service, called directly under a lock."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ..flow.engine import Answer
from ..flow.errors import FlowError, Refused, advice, is_final, refusal
from ..flow.limits import LOCAL_LATE_MS, RESTARTS_MAX
from ..flow.queries import is_query
from ..flow.replies import Rejected, Reply, reject
from .messages import Arrival, Departure
from .port import Receiver
from .service import Service

logger = logging.getLogger("shardflow.shard")

Build = Callable[[], Service]
"""Recovers the shard from its log. Raises FlowError or OSError."""


class LocalLink:
    """Answers in the caller's thread.

    A step that fails ends the service as it would end a process: its memory may be ahead of the
    disk, so it is thrown away and built again from the log.
    """

    def __init__(self, shard: int, build: Build) -> None:
        self.shard = shard
        self.channel: socket.socket | None = None
        self.requests_pending = 0
        self._build = build
        self._service: Service | None = None
        self._refused: Rejected | None = None
        self._failures = 0
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._receivers: dict[int, Receiver] = {}
        self._answers: deque[tuple[Receiver, Reply]] = deque()
        self._planned_ms: int | None = None
        self._owed_ms: int | None = None
        """The earliest that was planned since the last `wake`."""
        self.poke: Callable[[], None] = _nothing
        """Called when the next wake time has become earlier."""
        self._start()

    @property
    def refused(self) -> Rejected | None:
        """Why the shard does not serve, if it does not."""
        return self._refused

    def submit(self, request: Any, receiver: Receiver) -> int:
        """Answer a request, and whoever waited for what it changed."""
        number = next(self._numbers)
        with self._lock:
            service, refused = self._service, self._refused
            if service is not None:
                self._receivers[number] = receiver
                self._take(self._serve(service, number, request))
            is_earlier = self._plan()
            is_late = self._is_late(service)
        if service is None:
            receiver.answer(refused)
        self._hand_out()
        if is_late:
            self.wake()
        elif is_earlier:
            self.poke()
        return number

    def withdraw(self, number: int) -> bool:
        """Nothing waits to be sent here."""
        return False

    def begin_lead(self) -> bool:
        """Nothing has to be read here."""
        return False

    def end_lead(self) -> None:
        """Nothing was begun."""

    def read(self) -> bool:
        """Nothing arrives: answers are given at once, or by whoever changes something."""
        return False

    def wake(self) -> None:
        """Do what time has made due."""
        with self._lock:
            self._owed_ms = None
            if self._service is not None:
                try:
                    self._take(self._service.wake())
                except Exception as error:
                    self._broken(error)
            self._plan()
        self._hand_out()

    def next_wake_ms(self) -> int | None:
        """Return when `wake` has something to do next."""
        with self._lock:
            return self._planned_ms

    def close(self) -> None:
        """Close the engine and refuse everything from now on."""
        with self._lock:
            service, self._service = self._service, None
            self._refused = Rejected(Refused("store_closed", "the store is closed; open it again"))
            if service is not None:
                self._take(service.dismiss(self._refused))
            self._planned_ms = None
        if service is not None:
            service.close()
        self._hand_out()

    def _plan(self) -> bool:
        """Note the next wake time; return whether it has become earlier."""
        at_ms = None if self._service is None else self._service.next_wake_ms()
        before_ms, self._planned_ms = self._planned_ms, at_ms
        if at_ms is not None and (self._owed_ms is None or at_ms < self._owed_ms):
            self._owed_ms = at_ms
        return at_ms is not None and (before_ms is None or at_ms < before_ms)

    def _is_late(self, service: Service | None) -> bool:
        """Whether callers without a pause have kept the ticker's thread from waking the shard."""
        if service is None or self._owed_ms is None:
            return False
        return service.clock.now_ms() - self._owed_ms >= LOCAL_LATE_MS

    def _serve(self, service: Service, number: int, request: Any) -> list[Departure]:
        try:
            departures = service.serve([Arrival(self, number, request)])
        except Exception as error:
            self._broken(error)
            unknown = reject(
                "outcome_unknown",
                f"shard {self.shard} failed in this command ({error}): it may have been applied; "
                "read before repeating it",
            )
            return [Departure(self, number, Answer(unknown))]
        if not is_query(request):
            self._failures = 0
        return departures

    def _broken(self, error: Exception) -> None:
        logger.exception("shard %d failed in a step; recovering it from its log", self.shard)
        self._failures += 1
        service, self._service = self._service, None
        if service is not None:
            # Whoever waited looks again, at the recovered shard or at why there is none.
            self._take(service.dismiss(None))
            service.abandon()
        if is_final(error):
            self._refused = Rejected(refusal(error))
        elif self._failures < RESTARTS_MAX:
            self._start()
        else:
            self._refused = _unavailable(
                self.shard, f"it failed {self._failures} times in a row; mend that"
            )

    def _take(self, departures: list[Departure]) -> None:
        """Queue answers for their receivers; under the lock."""
        for _, number, answer in departures:
            receiver = self._receivers.pop(number, None)
            if receiver is not None:
                self._answers.append((receiver, answer.reply))

    def _hand_out(self) -> None:
        """Give answers out, without the lock: a receiver may send the next request."""
        while self._answers:
            try:
                receiver, reply = self._answers.popleft()
            except IndexError:
                return
            receiver.answer(reply)

    def _start(self) -> None:
        try:
            self._service = self._build()
        except FlowError as error:
            self._refused = Rejected(refusal(error))
        except OSError as error:
            self._refused = _unavailable(self.shard, f"{error}; {advice(error.errno)}")


def _nothing() -> None:
    pass


def _unavailable(shard: int, reason: str) -> Rejected:
    return reject(
        "shard_unavailable",
        f"shard {shard} does not serve: {reason}, then open the store again",
        shard=shard,
        reason=reason,
    )
