"""The caller's end of one shard process: a socket, and the requests it has not answered yet."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from ..flow.creating import is_creating
from ..flow.errors import FlowError, Refused, refusal
from ..flow.family import Abort, AskOutcome, Collect, Commit, Deliver, SpawnEnd
from ..flow.limits import (
    LINK_CREATIONS_MAX,
    LINK_OUTBOX_BYTES_MAX,
    LINK_REQUESTS_MAX,
    OVERLOAD_RETRY_MS,
    WIRE_FRAME_BYTES_MAX,
)
from ..flow.queries import Unwatch, is_query
from ..flow.replies import Rejected, reject
from .address import bind_address
from .connection import is_own_user
from .port import Receiver
from .wire import (
    HEADER_BYTES,
    HELLO,
    PROTOCOL,
    FrameReader,
    Hello,
    Welcome,
    WireError,
    pack_body,
    pack_frame,
    pack_request,
    read_welcome,
)

_READ_BYTES = 1 << 20
_ALWAYS = frozenset((Unwatch, Commit, Abort, SpawnEnd, AskOutcome, Deliver, Collect))
"""What ends something, or is bounded by who sends it: taken also over the bounds below.

Refused, it would leave things half done that nobody comes back to.
"""


class Reader(Protocol):
    """Who reads the links' sockets when no caller does. All of it from any thread."""

    def look(self, channel: socket.socket, link: ProcessLink, *, read: bool, write: bool) -> None:
        """Report once when the link's socket can be read, written, or either."""
        ...

    def forget(self, channel: socket.socket) -> None:
        """Report this socket never again."""
        ...

    def lost(self, link: ProcessLink) -> None:
        """Connect the link again, by and by."""
        ...


