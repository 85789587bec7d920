"""Who owns a directory: locks that the kernel keeps, seen from this process and from another."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardflow.actors.owner import Owner
from shardflow.flow.errors import StoreLocked


def in_a_child(work: Callable[[], Any]) -> Any:
    """Do something in a forked process, and return what it returned."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(theirs, pickle.dumps(work()))
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        found = pickle.load(answer)
    os.waitpid(pid, 0)
    return found


def seen(owner: Owner) -> tuple[bool, bool]:
    return owner.is_held, owner.is_published


def test_nobody_owns_a_directory_until_somebody_does(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    assert seen(owner) == (False, False)
    assert not (tmp_path / "OWNER").exists(), "a question leaves no trace"
    owner.lock()
    assert (tmp_path / "OWNER").read_text() == f"{os.getpid()}\n"
    assert (owner.is_own, owner.is_held) == (True, True)
    owner.unlock()
    owner.unlock()
    assert seen(owner) == (False, False)
    assert (tmp_path / "OWNER").read_text().strip() == ""


def test_another_process_sees_who_owns_it_and_whether_it_may_attach(tmp_path: Path) -> None:
    owner = Owner(tmp_path)

    def look() -> Any:
        other = Owner(tmp_path)
        try:
            other.lock()
        except StoreLocked as error:
            return seen(other), other.is_own, error.pid
        return None

    owner.lock()
    assert in_a_child(look) == ((True, False), False, os.getpid())
    owner.publish()
    assert in_a_child(look) == ((True, True), False, os.getpid())
    owner.unlock()
    assert in_a_child(look) is None
    assert seen(owner) == (False, False), "it went with the child that had it"


def test_the_pid_is_the_kernels_word_not_the_files(tmp_path: Path) -> None:
    def holder_and_look() -> Any:
        mine = Owner(tmp_path)
        mine.lock()
        os.pwrite(mine._fd, b"77\n", 0)
        os.ftruncate(mine._fd, 3)

        def look() -> Any:
            try:
                Owner(tmp_path).lock()
            except StoreLocked as error:
                return error.pid
            return None

        return in_a_child(look), os.getpid()

    told, real = in_a_child(holder_and_look)
    assert told == real


def test_looking_does_not_give_an_own_lock_up(tmp_path: Path) -> None:
    owner, second = Owner(tmp_path), Owner(tmp_path / ".." / tmp_path.name)
    owner.lock()
    with pytest.raises(StoreLocked, match="open in this process") as caught:
        second.lock()
    assert caught.value.pid == os.getpid()
    assert seen(second) == (True, True)
    second.unlock()
    assert in_a_child(lambda: Owner(tmp_path).is_held)
    owner.unlock()


def test_a_forked_child_neither_owns_nor_gives_up_what_its_parent_has(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    owner.lock()
    owner.publish()

    def meddle() -> Any:
        is_own = owner.is_own
        owner.unlock()
        return is_own, seen(Owner(tmp_path))

    assert in_a_child(meddle) == (False, (True, True))
    assert in_a_child(lambda: seen(Owner(tmp_path))) == (True, True)
    owner.unlock()


def test_one_of_many_gets_it(tmp_path: Path) -> None:
    def race() -> Any:
        try:
            Owner(tmp_path).lock()
        except StoreLocked:
            return 0
        return 1

    owner = Owner(tmp_path)
    owner.lock()
    assert [in_a_child(race) for _ in range(3)] == [0, 0, 0]
    owner.unlock()
    assert in_a_child(race) == 1


def test_an_owner_that_loses_its_lock_is_still_the_owner(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    owner.lock()
    owner.publish()
    (tmp_path / "OWNER").read_text()  # closes a descriptor of it: the kernel drops the locks

    def look() -> Any:
        other = Owner(tmp_path)
        try:
            other.lock()
        except StoreLocked as error:
            return seen(other), error.pid
        return None

    assert in_a_child(look) == ((True, True), os.getpid())
    owner.unlock()
    assert in_a_child(look) is None


def test_a_name_that_was_left_in_the_file_owns_nothing(tmp_path: Path) -> None:
    for pid in (os.getppid(), 2**22 + 1, 0, -1):
        (tmp_path / "OWNER").write_text(f"{pid}\n")
        owner = Owner(tmp_path)
        assert seen(owner) == (False, False)
        owner.lock()
        owner.unlock()
