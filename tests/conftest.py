"""What every test runs under: Hypothesis' profiles, and one name for each room."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from hypothesis import HealthCheck, settings

ROOMS = ("actors", "flow", "sdk")

# No deadlines: a test machine that others use too is slow now and then, and that is no fault.
settings.register_profile(
    "dev", max_examples=30, stateful_step_count=30, deadline=None, print_blob=True
)
settings.register_profile(
    "ci",
    # All of the tests within a quarter of an hour; a longer look: SHARDFLOW_EXAMPLES=1000.
    max_examples=int(os.environ.get("SHARDFLOW_EXAMPLES", "120")),
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    derandomize=False,  # each run looks elsewhere; the blob replays what it finds
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


class OneNamePerRoom(MetaPathFinder):
    """Refuses `import flow` and its like, which would load the room's modules a second time.

    It works wherever the checkout is on the path, as under `python -m pytest`; but then a class
    of the second copy is not the class of the first, and the failure shows up far away.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None and fullname in ROOMS:
            raise ImportError(f"import shardflow.{fullname}, not {fullname}", name=fullname)
        return None


def pytest_configure() -> None:
    loaded = sorted(set(ROOMS) & set(sys.modules))
    if loaded:
        raise ImportError(f"loaded under a second name, before any test: {', '.join(loaded)}")
    sys.meta_path.insert(0, OneNamePerRoom())
