"""The queue benchmark from attached processes: one process hosts the shards and is idle otherwise.

Each attached process has producers and workers of its own, as in the queue benchmark; all work on
one queue, so a flow is often completed by another process than the one that created it. The
figures are printed after the same checks.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import psutil

import shardflow as sf
from bench._measure import (
    Figures,
    Latencies,
    Use,
    batches,
    check,
    circumstances,
    cpu_us_per_flow,
    data_directory,
    disk_figures,
    log_figures,
    processes_used,
    tell,
    use_figures,
)
from bench.queue import DISK_WRITES, KIND, SETTINGS, Queue, check_sample, parse

READY_S = 120
"""How long the processes may take to attach."""


class Part(NamedTuple):
    """What one attached process has measured."""

    seconds: float
    producers_s: float
    latencies: Latencies
    before: Use
    after: Use


class Share(Queue):
    """One process's part of the work: its own batches to create, anybody's flows to complete."""

    def __init__(self, store: sf.Store, options: Namespace, number: int, completed: Any) -> None:
        super().__init__(store, options)
        self._batches = iter(batches(options.flows, options.batch)[number :: options.processes])
        self._completed_by_all = completed

    def _count(self, completed: int) -> None:
        super()._count(completed)
        with self._completed_by_all.get_lock():
            self._completed_by_all.value += completed

    def _is_over(self) -> bool:
        return bool(self.errors) or self._completed_by_all.value >= self.options.flows


def attached(
    folder: Path, options: Namespace, number: int, ready: Any, completed: Any, answers: Any
) -> None:
    """Attach, work from the moment at which all are ready, and say how it went."""
    with sf.open(folder, role="attach", durability=options.durability) as store:
        share = Share(store, options, number, completed)
        ready.wait(READY_S)
        before = _used()
        seconds = share.run()
        answers.put(Part(seconds, share.producers_s, share.latencies, before, _used()))


def _used() -> Use:
    process = psutil.Process()
    times = process.cpu_times()
    return Use(process.memory_info().rss, times.user + times.system)


def main(arguments: list[str]) -> None:
    """Run once, check, and tell."""
    options = parse(arguments, __doc__, processes=2)
    with data_directory(options.dir) as folder:
        around = circumstances(folder)
        disk = disk_figures(folder, DISK_WRITES)
        with sf.open(
            folder, shards=options.shards, durability=options.durability, role="host"
        ) as store:
            figures = measure(store, folder, options)
    title = (
        f"attach: {options.processes} attached processes, {options.flows:,} flows of "
        f"{options.payload} bytes, batches of {options.batch}, each process with "
        f"{options.producers} producers and {options.workers} workers, {options.durability}"
    )
    settings = {name: getattr(options, name) for name in (*SETTINGS, "processes")}
    tell(title, {**figures, **disk, **settings, "shards": store.shards, **around}, options.json)


def measure(store: sf.Store, folder: Path, options: Namespace) -> Figures:
    """Run the attached processes and return their figures, after checking what they left."""
    context = multiprocessing.get_context("spawn")
    completed, answers = context.Value("q", 0), context.Queue()
    ready = context.Barrier(options.processes + 1)
    processes = [
        context.Process(
            target=attached, args=(folder, options, number, ready, completed, answers), daemon=True
        )
        for number in range(options.processes)
    ]
    for process in processes:
        process.start()
    ready.wait(READY_S)
    before = processes_used(store)
    parts: list[Part] = []
    while len(parts) < options.processes:
        with contextlib.suppress(queue.Empty):
            parts.append(answers.get(timeout=1))
        if any(process.exitcode for process in processes):
            sys.exit("an attached process has failed, so there are no figures")
    after = processes_used(store)
    for process in processes:
        process.join()
    before = {"host" if name == "client" else name: use for name, use in before.items()}
    after = {"host" if name == "client" else name: use for name, use in after.items()}
    for number, part in enumerate(parts):
        before[f"attached{number}"], after[f"attached{number}"] = part.before, part.after
    log = log_figures(store, options.flows)
    check(store, KIND, completed=options.flows)
    check_sample(store, options)
    latencies = Latencies()
    for part in parts:
        latencies.merge(part.latencies)
    seconds = max(part.seconds for part in parts)
    return {
        "flows_per_s": round(options.flows / seconds),
        "seconds": round(seconds, 2),
        "cpu_us_per_flow": cpu_us_per_flow(before, after, options.flows),
        "producers_done_after_s": round(max(part.producers_s for part in parts), 2),
        **latencies.figures("ms"),
        **log,
        **use_figures(before, after),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
