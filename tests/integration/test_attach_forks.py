"""Forks and attaching: a child opens the store for itself, and holds on to nothing of its parent's.

Each is a program of its own: the test's process has threads that a fork would lose.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import shardflow as sf
from support.processes import Program, eventually, is_running, running

HEAD = """
import os, signal, sys, threading, time
import shardflow as sf

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def sockets_of(store):
    return {os.fstat(link.channel.fileno()).st_ino for link in store.port._router.links}

def own_sockets():
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            found.add(os.fstat(fd).st_ino)
        except OSError:
            pass
    return found
"""


def owner_of(path: Path) -> int:
    """Return the pid that a store's owner has left; 0 while there is none."""
    return int((path / "OWNER").read_text() or 0)


@contextlib.contextmanager
def program(text: str, path: Path, stderr: Path) -> Iterator[Program]:
    """Run a program that may fork; its children are killed as well."""
    with running("-c", HEAD + text, path, stderr=stderr, start_new_session=True) as found:
        try:
            yield found
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(found.pid, signal.SIGKILL)


def test_a_child_of_the_host_opens_the_store_and_is_attached(path: Path, tmp_path: Path) -> None:
    text = """
store = sf.open(sys.argv[1], shards=2)
store.flow_create("a", type="t")
if (pid := os.fork()) == 0:
    try:
        store.flow_get("a")
    except sf.StoreClosed:
        say("closed")
    with sf.open(sys.argv[1]) as mine:
        say(mine.role, mine.flow_get("a").id, mine.flow_create("b", type="t").version)
    store.close()
    os._exit(0)
say("exit", os.waitpid(pid, 0)[1])
say(store.role, store.flow_get("b").id)
store.close()
"""
    with program(text, path, tmp_path / "stderr") as found:
        assert found.wait() == 0, found.stderr
        assert found.lines() == ["closed", "attached a 1", "exit 0", "host b"]
        assert "Traceback" not in found.stderr


def test_a_child_of_an_attached_process_attaches_for_itself(path: Path, tmp_path: Path) -> None:
    text = """
store = sf.open(sys.argv[1])
inherited = sockets_of(store)
if (pid := os.fork()) == 0:
    say("kept", len(inherited & own_sockets()))
    with sf.open(sys.argv[1]) as mine:
        say(mine.role, mine.flow_get("a").id)
    os._exit(0)
say("exit", os.waitpid(pid, 0)[1])
say(store.role, store.flow_create("b", type="t").version, len(inherited & own_sockets()))
store.close()
"""
    with sf.open(path, shards=2) as store:
        store.flow_create("a", type="t")
        with program(text, path, tmp_path / "stderr") as found:
            assert found.wait() == 0, found.stderr
            assert found.lines() == ["kept 0", "attached a", "exit 0", "attached 1 2"]


def test_a_child_that_was_forked_takes_over_from_its_parent(path: Path, tmp_path: Path) -> None:
    text = """
store = sf.open(sys.argv[1], shards=2)
store.flow_create("a", type="t")
if os.fork() == 0:
    mine = sf.open(sys.argv[1])
    say("child", os.getpid(), mine.role)
    while mine.role != "host":
        time.sleep(0.01)
    while not all(mine.processes()):
        time.sleep(0.01)
    mine.flow_create("b", type="t", idempotent=True)
    say("took over", mine.flow_get("a").id)
    signal.pause()
say("shards", *[told["pid"] for told in store.processes()])
signal.pause()
"""
    with program(text, path, tmp_path / "stderr") as found:
        child, role = found.wait_for_line("child ").split()
        assert role == "attached"
        shards = [int(pid) for pid in found.wait_for_line("shards ").split()]
        os.kill(found.pid, signal.SIGKILL)
        assert found.wait_for_line("took over ") == "a"
        eventually(lambda: not any(map(is_running, shards)), "the old shards stay")
        assert (path / "OWNER").read_text().strip() == child
        with sf.open(path) as store:
            assert store.role == "attached"
            assert store.flow_get("b") is not None
        os.kill(int(child), signal.SIGKILL)


def test_workers_that_were_forked_before_opening_share_a_store(path: Path, tmp_path: Path) -> None:
    text = """
def work(number):
    store = sf.open(sys.argv[1], shards=2)
    store.flow_create(f"f{number}", type="t")
    say("worker", os.getpid(), store.role)
    sys.stdin.readline()
    while True:
        try:
            store.flow_create(f"g{number}", type="t", idempotent=True)
        except sf.OutcomeUnknown:
            continue
        break
    say("again", os.getpid(), store.role)
    signal.pause()

for number in range(4):
    if os.fork() == 0:
        work(number)
signal.pause()
"""
    with program(text, path, tmp_path / "stderr") as found:
        started = found.wait_for(lambda lines: lines[3:] and list(lines), "not all four open it")
        workers = {int(pid): role for _, pid, role in map(str.split, started)}
        assert sorted(workers.values()) == ["attached"] * 3 + ["host"]
        (host,) = [pid for pid, role in workers.items() if role == "host"]
        os.kill(host, signal.SIGKILL)
        assert found.process.stdin is not None
        for _ in range(3):
            found.say("")
        found.process.stdin.close()
        lines = found.wait_for(lambda lines: lines[6:] and lines[4:], "not all three go on")
        again = {int(pid): role for _, pid, role in map(str.split, lines)}
        assert again.keys() == workers.keys() - {host}
        # The former host's shards may have answered all three before they ended.
        eventually(lambda: owner_of(path) in again, "none of them takes over")
        with sf.open(path) as store:
            assert store.role == "attached"
            assert len(store.flow_list("t")) == 7


def test_a_child_does_not_keep_the_shards_of_a_killed_process_locked(
    path: Path, tmp_path: Path
) -> None:
    text = """
store = sf.open(sys.argv[1], shards=2, in_process=True)
store.flow_create("a", type="t")
if os.fork() == 0:
    say("child", os.getpid())
    signal.pause()
signal.pause()
"""
    with program(text, path, tmp_path / "stderr") as found:
        child = int(found.wait_for_line("child "))
        os.kill(found.pid, signal.SIGKILL)
        found.process.wait(20)
        for in_process in (True, False):
            with sf.open(path, in_process=in_process) as store:
                assert store.flow_get("a") is not None
        assert is_running(child)
        os.kill(child, signal.SIGKILL)
