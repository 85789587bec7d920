"""Programs of all kinds open stores: how they are started, forked, interrupted and ended."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pykka
import pytest

import shardflow as sf
from support.processes import Program, eventually, is_running, paused, running

PROGRAM = """
import os, sys
import shardflow as sf
print("main runs", flush=True)
store = sf.open(sys.argv[1], shards=2)
for number in range(4):
    store.flow_create(f"f{number}", type="t", payload=number)
jobs = store.flow_claim_due("t", worker="w", limit=4)
print("claimed", sorted(job.payload for job in jobs), flush=True)
store.close()
print("end", flush=True)
"""
SAID = ["main runs", "claimed [0, 1, 2, 3]", "end"]

HOST = """
import sys
import shardflow as sf
store = sf.open(sys.argv[1], shards=2)
store.flow_create("a", type="t")
print("shards", *[told["pid"] for told in store.processes()], flush=True)
"""
"""What a program does before whatever a test is about."""


@pytest.fixture
def errors(tmp_path: Path) -> Path:
    return tmp_path / "stderr"


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert [process for process in left if is_running(process.pid)] == []


def script(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "program.py"
    file.write_text(text)
    return file


def pids_of(host: Program) -> list[int]:
    return [int(pid) for pid in host.wait_for_line("shards ").split()]


def assert_gone(pids: list[int]) -> None:
    eventually(lambda: not any(map(is_running, pids)), f"{pids} outlive their host", 10)


def assert_whole(path: Path, *flow_ids: str) -> None:
    """Open the directory, which nobody may have cleaned, and find these flows in it."""
    with sf.open(path) as store:
        for flow_id in flow_ids:
            assert store.flow_get(flow_id) is not None
        assert [told["problems"] for told in store.stats(check=True)] == [[]] * store.shards


# Where a program may come from.


def test_a_script_without_a_main_guard_runs_once(path: Path, tmp_path: Path, errors: Path) -> None:
    with running(script(tmp_path, PROGRAM), path, stderr=errors) as program:
        assert program.wait() == 0, program.stderr
        assert program.lines() == SAID
    assert errors.read_text() == ""
    assert_whole(path, "f0", "f3")


def test_a_program_from_stdin_may_open_a_store(path: Path, errors: Path) -> None:
    with running("-", path, stderr=errors, stdin=PROGRAM) as program:
        assert program.wait() == 0, program.stderr
        assert program.lines() == SAID


def test_a_program_from_the_command_line_may_open_a_store(path: Path, errors: Path) -> None:
    with running("-c", PROGRAM, path, stderr=errors) as program:
        assert program.wait() == 0, program.stderr
        assert program.lines() == SAID


def test_a_program_run_as_a_module_may_open_a_store(
    path: Path, tmp_path: Path, errors: Path
) -> None:
    script(tmp_path / "somewhere", PROGRAM)
    with running("-m", "program", path, stderr=errors, cwd=tmp_path / "somewhere") as program:
        assert program.wait() == 0, program.stderr
        assert program.lines() == SAID


@pytest.mark.parametrize("option", ["-I", "-P", "-O", "-Werror", "-Xdev"])
def test_an_interpreter_with_options_may_open_a_store(
    path: Path, tmp_path: Path, errors: Path, option: str
) -> None:
    with running(option, script(tmp_path, PROGRAM), path, stderr=errors) as program:
        assert program.wait() == 0, program.stderr
        assert program.lines() == SAID


def test_names_with_spaces_and_long_paths_are_paths(tmp_path: Path, errors: Path) -> None:
    # 108 bytes is what a Unix socket's address can hold.
    folder = tmp_path / "a folder with spaces, an é and a 'quote'"
    path = folder / ("long" * 20) / ("longer" * 20)
    assert len(os.fsencode(path)) > 200
    with running(script(folder, PROGRAM), path, stderr=errors, cwd=folder) as program:
        assert program.wait() == 0, program.stderr
        assert program.lines() == SAID
    assert_whole(path, "f0", "f3")


def test_a_relative_path_means_the_directory_of_that_moment(tmp_path: Path, errors: Path) -> None:
    (tmp_path / "other").mkdir()
    text = PROGRAM.replace("jobs =", 'os.chdir("other"); jobs =')
    with running(script(tmp_path, text), "data", stderr=errors, cwd=tmp_path) as program:
        assert program.wait() == 0, program.stderr
        assert program.lines() == SAID
    assert_whole(tmp_path / "data", "f0", "f3")


def test_a_shard_imports_nothing_from_beside_the_program(
    path: Path, tmp_path: Path, errors: Path
) -> None:
    # Names of our own rooms and files, of which a user's program knows nothing.
    for name in ("actors", "flow", "sdk", "process", "shard", "wire", "service", "limits", "host"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('imported the wrong {name}')")
    with running(script(tmp_path, PROGRAM), path, stderr=errors, cwd=tmp_path) as program:
        assert program.wait() == 0, program.stderr
        assert program.lines() == SAID


def test_a_shard_starts_whatever_the_program_has_put_on_its_path(
    path: Path, tmp_path: Path, errors: Path
) -> None:
    traps = tmp_path / "traps"
    traps.mkdir()
    for name in ("queue", "json", "socket", "selectors", "msgspec", "pykka"):
        (traps / f"{name}.py").write_text(f"raise RuntimeError('imported the wrong {name}')")
    text = PROGRAM.replace(
        'print("main runs"', f'sys.path.insert(0, {str(traps)!r}); print("main runs"'
    )
    with running(script(tmp_path, text), path, stderr=errors) as program:
        assert program.wait() == 0, program.stderr
        assert program.lines() == SAID


# Threads and event loops.


def test_a_store_opened_in_a_thread_serves_all_threads(path: Path) -> None:
    opened: list[sf.Store] = []
    thread = threading.Thread(target=lambda: opened.append(sf.open(path, shards=2)))
    thread.start()
    thread.join()
    with opened[0] as store:

        def work(number: int) -> None:
            for part in range(20):
                store.flow_create(f"{number}-{part}", type="t", partition_key=f"p{number}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.flow_list("t", count=1_000)) == 100


def test_a_store_serves_an_asyncio_program(path: Path) -> None:
    async def program() -> None:
        with sf.open(path, shards=2) as store:
            made = await asyncio.gather(
                *(store.aio.flow_create(f"f{number}", type="t") for number in range(50))
            )
            assert [record.version for record in made] == [1] * 50
            waiting = asyncio.ensure_future(
                store.aio.flow_claim_due("none", worker="w", block_ms=60_000)
            )
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            # The loop is not held up by a call that waits.
            late = asyncio.ensure_future(
                store.aio.flow_claim_due("late", worker="w", block_ms=60_000)
            )
            await store.aio.flow_create("late", type="late")
            assert [job.id for job in await late] == ["late"]

    asyncio.run(program())


def test_a_loop_that_ended_before_an_answer_harms_nobody(path: Path) -> None:
    with sf.open(path, shards=2) as store:

        async def leave_early() -> None:
            for number in range(20):
                asyncio.ensure_future(store.aio.flow_create(f"f{number}", type="t"))  # noqa: RUF006
            await asyncio.sleep(0)

        asyncio.run(leave_early())
        assert store.flow_create("a", type="t").version == 1


# Forks. Each is a program of its own: the test's process has threads that a fork would lose.


def test_a_forked_child_is_told_to_open_the_store_again(
    path: Path, tmp_path: Path, errors: Path
) -> None:
    text = HOST + (
        """
