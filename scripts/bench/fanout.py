"""Fan-out: parents that spawn groups of children over all shards and wait until all have ended.

The same number of plain flows goes through create, claim and complete first, with the same threads
and batches, in the same run: the figure to look at is what a child costs against a plain flow. It
is told in processor time of all processes, and in time. Each part ends when every flow was found
in its final state, every group has resolved well, and the shards found nothing wrong.
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
    circumstances,
    cpu_us_per_flow,
    data_directory,
    expect,
    new_flow,
    parser,
    processes_used,
    settling,
    tell,
)

PLAIN, CHILD, PARENT = "plain", "child", "parent"
DONE = "children_done"
BLOCK_MS = 200
PARENTS_TIMEOUT_S = 60.0


class Part:
    """One part of the run: threads that make flows of a kind, threads that complete them."""

    def __init__(self, store: sf.Store, options: Namespace, kind: str) -> None:
        self.store = store
        self.options = options
        self.kind = kind
        self.errors: list[BaseException] = []
        self._groups = iter(range(options.groups))
        self._left = options.groups * options.children
        self._lock = threading.Lock()

    def run(self, make: Callable[[int], object]) -> float:
        """Make every group and complete all flows; return the seconds that it took."""
        names = itertools.count(1)
        jobs = [lambda: self._make(make)] * self.options.producers
        jobs += [lambda: self._complete(f"w{next(names)}")] * self.options.workers
        threads = [threading.Thread(target=self._guarded, args=(job,)) for job in jobs]
        started_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return time.perf_counter() - started_s

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self.errors.append(error)

    def _make(self, make: Callable[[int], object]) -> None:
        while not self.errors:
            with self._lock:
                group = next(self._groups, None)
            if group is None:
                return
            make(group)

    def _complete(self, name: str) -> None:
        store, limit = self.store, self.options.batch
        while self._left and not self.errors:
            claimed = store.flow_claim_due(self.kind, worker=name, limit=limit, block_ms=BLOCK_MS)
            if claimed:
                store.flow_complete_many([settling(record) for record in claimed])
                with self._lock:
                    self._left -= len(claimed)


def main(arguments: list[str]) -> None:
    """Run both parts, check, and tell."""
    options = _options(arguments)
    with data_directory(options.dir) as folder:
        around = circumstances(folder)
        with sf.open(folder, shards=options.shards, durability=options.durability) as store:
            figures = measure(store, options)
    title = (
        f"fanout: {options.groups} groups of {options.children} children over {store.shards} "
        f"shards, {options.durability}"
    )
    settings = {name: getattr(options, name) for name in SETTINGS}
    tell(title, {**figures, **settings, "shards": store.shards, **around}, options.json)


def measure(store: sf.Store, options: Namespace) -> Figures:
    """Return the figures of both parts."""
    count, size = options.children, options.payload
    flows = options.groups * count

    def plain(group: int) -> None:
        items = [new_flow(group * count + number, size) for number in range(count)]
        store.flow_create_many(items, type=PLAIN, state="queued")

    def fan_out(group: int) -> None:
        parent = store.flow_create(f"p{group}", type=PARENT, partition_key=f"p{group}")
        children = [
            {
                **new_flow(group * count + number, size),
                "type": CHILD,
                # Over all shards: without one of its own, a child has its parent's.
                "partition_key": f"{group}-{number % store.shards}-{number % 16}",
            }
            for number in range(count)
        ]
        store.flow_spawn_children(
            parent.id,
            children,
            partition_key=parent.partition_key,
            fencing_token=parent.fencing_token,
            success=DONE,
            failure="children_failed",
        )

    plain_s, plain_us = _timed(store, flows, lambda: Part(store, options, PLAIN).run(plain))

    def families() -> float:
        started_s = time.perf_counter()
        Part(store, options, CHILD).run(fan_out)
        _await_parents(store, options.groups)
        return time.perf_counter() - started_s

    child_s, child_us = _timed(store, flows, families)
    _check(store, options)
    return {
        "groups_per_s": round(options.groups / child_s, 1),
        "children_per_s": round(flows / child_s),
        "plain_flows_per_s": round(flows / plain_s),
        "cpu_us_per_child": child_us,
        "cpu_us_per_plain_flow": plain_us,
        "cost_ratio_cpu": round(child_us / plain_us, 2),
        "cost_ratio_time": round(child_s / plain_s, 2),
    }


def _timed(store: sf.Store, flows: int, run: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds, and the processor time per flow in microseconds."""
    before = processes_used(store)
    seconds = run()
    return seconds, cpu_us_per_flow(before, processes_used(store), flows)


def _await_parents(store: sf.Store, groups: int) -> None:
    """Wait for the last notices from child to parent."""
    until_s = time.monotonic() + PARENTS_TIMEOUT_S
    while store.flow_info(PARENT)["states"].get(DONE, {}).get("ready", 0) < groups:
        if time.monotonic() > until_s:
            sys.exit(f"not all of {groups} groups have resolved in {PARENTS_TIMEOUT_S} s")


def _check(store: sf.Store, options: Namespace) -> None:
    for kind in (PLAIN, CHILD):
        completed = store.flow_info(kind)["completed"]
        expect(f"completed flows ({kind})", completed, options.groups * options.children)
    for group in range(options.groups):
        record = store.flow_get(f"p{group}", partition_key=f"p{group}")
        found = record and record.child_groups["fanout"]
        counts = found and (found.status, found.total, found.completed)
        expect(f"group {group}", counts, ("success", options.children, options.children))
    expect("problems", [p for s in store.stats(check=True) for p in s["problems"]], [])


SETTINGS = ("groups", "children", "batch", "payload", "producers", "workers", "durability")


def _options(arguments: list[str]) -> Namespace:
    made = parser(__doc__)
    made.add_argument("--groups", type=int, default=500)
    made.add_argument("--children", type=int, default=100, help="per group, at most 1,000")
    made.add_argument("--batch", type=int, default=500, help="flows per claim, at most 1,000")
    made.add_argument("--payload", type=int, default=64, metavar="BYTES")
    made.add_argument("--producers", type=int, default=2, help="threads that create")
    made.add_argument("--workers", type=int, default=4, help="threads that claim and complete")
    return made.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
