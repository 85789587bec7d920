"""A disk that can fail: the directory under a shard's log, and what a power loss leaves of it.

Faults that it injects:

- power loss between two operations or in the middle of any one (`power_fails_at`, `after_crash`).
  Of what no sync covered, a `Loss` says what is gone: nothing, all, everything past some byte
  (the last write torn there), the bytes but not the length (zeros), or each write by itself
  (holes). Names that were made, removed or changed since the directory's last sync go the same
  way; a rename is there whole or not at all, whatever it renames is synced or not.
- the n-th write, sync, reserve, truncate, open, create, remove, replace or sync_directory fails
  with an OSError (`fail`), or all of them do (`fail_always`). A failed write may leave its first
  bytes behind: a short write.
- a failed sync forgets what it was to write, as Linux does: it still reads well, no later sync
  puts it on disk, and the next power loss shows how much of it was lost.
- a bit flips in a file at rest (`flip`), or a byte of it cannot be read any more (`wear_out`).
- the disk is full, from now on or in the middle of what is going on (`fill`, `fills_at`): no file
  grows, to the byte, and a write leaves what fits; until there is room again (`free`). Then it has
  `capacity`; a disk without one is never full, and nobody can tell what it has left.
- it has been mounted read-only (`is_read_only`), or takes no further files (`takes_files`).
- its files are deleted while they are open (`vanish`).

It does not misdirect writes, fail reads now and then, or lose what a sync has covered.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from random import Random
from typing import Literal, TypeVar

from shardflow.flow.host import Room

Kind = Literal["none", "all", "prefix", "zeros", "holes"]
KINDS: tuple[Kind, ...] = ("none", "all", "prefix", "zeros", "holes")


@dataclass(frozen=True)
class Loss:
    """What a power loss takes of the bytes that no sync covered."""

    kind: Kind
    seed: int = 0
    """Chooses where a write is torn and which ones are lost."""


NOTHING = Loss("none")
EVERYTHING = Loss("all")


class PowerLoss(Exception):
    """The machine is off; only `after_crash` is of use now."""


@dataclass
class _Fault:
    operation: str
    at: int
    error: int
    after_bytes: int
    loss: Loss


@dataclass
class _Change:
    """One change of a file: bytes written, or (data is None) a new size."""

    at: int
    data: bytes | None = None
    room: int = 0
    """How far the file reaches after it, from `at` on, if that is more than its data."""

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            _resize(content, self.at)
            return
        _resize(content, max(len(content), self.at + max(self.room, len(self.data))))
        content[self.at : self.at + len(self.data)] = self.data

    def torn(self, size: int, *, zeros: bool = False) -> _Change:
        """Return the change with only `size` bytes made; with `zeros`, the file has grown."""
        if self.data is None:
            return self
        return _Change(self.at, self.data[:size], len(self.data) if zeros else 0)

    @property
    def size(self) -> int:
        return 1 if self.data is None else len(self.data)


@dataclass
class _Node:
    """A file: what is read from it, what is surely on disk, and the changes in between."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[_Change] = field(default_factory=list)
    unreadable: set[int] = field(default_factory=set)

    def change(self, change: _Change) -> None:
        change.apply(self.content)
        self.pending.append(change)

    def settle(self, loss: Loss) -> None:
        """Put on disk what is left of the pending changes."""
        for change in surviving(self.pending, loss):
            change.apply(self.durable)
        self.pending.clear()


@dataclass
class _NameChange:
    name: str
    node: _Node | None
    """None: the name was removed."""
    old_name: str | None = None
    """What the file was called until now."""
    size: int = 1

    def torn(self, size: int, *, zeros: bool = False) -> _NameChange:
        return self


AnyChange = TypeVar("AnyChange", _Change, _NameChange)


class DiskHandle:
    """An open file."""

    def __init__(self, disk: Disk, node: _Node) -> None:
        self._disk = disk
        self._node = node
        self.is_open = True
        disk.open_handles += 1

    def pread(self, size: int, offset: int) -> bytes:
        self._disk.check_power()
        if any(offset <= at < offset + size for at in self._node.unreadable):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return bytes(self._node.content[offset : offset + size])

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        change = _Change(offset, bytes(data))
        fault = self._disk.begin("write")
        if (fits := self._disk.fitting(self._node, offset + len(data))) is not None:
            self._node.change(change.torn(max(0, fits - offset)))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if fault is not None:
            self._node.change(change.torn(min(fault.after_bytes, len(data))))
            raise _error(fault)
        self._node.change(change)
        self._disk.end()

    def reserve(self, size: int) -> None:
        self._disk.begin_or_raise("reserve")
        if self._disk.fitting(self._node, size) is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if size > len(self._node.content):
            self._node.change(_Change(size))
        self._disk.end()

    def sync(self) -> None:
        fault = self._disk.begin("sync")
        if fault is not None:
            self._node.settle(fault.loss)
            raise _error(fault)
        self._disk.end()
        self._node.settle(NOTHING)

    def size(self) -> int:
        self._disk.check_power()
        return len(self._node.content)

    def truncate(self, size: int) -> None:
        self._disk.begin_or_raise("truncate")
        self._node.change(_Change(size))
        self._disk.end()

    def is_linked(self) -> bool:
        self._disk.check_power()
        return self._disk.has(self._node)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._disk.open_handles -= 1


