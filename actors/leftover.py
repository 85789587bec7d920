"""Shards that outlive their host: stopped, hung, or still reading back their log.

A shard that can run ends within a moment of its host's end. One that cannot keeps its directory
locked, and nobody could host the store. So who starts a shard for the directory's owner may end
the one before: only the owner starts shards, and there is one owner.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ..flow.host import DiskFiles, Files
from ..flow.limits import LEFTOVER_SECONDS_MAX, LOCK_SECONDS_MAX
from .directory import Directory
from .owner import has_open
from .small import FullDisk, overwrite_file

logger = logging.getLogger("shardflow.shard")

_RETRY_S = 0.02


def take_lock(files: Files, lock: Path, is_owner: Callable[[], bool]) -> bool:
    """Lock a shard's directory for this process; False if it cannot be had.

    `is_owner`: whether we still act for the owner of the whole directory.
    """
    started_s = time.monotonic()
    killed: set[int] = set()
    while not files.lock():
        waited_s = time.monotonic() - started_s
        if waited_s > LOCK_SECONDS_MAX:
            return False
        if waited_s > LEFTOVER_SECONDS_MAX:
            _end_leftover(lock, is_owner, killed)
        time.sleep(_RETRY_S)
    return True


def sign_lock(lock: Path) -> None:
    """Write into a lock that this process holds whom to end, should it be left over."""
    with contextlib.suppress(FullDisk):
        overwrite_file(lock, f"{os.getpid()}\n".encode())


def end_leftovers(directory: Directory) -> None:
    """Let a process take over all shards that is an application, and not to be ended by others."""
    for shard in range(directory.shards):
        files, lock = DiskFiles(directory.shard_path(shard)), directory.lock_path(shard)
        # What is wrong with a shard is found, and told, when it is recovered.
        with contextlib.suppress(OSError):
            if take_lock(files, lock, lambda: True):
                overwrite_file(lock, b"")
                files.unlock()


def _end_leftover(lock: Path, is_owner: Callable[[], bool], killed: set[int]) -> None:
    """Kill the process that the lock names, if it is what it is taken for."""
    pid = _signer(lock)
    if pid is None or pid in killed or not hasattr(os, "pidfd_open"):
        return
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            # In this order: the handle means one process for good, that process has the lock
            # open, and after it was named we still are the owner's. So it is not a later owner's.
            if has_open(pid, lock.stat()) and is_owner():
                killed.add(pid)
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                logger.warning("killed process %d: a former host's shard that kept %s", pid, lock)
        finally:
            os.close(handle)


def _signer(lock: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        pid = int(lock.read_text())
        return pid if pid > 1 and pid != os.getpid() else None
    return None
