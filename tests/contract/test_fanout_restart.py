"""Sections 6 and 13: a family comes to the same end, wherever in its life its store restarts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf
from support.contract import Name
from support.fanouts import ACTIVE_MS, Family, Stage, await_state

Scenario = Callable[[Stage], None]


def as_spec(record: sf.FlowRecord) -> dict[str, Any]:
    return {"id": record.id, "type": record.type, "partition_key": record.partition_key}


def all_children_complete(stage: Stage) -> None:
    family = Family(stage)
    specs = family.specs(3)
    family.spawn(specs, success="charged")
    for number, spec in enumerate(specs, 1):
        family.end(spec, "complete")
        family.await_counters(number, 0, 0)
    parent = await_state(family.flows, family.job, "charged")
    assert family.flows.event_names(parent).count("group_resolved") == 1
    assert family.flows.complete(family.flows.take(parent)).state == "completed"


def one_child_fails_and_takes_the_others_along(stage: Stage) -> None:
    family = Family(stage)
    specs = family.specs(4)
    family.spawn(specs)
    job = family.claim(specs[3])
    stage.step()
    family.end(specs[0], "complete")
    family.end(specs[1], "exhaust")
    await_state(family.flows, family.job, "lost")
    family.await_states(specs, "completed", "failed", "cancelled", "cancelled")
    family.await_counters(1, 1, 2)
    with pytest.raises(sf.StaleLease):
        family.flows.complete(job)


def the_first_of_any_wins_and_the_others_are_left(stage: Stage) -> None:
    family = Family(stage)
    specs = family.specs(3)
    family.spawn(specs, wait="any", on_child_failed="ignore", on_parent_closed="abandon_children")
    for spec, how in zip(specs, ("fail", "complete", "complete"), strict=True):
        family.end(spec, how)
    await_state(family.flows, family.job, "won")
    family.await_counters(2, 1, 0)


def a_cancelled_root_takes_three_generations_along(stage: Stage) -> None:
    family = Family(stage)
    children = family.specs(2)
    family.spawn(children)
    grandchildren = family.specs(2, "g")
    family.spawn(grandchildren, family.get(children[0]))
    great = family.specs(2, "h")
    family.spawn(great, family.get(grandchildren[0]))
    family.end(as_spec(family.parent), "cancel")
    family.await_states([*children, *grandchildren, *great], *["cancelled"] * 6)
    family.await_counters(0, 0, 2)


def ends_go_up_three_generations(stage: Stage) -> None:
    family = Family(stage)
    options: dict[str, Any] = {"success": "completed", "failure": "failed"}
    (child,) = family.specs(1)
    family.spawn([child], **options)
    (grandchild,) = family.specs(1, "g")
    family.spawn([{**grandchild, "partition_key": family.home}], family.get(child), **options)
    grandchild = {**grandchild, "partition_key": family.home}
    (great,) = family.specs(1, "h")
    family.spawn([great], family.get(grandchild), **options)
    family.end(great, "complete")
    assert await_state(family.flows, family.job, "completed").child_groups["fanout"].completed == 1


def a_parent_moves_elsewhere_and_hears_of_it_there(stage: Stage) -> None:
    family = Family(stage)
    specs = family.specs(2)
    family.spawn(specs)
    family.flows.move(family.parent, "elsewhere")
    stage.step()
    for spec in specs:
        family.end(spec, "complete")
    parent = family.await_counters(2, 0, 0)
    assert (parent.state, parent.child_groups["fanout"].status) == ("elsewhere", "success")


def a_repeat_after_each_step_changes_nothing(stage: Stage) -> None:
    family = Family(stage)
    specs = family.specs(2)
    for how in (None, "complete", "fail"):
        family.spawn(specs)
        if how is not None:
            family.end(specs[0 if how == "complete" else 1], how)
    await_state(family.flows, family.job, "lost")
    assert family.spawn(specs).version == family.parent.version
    family.await_counters(1, 1, 0)


def the_time_of_a_child_is_over(stage: Stage) -> None:
    family = Family(stage)
    specs = family.specs(2)
    specs[0]["max_active_ms"] = ACTIVE_MS
    family.spawn(specs, on_child_failed="ignore")
    family.end(specs[0], "time out")
    family.await_counters(0, 1, 0)
    family.end(specs[1], "complete")
    await_state(family.flows, family.job, "won")


SCENARIOS: list[Scenario] = [
    all_children_complete,
    one_child_fails_and_takes_the_others_along,
    the_first_of_any_wins_and_the_others_are_left,
    a_cancelled_root_takes_three_generations_along,
    ends_go_up_three_generations,
    a_parent_moves_elsewhere_and_hears_of_it_there,
    a_repeat_after_each_step_changes_nothing,
    the_time_of_a_child_is_over,
]
SLOW = [SCENARIOS[1], SCENARIOS[3], SCENARIOS[4], SCENARIOS[6]]
"""Those that are worth the time that processes take to start."""


def play(scenario: Scenario, place: Any, restarts: Callable[[int], bool]) -> int:
    """Go through a scenario on a store that is restarted after some steps; return how many."""

    def restart(step: int) -> None:
        if restarts(step):
            place.reopen()

    stage = Stage(lambda: place.flows, restart)
    scenario(stage)
    told = place.store.stats(check=True)
    assert [shard["problems"] for shard in told] == [[]] * len(told)
    return stage.steps


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_restart_after_any_one_step_changes_nothing(
    scenario: Scenario, durable_in: Callable[[str, Path, Name], Any], tmp_path: Path, name: Name
) -> None:
    def run(at: int) -> int:
        place = durable_in("in-process", tmp_path / str(at), Name(name(at)))
        try:
            return play(scenario, place, lambda step: step == at)
        finally:
            place.store.close()

    steps = run(0)
    for at in range(1, steps + 1):
        assert run(at) == steps, at


@pytest.mark.parametrize("scenario", SLOW, ids=lambda scenario: scenario.__name__)
def test_restarts_of_all_processes_after_every_step_change_nothing(
    scenario: Scenario, durable_in: Callable[[str, Path, Name], Any], tmp_path: Path, name: Name
) -> None:
    place = durable_in("processes", tmp_path / "data", name)
    try:
        play(scenario, place, lambda step: True)
    finally:
        place.store.close()


def test_the_time_of_a_child_passes_while_the_store_is_closed(durable: Any) -> None:
    stage = Stage(lambda: durable.flows, lambda step: None)
    family = Family(stage)
    specs = family.specs(2)
    specs[1]["max_active_ms"] = ACTIVE_MS
    family.spawn(specs)
    durable.store.close()
    durable.clock.advance(ACTIVE_MS)
    durable.reopen()
    await_state(family.flows, family.job, "lost")
    family.await_states(specs, "cancelled", "failed")
    family.await_counters(0, 1, 1)
