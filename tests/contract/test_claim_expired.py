"""Section 3.2: expired leases, and how a claim mixes them with due flows."""

from __future__ import annotations

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, Name, ids


def split(jobs: list[sf.FlowRecord]) -> tuple[int, int]:
    """Count the taken-over and the due flows among claimed ones."""
    taken_over = sum(job.reclaims > 0 for job in jobs)
    return taken_over, len(jobs) - taken_over


def test_an_expired_lease_is_taken_over(flows: Flows, clock: ManualClock) -> None:
    (old,) = flows.expired("a")
    (job,) = flows.claim(worker="w2", lease_ms=5_000)
    assert job.id == old.id
    assert job.lease_owner == "w2"
    assert job.lease_token != old.lease_token
    assert job.lease_deadline_ms == clock.now_ms() + 5_000
    assert job.fencing_token == old.fencing_token + 1
    assert job.version == old.version + 1
    assert job.reclaims == 1
    assert job.attempts == 0
    assert (job.state, job.run_state) == ("running", "queued")
    assert flows.event_names(job)[-1] == "claimed"


def test_the_old_holder_is_stale_after_the_takeover(flows: Flows) -> None:
    (old,) = flows.expired("a")
    (job,) = flows.claim(worker="w2")
    with flows.unchanged(job):
        for command in (flows.complete, flows.fail, flows.retry, flows.extend):
            with pytest.raises(sf.StaleLease):
                command(old)
        with pytest.raises(sf.StaleLease):
            flows.step(old, "next")
        with pytest.raises(sf.StaleLease):
            flows.move(old, "next")
        with pytest.raises(sf.StaleLease):
            flows.cancel(old, lease_token=old.lease_token)


def test_a_lease_expires_at_its_deadline_and_not_before(flows: Flows) -> None:
    job = flows.leased()
    assert job.lease_deadline_ms is not None
    assert flows.claim(now_ms=job.lease_deadline_ms - 1) == []
    assert ids(flows.claim(now_ms=job.lease_deadline_ms)) == [job.id]


def test_an_extended_lease_does_not_expire_at_its_first_deadline(
    flows: Flows, clock: ManualClock
) -> None:
    job = flows.leased(lease_ms=1_000)
    clock.advance(900)
    flows.extend(job, lease_ms=1_000)
    clock.advance(900)
    assert flows.claim() == []
    clock.advance(100)
    assert ids(flows.claim()) == [job.id]


def test_reclaims_are_counted_up(flows: Flows, clock: ManualClock) -> None:
    flows.create()
    for count in range(4):
        (job,) = flows.claim(lease_ms=1_000)
        assert job.reclaims == count
        clock.advance(1_000)


def test_expired_leases_are_left_alone_when_told_so(flows: Flows) -> None:
    (old,) = flows.expired("a")
    with flows.unchanged(old):
        assert flows.claim(reclaim_expired=False, limit=10) == []


def test_with_a_limit_of_one_a_due_flow_goes_first(flows: Flows, name: Name) -> None:
    flows.expired("old")
    flows.create("due")
    for ratio in (0, 25, 100):
        flows.create(f"due-{ratio}")
        (job,) = flows.claim(limit=1, reclaim_ratio=ratio)
        assert job.reclaims == 0
    flows.claim()
    assert ids(flows.claim(limit=1)) == [name("old")]


@pytest.mark.parametrize(
    ("expired", "due", "limit", "ratio", "taken"),
    [
        (3, 10, 4, 25, (1, 3)),
        (3, 10, 8, 25, (2, 6)),
        (3, 2, 10, 25, (3, 2)),
        (3, 1, 4, 25, (3, 1)),
        (3, 10, 2, 25, (1, 1)),
        (3, 10, 3, 34, (2, 1)),
        (3, 10, 4, 0, (0, 4)),
        (3, 2, 4, 0, (2, 2)),
        (3, 10, 4, 100, (3, 1)),
        (5, 10, 4, 100, (4, 0)),
        (0, 3, 4, 100, (0, 3)),
        (3, 0, 2, 0, (2, 0)),
    ],
)
def test_a_share_of_the_limit_goes_to_expired_leases(
    flows: Flows, expired: int, due: int, limit: int, ratio: int, taken: tuple[int, int]
) -> None:
    flows.expired(*(f"x{number}" for number in range(expired)))
    flows.create_in_order(*range(due))
    assert split(flows.claim(limit=limit, reclaim_ratio=ratio)) == taken


