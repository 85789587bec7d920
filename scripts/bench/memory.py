"""What a queued flow costs in memory, and how long a full queue takes to make and to reopen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import psutil

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
HOST = """
import sys
import shardflow as sf
store = sf.open(sys.argv[1], durability=sys.argv[2])
store.flow_create_many([{"id": "last", "payload": b"last"}], type=sys.argv[3])
print(*(told["pid"] for told in store.processes()), flush=True)
sys.stdin.read()
"""
"""A process that has the store open, until it is killed with all its shards."""


def main(arguments: list[str]) -> None:
    """Run once, check, and tell."""
    made = parser(__doc__)
    made.add_argument("--flows", type=int, default=200_000)
    made.add_argument("--batch", type=int, default=500)
    made.add_argument("--payload", type=int, default=64, metavar="BYTES")
    options = made.parse_args(arguments)
    with data_directory(options.dir) as folder:
        around = circumstances(folder)
        figures = {**fill(folder, options), **reopen(folder, options, options.flows, "reopen")}
        kill(folder, options)
        figures |= reopen(folder, options, options.flows + 1, "killed")
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
            "rss_bytes_per_flow_all_processes": all_bytes_per_flow(store, options.flows),
            "shards_rss_mib_empty": round(empty_bytes / 2**20, 1),
            "shards_rss_mib_full": round(full_bytes / 2**20, 1),
            "create_s": round(seconds, 2),
            "created_per_s": round(options.flows / seconds),
            **log_figures(store, options.flows),
        }


def reopen(folder: Path, options: Namespace, flows: int, name: str) -> Figures:
    """Open the full store again; return how long that took and what it then holds."""
    started = time.perf_counter()
    with sf.open(folder, durability=options.durability) as store:
        seconds = time.perf_counter() - started
        told = {
            f"{name}_s": round(seconds, 2),
            f"{name}_recovery_s_of_slowest_shard": slowest_s(store),
            f"{name}_cpu_s_of_busiest_shard": busiest_s(store),
            f"{name}_shards_rss_mib": round(shards_rss_bytes(store) / 2**20, 1),
            f"{name}_rss_bytes_per_flow_all_processes": all_bytes_per_flow(store, flows),
            "shards": store.shards,
        }
        check(store, KIND, queued=flows)
        return told


def kill(folder: Path, options: Namespace) -> None:
    """Open the store in another process, write to it, and kill that with its shards."""
    command = [sys.executable, "-c", HOST, str(folder), options.durability, KIND]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        shards = [int(pid) for pid in host.stdout.readline().split()]
        # Halted first, it starts no shard again.
        os.kill(host.pid, signal.SIGSTOP)
        for pid in (*shards, host.pid):
            os.kill(pid, signal.SIGKILL)


def all_bytes_per_flow(store: sf.Store, flows: int) -> int:
    """Return the memory of this process and all shards, whatever it is for, by flow."""
    return round((psutil.Process().memory_info().rss + shards_rss_bytes(store)) / flows)


def slowest_s(store: sf.Store) -> float:
    """Return how long the shard that took longest says that its recovery took."""
    recovery_ms: int = max(told["recovery_ms"] for told in store.processes())
    return round(recovery_ms / 1_000, 2)


def busiest_s(store: sf.Store) -> float:
    """Return the processor time of the shard that has used most, its start included."""
    times = (psutil.Process(told["pid"]).cpu_times() for told in store.processes())
    seconds: float = max(used.user + used.system for used in times)
    return round(seconds, 2)


if __name__ == "__main__":
    main(sys.argv[1:])