import multiprocessing, os

def child(own):
    for use in (lambda: store.flow_get("a"), lambda: store.submit.flow_create("b", type="t")):
        try:
            use()
        except sf.StoreClosed as error:
            print("child", error, flush=True)
    try:
        sf.open(sys.argv[1], role="host")
    except sf.StoreLocked as error:
        print("locked by parent", error.pid == os.getppid(), flush=True)
    with sf.open(own, shards=1) as mine:
        print("own store", mine.flow_create("a", type="t").version, flush=True)

process = multiprocessing.get_context("fork").Process(target=child, args=(sys.argv[2],))
process.start()
process.join()
print("exit code", process.exitcode, flush=True)
print("parent", store.flow_get("a").id, store.flow_create("b", type="t").version, flush=True)
store.close()
"""
    )
    arguments = (script(tmp_path, text), path, tmp_path / "own")
    with running(*arguments, stderr=errors) as program:
        assert program.wait() == 0, program.stderr
        _, first, second, *others = program.lines()
    for line in (first, second):
        assert f"opened by process {program.pid}" in line
        assert "after a fork" in line
    assert others == ["locked by parent True", "own store 1", "exit code 0", "parent a 1"]
    assert_whole(path, "a", "b")
    assert_whole(tmp_path / "own", "a")


@pytest.mark.parametrize("in_process", [False, True], ids=["processes", "in-process"])
def test_a_forked_child_that_closes_the_store_leaves_it_open_for_its_parent(
    path: Path, tmp_path: Path, errors: Path, in_process: bool
) -> None:
    text = f"""
