"""SIGKILL at each point of a fan-out and of what follows it: all or nothing, and true counters.

The points are those of docs/two-phase.md; each is come to by counting messages, not by luck. The
host is killed, and this process opens the store; or a shard is killed, and the host goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf
from support.killing import SENT, SHARDS, Point, Scene, problems_of
from support.processes import WAIT_S, Program, eventually, is_running, running

SCRIPT = Path(__file__).with_name("fanout_host.py")
TESTS = Path(__file__).parents[1]

POINTS = [
    ("spawn", "SpawnBegin", 0),
    # Begun, and prepared on no child shard, on the first, the middle and the last one as well.
    *(("spawn", "Prepare", number) for number in range(SHARDS)),
    ("spawn", "SpawnDecide", SENT),
    # Decided, and committed on none, on the first, the middle and the last one as well.
    *(("spawn", "Commit", number) for number in range(SHARDS)),
    *(("refuse", "Abort", number) for number in (0, 1, SHARDS - 1)),
    # Between the end of a child and the parent's counting of it, and after that.
    *(("end", "ChildEnded", number) for number in (0, 1)),
    *(("cancel", "CancelChildren", number) for number in (0, 1, SHARDS - 1)),
]
BRIEF = [point for point in POINTS if point[1] != "SpawnBegin" and point[2] in (SENT, 1)]


def start(path: Path, points: Sequence[Point]) -> Any:
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    arguments = (SCRIPT, path / "data", json.dumps(points))
    return running(*arguments, stderr=path / "stderr", env=environment)


def _are_gone(pids: list[int]) -> bool:
    return not any(map(is_running, pids))


def told_by(host: Program) -> list[dict[str, Any]]:
    return [json.loads(line) for line in host.lines()]


def test_a_host_that_is_killed_at_any_point_leaves_all_or_nothing(tmp_path: Path) -> None:
    points = [Point(*fields) for fields in POINTS]
    for point in points:
        started_s = time.monotonic()
        with start(tmp_path, [point]) as host:
            assert host.wait() == -9, f"{point.name}: {host.lines()}, {host.stderr}"
            shards = told_by(host)[0]["shards"]
        eventually(partial(_are_gone, shards), "the shards end", 10)
        with sf.open(tmp_path / "data", in_process=True) as store:
            Scene(store, point).check(None)
            assert problems_of(store) == []
        print(f"{point.name}: {time.monotonic() - started_s:.1f} s")
    # And once more in processes of their own: nothing is left to be done.
    with sf.open(tmp_path / "data") as store:
        assert problems_of(store) == []
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said, said


@pytest.mark.parametrize(
    ("victim", "fields"), [("addressee", POINTS), ("coordinator", POINTS), ("shards", BRIEF)]
)
def test_shards_that_are_killed_at_any_point_come_back_to_all_or_nothing(
    tmp_path: Path, victim: str, fields: list[tuple[str, str, int]]
) -> None:
    points = [Point(*given, victim) for given in fields]
    with start(tmp_path, points) as host:
        code = host.process.wait(WAIT_S + 3 * len(points))
        host.wait()
        lines = told_by(host)
        for line in lines:
            print(line)
        assert code == 0, host.stderr
    assert [line["point"] for line in lines[1:-1]] == [point.name for point in points]
    assert lines[-1] == {"problems": []}
    with sf.open(tmp_path / "data", in_process=True) as store:
        assert problems_of(store) == []
    assert "Traceback" not in (tmp_path / "stderr").read_text()
