"""The stores that every sentence of the contract holds for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import shardflow as sf
from shardflow.testing import ManualClock, memory_store
from support.contract import SHARDS, START_MS, Flows, Name

KINDS = ("memory", "in-process", "processes")
DURABLE_KINDS = KINDS[1:]

OpenStore = Callable[..., sf.Store]
"""Opens a store of the test's own: keyword options as `sf.open` takes them, all optional."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Stand:
    """A store and the clock that it goes by."""

    store: sf.Store
    clock: ManualClock


def open_kind(kind: str, path: Path, options: dict[str, Any]) -> sf.Store:
    options = {"shards": SHARDS, **options}
    if kind == "memory":
        return memory_store(**options)
    if kind == "in-process":
        options["in_process"] = True
    return sf.open(path, **options)


@pytest.fixture(scope="session")
def shared_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """One store of the kind `processes` for all tests: its clock only ever advances."""
    clock = ManualClock(START_MS)
    path = tmp_path_factory.mktemp("shared") / "data"
    with open_kind("processes", path, {"clock": clock}) as store:
        yield Stand(store, clock)


@pytest.fixture(params=KINDS)
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    if request.param == "processes":
        yield request.getfixturevalue("shared_processes")
        return
    path: Path = request.getfixturevalue("tmp_path")
    clock = ManualClock(START_MS)
    with open_kind(request.param, path / "data", {"clock": clock}) as store:
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

    def __init__(self, kind: str, path: Path, name: Name) -> None:
        self._kind = kind
        self._path = path
        self._name = name
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
        return open_kind(self._kind, self._path, {"clock": self.clock})


@pytest.fixture(params=DURABLE_KINDS)
def durable(request: pytest.FixtureRequest, tmp_path: Path, name: Name) -> Iterator[Durable]:
    stand = Durable(request.param, tmp_path / "data", name)
    yield stand
    stand.store.close()
