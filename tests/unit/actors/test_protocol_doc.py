"""docs/protocol.md names every request and reply with its tag."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from shardflow.actors import wire
from shardflow.flow.commands import AnyCommand
from shardflow.flow.family import AnyFamilyCommand, Collect
from shardflow.flow.queries import AnyQuery
from shardflow.flow.replies import Reply

DOC = Path(__file__).resolve().parents[3] / "docs" / "protocol.md"


def tags(union: Any) -> set[tuple[int, str]]:
    return {(kind.__struct_config__.tag, kind.__name__) for kind in get_args(union)}


def test_every_tag_is_in_its_table() -> None:
    text = DOC.read_text()
    for title, union in (
        ("command", AnyCommand),
        ("query", AnyQuery),
        ("family", AnyFamilyCommand | Collect),
        ("reply", Reply),
    ):
        found = re.search(rf"^\| tag \| {title} \|\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
        assert found is not None, title
        rows = [re.findall(r"\w+", line) for line in found[1].splitlines()]
        assert {(int(tag), name) for tag, name in rows} == tags(union), title


def test_the_frame_has_the_size_that_is_said() -> None:
    assert f"| {wire.HEADER_BYTES} | … | body" in DOC.read_text()
    assert f"Protocol version {wire.PROTOCOL}." in DOC.read_text()
