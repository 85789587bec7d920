"""Small files that are written again and again, also on a full disk: over in place."""

from __future__ import annotations

import os
from pathlib import Path

from ..flow import beside
from ..flow.errors import OUT_OF_SPACE


class FullDisk(OSError):
    """There is no room even for a few bytes."""


def overwrite(fd: int, data: bytes) -> None:
    """Write over an open file.

    Raises:
        FullDisk: it was empty, and the disk is full.
    """
    try:
        beside.overwrite(fd, data)
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise FullDisk(*error.args) from error
        raise


def overwrite_file(path: Path, data: bytes) -> None:
    """Write over a file, made where there is none.

    Raises:
        FullDisk: it was empty, and the disk is full.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        overwrite(fd, data)
    finally:
        os.close(fd)
