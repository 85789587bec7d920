"""docs/log-format.md shows real bytes: its dump and its tables are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from shardflow.flow import codec
from shardflow.flow.commands import Create, NewFlow
from shardflow.flow.engine import Engine
from shardflow.flow.events import (
    Delivered,
    Dropped,
    PolicyStored,
    Posted,
    Prepared,
    Received,
    Trimmed,
    Unprepared,
    ValueStored,
)
from shardflow.flow.log.frame import HEADER_BYTES, entry_lengths, read_header
from shardflow.flow.log.parts import segment_name
from shardflow.flow.log.shortcut import End, Facts, FileSpan, Flows, Header, Places
from shardflow.flow.memory import MemoryFiles
from shardflow.flow.record import ChildGroup, Extras, NamedValue, Record
from shardflow.flow.settings import Settings

DOC = Path(__file__).resolve().parents[3] / "docs" / "log-format.md"
NOW_MS = 1_700_000_000_000
BYTES_PER_LINE = 10
HEADER_FIELDS = (
    (4, 'magic: "SFL1"'),
    (1, "format version: {}"),
    (3, "zero"),
    (4, "body length: {} bytes"),
    (4, "number of entries: {}"),
    (8, "LSN: {}"),
    (8, "synced LSN: {}"),
    (8, "epoch: {}"),
    (4, "CRC-32 of bytes 0..39 and the body"),
)
TITLES: dict[Any, str] = {Record: "a record", ValueStored: "a value"}


class NoEntropy:
    """A creation draws no random bytes."""

    def token_bytes(self, size: int) -> bytes:
        raise AssertionError("nothing random belongs into a dump")


def the_frame() -> bytes:
    """Return the second frame of a new log: a flow with a payload is created."""
    files = MemoryFiles()
    engine = Engine(files, NoEntropy(), Settings())
    start = engine.log.position[1]
    payload = msgspec.msgpack.encode({"n": 1})
    flow = NewFlow("i9", "t1", "billing", "created", payload=payload)
    engine.step([Create([flow])], NOW_MS, NOW_MS * 1_000)
    engine.close()
    return bytes(files.files[segment_name(1)].data[start:])


def the_dump() -> str:
    """Return the frame as the document shows it: offset, bytes, meaning."""
    frame = the_frame()
    return "\n".join(
        line for at, size, text in pieces(frame) for line in told(frame, at, size, text)
    )


def told(frame: bytes, at: int, size: int, text: str) -> Iterator[str]:
    for start in range(at, at + size, BYTES_PER_LINE):
        shown = frame[start : min(start + BYTES_PER_LINE, at + size)].hex(" ")
        yield f"{start:4}  {shown:{3 * BYTES_PER_LINE}} {text}".rstrip()
        text = ""


def pieces(frame: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield (offset, length, meaning) of every piece of a frame."""
    view = memoryview(frame)
    header = read_header(view, 0)
    assert header is not None
    at = 0
    for size, text in HEADER_FIELDS:
        yield at, size, text.format(int.from_bytes(frame[at : at + size], "little"))
        at += size
    assert at == HEADER_BYTES
    lengths = entry_lengths(view, 0, header)
    for number, length in enumerate(lengths, 1):
        yield from pieces_of_entry(frame[at : at + length], at, number)
        at += length
    for number, length in enumerate(lengths, 1):
        yield at, 4, f"table: entry {number} has {length} bytes"
        at += 4
    assert at == len(frame)


def pieces_of_entry(data: bytes, at: int, number: int) -> Iterator[tuple[int, int, str]]:
    """Yield the pieces of one entry: the array's head with the tag, then field after field."""
    entry = codec.decode_entry(data)
    kind = type(entry)
    packed = [codec.encoder.encode(getattr(entry, name)) for name in kind.__struct_fields__]
    head = len(data) - sum(map(len, packed))
    count = len(packed) + 1
    yield at, head, f"entry {number}: array of {count}, tag {tag_of(kind)}: {TITLES[kind]}"
    at += head
    for name, part in zip(kind.__struct_fields__, packed, strict=True):
        yield at, len(part), f"  {name}: {shown(getattr(entry, name))}"
        at += len(part)


def shown(value: object) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return "nil" if value is None else f"{value!r}".replace("'", '"')


def tag_of(kind: type[Any]) -> int:
    tag = kind.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


def section(title: str) -> str:
    """Return the text below a heading, up to the next heading."""
    found = re.search(
        rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", DOC.read_text(), re.DOTALL | re.MULTILINE
    )
    assert found is not None, f"{DOC.name} has no section {title!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables in a text, their heads left out."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    heads = {n - 1 for n, row in enumerate(cells) if set("".join(row)) <= set("-: ")}
    return [row for n, row in enumerate(cells) if n not in heads and n - 1 not in heads]


def test_the_dump_is_that_of_a_real_frame() -> None:
    found = re.search(r"```text\n(.*?)\n```", section("A real frame"), re.DOTALL)
    assert found is not None
    assert found[1] == the_dump(), "the format has changed: paste the dump, and say it in the text"


def test_the_pieces_of_the_dump_are_the_whole_frame() -> None:
    frame = the_frame()
    covered = [n for at, size, _ in pieces(frame) for n in range(at, at + size)]
    assert covered == list(range(len(frame)))


def test_the_header_table_is_the_header() -> None:
    sizes = [int(row[1]) for row in rows(section("Frame")) if row[1].isdigit()]
    offsets = [int(row[0]) for row in rows(section("Frame")) if row[1].isdigit()]
    assert sizes == [size for size, _ in HEADER_FIELDS]
    assert offsets == [sum(sizes[:n]) for n in range(len(sizes))]


def test_every_field_of_every_entry_is_in_its_table() -> None:
    for title, kind in (
        ("Record", Record),
        ("Extras", Extras),
        ("Named value", NamedValue),
        ("Value", ValueStored),
        ("Policy", PolicyStored),
        ("Dropped", Dropped),
        ("Trimmed", Trimmed),
        ("Child group", ChildGroup),
        ("Prepared", Prepared),
        ("Unprepared", Unprepared),
        ("Posted", Posted),
        ("Received", Received),
        ("Delivered", Delivered),
        ("Shortcut header", Header),
        ("File", FileSpan),
        ("Facts", Facts),
        ("Flows", Flows),
        ("Places", Places),
        ("End", End),
    ):
        named = [row[1].strip("`") for row in rows(section(title))]
        fields = list(kind.__struct_fields__)
        tag = kind.__struct_config__.tag
        assert named == (fields if tag is None else ["tag", *fields]), title
        assert [int(row[0]) for row in rows(section(title))] == list(range(len(named))), title
        if tag is not None:
            assert f"always {tag}" in rows(section(title))[0][2], title
