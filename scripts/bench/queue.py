"""A live queue: producers create and workers claim and complete, at the same time, in one process.

Every thread waits for its answers; while it does, another one works. Fewer threads with futures in
flight (`store.submit`) gave the same, so the plain form stayed. Twice as many workers as producers,
because claiming and completing is twice the work of creating: else the queue only grows until the
producers are done. The figures are printed after every flow was found completed, a sample was read
back, and the shards found nothing wrong with themselves.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable

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
    expect,
    log_figures,
    new_flow,
    parser,
    payload_of,
    processes_used,
    settling,
    tell,
    use_figures,
)

KIND = "bench"
SAMPLE = 200
DISK_WRITES = 200
BLOCK_MS = 200
"""How long a worker waits for work before it looks whether everything is done."""


class Queue:
    """One run: what its threads share."""

    def __init__(self, store: sf.Store, options: Namespace) -> None:
        self.store = store
        self.options = options
        self.latencies = Latencies()
        self.errors: list[BaseException] = []
        self.producers_s = 0.0
        self._batches = iter(batches(options.flows, options.batch))
        self._started_s = 0.0
        self._completed_s = 0.0
        self._completed = 0
        self._lock = threading.Lock()

    def run(self) -> float:
        """Run all threads; return the seconds until the last flow was completed."""
        numbers = itertools.count(1)
        threads = [
            threading.Thread(target=self._guarded, args=(work, f"{work.__name__}-{next(numbers)}"))
            for work, count in (
                (self._produce, self.options.producers),
                (self._work, self.options.workers),
            )
            for _ in range(count)
        ]
        self._started_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return self._completed_s - self._started_s

    def _guarded(self, work: Callable[[str, Latencies], None], name: str) -> None:
        latencies = Latencies()
        try:
            work(name, latencies)
        except BaseException as error:
            self.errors.append(error)
        with self._lock:
            self.latencies.merge(latencies)

    def _produce(self, name: str, latencies: Latencies) -> None:
        create_many, size = self.store.flow_create_many, self.options.payload
        while numbers := self._next_batch():
            flows = [new_flow(number, size) for number in numbers]
            latencies.timed("create_many", create_many, flows, type=KIND)
        self.producers_s = time.perf_counter() - self._started_s

    def _work(self, name: str, latencies: Latencies) -> None:
        store, limit = self.store, self.options.batch
        while not self._is_over():
            started_ns = time.perf_counter_ns()
            claimed = store.flow_claim_due(KIND, worker=name, limit=limit, block_ms=BLOCK_MS)
            if not claimed:
                continue
            latencies.add("claim_due", time.perf_counter_ns() - started_ns)
            items = [settling(record) for record in claimed]
            latencies.timed("complete_many", store.flow_complete_many, items)
            self._count(len(claimed))

    def _next_batch(self) -> range | None:
        with self._lock:
            return None if self.errors else next(self._batches, None)

    def _count(self, completed: int) -> None:
        with self._lock:
            self._completed += completed
            self._completed_s = time.perf_counter()

    def _is_over(self) -> bool:
        return bool(self.errors) or self._completed >= self.options.flows


def main(arguments: list[str]) -> None:
    """Run once, check, and tell."""
    options = parse(arguments, __doc__)
    with data_directory(options.dir) as folder:
        around = circumstances(folder)
        disk = disk_figures(folder, DISK_WRITES)
        with sf.open(folder, shards=options.shards, durability=options.durability) as store:
            figures = measure(store, options)
    title = (
        f"queue: {options.flows:,} flows of {options.payload} bytes, batches of {options.batch}, "
        f"{options.producers} producers, {options.workers} workers, {options.durability}"
    )
    settings = {name: getattr(options, name) for name in SETTINGS}
    tell(title, {**figures, **disk, **settings, "shards": store.shards, **around}, options.json)


def measure(store: sf.Store, options: Namespace) -> Figures:
    """Run a queue and return its figures, after checking what it left."""
    queue = Queue(store, options)
    before = processes_used(store)
    seconds = queue.run()
    after = processes_used(store)
    log = log_figures(store, options.flows)
    check(store, KIND, completed=options.flows)
    check_sample(store, options)
    return {
        "flows_per_s": round(options.flows / seconds),
        "seconds": round(seconds, 2),
        "cpu_us_per_flow": cpu_us_per_flow(before, after, options.flows),
        "producers_done_after_s": round(queue.producers_s, 2),
        **queue.latencies.figures("ms"),
        **log,
        **use_figures(before, after),
    }


def check_sample(store: sf.Store, options: Namespace) -> None:
    """Leave unless some of the flows are what they should be."""
    for number in range(0, options.flows, max(1, options.flows // SAMPLE)):
        record = store.flow_get(f"f{number}", payload=True)
        found = record and (record.state, record.payload, record.version, record.fencing_token)
        wanted = ("completed", payload_of(number, options.payload), 3, 1)
        expect(f"flow f{number}", found, wanted)


SETTINGS = ("flows", "batch", "payload", "producers", "workers", "durability")


def parse(arguments: list[str], about: str | None, processes: int | None = None) -> Namespace:
    """Return the options; with `processes` also how many of them there are."""
    made = parser(about)
    made.add_argument("--flows", type=int, default=200_000)
    made.add_argument("--batch", type=int, default=500, help="flows per command, at most 1,000")
    made.add_argument("--payload", type=int, default=64, metavar="BYTES")
    made.add_argument("--producers", type=int, default=2, help="threads that create")
    made.add_argument("--workers", type=int, default=4, help="threads that claim and complete")
    if processes is not None:
        made.add_argument("--processes", type=int, default=processes, help="that attach")
    return made.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
