"""Stores over shard processes: interrupted, overfull, restarted, and started in odd places."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf
from shardflow.actors.supervisor import REPORT_MARK, report_of
from shardflow.testing import ManualClock
from support.links import links_of, pending_in
from support.processes import eventually

SOON_S = 5.0
FAR_MS = 20_000_000


# An answer is never taken from the frame of another command.


def complete(store: sf.Store, job: sf.FlowRecord, now_ms: int) -> Any:
    return store.flow_complete(
        job.id, job.lease_token, fencing_token=job.fencing_token, now_ms=now_ms
    )


def put_value(store: sf.Store, job: sf.FlowRecord, now_ms: int) -> Any:
    return store.flow_value_put(1, id=job.id, name="n", now_ms=now_ms)


def complete_in_a_batch(store: sf.Store, job: sf.FlowRecord, now_ms: int) -> Any:
    item = {"id": job.id, "lease_token": job.lease_token, "fencing_token": job.fencing_token}
    (found,) = store.flow_complete_many([item], independent=True, now_ms=now_ms)
    if isinstance(found, sf.FlowError):
        raise found
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sf.Store]:
    """One store for the tests that leave it as it was, but for flows of their own."""
    with sf.open(tmp_path_factory.mktemp("shared") / "data", shards=2, timeout=SOON_S) as store:
        yield store


@pytest.mark.parametrize("command", [complete, put_value, complete_in_a_batch])
def test_a_command_for_an_overdue_flow_is_told_that_it_was_failed(
    shared: sf.Store, command: Callable[..., Any]
) -> None:
    name = command.__name__
    job = shared.flow_start_and_claim(name, type=name, worker="w", max_active_ms=FAR_MS // 2)
    with pytest.raises(sf.MaxActiveExceeded):
        command(shared, job, shared.now_ms() + FAR_MS)
    record = shared.flow_get(name)
    assert record is not None and record.state == "failed"


# Claims that wait.


def test_claims_that_waited_at_several_shards_leave_no_request_behind(shared: sf.Store) -> None:
    assert eventually(lambda: pending_in(shared) == [0, 0], "requests before the test")
    for number in range(20):
        waiting = shared.submit.flow_claim_due("waits", worker="w", block_ms=600_000)
        eventually(lambda: pending_in(shared) == [1, 1], "the claim does not watch")
        shared.flow_create(f"waits{number}", type="waits")
        assert len(waiting.get(timeout=SOON_S)) == 1
    eventually(lambda: pending_in(shared) == [0, 0], f"left: {pending_in(shared)}")


def test_a_callback_that_raises_harms_nobody(
    shared: sf.Store, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = shared.submit.flow_claim_due("raises", worker="w", block_ms=600_000)
    waiting.add_done_callback(_raise)
    shared.flow_create("raises0", type="raises")
    assert [job.id for job in waiting.get(timeout=SOON_S)] == ["raises0"]
    for number in range(1, 5):
        assert shared.flow_create(f"raises{number}", type="raises").version == 1
    eventually(lambda: "ZeroDivisionError" in caplog.text, "the callback's failure is not told")


def _raise() -> None:
    raise ZeroDivisionError


# Signals.


class Tick(BaseException):
    """Raised by a signal's handler, as KeyboardInterrupt is."""


@pytest.fixture
def _ticking() -> Iterator[None]:
    """Let SIGALRM raise, and give the timer back to whoever watches over the tests."""

    def tick(number: int, frame: Any) -> None:
        raise Tick

    handler = signal.signal(signal.SIGALRM, tick)
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


@pytest.mark.usefixtures("_ticking")
def test_interrupts_in_the_main_thread_leave_the_links_usable(shared: sf.Store) -> None:
    assert threading.current_thread() is threading.main_thread()
    shared.flow_create("read", type="read")
    others: list[BaseException] = []
    is_over = threading.Event()

    def read_on() -> None:
        while not is_over.is_set():
            try:
                shared.flow_get("read")
            except BaseException as error:
                others.append(error)
                return

    thread = threading.Thread(target=read_on)
    thread.start()
    try:
        for number in range(60):
            try:
                # Uneven, so that it falls into other steps each time.
                signal.setitimer(signal.ITIMER_REAL, 0.000_3 + (number * 37 % 101) / 100_000)
                while True:
                    shared.flow_get("read")
            except Tick:
                continue
        began_s = time.monotonic()
        assert shared.flow_get("read") is not None
        assert time.monotonic() - began_s < SOON_S
    finally:
        is_over.set()
        thread.join(SOON_S)
    assert others == []
    for link in links_of(shared):
        eventually(link.begin_lead, "nobody gives the link back")
        link.end_lead()


