"""Section 2: `default_store`, in a process of its own, where no other test's store is open."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HEAD = """
import sys
import shardflow as sf

def refused():
    try:
        sf.default_store()
    except sf.FlowError as error:
        return str(error)
    raise AssertionError("not refused")

def open_one(name):
    return sf.open(f"{sys.argv[1]}/{name}", shards=1, in_process=True)
"""


def run(path: Path, body: str) -> str:
    """Run a script that ends with a print and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + body, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_an_open_store_there_is_no_default(tmp_path: Path) -> None:
    told = run(tmp_path, "print(refused())")
    assert re.search(r"\b(0|no|none)\b", told, re.IGNORECASE)


def test_the_one_open_store_is_the_default(tmp_path: Path) -> None:
    body = """
store = open_one("a")
found = sf.default_store()
found.flow_create("f", type="t")
print(found is store, store.flow_get("f") is not None)
store.close()
"""
    assert run(tmp_path, body) == "True True"


def test_of_two_open_stores_none_is_the_default_and_the_error_counts_them(
    tmp_path: Path,
) -> None:
    body = """
first, second = open_one("a"), open_one("b")
print(refused().replace(sys.argv[1], ""))
first.close()
second.close()
"""
    assert re.search(r"\b(2|two)\b", run(tmp_path, body), re.IGNORECASE)


def test_a_closed_store_does_not_count(tmp_path: Path) -> None:
    body = """
first, second = open_one("a"), open_one("b")
first.close()
print(sf.default_store() is second)
second.close()
refused()
"""
    assert run(tmp_path, body) == "True"