import os, sys
import shardflow as sf
with sf.open(sys.argv[1], shards=2, in_process={in_process}) as store:
    store.flow_create("before", type="t")
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(ready, 1)
        store.close()
        store.close(timeout=1)
        sys.exit(0)
    store.flow_create("between", type="t")
    os.write(go, b"!")
    assert os.waitpid(pid, 0)[1] == 0
    store.flow_create("after", type="t")
    print([store.flow_get(name).id for name in ("before", "between", "after")], flush=True)
with sf.open(sys.argv[1], in_process={in_process}) as store:
    print([store.flow_get(name).id for name in ("before", "between", "after")], flush=True)
"""
    with running(script(tmp_path, text), path, stderr=errors) as program:
        assert program.wait() == 0, program.stderr
        assert program.lines() == ["['before', 'between', 'after']"] * 2
    assert_whole(path, "before", "between", "after")


@pytest.mark.parametrize("in_process", [False, True], ids=["processes", "in-process"])
def test_a_store_closes_and_opens_while_a_forked_child_lives_on(
    path: Path, tmp_path: Path, errors: Path, in_process: bool
) -> None:
    # The child has a copy of every descriptor: of the shards' lifelines, and of locks.
    text = f"""
import os, signal, sys, time
import shardflow as sf
store = sf.open(sys.argv[1], shards=2, in_process={in_process})
store.flow_create("a", type="t")
pid = os.fork()
if pid == 0:
    signal.pause()
started = time.monotonic()
store.close()
with sf.open(sys.argv[1], in_process={in_process}) as store:
    print(store.flow_get("a").id, time.monotonic() - started < 15, flush=True)
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
"""
    with running(script(tmp_path, text), path, stderr=errors) as program:
        assert program.wait() == 0, program.stderr
        assert program.lines() == ["a True"]
        assert "killed" not in program.stderr


def test_shards_end_with_their_host_although_its_forked_child_lives_on(
    path: Path, tmp_path: Path, errors: Path
) -> None:
    text = HOST + (
        """
import os, signal
if os.fork() == 0:
    print("child", os.getpid(), flush=True)
signal.pause()
"""
    )
    with running(script(tmp_path, text), path, stderr=errors) as host:
        pids = pids_of(host)
        child = int(host.wait_for_line("child "))
        try:
            os.kill(host.pid, signal.SIGKILL)
            assert_gone(pids)
            assert is_running(child)
            assert_whole(path, "a")
        finally:
            os.kill(child, signal.SIGKILL)


# One owner at a time.


def test_a_store_is_opened_once_in_a_process_under_whatever_name(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    names: list[Path | str] = [
        path,
        str(path),
        "data",
        tmp_path / "link",
        path / ".." / "data",
        f"{path}/",
    ]
    with sf.open(path, shards=1) as store:
        for name in names:
            with pytest.raises(sf.StoreLocked) as caught:
                sf.open(name, role="host")
            assert caught.value.pid == os.getpid()
            assert caught.value.applied == "no"
        assert store.flow_create("a", type="t").version == 1
        # The refusals have not given the directory to others.
        code = f"import shardflow as sf; sf.open({str(path)!r}, role='host')"
        refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"owned by process {os.getpid()}" in refused.stderr
    for name in names:
        sf.open(name, role="host").close()


def test_a_second_process_is_told_who_owns_the_store(path: Path, errors: Path) -> None:
    with running("-c", HOST + "sys.stdin.read()", path, stderr=errors) as host:
        pids_of(host)
        for in_process in (False, True):
            with pytest.raises(sf.StoreLocked) as caught:
                sf.open(path, role="host", in_process=in_process)
            assert caught.value.pid == host.pid
            assert str(host.pid) in str(caught.value)
            assert str(path) in str(caught.value)
            again = pickle.loads(pickle.dumps(caught.value))
            assert (type(again), again.pid, str(again)) == (
                sf.StoreLocked,
                host.pid,
                str(caught.value),
            )
        assert host.process.stdin is not None
        host.process.stdin.close()
        assert host.wait() == 0
    assert_whole(path, "a")


def test_a_directory_is_opened_with_and_without_processes_in_turn(path: Path) -> None:
    for number in range(4):
        with sf.open(path, shards=2, in_process=number % 2 == 0) as store:
            store.flow_create(f"f{number}", type="t")
            assert len(store.flow_list("t")) == number + 1


# Ends.


def test_ctrl_c_is_the_hosts_to_answer(path: Path, tmp_path: Path, errors: Path) -> None:
    # What is started in the background has it ignored.
    text = HOST + (
        """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    store.flow_claim_due("none", worker="w", block_ms=600_000)