# Answers that are too large for a frame.


def test_values_beyond_one_answer_are_named_and_other_calls_go_on(path: Path) -> None:
    with sf.open(path, shards=1, timeout=10.0, durability="relaxed") as store:
        refs = [str(store.flow_value_put(bytes(15 * 2**20))) for _ in range(9)]
        (connection,) = [link.channel for link in links_of(store)]
        asked = store.submit.flow_value_mget(refs, max_bytes=2**24)
        for number in range(3):
            assert store.flow_create(f"f{number}", type="t").version == 1
        found = asked.get(timeout=10)
        assert len(found) == 9
        omitted = [value for value in found if isinstance(value, sf.OmittedValue)]
        assert [value.ref for value in omitted] == refs[6:]
        assert [len(value) for value in found[:6]] == [15 * 2**20] * 6
        assert [link.channel for link in links_of(store)] == [connection], "it was not lost"


def test_a_claim_of_more_than_one_answer_takes_delivers_every_flow(path: Path) -> None:
    with sf.open(path, shards=1, timeout=10.0, durability="relaxed") as store:
        for number in range(9):
            store.flow_create(f"f{number}", type="t", payload=bytes(15 * 2**20))
        jobs = store.flow_claim_due("t", worker="w", limit=9, payload_max_bytes=2**24)
        assert [job.id for job in jobs] == [f"f{number}" for number in range(9)]
        assert [job.payload_omitted for job in jobs] == [False] * 6 + [True] * 3
        assert store.flow_info("t")["leased"] == 9


# Starts.


def test_a_frozen_program_is_told_at_once_to_open_in_process(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    began_s = time.monotonic()
    with pytest.raises(sf.StoreConfigError, match="in_process=True"):
        sf.open(path, shards=2)
    assert time.monotonic() - began_s < SOON_S
    with sf.open(path, in_process=True) as store:
        assert store.flow_create("a", type="t").version == 1


@pytest.mark.parametrize("noise", ["print('hello')", "print('no end of line', end='', flush=True)"])
def test_start_up_code_that_prints_does_not_disturb_a_start(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: str
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(noise)
    monkeypatch.setenv("PYTHONPATH", str(site))
    with sf.open(path, shards=1, timeout=SOON_S) as store:
        assert store.flow_create("a", type="t").version == 1


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (b"", None),
        (b'{"pid": 1}\n', None),
        (REPORT_MARK + b'{"pid": 1}', None),
        (REPORT_MARK + b'{"pid": 1}\n', {"pid": 1}),
        (b"hello\n\n" + REPORT_MARK + b'{"pid": 1}\nmore', {"pid": 1}),
    ],
)
def test_only_the_marked_whole_line_is_a_report(output: bytes, told: Any) -> None:
    assert report_of(output) == told


# One owner.


def test_the_same_directory_by_a_link_is_locked_and_stays_the_first_stores(
    path: Path, tmp_path: Path
) -> None:
    code = "import sys, shardflow as sf; sf.open(sys.argv[1], in_process=True)"
    with sf.open(path, shards=1, in_process=True) as store:
        (tmp_path / "link").symlink_to(path)
        with pytest.raises(sf.StoreLocked) as caught:
            sf.open(tmp_path / "link", in_process=True)
        assert caught.value.pid == os.getpid()
        refused = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=30
        )
        assert f"owned by process {os.getpid()}" in refused.stderr
        assert (path / "OWNER").read_text().strip() == str(os.getpid())
        assert store.flow_create("a", type="t").version == 1
    with sf.open(tmp_path / "link", in_process=True) as again:
        assert again.flow_get("a") is not None


# Restarts.


def test_a_shard_that_is_started_again_has_the_current_time(path: Path) -> None:
    clock = ManualClock(1_000)
    with sf.open(path, shards=1, clock=clock, timeout=SOON_S) as store:
        store.flow_create("a", type="t", run_at_ms=5_000)
        clock.advance(10_000)
        (told,) = store.processes()
        os.kill(told["pid"], signal.SIGKILL)
        eventually(lambda: store.processes()[0]["pid"] != told["pid"], "it is not started again")
        info = store.flow_info("t")
        assert (info["ready"], info["scheduled"]) == (1, 0)
        assert store.flow_create("n", type="n").created_at_ms == 11_000
        assert [job.id for job in store.flow_claim_due("t", worker="w")] == ["a"]
