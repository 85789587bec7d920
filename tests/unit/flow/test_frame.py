"""A frame is whole or it is nothing: every byte of it counts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardflow.flow.limits import INTEGER_MAX
from shardflow.flow.log import frame as frames
from shardflow.flow.log.frame import HEADER_BYTES, entry_lengths, read_header, seal

entries = st.lists(st.binary(max_size=40), max_size=8)
numbers = st.integers(0, INTEGER_MAX)


def a_frame(parts: list[bytes], lsn: int = 7, synced_lsn: int = 6, epoch: int = 2) -> bytes:
    frame = bytearray(HEADER_BYTES)
    for part in parts:
        frame += part
    seal(frame, [len(part) for part in parts], lsn, synced_lsn, epoch)
    return bytes(frame)


def entries_of(data: bytes, at: int = 0) -> list[bytes]:
    view = memoryview(data)
    header = read_header(view, at)
    assert header is not None
    found = []
    start = at + HEADER_BYTES
    for length in entry_lengths(view, at, header):
        found.append(data[start : start + length])
        start += length
    return found


@given(parts=entries, lsn=numbers, synced_lsn=numbers, epoch=numbers)
def test_a_frame_reads_as_it_was_written(
    parts: list[bytes], lsn: int, synced_lsn: int, epoch: int
) -> None:
    data = a_frame(parts, lsn, synced_lsn, epoch)
    header = read_header(memoryview(data), 0)
    assert header is not None
    assert header[1:] == (len(parts), lsn, synced_lsn, epoch)
    assert HEADER_BYTES + header.body_bytes == len(data)
    assert entries_of(data) == parts


@given(parts=entries, before=st.binary(max_size=60), after=st.binary(max_size=60))
def test_a_frame_reads_the_same_wherever_it_stands(
    parts: list[bytes], before: bytes, after: bytes
) -> None:
    assert entries_of(before + a_frame(parts) + after, len(before)) == parts


def test_a_frame_without_entries_is_a_frame() -> None:
    assert len(a_frame([])) == HEADER_BYTES
    assert entries_of(a_frame([])) == []


@pytest.mark.parametrize("parts", [[], [b"one", b"", b"three"]], ids=["empty", "three entries"])
def test_a_flip_of_any_bit_makes_it_no_frame(parts: list[bytes]) -> None:
    data = a_frame(parts)
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            # What follows must not help: a longer length would reach into it.
            assert read_header(memoryview(flipped + bytes(1_000)), 0) is None, (at, bit)


def test_a_frame_cut_anywhere_is_no_frame() -> None:
    data = a_frame([b"one", b"two"])
    for size in range(len(data)):
        assert read_header(memoryview(data[:size]), 0) is None, size
        # Reserved space reads as zeros; what ended in zeros is whole again with them.
        padded = data[:size].ljust(len(data), b"\0")
        assert padded == data or read_header(memoryview(padded), 0) is None, size


@given(data=st.binary(max_size=200), at=st.integers(0, 250))
def test_arbitrary_bytes_are_no_frame(data: bytes, at: int) -> None:
    assert read_header(memoryview(data), at) is None
    assert read_header(memoryview(frames.MAGIC + data), 0) is None


def test_zeros_are_no_frame() -> None:
    assert read_header(memoryview(bytes(4_096)), 0) is None


def test_a_frame_of_another_version_is_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "VERSION", 2)
    data = a_frame([b"one"])
    assert read_header(memoryview(data), 0) is not None
    monkeypatch.undo()
    assert read_header(memoryview(data), 0) is None


def test_a_table_longer_than_its_body_is_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_table(lengths: Any) -> bytes:
        return b""

    monkeypatch.setattr(frames, "table_bytes", no_table)
    assert read_header(memoryview(a_frame([b"", b""])), 0) is None


def test_a_frame_over_the_bound_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_BYTES_MAX", 10)
    a_frame([b"123456"])
    with pytest.raises(AssertionError):
        a_frame([b"1234567"])
