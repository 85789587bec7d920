"""One handler process as its worker sees it: the process, its channel, and the job it has."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from typing import Any, Final

from ...flow.errors import InvalidArgument
from ..hands import Assignment
from .frames import Stream

READ_BYTES: Final = 1 << 20
_BOOT: Final = (
    "import sys, json; "
    "sys.path.extend(p for p in json.loads(sys.argv[1]) if p not in sys.path); "
    "from shardflow.sdk.executors.child import main; main()"
)


class Seat:
    """A process that runs one handler at a time, in a fresh interpreter.

    It has a session of its own: Ctrl-C and the end of a terminal reach it only through its worker.
    """

    def __init__(self) -> None:
        if getattr(sys, "frozen", False) or not sys.executable:
            raise InvalidArgument(
                "handler processes need a Python interpreter to run in, and this program is frozen "
                "into an executable: use executor='thread'",
                argument="executor",
            )
        self.assignment: Assignment | None = None
        self.number = 0
        """Of the job that it has."""
        self.is_ready = False
        self.stream = Stream()
        self.outbox = bytearray()
        self.channel, other = socket.socketpair()
        try:
            paths = [os.path.abspath(entry or os.curdir) for entry in sys.path]  # noqa: PTH100
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-c", _BOOT, json.dumps(paths)),
                    *(str(os.getpid()), str(other.fileno())),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            self.channel.close()
            raise
        finally:
            other.close()
        self.channel.setblocking(False)
        self.death = _death_of(self.process.pid)
        """Can be read once the process has ended; None where the system has no such thing."""

    def send(self, frame: bytes) -> None:
        """Send, or keep in the outbox what the channel does not take."""
        self.outbox += frame
        self.flush()

    def flush(self) -> None:
        """Send what the channel takes. A broken one is noticed by who reads it."""
        with contextlib.suppress(OSError):
            while self.outbox:
                sent = self.channel.send(self.outbox)
                del self.outbox[:sent]

    def read(self) -> bytes | None:
        """Return what has arrived; None = nothing, b"" = the end."""
        try:
            return self.channel.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def kill(self) -> None:
        """SIGKILL the process."""
        self.process.kill()

    def hang_up(self) -> None:
        """End the channel: the process ends if it is idle, and at once if it is not."""
        # A close alone would not be noticed while a child that we have forked has a copy.
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)
        self.channel.close()

    def bury(self, timeout_s: float) -> int:
        """Wait for its end, kill it if that takes too long, and give everything back."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.channel.close()
        if self.death is not None:
            os.close(self.death)
            self.death = None
        return int(self.process.returncode)


def _death_of(pid: int) -> int | None:
    open_pidfd: Any = getattr(os, "pidfd_open", None)
    if open_pidfd is None:
        return None
    try:
        fd: int = open_pidfd(pid)
    except OSError:
        return None
    return fd
