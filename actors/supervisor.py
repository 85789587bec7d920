"""SupervisorActor: starts the shard processes, starts them again when they die, stops them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..flow.errors import ERRORS, FlowError, ShardUnavailable, StoreConfigError
from ..flow.limits import RESTART_BACKOFF_MS, RESTARTS_MAX
from .inbox import Ready, SelectorActor

logger = logging.getLogger("shardflow.supervisor")

_BOOT = (
    "import sys, json; "
    "sys.path.extend(p for p in json.loads(sys.argv[1]) if p not in sys.path); "
    "from shardflow.actors.process import main; main()"
)
REPORT_MARK = b"shardflow: "
"""Begins the line on stdout with which a shard's process tells how its start went."""
FINAL = frozenset(("corrupt_log", "store_config_error"))
"""Errors that another start, here or elsewhere, does not mend."""
_STEADY_S = 5.0
"""A shard that served this long and then died is started again at once."""
_BACKOFF_MAX_S = 5.0
_REPORT_BYTES_MAX = 65_536


class Child:
    """One shard's process, through all its starts."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.process: subprocess.Popen[bytes] | None = None
        self.report = b""
        self.started_s = 0.0
        self.is_up = False
        self.failures = 0
        self.restart_at_s: float | None = None
        self.error: FlowError | None = None
        self.is_given_up = False
        self.told: dict[str, Any] = {}
        self.settled = threading.Event()
        """Set once the first start has succeeded or been given up."""


class SupervisorActor(SelectorActor):
    """Watches the children's pipes: one line says that a child serves, their end that it died."""

    def __init__(
        self,
        shards: int,
        config_of: Callable[[int], dict[str, Any]],
        on_up: Callable[[int], None],
        on_given_up: Callable[[int, FlowError], None],
    ) -> None:
        super().__init__()
        self.children = [Child(shard) for shard in range(shards)]
        self._config_of = config_of
        self._on_up = on_up
        self._on_given_up = on_given_up

    def on_start(self) -> None:
        """Start all shards at once; they recover side by side."""
        for child in self.children:
            self._start(child)

    def on_receive(self, message: Any) -> Any:
        """Serve one round of reports, deaths and due restarts."""
        if not isinstance(message, Ready):
            return super().on_receive(message)
        for child, _ in message.events:
            self._read(child)
        now_s = time.monotonic()
        for child in self.children:
            if child.restart_at_s is not None and child.restart_at_s <= now_s:
                self._start(child)
        times = [c.restart_at_s for c in self.children if c.restart_at_s is not None]
        self.inbox.timeout_s = max(0.0, min(times) - now_s) if times else None
        return None

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give all shards up: nobody would start them again."""
        for child in self.children:
            if child.error is None:
                reason = f"its supervisor failed: {exception_value!r}"
                child.error = ShardUnavailable(
                    f"shard {child.shard} is no longer supervised: {reason}; open the store again",
                    shard=child.shard,
                    reason=reason,
                )
                self._on_given_up(child.shard, child.error)
            child.settled.set()

    def stop_children(self, timeout_s: float) -> None:
        """End all shards: ask by their lifelines, then insist. Blocks; not the actor's."""
        for child in self.children:
            if child.process is not None and child.process.stdin is not None:
                # Closing alone is not enough: a process that was forked from this one has a copy.
                with contextlib.suppress(OSError, ValueError):
                    child.process.stdin.write(b"stop\n")
                with contextlib.suppress(OSError):
                    child.process.stdin.close()
        deadline_s = time.monotonic() + timeout_s
        for child in self.children:
            if child.process is None:
                continue
            try:
                child.process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("shard %d did not end in time: killed", child.shard)
                child.process.kill()
                child.process.wait()
            if child.process.stdout is not None:
                child.process.stdout.close()

    def on_stop(self) -> None:
        """Give the descriptors back."""
        self.inbox.close()

    def _start(self, child: Child) -> None:
        child.restart_at_s = None
        child.report = b""
        child.is_up = False
        child.started_s = time.monotonic()
        try:
            child.process = spawn(self._config_of(child.shard))
        except FlowError as error:
            child.error = error
            self._failed(child, str(error))
            return
        except OSError as error:
            self._failed(child, f"its process cannot be started: {error}")
            return
        assert child.process.stdout is not None
        os.set_blocking(child.process.stdout.fileno(), False)
        self.inbox.watch(child.process.stdout, child)

    def _read(self, child: Child) -> None:
        assert child.process is not None and child.process.stdout is not None
        data = child.process.stdout.read(_REPORT_BYTES_MAX)
        if data is None:
            return
        if data:
            child.report = (child.report + data)[-_REPORT_BYTES_MAX:]
            self._reported(child)
            return
        self.inbox.unwatch(child.process.stdout)
        child.process.stdout.close()
        with contextlib.suppress(OSError):
            assert child.process.stdin is not None
            child.process.stdin.close()
        code = child.process.wait()
        self._died(child, code)

    def _reported(self, child: Child) -> None:
        told = report_of(child.report)
        if told is None:
            return
        if "code" in told:
            child.error = ERRORS[told["code"]](told["message"], **told["fields"])
            return
        child.told = told
        child.report = b""
        child.is_up = True
        child.failures = 0
        child.error = None
        logger.info("shard %d serves: %s", child.shard, told)
        self._on_up(child.shard)
        child.settled.set()

    def _died(self, child: Child, code: int) -> None:
        if child.is_up and child.error is None:
            lived_s = time.monotonic() - child.started_s
            logger.warning("shard %d died (exit code %d): starting it again", child.shard, code)
            child.is_up = False
            wait_s = 0.0 if lived_s > _STEADY_S else RESTART_BACKOFF_MS / 1_000
            self._start_after(child, wait_s)
        else:
            child.is_up = False
            self._failed(child, f"its process ended with exit code {code} before it served")

    def _failed(self, child: Child, reason: str) -> None:
        child.failures += 1
        error = child.error
        is_final = error is not None and error.code in FINAL
        if child.failures < RESTARTS_MAX and not is_final:
            wait_s = min(_BACKOFF_MAX_S, RESTART_BACKOFF_MS / 1_000 * 2**child.failures)
            self._start_after(child, wait_s)
            return
        if error is None:
            error = ShardUnavailable(
                f"shard {child.shard} does not start: {reason}; see its output on stderr, mend "
                "the cause and open the store again",
                shard=child.shard,
                reason=reason,
            )
        child.error = error
        child.is_given_up = True
        logger.error("shard %d is given up: %s", child.shard, error)
        self._on_given_up(child.shard, error)
        child.settled.set()

    def _start_after(self, child: Child, wait_s: float) -> None:
        # Else a later failure of another kind would be told as this one.
        child.error = None
        child.restart_at_s = time.monotonic() + wait_s
        self.inbox.poke()


def report_of(output: bytes) -> dict[str, Any] | None:
    """Return what a shard's process told of its start; other lines on its stdout are passed over.

    A site's own start-up code may print: the report is the line that carries our mark.
    """
    *lines, _ = output.split(b"\n")
    for line in lines:
        if line.startswith(REPORT_MARK):
            told: dict[str, Any] = json.loads(line[len(REPORT_MARK) :])
            return told
    return None


def can_spawn() -> bool:
    """Whether there is an interpreter to run shards in."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def spawn(config: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a shard in a fresh interpreter, which knows nothing of the caller's main module.

    Its stdin is the lifeline. It has a session of its own, so that Ctrl-C and the end of a
    terminal reach it only through its host.
    """
    if not can_spawn():
        raise StoreConfigError(
            "shard processes need a Python interpreter to run in, and this program is frozen into "
            "an executable: open the store with in_process=True"
        )
    paths = [os.path.abspath(entry or os.curdir) for entry in sys.path]  # noqa: PTH100
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOT, json.dumps(paths)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        bufsize=0,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(config).encode() + b"\n")
    return process