except KeyboardInterrupt:
    print("interrupted", store.flow_create("b", type="t").version, flush=True)
    print("waits again", store.flow_claim_due("none", worker="w", block_ms=1), flush=True)
    store.close()
print("closed", flush=True)
"""
    )
    with running(script(tmp_path, text), path, stderr=errors, start_new_session=True) as host:
        pids = pids_of(host)
        eventually(lambda: _is_blocked(host.pid), "the host does not wait")
        os.killpg(host.pid, signal.SIGINT)
        for pid in pids:
            os.kill(pid, signal.SIGINT)  # as a terminal would that knows no sessions
        assert host.wait() == 0, host.stderr
        assert host.lines()[1:] == ["interrupted 1", "waits again []", "closed"]
        assert "died" not in host.stderr
    assert_gone(pids)
    assert_whole(path, "a", "b")


def _is_blocked(pid: int) -> bool:
    """Whether the main thread of a program sleeps in the kernel and has used no time lately."""
    process = psutil.Process(pid)
    before = process.cpu_times()
    time.sleep(0.1)
    return process.cpu_times() == before and process.status() == psutil.STATUS_SLEEPING


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("import os; os._exit(4)", 4),
        ("raise ZeroDivisionError", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os; os.abort()", -signal.SIGABRT),
    ],
)
def test_shards_end_with_their_host_however_that_ends(
    path: Path, errors: Path, end: str, code: int
) -> None:
    with running("-c", f"{HOST}\n{end}", path, stderr=errors) as host:
        assert host.wait() == code, host.stderr
        assert_gone(pids_of(host))
        assert "shardflow" not in host.stderr
    assert_whole(path, "a")


def test_twenty_openings_leave_nothing_behind(path: Path) -> None:
    def left() -> tuple[int, int, int, int]:
        gc.collect()
        me = psutil.Process()
        return (
            me.num_fds(),
            threading.active_count(),
            len(me.children(recursive=True)),
            len(pykka.ActorRegistry.get_all()),
        )

    sf.open(path, shards=2).close()
    before = left()
    for number in range(20):
        with sf.open(path, in_process=number % 4 == 3) as store:
            store.flow_create(f"f{number}", type="t")
    eventually(lambda: left() == before, f"{before} became {left()}")


def test_openings_that_fail_leave_nothing_behind(path: Path) -> None:
    with sf.open(path, shards=1) as store:
        for number in range(5):
            store.flow_create(f"f{number}", type="t")
    log = next((path / "shard-0").glob("*.log"))
    whole = log.read_bytes()
    log.write_bytes(whole[:20] + b"damage" + whole[26:])

    def left() -> tuple[int, int, int]:
        return (
            psutil.Process().num_fds(),
            threading.active_count(),
            len(pykka.ActorRegistry.get_all()),
        )

    before = left()
    for in_process in (False, True) * 3:
        with pytest.raises(sf.CorruptLog):
            sf.open(path, in_process=in_process)
    eventually(lambda: left() == before, f"{before} became {left()}")
    log.write_bytes(whole)
    assert_whole(path, "f0", "f4")


def test_closing_answers_calls_in_flight(path: Path) -> None:
    store = sf.open(path, shards=2)
    waiting = [
        store.submit.flow_claim_due("t", worker="w", block_ms=600_000, partition_key=key)
        for key in (None, "p", "q")
    ]
    pids = [told["pid"] for told in store.processes()]
    store.close()
    assert_gone(pids)
    for future in waiting:
        with pytest.raises((sf.StoreClosed, sf.OutcomeUnknown)):
            future.get(timeout=10)
    store.close()
    with pytest.raises(sf.StoreClosed):
        store.flow_get("a")
    with pytest.raises(sf.StoreClosed):
        store.submit.flow_get("a")


def test_closing_kills_a_shard_that_does_not_end_in_time(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = sf.open(path, shards=2)
    store.flow_create("a", type="t")
    pids = [told["pid"] for told in store.processes()]
    with paused(pids[0]):
        store.close(timeout=0.2)
        assert_gone(pids)
    assert "did not end in time" in caplog.text
    assert_whole(path, "a")
