"""Fan-out between engines, one message at a time: restarts, repeats and losses at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from shardflow.flow import family
from shardflow.flow.commands import NewFlow
from shardflow.flow.errors import Refused
from shardflow.flow.limits import ASK_AGAIN_MS, DEPTH_MAX, GROUPS_MAX, SPAWN_MS_MAX
from shardflow.flow.record import Record
from shardflow.flow.replies import Data, Rejected
from support.shards import Shards

COUNT = 3
PARENT = "p"


class Family:
    """A parent on shard 0 and one child on each of three shards."""

    def __init__(self) -> None:
        self.shards = Shards(COUNT)
        self.keys = [self.shards.key_on(shard) for shard in range(COUNT)]
        self.shards.create(self.keys[0], PARENT)
        self.children = [NewFlow(f"c{n}", key, "t", "q") for n, key in enumerate(self.keys)]
        self.spawn = self.shards.spawn_of(self.keys[0], PARENT, self.children)

    @property
    def parent(self) -> Record:
        found = self.shards.get(self.keys[0], PARENT)
        assert found is not None
        return found

    def child(self, number: int) -> Record | None:
        return self.shards.get(self.keys[number], f"c{number}")

    def steps(self) -> Iterator[Callable[[], Any]]:
        """Yield the protocol's steps, each of which sends one message."""
        told: dict[str, Any] = {}

        def begin() -> None:
            told["begun"] = self.shards.ask(0, family.SpawnBegin(self.spawn))

        yield begin
        for shard in (1, 2):
            prepare = self.shards.prepare(told["begun"], 0, self.children, shard)
            yield partial(self.shards.ask, shard, prepare)
        txn = told["begun"].txn
        decide = family.SpawnDecide(txn, self.spawn, self.children[:1])
        yield partial(self.shards.ask, 0, decide)
        for shard in (1, 2):
            yield partial(self.shards.ask, shard, family.Commit(txn))

    def assert_one_outcome(self) -> bool:
        """Assert that all of it has happened, or nothing; return which."""
        exists = [self.child(number) is not None for number in range(COUNT)]
        happened = bool(self.parent.child_groups)
        assert exists == [happened] * COUNT
        assert self.parent.state == ("waiting" if happened else "created")
        for engine in self.shards.engines:
            assert not engine.state.families.prepared
            assert not engine.state.families.reserved
            assert not engine.state.families.undecided
        return happened


@pytest.fixture
def kin() -> Family:
    return Family()


def test_a_fan_out_over_shards_gives_children_their_kin(kin: Family) -> None:
    assert isinstance(kin.shards.fan_out(kin.spawn, kin.children), Record)
    for number in range(COUNT):
        child = kin.child(number)
        assert child is not None
        assert (child.parent_flow_id, child.parent_partition_key) == (PARENT, kin.keys[0])
        assert (child.root_flow_id, child.state, child.version) == (PARENT, "q", 1)
    assert kin.parent.child_groups["g"].total == COUNT
    assert kin.assert_one_outcome()


