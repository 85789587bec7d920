"""Section 6: families that several threads act on at the same time."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import shardflow as sf
from support.contract import Flows, facts, ids, item
from support.fanouts import TERMINAL, Family, Stage, await_state
from support.processes import WAIT_S, eventually

ROUNDS = 6

each_place = pytest.mark.parametrize("place", ["own", "both"])


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls in threads that begin together; return what each returned or raised."""
    barrier = threading.Barrier(len(calls))
    found: list[Any] = [None] * len(calls)

    def run(place: int, call: Callable[[], Any]) -> None:
        barrier.wait(WAIT_S)
        try:
            found[place] = call()
        except sf.FlowError as error:
            found[place] = error
        except BaseException as error:
            found[place] = error
            raise

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    return found


@pytest.fixture
def still(flows: Flows) -> Stage:
    """A store of each kind that is left as it is between steps."""
    return Stage(lambda: flows, lambda step: None)


def check_ends(family: Family, specs: list[dict[str, Any]], group_id: str = "fanout") -> None:
    """Wait until all children have ended, and see that they were counted as what they are."""

    def counted() -> dict[str, int]:
        group = family.group(group_id)
        return {end: getattr(group, end) for end in TERMINAL}

    def real() -> dict[str, int]:
        return {**dict.fromkeys(TERMINAL, 0), **Counter(family.states(specs))}

    eventually(
        lambda: counted() == real() and sum(counted().values()) == len(specs),
        lambda: f"counted {counted()}, they are {real()}",
    )


@each_place
@pytest.mark.parametrize("wait", ["all", "none"])
def test_the_same_fan_out_by_several_threads_is_one(still: Stage, wait: str, place: str) -> None:
    for number in range(ROUNDS):
        family = Family(still, place, name=f"{number}-")
        specs = family.specs(4)
        orders = (specs, specs[::-1], specs)
        answers = at_once(*(partial(family.spawn, order, wait=wait) for order in orders))
        assert [facts(answer) for answer in answers] == [facts(family.parent)] * 3
        assert family.group().total == 4
        assert family.flows.event_names(family.job).count("children_spawned") == 1
        assert family.states(specs) == ["queued"] * 4


@each_place
def test_of_two_fan_outs_with_other_children_one_is_refused(still: Stage, place: str) -> None:
    for number in range(ROUNDS):
        family = Family(still, place, name=f"{number}-")
        mine, theirs = family.specs(3, "m"), family.specs(3, "t")
        answers = at_once(partial(family.spawn, mine), partial(family.spawn, theirs))
        refused = [answer for answer in answers if isinstance(answer, sf.FlowError)]
        assert [type(error) for error in refused] == [sf.ChildGroupConflict]
        won, lost = (mine, theirs) if answers[1] in refused else (theirs, mine)
        found = ids(still.store.flow_by_parent(family.job.id))
        assert sorted(found) == [spec["id"] for spec in won]
        for spec in lost:
            family.flows.store.flow_create(
                spec["id"], type=spec["type"], partition_key=spec["partition_key"]
            )


@each_place
def test_two_groups_of_one_parent_may_begin_at_the_same_time(still: Stage, place: str) -> None:
    for number in range(ROUNDS):
        family = Family(still, place, name=f"{number}-")
        groups = {group_id: family.specs(3, group_id) for group_id in "abc"}
        answers = at_once(
            *(
                partial(family.spawn, specs, group_id=group_id, wait="none")
                for group_id, specs in groups.items()
            )
        )
        assert not [answer for answer in answers if isinstance(answer, Exception)]
        assert sorted(family.parent.child_groups) == ["a", "b", "c"]
        assert len(still.store.flow_by_parent(family.job.id)) == 9


@each_place
def test_of_two_parents_of_one_child_at_most_one_has_it(still: Stage, place: str) -> None:
    for number in range(ROUNDS):
        families = [Family(still, place, name=f"{number}-{letter}-") for letter in "ab"]
        shared = families[0].specs(2, "shared")
        own = [family.specs(2) for family in families]
        answers = at_once(
            partial(families[0].spawn, [*own[0], *shared]),
            partial(families[1].spawn, [*shared[::-1], *own[1]]),
        )
        won = [answer for answer in answers if isinstance(answer, sf.FlowRecord)]
        assert len(won) <= 1
        for family, answer, mine in zip(families, answers, own, strict=True):
            children = sorted(ids(still.store.flow_by_parent(family.job.id)))
            if answer in won:
                assert children == sorted(spec["id"] for spec in [*mine, *shared])
                continue
            # Overloaded: whether the other one gets them was not known yet.
            assert isinstance(answer, sf.FlowAlreadyExists | sf.Overloaded)
            assert (children, family.parent.state) == ([], "running")
            # Nothing is left reserved.
            assert family.spawn(mine).child_groups["fanout"].total == 2


