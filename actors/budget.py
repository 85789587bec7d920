"""How much memory the shards of a store may hold: what there is to share, and each one's share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from ..flow.limits import RSS_SHARE_DEFAULT

_MEMBERSHIP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def share_of(max_rss_bytes: int | None, shards: int) -> int:
    """Return what one shard's process may hold; None = of what is taken by default."""
    if max_rss_bytes is None:
        max_rss_bytes = int(present_bytes() * RSS_SHARE_DEFAULT)
    return max(1, max_rss_bytes // shards)


def present_bytes(membership: Path = _MEMBERSHIP, cgroups: Path = _CGROUPS) -> int:
    """Return the memory that this process may count on: the machine's, or its cgroup's if less."""
    machine: int = psutil.virtual_memory().total
    return min([machine, *_limits(membership, cgroups)])


def _limits(membership: Path, cgroups: Path) -> Iterator[int]:
    """Yield every limit on the process's groups and those that they lie in."""
    for file in _limit_files(membership, cgroups):
        # "max" is no limit. Version 1 says a number beyond all memory instead.
        with contextlib.suppress(OSError, ValueError):
            yield int(file.read_text())


def _limit_files(membership: Path, cgroups: Path) -> Iterator[Path]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the machine's, of which only the mounted part is seen:
        # the folders that are not there are passed over, down to the container's own.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            yield folder / name
            if folder == root:
                break
