"""Which part a process takes when it opens a directory: host its store, or attach to the host."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from ..flow.errors import StoreLocked, StoreNotRunning
from ..flow.limits import START_SECONDS_MAX
from .directory import Directory, is_made, open_directory
from .notices import HostFacts
from .owner import Owner

Role = Literal["auto", "host", "attach"]

_POLL_S = 0.02


def take_role(
    path: Path, role: Role, shards: int | None, default_shards: int, *, may_attach: bool
) -> tuple[Directory, HostFacts | None]:
    """Lock the directory for this process, or find its host: (directory, what the host tells).

    None instead of facts: this process owns the directory from now on. A directory in which
    nothing is becomes a store. Waits for a host that is just starting, and looks again when it
    ends meanwhile.

    Raises:
        StoreLocked: it may not be attached to, and another process, or this one, is the owner.
        StoreNotRunning: it is only to be attached to, and nobody is the owner.
        StoreConfigError: the path is something else, another version, or has other shards.
    """
    owner = Owner(path)
    deadline_s = time.monotonic() + START_SECONDS_MAX
    while True:
        if role == "attach":
            if not owner.is_held:
                raise StoreNotRunning(
                    f'no process hosts {path}: open it with role="auto" or role="host"',
                    path=str(path),
                )
        else:
            try:
                directory = open_directory(path, shards, default_shards)
                directory.owner.lock()
                return directory, None
            except StoreLocked:
                if role == "host" or not may_attach or owner.is_own:
                    raise
        if is_made(path):
            directory = open_directory(path, shards, default_shards)
            facts = directory.host()
            if facts is not None:
                return directory, facts
        if time.monotonic() > deadline_s:
            raise StoreLocked(
                f"{path} is owned by a process that has not begun to host it in "
                f"{START_SECONDS_MAX} seconds: end that process",
                path=str(path),
            )
        time.sleep(_POLL_S)
