"""Programs that tests start, watch and kill; shard processes seen from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

WAIT_S = 30.0
"""Longer than any wait of a test that passes, also on a busy machine."""
_POLL_S = 0.01


def eventually(
    condition: Callable[[], T],
    what: str | Callable[[], str],
    within_s: float = WAIT_S,
    poll_s: float = _POLL_S,
) -> T:
    """Wait until a condition holds and return what it returned; `what` tells what is missing."""
    deadline_s = time.monotonic() + within_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() >= deadline_s:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {within_s} seconds: {told}")
        time.sleep(poll_s)


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has reaped yet has."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def shard_pids(host_pid: int) -> list[int]:
    """Return the running shard processes of a host."""
    found = []
    for child in psutil.Process(host_pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "shardflow.actors.process" in " ".join(child.cmdline()):
                found.append(child.pid)
    return [pid for pid in found if is_running(pid)]


def shard_of_pid(pid: int) -> int | None:
    """Return which shard a process serves; None if it has not come that far or has ended."""
    with contextlib.suppress(psutil.Error):
        for file in psutil.Process(pid).open_files():
            name = Path(file.path).parent.name
            if name.startswith("shard-"):
                return int(name.removeprefix("shard-"))
    return None


class Program:
    """A program under way: its lines so far, and a way to wait for one."""

    def __init__(
        self, command: Sequence[str | Path], *, stderr: Path, stdin: str | None, **options: Any
    ) -> None:
        self.stderr_path = stderr
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._is_over = False
        with stderr.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
                **options,
            )
        assert self.process.stdin is not None
        if stdin is not None:
            self.process.stdin.write(stdin)
            self.process.stdin.close()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def say(self, line: str) -> None:
        """Give the program a line to read."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def lines(self) -> list[str]:
        """Return the whole lines that it has printed so far."""
        with self._changed:
            return list(self._lines)

    def wait_for(self, condition: Callable[[list[str]], T], what: str) -> T:
        """Wait until the lines so far satisfy a condition, and return what it returned."""
        deadline_s = time.monotonic() + WAIT_S
        with self._changed:
            while not (found := condition(self._lines)):
                left_s = deadline_s - time.monotonic()
                assert left_s > 0 and not self._is_over, f"{what}: {self._lines}, {self.stderr}"
                self._changed.wait(left_s)
            return found

    def wait_for_line(self, prefix: str) -> str:
        """Wait for a line that begins so, and return what follows the beginning."""

        def first(lines: list[str]) -> list[str]:
            return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]

        return self.wait_for(first, f"no line {prefix!r}")[0]

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code

    def kill(self) -> None:
        """SIGKILL it, and nothing else."""
        self.process.kill()

    def clean_up(self) -> None:
        """Leave nothing behind, whatever has gone wrong."""
        if self.process.poll() is None:  # else the pid may be another process's by now
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            self.process.kill()
        self.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                if line.endswith("\n"):
                    self._lines.append(line[:-1])
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


@contextlib.contextmanager
def running(
    *arguments: str | Path, stderr: Path, stdin: str | None = None, **options: Any
) -> Iterator[Program]:
    """Run Python with these arguments; whatever is left of it at the end is killed."""
    program = Program([sys.executable, *arguments], stderr=stderr, stdin=stdin, **options)
    try:
        yield program
    finally:
        program.clean_up()


@contextlib.contextmanager
def stderr_to(path: Path) -> Iterator[None]:
    """Let processes that are started meanwhile write their stderr to a file."""
    saved = os.dup(2)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 2)
    os.close(fd)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def paused(pid: int) -> Iterator[None]:
    """SIGSTOP a process for a while; it may end meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
