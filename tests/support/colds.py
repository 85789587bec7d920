"""Stores of which every flow that may be cold is so, right after the batch that ended it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import shardflow as sf
from shardflow.actors.local import LocalLink
from shardflow.actors.messages import Departure
from shardflow.actors.ports import LocalPort
from shardflow.actors.service import Service
from shardflow.flow.cold.store import Cold
from shardflow.flow.engine import Engine
from shardflow.sdk import opening


class AtOnce:
    """Work in the background that is over before anybody looks: runs have to be repeatable."""

    is_running = False

    def __init__(self, work: Callable[[], None]) -> None:
        work()

    def wait(self) -> None:
        """It is done."""


def synced(cold: Cold) -> bytes:
    """Put everything on disk; return the identity that `open` takes to come back to it."""
    identity = cold.begin_sync()
    cold.end_sync()
    return identity


def open_cold(path: Path, options: dict[str, Any]) -> sf.Store:
    """Open a store whose shards live in this process and keep no ended flow in memory."""
    with pytest.MonkeyPatch.context() as patch:
        settings_of = opening.settings_of
        patch.setattr(
            opening, "settings_of", lambda *given: replace(settings_of(*given), cold_flows_min=0)
        )
        store = sf.open(path, **options, in_process=True)
    port = store.port
    assert isinstance(port, LocalPort)
    for link in port.links:
        _project_after_each_batch(link)
    return store


def _project_after_each_batch(link: LocalLink) -> None:
    serve = link._serve

    def serve_and_project(service: Service, number: int, request: Any) -> list[Departure]:
        departures = serve(service, number, request)
        if link._service is not None:
            make_cold(link._service.engine)
        return departures

    link._serve = serve_and_project  # type: ignore[method-assign]


def make_cold(engine: Engine) -> None:
    """Project until no flow is left that may be cold; merge if that is due."""
    assert engine.cold is not None, engine.cold_fault
    while engine.upkeep.step():
        pass
