"""A store that works for a while: what it holds must follow what is alive, not what has been.

Flows are created, claimed, moved, fanned out, completed and removed when their retention is over,
at full speed, while a shard is killed now and then. At the end nothing may be wrong, and memory and
disk of the last third of the time must be what they were in the third before it, within a half; and
the log at most twice what lives in it, a few segments aside.
The seed is printed; `--seed` repeats its choices (the moments depend on the machine as well).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import shardflow as sf
from bench._measure import (
    Figures,
    circumstances,
    data_directory,
    expect,
    parser,
    payload_of,
    settling,
    shards_rss_bytes,
    tell,
)

KIND, PARENT = "soak", "soak-parent"
RETRIES_MAX = 600
RETRY_S = 0.1
GROWTH_MAX = 1.5
"""What a third of the time may hold, of what the third before it held."""
LOG_RATIO_MAX = 2.0
LOG_SLACK_MIB = 256.0
"""A shard's log may be larger by so much: beyond 128 MiB merges have no rests any more."""
SAMPLES_S = 1.0


class Sample(NamedTuple):
    """What there was at one moment."""

    at_s: float
    flows: int
    cold: int
    rss_mib: float
    log_mib: float
    live_mib: float


def main(arguments: list[str]) -> None:
    """Run once, judge, and tell."""
    made = parser(__doc__)
    made.add_argument("--minutes", type=float, default=10.0)
    made.add_argument("--retention-ms", type=int, default=30_000)
    made.add_argument("--batch", type=int, default=200)
    made.add_argument("--kill-every-s", type=float, default=45.0, help="0 = never")
    made.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = made.parse_args(arguments)
    print(f"--seed {options.seed} repeats this", flush=True)
    with data_directory(options.dir) as folder:
        around = circumstances(folder)
        figures = soak(folder, options)
    title = f"soak: {options.minutes:g} minutes, flows kept for {options.retention_ms} ms"
    tell(title, {**figures, "seed": options.seed, **around}, options.json)


def soak(folder: Path, options: Namespace) -> Figures:
    """Work until the time is over; return what that came to."""
    with sf.open(
        folder,
        shards=options.shards,
        durability=options.durability,
        retention_ms=options.retention_ms,
        timeout=600.0,
    ) as store:
        work = Work(store, options)
        work.run()
        told = judged(work.samples, store.shards)
        expect("problems", [p for shard in store.stats(check=True) for p in shard["problems"]], [])
        return {"created": work.count, "kills": work.kills, **told}


