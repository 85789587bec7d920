"""Section 6: the same fan-out again, whenever and by whomever, changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import shardflow as sf
from support.contract import facts
from support.fanouts import ENDS, Family, Stage, await_state

each_place = pytest.mark.parametrize("place", ["own", "both"])
each_wait = pytest.mark.parametrize("wait", ["all", "any", "none"])


class Repeat:
    """A fan-out that was answered, and its repetition with the lease that it had."""

    def __init__(self, stage: Stage, place: str, wait: str, **options: Any) -> None:
        self.family = Family(stage, place)
        self.specs = self.family.specs(3, payload={"n": 1})
        self.options = {"wait": wait, **options}
        self.answer = self.family.spawn(self.specs, **self.options)

    def check(self) -> None:
        """Repeat it in several ways, and see that nothing is written and nothing reserved."""
        family = self.family
        children = [family.get(spec) for spec in self.specs]
        with family.unchanged(family.parent, *children):
            for specs in (self.specs, self.specs[::-1], [*self.specs[1:], self.specs[0]]):
                again = family.spawn(specs, **self.options)
                assert facts(again) == facts(family.parent)
            other = [*self.specs[:2], *family.specs(1, "other")]
            for specs in (other, self.specs[:2]):
                with pytest.raises(sf.ChildGroupConflict) as caught:
                    family.spawn(specs, **self.options)
                assert caught.value.flow_id == family.job.id
        free = family.specs(1, "other")[0]
        assert family.stage.store.flow_get(free["id"], partition_key=free["partition_key"]) is None


@each_place
@each_wait
def test_at_once(stage: Stage, wait: str, place: str) -> None:
    repeat = Repeat(stage, place, wait)
    repeat.check()
    repeat.check()


@each_place
@each_wait
def test_after_children_have_progressed(stage: Stage, wait: str, place: str) -> None:
    repeat = Repeat(stage, place, wait, on_parent_closed="abandon_children")
    family = repeat.family
    family.claim(repeat.specs[0])
    stage.step()
    repeat.check()
    family.end(repeat.specs[1], "complete")
    family.await_counters(1, 0, 0)
    repeat.check()
    family.end(repeat.specs[2], "fail")
    family.await_counters(1, 1, 0)
    repeat.check()


def moves_on(family: Family) -> None:
    family.flows.move(family.parent, "elsewhere")


def is_claimed(family: Family) -> None:
    moves_on(family)
    family.flows.claim(type=family.job.type)


def is_cancelled(family: Family) -> None:
    family.flows.cancel(family.parent, force=True)


def completes(family: Family) -> None:
    moves_on(family)
    (job,) = family.flows.claim(type=family.job.type)
    family.flows.complete(job)


@each_place
@pytest.mark.parametrize("change", [moves_on, is_claimed, is_cancelled, completes])
def test_after_the_parent_has_gone_on(
    stage: Stage, change: Callable[[Family], None], place: str
) -> None:
    repeat = Repeat(stage, place, "all", on_parent_closed="abandon_children")
    change(repeat.family)
    stage.step()
    repeat.check()


@each_place
@pytest.mark.parametrize("how", ["complete", "fail", "cancel"])
@pytest.mark.parametrize("wait", ["all", "any"])
def test_after_the_group_has_resolved(stage: Stage, wait: str, how: str, place: str) -> None:
    repeat = Repeat(stage, place, wait, on_child_failed="ignore")
    family = repeat.family
    for spec in repeat.specs if (wait == "all" or how != "complete") else repeat.specs[:1]:
        family.end(spec, how)
    is_won = wait == "all" or how == "complete"
    await_state(family.flows, family.job, "won" if is_won else "lost")
    if wait == "any" and how == "complete":
        family.await_counters(1, 0, 2)
    else:
        family.await_counters(
            *(3 * (end == ENDS[how]) for end in ("completed", "failed", "cancelled"))
        )
    repeat.check()


@each_place
def test_with_and_without_a_lease_by_somebody_else(stage: Stage, place: str) -> None:
    repeat = Repeat(stage, place, "all")
    family = repeat.family
    for tokens in (
        {"lease_token": None, "fencing_token": None},
        {"lease_token": "another", "fencing_token": 1},
        {"lease_token": None, "fencing_token": 99},
    ):
        with family.unchanged(family.parent):
            again = family.spawn(repeat.specs, **tokens)
            assert facts(again) == facts(repeat.answer)


@each_place
def test_only_the_children_are_compared(stage: Stage, place: str) -> None:
    repeat = Repeat(stage, place, "all")
    family = repeat.family
    with family.unchanged(family.parent):
        others: list[dict[str, Any]] = [
            {"wait": "any"},
            {"success": "other"},
            {"on_child_failed": "ignore"},
        ]
        for options in others:
            assert family.spawn(repeat.specs, **options).child_groups == family.parent.child_groups


@each_place
def test_the_same_children_in_another_group_are_taken(stage: Stage, place: str) -> None:
    repeat = Repeat(stage, place, "none")
    family = repeat.family
    with family.unchanged(family.parent), pytest.raises(sf.FlowAlreadyExists):
        family.spawn(repeat.specs, wait="none", group_id="another")


@each_place
def test_a_group_of_that_name_of_another_parent_is_another_group(stage: Stage, place: str) -> None:
    repeat = Repeat(stage, place, "all")
    other = Family(stage, place, name="other-")
    assert other.spawn().child_groups["fanout"].total == 3
    assert repeat.family.group().total == 3
    with pytest.raises(sf.FlowAlreadyExists):
        third = Family(stage, place, name="third-")
        third.spawn(repeat.specs)
