"""An engine on a disk that fails; tests/support/engines.py says how."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from shardflow.flow.log import log as logs
from shardflow.flow.log import space
from support.engines import EngineMachine


@pytest.fixture(autouse=True, scope="module")
def _small_segments() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "SEGMENT_BYTES", 2_000)
        patch.setattr(logs, "SEGMENT_GROW_BYTES", 1_000)
        patch.setattr(space, "DISK_RESERVE_BYTES", 1_000)
        patch.setattr(space, "DISK_FLOOR_BYTES", 500)
        yield


class RelaxedMachine(EngineMachine):
    """The same without a sync after each batch."""

    sync = False


class SplitMachine(EngineMachine):
    """The same with batches that are too large for one frame."""

    frame_bytes_soft_max = 150


class RelaxedSplitMachine(SplitMachine):
    """Both."""

    sync = False


# Many steps: what goes wrong goes wrong in the third state after the second fault.
TestSync = EngineMachine.TestCase
TestSync.settings = settings(stateful_step_count=40)
TestRelaxed = RelaxedMachine.TestCase
TestRelaxed.settings = settings(stateful_step_count=40)
TestSplit = SplitMachine.TestCase
TestSplit.settings = settings(stateful_step_count=40)
TestRelaxedSplit = RelaxedSplitMachine.TestCase
TestRelaxedSplit.settings = settings(stateful_step_count=40)
