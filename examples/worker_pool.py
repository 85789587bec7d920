"""A pipeline that needs the processor, on a pool of workers whose handlers run in processes.

    counted   count the primes in a stretch of numbers; the work of processes, one per core
    checked   compare the count with the prime number theorem; little work, done by threads

    python examples/worker_pool.py

One handler process is killed on the way. Its job is not lost, and not settled by halves: its lease
runs out, and it is delivered again.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import tempfile
import time
from collections import Counter

import pykka

import shardflow as sf

STRETCH = 20_000
LEASE_MS = 1_000
"""Short, so that the job of the killed process is soon delivered again."""
LOOK_S = 0.05
TOLERANCE = 0.1


class PrimesFlow(sf.Workflow, type="primes"):
    """One stretch of numbers. The class is found by the handler processes by its name."""

    counted = sf.state(lease_ms=LEASE_MS, max_run_ms=60_000, on_ok="checked")
    checked = sf.state()


@PrimesFlow.counted.handler
def count(job: sf.Job) -> sf.Ok:
    """Count the primes; in pure Python, as slowly as that goes."""
    first = job.payload["first"]
    primes = sum(is_prime(number) for number in range(first, first + STRETCH))
    return sf.Ok({"first": first, "primes": primes, "pid": os.getpid()})


@PrimesFlow.checked.handler
def check(job: sf.Job) -> sf.Complete | sf.Fail:
    """Compare with what the prime number theorem expects of such a stretch."""
    expected = STRETCH / math.log(job.payload["first"] + STRETCH / 2)
    found = job.payload["primes"]
    if abs(found - expected) > TOLERANCE * expected:
        return sf.Fail({"found": found, "expected": round(expected)})
    return sf.Complete(job.payload)


def is_prime(number: int) -> bool:
    """Whether a number has no divisor but 1 and itself."""
    if number < 4:
        return number > 1
    if number % 2 == 0:
        return False
    return all(number % divisor for divisor in range(3, math.isqrt(number) + 1, 2))


def main() -> None:
    """Create the flows, have them worked off, and tell what happened."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="shardflow-pool-") as folder, sf.open(folder):
        PrimesFlow.create_many(
            [
                {"id": f"stretch-{number}", "payload": {"first": 1_000 + number * STRETCH}}
                for number in range(options.stretches)
            ]
        )
        started_s = time.perf_counter()
        # WorkerPool is a Pykka actor: start() gives its reference, stop() drains its workers.
        pool = sf.WorkerPool.start(
            lambda: sf.Worker(
                PrimesFlow,
                states=PrimesFlow.counted,
                worker="counting",
                executor="process",
                concurrency=options.processes,
            ),
            lambda: sf.Worker(PrimesFlow, states=PrimesFlow.checked, worker="checking"),
        )
        try:
            victim = work(pool, options)
            status = pool.proxy().status().get()
        finally:
            pool.stop()
        tell(status, time.perf_counter() - started_s, victim)


def work(pool: pykka.ActorRef[sf.WorkerPool], options: argparse.Namespace) -> int | None:
    """Wait for the end of all flows; kill one handler process as soon as some have ended."""
    victim: int | None = None
    while (info := PrimesFlow.info())["total"] > 0:
        running = [s for s in pool.proxy().status().get() if s.state == "running"]
        if len(running) < 2:
            raise SystemExit(f"a worker has failed: {pool.proxy().status().get()}")
        if victim is None and options.kill and info["completed"] > 1:
            (flow, *_) = PrimesFlow.list(state="completed", count=1)
            result = PrimesFlow.get(flow.id, payload=True)
            assert result is not None
            victim = int(result.result["pid"])
            os.kill(victim, signal.SIGKILL)
        time.sleep(LOOK_S)
    return victim


def tell(status: list[sf.WorkerStatus], seconds: float, victim: int | None) -> None:
    """Print what the workers did, and which process counted how much."""
    flows = PrimesFlow.list(state="any", count=1_000)
    found = [PrimesFlow.get(flow.id, payload=True) for flow in flows]
    results = [flow.result for flow in found if flow is not None and flow.state == "completed"]
    columns = ("claimed", "ok", "errors", "crashed", "stale", "renewed", "handler_p50_ms")
    print(f"{'worker':10}" + "".join(f"{column:>16}" for column in columns))
    for worker in status:
        figures = "".join(f"{worker.stats[column]:>16,}" for column in columns)
        print(f"{worker.name:10}{figures}")
    print(f"\n{'process':10}{'stretches':>16}{'primes':>16}")
    stretches: Counter[int] = Counter()
    primes: Counter[int] = Counter()
    for result in results:
        stretches[result["pid"]] += 1
        primes[result["pid"]] += result["primes"]
    for pid, share in stretches.items():
        note = "  killed" if pid == victim else ""
        print(f"{pid:<10}{share:>16,}{primes[pid]:>16,}{note}")
    print(
        f"\n{len(results)} of {len(flows)} stretches, {sum(primes.values()):,} primes below "
        f"{1_000 + len(flows) * STRETCH:,}, in {seconds:.1f} s"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stretches", type=int, default=40)
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 4))
    parser.add_argument(
        "--no-kill", dest="kill", action="store_false", help="leave the processes alone"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
