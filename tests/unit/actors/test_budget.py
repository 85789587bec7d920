"""What memory there is to share: the machine's, or less of it in a cgroup."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from shardflow.actors.budget import present_bytes, share_of
from shardflow.flow.limits import RSS_SHARE_DEFAULT

MACHINE: int = psutil.virtual_memory().total
LIMIT = MACHINE // 4


@pytest.fixture
def membership(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    return tmp_path / "cgroups"


def put(file: Path, text: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def test_without_cgroups_it_is_the_machines(membership: Path, cgroups: Path) -> None:
    assert present_bytes(membership, cgroups) == MACHINE
    put(membership, "0::/user.slice")
    assert present_bytes(membership, cgroups) == MACHINE


@pytest.mark.parametrize("limit", ["max", 2 * MACHINE, 2**63 - 4096])
def test_what_is_no_limit_is_none(membership: Path, cgroups: Path, limit: object) -> None:
    put(membership, "0::/app")
    put(cgroups / "app" / "memory.max", limit)
    assert present_bytes(membership, cgroups) == MACHINE


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/", "memory.max"),
        ("0::/app/worker", "app/worker/memory.max"),
        ("0::/app/worker", "app/memory.max"),
        ("0::/seen/by/the/machine", "memory.max"),
        ("4:memory:/app", "memory/app/memory.limit_in_bytes"),
        ("4:cpu,memory:/seen/by/the/machine", "memory/memory.limit_in_bytes"),
    ],
)
def test_a_lower_limit_of_a_group_or_of_one_around_it_counts(
    membership: Path, cgroups: Path, line: str, file: str
) -> None:
    put(membership, f"9:name=systemd:/\n{line}\n3:cpuset:/app")
    put(cgroups / file, LIMIT)
    assert present_bytes(membership, cgroups) == LIMIT


def test_the_lowest_of_several_counts(membership: Path, cgroups: Path) -> None:
    put(membership, "0::/app/worker")
    put(cgroups / "app/worker/memory.max", 2 * LIMIT)
    put(cgroups / "app/memory.max", LIMIT)
    put(cgroups / "memory.max", 3 * LIMIT)
    assert present_bytes(membership, cgroups) == LIMIT


def test_another_groups_limit_does_not_count(membership: Path, cgroups: Path) -> None:
    put(membership, "0::/app")
    put(cgroups / "other/memory.max", LIMIT)
    put(cgroups.parent / "memory.max", LIMIT)
    assert present_bytes(membership, cgroups) == MACHINE


def test_each_shard_gets_its_share() -> None:
    assert share_of(1_000, 3) == 333
    assert share_of(1, 8) == 1
    assert share_of(None, 2) == int(present_bytes() * RSS_SHARE_DEFAULT) // 2
