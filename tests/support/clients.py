"""Processes with a store of their own, which do what a test tells them. Run as a program: one."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

import shardflow as sf
from shardflow.flow.queries import Backup

WAIT_S = 30.0


class Client:
    """A process that opens a store and then calls its methods, each call in a thread of its own."""

    def __init__(self, path: Path, stderr: Path, options: dict[str, Any]) -> None:
        self._answered = threading.Condition()
        self._answers: dict[int, tuple[BaseException | None, Any]] = {}
        self._calls = 0
        self._is_over = False
        with stderr.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        threading.Thread(target=self._read, daemon=True).start()
        self.opening = self._send("open", (os.fspath(path),), options)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def role(self) -> str:
        return str(self.call("role"))

    @property
    def shard_pids(self) -> list[int]:
        return [told["pid"] for told in self.call("processes")]

    def opened(self) -> Client:
        """Wait until the store is open, or raise what opening raised."""
        self.result(self.opening)
        return self

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the store, or read an attribute."""
        return self.result(self.begin(name, *args, **kwargs))

    def begin(self, name: str, *args: Any, **kwargs: Any) -> int:
        """Have a call made, and return its number."""
        return self._send(name, args, kwargs)

    def result(self, number: int, within_s: float = WAIT_S) -> Any:
        """Wait for what a call returned, or raise what it raised."""
        with self._answered:
            self._answered.wait_for(lambda: number in self._answers or self._is_over, within_s)
            assert number in self._answers, f"no answer to call {number}"
            error, value = self._answers.pop(number)
        if error is not None:
            raise error
        return value

    def is_answered(self, number: int) -> bool:
        with self._answered:
            return number in self._answers

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)

    def leave(self) -> int:
        """Let the program end without closing its store; return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(WAIT_S)

    def clean_up(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
            self.kill()
        with self._answered:
            self._answered.wait_for(lambda: self._is_over, WAIT_S)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _send(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        self._calls += 1
        assert self.process.stdin is not None
        pickle.dump((self._calls, name, args, kwargs), self.process.stdin)
        self.process.stdin.flush()
        return self._calls

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:
                number, error, value = pickle.load(self.process.stdout)
                with self._answered:
                    self._answers[number] = error, value
                    self._answered.notify_all()
        with self._answered:
            self._is_over = True
            self._answered.notify_all()


class Clients:
    """The clients of one test, all at one place."""

    def __init__(self, path: Path, stderr: Path) -> None:
        self.path = path
        self.all: list[Client] = []
        self._stderr = stderr

    def start(self, path: Path | None = None, **options: Any) -> Client:
        """Start one, without waiting until its store is open."""
        options = {"timeout": 20.0, **options}
        self.all.append(Client(path or self.path, self._stderr, options))
        return self.all[-1]

    def open(self, **options: Any) -> Client:
        """Start one, and wait until its store is open."""
        return self.start(**options).opened()

    @property
    def alive(self) -> list[Client]:
        return [client for client in self.all if client.process.poll() is None]

    @property
    def host(self) -> Client:
        """The one that hosts; there is exactly one."""
        (found,) = [client for client in self.alive if client.role == "host"]
        assert (self.path / "OWNER").read_text().split() == [str(found.pid)]
        return found

    @property
    def attached(self) -> list[Client]:
        return [client for client in self.alive if client.role == "attached"]

    @property
    def said(self) -> str:
        """What all of them, and their shards, have written to stderr."""
        return self._stderr.read_text(errors="replace") if self._stderr.exists() else ""

    def count(self, words: str) -> int:
        return self.said.count(words)


@contextlib.contextmanager
def clients_at(path: Path, stderr: Path) -> Iterator[Clients]:
    """Give a test clients; none of them, or of their shards, is left afterwards."""
    clients = Clients(path, stderr)
    try:
        yield clients
    finally:
        for client in clients.all:
            with contextlib.suppress(ProcessLookupError):
                os.kill(client.pid, signal.SIGCONT)
            client.clean_up()


def serve() -> None:
    """Open a store, and call what is asked for until stdin ends."""
    logging.basicConfig(level=logging.INFO, format="%(name)s[%(process)d] %(message)s")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what else is printed must not look like an answer
    gate = threading.Lock()
    stores: list[sf.Store] = []

    def answer(number: int, work: Callable[[], Any]) -> None:
        error: BaseException | None = None
        value = None
        try:
            value = work()
        except BaseException as problem:
            error = problem
        with gate:
            pickle.dump((number, error, value), answers)
            answers.flush()

    def work_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "open":
            stores.append(sf.open(*args, **kwargs))
            return None
        if name in globals():
            return globals()[name](stores[0], *args, **kwargs)
        found = getattr(stores[0], name)
        return found(*args, **kwargs) if callable(found) else found

    while True:
        try:
            number, name, args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return

        def work(name: str = name, args: Any = args, kwargs: Any = kwargs) -> Any:
            return work_of(name, args, kwargs)

        threading.Thread(target=answer, args=(number, work), daemon=True).start()


# ---- what a client does besides calling its store ----


def drain(store: sf.Store, kind: str) -> list[str]:
    """Claim and complete all there is, one by one; return the ids."""
    done = []
    while jobs := store.flow_claim_due(kind, worker=str(os.getpid()), limit=3):
        for job in jobs:
            store.flow_complete(job.id, job.lease_token, fencing_token=job.fencing_token)
            done.append(job.id)
    return done


def create(store: sf.Store, kind: str, count: int) -> list[str]:
    """Create flows one by one; return the ids."""
    ids = [f"{os.getpid()}-{number}" for number in range(count)]
    return [store.flow_create(id, type=kind).id for id in ids]


def read_often(store: sf.Store, flow_id: str, keys: list[str], count: int) -> int:
    """Ask for a large payload many times at once, say so, and then read the answers."""
    futures = [
        store.submit.flow_get(flow_id, partition_key=key, payload=True, payload_max_bytes=2**24)
        for key in keys
        for _ in range(count)
    ]
    print("asked", file=sys.stderr, flush=True)
    return sum(len(record.payload) > 0 for future in futures if (record := future.get(timeout=60)))


def backup_step(store: sf.Store, step: Any, name: str) -> list[Any]:
    """Do one step of a backup in every shard."""
    return store._backup_step(Backup(step, name))


if __name__ == "__main__":
    serve()
