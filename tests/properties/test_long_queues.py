"""The model again, with every queue taken for a long one: packed records, runs beside heaps."""

from __future__ import annotations

import pytest
from hypothesis import settings

from shardflow.flow import limits
from shardflow.flow.index import timequeue
from support.machine import Machine


class MachineOfLongQueues(Machine):
    """Commands against a store for which one flow is many."""

    def __init__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        for module in (limits, timequeue):
            self.patch.setattr(module, "LONG_QUEUE_MIN", 1)
        super().__init__()

    def teardown(self) -> None:
        self.patch.undo()
        super().teardown()


TestLongQueues = MachineOfLongQueues.TestCase
TestLongQueues.settings = settings(stateful_step_count=50)