class Disk:
    """One directory on a disk that fails when told to; see the head of this file."""

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.taken = 0
        """Bytes that others hold."""
        self.is_read_only = False
        self.takes_files = True
        self._fill_left: int | None = None
        self._nodes: dict[str, _Node] = {}
        self._durable_nodes: dict[str, _Node] = {}
        self._pending: list[_NameChange] = []
        self._faults: list[_Fault] = []
        self._always: dict[str, int] = {}
        self._power_left: int | None = None
        self._is_locked = False
        self.operations = 0
        """Changes and syncs so far: where a power loss can fall."""
        self.open_handles = 0

    # ---- flow.host.Files ----

    def names(self) -> list[str]:
        self.check_power()
        return sorted(self._nodes)

    def open(self, name: str, *, create: bool = False) -> DiskHandle:
        if create:
            self.begin_or_raise("create")
            if not self.takes_files:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
            if name in self._nodes:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            self._rename(_NameChange(name, _Node()))
            self.end()
        else:
            self.check_power()
            if (fault := self._fault("open")) is not None:
                raise _error(fault)
            if name not in self._nodes:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return DiskHandle(self, self._nodes[name])

    def remove(self, name: str) -> None:
        self.begin_or_raise("remove")
        self._rename(_NameChange(name, None))
        self.end()

    def replace(self, old: str, new: str) -> None:
        self.begin_or_raise("replace")
        self._rename(_NameChange(new, self._nodes[old], old))
        self.end()

    def sync_directory(self) -> None:
        self.begin_or_raise("sync_directory")
        self.end()
        self._settle_names(NOTHING)

    def lock(self) -> bool:
        if self._is_locked:
            return False
        self._is_locked = True
        return True

    def unlock(self) -> None:
        self._is_locked = False

    def path_of(self, name: str) -> str:
        return f"disk:{name}"

    def room(self) -> Room | None:
        self.check_power()
        if self.capacity is None and not self.is_read_only:
            return None
        return Room(self.free_bytes, self.is_read_only)

    # ---- how full it is ----

    @property
    def used_bytes(self) -> int:
        return sum(len(node.content) for node in self._nodes.values())

    @property
    def free_bytes(self) -> int:
        return max(0, (self.capacity or 0) - self.taken - self.used_bytes)

    def fill(self, leave: int = 0) -> None:
        """Let others take all that is free, but for so many bytes."""
        assert self.capacity is not None
        self.taken += self.free_bytes - leave

    def fills_at(self, operation: int) -> None:
        """Let the disk be full from the n-th change or sync from now on: 1 is the next."""
        self._fill_left = operation

    def free(self) -> None:
        """Let others give back what they have taken."""
        self._fill_left = None
        self.taken = 0

    def vanish(self) -> None:
        """Delete all files, open ones as well."""
        self._nodes.clear()

    def fitting(self, node: _Node, end: int) -> int | None:
        """Return how far a file can grow, if not up to `end`."""
        have = len(node.content)
        if self.capacity is None or end <= have or end - have <= self.free_bytes:
            return None
        return have + self.free_bytes

    def has(self, node: _Node) -> bool:
        return any(node is other for other in self._nodes.values())

    # ---- faults ----

    def fail(
        self,
        operation: str,
        *,
        at: int = 1,
        error: int = errno.EIO,
        after_bytes: int = 0,
        loss: Loss = EVERYTHING,
    ) -> None:
        """Let the `at`-th of these operations from now on fail, once.

        A write leaves its first `after_bytes`; a sync puts on disk what `loss` leaves.
        """
        self._faults.append(_Fault(operation, at, error, after_bytes, loss))

    def fail_always(self, operation: str, error: int) -> None:
        """Let each of these operations fail from now on, until faults are forgotten."""
        self._always[operation] = error

    def forget_faults(self) -> None:
        """Fail no more."""
        self._faults.clear()
        self._always.clear()

    def power_fails_at(self, operation: int) -> None:
        """Let the power fail in the n-th change or sync from now on: 1 is the next."""
        self._power_left = operation

    def flip(self, name: str, offset: int, bit: int = 0) -> None:
        """Flip one bit of a file at rest."""
        node = self._nodes[name]
        node.settle(NOTHING)
        for content in (node.content, node.durable):
            content[offset] ^= 1 << bit

    def wear_out(self, name: str, offset: int) -> None:
        """Let every read fail that covers a byte of a file."""
        self._nodes[name].unreadable.add(offset)

    def after_crash(self, loss: Loss) -> Disk:
        """Return the disk that a machine finds when it starts again; this one is of no more use."""
        self._power_left = 0
        self._settle_names(loss)
        for node in self._durable_nodes.values():
            node.settle(loss)
        left = {name: bytes(node.durable) for name, node in self._durable_nodes.items()}
        found = Disk.of(left)
        found.capacity, found.taken = self.capacity, self.taken
        return found

    # ---- looking at it ----

    @staticmethod
    def of(image: dict[str, bytes]) -> Disk:
        """Return a disk that holds these files, all of it synced."""
        disk = Disk()
        for name, content in image.items():
            disk._nodes[name] = _Node(bytearray(content), bytearray(content))
        disk._durable_nodes = dict(disk._nodes)
        return disk

    def image(self) -> dict[str, bytes]:
        """Return what a reader finds now: the bytes of each file."""
        return {name: bytes(self._nodes[name].content) for name in sorted(self._nodes)}

    @property
    def is_synced(self) -> bool:
        """Whether a power loss would take nothing."""
        return not self._pending and not any(node.pending for node in self._nodes.values())

    # ---- for the handles ----

    def check_power(self) -> None:
        if self._power_left == 0:
            raise PowerLoss

    def begin(self, operation: str) -> _Fault | None:
        """Count an operation; return the fault that it is to meet."""
        self.check_power()
        self.operations += 1
        if self._fill_left is not None:
            self._fill_left -= 1
            if self._fill_left == 0:
                self._fill_left = None
                self.fill()
        if self.is_read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self._fault(operation)

    def begin_or_raise(self, operation: str) -> None:
        """Count an operation that fails whole or not at all."""
        if (fault := self.begin(operation)) is not None:
            raise _error(fault)

    def end(self) -> None:
        """End an operation, if the power lasts: what it changed is there, but on no disk yet."""
        if self._power_left is not None:
            self._power_left -= 1
            self.check_power()

    def _fault(self, operation: str) -> _Fault | None:
        due = None
        if (error := self._always.get(operation)) is not None:
            return _Fault(operation, 0, error, 0, EVERYTHING)
        for fault in self._faults:
            if fault.operation == operation:
                fault.at -= 1
                due = fault if fault.at == 0 else due
        return due

    def _rename(self, change: _NameChange) -> None:
        _rename(self._nodes, change)
        self._pending.append(change)

    def _settle_names(self, loss: Loss) -> None:
        pending, self._pending = self._pending, []
        for change in surviving(pending, loss):
            _rename(self._durable_nodes, change)


