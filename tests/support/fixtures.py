"""Fixtures of the tests with real processes; a conftest.py beside those tests takes them in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.clients import Clients, clients_at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the test's store is to be."""
    return tmp_path / "data"


@pytest.fixture
def clients(path: Path, tmp_path: Path) -> Iterator[Clients]:
    """Give a test clients at that place; nothing in any of them, or their shards, may fail."""
    with clients_at(path, tmp_path / "stderr") as clients:
        yield clients
    assert "Traceback" not in clients.said, clients.said
