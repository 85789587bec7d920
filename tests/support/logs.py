"""Logs on a virtual disk: written, opened again, read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shardflow.flow.log.log import Log
from shardflow.flow.log.position import Position
from shardflow.flow.log.recover import recover
from shardflow.flow.log.start import Recovery
from support.disks import Disk


class Opened(NamedTuple):
    """A log, and what its recovery found in it."""

    log: Log
    entries: list[bytes]
    recovery: Recovery


def open_log(disk: Disk) -> Opened:
    """Recover a log and begin the next epoch."""
    entries, recovery = read_log(disk)
    return Opened(Log(disk, recovery), entries, recovery)


def read_log(disk: Disk) -> tuple[list[bytes], Recovery]:
    """Recover a log without writing to it, but for the cut of a torn tail."""
    entries: list[bytes] = []

    def take(
        raw: bytes, at: int, number: int, offset: int, lengths: Sequence[int], lsn: int
    ) -> None:
        for length in lengths:
            entries.append(raw[at : at + length])
            assert len(entries[-1]) == length
            at += length

    return entries, recover(disk, take)


def entries_in(disk: Disk) -> list[bytes]:
    """Return what recovery finds, leaving the disk as it is."""
    return read_log(Disk.of(disk.image()))[0]


def append(log: Log, *entries: bytes, sync: bool = True) -> list[Position]:
    """Append one frame and return where its entries lie."""
    frame = log.begin()
    segment, base = log.position
    positions = []
    for entry in entries:
        positions.append(Position(segment, base + len(frame), len(entry)))
        frame += entry
    log.append(frame, [len(entry) for entry in entries], sync=sync)
    return positions
