"""Fan-outs over a store that fails at random: one thread, one seed per run, every run replayable.

SHARDFLOW_SIMULATION_SEED=n SHARDFLOW_SIMULATION_SEEDS=1 repeats a run; a larger number of seeds
looks further (add --timeout=0): some twenty of them take a second.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from shardflow.actors import crossing
from shardflow.flow.engine import engine
from shardflow.flow.family import AskOutcome, ChildEnded, Committed, Deliver
from shardflow.flow.index.families import Families
from shardflow.flow.machine import cascade, create, decide, groups, posts, spawn
from shardflow.flow.machine.turn import Turn
from shardflow.flow.replies import Data
from support.simulation import Simulation

SEEDS = 300
CANARY_SEEDS = 600
WAYS = (
    "Commit",
    "Abort",
    "SpawnBegin outcome_unknown",
    "Prepare outcome_unknown",
    "Prepare flow_already_exists",
    "SpawnDecide outcome_unknown",
    "SpawnDecide spawn_aborted",
    "SpawnDecide flow_already_exists",
    "Commit outcome_unknown",
    "asked: committed",
    "asked: aborted",
    "given up",
)
"""What the runs have to come to, all together: else they look where nothing can go wrong."""


def run(seed: int, **options: Any) -> tuple[list[str], Counter[str]]:
    """Return what is wrong after a run, and what it has come to."""
    simulation = Simulation(seed, **options)
    return simulation.run(), simulation.seen


def test_fan_outs_are_whole_or_nothing_and_families_agree_whatever_dies() -> None:
    count = int(os.environ.get("SHARDFLOW_SIMULATION_SEEDS", SEEDS))
    first = int(os.environ.get("SHARDFLOW_SIMULATION_SEED") or random.randrange(2**32))
    print(f"SHARDFLOW_SIMULATION_SEED={first} SHARDFLOW_SIMULATION_SEEDS={count} repeats this")
    seen: Counter[str] = Counter()
    started_s = time.monotonic()
    for seed in range(first, first + count):
        try:
            problems, told = run(seed)
        except Exception as error:
            error.add_note(_how_to_repeat(seed))
            raise
        assert not problems, "\n".join([*problems[:10], _how_to_repeat(seed)])
        seen += told
    print(f"{time.monotonic() - started_s:.1f} s, {dict(seen)}")
    if count >= SEEDS:
        assert set(WAYS) <= seen.keys(), set(WAYS) - seen.keys()


def test_a_run_is_repeated_by_its_seed() -> None:
    seed = random.randrange(2**32)
    print(_how_to_repeat(seed))
    assert run(seed) == run(seed)


def _how_to_repeat(seed: int) -> str:
    return f"SHARDFLOW_SIMULATION_SEED={seed} SHARDFLOW_SIMULATION_SEEDS=1 repeats this"


# The canaries: the simulation has to find each of these faults.


def an_undecided_fan_out_counts_as_aborted(patch: pytest.MonkeyPatch) -> None:
    def ask(state: Any, command: AskOutcome, turn: Turn) -> Data:
        return Data("committed" if state.families.outbox.promises(command.txn) else "aborted")

    patch.setitem(decide.TABLE, AskOutcome, ask)


def a_decision_is_not_posted(patch: pytest.MonkeyPatch) -> None:
    post = Turn.post

    def forgetful(turn: Turn, outbox: Any, dest: int, letter: Any) -> None:
        if not isinstance(letter, Committed):
            post(turn, outbox, dest, letter)

    patch.setattr(Turn, "post", forgetful)


def an_end_is_not_posted(patch: pytest.MonkeyPatch) -> None:
    post = Turn.post

    def forgetful(turn: Turn, outbox: Any, dest: int, letter: Any) -> None:
        if not isinstance(letter, ChildEnded):
            post(turn, outbox, dest, letter)

    patch.setattr(Turn, "post", forgetful)


def posts_that_come_twice_are_applied_twice(patch: pytest.MonkeyPatch) -> None:
    def deliver(state: Any, command: Deliver, turn: Turn) -> Any:
        state.families.seen[command.source] = command.first - 1
        return posts.deliver(state, command, turn)

    patch.setitem(decide.TABLE, Deliver, deliver)


def an_unknown_decision_is_taken_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(crossing, "_UNKNOWN", "something else")


def nobody_asks_for_an_outcome(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Families, "to_ask", lambda families, now_ms: [])


def prepared_ids_are_free(patch: pytest.MonkeyPatch) -> None:
    for module in (create, spawn):
        patch.setattr(module, "refuse_reserved", lambda *_: None)


def a_group_resolves_again_and_again(patch: pytest.MonkeyPatch) -> None:
    def resolution(group: Any) -> str | None:
        return groups.resolution(replace(group, status=groups.OPEN))

    patch.setattr(cascade, "resolution", resolution)


def a_resolution_leaves_the_other_children(patch: pytest.MonkeyPatch) -> None:
    cancel = cascade.Cascade._cancel_groups

    def lenient(self: cascade.Cascade, slot: Any, group_ids: Any, why: str) -> None:
        if why != "group_resolved":
            cancel(self, slot, group_ids, why)

    patch.setattr(cascade.Cascade, "_cancel_groups", lenient)


def a_cancel_passes_over_children_that_came_with_it(patch: pytest.MonkeyPatch) -> None:
    look = cascade.Cascade._open_children

    def blind(self: cascade.Cascade, post: Any) -> Any:
        return (pair for pair in look(self, post) if pair[0].record is not None)

    patch.setattr(cascade.Cascade, "_open_children", blind)


def relaxed_shards_sync_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "FAMILY_FACTS", ())


@pytest.mark.parametrize(
    "spoil",
    [
        an_undecided_fan_out_counts_as_aborted,
        a_decision_is_not_posted,
        an_end_is_not_posted,
        posts_that_come_twice_are_applied_twice,
        an_unknown_decision_is_taken_for_a_refusal,
        nobody_asks_for_an_outcome,
        prepared_ids_are_free,
        a_group_resolves_again_and_again,
        a_resolution_leaves_the_other_children,
        a_cancel_passes_over_children_that_came_with_it,
        relaxed_shards_sync_nothing,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_the_simulation_notices_that(
    spoil: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    relaxed = True if spoil is relaxed_shards_sync_nothing else None
    for seed in range(CANARY_SEEDS):
        try:
            problems, _ = run(seed, relaxed=relaxed)
        except Exception as error:
            problems = [repr(error)]
        if problems:
            print(f"seed {seed}: {problems[0]}")
            return
    raise AssertionError(f"{CANARY_SEEDS} runs have not come across it")
