"""How long reopening takes when every flow has ended: by checkpoints, and by the whole log.

Closing writes a checkpoint of each shard if its log has grown enough to be worth it (4 MiB).
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from pathlib import Path

import shardflow as sf
from bench._measure import (
    Figures,
    batches,
    check,
    circumstances,
    complete_all,
    data_directory,
    expect,
    new_flow,
    parser,
    shards_rss_bytes,
    tell,
)

KIND = "bench"
SAMPLE = 200
LIFE = ["created", "claimed", "completed"]


def main(arguments: list[str]) -> None:
    """Run once, check, and tell."""
    made = parser(__doc__)
    made.add_argument("--flows", type=int, default=100_000)
    made.add_argument("--batch", type=int, default=500)
    made.add_argument("--payload", type=int, default=64, metavar="BYTES")
    options = made.parse_args(arguments)
    with data_directory(options.dir) as folder:
        around = circumstances(folder)
        figures = {"log_mib": mib(fill(folder, options)), "checkpoints_mib": checkpoints(folder)}
        figures |= reopen(folder, options, "reopen")
        checkpoints(folder, remove=True)
        figures |= reopen(folder, options, "without_checkpoints")
    settings = {name: getattr(options, name) for name in ("flows", "batch", "payload")}
    title = f"recovery: {options.flows:,} completed flows, {len(LIFE)} events each"
    tell(title, {**figures, **settings, **around}, options.json)


def fill(folder: Path, options: Namespace) -> int:
    """Create and complete the flows; return the bytes of the log."""
    with sf.open(folder, shards=options.shards, durability=options.durability) as store:
        for numbers in batches(options.flows, options.batch):
            flows = [new_flow(number, options.payload) for number in numbers]
            store.flow_create_many(flows, type=KIND)
        complete_all(store, KIND, options.batch)
        return sum(shard["bytes_written"] for shard in store.stats())


def checkpoints(folder: Path, *, remove: bool = False) -> float:
    """Return the size of all checkpoints and hints; with `remove`, let the log alone be left."""
    found = [*folder.glob("shard-*/*.checkpoint"), *folder.glob("shard-*/*.hint")]
    size = sum(path.stat().st_size for path in found)
    if remove:
        for path in found:
            path.unlink()
    return mib(size)


def mib(size: int) -> float:
    """Return bytes as MiB."""
    return round(size / 2**20, 1)


def reopen(folder: Path, options: Namespace, name: str) -> Figures:
    """Open the store again; return how long that took, after checking that nothing is missing."""
    started = time.perf_counter()
    with sf.open(folder, durability=options.durability) as store:
        seconds = time.perf_counter() - started
        rss_bytes = shards_rss_bytes(store)
        slowest_ms = max(told["recovery_ms"] for told in store.processes())
        check(store, KIND, completed=options.flows)
        for number in range(0, options.flows, max(1, options.flows // SAMPLE)):
            events = [event.name for event in store.flow_history(f"f{number}")]
            expect(f"history of flow f{number}", events, LIFE)
        return {
            f"{name}_s": round(seconds, 2),
            f"{name}_flows_per_s": round(options.flows / seconds),
            f"{name}_recovery_s_of_slowest_shard": round(slowest_ms / 1_000, 2),
            f"{name}_shards_rss_mib": mib(rss_bytes),
            "shards": store.shards,
        }


if __name__ == "__main__":
    main(sys.argv[1:])
