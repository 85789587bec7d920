"""One thread, one command at a time: create, claim, complete, get; and what the bare disk takes.

Each of the first three is answered only once its bytes are on disk, so none can be faster than
one write and one fdatasync; `disk_p50_us` is that, on the same file system, just before. The
commands come from a thread beside the main one, as a server's do: there a caller reads its own
answers; in the main thread, where signals arrive, they take a switch more (`--main-thread`).
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor

import shardflow as sf
from bench._measure import (
    Figures,
    Latencies,
    check,
    circumstances,
    data_directory,
    disk_figures,
    expect,
    log_figures,
    new_flow,
    parser,
    processes_used,
    settling,
    tell,
    use_figures,
)

KIND = "bench"
DISK_WRITES = 1_000


def main(arguments: list[str]) -> None:
    """Run once, check, and tell."""
    made = parser(__doc__)
    made.add_argument("--flows", type=int, default=2_000)
    made.add_argument("--payload", type=int, default=64, metavar="BYTES")
    made.add_argument("--main-thread", action="store_true", help="give the commands from there")
    options = made.parse_args(arguments)
    with data_directory(options.dir) as folder:
        around = circumstances(folder)
        with sf.open(folder, shards=options.shards, durability=options.durability) as store:
            disk = disk_figures(folder, DISK_WRITES)
            if options.main_thread:
                figures = measure(store, options, disk)
            else:
                with ThreadPoolExecutor(1) as thread:
                    figures = thread.submit(measure, store, options, disk).result()
    settings = {name: getattr(options, name) for name in ("flows", "payload", "durability")}
    told = {**figures, **settings, "shards": store.shards, **around}
    tell(f"single: {options.flows:,} flows, one after the other", told, options.json)


def measure(store: sf.Store, options: Namespace, disk: Figures) -> Figures:
    """Take flow after flow through its life; return the latencies, and the disk's beside them."""
    latencies = Latencies()
    before = processes_used(store)
    started = time.perf_counter()
    for number in range(options.flows):
        _live(store, latencies, number, options.payload)
    seconds = time.perf_counter() - started
    after = processes_used(store)
    log = log_figures(store, options.flows)
    check(store, KIND, completed=options.flows)
    return {
        "flows_per_s": round(options.flows / seconds),
        **latencies.figures("us"),
        **disk,
        **log,
        **use_figures(before, after),
    }


def _live(store: sf.Store, latencies: Latencies, number: int, payload_bytes: int) -> None:
    flow, timed = new_flow(number, payload_bytes), latencies.timed
    timed("create", store.flow_create, flow["id"], type=KIND, payload=flow["payload"])
    (claimed,) = timed("claim", store.flow_claim_due, KIND, worker="w")
    expect("claimed payload", claimed.payload, flow["payload"])
    timed("complete", store.flow_complete, **settling(claimed))
    record = timed("get", store.flow_get, claimed.id)
    expect("state", record and record.state, "completed")


if __name__ == "__main__":
    main(sys.argv[1:])
