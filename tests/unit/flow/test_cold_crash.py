"""Cold flows in the middle of everything, with syncs and without, all of them cold or most."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from support.cold_machine import ColdMachine, small_cold_slices


@pytest.fixture(autouse=True, scope="module")
def _small_slices() -> Iterator[None]:
    with small_cold_slices():
        yield


class RelaxedColdMachine(ColdMachine):
    """The same without a sync after each batch."""

    sync = False


class LukewarmMachine(ColdMachine):
    """The same, with some ended flows that stay in memory."""

    flows_min = 3


TestCold = ColdMachine.TestCase
TestCold.settings = settings(stateful_step_count=40)
TestRelaxedCold = RelaxedColdMachine.TestCase
TestRelaxedCold.settings = settings(stateful_step_count=30)
TestLukewarm = LukewarmMachine.TestCase
TestLukewarm.settings = settings(stateful_step_count=30)
