"""Unix socket addresses, also for paths longer than the 107 bytes that an address holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ADDRESS_BYTES_MAX = 100


@contextmanager
def bind_address(path: Path) -> Iterator[str]:
    """Give an address for the path while the context lasts.

    A long path is reached through the directory's descriptor, /proc/self/fd/N/name.
    """
    text = str(path)
    if len(os.fsencode(text)) <= _ADDRESS_BYTES_MAX:
        yield text
        return
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
