"""Handlers in processes: one job at a time in each, and a new process for each that dies.

One thread of the worker's process sends jobs, reads outcomes, and sees processes die. A job whose
process died is not settled: its lease runs out, and it is delivered again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec.structs import replace

from ...flow.errors import FlowError, InvalidArgument
from ..codecs import Codec
from ..dsl import Handler
from ..hands import Assignment
from ..middleware import Middleware
from ..outcome import Raised, described
from ..source import Source
from .executor import Crashed, Watcher
from .frames import (
    Cancel,
    Finished,
    Ready,
    SourceFrame,
    Start,
    Unready,
    frame_of,
    outcome_of_frame,
    read_by_parent,
    work_of,
)
from .naming import MAIN, main_of_program, name_of, name_of_codec
from .seat import Seat

STARTS_MAX: Final = 5
"""How many processes in a row may end before they have loaded, until the worker gives up."""
START_BACKOFF_S: Final = 0.2
END_S: Final = 5.0
"""How long an idle process may take to end."""
SELECT_S: Final = 1.0
"""How often processes are looked at where their end cannot be waited for."""

logger = logging.getLogger("shardflow.worker")
_WAKER: Final = object()


class Processes:
    """`size` handler processes, kept at that number.

    Raises:
        InvalidArgument: a handler, a workflow, a middleware or a codec that another process could
            not find by its name.
    """

    def __init__(
        self,
        watcher: Watcher,
        size: int,
        name: str,
        crashed: Crashed,
        *,
        sources: Sequence[Source],
        handler: Handler | None,
        middleware: Sequence[Middleware],
        died: Callable[[Assignment], None],
    ) -> None:
        self._watcher = watcher
        self._size = size
        self._crashed = crashed
        self._died = died
        self._sources = list(sources)
        self._codecs: dict[Source, Codec | None] = {}
        self._program = _program_of(sources, handler, middleware, name)
        self._hello = b""
        self._seats: list[Seat] = []
        self._idle: list[Seat] = []
        self._inbox: deque[Assignment] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._numbers = itertools.count(1)
        self._starts_failed = 0
        self._start_at_s = 0.0
        self._is_ended = False
        self._selector: Any = None
        self._waker: Any = None
        self._woken: Any = None
        self._thread = threading.Thread(target=self._run, name=f"{name}/pool", daemon=True)

    # ---- any thread ----

    def start(self) -> None:
        """Begin: slots come as the processes have loaded their handlers.

        Raises:
            InvalidArgument: the store has a codec that another process could not find.
        """
        self._codecs = {source: _codec_of(source) for source in self._sources}
        codecs = [name_of_codec(codec) for codec in self._codecs.values()]
        frames = [
            replace(frame, codec=codec)
            for frame, codec in zip(self._program.sources, codecs, strict=True)
        ]
        self._hello = frame_of(replace(self._program, sources=frames))
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, _WAKER)
        self._thread.start()

    def run(self, assignments: Sequence[Assignment]) -> None:
        """Run the handlers of jobs."""
        self._do(lambda: self._inbox.extend(assignments))

    def end(self, assignment: Assignment) -> None:
        """Kill the process that runs the handler; another takes its place."""
        self._do(lambda: self._kill(assignment))

    def tell_cancelled(self, assignment: Assignment) -> None:
        """Tell the process that runs the handler."""
        self._do(lambda: self._cancel(assignment))

    def stop(self) -> None:
        """Run nothing more, and end all processes: those that run a handler at once."""

        def end() -> None:
            self._is_ended = True

        self._do(end)

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the processes and of the thread."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    @property
    def is_own_thread(self) -> bool:
        """No handler runs in this process."""
        return False

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [seat.process.pid for seat in list(self._seats)]

    def _do(self, errand: Callable[[], None]) -> None:
        self._errands.append(errand)
        with contextlib.suppress(OSError):  # Full: it wakes anyhow. Closed: it has ended.
            self._waker.send(b"\0")

    # ---- the thread ----

    def _run(self) -> None:
        try:
            while not self._is_ended:
                while self._errands:
                    self._errands.popleft()()
                self._fill_seats()
                self._hand_out()
                if not self._is_ended:
                    self._serve(self._selector.select(self._wait_s()))
        except BaseException as error:
            self._crashed(error)
        finally:
            self._end_all()
            self._close()

    def _wait_s(self) -> float | None:
        waits: list[float] = []
        if len(self._seats) < self._size:
            waits.append(max(0.0, self._start_at_s - time.monotonic()))
        if any(seat.death is None for seat in self._seats):
            waits.append(SELECT_S)
        return min(waits, default=None)

    def _fill_seats(self) -> None:
        while (
            not self._is_ended
            and len(self._seats) < self._size
            and self._start_at_s <= time.monotonic()
        ):
            seat = Seat()
            self._seats.append(seat)
            self._selector.register(seat.channel, selectors.EVENT_READ, seat)
            if seat.death is not None:
                self._selector.register(seat.death, selectors.EVENT_READ, seat)
            self._send(seat, self._hello)

    def _hand_out(self) -> None:
        while self._inbox and self._idle:
            assignment = self._inbox.popleft()
            if not self._watcher.begin(assignment):
                continue
            source = assignment.source
            index, codec = self._sources.index(source), self._codecs[source]
            number = next(self._numbers)
            try:
                work = work_of(number, index, assignment.job, codec)
            except InvalidArgument as error:
                self._watcher.finish(assignment, Raised(described(error)), 0.0)
                continue
            seat = self._idle.pop()
            seat.assignment = assignment
            seat.number = number
            assignment.seat = seat
            self._send(seat, frame_of(work))

    def _serve(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        seats: dict[int, Seat] = {}
        for key, mask in events:
            if key.data is _WAKER:
                with contextlib.suppress(OSError):
                    self._woken.recv(4_096)
                continue
            seats[id(key.data)] = key.data
            if mask & selectors.EVENT_WRITE:
                self._send(key.data, b"")
        if not events:
            seats = {id(seat): seat for seat in self._seats}
        for seat in seats.values():
            self._read(seat)

    def _read(self, seat: Seat) -> None:
        is_over = seat.process.poll() is not None
        # Its last outcome may have arrived before its end.
        while data := seat.read():
            for body in seat.stream.feed(data):
                self._take(seat, read_by_parent(body))
        if is_over or data == b"":
            self._bury(seat)

    def _take(self, seat: Seat, message: Ready | Unready | Finished) -> None:
        match message:
            case Ready():
                seat.is_ready = True
                self._starts_failed = 0
                self._idle.append(seat)
                self._resize()
            case Unready(text):
                raise InvalidArgument(
                    f"a handler process could not load what it needs:\n{text}", argument="executor"
                )
            case Finished(number, seconds):
                assignment = seat.assignment
                if assignment is None or number != seat.number:
                    return
                outcome = outcome_of_frame(message, self._codecs[assignment.source])
                seat.assignment = assignment.seat = None
                self._idle.append(seat)
                self._watcher.finish(assignment, outcome, seconds)

    def _bury(self, seat: Seat) -> None:
        """See to what a process leaves behind, and to its successor."""
        self._forget(seat)
        assignment, seat.assignment = seat.assignment, None
        if assignment is not None:
            assignment.seat = None
            # First of all: its lease is renewed no more.
            self._died(assignment)
        seat.kill()
        code = seat.bury(END_S)
        if assignment is not None:
            self._watcher.put_down([assignment])
        self._resize()
        if not seat.is_ready:
            self._starts_failed += 1
            if self._starts_failed >= STARTS_MAX:
                raise FlowError(
                    f"{STARTS_MAX} handler processes in a row ended before they had loaded their "
                    f"handlers, the last with exit code {code}: see their output on stderr"
                )
            self._start_at_s = time.monotonic() + START_BACKOFF_S * 2.0**self._starts_failed
        logger.warning("a handler process ended with exit code %d; starting another", code)

    def _kill(self, assignment: Assignment) -> None:
        seat = assignment.seat
        if isinstance(seat, Seat) and seat.assignment is assignment:
            seat.kill()

    def _cancel(self, assignment: Assignment) -> None:
        seat = assignment.seat
        if isinstance(seat, Seat) and seat.assignment is assignment:
            self._send(seat, frame_of(Cancel(seat.number)))

    def _send(self, seat: Seat, frame: bytes) -> None:
        seat.send(frame)
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if seat.outbox else 0)
        if self._selector.get_key(seat.channel).events != mask:
            self._selector.modify(seat.channel, mask, seat)

    def _resize(self) -> None:
        self._watcher.resize(sum(seat.is_ready for seat in self._seats))

    def _forget(self, seat: Seat) -> None:
        self._selector.unregister(seat.channel)
        if seat.death is not None:
            self._selector.unregister(seat.death)
        self._seats.remove(seat)
        if seat in self._idle:
            self._idle.remove(seat)

    def _end_all(self) -> None:
        seats = list(self._seats)
        for seat in seats:
            if seat.assignment is not None or not seat.is_ready:
                seat.kill()
            self._forget(seat)
            seat.hang_up()
        deadline_s = time.monotonic() + END_S
        for seat in seats:
            seat.bury(max(0.0, deadline_s - time.monotonic()))
            if seat.assignment is not None:
                self._watcher.put_down([seat.assignment])

    def _close(self) -> None:
        self._selector.close()
        self._waker.close()
        self._woken.close()


def _codec_of(source: Source) -> Codec | None:
    codec: Codec | None = getattr(source.store(), "codec", None)
    return codec


def _program_of(
    sources: Sequence[Source],
    handler: Handler | None,
    middleware: Sequence[Middleware],
    worker: str,
) -> Start:
    """Return what the processes have to load; the codecs are known only once there is a store.

    Raises:
        InvalidArgument: something that they could not find.
    """
    frames = [
        SourceFrame(name_of(source.workflow, "workflow"), source.states, None) for source in sources
    ]
    handler_name = None if handler is None else name_of(handler, "handler")
    names = [name_of(function, "middleware") for function in middleware]
    modules = {
        str(getattr(function, "__module__", None) or type(function).__module__)
        for source in sources
        for function in source.handlers
    }
    named = {name.module for name in (*names, handler_name, *(f.workflow for f in frames)) if name}
    main = main_of_program(modules | named)
    return Start(
        list(sys.argv), main, sorted(modules - {MAIN}), frames, handler_name, names, worker
    )
