"""A shard whose disk fills up: what was answered stays, creations wait, ends go on."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from shardflow.actors.messages import Arrival
from shardflow.flow import commands, family, queries
from shardflow.flow.commands import Hydration
from shardflow.flow.errors import CorruptLog
from shardflow.flow.log.space import RESERVE_NAME
from shardflow.flow.replies import Data, Done
from support.disks import EVERYTHING, Disk
from support.filling import (
    CAPACITY,
    FLOOR_BYTES,
    JOB_BYTES,
    NOW_MS,
    RESERVE_BYTES,
    RETENTION_MS,
    STRAY,
    Filling,
    is_refused,
    small_sizes,
)

FRAMES_MAX = {"tight": None, "ample": 10_000}
"""Whether changes get their space before they are made, or when they are written."""


@pytest.fixture(params=FRAMES_MAX)
def _mode(request: pytest.FixtureRequest) -> Iterator[str]:
    with small_sizes(frame_bytes_max=FRAMES_MAX[request.param]):
        yield request.param


@pytest.fixture
def _small() -> Iterator[None]:
    with small_sizes():
        yield


@pytest.fixture
def shard(_small: None) -> Filling:
    """Return a shard with a reserve, and flows in several states."""
    shard = Filling(Disk(CAPACITY))
    shard.create(*"abcdefgh", size=300)
    shard.look()
    shard.claim(4)
    assert reserve_of(shard) == RESERVE_BYTES
    return shard


def reserve_of(shard: Filling) -> int:
    return len(shard.disk.image().get(RESERVE_NAME, b""))


# ENOSPC at every operation.


def scenario(shard: Filling) -> Iterator[object]:
    """Do a bit of everything; yields after each request."""
    yield shard.create("a", "b", "c")
    shard.look()
    yield shard.create("d", size=900)
    yield shard.claim(3)
    yield shard.create("e", "f", "g", size=500)
    for record in shard.held()[:2]:
        yield shard.complete(record, size=200)
    for record in shard.held()[:1]:
        yield shard.retry(record)
    shard.look()
    yield shard.create("h", size=2_500)
    yield shard.claim(9, ["p"])
    shard.wait(6_000)
    yield shard.claim(9)
    for record in shard.held()[:2]:
        yield shard.complete(record)
    yield shard.ask(commands.PolicySet("t", {"retention_ttl_ms": 5}, False, None))
    yield shard.create("i")
    shard.look()
    shard.wait(RETENTION_MS)
    yield shard.create("j")


def operations_of(act: Callable[[Filling], Iterator[object]]) -> int:
    shard = Filling(Disk(CAPACITY))
    list(act(shard))
    assert shard.deaths == 0
    return shard.disk.operations


def assert_full(shard: Filling) -> None:
    """Check a shard on a disk that is full: nothing is created, what is there is read."""
    shard.look()
    before = {k: v for k, v in shard.disk.image().items() if k != RESERVE_NAME}
    assert is_refused(shard.create("new"))
    after = {k: v for k, v in shard.disk.image().items() if k != RESERVE_NAME}
    assert after == before, "a refused creation leaves no trace"
    assert ("p", "new") not in shard.records()
    shard.assert_kept()


def assert_well(shard: Filling) -> None:
    """Check a shard that has room again: it takes everything, and has lost nothing."""
    shard.look()
    assert isinstance(shard.create("new", "newer"), Done)
    shard.look()
    for record in shard.held():
        assert isinstance(shard.complete(record), Done)
    shard.assert_kept()
    records = shard.records()
    for clean in (False, True):
        shard.reopen(clean=clean)
        assert shard.records() == records
    shard.disk = shard.disk.after_crash(EVERYTHING)
    shard.reopen()
    assert shard.records() == records
    shard.assert_kept()


def test_wherever_the_disk_becomes_full_nothing_answered_is_lost(_mode: str) -> None:
    for at in range(1, operations_of(scenario) + 1):
        shard = Filling(Disk(CAPACITY))
        shard.disk.fills_at(at)
        for _ in scenario(shard):
            shard.assert_kept()
        # Without room made for it beforehand, the one frame that does not fit ends the process.
        assert shard.deaths <= (1 if _mode == "ample" else 0), at
        if shard.disk.taken:
            shard.disk.fill()
            assert_full(shard)
            for clean in (False, True):
                shard.reopen(clean=clean)
                assert_full(shard)
        shard.disk.free()
        assert_well(shard)


def test_the_power_may_fail_on_a_full_disk(_mode: str) -> None:
    for at in range(1, operations_of(scenario) + 1):
        shard = Filling(Disk(CAPACITY))
        shard.disk.fills_at(at)
        list(scenario(shard))
        full = shard.disk.taken > 0
        shard.disk = shard.disk.after_crash(EVERYTHING)
        if full:
            shard.disk.fill()
        shard.reopen()
        shard.assert_kept()
        if full:
            assert_full(shard)
        shard.disk.free()
        assert_well(shard)


# What goes on and what does not.


def test_a_full_disk_lets_flows_end_on_what_the_reserve_gives(shard: Filling) -> None:
    shard.disk.fill()
    shard.look()
    assert is_refused(shard.create("new"))
    assert reserve_of(shard) == 0
    for record in shard.held():
        done = shard.complete(record, size=300)
        assert isinstance(done, Done) and done.outcomes[0].state == "completed"
    assert isinstance(shard.claim(4), Done)
    # The sweep is as good as an end.
    before = len(shard.records())
    shard.wait(RETENTION_MS)
    assert len(shard.records()) == before - 4
    assert shard.deaths == 0
    shard.assert_kept()


def test_a_creation_never_uses_up_the_reserve(shard: Filling) -> None:
    shard.disk.fill(leave=FLOOR_BYTES)
    shard.look()
    assert isinstance(shard.create("n1", size=700), Done), "above the floor they are let in"
    assert is_refused(shard.create("n2", size=FLOOR_BYTES))
    assert reserve_of(shard) == 0
    assert shard.disk.free_bytes >= RESERVE_BYTES
    assert shard.deaths == 0
    for record in shard.held():
        assert isinstance(shard.complete(record), Done)


def test_creations_are_taken_again_once_there_is_room(shard: Filling) -> None:
    shard.disk.fill()
    shard.look()
    assert is_refused(shard.create("new"))
    for room, is_taken in ((FLOOR_BYTES, False), (FLOOR_BYTES + RESERVE_BYTES, True)):
        shard.disk.free()
        shard.disk.fill(leave=room)
        assert is_refused(shard.create("new")), "it is not looked at all the time"
        shard.look()
        assert isinstance(shard.create("new"), Done) is is_taken
        assert reserve_of(shard) == (RESERVE_BYTES if is_taken else 0)
    assert shard.engine.log.epoch == 1, "it was not started again"


def test_a_disk_that_is_full_to_the_last_byte_refuses_ends_and_serves_reads(
    shard: Filling,
) -> None:
    shard.exhaust()
    for record in shard.held():
        assert is_refused(shard.complete(record))
    query = queries.Get("a", "p", False, Hydration(payload=True, max_bytes=1_000))
    for clean in (False, True, False):
        got = shard.ask(query)
        assert got.outcomes[0].id == "a" and got.values[0].payload == b"a" * 300
        assert is_refused(shard.claim(1))
        assert is_refused(shard.create("new"))
        shard.reopen(clean=clean)
        shard.assert_kept()
    assert shard.deaths == 0
    shard.disk.free()
    assert_well(shard)


def test_what_is_refused_is_as_if_it_had_not_been_asked(shard: Filling) -> None:
    # Claims and sweeps take entries out of the index before it is known whether they fit.
    for record in shard.held()[:2]:
        shard.complete(record)
    shard.create("limited")
    shard.ask(commands.PolicySet("t", {"max_active_ms": 7_000}, False, None))
    shard.create("overdue")
    shard.exhaust()
    records = shard.records()
    for _ in range(2):
        assert is_refused(shard.claim(3))
        assert is_refused(shard.claim(3, ["p"]))
        assert shard.problems() == []
        shard.clock.set(shard.clock.now_ms() + 6_000)
        assert is_refused(shard.claim(5, ["p"])), "leases have expired"
        assert is_refused(shard.claim(5))
        shard.clock.set(shard.clock.now_ms() + RETENTION_MS)
        shard.wait(0)
        assert is_refused(shard.ask(commands.RetentionCleanup(10)))
        assert shard.problems() == []
        assert shard.records() == records
    shard.disk.free()
    shard.look()
    shard.wait(RETENTION_MS)
    assert shard.records() != records, "the sweep has done what it could not before"
    assert_well(shard)


def test_a_sweep_without_room_does_not_keep_the_shard_awake(shard: Filling) -> None:
    for record in shard.held():
        shard.complete(record)
    shard.exhaust()
    shard.wait(RETENTION_MS)
    at_ms = shard.service.next_wake_ms()
    assert at_ms is not None and at_ms > shard.clock.now_ms()
    # Nor does it hold up whoever moves a manual clock.
    assert isinstance(shard.ask(queries.Tick(shard.clock.now_ms() + 5_000)), Data)


def test_posts_without_room_wait_at_the_shard(shard: Filling) -> None:
    shard.exhaust()
    number = shard.engine.state.families.seen[0] + 1
    deliver = family.Deliver(0, number, [STRAY])
    service = shard.service
    assert service.serve([Arrival("courier", 7, deliver)]) == []
    assert service.serve([Arrival("courier", 8, queries.Stats(check=True))])[0].number == 8
    shard.clock.set(NOW_MS + 60_000)
    assert service.wake() == [], "there is still no room"
    at_ms = service.next_wake_ms()
    assert at_ms is not None and at_ms > shard.clock.now_ms()
    shard.disk.free()
    shard.look()
    (told,) = service.wake()
    assert (told.caller, told.number, told.answer.reply) == ("courier", 7, Data(number))


# Other ways to refuse.


def test_a_file_system_that_becomes_read_only_is_read(shard: Filling) -> None:
    shard.disk.is_read_only = True
    shard.look()
    assert is_refused(shard.create("new"), "read-only")
    for record in shard.held():
        told = shard.complete(record)
        assert is_refused(told, "read-only") and "writable" in told.refused.message
    shard.assert_kept()
    shard.disk.is_read_only = False
    shard.look()
    assert_well(shard)
    assert shard.deaths == 0


def test_a_log_that_gets_no_further_segment_goes_on_in_its_last(shard: Filling) -> None:
    shard.disk.takes_files = False
    told = []
    for number in range(8):
        told.append(shard.create(f"n{number}", size=900))
    assert isinstance(told[0], Done) and is_refused(told[-1])
    for record in shard.held():
        assert isinstance(shard.complete(record), Done)
    shard.reopen()
    shard.assert_kept()
    shard.disk.takes_files = True
    shard.look()
    assert_well(shard)


def test_a_directory_without_permission_takes_no_creations(
    shard: Filling, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard.disk.fail("create", error=errno.EACCES)
    told = [shard.create(f"n{number}", size=900) for number in range(8)]
    assert is_refused(told[-1], "read-only")
    assert "the right to write" in told[-1].refused.message
    shard.look()
    assert_well(shard)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_is_found_by_what_it_refuses(_small: None, error: int) -> None:
    shard = Filling(Disk(CAPACITY))
    shard.create("a", "b")
    shard.claim(1)
    for at in (1, 2):
        shard.disk.fail("reserve", at=at, error=error)
    assert is_refused(shard.create("c", size=900))
    shard.disk.fail("reserve", error=error)
    shard.look()
    assert is_refused(shard.create("c", size=900)), "the reserve could not be made"
    for record in shard.held():
        assert isinstance(shard.complete(record), Done)
    shard.look()
    assert_well(shard)


def test_a_failed_sync_on_a_full_disk_still_ends_the_process(shard: Filling) -> None:
    shard.disk.fill()
    shard.look()
    shard.create("new")
    shard.disk.fail("sync", error=errno.ENOSPC)
    assert shard.complete(shard.held()[0]) is None
    assert shard.deaths == 1
    shard.assert_kept()


def test_a_log_that_is_deleted_under_its_shard_is_noticed(shard: Filling) -> None:
    shard.disk.vanish()
    shard.look()
    with pytest.raises(CorruptLog, match="was deleted") as caught:
        shard.create("new")
    assert caught.value.reason == "deleted"


def test_a_small_log_on_a_large_disk_has_no_reserve() -> None:
    shard = Filling(Disk(10**12))
    shard.create("a")
    shard.look()
    shard.create("b")
    assert RESERVE_NAME not in shard.disk.image()
    assert not shard.engine.log.space.is_tight


def test_a_merge_may_ask_whether_there_is_room(shard: Filling) -> None:
    space = shard.engine.log.space
    free = shard.disk.free_bytes
    assert space.has_room(free - FLOOR_BYTES)
    assert not space.has_room(free - FLOOR_BYTES + 1)
    shard.disk.fill(leave=2_000)
    shard.look()
    shard.create("new")
    assert not space.has_room(1), "as long as creations are refused"
    # What makes room may use half of what is left, the reserve included.
    half = shard.disk.free_bytes // 2
    assert space.has_room(half - JOB_BYTES, makes_room=True)
    assert not space.has_room(half - JOB_BYTES + 1, makes_room=True)
    shard.disk.is_read_only = True
    assert not space.has_room(0, makes_room=True)


def test_what_has_failed_is_tried_again_when_another_amount_is_free(shard: Filling) -> None:
    # As with a quota: the disk itself has room enough.
    space = shard.engine.log.space
    space.refused(OSError(errno.EDQUOT, "quota"))
    space.give_up(500)
    assert space.is_full and reserve_of(shard) == 0
    assert not space.has_room(500, makes_room=True)
    assert space.has_room(499, makes_room=True), "a smaller one may fit"
    assert not space.has_room(RESERVE_BYTES // 2, makes_room=True), "more is not known to be left"
    shard.look()
    shard.create("new")
    assert not space.is_full and reserve_of(shard) == RESERVE_BYTES
    assert not space.has_room(500), "the reserve is no change"
    shard.disk.fill(leave=shard.disk.free_bytes - JOB_BYTES)
    assert space.has_room(500)


def fill_by_itself(shard: Filling) -> list[str]:
    """Create until the disk is full, and nobody but the log has filled it."""
    names = []
    for number in range(10_000):
        names.append(f"n{number}")
        if is_refused(shard.create(names[-1], size=8_000)):
            return names[:-1]
        shard.look()
    raise AssertionError("it is never full")


def test_a_disk_that_the_log_has_filled_by_itself_gets_room_again(shard: Filling) -> None:
    names = fill_by_itself(shard)
    free = shard.disk.free_bytes
    for name in names:
        ending = commands.Ending(name, "p", None, None, force=True)
        assert isinstance(shard.ask(commands.Cancel([ending])), Done)
    shard.wait(RETENTION_MS)
    while shard.engine.sweep(shard.clock.now_ms()) is not None:
        shard.wait(0)
    while shard.engine.upkeep.step():
        pass
    assert shard.engine.upkeep.merges
    assert shard.disk.free_bytes > free + CAPACITY // 2
    shard.look()
    assert isinstance(shard.create("newest"), Done)
    assert shard.deaths == 0
    assert_well(shard)


def test_a_merge_without_room_is_looked_at_again_when_there_is(shard: Filling) -> None:
    fill_by_itself(shard)
    upkeep = shard.engine.upkeep
    while upkeep.step():
        pass
    assert not upkeep.is_needed
    shard.disk.capacity = 10 * CAPACITY
    shard.look()
    assert isinstance(shard.create("newest"), Done)
    assert upkeep.is_needed


def test_a_frame_that_is_larger_than_a_disk_is_refused(shard: Filling) -> None:
    assert is_refused(shard.create("large", size=2 * CAPACITY))
    assert shard.deaths == 0
    shard.look()
    assert_well(shard)
