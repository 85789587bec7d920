"""A shard inside the caller's process: the same service, called directly under a lock."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from ..flow.commands import Cancel, Complete, Fail, Retry
from ..flow.engine import Answer
from ..flow.errors import FlowError, Refused, refusal
from ..flow.limits import RESTARTS_MAX
from ..flow.queries import Watch
from ..flow.replies import Rejected, reject
from .port import Receiver
from .service import Arrival, Departure, Service

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
        self.poke: Callable[[], None] = _nothing
        """Called when a request may have changed the next wake time."""
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
            departures = [] if service is None else self._serve(service, receiver, number, request)
        if service is None:
            receiver.answer(refused)
        _hand_out(departures)
        if request.__class__ in _TIMED:
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
        departures: list[Departure] = []
        with self._lock:
            if self._service is not None:
                try:
                    departures = self._service.wake()
                except Exception:
                    self._broken()
        _hand_out(departures)

    def next_wake_ms(self) -> int | None:
        """Return when `wake` has something to do next."""
        with self._lock:
            return None if self._service is None else self._service.next_wake_ms()

    def close(self) -> None:
        """Close the engine and refuse everything from now on."""
        with self._lock:
            service, self._service = self._service, None
            self._refused = Rejected(Refused("store_closed", "the store is closed; open it again"))
        if service is not None:
            departures = service.dismiss(self._refused)
            service.close()
            _hand_out(departures)

    def _serve(
        self, service: Service, receiver: Receiver, number: int, request: Any
    ) -> list[Departure]:
        try:
            departures = service.serve([Arrival(receiver, number, request)])
        except Exception as error:
            self._broken()
            unknown = reject(
                "outcome_unknown",
                f"shard {self.shard} failed in this command ({error}): it may have been applied; "
                "read before repeating it",
            )
            return [Departure(receiver, number, Answer(unknown, None), bytearray())]
        self._failures = 0
        return departures

    def _broken(self) -> None:
        logger.exception("shard %d failed in a step; recovering it from its log", self.shard)
        self._failures += 1
        service, self._service = self._service, None
        if service is not None:
            service.abandon()
        if self._failures < RESTARTS_MAX:
            self._start()
        else:
            self._refused = _unavailable(self.shard, f"it failed {self._failures} times in a row")

    def _start(self) -> None:
        try:
            self._service = self._build()
        except FlowError as error:
            self._refused = Rejected(refusal(error))
        except OSError as error:
            self._refused = _unavailable(self.shard, str(error))


_TIMED = (Watch, Complete, Fail, Cancel, Retry)
"""Requests after which something may have to be done at a time: a watch, a retention."""


def _nothing() -> None:
    pass


def _unavailable(shard: int, reason: str) -> Rejected:
    return reject(
        "shard_unavailable",
        f"shard {shard} does not serve: {reason}; mend that and open the store again",
        shard=shard,
        reason=reason,
    )


def _hand_out(departures: list[Departure]) -> None:
    for caller, _, answer, _ in departures:
        caller.answer(answer.reply)
