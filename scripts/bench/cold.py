"""What flows cost that have ended long ago: memory, disk, reads, and the start."""

from __future__ import annotations

import random
import sys
import time
from argparse import Namespace
from pathlib import Path

import shardflow as sf
from bench._measure import (
    Figures,
    Latencies,
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
LIVE = "live"
READS = 2_000
WAIT_S = 600.0


def main(arguments: list[str]) -> None:
    """Run once, check, and tell."""
    made = parser(__doc__)
    made.add_argument("--flows", type=int, default=200_000, help="completed ones")
    made.add_argument("--live", type=int, default=10_000)
    made.add_argument("--batch", type=int, default=500)
    made.add_argument("--payload", type=int, default=64, metavar="BYTES")
    options = made.parse_args(arguments)
    with data_directory(options.dir) as folder:
        around = circumstances(folder)
        figures = {**fill(folder, options), **reopen(folder, options)}
    settings = {name: getattr(options, name) for name in ("flows", "live", "batch", "payload")}
    title = f"cold: {options.flows:,} completed flows, {options.live:,} live ones"
    tell(title, {**figures, **settings, **around}, options.json)


def fill(folder: Path, options: Namespace) -> Figures:
    """Create and complete the flows, until none more becomes cold; return what that cost."""
    settings = {"durability": options.durability, "timeout": WAIT_S}
    with sf.open(folder, shards=options.shards, **settings) as store:
        empty_bytes = shards_rss_bytes(store)
        for numbers in batches(options.live, options.batch):
            flows = [new_flow(number, options.payload) for number in numbers]
            store.flow_create_many(flows, type=LIVE)
        started = time.perf_counter()
        for numbers in batches(options.flows, options.batch):
            flows = [new_flow(options.live + n, options.payload) for n in numbers]
            store.flow_create_many(flows, type=KIND)
            complete_all(store, KIND, options.batch)
        ended = time.perf_counter()
        before = cold_flows(store)
        cold, done = settled(store)
        rss_bytes = shards_rss_bytes(store)
        began = time.perf_counter()
        check(store, KIND, completed=options.flows)
        checked_s = time.perf_counter() - began
        figures = read(store, options)
        lmdb_bytes = sum(path.stat().st_size for path in folder.glob("shard-*/cold/data.mdb"))
        return {
            "cold_flows": cold,
            "lmdb_bytes_per_cold_flow": round(lmdb_bytes / max(1, cold)),
            "completed_per_s": round(options.flows / (ended - started)),
            "cold_before_the_end_of_the_load": before,
            "projected_per_s_after_it": round((cold - before) / max(0.05, done - ended)),
            "shards_rss_mib_empty": round(empty_bytes / 2**20, 1),
            "shards_rss_mib": round(rss_bytes / 2**20, 1),
            "shards_rss_mib_after_check_and_reads": round(shards_rss_bytes(store) / 2**20, 1),
            "check_s": round(checked_s, 1),
            **figures,
        }


def cold_flows(store: sf.Store) -> int:
    """Return how many flows are cold."""
    return sum(told["cold_flows"] for told in store.stats())


def settled(store: sf.Store) -> tuple[int, float]:
    """Wait until no more flows become cold; return how many are, and since when."""
    deadline = time.perf_counter() + WAIT_S
    last, since = cold_flows(store), time.perf_counter()
    while time.perf_counter() < deadline:
        time.sleep(0.05)
        now = cold_flows(store)
        if now != last:
            last, since = now, time.perf_counter()
        elif time.perf_counter() > since + 1.0:
            return now, since
    raise SystemExit(f"flows became cold for more than {WAIT_S} s")


def read(store: sf.Store, options: Namespace) -> Figures:
    """Read completed flows at random, the oldest first among them, which are the cold ones."""
    latencies = Latencies()
    chance = random.Random(1)
    cold = cold_flows(store)
    oldest = range(options.live, options.live + max(1, cold))
    for _ in range(READS if cold else 0):
        number = chance.choice(oldest)
        record = latencies.timed("flow_get_cold", store.flow_get, f"f{number}")
        expect(f"flow f{number}", record and record.state, "completed")
    for number in oldest[:: max(1, cold // 100)]:
        events = [event.name for event in store.flow_history(f"f{number}")]
        expect(f"history of flow f{number}", events, ["created", "claimed", "completed"])
    return latencies.figures("us")


def reopen(folder: Path, options: Namespace) -> Figures:
    """Open the store again; return how long that took and what it then holds."""
    started = time.perf_counter()
    with sf.open(folder, durability=options.durability, timeout=WAIT_S) as store:
        seconds = time.perf_counter() - started
        rss_bytes = shards_rss_bytes(store)
        settled(store)
        settled_bytes = shards_rss_bytes(store)
        check(store, KIND, completed=options.flows)
        return {
            "reopen_s": round(seconds, 2),
            "reopen_shards_rss_mib": round(rss_bytes / 2**20, 1),
            "reopen_shards_rss_mib_settled": round(settled_bytes / 2**20, 1),
            "shards": store.shards,
        }


if __name__ == "__main__":
    main(sys.argv[1:])
