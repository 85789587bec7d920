"""A directory in memory: the in-memory store's disk. Injects no faults, survives no process."""

from __future__ import annotations


class MemoryFile:
    """A file's bytes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def pread(self, size: int, offset: int) -> bytes:
        """Return up to `size` bytes from `offset`."""
        return bytes(self.data[offset : offset + size])

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write `data` at `offset`, zeros before it if the file is shorter."""
        if len(self.data) < offset:
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data

    def reserve(self, size: int) -> None:
        """Memory needs no reservation."""

    def sync(self) -> None:
        """Memory needs no sync."""

    def size(self) -> int:
        """Return the length in bytes."""
        return len(self.data)

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes."""
        del self.data[size:]

    def close(self) -> None:
        """Nothing to give back."""


class MemoryFiles:
    """Files by name."""

    def __init__(self) -> None:
        self.files: dict[str, MemoryFile] = {}
        self._is_locked = False

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        return sorted(self.files)

    def open(self, name: str, *, create: bool = False) -> MemoryFile:
        """Open a file; creating an existing one is a FileExistsError."""
        if create:
            if name in self.files:
                raise FileExistsError(name)
            self.files[name] = MemoryFile()
        elif name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def remove(self, name: str) -> None:
        """Remove a file."""
        if self.files.pop(name, None) is None:
            raise FileNotFoundError(name)

    def replace(self, old: str, new: str) -> None:
        """Rename a file over another one."""
        self.files[new] = self.files.pop(old)

    def sync_directory(self) -> None:
        """Memory needs no sync."""

    def lock(self) -> bool:
        """Take the directory; False if it is taken."""
        if self._is_locked:
            return False
        self._is_locked = True
        return True

    def unlock(self) -> None:
        """Give the directory back."""
        self._is_locked = False

    def path_of(self, name: str) -> str:
        """Return how the file is named in messages."""
        return f"memory:{name}"
