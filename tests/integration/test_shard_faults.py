"""Shards that are killed, stopped, damaged or cannot write: what callers hear, and the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import resource
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pykka
import pytest

import shardflow as sf
from shardflow.actors import supervisor
from shardflow.flow.keys import shard_of
from support.processes import eventually, is_running, paused, running

SHARDS = 2
LARGE = "x" * 10_000
"""A payload that no shard keeps in memory."""


def key_on(shard: int) -> str:
    """Return a partition key of a shard."""
    return next(key for key in map(str, range(100)) if shard_of(key, "", SHARDS) == shard)


KEYS = [key_on(shard) for shard in range(SHARDS)]


@pytest.fixture
def store(path: Path) -> Iterator[sf.Store]:
    with sf.open(path, shards=SHARDS) as store:
        for number in range(5):
            for key in KEYS:
                store.flow_create(f"f{number}", type="t", partition_key=key, payload=number)
        yield store
        assert_whole(store)


def assert_whole(store: sf.Store, keys: list[str] = KEYS) -> None:
    for key in keys:
        for number in range(5):
            record = store.flow_get(f"f{number}", partition_key=key, payload=True)
            assert record is not None and record.payload == number
    if keys == KEYS:
        assert [told["problems"] for told in store.stats(check=True)] == [[]] * SHARDS


def pid_of(store: sf.Store, shard: int) -> int:
    pid: int = store.processes()[shard]["pid"]
    return pid


def create_surely(store: sf.Store, flow_id: str, key: str) -> None:
    """Create a flow at a shard that may just be going away, as an application would."""

    def create() -> bool:
        with contextlib.suppress(sf.OutcomeUnknown):
            store.flow_create(flow_id, type="t", partition_key=key, idempotent=True)
            return True
        return False

    eventually(create, "the shard does not come back")


@contextlib.contextmanager
def working(act: Callable[[int], object]) -> Iterator[list[float]]:
    """Call `act(number)` over and over in a thread; yield how long each call took so far."""
    took: list[float] = []
    errors: list[BaseException] = []
    is_over = threading.Event()

    def work() -> None:
        try:
            while not is_over.is_set():
                started_s = time.monotonic()
                act(len(took))
                took.append(time.monotonic() - started_s)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        eventually(lambda: took or errors, "no call returned")
        yield took
    finally:
        is_over.set()
        thread.join()
    assert errors == []


# Killed.


def test_a_killed_shard_comes_back_while_the_other_goes_on(store: sf.Store) -> None:
    before = [pid_of(store, shard) for shard in range(SHARDS)]
    epochs = [told["epoch"] for told in store.stats()]
    with working(lambda n: store.flow_create(f"w{n}", type="w", partition_key=KEYS[0])) as took:
        os.kill(before[1], signal.SIGKILL)
        count = len(took)
        create_surely(store, "later", KEYS[1])
        eventually(lambda: len(took) > count + 10, "the other shard's calls stand still")
    eventually(lambda: pid_of(store, 1) != before[1], "the restart is not told")
    assert pid_of(store, 0) == before[0]
    assert not is_running(before[1])
    assert [told["epoch"] for told in store.stats()] == [epochs[0], epochs[1] + 1]


def test_what_was_in_flight_at_a_killed_shard_is_answered(store: sf.Store) -> None:
    pid = pid_of(store, 1)
    with paused(pid):
        created = store.submit.flow_create("new", type="t", partition_key=KEYS[1])
        claimed = store.submit.flow_claim_due("t", worker="w", partition_key=KEYS[1])
        read = store.submit.flow_get("f1", partition_key=KEYS[1], payload=True)
        waiting = store.submit.flow_claim_due(
            "late", worker="w", partition_key=KEYS[1], block_ms=60_000
        )
        everywhere = store.submit.flow_list("t", count=100)
        os.kill(pid, signal.SIGKILL)
        for future in (created, claimed):
            with pytest.raises(sf.OutcomeUnknown) as caught:
                future.get(timeout=20)
            assert caught.value.applied == "unknown"
            assert "shard 1" in str(caught.value)
            assert type(pickle.loads(pickle.dumps(caught.value))) is sf.OutcomeUnknown
    # Reads change nothing, so they are asked again.
    record = read.get(timeout=20)
    assert record is not None and record.payload == 1
    assert len(everywhere.get(timeout=20)) == 10
    # It never read these: what was unknown turns out not to have happened.
    assert store.flow_get("new", partition_key=KEYS[1]) is None
    assert store.flow_create("new", type="t", partition_key=KEYS[1]).version == 1
    # A claim that found nothing and was waiting has changed nothing either.
    with contextlib.suppress(sf.OutcomeUnknown):
        late = store.flow_create("late", type="late", partition_key=KEYS[1])
        assert [job.id for job in waiting.get(timeout=20)] == [late.id]


def test_a_waiting_claim_outlives_the_death_of_its_shards(store: sf.Store) -> None:
    for key in (None, KEYS[1]):
        waiting = store.submit.flow_claim_due(
            f"late-{key}", worker="w", partition_key=key, block_ms=60_000
        )
        eventually(lambda: _watches(store), "the claim does not wait")
        for shard in range(SHARDS):
            pid = pid_of(store, shard)
            os.kill(pid, signal.SIGKILL)
            eventually(partial(_has_other_pid, store, shard, pid), "no restart")
        with pytest.raises(pykka.Timeout):
            waiting.get(timeout=0.05)
        late = store.flow_create(f"late-{key}", type=f"late-{key}", partition_key=KEYS[1])
        assert [job.id for job in waiting.get(timeout=20)] == [late.id]


def _watches(store: sf.Store) -> bool:
    """Whether what was submitted before has reached the shards."""
    return all(told["commands"] for told in store.stats())


def test_a_shard_may_be_killed_over_and_over(store: sf.Store) -> None:
    for number in range(4):
        pid = pid_of(store, 1)
        os.kill(pid, signal.SIGKILL)
        eventually(partial(_has_other_pid, store, 1, pid), "no restart")
        create_surely(store, f"k{number}", KEYS[1])


def test_a_claim_over_all_shards_goes_on_when_they_are_back(store: sf.Store) -> None:
    for shard in range(SHARDS):
        os.kill(pid_of(store, shard), signal.SIGKILL)
    seen: set[tuple[str | None, str]] = set()

    def claim() -> bool:
        with contextlib.suppress(sf.OutcomeUnknown):
            jobs = store.flow_claim_due("t", worker="w", limit=3)
            seen.update((job.partition_key, job.id) for job in jobs)
        return len(seen) == 10

    eventually(claim, "not every flow can be claimed")


# Stopped.


def test_a_stopped_shard_is_given_its_time_and_no_more(path: Path) -> None:
    with sf.open(path, shards=SHARDS, timeout=1) as store:
        pid = pid_of(store, 1)
        with paused(pid):
            started_s = time.monotonic()
            with pytest.raises(sf.OutcomeUnknown, match="within 1"):
                store.flow_create("slow", type="t", partition_key=KEYS[1])
            assert 1 <= time.monotonic() - started_s < 10

            async def in_a_loop() -> None:
                await store.aio.flow_create("slow too", type="t", partition_key=KEYS[1])

            with pytest.raises(sf.OutcomeUnknown):
                asyncio.run(in_a_loop())
            future = store.submit.flow_create("slow as well", type="t", partition_key=KEYS[1])
            with pytest.raises(pykka.Timeout):
                future.get(timeout=0.1)
            for number in range(20):
                store.flow_create(f"f{number}", type="t", partition_key=KEYS[0])
        # It goes on where it was: what was unknown turns out to have happened.
        assert future.get(timeout=20).version == 1
        for flow_id in ("slow", "slow too"):
            assert store.flow_get(flow_id, partition_key=KEYS[1]) is not None
        assert pid_of(store, 1) == pid
        assert store.flow_info("t")["ready"] == 23


def test_a_call_over_all_shards_waits_for_a_stopped_one_only_so_long(path: Path) -> None:
    with sf.open(path, shards=SHARDS, timeout=0.5) as store:
        store.flow_create("a", type="t", partition_key=KEYS[0])
        with paused(pid_of(store, 1)):
            with pytest.raises(sf.ShardUnavailable) as unread:
                store.flow_list("t")
            assert unread.value.applied == "no"
            calls: list[Callable[[], Any]] = [
                lambda: store.flow_claim_due("t", worker="w"),
                lambda: store.flow_create_many(
                    [{"id": "b", "partition_key": key} for key in KEYS], type="t"
                ),
            ]
            for call in calls:
                with pytest.raises(sf.FlowError) as caught:
                    call()
                assert caught.value.applied == "unknown"
        assert len(store.flow_list("t")) == 3


# Damaged.


@pytest.mark.parametrize("in_process", [False, True], ids=["processes", "in-process"])
def test_a_damaged_log_stops_its_shard_and_no_other(
    path: Path, in_process: bool, starts: Counter[int]
) -> None:
    with sf.open(path, shards=SHARDS) as store:
        for number in range(5):
            for key in KEYS:
                store.flow_create(f"f{number}", type="t", partition_key=key, payload=number)
    log = path / "shard-1" / "0000000001.log"
    whole = log.read_bytes()
    second = whole.index(b"SFL1", 1)
    log.write_bytes(whole[: second + 50] + b"?" + whole[second + 51 :])
    damaged = log.read_bytes()
    starts.clear()
    with sf.open(path, in_process=in_process) as store:
        calls: list[Callable[[], Any]] = [
            lambda: store.flow_get("f1", partition_key=KEYS[1]),
            lambda: store.flow_create("new", type="t", partition_key=KEYS[1]),
            lambda: store.flow_claim_due("t", worker="w", partition_key=KEYS[1]),
            lambda: store.flow_list("t"),
        ]
        for call in calls:
            with pytest.raises(sf.CorruptLog) as caught:
                call()
            for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
                assert isinstance(error, sf.ShardUnavailable)
                assert isinstance(error, sf.CorruptLog)
                assert (error.path, error.offset, error.applied) == (str(log), second, "no")
                assert str(log) in str(error)
        assert_whole(store, KEYS[:1])
        assert store.flow_create("new", type="t", partition_key=KEYS[0]).version == 1
        jobs = store.flow_claim_due("t", worker="w", limit=10)
        assert {job.partition_key for job in jobs} == {KEYS[0]}
    assert log.read_bytes() == damaged
    assert starts == ({} if in_process else {0: 1, 1: 1}), "to start again mends no log"
    log.write_bytes(whole)
    with sf.open(path, in_process=in_process) as store:
        assert_whole(store)


def test_damage_that_a_running_shard_meets_is_not_handed_out(path: Path) -> None:
    with sf.open(path, shards=SHARDS) as store:
        for key in KEYS:
            store.flow_create("large", type="t", partition_key=key, payload=LARGE)
            store.flow_create("next", type="t", partition_key=key)
        log = path / "shard-1" / "0000000001.log"
        at = log.read_bytes().index(LARGE.encode()) + 5_000
        with log.open("r+b") as file:
            file.seek(at)
            file.write(b"y")
        # The shard ends at the damage, and does not start again from a log that has it.
        with pytest.raises(sf.CorruptLog):
            store.flow_get("large", partition_key=KEYS[1], payload=True)
        with pytest.raises(sf.CorruptLog):
            store.flow_get("next", partition_key=KEYS[1])
        record = store.flow_get("large", partition_key=KEYS[0], payload=True)
        assert record is not None and record.payload == LARGE


# Unable to write.


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Count how often each shard's process is started."""
    counted: Counter[int] = Counter()
    spawn = supervisor.spawn

    def count(config: dict[str, Any]) -> Any:
        counted[config["shard"]] += 1
        return spawn(config)

    monkeypatch.setattr(supervisor, "spawn", count)
    return counted


