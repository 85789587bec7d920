"""The SDK's worker with a handler that does nothing: jobs per second, and what an idle one takes.

First every flow is created, then a worker claims, handles and completes them all. Then, with an
idle worker, flows are created one at a time, each once the one before it is completed: the time
from the call that creates it until the worker takes note of the answer to its settlement. The
figures are printed after every flow was found completed.

With the worker's 8 default slots, a round trip for each claim and each settlement bounds the rate,
not the worker. Who has handlers that take microseconds lets more jobs than that be claimed at once:
by default here 992 wait for one of 8 threads (`--prefetch`). As many slots without any that wait
(`--concurrency 1000 --prefetch 0`) do as well, for threads that are not needed are never made.
"""

from __future__ import annotations

import queue
import sys
import time
from argparse import Namespace
from typing import Any

import shardflow as sf
from bench._measure import (
    Figures,
    Latencies,
    batches,
    check,
    circumstances,
    cpu_us_per_flow,
    data_directory,
    disk_figures,
    log_figures,
    new_flow,
    parser,
    processes_used,
    tell,
    use_figures,
)

KIND = "bench"
BATCH = 500
WAIT_S = 300.0
WARM_UP = 50


class BenchFlow(sf.Workflow, type=KIND):
    """One state, completed at once."""

    queued = sf.state()


def nothing(job: sf.Job) -> sf.Ok:
    """Handle a job: this is all that is done for it."""
    return DONE


DONE = sf.Ok()


def main(arguments: list[str]) -> None:
    """Run once, check, and tell."""
    options = _options(arguments)
    with data_directory(options.dir) as folder:
        around = circumstances(folder)
        disk = disk_figures(folder, 200)
        with sf.open(folder, shards=options.shards, durability=options.durability) as store:
            figures = {**measure_rate(store, options), **measure_idle(store, options)}
    title = (
        f"worker: {options.flows:,} flows of {options.payload} bytes, executor thread, "
        f"concurrency {options.concurrency}, limit {options.limit}, prefetch {options.prefetch}, "
        f"{options.durability}"
    )
    settings = {name: getattr(options, name) for name in SETTINGS}
    tell(title, {**figures, **disk, **settings, "shards": store.shards, **around}, options.json)


def measure_rate(store: sf.Store, options: Namespace) -> Figures:
    """Work off all flows and return how fast that was."""
    for numbers in batches(options.flows, BATCH):
        flows = [new_flow(number, options.payload) for number in numbers]
        store.flow_create_many(flows, type=KIND, state="queued")
    before = processes_used(store)
    worker = _worker(store, options, nothing)
    started_s = time.perf_counter()
    with worker:
        _until_completed(worker, options.flows)
        seconds = time.perf_counter() - started_s
        after = processes_used(store)
    log = log_figures(store, options.flows)
    check(store, KIND, completed=options.flows)
    return {
        "jobs_per_s": round(options.flows / seconds),
        "seconds": round(seconds, 2),
        "cpu_us_per_job": cpu_us_per_flow(before, after, options.flows),
        **{name: worker.stats()[name] for name in ("handler_p50_ms", "handler_p99_ms")},
        **log,
        **use_figures(before, after),
    }


def measure_idle(store: sf.Store, options: Namespace) -> Figures:
    """Create flows one by one and return how long each took to be completed."""
    latencies = Latencies()
    worker = _worker(store, options, nothing)
    bell = Bell(worker)
    with worker:
        for number in range(options.idle + WARM_UP):
            started_ns = time.perf_counter_ns()
            store.flow_create(f"idle{number}", type=KIND, state="queued", payload=b"x")
            created_ns = time.perf_counter_ns()
            settled_ns = bell.wait()
            if number >= WARM_UP:
                latencies.add("create", created_ns - started_ns)
                latencies.add("enqueue_to_completion", settled_ns - started_ns)
    check(store, KIND, completed=options.flows + options.idle + WARM_UP)
    return latencies.figures("ms")


class Bell:
    """Tells when a worker has settled a job. To look often would take the processor from it."""

    def __init__(self, worker: sf.Worker) -> None:
        hands: Any = worker._hands
        self._put_down = hands.put_down
        self._rung: queue.SimpleQueue[int] = queue.SimpleQueue()
        hands.put_down = self._ring

    def wait(self) -> int:
        """Return when the next job was settled."""
        try:
            return self._rung.get(timeout=WAIT_S)
        except queue.Empty:
            sys.exit(f"a flow was not settled in {WAIT_S} seconds")

    def _ring(self, assignments: Any) -> None:
        settled_ns = time.perf_counter_ns()
        self._put_down(assignments)
        self._rung.put(settled_ns)


def _worker(store: sf.Store, options: Namespace, handler: Any) -> sf.Worker:
    return sf.Worker(
        BenchFlow.using(store),
        handler=handler,
        concurrency=options.concurrency,
        limit=options.limit,
        prefetch=options.prefetch,
    )


def _until_completed(worker: sf.Worker, flows: int) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while worker.stats()["ok"] < flows:
        if time.monotonic() > deadline_s:
            sys.exit(f"not done in {WAIT_S} seconds: {worker.stats()}")
        time.sleep(0.001)


SETTINGS = ("flows", "payload", "concurrency", "limit", "prefetch", "durability", "idle")


def _options(arguments: list[str]) -> Namespace:
    made = parser(__doc__)
    made.add_argument("--flows", type=int, default=50_000)
    made.add_argument("--payload", type=int, default=64, metavar="BYTES")
    made.add_argument("--concurrency", type=int, default=8, help="slots, and threads at most")
    made.add_argument("--limit", type=int, default=500, help="flows per claim, at most")
    made.add_argument(
        "--prefetch", type=int, default=992, help="jobs claimed beyond the free slots"
    )
    made.add_argument("--idle", type=int, default=1_000, help="flows that are created one by one")
    return made.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
