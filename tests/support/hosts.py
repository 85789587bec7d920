"""A process that hosts stores for tests, which attach to them. Run as a program, it is that."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import shardflow as sf
from shardflow.testing import ManualClock

HOSTS_OPTIONS = frozenset(
    ("shards", "durability", "retention_ms", "failed_retention_ms", "max_rss_bytes")
)
"""Options that are the host's to decide; the others are each process's own."""


class Host:
    """Opens and closes stores in a process of its own, one request after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def open(self, path: Path, options: dict[str, Any]) -> None:
        """Host a store there; time stands still in it if a clock is among the options."""
        clock = options.get("clock")
        given = {name: options[name] for name in HOSTS_OPTIONS & options.keys()}
        self._ask("open", os.fspath(path), given, None if clock is None else clock.now_ms())

    def close(self, path: Path) -> None:
        self._ask("close", os.fspath(path), {}, None)

    def end(self) -> None:
        """End the process, and the stores that it hosts with it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _ask(self, *request: Any) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        pickle.dump(request, self._process.stdin)
        self._process.stdin.flush()
        error = pickle.load(self._process.stdout)
        if error is not None:
            raise error


def open_attached(host: Host, path: Path, options: dict[str, Any]) -> sf.Store:
    """Have a store hosted, and attach to it. It is hosted no longer once it is closed here."""
    host.open(path, options)
    try:
        store = sf.open(path, role="attach", **options)
    except BaseException:
        host.close(path)
        raise
    on_close = store._on_close

    def close_both(closed: sf.Store) -> None:
        on_close(closed)
        host.close(path)

    store._on_close = close_both
    assert store.role == "attached"
    return store


def serve() -> None:
    """Do what the process at the other end of stdin asks for, until there is none."""
    stores: dict[str, sf.Store] = {}
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what else is printed must not look like an answer
    while True:
        try:
            verb, path, options, now_ms = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        error: Exception | None = None
        try:
            if verb == "close":
                stores.pop(path).close()
            else:
                clock = None if now_ms is None else ManualClock(now_ms)
                stores[path] = sf.open(path, role="host", clock=clock, **options)
        except Exception as problem:
            error = problem
        pickle.dump(error, answers)
        answers.flush()
    for store in stores.values():
        store.close()


if __name__ == "__main__":
    serve()
