"""One flow through an installed shardflow: created, claimed, completed, read again.

`scripts/dev.py wheel` copies this file out of the checkout and runs it with the wheel's own
environment, so it imports nothing but the public package.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import shardflow as sf


def main() -> None:
    """Say OK and where the package was found, or fail."""
    package = Path(sf.__file__).resolve().parent
    if not package.is_relative_to(Path(sys.prefix).resolve()):
        sys.exit(f"shardflow was imported from {package}, which is outside of {sys.prefix}")
    if not (package / "py.typed").is_file():
        sys.exit(f"{package} has no py.typed: type checkers would ignore the package")

    with tempfile.TemporaryDirectory(prefix="shardflow-smoke-") as folder:
        path = Path(folder) / "data"
        with sf.open(path) as store:
            store.flow_create("a", type="t", payload={"x": 1})
            job = store.flow_claim_due("t", worker="w")[0]
            expect(job.payload, {"x": 1})
            store.flow_complete(
                job.id, job.lease_token, fencing_token=job.fencing_token, result="ok"
            )
            expect(state_of(store.flow_get("a")), "completed")
        with sf.open(path) as store:  # and it is still so for whoever opens the directory next
            expect(state_of(store.flow_get("a")), "completed")
    print(f"OK: shardflow {sf.__version__} from {package}")


def state_of(record: sf.FlowRecord | None) -> str:
    """Name the state of a record that must be there."""
    if record is None:
        sys.exit("the flow is gone")
    return record.state


def expect(found: object, wanted: object) -> None:
    """Fail unless the two are equal; not an assert, so that it also holds under -O."""
    if found != wanted:
        sys.exit(f"expected {wanted!r}, found {found!r}")


# Shard processes may import this file again: nothing happens at import.
if __name__ == "__main__":
    main()