def test_the_share_is_rounded_up_from_the_exact_product(flows: Flows, name: Name) -> None:
    # 100 x 7 / 100 is 7, not the 7.000000000000001 of floating point.
    flows.store.flow_create_many([{"id": name(f"x{n}")} for n in range(20)], type=flows.type)
    assert len(flows.claim(limit=20, lease_ms=1_000)) == 20
    flows.clock.advance(1_000)
    flows.store.flow_create_many([{"id": name(n)} for n in range(120)], type=flows.type)
    assert split(flows.claim(limit=100, reclaim_ratio=7)) == (7, 93)


def test_a_quarter_of_the_limit_is_the_default_share(flows: Flows) -> None:
    flows.expired("x0", "x1", "x2")
    flows.create_in_order(*range(10))
    assert split(flows.claim(limit=8)) == (2, 6)


def test_the_share_holds_over_all_shards_together(flows: Flows, name: Name) -> None:
    keys = name.partitions()
    for key in keys:
        for number in range(3):
            flows.leased(f"x-{key}-{number}", partition_key=key, lease_ms=1_000)
    flows.clock.advance(1_000)
    for key in keys:
        for number in range(6):
            flows.create(f"{key}-{number}", partition_key=key)
    assert split(flows.claim(limit=4)) == (1, 3)
    assert split(flows.claim(limit=8)) == (2, 6)


def test_expired_leases_come_first_in_the_answer(flows: Flows, name: Name) -> None:
    flows.expired("x0", "x1", "x2", partition_key=name("p"))
    flows.create_in_order(*range(4), partition_key=name("p"))
    reclaims = [job.reclaims for job in flows.claim(limit=4, reclaim_ratio=50)]
    assert reclaims == [1, 1, 0, 0]


def test_expired_leases_obey_the_type(flows: Flows, name: Name) -> None:
    (old,) = flows.expired("a", type=name("other-type"))
    with flows.unchanged(old):
        assert flows.claim(limit=10, reclaim_ratio=100) == []
        assert flows.reclaim(limit=10) == []


def test_expired_leases_obey_the_state(flows: Flows, name: Name) -> None:
    flows.expired("a", state="created")
    flows.expired("b", state="charged")
    flows.expired("c", state="shipped")
    assert ids(flows.claim(limit=10, state="charged")) == [name("b")]
    assert sorted(ids(flows.claim(limit=10, state=["created", "charged"]))) == [name("a")]
    assert ids(flows.claim(limit=10, state="any")) == [name("c")]


def test_expired_leases_obey_the_partition(flows: Flows, name: Name) -> None:
    keys = name.neighbours(3)
    for number, key in enumerate(keys):
        flows.expired(number, partition_key=key)
    assert ids(flows.claim(limit=10, partition_key=keys[1])) == [name(1)]
    assert ids(flows.claim(limit=10, partition_keys=keys[:2])) == [name(0)]
    assert ids(flows.claim(limit=10)) == [name(2)]


def test_a_reclaim_takes_expired_leases_only(flows: Flows, name: Name) -> None:
    flows.expired("old")
    flows.create("due")
    flows.leased("held", state="other")
    jobs = flows.reclaim(limit=10, lease_ms=7_000, worker="rescue")
    assert ids(jobs) == [name("old")]
    assert jobs[0].reclaims == 1
    assert jobs[0].lease_owner == "rescue"
    assert jobs[0].lease_deadline_ms == flows.clock.now_ms() + 7_000
    assert flows.reclaim(limit=10) == []


def test_a_reclaim_takes_up_to_its_limit(flows: Flows) -> None:
    flows.expired(*range(5))
    assert len(flows.reclaim()) == 1
    assert len(flows.reclaim(limit=3)) == 3
    assert len(flows.reclaim(limit=3)) == 1


def test_a_reclaim_filters_by_the_logical_state(flows: Flows, name: Name) -> None:
    flows.expired("a", state="created")
    flows.expired("b", state="charged")
    assert flows.reclaim(limit=10, state="shipped") == []
    assert ids(flows.reclaim(limit=10, state="charged")) == [name("b")]
    assert ids(flows.reclaim(limit=10, state=["created"])) == [name("a")]


@pytest.mark.parametrize("state", ["running", "any"])
def test_a_reclaim_of_running_means_any_state(flows: Flows, state: str) -> None:
    flows.expired("a", state="created")
    flows.expired("b", state="charged")
    assert len(flows.reclaim(limit=10, state=state)) == 2
