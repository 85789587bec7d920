"""Checkpoints: what a start makes of one, whatever happened while it was written, and since."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from shardflow.flow import commands
from shardflow.flow.engine import upkeep
from shardflow.flow.engine.hints import Hint
from shardflow.flow.engine.merge import Merge
from shardflow.flow.engine.writer import Writer
from shardflow.flow.errors import CorruptLog
from shardflow.flow.events import Delivered, Fact, Posted, Prepared, Received, Unprepared
from shardflow.flow.family import Committed, Kin
from shardflow.flow.limits import CHECKPOINT_LOG_BYTES
from shardflow.flow.log import log as logs
from shardflow.flow.log import space
from shardflow.flow.log.parts import segment_name
from shardflow.flow.log.shortcut import Flows, ShortcutWriter, check, checkpoints_in
from support.checkpoints import (
    Shard,
    assert_same,
    found_in,
    opened,
    shortcuts_on,
    small_slices,
)
from support.disks import Disk

SLICES = range(1, 16)


@pytest.fixture(autouse=True)
def small() -> Iterator[pytest.MonkeyPatch]:
    with small_slices() as patch:
        patch.setattr(upkeep, "CHECKPOINT_LOG_BYTES", CHECKPOINT_LOG_BYTES)
        yield patch


@pytest.fixture
def shard() -> Shard:
    return Shard()


def checkpoint_in(disk: Disk) -> str:
    (name,) = (name for name in shortcuts_on(disk) if name.endswith(".checkpoint"))
    return name


def during_a_checkpoint(shard: Shard, slices: int, act: Callable[[], object]) -> None:
    """Act after so many slices of a checkpoint, and let it go on to its end."""
    done = shard.engine.upkeep.checkpoints
    shard.engine.upkeep.want_checkpoint()
    for _ in range(slices):
        if shard.engine.upkeep.checkpoints == done:
            shard.engine.upkeep.step()
    act()
    while shard.engine.upkeep.checkpoints == done:
        assert shard.engine.upkeep.step()


def assert_resumed(shard: Shard) -> None:
    """Restart, by the checkpoint, and find the same as without it."""
    assert shard.restart().restored.notes == []
    assert shard.engine.restored.checkpoint is not None


# Nothing of what came before it is read again.


def test_what_a_checkpoint_holds_is_not_read_from_the_log(shard: Shard) -> None:
    for number in range(20):
        shard.create(f"f{number}", payload=b"x" * 100)
    shard.engine.upkeep.checkpoint()
    shard.create("later")
    assert_resumed(shard)
    unread = shard.engine.restored.unread
    assert len(unread) > 3
    assert sum(span.size for span in unread) > 0.8 * shard.engine.log.bytes_written


def test_a_checkpoint_replaces_the_one_before(shard: Shard) -> None:
    names = []
    for number in range(3):
        shard.create(f"f{number}")
        shard.engine.upkeep.checkpoint()
        names.append(checkpoint_in(shard.disk))
    assert len(set(names)) == 3
    assert checkpoints_in(shard.disk) == names[2:]


def test_numbers_are_not_given_twice(shard: Shard) -> None:
    shard.create("a", "b")
    shard.drop("b")
    wanted = shard.engine.state.next_value
    shard.engine.upkeep.checkpoint()
    shard.engine.abandon()
    assert opened(shard.disk).state.next_value == wanted


# What happens while it is written.


@pytest.mark.parametrize("slices", SLICES)
@pytest.mark.parametrize("flow", range(6))
def test_a_flow_is_dropped_and_created_again_meanwhile(
    shard: Shard, slices: int, flow: int
) -> None:
    shard.create(*(f"f{number}" for number in range(6)))
    for number in range(6):
        shard.put(f"f{number}", b"1")

    def act() -> None:
        shard.put(f"f{flow}", b"2")
        shard.drop(f"f{flow}")
        shard.create(f"f{flow}")
        shard.put(f"f{flow}", b"3")

    during_a_checkpoint(shard, slices, act)
    assert_resumed(shard)
    assert shard.record(f"f{flow}").version == 2


@pytest.mark.parametrize("slices", SLICES)
def test_a_history_is_cut_meanwhile(shard: Shard, slices: int) -> None:
    shard.create("a", "b", history_max_events=2)
    for number in range(3):
        shard.put("a", b"%d" % number)

    def act() -> None:
        for number in range(5):
            shard.put("a", b"%d" % number)

    during_a_checkpoint(shard, slices, act)
    assert_resumed(shard)
    values = len(shard.engine.values)
    shard.put("a", b"last")
    assert len(shard.engine.values) == values, "one comes, one goes"


@pytest.mark.parametrize("slices", SLICES)
def test_a_flow_with_a_cut_history_is_dropped_meanwhile(shard: Shard, slices: int) -> None:
    shard.create("a", "b", history_max_events=2)

    def act() -> None:
        for number in range(4):
            shard.put("b", b"%d" % number)
        shard.drop("b")

    during_a_checkpoint(shard, slices, act)
    assert_resumed(shard)
    assert len(shard.engine.values) == 1


@pytest.mark.parametrize("slices", SLICES)
def test_the_same_id_in_other_partitions_comes_and_goes_meanwhile(
    shard: Shard, slices: int
) -> None:
    def create(key: str | None) -> None:
        shard.ask(commands.Create([commands.NewFlow("a", key, "t", "queued", payload=b"p")]))

    for key in (None, "p", "q"):
        create(key)
        shard.create(f"of {key}")

    def act() -> None:
        shard.ask(commands.Cancel([commands.Ending("a", "p", None, None, force=True)]))
        shard.now_ms += 10**6
        shard.ask(commands.RetentionCleanup(100))
        create("p")
        create("r")

    during_a_checkpoint(shard, slices, act)
    assert_resumed(shard)


@pytest.mark.parametrize("slices", SLICES)
def test_facts_change_meanwhile(shard: Shard, slices: int) -> None:
    kin = Kin("p", None, "root", None, "g", 1, 1)
    children = [commands.NewFlow("c", None, "t", "queued")]

    def log(*facts: Fact, delivered: int) -> None:
        engine = shard.engine
        turn = engine.state.turn(shard.now_ms, engine._entropy, 0)
        turn.facts += facts
        engine.state.evolve(turn)
        engine.state.families.outbox.clear(1, delivered)
        writer = Writer(engine.log, engine.values)
        writer.add(turn)
        writer.add_fact(Delivered(1, delivered))
        writer.commit(sync=True)

    shard.ask(commands.PolicySet("t", {"retention_ttl_ms": 1}, False, None))
    posts = [Posted(1, number, Committed("x")) for number in (1, 2, 3)]
    log(Prepared("t1", 1, kin, children, 1), Received(1, 5), *posts, delivered=1)

    def act() -> None:
        shard.ask(commands.PolicySet("t", {"retention_ttl_ms": 2}, False, None))
        log(Unprepared("t1"), Received(1, 7), delivered=3)
        log(Posted(1, 4, Committed("y")), Prepared("t2", 1, kin, children, 1), delivered=3)

    during_a_checkpoint(shard, slices, act)
    assert_resumed(shard)
    families = shard.engine.state.families
    assert families.outbox.lane(1) == [(4, Committed("y"))]
    assert families.seen == {1: 7}
    assert list(families.prepared) == ["t2"]


# What happens after it was written.


def test_merges_move_what_a_checkpoint_holds(shard: Shard) -> None:
    shard.create(*(f"f{number}" for number in range(30)))
    for number in range(30):
        shard.put(f"f{number}", b"x" * 100)
    for number in range(0, 30, 2):
        shard.drop(f"f{number}")
    shard.engine.upkeep.checkpoint()
    files = shard.disk.names()
    shard.run_upkeep()
    assert shard.engine.upkeep.merges and set(shard.disk.names()) != set(files)
    shard.put("f1", b"later")
    assert_resumed(shard)
    for name in shortcuts_on(shard.disk):
        if name.endswith(".hint"):
            shard.disk.remove(name)
    assert_resumed(shard)


def test_merges_leave_alone_what_is_read_on_top_of_a_checkpoint(
    shard: Shard, small: pytest.MonkeyPatch
) -> None:
    small.setattr(upkeep, "SEAL_BYTES_MIN", 10**6)
    shard.create("keep")
    shard.engine.upkeep.checkpoint()
    for number in range(20):
        shard.create(f"f{number}", payload=b"x" * 200)
        shard.drop(f"f{number}")
    shard.run_upkeep()
    assert shard.engine.upkeep.merges == 0
    shard.engine.upkeep.checkpoint()
    shard.run_upkeep()
    assert shard.engine.upkeep.merges > 0
    assert_resumed(shard)


def test_one_is_written_when_half_the_log_is_dead(shard: Shard, small: pytest.MonkeyPatch) -> None:
    small.setattr(upkeep, "CHECKPOINT_LOG_BYTES", 10**9)
    shard.create("keep")
    shard.engine.upkeep.checkpoint()
    for number in range(20):
        shard.create(f"f{number}", payload=b"x" * 300)
        shard.drop(f"f{number}")
    shard.run_upkeep()
    assert shard.engine.upkeep.checkpoints > 1
    told = shard.engine.statistics(check=False)
    assert told["log_bytes"] < 3_000, "what is dead is gone"
    assert_resumed(shard)


def test_one_is_written_when_much_is_dead_that_only_a_merge_after_it_can_remove(
    shard: Shard, small: pytest.MonkeyPatch
) -> None:
    small.setattr(upkeep, "SEAL_BYTES_MIN", 10**6)
    shard.create("keep")
    shard.engine.upkeep.checkpoint()
    for number in range(20):
        shard.create(f"f{number}", payload=b"x" * 300)
        shard.drop(f"f{number}")
    small.setattr(upkeep, "CHECKPOINT_LOG_BYTES", 2_000)
    small.setattr(upkeep, "CHECKPOINT_GROWTH_RATIO", 10**6)
    shard.run_upkeep()
    assert shard.engine.upkeep.checkpoints == 2
    assert shard.engine.upkeep.merges > 0
    assert_resumed(shard)


def test_none_is_written_over_and_over_for_a_file_that_it_protects_itself(
    shard: Shard, small: pytest.MonkeyPatch
) -> None:
    small.setattr(logs, "SEGMENT_BYTES", 10**6)
    shard.engine.upkeep.checkpoint()
    for number in range(20):
        shard.create(f"f{number}", payload=b"x" * 300)
        shard.drop(f"f{number}")
    shard.run_upkeep()
    assert shard.engine.upkeep.checkpoints <= 3
    assert shard.engine.statistics(check=False)["log_bytes"] < 3_000
    assert_resumed(shard)


def test_one_that_is_written_after_all_was_merged_is_of_use(
    shard: Shard, small: pytest.MonkeyPatch
) -> None:
    small.setattr(logs, "SEGMENT_BYTES", 10**6)
    for number in range(20):
        shard.create(f"f{number}", payload=b"x" * 300)
        shard.drop(f"f{number}")
    shard.run_upkeep()
    assert segment_name(1) not in shard.disk.names()
    shard.engine.upkeep.checkpoint()
    assert_resumed(shard)


# When one is written.


def test_none_takes_what_is_kept_for_what_ends_flows(
    shard: Shard, small: pytest.MonkeyPatch
) -> None:
    small.setattr(space, "DISK_FLOOR_BYTES", 3_000)
    small.setattr(upkeep, "CHECKPOINT_LOG_BYTES", 3_000)
    shard.create("a", payload=b"x" * 4_000)
    # Each flow is expected to take some 400 bytes of it.
    shard.disk.capacity = shard.disk.used_bytes + 3_300
    shard.run_upkeep()
    shard.engine.upkeep.want_checkpoint()
    shard.run_upkeep()
    assert shard.engine.upkeep.checkpoints == 0
    shard.disk.capacity += 100
    shard.engine.upkeep.want_checkpoint()
    shard.run_upkeep()
    assert shard.engine.upkeep.checkpoints == 1
    shard.put("a", b"x" * 2_000)
    shard.disk.capacity = shard.disk.used_bytes + 2_900
    shard.engine.log.look()
    assert shard.engine.log.space.is_full
    shard.engine.upkeep.want_checkpoint()
    shard.run_upkeep()
    assert not shard.engine.upkeep.is_needed, "nothing is tried while the disk is full"
    assert shard.engine.upkeep.tail_bytes > 1_000
    # On closing, half of what is left may be used: the one before goes.
    shard.disk.capacity = shard.disk.used_bytes + 900
    shard.engine.close()
    assert shard.engine.upkeep.checkpoints == 1
    shard.disk.capacity = None
    shard.engine = opened(shard.disk)
    assert shard.record("a").version == 2


def test_one_is_due_when_the_log_has_grown(shard: Shard, small: pytest.MonkeyPatch) -> None:
    small.setattr(upkeep, "CHECKPOINT_LOG_BYTES", 3_000)
    shard.run_upkeep()
    assert shortcuts_on(shard.disk) == []
    shard.create("a", payload=b"x" * 3_000)
    assert shard.engine.upkeep.is_needed
    shard.run_upkeep()
    assert shard.engine.upkeep.checkpoints == 1
    shard.create("b", payload=b"x" * 2_000)
    shard.run_upkeep()
    assert shard.engine.upkeep.checkpoints == 1
    # Growth counts over restarts.
    shard.engine.abandon()
    shard.engine = opened(shard.disk)
    shard.create("c", payload=b"x" * 1_000)
    shard.run_upkeep()
    assert shard.engine.upkeep.checkpoints == 1


def test_closing_writes_one_if_it_spares_the_next_start_much(
    shard: Shard, small: pytest.MonkeyPatch
) -> None:
    small.setattr(upkeep, "CHECKPOINT_CLOSE_BYTES", 5_000)
    shard.create("a")
    shard.engine.close()
    assert shortcuts_on(shard.disk) == []
    shard.engine = opened(shard.disk)
    shard.create("b", payload=b"x" * 5_000)
    shard.create("c")
    shard.engine.close()
    first = checkpoint_in(shard.disk)
    shard.engine = opened(shard.disk)
    shard.engine.close()
    assert checkpoint_in(shard.disk) == first
    assert shard.disk.open_handles == 0


def test_closing_writes_none_that_costs_more_than_it_spares(
    shard: Shard, small: pytest.MonkeyPatch
) -> None:
    shard.create(*(f"f{number}" for number in range(50)))
    shard.engine.upkeep.checkpoint()
    first = checkpoint_in(shard.disk)
    small.setattr(upkeep, "CHECKPOINT_CLOSE_BYTES", 1)
    small.setattr(upkeep, "CHECKPOINT_CLOSE_RATIO", 2)
    shard.create("one")
    shard.engine.close()
    assert checkpoint_in(shard.disk) == first


@pytest.mark.parametrize("operation", ["create", "write", "sync", "replace", "sync_directory"])
def test_a_disk_that_takes_no_checkpoint_does_not_end_the_shard(
    shard: Shard, operation: str
) -> None:
    shard.create("a", "b")
    shard.disk.fail(operation, error=errno.ENOSPC)
    shard.engine.upkeep.checkpoint()
    assert shard.engine.upkeep.checkpoints == 0
    assert shortcuts_on(shard.disk) == []
    shard.create("c")
    shard.engine.upkeep.checkpoint()
    assert shard.engine.upkeep.checkpoints == 1
    assert_resumed(shard)


def test_a_slice_writes_no_more_than_a_block(shard: Shard) -> None:
    shard.create(*(f"f{number}" for number in range(50)))
    shard.engine.upkeep.want_checkpoint()
    operations = []
    while not shard.engine.upkeep.checkpoints:
        before = shard.disk.operations
        shard.engine.upkeep.step()
        operations.append(shard.disk.operations - before)
    assert len(operations) > 50 // 2
    assert max(operations[1:-2]) <= 2, "a write, and now and then a sync"


# Checkpoints that are of no use.


def a_resumed_shard() -> Shard:
    """Return one with a checkpoint, a hint, a merged file, and a tail."""
    shard = Shard()
    shard.create("a", "b", "c", history_max_events=3)
    for number in range(4):
        shard.put("a", b"%d" % number)
    shard.create("gone", payload=b"x" * 1_500)
    shard.drop("gone")
    shard.engine.upkeep.checkpoint()
    shard.run_upkeep()
    assert shard.engine.upkeep.merges
    shard.put("b", b"tail")
    shard.engine.abandon()
    return shard


def test_a_flip_of_any_byte_of_a_shortcut_leads_to_the_same_state() -> None:
    image = a_resumed_shard().disk.image()
    found = found_in(opened(Disk.of(image)))
    names = [name for name in image if name.endswith((".checkpoint", ".hint"))]
    assert len(names) == 2
    for name in names:
        for at in range(len(image[name])):
            disk = Disk.of(image)
            disk.flip(name, at, at % 8)
            engine = opened(disk)
            assert engine.restored.notes or (engine.restored.checkpoint and name.endswith("hint"))
            assert_same(found, found_in(engine))
            if name.endswith(".checkpoint"):
                assert name not in disk.names(), "what is of no use is removed"
            engine.abandon()


def test_a_shortcut_that_is_cut_off_anywhere_leads_to_the_same_state() -> None:
    image = a_resumed_shard().disk.image()
    found = found_in(opened(Disk.of(image)))
    for name in [name for name in image if name.endswith((".checkpoint", ".hint"))]:
        for size in range(0, len(image[name]), 7):
            engine = opened(Disk.of(image | {name: image[name][:size]}))
            assert_same(found, found_in(engine))
            engine.abandon()


def test_a_hint_of_a_merged_file_that_has_changed_is_not_believed() -> None:
    image = a_resumed_shard().disk.image()
    (merged,) = (name for name in image if name.count("-") == 2 and name.endswith(".log"))
    for content in (image[merged] + b"x", image[merged][:-1]):
        disk = Disk.of(image | {merged: content})
        disk.remove(checkpoint_in(disk))
        with pytest.raises(CorruptLog) as caught:
            opened(disk)
        assert caught.value.path == disk.path_of(merged)


def test_a_hint_tells_what_a_flow_named_when_it_came_into_the_file(shard: Shard) -> None:
    shard.create("a")
    shard.put("a", b"1")
    shard.create("filling", payload=b"x" * 600)
    shard.put("a", b"2", name="y")
    shard.put("a", b"3")
    shard.create("more", payload=b"x" * 600)
    shard.create("last")
    log, engine = shard.engine.log, shard.engine
    (span,) = (s for s in log.spans.values() if s.part.number == 2)
    merge = Merge(log, engine.state, engine.values, [span])
    while not merge.is_done:
        merge.step()
    hint = Hint(shard.disk, log, engine.state, engine.values, merge.span)
    while not hint.is_done:
        hint.step()
    assert [name for name in shard.disk.names() if name.endswith(".hint")]
    shard.restart()
    (slot,) = shard.engine.state.table.of_id("a")
    assert [version for version, _ in slot.spent or ()] == [3]
    assert len(shard.engine.restored.unread) == 1


def test_a_hint_whose_content_cannot_be_read_is_passed_over() -> None:
    image = a_resumed_shard().disk.image()
    found = found_in(opened(Disk.of(image)))
    disk = Disk.of(image)
    (name,) = (name for name in image if name.endswith(".hint"))
    hint = check(disk, name, 0, "hint")
    writer = ShortcutWriter(disk, name)
    writer.add(hint.header)
    writer.add(Flows([b"no record"], [b""], []))
    writer.finish(hint.end)
    engine = opened(disk)
    assert len(engine.restored.notes) == 2, "by the checkpoint and the hint, then by the hint"
    assert shortcuts_on(disk) == []
    assert_same(found, found_in(engine))


def test_every_subset_of_shortcuts_leads_to_the_same_state() -> None:
    image = a_resumed_shard().disk.image()
    found = found_in(opened(Disk.of(image)))
    names = [name for name in image if name.endswith((".checkpoint", ".hint"))]
    for gone in ([], names[:1], names[1:], names):
        disk = Disk.of({name: data for name, data in image.items() if name not in gone})
        assert_same(found, found_in(opened(disk)))


def test_a_log_that_ends_before_a_checkpoint_does_has_it_removed(shard: Shard) -> None:
    shard.create("a")
    image = shard.disk.image()
    shard.create("b")
    shard.engine.upkeep.checkpoint()
    shard.engine.abandon()
    name = checkpoint_in(shard.disk)
    disk = Disk.of(image | {name: shard.disk.image()[name]})
    engine = opened(disk)
    assert engine.restored.checkpoint is None and len(engine.restored.notes) == 1
    assert name not in disk.names()
    assert engine.state.table.get(None, "b") is None


def test_a_log_that_was_written_anew_is_not_taken_for_the_old_one(shard: Shard) -> None:
    shard.create("a")
    image = shard.disk.image()
    shard.create("b")
    shard.engine.upkeep.checkpoint()
    shard.engine.abandon()
    name = checkpoint_in(shard.disk)
    other = Shard()
    other.disk = Disk.of(image)
    for _ in range(2):
        other.engine = opened(other.disk)
    other.create(*(f"o{number}" for number in range(9)))
    other.create("p")
    engine = opened(Disk.of(other.disk.image() | {name: shard.disk.image()[name]}))
    assert engine.restored.checkpoint is None
    assert_same(found_in(other.engine), found_in(engine))


@pytest.mark.parametrize("change", ["removed", "longer", "shorter"])
def test_a_file_that_is_not_what_it_was_is_damage_as_without_a_checkpoint(change: str) -> None:
    shard = Shard()
    shard.create(*(f"f{number}" for number in range(20)))
    shard.create("last")
    shard.engine.upkeep.checkpoint()
    shard.engine.abandon()
    image = shard.disk.image()
    name = segment_name(1)
    images = {
        "removed": {other: data for other, data in image.items() if other != name},
        "longer": image | {name: image[name] + b"x"},
        "shorter": image | {name: image[name][:-1]},
    }
    disk = Disk.of(images[change])
    if change == "longer":
        assert opened(disk).restored.checkpoint is None
        return
    before = disk.image()
    with pytest.raises(CorruptLog):
        opened(disk)
    assert disk.image() == before, "nothing was changed"
    assert disk.open_handles == 0


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_damage_in_the_tail_is_as_loud_as_without_a_checkpoint(where: str) -> None:
    shard = Shard()
    shard.create("a")
    shard.engine.upkeep.checkpoint()
    begin = shard.engine.log.position[1]
    for number in range(3):
        shard.create(f"b{number}", payload=None)
    end = shard.engine.log.position[1]
    assert end > begin, "in one segment"
    shard.engine.abandon()
    at = {"first": begin + 50, "middle": (begin + end) // 2, "last": end - 10}[where]
    disk = Disk.of(shard.disk.image())
    disk.flip(segment_name(1), at)
    if where == "last":
        engine = opened(disk)
        assert engine.restored.checkpoint is not None and engine.cut_bytes
        return
    with pytest.raises(CorruptLog) as caught:
        opened(disk)
    assert caught.value.path == disk.path_of(segment_name(1))


# What was not read is verified.


def test_what_was_not_read_is_verified_once(shard: Shard) -> None:
    for number in range(20):
        shard.create(f"f{number}", payload=b"x" * 100)
    shard.engine.upkeep.checkpoint()
    assert_resumed(shard)
    assert shard.engine.upkeep.is_needed
    shard.run_upkeep()
    assert not shard.engine.upkeep.is_needed


def test_a_flip_anywhere_in_what_was_not_read_ends_the_shard_for_good() -> None:
    image = a_resumed_shard().disk.image()
    engine = opened(Disk.of(image))
    unread = [(span.part.name, span.size) for span in engine.restored.unread]
    assert any(name.count("-") == 2 for name, _ in unread), "a hint has spared a merged file"
    for name, size in unread:
        for at in range(0, size, 3):
            disk = Disk.of(image)
            disk.flip(name, at)
            with pytest.raises(CorruptLog):
                # The ends of a merged file are looked at by the start.
                shard = Shard()
                shard.engine = opened(disk)
                shard.run_upkeep()
            # Started again, it does not go on as if nothing were.
            with pytest.raises(CorruptLog):
                opened(disk)


def test_damage_that_a_read_meets_is_met_by_the_next_start(shard: Shard) -> None:
    shard.create("a", payload=b"x" * 10_000)
    shard.create("b")
    position = shard.engine.values.place(shard.record("a").payload_number or 0)
    assert position is not None
    shard.engine.upkeep.checkpoint()
    shard.engine.abandon()
    shard.disk.flip(segment_name(position.segment), position.offset + 100)
    shard.engine = opened(shard.disk)
    with pytest.raises(CorruptLog):
        shard.engine.values.read(shard.engine, shard.record("a").payload_number or 0)
    shard.engine.abandon()
    with pytest.raises(CorruptLog):
        opened(shard.disk)