class ProcessLink:
    """Sends from any thread; is read by one at a time, the router's or a waiting caller's.

    While the shard is away, requests wait here, bounded, and are sent when it is back. When it
    goes away, requests that were sent end as `outcome_unknown`, but for reads, which are sent
    again by themselves. When it is given up (`fail`), everything is refused.
    """

    def __init__(self, shard: int, path: Path, token: str, reader: Reader) -> None:
        self.shard = shard
        self.channel: socket.socket | None = None
        """The connection, from `connect` on."""
        self.token = token
        """What to show when connecting; set by whoever connects."""
        self.welcome: Welcome | None = None
        """What the shard said when it last let us in."""
        self._path = path
        self._watcher = reader
        self._lock = threading.Lock()
        """Guards what senders touch; `_reading` is held by whoever reads."""
        self._reading = threading.Lock()
        self._numbers = itertools.count(1)
        self._pending: dict[int, tuple[Receiver, Any]] = {}
        self._standing: set[int] = set()
        """The courier's requests, among which are all that are pending."""
        self._unsent: dict[int, bytes] = {}
        """Pending requests that wait for the shard, in order."""
        self._unsent_bytes = 0
        self._is_greeted = False
        """Only then requests are sent: what listens there is our shard."""
        self._outbox: deque[memoryview] = deque()
        self._outbox_bytes = 0
        self._frames = FrameReader()
        self._failed: Rejected | None = None

    # ---- any thread ----

    def submit(self, request: Any, receiver: Receiver) -> int:
        """Send a request, or keep it until the shard is there; the receiver is called once."""
        number = next(self._numbers)
        frame = pack_request(number, request)
        with self._lock:
            refused = self._failed or self._refuse(request, frame)
            if refused is None:
                self._pending[number] = (receiver, request)
                if request.__class__ is Collect:
                    # Replaced, not changed: it is read without the lock.
                    self._standing = {number, *(self._standing & self._pending.keys())}
                if self._is_greeted:
                    self._send(frame)
                else:
                    self._unsent[number] = frame
                    self._unsent_bytes += len(frame)
        if refused is not None:
            receiver.answer(refused)
        return number

    def withdraw(self, number: int) -> bool:
        """Take a request back; True if it was never sent."""
        with self._lock:
            frame = self._unsent.pop(number, None)
            if frame is None:
                return False
            self._unsent_bytes -= len(frame)
            self._pending.pop(number, None)
            return True

    def _refuse(self, request: Any, frame: bytes) -> Rejected | None:
        if len(frame) - HEADER_BYTES > WIRE_FRAME_BYTES_MAX:
            return reject(
                "invalid_argument",
                f"the command takes {len(frame)} bytes; {WIRE_FRAME_BYTES_MAX} is the most: "
                "use smaller batches",
            )
        if request.__class__ in _ALWAYS:
            return None
        waiting_bytes = self._outbox_bytes + self._unsent_bytes
        bound = LINK_REQUESTS_MAX
        if len(self._pending) >= LINK_CREATIONS_MAX and is_creating(request):
            bound = LINK_CREATIONS_MAX
        if len(self._pending) >= bound or waiting_bytes > LINK_OUTBOX_BYTES_MAX:
            return reject(
                "overloaded",
                f"{len(self._pending)} requests at shard {self.shard} wait for their answers; "
                "wait for some of them first",
                reason="requests in flight",
                retry_after_ms=OVERLOAD_RETRY_MS,
            )
        return None

    def _send(self, frame: bytes) -> None:
        """Send under the lock; what the socket does not take waits in the outbox."""
        assert self.channel is not None
        sent = 0
        if not self._outbox:
            # A broken connection is noticed, and mended, by the reader.
            with contextlib.suppress(OSError):
                sent = self.channel.send(frame)
        if sent < len(frame):
            self._outbox.append(memoryview(frame)[sent:])
            self._outbox_bytes += len(frame) - sent
            if len(self._outbox) == 1:
                self._look()

    # ---- the reader's thread ----

    def connect(self) -> None:
        """Connect and begin the handshake; requests go out once the shard has answered it.

        Raises:
            OSError: the shard is not there (yet).
        """
        assert self.channel is None
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            channel.setblocking(False)
            with bind_address(self._path) as address:
                channel.connect(address)
            if not is_own_user(channel):
                raise PermissionError(f"{self._path} belongs to another user")
            hello = Hello(PROTOCOL, self.token, os.getpid())
            channel.send(pack_frame(HELLO, pack_body(hello)))
        except BaseException:
            channel.close()
            raise
        self._frames = FrameReader()
        self.channel = channel
        self.look()

    def look(self) -> None:
        """Have the reader report the socket again, if there is one."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        """Under the lock. A leader reads for itself; what cannot be sent yet is the reader's."""
        if self.channel is not None:
            is_led = self._reading.locked()
            self._watcher.look(self.channel, self, read=not is_led, write=bool(self._outbox))

    def readable(self) -> None:
        """Hand out the answers that have arrived, unless a caller is reading them just now."""
        if self._reading.acquire(blocking=False):
            try:
                self._read()
            finally:
                self._reading.release()

    # ---- a waiting caller that reads for itself, and for others: see actors/leading.py ----

    def begin_lead(self) -> bool:
        """Become the one that reads this link; False if another does, or there is no shard."""
        if not self._is_greeted or not self._reading.acquire(blocking=False):
            return False
        self.look()
        return True

    def end_lead(self) -> None:
        """Leave the reading to the router again."""
        # Released first: then this look, or a later one, has the reader read again.
        self._reading.release()
        self.look()

    def read(self) -> bool:
        """Read once; return whether anything has arrived. For the one that leads."""
        return self._read()

    @property
    def requests_pending(self) -> int:
        """How many requests wait for an answer, without the courier's, which always does."""
        return len(self._pending) - len(self._standing & self._pending.keys())

    def _read(self) -> bool:
        """Read once; return whether anything has arrived. Under `_reading`."""
        channel = self.channel
        if channel is None:
            return False
        try:
            data = channel.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        try:
            if not data:
                raise WireError("the shard closed the connection")
            for number, body in self._frames.feed(data):
                if number == HELLO:
                    self._greeted(body)
                    continue
                entry = self._pending.pop(number, None)
                if entry is not None:
                    entry[0].arrive(body)
        except WireError:
            self._lost()
        return True

    def _greeted(self, body: bytes) -> None:
        welcome = read_welcome(body)
        if welcome.shard != self.shard or welcome.protocol != PROTOCOL:
            raise WireError(f"{self._path} is not shard {self.shard}")
        with self._lock:
            self.welcome = welcome
            self._is_greeted = True
            self._failed = None
            unsent, self._unsent = self._unsent, {}
            self._unsent_bytes = 0
            for frame in unsent.values():
                self._send(frame)

    def writable(self) -> None:
        """Send from the outbox what the socket takes."""
        with self._lock:
            channel = self.channel
            while self._outbox and channel is not None:
                first = self._outbox[0]
                try:
                    sent = channel.send(first)
                except OSError as error:
                    if not isinstance(error, BlockingIOError | InterruptedError):
                        break
                    return
                self._outbox_bytes -= sent
                if sent < len(first):
                    self._outbox[0] = first[sent:]
                    return
                self._outbox.popleft()

    def fail(self, error: FlowError | Refused) -> None:
        """Refuse what waits and what comes, until the shard is there again."""
        refused = Rejected(error if isinstance(error, Refused) else refusal(error))
        with self._lock:
            self._failed = refused
            ended: list[tuple[Receiver, Rejected]] = []
            for number in list(self._pending):
                # Whoever pops an entry answers it: a leader may be reading at this very moment.
                entry = self._pending.pop(number, None)
                if entry is not None:
                    is_sent = number not in self._unsent and not is_query(entry[1])
                    ended.append((entry[0], self._unknown() if is_sent else refused))
            self._unsent.clear()
            self._unsent_bytes = 0
            self._drop_channel()
        for receiver, reply in ended:
            receiver.answer(reply)

    def revive(self) -> None:
        """Let requests wait again, after `fail`: there is new hope."""
        with self._lock:
            self._failed = None

    def close(self) -> None:
        """Refuse everything from now on."""
        self.fail(Refused("store_closed", "the store is closed; open it again"))

    def _lost(self) -> None:
        """End what was sent and not answered, but for reads: they go again."""
        ended: list[Receiver] = []
        with self._lock:
            self._drop_channel()
            for number, (receiver, request) in list(self._pending.items()):
                if number in self._unsent:
                    continue
                if is_query(request):
                    self._unsent[number] = frame = pack_request(number, request)
                    self._unsent_bytes += len(frame)
                elif self._pending.pop(number, None) is not None:
                    ended.append(receiver)
        self._watcher.lost(self)
        for receiver in ended:
            receiver.answer(self._unknown())

    def _unknown(self) -> Rejected:
        return reject(
            "outcome_unknown",
            f"shard {self.shard} went away before it answered: the command may have been applied; "
            "read before repeating it",
        )

    def _drop_channel(self) -> None:
        self._is_greeted = False
        self._outbox.clear()
        self._outbox_bytes = 0
        channel, self.channel = self.channel, None
        if channel is not None:
            self._watcher.forget(channel)
            # Wakes a caller that leads: a close alone would leave it asleep on the old socket.
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
            channel.close()
