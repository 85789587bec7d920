"""The documents: links lead somewhere, and bounds that they quote are those of flow/limits.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardflow.flow import limits

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:actors|docs|examples|flow|scripts|sdk|tests)/[\w./-]*)`")
BOUND = re.compile(r"`([A-Z][A-Z_]+)`(?: \(| \| )([\d,]+)\s*(MiB|KiB|ms|seconds)?")
UNITS = {"MiB": limits.MIB, "KiB": limits.KIB}

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def bounds(document: Path) -> Iterator[tuple[str, int]]:
    """Yield the named bounds that a document puts a number to."""
    for name, number, unit in BOUND.findall(document.read_text()):
        yield name, int(number.replace(",", "")) * UNITS.get(unit, 1)


@each_document
def test_links_lead_to_files_of_the_project(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@each_document
def test_files_that_are_named_exist(document: Path) -> None:
    for target in PATH.findall(document.read_text()):
        assert (ROOT / target).exists(), target


@each_document
def test_bounds_have_the_value_that_is_said(document: Path) -> None:
    for name, value in bounds(document):
        assert getattr(limits, name) == value, name


def test_bounds_are_found() -> None:
    assert sum(len(list(bounds(document))) for document in DOCUMENTS) >= 10
