"""Checkpoints in the middle of everything that can go wrong: they change start-up time only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from support.checkpoints import CheckpointMachine, small_slices


@pytest.fixture(autouse=True, scope="module")
def _small_slices() -> Iterator[None]:
    with small_slices():
        yield


class RelaxedCheckpointMachine(CheckpointMachine):
    """The same without a sync after each batch."""

    sync = False


TestCheckpoints = CheckpointMachine.TestCase
TestCheckpoints.settings = settings(stateful_step_count=40)
TestRelaxedCheckpoints = RelaxedCheckpointMachine.TestCase
TestRelaxedCheckpoints.settings = settings(stateful_step_count=40)