def test_a_shard_that_cannot_open_its_log_is_given_up_after_three_starts(
    path: Path, caplog: pytest.LogCaptureFixture, starts: Counter[int]
) -> None:
    with sf.open(path, shards=SHARDS) as store:
        store.flow_create("f0", type="t", partition_key=KEYS[0])
    lock = path / "shard-1" / "LOCK"
    lock.unlink()
    lock.mkdir()
    starts.clear()
    for in_process in (False, True):
        with sf.open(path, in_process=in_process) as store:
            for _ in range(2):
                with pytest.raises(sf.ShardUnavailable) as caught:
                    store.flow_create("f0", type="t", partition_key=KEYS[1])
                assert "Is a directory" in str(caught.value)
                assert caught.value.reason is not None and "Is a directory" in caught.value.reason
                assert caught.value.applied == "no"
            assert store.flow_get("f0", partition_key=KEYS[0]) is not None
    assert caplog.text.count("shard 1 is given up") == 1
    assert starts == {0: 1, 1: 3}
    lock.rmdir()
    with sf.open(path) as store:
        assert store.flow_create("f0", type="t", partition_key=KEYS[1]).version == 1


def _lose_directory(shard: Path) -> None:
    shutil.rmtree(shard)


def _lose_segments(shard: Path) -> None:
    for segment in shard.glob("*.log"):
        segment.unlink()