def surviving(pending: list[AnyChange], loss: Loss) -> list[AnyChange]:
    """Return what is left of changes that no sync covered, in their order."""
    chance = Random(loss.seed)
    if loss.kind == "none":
        return list(pending)
    if loss.kind == "all":
        return []
    if loss.kind == "prefix":
        left = chance.randint(0, sum(change.size for change in pending))
        return [change.torn(size) for change, size in _sizes(pending, left) if size]
    if loss.kind == "zeros":
        return [c.torn(chance.randint(0, c.size), zeros=True) for c in pending]
    sizes = [chance.choice((0, chance.randint(0, c.size), c.size)) for c in pending]
    return [change.torn(size) for change, size in zip(pending, sizes, strict=True) if size]


def _sizes(pending: list[AnyChange], left: int) -> list[tuple[AnyChange, int]]:
    sizes = []
    for change in pending:
        sizes.append((change, min(left, change.size)))
        left -= min(left, change.size)
    return sizes


def _rename(nodes: dict[str, _Node], change: _NameChange) -> None:
    if change.node is None:
        nodes.pop(change.name, None)
    else:
        if change.old_name is not None:
            nodes.pop(change.old_name, None)
        nodes[change.name] = change.node


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _error(fault: _Fault) -> OSError:
    return OSError(fault.error, os.strerror(fault.error))
