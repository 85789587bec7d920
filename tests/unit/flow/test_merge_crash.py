"""Merges in the middle of everything that can go wrong: nothing is lost, nothing comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from support.merging import MergingMachine, small_segments


@pytest.fixture(autouse=True, scope="module")
def _small_segments() -> Iterator[None]:
    with small_segments():
        yield


class RelaxedMergingMachine(MergingMachine):
    """The same without a sync after each batch."""

    sync = False


TestMerging = MergingMachine.TestCase
TestMerging.settings = settings(stateful_step_count=40)
TestRelaxedMerging = RelaxedMergingMachine.TestCase
TestRelaxedMerging.settings = settings(stateful_step_count=40)
