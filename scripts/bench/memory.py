"""What a queued flow costs in memory, and how long a full queue takes to make and to reopen."""

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
    data_directory,
    log_figures,
    new_flow,
    parser,
    shards_rss_bytes,
    tell,
)

KIND = "bench"


def main(arguments: list[str]) -> None:
    """Run once, check, and tell."""
    made = parser(__doc__)
    made.add_argument("--flows", type=int, default=200_000)
    made.add_argument("--batch", type=int, default=500)
    made.add_argument("--payload", type=int, default=64, metavar="BYTES")
    options = made.parse_args(arguments)
    with data_directory(options.dir) as folder:
        around = circumstances(folder)
        figures = {**fill(folder, options), **reopen(folder, options)}
    settings = {name: getattr(options, name) for name in ("flows", "batch", "payload")}
    title = f"memory: {options.flows:,} queued flows of {options.payload} bytes"
    tell(title, {**figures, **settings, **around}, options.json)


def fill(folder: Path, options: Namespace) -> Figures:
    """Create the flows; return what they cost."""
    with sf.open(folder, shards=options.shards, durability=options.durability) as store:
        empty_bytes = shards_rss_bytes(store)
        started = time.perf_counter()
        for numbers in batches(options.flows, options.batch):
            flows = [new_flow(number, options.payload) for number in numbers]
            store.flow_create_many(flows, type=KIND)
        seconds = time.perf_counter() - started
        full_bytes = shards_rss_bytes(store)
        return {
            "rss_bytes_per_flow": round((full_bytes - empty_bytes) / options.flows),
            "shards_rss_mib_empty": round(empty_bytes / 2**20, 1),
            "shards_rss_mib_full": round(full_bytes / 2**20, 1),
            "create_s": round(seconds, 2),
            "created_per_s": round(options.flows / seconds),
            **log_figures(store, options.flows),
        }


def reopen(folder: Path, options: Namespace) -> Figures:
    """Open the full store again; return how long that took and what it then holds."""
    started = time.perf_counter()
    with sf.open(folder, durability=options.durability) as store:
        seconds = time.perf_counter() - started
        rss_bytes = shards_rss_bytes(store)
        slowest_ms = max(told["recovery_ms"] for told in store.processes())
        check(store, KIND, queued=options.flows)
        return {
            "reopen_s": round(seconds, 2),
            "recovery_s_of_slowest_shard": round(slowest_ms / 1_000, 2),
            "reopened_shards_rss_mib": round(rss_bytes / 2**20, 1),
            "shards": store.shards,
        }


if __name__ == "__main__":
    main(sys.argv[1:])
