"""Copies of stores that serve: whole, of one moment, and apart from what they were made of."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf
from shardflow.actors import backup as backups
from shardflow.actors import staging, supervisor
from shardflow.flow.keys import shard_of
from shardflow.flow.queries import Backup
from shardflow.sdk.requests.ask import Ask, read_data
from shardflow.testing import memory_store
from support import processes
from support.clients import Clients
from support.hosts import Host, open_attached
from support.processes import eventually

SHARDS = 2
KEYS = [next(k for k in map(str, range(99)) if shard_of(k, "", SHARDS) == n) for n in range(SHARDS)]
KINDS = ("in-process", "processes", "attached")
NAME = "0" * 32


def open_kind(kind: str, path: Path, host: Host) -> sf.Store:
    if kind == "attached":
        return open_attached(host, path, {"shards": SHARDS})
    return sf.open(path, shards=SHARDS, in_process=kind == "in-process")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    host = Host()
    try:
        with open_kind(request.param, tmp_path / "data", host) as store:
            yield store
    finally:
        host.end()


def fill(store: sf.Store, count: int = 60) -> None:
    store.flow_create_many(
        [{"id": f"f{n}", "payload": n, "partition_key": KEYS[n % 2]} for n in range(count)],
        type="t",
    )
    for job in store.flow_claim_due("t", worker="w", limit=count // 2):
        store.flow_complete(
            job.id,
            job.lease_token,
            fencing_token=job.fencing_token,
            partition_key=job.partition_key,
            result=job.id,
        )


def contents(store: sf.Store) -> list[Any]:
    assert [told["problems"] for told in store.stats(check=True)] == [[]] * SHARDS
    found = []
    for record in store.flow_list("t", count=1_000):
        whole = store.flow_get(
            record.id, partition_key=record.partition_key, payload=True, values=True
        )
        assert whole is not None
        events = store.flow_history(record.id, partition_key=record.partition_key)
        found.append((whole, [(event.version, event.name) for event in events]))
    return found


def test_a_copy_opens_with_all_that_there_was(store: sf.Store, tmp_path: Path) -> None:
    fill(store)
    before = contents(store)
    done = store.backup(tmp_path / "copy")
    assert (done.path, done.files) == (str(tmp_path / "copy"), SHARDS)
    assert done.bytes > 0
    store.flow_create("later", type="t")
    with sf.open(tmp_path / "copy", in_process=True) as copy:
        assert contents(copy) == before
        # What happens to one does not happen to the other.
        fill_more = copy.flow_create("only in the copy", type="t")
        assert fill_more.version == 1
        assert store.flow_get("only in the copy") is None
        assert copy.flow_get("later") is None
    assert not list((tmp_path / "data").rglob("backup-*"))
    assert store.flow_create("goes on", type="t").version == 1


def test_opening_a_copy_writes_to_none_of_its_links(store: sf.Store, tmp_path: Path) -> None:
    fill(store, 10)
    store.backup(tmp_path / "copy")
    linked = [file for file in (tmp_path / "copy").rglob("*.log") if file.stat().st_nlink > 1]
    assert len(linked) == SHARDS
    before = [file.read_bytes() for file in linked]
    for number in range(3):
        with sf.open(tmp_path / "copy", in_process=True) as copy:
            copy.flow_create_many([{"id": f"new{number}-{n}"} for n in range(20)], type="u")
    assert [file.read_bytes() for file in linked] == before


def test_copies_of_copies_and_of_what_was_copied_before(store: sf.Store, tmp_path: Path) -> None:
    fill(store, 10)
    store.backup(tmp_path / "first")
    fill_again = store.flow_create("second", type="t")
    assert fill_again.version == 1
    store.backup(tmp_path / "second")
    with sf.open(tmp_path / "second", in_process=True) as second:
        second.backup(tmp_path / "third")
        expected = contents(second)
    with sf.open(tmp_path / "third", in_process=True) as third:
        assert contents(third) == expected
        assert len(expected) == 11
    with sf.open(tmp_path / "first", in_process=True) as first:
        assert len(contents(first)) == 10


def test_where_no_link_leads_files_are_copied(
    store: sf.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    fill(store, 20)
    before = contents(store)
    monkeypatch.setattr(backups, "link", refuse)
    store.backup(tmp_path / "copy")
    links = [file.stat().st_nlink for file in (tmp_path / "copy").rglob("*.log")]
    assert links == [1] * len(links)
    with sf.open(tmp_path / "copy", in_process=True) as copy:
        assert contents(copy) == before


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("in_process", [True, False], ids=["in-process", "processes"])
def test_a_shard_that_cannot_link_keeps_its_files_until_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: bool, error: int
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(backups, "link", refuse)
    monkeypatch.setattr(staging, "link", refuse)
    spoil = (
        f"import os\ndef refuse(*_):\n    raise OSError({error}, 'no links here')\n"
        "os.link = refuse\nmain()"
    )
    boot = supervisor._BOOT.replace("; main()", "\n" + spoil)
    monkeypatch.setattr(supervisor, "_BOOT", boot)
    with sf.open(tmp_path / "data", shards=SHARDS, in_process=in_process) as store:
        fill(store, 20)
        before = contents(store)
        for number in range(2):
            assert store.backup(tmp_path / f"copy{number}").files == SHARDS * (number + 1)
        assert [told["epoch"] for told in store.stats()] == [1] * SHARDS, "no shard has died of it"
        assert contents(store) == before
    assert not list((tmp_path / "data").rglob("backup-*"))
    with sf.open(tmp_path / "copy1", in_process=True) as copy:
        assert contents(copy) == before


def test_files_that_go_away_while_they_are_copied_are_no_backup(
    store: sf.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 20)

    def lose(source: Path, target: Path) -> None:
        for folder in (tmp_path / "data").rglob("backup-*"):
            shutil.rmtree(folder)
        source.unlink(missing_ok=True)
        (tmp_path / "data" / "shard-0" / source.name).unlink()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    with monkeypatch.context() as patch:
        patch.setattr(backups, "link", lose)
        with pytest.raises(sf.Overloaded, match="try again") as caught:
            store.backup(tmp_path / "copy")
    assert caught.value.reason == "backup"
    assert not (tmp_path / "copy").exists()


def test_what_dead_backups_have_left_beside_the_target_is_removed(
    store: sf.Store, tmp_path: Path
) -> None:
    fill(store, 10)
    dead, running = tmp_path / "copy.part-0123abcd", tmp_path / "copy.part-4567abcd"
    others = [tmp_path / "copy.part-x", tmp_path / "copy2.part-0123abcd", tmp_path / "part"]
    for folder in (dead, running, *others):
        (folder / "shard-0").mkdir(parents=True)
    (tmp_path / "copy.part-89abcdef").symlink_to(others[0])
    program = (
        "import sys\nfrom pathlib import Path\nfrom shardflow.actors.backup import _claim\n"
        "_claim(Path(sys.argv[1]))\nprint('claimed', flush=True)\ninput()\n"
    )
    with processes.running("-c", program, running, stderr=tmp_path / "stderr") as other:
        other.wait_for_line("claimed")
        store.backup(tmp_path / "copy")
    assert not dead.exists()
    assert all((folder / "shard-0").is_dir() for folder in (running, *others))
    store.backup(tmp_path / "further")
    shutil.rmtree(tmp_path / "copy")
    store.backup(tmp_path / "copy")
    assert not running.exists()


def test_a_backup_whose_caller_dies_keeps_nothing(tmp_path: Path, clients: Clients) -> None:
    host, caller = clients.open(shards=SHARDS), clients.open()
    assert caller.role == "attached"
    for what in ("hold", "link", "release"):
        assert None not in caller.call("backup_step", what, NAME)
    assert len(list((tmp_path / "data").rglob("backup-*"))) == SHARDS
    caller.kill()
    eventually(
        lambda: not list((tmp_path / "data").rglob("backup-*")), "what was linked is kept for ever"
    )
    assert [told["epoch"] for told in host.call("stats")] == [1] * SHARDS


def test_a_directory_that_cannot_be_used_is_refused(store: sf.Store, tmp_path: Path) -> None:
    fill(store, 10)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    # Something may be mounted there, or a link lead elsewhere.
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    for target in ("file", "full", "data", "empty", "link", "nowhere"):
        with pytest.raises(sf.StoreConfigError, match="is there already"):
            store.backup(tmp_path / target)
    for target in ("data/inside", "file/below"):
        with pytest.raises(sf.StoreConfigError):
            store.backup(tmp_path / target)
    files = [told["files"] for told in store.stats()]
    assert files == [1] * SHARDS, "it is refused before anything is done"
    assert sorted(entry.name for entry in tmp_path.iterdir() if "part" in entry.name) == []


def test_directories_that_are_made_for_a_copy_are_on_disk(
    store: sf.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(backups, "sync_directory", synced.append)
    store.backup(tmp_path / "a" / "b" / "copy")
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(synced)


def test_a_store_in_memory_has_no_files() -> None:
    with memory_store() as store, pytest.raises(sf.StoreConfigError, match="memory"):
        store.backup("anywhere")


def step(store: sf.Store, what: Any, name: str = NAME) -> list[Any]:
    told: list[Any] = store._wait(Ask(Backup(what, name), read_data))
    return told


def spawn(store: sf.Store, parent: str) -> Any:
    store.flow_create(parent, type="p", partition_key=KEYS[0])
    return store.submit.flow_spawn_children(
        parent,
        [{"id": f"{parent}-{key}", "type": "c", "partition_key": key} for key in KEYS],
        partition_key=KEYS[0],
        success="won",
        failure="lost",
    )


def test_what_crosses_shards_waits_while_it_is_held(store: sf.Store) -> None:
    assert step(store, "hold") == [True] * SHARDS
    waits = spawn(store, "p")
    assert store.flow_create("goes on", type="t", partition_key=KEYS[1]).version == 1
    assert store.flow_get("p-" + KEYS[1], partition_key=KEYS[1]) is None
    assert step(store, "release") == [True] * SHARDS
    assert waits.get(timeout=20).state == "waiting_children"


def test_who_never_releases_is_not_waited_for(store: sf.Store) -> None:
    assert step(store, "hold") == [True] * SHARDS
    assert spawn(store, "p").get(timeout=20).state == "waiting_children"
    assert step(store, "link") == [None] * SHARDS
    assert step(store, "release") == [False] * SHARDS


def test_only_one_backup_at_a_time_holds(store: sf.Store, tmp_path: Path) -> None:
    assert step(store, "hold", "1" * 32) == [True] * SHARDS
    assert step(store, "hold") == [False] * SHARDS
    assert step(store, "release") == [False] * SHARDS
    assert step(store, "release", "1" * 32) == [True] * SHARDS
    assert store.backup(tmp_path / "copy").files == SHARDS


def test_a_copy_under_load_is_of_one_moment(tmp_path: Path, clients: Clients) -> None:
    clients.open(shards=SHARDS)
    with sf.open(clients.path) as store:
        is_over = threading.Event()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                number = 0
                while not is_over.is_set():
                    number += 1
                    spawn(store, f"p{number}").get(timeout=20)
                    for job in store.flow_claim_due("c", worker="w", limit=3):
                        store.flow_complete(
                            job.id,
                            job.lease_token,
                            fencing_token=job.fencing_token,
                            partition_key=job.partition_key,
                        )
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for number in range(5):
                store.backup(tmp_path / f"copy{number}")
        finally:
            is_over.set()
            thread.join()
        assert errors == []
    for number in range(5):
        with sf.open(tmp_path / f"copy{number}", in_process=True) as copy:
            check_families(copy)


def check_families(copy: sf.Store) -> None:
    """Every parent has all of its children or none, and each is told of their ends."""
    parents = [record for record in copy.flow_list("p", count=1_000) if record.child_groups]
    for parent in parents:
        children = copy.flow_by_parent(parent.id, parent_partition_key=parent.partition_key)
        assert len(children) == SHARDS, parent.id
    of_parents = {f"{parent.id}-{key}" for parent in parents for key in KEYS}
    for child in copy.flow_list("c", count=1_000):
        assert child.id in of_parents
        if child.state in ("queued", "running"):
            copy.flow_cancel(child.id, partition_key=child.partition_key, force=True)

    def states() -> set[str]:
        return {record.state for record in copy.flow_list("p", count=1_000)}

    eventually(lambda: states() <= {"queued", "won", "lost"}, f"a parent waits: {states()}")
    assert [told["problems"] for told in copy.stats(check=True)] == [[]] * SHARDS


def test_leftovers_are_removed_when_the_shard_starts(tmp_path: Path) -> None:
    with sf.open(tmp_path / "data", shards=1, in_process=True) as store:
        assert step(store, "hold") == [True]
        assert step(store, "link") != [None]
        assert staging.staged(tmp_path / "data" / "shard-0", NAME).is_dir()
    with sf.open(tmp_path / "data", in_process=True):
        assert not list((tmp_path / "data").rglob("backup-*"))
