"""Cold flows: rows, order, likeness, growth, damage, and what is believed when it is opened."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardflow.flow import beside
from shardflow.flow.beside import DiskFolder
from shardflow.flow.codec import encoder
from shardflow.flow.cold import environment, rollback, rows, store
from shardflow.flow.cold.audit import audit
from shardflow.flow.cold.changes import Leaving
from shardflow.flow.cold.environment import ColdDamaged, ColdFull, Environment
from shardflow.flow.cold.layout import BadRow, pack_number, pack_row, place_in_list, read_row
from shardflow.flow.cold.store import Cold
from shardflow.flow.cold.verify import verify
from shardflow.flow.limits import COLD_REMAP_ROWS, MIB, NAME_BYTES_MAX
from shardflow.flow.order import cursor_of
from shardflow.flow.record import COMPLETED, FAILED, Extras, NamedValue, Record, numbers_of
from support.colds import synced
from support.small_disk import SmallDisk, install

UUID = b"u" * 16
TRAIL = bytes(range(24))
TYPE = "t"


def ended(
    flow_id: str,
    partition_key: str | None = None,
    at_ms: int = 1_000,
    state: str = COMPLETED,
    **fields: Any,
) -> Record:
    return Record(
        **{
            "id": flow_id,
            "partition_key": partition_key,
            "type": TYPE,
            "state": state,
            "run_state": None,
            "version": 2,
            "fencing_token": 1,
            "attempts": 0,
            "reclaims": 0,
            "priority": 0,
            "created_at_ms": at_ms,
            "updated_at_ms": at_ms,
            "next_run_at_ms": None,
            "state_seq": 1,
            "expires_at_ms": at_ms + 500,
            **fields,
        }
    )


def leaving(record: Record, spent: list[tuple[int, int]] | None = None) -> Leaving:
    places = [(number, number.to_bytes(12, "big")) for number in numbers_of(record, spent)]
    return Leaving(record, encoder.encode(record), TRAIL, spent, places)


@pytest.fixture
def folder(tmp_path: Path) -> DiskFolder:
    return DiskFolder(tmp_path / "cold")


Open = Callable[..., Cold]


@pytest.fixture
def opened(folder: DiskFolder) -> Iterator[Open]:
    """Opens the environment; what is still open is abandoned first."""
    found: list[Cold] = []

    def open_one(identity: bytes | None = None, **given: Any) -> Cold:
        while found:
            found.pop().abandon()
        found.append(Cold.open(folder, UUID, identity, **given))
        return found[-1]

    yield open_one
    while found:
        found.pop().abandon()


def project(cold: Cold, *records: Record) -> list[Record]:
    cold.project([leaving(record) for record in records], 1)
    assert audit(cold) == []
    cold.rest()
    return list(records)


def walked(cold: Cold, *, reverse: bool = False) -> list[Record]:
    return list(cold.walk("type", TYPE, None, None, reverse=reverse))


def check_pages(cold: Cold, records: list[Record]) -> None:
    """Check the order, and that a walk goes on behind each flow exactly where it was left."""
    wanted = sorted(records, key=cursor_of)
    assert walked(cold) == wanted
    assert walked(cold, reverse=True) == wanted[::-1]
    for at, record in enumerate(wanted):
        after = cursor_of(record)
        assert list(cold.walk("type", TYPE, None, after)) == wanted[at + 1 :]
        assert list(cold.walk("type", TYPE, None, after, reverse=True)) == wanted[:at][::-1]


# ---- rows ----


def test_a_row_reads_as_it_was_written() -> None:
    record = ended("a")
    packed = encoder.encode(record)
    for spent in ([], [(1, 256), (2, 2**60)]):
        found = read_row(7, pack_row(7, packed, TRAIL, spent))
        assert found == (record, packed, TRAIL, spent)


def test_any_flipped_bit_of_a_row_is_seen() -> None:
    data = pack_row(7, encoder.encode(ended("a")), TRAIL, [(1, 256)])
    for at, bit in itertools.product(range(len(data)), range(8)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << bit
        with pytest.raises(BadRow):
            read_row(7, bytes(flipped))


def test_a_row_is_not_read_in_another_ones_place_nor_in_part() -> None:
    data = pack_row(7, encoder.encode(ended("a")), TRAIL, None)
    with pytest.raises(BadRow):
        read_row(8, data)
    for size in range(len(data)):
        with pytest.raises(BadRow):
            read_row(7, data[:size])


# ---- finding ----


def test_one_id_in_several_partitions_is_several_flows(opened: Open) -> None:
    cold = opened()
    records = project(cold, *(ended("a", key) for key in (None, "p", "q", "a")), ended("b"))
    for record in records:
        slot = cold.find(record.partition_key, record.id)
        assert slot is not None and slot.held == record
    assert cold.find("b", "a") is None and cold.find(None, "c") is None
    assert sorted(slot.held.partition_key or "" for slot in cold.of_id("a")) == ["", "a", "p", "q"]


def test_flows_whose_hashes_are_alike_are_told_apart(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("rows", "changes", "verify"):
        monkeypatch.setattr(
            f"shardflow.flow.cold.{module}.identity_prefix", lambda key, name: b"alike!!!" * 2
        )
    monkeypatch.setattr("shardflow.flow.cold.rows.hash_of", lambda name: b"alike!!!")
    cold = opened()
    records = project(cold, ended("a"), ended("b"), ended("a", "p"))
    for record in records:
        slot = cold.find(record.partition_key, record.id)
        assert slot is not None and slot.held == record
    assert cold.find(None, "c") is None
    assert [slot.held.id for slot in cold.of_id("b")] == ["b"]


def test_the_longest_names_there_are(opened: Open) -> None:
    long = "ü" * (NAME_BYTES_MAX // 2)
    cold = opened()
    extras = Extras(parent_flow_id=long, root_flow_id="r" * NAME_BYTES_MAX, correlation_id=long)
    names = [long, long[:-1] + "a", long[:-1], "x" * NAME_BYTES_MAX]
    records = project(
        cold,
        *(ended(name, key, type=long, extras=extras) for name in names for key in (None, *names)),
    )
    for record in records:
        slot = cold.find(record.partition_key, record.id)
        assert slot is not None and slot.held == record
    wanted = sorted(records, key=cursor_of)
    assert list(cold.walk("type", long, None, None)) == wanted
    assert list(cold.walk("parent", long, None, None)) == wanted
    assert list(cold.walk("correlation", long, None, None, reverse=True)) == wanted[::-1]
    assert list(cold.walk("root", "r" * NAME_BYTES_MAX, None, None)) == wanted
    assert cold.count(long, COMPLETED) == len(records)


# ---- order ----


def test_ties_in_one_millisecond_come_by_id_and_partition(opened: Open) -> None:
    cold = opened()
    ids = ["b", "a", "ab", "a\0", "a\0b", "é", "aé", "a" * 64, "a" * 65, "a" * 64 + "\0", "\0"]
    keys = [None, "p", "q", "p\0"]
    records = [ended(flow_id, key) for flow_id in ids for key in keys]
    project(cold, *records[::2], *(ended(flow_id, at_ms=999) for flow_id in ids))
    project(cold, *records[1::2])
    check_pages(cold, records + [ended(flow_id, at_ms=999) for flow_id in ids])


def test_flows_that_ended_in_different_ways_are_listed_as_one(opened: Open) -> None:
    cold = opened()
    ends = [COMPLETED, FAILED, "cancelled"]
    records = [ended(f"f{n}", at_ms=n // 4, state=ends[n % 3]) for n in range(30)]
    project(cold, *records)
    check_pages(cold, records)
    failed = list(cold.walk("type", TYPE, [FAILED, "queued"], None))
    assert failed == sorted((r for r in records if r.state == FAILED), key=cursor_of)
    assert list(cold.walk("type", TYPE, ["queued"], None)) == []


def test_places_in_a_list_sort_as_their_flows_do() -> None:
    ids = ["", "a", "ab", "b", "é", "\U0001f600", "a" * 63, "a" * 64]
    places = [(place_in_list(ms, name), (ms, name)) for ms in (0, 1, 2**53) for name in ids]
    assert [flow for _, flow in sorted(places)] == sorted(flow for _, flow in places)


def test_a_walk_remembers_nothing_and_gives_pages_back(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = opened()
    records = project(cold, *(ended(f"f{n:03}", at_ms=n // 7) for n in range(300)))
    monkeypatch.setattr(rows, "COLD_REMAP_ROWS", 20)
    remaps: list[int] = []
    monkeypatch.setattr(environment.Environment, "remap", _counted(environment, remaps))
    for reverse in (False, True):
        remaps.clear()
        assert walked(cold, reverse=reverse) == records[:: -1 if reverse else 1]
        assert not cold._slots
        assert len(remaps) >= 10
    check_pages(cold, records)


def test_look_ups_that_find_nothing_give_pages_back_too(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = opened()
    project(cold, ended("a", payload_number=1))
    remaps: list[int] = []
    monkeypatch.setattr(environment.Environment, "remap", _counted(environment, remaps))
    looks: list[Callable[[], object]] = [
        lambda: cold.find(None, "b"),
        lambda: cold.owner(None, "b", TRAIL[:12]),
        lambda: cold.place(2),
        lambda: cold.move([(1, b"x" * 12, b"y" * 12)], []),
    ]
    for look in looks:
        remaps.clear()
        for _ in range(2 * COLD_REMAP_ROWS):
            look()
        assert len(remaps) >= 2


def _counted(module: Any, calls: list[int]) -> Callable[[Any], None]:
    remap = module.Environment.remap

    def counted(env: Any) -> None:
        calls.append(1)
        remap(env)

    return counted


# ---- retention and letting go ----


def test_retention_goes_by_time(opened: Open) -> None:
    cold = opened()
    project(cold, *(ended(f"f{ms}", at_ms=ms) for ms in (5, 3, 4)))
    assert cold.next_expiry_ms() == 503
    assert [slot.held.id for slot in cold.expired(504, 9)] == ["f3", "f4"]
    assert [slot.held.id for slot in cold.expired(9_999, 1)] == ["f3"]
    (first, *_) = cold.expired(9_999, 9)
    cold.remove(first)
    assert cold.next_expiry_ms() == 504
    assert audit(cold) == []


@pytest.mark.parametrize("flushes", [False, True])
def test_what_was_let_go_of_is_nowhere_any_more(opened: Open, flushes: bool) -> None:
    cold = opened()
    named = {"n": NamedValue(3, 1, b"")}
    extras = Extras(correlation_id="c", parent_flow_id="x", root_flow_id="y", values=named)
    record = ended("a", payload_number=1, result_number=2, extras=extras)
    cold.project([leaving(record, [(1, 9)]), leaving(ended("b", payload_number=5))], 1)
    slot = cold.find(None, "a")
    assert slot is not None and slot.row
    assert [number for number, _ in cold.adopt(slot)] == [1, 2, 3, 9]
    if flushes:
        cold.flush()
    assert audit(cold) == []
    assert not slot.row and cold.find(None, "a") is None and cold.of_id("a") == []
    assert cold.rows == cold.count(TYPE, COMPLETED) == cold.values == 1
    assert [cold.place(number) is None for number in (1, 2, 3, 9, 5)] == [True] * 4 + [False]
    for kind, name in (("parent", "x"), ("root", "y"), ("correlation", "c")):
        assert not list(cold.walk(kind, name, None, None))  # type: ignore[arg-type]


def test_nothing_is_deleted_while_a_sync_is_under_way(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        is_running = True

        def __init__(self, work: Callable[[], None]) -> None:
            pass

        def wait(self) -> None:
            assert not self.is_running, "somebody waits for it"

    monkeypatch.setattr(environment, "Background", Slow)
    monkeypatch.setattr(store, "COLD_BATCH_FLOWS", 1)
    cold = opened()
    project(cold, ended("a"), ended("b"))
    cold.begin_sync()
    slot = cold.find(None, "a")
    assert slot is not None
    cold.adopt(slot)
    for _ in range(2):
        cold.rest()
        assert cold.environment.size("rows") == 2
        assert cold.find(None, "a") is None
    monkeypatch.setattr(store, "COLD_WAITING_MAX", 1)
    with pytest.raises(AssertionError, match="somebody waits"):
        cold.rest()
    Slow.is_running = False
    cold.rest()
    assert cold.environment.size("rows") == 1


def test_a_flow_that_comes_back_cold_is_found_once(opened: Open) -> None:
    cold = opened()
    project(cold, ended("a"))
    slot = cold.find(None, "a")
    assert slot is not None
    cold.adopt(slot)
    (again,) = project(cold, ended("a", version=3))
    found = cold.find(None, "a")
    assert found is not None and found.held == again
    assert walked(cold) == [again]


def test_entries_that_have_moved_are_found_where_they_lie_now(opened: Open) -> None:
    cold = opened()
    project(cold, ended("a", payload_number=1), ended("b", payload_number=2))
    slot = cold.find(None, "a")
    assert slot is not None
    row, other = slot.row, b"not there..."
    assert cold.owner(None, "a", TRAIL[12:]) == row
    assert cold.owner(None, "a", TRAIL[6:18]) == cold.owner(None, "c", TRAIL[12:]) == 0
    old = (1).to_bytes(12, "big")
    moved = cold.move(
        [(row, TRAIL[12:], b"new place 12"), (row, other, b"x" * 12), (99, TRAIL[:12], b"y" * 12)],
        [(1, old, b"new value 12"), (2, other, b"z" * 12), (7, old, b"z" * 12)],
    )
    assert moved == {TRAIL[12:], old}
    slot = cold.find(None, "a")
    assert slot is not None and slot.trail == TRAIL[:12] + b"new place 12"
    assert cold.place(1) == b"new value 12" and cold.place(2) == (2).to_bytes(12, "big")
    assert audit(cold) == []


# ---- growth, and a full disk ----


def test_the_map_grows_by_itself(opened: Open) -> None:
    cold = opened(map_bytes=64 * 1024)
    records = []
    for number in range(20):
        numbers = range(50 * number, 50 * number + 50)
        records += project(cold, *(ended(f"f{n}", payload_number=n) for n in numbers))
    assert walked(cold) == sorted(records, key=cursor_of)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_changes_nothing(
    opened: Open, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(DiskFolder, "free_bytes", lambda folder: MIB)
    cold = opened()
    project(cold, ended("a"))

    def full(*args: Any) -> None:
        error = environment.lmdb_error("mdb_txn_commit: no space")
        error.code = code  # type: ignore[misc]
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(environment.Writing, "put_all", full)
        with pytest.raises(ColdFull):
            cold.project([leaving(ended("b"))], 1)
    assert cold.find(None, "b") is None and cold.rows == cold.count(TYPE, COMPLETED) == 1
    project(cold, ended("b"))


def test_small_files_need_no_room(
    folder: DiskFolder, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = opened()
    records = project(cold, ended("a"), ended("b"))
    identity = synced(cold)
    disk = SmallDisk(Path(folder.path), tmp_path / "size")
    disk.fill()
    install(disk, monkeypatch)
    project(cold, ended("c"))
    cold.close()
    for _ in range(4):
        cold = opened(identity)
        assert walked(cold) == records
        project(cold, ended("d"))
        cold.verified()


def test_files_that_cannot_be_written_are_a_full_disk(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    cold = opened()
    project(cold, ended("a"))
    synced(cold)
    with monkeypatch.context() as patch:
        patch.setattr(DiskFolder, "write", full)
        cold.verified()
        with pytest.raises(ColdFull):
            cold.project([leaving(ended("b"))], 1)
        assert cold.rows == cold.count(TYPE, COMPLETED) == 1
        assert audit(cold) == []
    project(cold, ended("b"))


def test_a_disk_with_room_that_fails_is_damage(
    folder: DiskFolder, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskFolder, "free_bytes", lambda folder: 100 * MIB)
    cold = opened()

    def broken(*args: Any) -> None:
        error = environment.lmdb_error("mdb_txn_commit: input/output error")
        error.code = errno.EIO  # type: ignore[misc]
        raise error

    monkeypatch.setattr(environment.Writing, "put_all", broken)
    with pytest.raises(ColdDamaged):
        cold.project([leaving(ended("b"))], 1)


# ---- damage ----


def flip(folder: DiskFolder, needle: bytes) -> None:
    """Change a byte of everything that looks so, in the file itself."""
    path = Path(folder.path) / "data.mdb"
    data = path.read_bytes()
    assert needle in data
    with path.open("r+b") as file:
        at = data.find(needle)
        while at >= 0:
            file.seek(at + len(needle) - 1)
            file.write(bytes([needle[-1] ^ 1]))
            at = data.find(needle, at + 1)


def test_a_flipped_byte_in_a_row_is_never_answered(folder: DiskFolder, opened: Open) -> None:
    reads: list[Callable[[Cold], object]] = [
        lambda cold: cold.find(None, "flow-1"),
        lambda cold: cold.of_id("flow-1"),
        walked,
        lambda cold: cold.expired(9_999, 9),
        lambda cold: cold.owner(None, "flow-1", TRAIL[:12]),
        lambda cold: cold.move([(1, TRAIL[:12], TRAIL[12:])], []),
        lambda cold: list(cold.slots()),
    ]
    for read in reads:
        cold = opened()
        project(cold, ended("flow-1"))
        flip(folder, b"completed")
        with pytest.raises(ColdDamaged):
            read(cold)
        assert not (Path(folder.path) / "data.mdb").exists(), "nobody reads it again"


def test_a_flipped_byte_in_the_place_of_a_value_is_never_answered(
    folder: DiskFolder, opened: Open
) -> None:
    cold = opened()
    record = ended("a", payload_number=256)
    cold.project([leaving(record)._replace(values=[(256, b"<-a place->!")])], 1)
    flip(folder, b"<-a place->!")
    with pytest.raises(ColdDamaged):
        cold.place(256)


def test_an_error_of_lmdb_in_a_read_is_damage(folder: DiskFolder, opened: Open) -> None:
    class Broken:
        def abort(self) -> None: ...

        def __getattr__(self, name: str) -> Any:
            raise environment.lmdb_error("a page is not there")

    reads: list[Callable[[Cold], object]] = [
        lambda cold: cold.find(None, "a"),
        lambda cold: cold.read(1),
        lambda cold: cold.place(256),
        lambda cold: cold.values,
        lambda cold: list(verify(cold)),
        walked,
    ]
    for read in reads:
        cold = opened()
        project(cold, ended("a", payload_number=256))
        cold.environment._read = Broken()  # type: ignore[assignment]
        cold.environment._cursors.clear()
        with pytest.raises(ColdDamaged):
            read(cold)
        assert not (Path(folder.path) / "data.mdb").exists(), "nobody reads it again"


def test_a_row_that_is_missing_is_damage(opened: Open) -> None:
    cold = opened()
    project(cold, ended("a"))
    cold._env.write(lambda writing: writing.clear("rows"))
    with pytest.raises(ColdDamaged):
        cold.find(None, "a")


def test_an_index_that_lacks_a_row_is_damage_when_it_is_deleted(opened: Open) -> None:
    cold = opened()
    project(cold, ended("a"))
    slot = cold.find(None, "a")
    assert slot is not None
    cold._env.write(lambda writing: writing.clear("lists"))
    assert audit(cold) != []
    cold.adopt(slot)
    with pytest.raises(ColdDamaged):
        cold.flush()


@pytest.mark.parametrize("bit", [8, 13])
def test_a_time_that_is_not_the_flows_own_drops_none(opened: Open, bit: int) -> None:
    cold = opened()
    record = ended("a", at_ms=1 << 14)
    project(cold, record)
    assert record.expires_at_ms is not None
    key, row_key = pack_number(record.expires_at_ms), pack_number(1)
    wrong = pack_number(record.expires_at_ms ^ 1 << bit)
    cold.environment.write(lambda writing: writing.delete("expiry", key + row_key))
    cold.environment.write(lambda writing: writing.put("expiry", wrong + row_key, b""))
    with pytest.raises(ColdDamaged):
        cold.expired(1 << 20, 9)


@pytest.mark.parametrize("name", ["counts", "rows"])
def test_counts_that_differ_from_the_rows_are_damage(opened: Open, name: str) -> None:
    cold = opened()
    project(cold, ended("a"), ended("b"))
    identity = synced(cold)
    cold.environment.write(lambda writing: writing.clear(name))
    again = opened(identity)
    assert again.identity != identity, "made anew"
    assert again.rows == again.environment.size("rows") == 0


# ---- trust ----


def test_without_an_identity_it_begins_anew(opened: Open) -> None:
    project(opened(), ended("a"))
    assert opened().rows == 0


def test_a_sync_is_come_back_to(opened: Open) -> None:
    cold = opened()
    records = project(cold, *(ended(n, payload_number=256 + ord(n)) for n in "abc"))
    identity = synced(cold)
    again = opened(identity)
    assert again.identity == identity and audit(again) == []
    assert walked(again) == records


def test_what_came_after_the_sync_is_undone(opened: Open) -> None:
    cold = opened()
    records = project(cold, *(ended(n, payload_number=256 + ord(n), state=FAILED) for n in "abcd"))
    identity = synced(cold)
    project(cold, ended("new"), ended("newer", payload_number=1))
    for flow_id, drops in (("a", True), ("b", False), ("newer", True)):
        slot = cold.find(None, flow_id)
        assert slot is not None
        (cold.remove if drops else cold.adopt)(slot)
    cold.flush()
    project(cold, ended("b", version=3))
    for _ in range(2):
        again = opened(identity)
        assert again.identity == identity and audit(again) == []
        assert walked(again) == records
        assert again.count(TYPE, FAILED) == 4 and not again.count(TYPE, COMPLETED)
        assert again.place(256 + ord("a")) == (256 + ord("a")).to_bytes(12, "big")
        again.close()


@pytest.mark.parametrize("refused", [2, 3, 4])
def test_on_a_full_disk_a_few_at_a_time_are_undone(
    opened: Open, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    monkeypatch.setattr(rollback, "COLD_UNDO_ROWS", 10)
    monkeypatch.setattr(rollback, "COLD_UNDO_ROWS_MIN", 2)
    cold = opened()
    records = project(cold, *(ended(f"old{n}", payload_number=256 + n) for n in range(15)))
    identity = synced(cold)
    for n in range(15):
        slot = cold.find(None, f"old{n}")
        assert slot is not None
        cold.remove(slot)
    cold.flush()
    project(cold, *(ended(f"new{n}") for n in range(15)))
    cold.close()
    write, page = Environment.write, Environment.page
    sizes: list[int] = []
    tries = itertools.count(1)

    def full(env: Environment, work: Any) -> Any:
        if next(tries) == refused:
            raise ColdFull(28, "full")
        return write(env, work)

    def counted(env: Environment, name: str, first: bytes, count: int, *given: Any) -> Any:
        sizes.append(count)
        return page(env, name, first, count, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Environment, "write", full)
        patch.setattr(Environment, "page", counted)
        again = opened(identity)
    assert again.identity == identity and audit(again) == []
    assert walked(again) == sorted(records, key=cursor_of)
    assert set(sizes) == {10, 2}


def test_what_is_large_is_undone_in_small_parts(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = opened()
    identity = synced(cold)
    project(cold, *(ended(f"new{n}") for n in range(20)))
    cold.close()
    row_bytes = len(pack_row(1, encoder.encode(ended("new1")), TRAIL, None))
    monkeypatch.setattr(rollback, "COLD_BATCH_BYTES", 3 * row_bytes)
    page, sizes = Environment.page, []

    def counted(*given: Any) -> Any:
        found = page(*given)
        sizes.append(len(found))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Environment, "page", counted)
        again = opened(identity)
    assert again.rows == 0 and audit(again) == []
    assert max(sizes) == 3 and sum(sizes) == 20


def test_another_identity_is_not_believed(opened: Open) -> None:
    cold = opened()
    project(cold, ended("a"))
    first = synced(cold)
    second = synced(cold)
    assert first != second
    assert opened(first).rows == 0
    assert opened(second).rows == 0


def test_after_another_boot_only_what_was_synced_is_believed(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for writes in (False, True):
        cold = opened()
        project(cold, ended("a"))
        identity = synced(cold)
        if writes:
            project(cold, ended("b"))
        with monkeypatch.context() as patch:
            patch.setattr(environment, "boot_id", lambda: b"another")
            assert opened(identity).rows == (0 if writes else 1)
    assert beside.boot_id() == beside.boot_id()


def test_what_is_closed_in_order_is_on_disk(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = opened()
    records = project(cold, ended("a"))
    identity = synced(cold)
    project(cold, ended("b"))
    cold.close()
    with monkeypatch.context() as patch:
        patch.setattr(environment, "boot_id", lambda: b"another")
        assert walked(opened(identity)) == records


def test_after_ends_in_a_row_that_it_may_be_to_blame_for_it_begins_anew(
    folder: DiskFolder, opened: Open
) -> None:
    cold = opened()
    project(cold, ended("a"))
    identity = synced(cold)
    cold.close()
    found = []
    for _ in range(4):
        cold = opened(identity)
        found.append(cold.rows)
        kill(folder, cold)
    assert found == [1, 1, 0, 0]


def kill(folder: DiskFolder, cold: Cold) -> None:
    """End as a process does that is killed."""
    told = folder.read(environment.IN_USE)
    assert told is not None
    cold.abandon()
    folder.write(environment.IN_USE, told, sync=False)


def test_ends_after_it_was_verified_are_not_put_down_to_it(
    folder: DiskFolder, opened: Open
) -> None:
    cold = opened()
    project(cold, ended("a"))
    identity = synced(cold)
    cold.close()
    for _ in range(4):
        cold = opened(identity)
        assert cold.rows == 1
        assert list(verify(cold))
        kill(folder, cold)


def test_processes_that_know_why_they_end_do_not_count(opened: Open) -> None:
    cold = opened()
    project(cold, ended("a"))
    identity = synced(cold)
    assert [opened(identity).rows for _ in range(4)] == [1] * 4


@pytest.mark.parametrize("size", [0, 100, 4_096, 5_000])
def test_a_file_that_was_cut_is_not_believed(folder: DiskFolder, opened: Open, size: int) -> None:
    cold = opened()
    project(cold, ended("a"))
    identity = synced(cold)
    cold.close()
    path = Path(folder.path) / "data.mdb"
    path.write_bytes(path.read_bytes()[:size])
    again = opened(identity)
    assert again.rows == 0
    project(again, ended("b"))