@pytest.mark.parametrize("step", range(7))
@pytest.mark.parametrize("restarted", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("clean", [False, True])
def test_a_fan_out_that_is_left_lying_comes_to_one_outcome(
    step: int, restarted: tuple[int, ...], clean: bool
) -> None:
    kin = Family()
    for number, do in enumerate(kin.steps()):
        if number == step:
            break
        do()
    for shard in restarted:
        kin.shards.restart(shard, clean=clean)
    # Who drove it is gone: its transaction has its time, participants ask.
    kin.shards.now_ms += max(SPAWN_MS_MAX, ASK_AGAIN_MS)
    kin.shards.courier(twice=True)
    if step == 1 and 0 not in restarted:
        # Begun, nothing prepared: nobody asks, and the next fan-out of this parent ends it.
        assert len(kin.shards.engines[0].state.families.undecided) == 1
        assert isinstance(kin.shards.fan_out(kin.spawn, kin.children), Record)
    assert kin.assert_one_outcome() == (step >= 4 or (step == 1 and 0 not in restarted))
    assert isinstance(kin.shards.fan_out(kin.spawn, kin.children), Record)
    assert kin.assert_one_outcome()


@pytest.mark.parametrize("shard", range(COUNT))
def test_a_fan_out_goes_on_after_a_participant_has_restarted(kin: Family, shard: int) -> None:
    for do in kin.steps():
        reply = do()
        if shard:
            kin.shards.restart(shard)
        assert not isinstance(reply, Rejected)
    assert kin.assert_one_outcome()


def test_a_decision_is_refused_once_its_transaction_is_forgotten(kin: Family) -> None:
    begun = kin.shards.ask(0, family.SpawnBegin(kin.spawn))
    for shard in (1, 2):
        kin.shards.ask(shard, kin.shards.prepare(begun, 0, kin.children, shard))
    kin.shards.restart(0)
    decide = family.SpawnDecide(begun.txn, kin.spawn, kin.children[:1])
    assert kin.shards.ask(0, decide).outcomes[0].code == "spawn_aborted"
    kin.shards.restart(1)
    kin.shards.restart(2)
    kin.shards.courier()
    assert not kin.assert_one_outcome()


def test_prepared_children_are_invisible_and_their_ids_reserved(kin: Family) -> None:
    begun = kin.shards.ask(0, family.SpawnBegin(kin.spawn))
    kin.shards.ask(1, kin.shards.prepare(begun, 0, kin.children, 1))
    for _ in range(2):
        assert kin.child(1) is None
        for idempotent in (False, True):
            unsure = kin.shards.create(kin.keys[1], "c1", idempotent=idempotent)
            assert isinstance(unsure, Refused) and unsure.code == "overloaded"
        kin.shards.restart(1)
    kin.shards.ask(1, family.Abort(begun.txn))
    assert isinstance(kin.shards.create(kin.keys[1], "c1"), Record)


def test_a_taken_id_is_refused_and_nothing_is_kept(kin: Family) -> None:
    kin.shards.create(kin.keys[2], "c2")
    begun = kin.shards.ask(0, family.SpawnBegin(kin.spawn))
    refused = kin.shards.ask(2, kin.shards.prepare(begun, 0, kin.children, 2))
    assert refused.refused.code == "flow_already_exists"
    kin.shards.ask(0, family.SpawnEnd(begun.txn))
    assert kin.parent.version == 1


def test_a_taken_id_on_the_parents_shard_undoes_the_decision(kin: Family) -> None:
    kin.shards.create(kin.keys[0], "c0")
    begun = kin.shards.ask(0, family.SpawnBegin(kin.spawn))
    decide = family.SpawnDecide(begun.txn, kin.spawn, kin.children[:1])
    assert kin.shards.ask(0, decide).outcomes[0].code == "flow_already_exists"
    assert kin.parent.version == 1


def test_a_parent_has_one_fan_out_at_a_time(kin: Family) -> None:
    begun = kin.shards.ask(0, family.SpawnBegin(kin.spawn))
    assert isinstance(kin.shards.ask(0, family.SpawnBegin(kin.spawn)), family.Busy)
    assert kin.shards.ask(0, family.AskOutcome(begun.txn)) == Data("undecided")
    kin.shards.ask(0, family.SpawnEnd(begun.txn))
    assert kin.shards.ask(0, family.AskOutcome(begun.txn)) == Data("aborted")
    assert isinstance(kin.shards.ask(0, family.SpawnBegin(kin.spawn)), family.Begun)
    kin.shards.now_ms += SPAWN_MS_MAX
    assert isinstance(kin.shards.ask(0, family.SpawnBegin(kin.spawn)), family.Begun)


def test_every_message_may_come_twice(kin: Family) -> None:
    for number, do in enumerate(kin.steps()):
        do()
        if number in (1, 2, 4, 5):
            assert do() == Data(True)
    kin.shards.courier(twice=True)
    assert kin.assert_one_outcome()
    assert kin.parent.version == 2


def test_ends_of_children_cross_shards_once(kin: Family) -> None:
    kin.shards.fan_out(kin.spawn, kin.children)
    for number in range(COUNT):
        kin.shards.end(kin.keys[number], f"c{number}")
        for shard in range(COUNT):
            kin.shards.restart(shard, clean=number == 1)
        kin.shards.courier(twice=True)
    group = kin.parent.child_groups["g"]
    assert (group.completed, group.status) == (3, "success")
    assert kin.parent.state == "good"
    assert kin.parent.next_run_at_ms == kin.parent.updated_at_ms
    assert kin.shards.courier() == 0


def test_a_cancelled_parent_takes_its_children_along_over_shards(kin: Family) -> None:
    kin.shards.fan_out(kin.spawn, kin.children)
    kin.shards.end(kin.keys[0], PARENT, "cancelled")
    for shard in range(COUNT):
        kin.shards.restart(shard)
    kin.shards.courier(twice=True)
    for number in range(COUNT):
        child = kin.child(number)
        assert child is not None and child.state == "cancelled"
    group = kin.parent.child_groups["g"]
    # It has closed: the outcome is recorded, it moves no more.
    assert (group.cancelled, group.status, kin.parent.state) == (3, "failure", "cancelled")


def test_children_are_cancelled_by_the_delivery_that_also_commits_them(kin: Family) -> None:
    for number, do in enumerate(kin.steps()):
        if number < 4:  # nobody tells the children's shards of the decision but the courier
            do()
    kin.shards.end(kin.keys[0], PARENT, "cancelled")
    kin.shards.courier()
    for number in range(COUNT):
        child = kin.child(number)
        assert child is not None and child.state == "cancelled"
    assert kin.parent.child_groups["g"].cancelled == COUNT


def test_a_deep_tree_on_several_shards_ends_with_its_root(kin: Family) -> None:
    shards, keys = kin.shards, kin.keys
    parent = keys[0], PARENT
    for depth in range(1, DEPTH_MAX + 1):
        child = NewFlow(f"d{depth}", keys[depth % COUNT], "t", "q")
        spawn = shards.spawn_of(*parent, [child], group_id="deep")
        assert isinstance(shards.fan_out(spawn, [child]), Record), depth
        parent = keys[depth % COUNT], child.id
    spawn = shards.spawn_of(*parent, kin.children)
    refused = shards.fan_out(spawn, kin.children)
    assert isinstance(refused, Refused) and refused.code == "invalid_argument"
    deepest = shards.get(*parent)
    assert deepest is not None and deepest.root_flow_id == PARENT
    shards.end(keys[0], PARENT, "cancelled")
    shards.courier()
    for depth in range(1, DEPTH_MAX + 1):
        found = shards.get(keys[depth % COUNT], f"d{depth}")
        assert found is not None and found.state == "cancelled", depth


def test_a_parent_has_a_bounded_number_of_groups(kin: Family) -> None:
    for number in range(GROUPS_MAX + 1):
        child = [NewFlow(f"x{number}", kin.keys[number % COUNT], "t", "q")]
        spawn = kin.shards.spawn_of(kin.keys[0], PARENT, child, group_id=f"g{number}")
        outcome = kin.shards.fan_out(spawn, child)
        if number < GROUPS_MAX:
            assert isinstance(outcome, Record)
        else:
            assert isinstance(outcome, Refused) and outcome.code == "invalid_argument"
            assert kin.shards.get(child[0].partition_key, child[0].id) is None


def test_a_child_of_a_former_flow_with_the_parents_id_is_not_counted(kin: Family) -> None:
    kin.spawn = kin.shards.spawn_of(
        kin.keys[0], PARENT, kin.children, on_parent_closed="abandon_children"
    )
    kin.shards.fan_out(kin.spawn, kin.children)
    kin.shards.end(kin.keys[0], PARENT, "cancelled")
    kin.shards.now_ms += 10**12
    kin.shards.create(kin.keys[0], PARENT)
    others = [NewFlow(f"o{n}", key, "t", "q") for n, key in enumerate(kin.keys)]
    kin.shards.fan_out(kin.shards.spawn_of(kin.keys[0], PARENT, others), others)
    for number in range(COUNT):
        kin.shards.end(kin.keys[number], f"c{number}", "cancelled")
    kin.shards.courier()
    group = kin.parent.child_groups["g"]
    assert (group.open_count, group.status) == (COUNT, "open")


def test_more_children_than_one_turn_changes_are_cancelled_through_the_outbox(
    kin: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardflow.flow.machine.cascade.CASCADE_ITEMS_MAX", 10)
    key = kin.keys[0]
    children = [NewFlow(f"m{n}", key, "t", "q") for n in range(50)]
    kin.shards.fan_out(kin.shards.spawn_of(key, PARENT, children), children)
    kin.shards.end(key, PARENT, "cancelled")
    cancelled = [n for n in range(50) if _state(kin, f"m{n}") == "cancelled"]
    assert 0 < len(cancelled) < 50
    kin.shards.restart(0)
    kin.shards.courier(twice=True)
    assert all(_state(kin, f"m{n}") == "cancelled" for n in range(50))
    assert kin.parent.child_groups["g"].cancelled == 50


def _state(kin: Family, flow_id: str) -> str | None:
    record = kin.shards.get(kin.keys[0], flow_id)
    return None if record is None else record.state


def test_children_on_other_shards_have_the_time_that_was_given(kin: Family) -> None:
    begun = kin.shards.ask(0, family.SpawnBegin(kin.spawn))
    for shard, later in ((1, None), (2, 5)):
        children = [replace(kin.children[shard], run_at_ms=later)]
        kin.shards.ask(shard, family.Prepare(begun.txn, 0, begun.kin, children, 7))
        kin.shards.restart(shard)
        kin.shards.ask(shard, family.Commit(begun.txn))
        child = kin.child(shard)
        assert child is not None
        assert (child.created_at_ms, child.updated_at_ms) == (7, 7)
        assert child.next_run_at_ms == (later or 7)
