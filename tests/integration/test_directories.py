"""What `open` says of a directory that is no store, or not this one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shardflow as sf

NOBODY = 65_534
STORE = {"shardflow": "store", "format": 1, "shards": 2}


@contextlib.contextmanager
def nobody_special() -> Iterator[None]:
    """Be an ordinary user for a while: to root, every directory is open."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


def describe(path: Path, text: str) -> None:
    path.mkdir()
    (path / "store.json").write_text(text)


def a_file(path: Path) -> None:
    path.write_text("a file")


def below_a_file(path: Path) -> None:
    path.parent.joinpath("file").write_text("a file")
    path.symlink_to("file/data")


def full_of_others(path: Path) -> None:
    path.mkdir()
    for name in ("letters", "photos", "taxes", "zebra"):
        (path / name).write_text("")


def _bytes(path: Path) -> None:
    describe(path, "")
    (path / "store.json").write_bytes(b"\xff\xfe\x00")


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file": (a_file, "cannot be a data directory"),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere/at/all"), "data directory"),
    "below a file": (below_a_file, "cannot be a data directory"),
    "other files": (full_of_others, "letters, photos, taxes, …"),
    "an empty description": (lambda path: describe(path, ""), "does not describe"),
    "a torn description": (lambda path: describe(path, '{"shardf'), "does not describe"),
    "a list": (lambda path: describe(path, "[1, 2]"), "does not describe"),
    "no format": (lambda path: describe(path, '{"shardflow": "store"}'), "does not describe"),
    "binary": (_bytes, "does not describe"),
    "another program's": (lambda path: describe(path, _but(shardflow="x")), "format"),
    "a later format": (lambda path: describe(path, _but(format=2)), "format 2"),
    "no shards": (lambda path: describe(path, _but(shards=0)), "names 0 shards"),
    "too many shards": (lambda path: describe(path, _but(shards=65)), "names 65 shards"),
    "shards as text": (lambda path: describe(path, _but(shards="2")), "names '2' shards"),
    "shards as truth": (lambda path: describe(path, _but(shards=True)), "names True shards"),
}


def _but(**fields: object) -> str:
    return json.dumps(STORE | fields)


def contents(path: Path) -> list[tuple[str, bytes]]:
    return sorted(
        (str(file.relative_to(path)), file.read_bytes())
        for file in path.rglob("*")
        if file.is_file()
    )


@pytest.mark.parametrize("in_process", [False, True], ids=["processes", "in-process"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_no_store_is_refused_and_left_as_it_was(
    tmp_path: Path, case: str, in_process: bool
) -> None:
    make, says = CASES[case]
    path = tmp_path / "data"
    make(path)
    before = contents(tmp_path)
    with pytest.raises(sf.StoreConfigError) as caught:
        sf.open(path, in_process=in_process)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert caught.value.path == str(path)
    assert caught.value.applied == "no"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("in_process", [False, True], ids=["processes", "in-process"])
def test_another_number_of_shards_is_refused_naming_the_path(
    tmp_path: Path, in_process: bool
) -> None:
    path = tmp_path / "data"
    sf.open(path, shards=2, in_process=in_process).close()
    with pytest.raises(sf.StoreConfigError, match="with 2 shards and cannot be opened with 3"):
        sf.open(path, shards=3, in_process=in_process)
    with sf.open(path, in_process=in_process) as store:
        assert store.shards == 2


def test_a_creation_that_was_cut_short_is_taken_up_again(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir()
    (path / "store.json.123.tmp").write_text('{"shardf')
    (path / "OWNER").write_text("")
    with sf.open(path, shards=1) as store:
        assert store.flow_create("a", type="t").version == 1


def test_missing_parents_are_made(tmp_path: Path) -> None:
    with sf.open(tmp_path / "a" / "b" / "c", shards=1, in_process=True) as store:
        assert store.flow_create("a", type="t").version == 1
    assert (tmp_path / "a" / "b" / "c").stat().st_mode & 0o777 == 0o700


# A store in a directory that only cannot be written itself has all that it needs.
@pytest.mark.parametrize(
    ("fresh", "mode"),
    [(True, 0o000), (True, 0o100), (True, 0o400), (True, 0o500), (False, 0o000), (False, 0o400)],
    ids=["0 empty", "0o100 empty", "0o400 empty", "0o500 empty", "0 a store", "0o400 a store"],
)
def test_a_directory_without_permission_is_refused(tmp_path: Path, mode: int, fresh: bool) -> None:
    path = tmp_path / "data"
    if fresh:
        path.mkdir()
    else:
        sf.open(path, shards=1, in_process=True).close()
    path.chmod(mode)
    try:
        with nobody_special(), pytest.raises(sf.StoreConfigError) as caught:
            sf.open(path, in_process=True)
        assert caught.value.path == str(path)
        assert str(path) in str(caught.value)
        assert "ermission" in str(caught.value)
    finally:
        path.chmod(0o700)
