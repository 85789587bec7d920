"""Section 6: rarer ways to end, many ends in one command, and families that outlive a member."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from support.contract import item
from support.fanouts import PLACES, Family, Stage, await_state

each_place = pytest.mark.parametrize("place", PLACES)
KEPT_MS = 1_000


@each_place
def test_a_child_whose_lease_expires_too_often_has_failed(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    specs = family.specs(2)
    family.spawn(specs)
    stage.store.flow_policy_set(specs[0]["type"], retry={"max_reclaims": 0})
    (job,) = family.flows.claim(type=specs[0]["type"], lease_ms=1)
    stage.step()
    family.flows.clock.advance(1)
    assert family.flows.claim(type=specs[0]["type"]) == []
    stage.step()
    await_state(family.flows, family.job, "lost")
    family.await_states(specs, "failed", "cancelled")
    family.await_counters(0, 1, 1)
    with pytest.raises(sf.StaleLease):
        family.flows.complete(job)


@each_place
@pytest.mark.parametrize(
    ("exhausted_to", "counters", "status"),
    [
        ("completed", (1, 0, 0), "success"),
        ("cancelled", (0, 0, 1), "failure"),
        ("failed", (0, 1, 0), "failure"),
    ],
)
def test_an_exhausted_child_counts_as_what_it_ends_in(
    stage: Stage, exhausted_to: str, counters: tuple[int, int, int], status: str, place: str
) -> None:
    family = Family(stage, place)
    (spec,) = family.specs(1)
    family.spawn([spec])
    retry = sf.Retry(max_retries=0, exhausted_to=exhausted_to)
    family.flows.retry(family.claim(spec), retry=retry)
    stage.step()
    family.await_counters(*counters)
    assert family.group().status == status


@each_place
def test_a_child_that_is_exhausted_to_an_open_state_has_not_ended(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    (spec,) = family.specs(1)
    family.spawn([spec])
    retry = sf.Retry(max_retries=0, exhausted_to="repair")
    family.flows.retry(family.claim(spec), retry=retry)
    stage.step()
    assert (family.states([spec]), family.counters()) == (["repair"], (0, 0, 0))
    family.end(spec, "complete")
    await_state(family.flows, family.job, "won")


@pytest.mark.parametrize(
    ("how", "on_child_failed", "place"),
    [
        *(
            (how, on_child_failed, place)
            for how in ("complete", "fail", "cancel", "retry")
            for on_child_failed in ("fail_parent", "ignore")
            # On two shards the first failure may cancel children before the other shard's turn.
            for place in (PLACES if on_child_failed == "ignore" else ("own", "other"))
        )
    ],
)
def test_children_may_end_in_one_command(
    stage: Stage, on_child_failed: Any, how: str, place: str
) -> None:
    family = Family(stage, place)
    specs = family.specs(6)
    family.spawn(specs, on_child_failed=on_child_failed)
    if how == "cancel":
        where = [{"id": s["id"], "partition_key": s["partition_key"]} for s in specs]
        stage.store.flow_cancel_many(where)
    else:
        more = {"retry": {"max_retries": 0}} if how == "retry" else {}
        items = [item(family.claim(spec), **more) for spec in specs]
        getattr(stage.store, f"flow_{how}_many")(items)
    stage.step()
    counters = {"complete": (6, 0, 0), "cancel": (0, 0, 6)}.get(how, (0, 6, 0))
    family.await_counters(*counters)
    is_won = how == "complete" or on_child_failed == "ignore"
    parent = await_state(family.flows, family.job, "won" if is_won else "lost")
    assert family.flows.event_names(parent).count("group_resolved") == 1


@each_place
def test_a_batch_that_is_refused_ends_no_child(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    specs = family.specs(4)
    waiting = family.spawn(specs)
    items = [item(family.claim(spec)) for spec in specs]
    spoiled = [{**given, "lease_token": "another"} for given in items[:2]] + items[2:]
    with pytest.raises(sf.BatchError):
        stage.store.flow_fail_many(spoiled)
    stage.step()
    assert family.states(specs) == ["queued"] * 4
    assert family.parent.version == waiting.version
    stage.store.flow_complete_many(items)
    await_state(family.flows, family.job, "won")


@each_place
def test_parents_may_end_in_one_command(stage: Stage, place: str) -> None:
    families = [Family(stage, place, name=f"{number}-") for number in range(3)]
    specs = [family.specs(2) for family in families]
    for family, children in zip(families, specs, strict=True):
        family.spawn(children)
    parents = [{"id": f.job.id, "partition_key": f.job.partition_key} for f in families]
    stage.store.flow_cancel_many(parents)
    stage.step()
    for family, children in zip(families, specs, strict=True):
        family.await_states(children, "cancelled", "cancelled")
        family.await_counters(0, 0, 2)


@each_place
def test_a_parent_and_its_children_may_end_in_one_command(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    specs = family.specs(4)
    family.spawn(specs)
    all_of_them = [family.job.id, *(spec["id"] for spec in specs)]
    keys = [family.home, *(spec["partition_key"] for spec in specs)]
    pairs = zip(all_of_them, keys, strict=True)
    stage.store.flow_cancel_many([{"id": i, "partition_key": k} for i, k in pairs])
    stage.step()
    family.await_counters(0, 0, 4)
    for spec in specs:
        assert family.flows.event_names(family.get(spec)).count("cancelled") == 1
    assert family.flows.event_names(family.job).count("group_resolved") == 1


# Members that are gone


def pass_retention(stage: Stage) -> None:
    stage.flows.clock.advance(KEPT_MS)
    while stage.store.flow_retention_cleanup(limit=1_000):
        continue
    stage.step()


@each_place
def test_an_end_that_no_parent_waits_for_any_more_is_just_an_end(stage: Stage, place: str) -> None:
    family = Family(stage, place, retention_ttl_ms=KEPT_MS)
    specs = family.specs(4)
    waiting = family.spawn(specs, on_parent_closed="abandon_children")
    family.flows.cancel(waiting)
    stage.step()
    pass_retention(stage)
    assert stage.store.flow_get(family.job.id, partition_key=family.home) is None
    for spec, how in zip(specs, ("complete", "fail", "cancel"), strict=False):
        family.end(spec, how)
    assert family.states(specs) == ["completed", "failed", "cancelled", "queued"]
    # What follows the lost notices is not held up by them.
    other = Family(stage, place, name="other-")
    (spec,) = other.specs(1)
    other.spawn([spec])
    other.end(spec, "complete")
    await_state(stage.flows, other.job, "won")


@each_place
def test_children_of_a_former_flow_do_not_count_for_one_with_its_id(
    stage: Stage, place: str
) -> None:
    family = Family(stage, place, retention_ttl_ms=KEPT_MS)
    former = family.specs(2, "former")
    waiting = family.spawn(former, on_parent_closed="abandon_children")
    family.flows.cancel(waiting)
    stage.step()
    pass_retention(stage)
    family = Family(stage, place)
    specs = family.specs(2, "new")
    family.spawn(specs)
    for spec in former:
        family.end(spec, "fail")
    family.end(specs[0], "complete")
    parent = family.await_counters(1, 0, 0)
    assert (parent.state, family.group().status) == ("waiting_children", "open")
    family.end({**specs[1]}, "fail")
    family.await_counters(1, 1, 0)
    assert family.states(former) == ["failed", "failed"]


@each_place
def test_children_that_are_gone_stay_counted(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    specs = family.specs(3, retention_ttl_ms=KEPT_MS)
    family.spawn(specs, on_child_failed="ignore")
    for spec, how in zip(specs[:2], ("complete", "fail"), strict=True):
        family.end(spec, how)
    family.await_counters(1, 1, 0)
    pass_retention(stage)
    (left,) = stage.store.flow_by_parent(family.job.id)
    assert (left.id, family.counters()) == (specs[2]["id"], (1, 1, 0))
    # The group is known all the same: nothing is made a second time.
    with family.unchanged(family.parent):
        family.spawn(specs)
    assert len(stage.store.flow_by_parent(family.job.id)) == 1
    family.end(specs[2], "complete")
    await_state(family.flows, family.job, "won")
    assert family.counters() == (2, 1, 0)
