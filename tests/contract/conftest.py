"""The stores that every sentence of the contract holds for."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock, memory_store
from support.colds import open_cold
from support.contract import SHARDS, START_MS, Flows, Name
from support.fanouts import Stage
from support.hosts import Host, open_attached

KINDS = ("memory", "in-process", "cold", "processes", "attached")
DURABLE_KINDS = KINDS[1:]

OpenStore = Callable[..., sf.Store]
"""Opens a store of the test's own: keyword options as `sf.open` takes them, all optional."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Stand:
    """A store and the clock that it goes by."""

    store: sf.Store
    clock: ManualClock


@functools.cache
def the_host() -> Host:
    """Return the process that hosts the stores that tests attach to: one for the session."""
    return Host()


@pytest.fixture(scope="session", autouse=True)
def _end_of_the_host() -> Iterator[None]:
    yield
    if the_host.cache_info().currsize:
        the_host().end()


def open_kind(kind: str, path: Path, options: dict[str, Any]) -> sf.Store:
    options = {"shards": SHARDS, **options}
    if kind == "memory":
        return memory_store(**options)
    if kind == "cold":
        return open_cold(path, options)
    if kind == "attached":
        return open_attached(the_host(), path, options)
    if kind == "in-process":
        options["in_process"] = True
    return sf.open(path, **options)


@pytest.fixture(scope="session")
def shared_stands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Stand]]:
    """The stores on disk that all tests share: opened when first asked for."""
    with contextlib.ExitStack() as stack:

        class Stands(dict[str, Stand]):
            def __missing__(self, kind: str) -> Stand:
                clock = ManualClock(START_MS)
                path = tmp_path_factory.mktemp(kind) / "data"
                store = stack.enter_context(open_kind(kind, path, {"clock": clock}))
                self[kind] = Stand(store, clock)
                return self[kind]

        yield Stands()


@pytest.fixture(params=KINDS)
def stand(request: pytest.FixtureRequest, shared_stands: dict[str, Stand]) -> Iterator[Stand]:
    """A store of each kind.

    Those on disk serve all tests, so a test sees the flows of others: it uses names of its own
    and counts on a clock that only ever advances.
    """
    if request.param != "memory":
        yield shared_stands[request.param]
        return
    clock = ManualClock(START_MS)
    with memory_store(shards=SHARDS, clock=clock) as store:
        yield Stand(store, clock)


@pytest.fixture
def store(stand: Stand) -> sf.Store:
    return stand.store


@pytest.fixture
def clock(stand: Stand) -> ManualClock:
    return stand.clock


@pytest.fixture
def name() -> Name:
    return Name(f"t{next(_numbers)}")


@pytest.fixture
def flows(stand: Stand, name: Name) -> Flows:
    return Flows(stand.store, stand.clock, name)


@pytest.fixture(params=KINDS)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens stores of one kind at one place, and closes them when the test is over."""
    opened: list[sf.Store] = []

    def open_one(**options: Any) -> sf.Store:
        opened.append(open_kind(request.param, tmp_path / "data", options))
        return opened[-1]

    yield open_one
    for store in reversed(opened):
        store.close()


class Durable:
    """A store in a directory of its own that a test may close and open again."""

    def __init__(self, kind: str, path: Path, name: Name, shards: int = SHARDS) -> None:
        self._kind = kind
        self._path = path
        self._name = name
        self._shards = shards
        self.clock = ManualClock(START_MS)
        self.store = self._open()

    @property
    def flows(self) -> Flows:
        return Flows(self.store, self.clock, self._name)

    def reopen(self) -> Flows:
        self.store.close()
        self.store = self._open()
        return self.flows

    def _open(self) -> sf.Store:
        return open_kind(self._kind, self._path, {"clock": self.clock, "shards": self._shards})


@pytest.fixture(params=DURABLE_KINDS)
def durable(request: pytest.FixtureRequest, tmp_path: Path, name: Name) -> Iterator[Durable]:
    stand = Durable(request.param, tmp_path / "data", name)
    yield stand
    stand.store.close()


@pytest.fixture
def durable_in() -> type[Durable]:
    """Opens stores of a kind, at a place, that may be closed and opened again."""
    return Durable


@pytest.fixture(params=[*KINDS, "restarted"])
def stage(
    request: pytest.FixtureRequest,
    shared_stands: dict[str, Stand],
    tmp_path: Path,
    name: Name,
) -> Iterator[Stage]:
    """A store of each kind, and one that is closed and opened again after each step of a test."""
    if request.param == "restarted":
        place = Durable("in-process", tmp_path / "data", name)
        yield Stage(lambda: place.flows, lambda step: place.reopen())
        place.store.close()
    elif request.param == "memory":
        clock = ManualClock(START_MS)
        with memory_store(shards=SHARDS, clock=clock) as store:
            yield Stage(lambda: Flows(store, clock, name), lambda step: None)
    else:
        stand = shared_stands[request.param]
        yield Stage(lambda: Flows(stand.store, stand.clock, name), lambda step: None)