@pytest.mark.parametrize("lose", [_lose_directory, _lose_segments])
def test_a_shard_whose_log_is_gone_does_not_begin_an_empty_one(
    path: Path, lose: Callable[[Path], None]
) -> None:
    sf.open(path, shards=SHARDS).close()
    lose(path / "shard-1")
    for in_process in (False, True, False):
        with sf.open(path, in_process=in_process) as store:
            with pytest.raises(sf.CorruptLog, match="missing") as caught:
                store.flow_create("f0", type="t", partition_key=KEYS[1])
            assert caught.value.path == str(path / "shard-1" / "0000000001.log")
            store.flow_create(f"f{in_process}", type="t", partition_key=KEYS[0], idempotent=True)


def test_the_making_of_a_store_may_be_cut_short_anywhere(path: Path) -> None:
    sf.open(path, shards=SHARDS).close()
    (path / "store.json").unlink()
    with pytest.raises(sf.StoreConfigError, match="shard-0"):
        sf.open(path, shards=SHARDS)
    for shard in range(SHARDS):
        (path / f"shard-{shard}" / "0000000001.log").write_bytes(b"")
        shutil.rmtree(path / f"shard-{shard}" / "cold")  # No shard has served yet.
    shutil.rmtree(path / "shard-1")
    shutil.rmtree(path / "run")
    with sf.open(path, shards=SHARDS) as store:
        for key in KEYS:
            assert store.flow_create("f0", type="t", partition_key=key).version == 1