class Work:
    """One caller's work on a store."""

    def __init__(self, store: sf.Store, options: Namespace) -> None:
        self._store = store
        self._options = options
        self._chance = random.Random(options.seed)
        self._begun_s = time.monotonic()
        self._kill_at_s = options.kill_every_s or float("inf")
        self.samples: list[Sample] = []
        self.count = 0
        self.kills = 0

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._begun_s

    def run(self) -> None:
        """Work until the time is over."""
        while self._elapsed_s < self._options.minutes * 60:
            self._create()
            self._settle()
            if self._elapsed_s >= self._kill_at_s:
                self._kill()
            if not self.samples or self._elapsed_s - self.samples[-1].at_s >= SAMPLES_S:
                self._sample()

    def _create(self) -> None:
        numbers = range(self.count, self.count + self._options.batch)
        self.count += len(numbers)
        flows = [{"id": f"f{n}", "payload": payload_of(n, 64)} for n in numbers]
        if self._chance.random() < 0.05:
            flows = [{**flow, "payload": os.urandom(20_000)} for flow in flows[:20]]
        self._persist(lambda: self._store.flow_create_many(flows, type=KIND, idempotent=True))

    def _settle(self) -> None:
        """Claim some, and bring them to some end or further."""
        jobs = self._persist(
            lambda: self._store.flow_claim_due(
                KIND, worker="w", limit=self._options.batch, lease_ms=5_000
            )
        )
        if not jobs:
            return
        chance = self._chance.random()
        if chance < 0.1:
            moves = [{**settling(job), "from_state": job.logical_state} for job in jobs[:20]]
            self._persist(
                lambda: self._store.flow_transition_many(moves, to_state="next", independent=True)
            )
            jobs = jobs[20:]
        elif chance < 0.2:
            self._fan_out(jobs.pop())
        ends = [{**settling(job), "result": os.urandom(32)} for job in jobs]
        if ends:
            self._persist(lambda: self._store.flow_complete_many(ends, independent=True))

    def _fan_out(self, job: sf.FlowRecord) -> None:
        children = [
            {"id": f"{job.id}-{n}", "type": KIND, "payload": os.urandom(500)} for n in range(10)
        ]
        self._persist(
            lambda: self._store.flow_spawn_children(
                job.id,
                children,
                success="completed",
                failure="failed",
                lease_token=job.lease_token,
                fencing_token=job.fencing_token,
                partition_key=job.partition_key,
            )
        )

    def _persist(self, call: Any) -> Any:
        """Repeat what a killed shard has not answered; every command here may be repeated."""
        for _ in range(RETRIES_MAX):
            try:
                return call()
            except (sf.OutcomeUnknown, sf.ShardUnavailable, sf.Overloaded):
                time.sleep(RETRY_S)
            except sf.BatchError as error:
                if not all(_is_passing(result) for result in error.results):
                    raise
                time.sleep(RETRY_S)
            except (sf.StaleLease, sf.FlowAlreadyExists, sf.WrongState, sf.FlowTerminal):
                # A lease ran out while its shard was away, and another claim has gone on with it.
                return None
        raise SystemExit(f"a command was not taken for {RETRIES_MAX * RETRY_S} seconds")

    def _kill(self) -> None:
        pid = self._chance.choice(self._store.processes())["pid"]
        os.kill(pid, signal.SIGKILL)
        self.kills += 1
        self._kill_at_s = self._elapsed_s + self._options.kill_every_s

    def _sample(self) -> None:
        stats = self._persist(self._store.stats)
        log, dead = (sum(s[name] for s in stats) for name in ("log_bytes", "dead_bytes"))
        flows, cold = (sum(s[name] for s in stats) for name in ("flows", "cold_flows"))
        rss_mib = shards_rss_bytes(self._store) / 2**20
        found = Sample(self._elapsed_s, flows, cold, rss_mib, log / 2**20, (log - dead) / 2**20)
        if not self.samples or int(found.at_s / 15) != int(self.samples[-1].at_s / 15):
            print(" ".join(f"{name}={value:,.0f}" for name, value in found._asdict().items()))
            sys.stdout.flush()
        self.samples.append(found)


def judged(samples: list[Sample], shards: int) -> Figures:
    """Compare the last third of the time with the one before it; leave if anything has grown."""
    third = max(1, len(samples) // 3)
    former, last = samples[-2 * third : -third] or samples, samples[-third:]
    told: Figures = {}
    for name in ("flows", "rss_mib", "log_mib"):
        told[f"{name}_before"] = round(_mean(former, name))
        told[name] = round(_mean(last, name))
    flows_ratio = max(1.0, told["flows"] / max(1, told["flows_before"]))
    for name in ("rss_mib", "log_mib"):
        bound = GROWTH_MAX * flows_ratio * max(1, told[f"{name}_before"])
        expect(f"{name} has grown beyond {bound:,.0f}", told[name] > bound, False)
    worst = max(last, key=lambda sample: sample.log_mib - LOG_RATIO_MAX * sample.live_mib)
    bound = LOG_RATIO_MAX * worst.live_mib + shards * LOG_SLACK_MIB
    expect(f"the log is larger than {bound:,.0f} MiB: {worst}", worst.log_mib > bound, False)
    ratios = [sample.log_mib / max(1.0, sample.live_mib) for sample in last]
    return {**told, "log_to_live_max": round(max(ratios), 2)}


def _mean(samples: list[Sample], name: str) -> float:
    values: list[float] = [getattr(sample, name) for sample in samples]
    return sum(values) / len(values)


def _is_passing(result: Any) -> bool:
    return not isinstance(result, BaseException) or isinstance(
        result, sf.OutcomeUnknown | sf.ShardUnavailable | sf.Overloaded
    )


if __name__ == "__main__":
    main(sys.argv[1:])
