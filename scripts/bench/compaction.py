"""What merging costs: the queue benchmark with flows that are kept for a second only, twice.

Once with merges and once without, in turn and in one run, so that the machine is in the same mood.
The log's size at the end, after it was left alone for a while, is told against what is live in it.
The figures are printed after the shards found nothing wrong with themselves.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from pathlib import Path

import shardflow as sf
from bench._measure import (
    Figures,
    circumstances,
    cpu_us_per_flow,
    data_directory,
    disk_figures,
    expect,
    processes_used,
    tell,
)
from bench.queue import DISK_WRITES, SETTINGS, Queue, parse

KEPT_MS = 1_000
SETTLED_S = 60.0
"""How long the log may take until merges have nothing to do."""
STILL_S = 12.0
"""They have not, if nothing has changed for so long: of a large segment they read for seconds."""
CALLS = ("create_many", "claim_due", "complete_many")


def main(arguments: list[str]) -> None:
    """Run without and with merges, and tell both."""
    options = parse(arguments, __doc__)
    with data_directory(options.dir) as folder:
        around = circumstances(folder)
        disk = disk_figures(folder, DISK_WRITES)
        without = run(folder / "without", options, upkeep=False)
        merged = run(folder / "with", options, upkeep=True)
    title = f"compaction: {options.flows:,} flows kept for {KEPT_MS} ms, {options.durability}"
    settings = {name: getattr(options, name) for name in SETTINGS}
    tell(title, {**compared(without, merged), **disk, **settings, **around}, options.json)


def run(folder: Path, options: Namespace, *, upkeep: bool) -> Figures:
    """Run one queue and return its figures."""
    with sf.open(
        folder,
        shards=options.shards,
        durability=options.durability,
        retention_ms=KEPT_MS,
        upkeep=upkeep,
    ) as store:
        queue = Queue(store, options)
        before = processes_used(store)
        seconds = queue.run()
        told = {
            "flows_per_s": round(options.flows / seconds),
            "cpu_us_per_flow": cpu_us_per_flow(before, processes_used(store), options.flows),
            **queue.latencies.figures("ms"),
        }
        if upkeep:
            told |= settled(store)
        expect("problems", [p for shard in store.stats(check=True) for p in shard["problems"]], [])
        told["log_mib"] = round(sum(shard["log_bytes"] for shard in store.stats()) / 2**20, 1)
        return told


def settled(store: sf.Store) -> Figures:
    """Wait until merges stand still; return what they did."""
    deadline_s = time.monotonic() + SETTLED_S
    seen: tuple[int, ...] = ()
    still_since_s = 0.0
    while True:
        shards = store.stats()
        now = tuple(shard[name] for shard in shards for name in ("merges", "flows", "log_bytes"))
        time_s = time.monotonic()
        if now != seen:
            seen, still_since_s = now, time_s
        if time_s - still_since_s >= STILL_S or time_s >= deadline_s:
            break
        time.sleep(0.5)
    live_bytes = sum(s["log_bytes"] - s["dead_bytes"] for s in shards)
    return {
        "merges": sum(s["merges"] for s in shards),
        "merged_mib": round(sum(s["merged_bytes"] for s in shards) / 2**20, 1),
        "live_mib": round(live_bytes / 2**20, 1),
    }


def compared(without: Figures, merged: Figures) -> Figures:
    """Return both runs' figures, and their ratios."""
    told: Figures = {f"{name}_without": value for name, value in without.items()}
    told |= {f"{name}_with": value for name, value in merged.items()}
    ratios: Figures = {
        "throughput_ratio": round(merged["flows_per_s"] / without["flows_per_s"], 2),
        "cpu_ratio": round(merged["cpu_us_per_flow"] / without["cpu_us_per_flow"], 2),
    }
    for call in CALLS:
        name = f"{call}_p99_ms"
        ratios[f"{call}_p99_ratio"] = round(merged[name] / without[name], 2)
    return {**ratios, **told}


if __name__ == "__main__":
    main(sys.argv[1:])