def test_a_shard_whose_directory_is_a_file_is_given_up(path: Path) -> None:
    sf.open(path, shards=SHARDS).close()
    shutil.rmtree(path / "shard-1")
    (path / "shard-1").write_text("")
    for in_process in (False, True):
        with sf.open(path, in_process=in_process) as store:
            with pytest.raises(sf.ShardUnavailable):
                store.flow_create("f0", type="t", partition_key=KEYS[1])
            store.flow_create(f"f{in_process}", type="t", partition_key=KEYS[0])


def test_a_store_none_of_whose_shards_starts_does_not_open(path: Path) -> None:
    sf.open(path, shards=SHARDS).close()
    for shard in range(SHARDS):
        shutil.rmtree(path / f"shard-{shard}")
        (path / f"shard-{shard}").write_text("")
    for in_process in (False, True):
        with pytest.raises(sf.ShardUnavailable):
            sf.open(path, in_process=in_process)


def test_a_write_that_fails_ends_the_shard_and_leaves_no_trace(store: sf.Store, path: Path) -> None:
    # Past the limit a file cannot be written: the disk's refusal, as the shard sees it.
    pid = pid_of(store, 1)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    with pytest.raises(sf.OutcomeUnknown):
        store.flow_create("refused", type="t", partition_key=KEYS[1], payload=LARGE)
    assert store.flow_get("refused", partition_key=KEYS[1]) is None
    assert store.flow_create("refused", type="t", partition_key=KEYS[1]).version == 1
    assert not is_running(pid)


def test_a_shard_that_can_no_longer_write_is_given_up_and_the_others_go_on(
    path: Path, tmp_path: Path
) -> None:
    program = f"""
import logging, os, resource, signal, sys, time
import shardflow as sf
logging.basicConfig(level=logging.INFO)
with sf.open(sys.argv[1], shards=2) as store:
    store.flow_create("f0", type="t", partition_key={KEYS[0]!r})
    store.flow_create("f0", type="t", partition_key={KEYS[1]!r})
    # From now on no process that is started can write a byte to a file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    os.kill(store.processes()[1]["pid"], signal.SIGKILL)
    while True:
        try:
            store.flow_create("f1", type="t", partition_key={KEYS[1]!r})
        except sf.OutcomeUnknown:
            continue
        except sf.ShardUnavailable as error:
            print("refused", error.applied, error.reason, flush=True)
        break
    # This process's own stderr is a file, and is written when it ends.
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    print(store.flow_create("f1", type="t", partition_key={KEYS[0]!r}).version, flush=True)
"""
    errors = tmp_path / "stderr"
    with running(
        "-c", program, path, stderr=errors, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    ) as host:
        refused = host.wait_for_line("refused ")
        assert host.wait() == 0
        assert refused.startswith("no ") and "File too large" in refused
        assert host.lines()[-1] == "1"
    with sf.open(path) as store:
        assert store.flow_get("f0", partition_key=KEYS[1]) is not None
        assert store.flow_get("f1", partition_key=KEYS[1]) is None


# Many callers.


def test_answers_find_their_callers_however_these_wait(store: sf.Store) -> None:
    def act(hand: int, number: int) -> None:
        flow_id, key = f"{hand}-{number}", KEYS[number % SHARDS]
        future = store.submit.flow_create(flow_id, type="s", partition_key=key)
        if number % 3 == 0:
            with contextlib.suppress(pykka.Timeout):
                future.get(timeout=0.0001)
        elif number % 3 == 1:
            assert store.flow_get("f1", partition_key=KEYS[hand % SHARDS]) is not None
        else:
            asyncio.run(_get(store, "f2", key))
        assert future.get(timeout=20).id == flow_id

    def all_of(hand: int) -> None:
        for number in range(60):
            act(hand, number)

    hands = [threading.Thread(target=all_of, args=(hand,)) for hand in range(6)]
    for thread in hands:
        thread.start()
    for thread in hands:
        thread.join()
    assert len(store.flow_list("s", count=1_000)) == 360


async def _get(store: sf.Store, flow_id: str, key: str) -> None:
    assert await store.aio.flow_get(flow_id, partition_key=key) is not None


def _has_other_pid(store: sf.Store, shard: int, pid: int) -> bool:
    return pid_of(store, shard) != pid