@each_place
def test_children_complete_while_their_parent_is_cancelled(still: Stage, place: str) -> None:
    for number in range(ROUNDS):
        family = Family(still, place, name=f"{number}-")
        specs = family.specs(4)
        waiting = family.spawn(specs, on_child_failed="ignore")
        jobs = [family.claim(spec) for spec in specs]
        flows = still.flows
        answers = at_once(
            partial(flows.cancel, waiting),
            *(partial(flows.complete, job) for job in jobs[:2]),
            partial(flows.fail, jobs[2]),
        )
        assert answers[0].state == "cancelled"
        check_ends(family, specs)
        for spec, answer in zip(specs, answers[1:], strict=False):
            if isinstance(answer, Exception):
                assert isinstance(answer, sf.StaleLease)
                assert family.get(spec).state == "cancelled"
            else:
                assert family.get(spec).state == answer.state
        assert family.parent.state == "cancelled"
        assert family.flows.event_names(family.job).count("group_resolved") == 1


@each_place
def test_children_that_end_at_the_same_time_resolve_their_group_once(
    still: Stage, place: str
) -> None:
    chance = random.Random(7)
    for number in range(ROUNDS):
        family = Family(still, place, name=f"{number}-")
        specs = family.specs(4)
        family.spawn(specs, wait=chance.choice(["all", "any"]))
        jobs = [family.claim(spec) for spec in specs]
        ends = [chance.choice([still.flows.complete, still.flows.fail]) for _ in jobs]
        answers = at_once(*(partial(end, job) for end, job in zip(ends, jobs, strict=True)))
        assert all(isinstance(answer, sf.FlowRecord | sf.StaleLease) for answer in answers)
        check_ends(family, specs)
        won = family.group().status == "success"
        await_state(still.flows, family.job, "won" if won else "lost")
        assert family.flows.event_names(family.job).count("group_resolved") == 1


@pytest.mark.parametrize("kind", ["in-process", "processes"])
@pytest.mark.parametrize("how", ["complete", "cancel"])
def test_a_thousand_children_over_four_shards(
    durable_in: Callable[..., Any], tmp_path: Any, name: Any, kind: str, how: str
) -> None:
    place = durable_in(kind, tmp_path / "data", name, shards=4)
    try:
        _a_thousand(place.flows, how)
    finally:
        place.store.close()


def _a_thousand(flows: Flows, how: str) -> None:
    store = flows.store
    kind = flows.name("child")
    parent = flows.leased("parent")
    children = [{"id": flows.name(number), "type": kind} for number in range(1_000)]
    tokens: dict[str, Any] = {
        "lease_token": parent.lease_token,
        "fencing_token": parent.fencing_token,
    }
    targets: dict[str, Any] = {"success": "won", "failure": "lost"}
    spawn = partial(store.flow_spawn_children, parent.id, children, **targets, **tokens)
    answers = at_once(spawn, spawn)
    assert [answer.child_groups["fanout"].total for answer in answers] == [1_000] * 2
    assert store.flow_info(kind)["ready"] == 1_000
    if how == "cancel":
        jobs = store.flow_claim_due(kind, worker="w", limit=300)
        store.flow_cancel(parent.id)
        for job in jobs:
            with contextlib.suppress(sf.StaleLease):
                flows.complete(job)
    else:
        at_once(*[partial(_complete_all, store, kind)] * 3)
    eventually(lambda: _is_over(flows.get(parent)), "all children are counted")
    group = flows.get(parent).child_groups["fanout"]
    info = store.flow_info(kind)
    assert (group.completed, group.failed, group.cancelled) == (
        info["completed"],
        info["failed"],
        info["cancelled"],
    )
    assert flows.get(parent).state == ("won" if how == "complete" else "cancelled")
    assert [told["problems"] for told in store.stats(check=True)] == [[]] * 4


def _is_over(parent: sf.FlowRecord) -> bool:
    group = parent.child_groups["fanout"]
    return group.completed + group.failed + group.cancelled == group.total


def _complete_all(store: sf.Store, kind: str) -> None:
    while jobs := store.flow_claim_due(kind, worker="w", limit=100):
        store.flow_complete_many([item(job) for job in jobs])
