"""docs/errors.md has a row for every error, and every error can cross a process."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import pytest

import shardflow as sf
from shardflow.flow.errors import ERRORS, FlowError, Refused, refusal

DOC = Path(__file__).resolve().parents[3] / "docs" / "errors.md"
ROW = re.compile(r"^\| `(\w+)` \| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", re.MULTILINE)

each_error = pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS.keys())


def rows() -> dict[str, tuple[str, ...]]:
    """Return code → (class, when, applied, what to do)."""
    found = [match.groups() for match in ROW.finditer(DOC.read_text())]
    assert len(found) == len({code for code, *_ in found}), "a code has two rows"
    return {code: tuple(cells) for code, *cells in found}


def fields_of(kind: type[FlowError]) -> dict[str, object]:
    """Return a value for every attribute that the class and its bases declare."""
    named = {
        name
        for base in kind.__mro__
        for name in inspect.get_annotations(base)
        if issubclass(base, FlowError) and name != "code"
    }
    return {name: [name] if name in ("results", "partition_keys") else name for name in named}


def test_every_error_has_a_row_and_every_row_an_error() -> None:
    assert {code: cells[0] for code, cells in rows().items()} == {
        code: kind.__name__ for code, kind in ERRORS.items()
    }


def test_every_error_of_the_package_is_known_by_its_code() -> None:
    def below(kind: type[FlowError]) -> set[type[FlowError]]:
        return {kind}.union(*(below(sub) for sub in kind.__subclasses__()))

    ours = {kind for kind in below(FlowError) if kind.__module__.startswith("shardflow.")}
    assert ours == set(ERRORS.values())


@each_error
def test_the_row_says_whether_the_command_was_applied(kind: type[FlowError]) -> None:
    assert rows()[kind.code][2].startswith(kind.applied)


@each_error
def test_the_row_names_the_attributes_of_the_class(kind: type[FlowError]) -> None:
    row = " ".join(rows()[kind.code])
    for name in inspect.get_annotations(kind):
        if kind is not FlowError and name != "code":
            assert f"`{name}`" in row, name


@each_error
def test_an_error_is_public(kind: type[FlowError]) -> None:
    assert getattr(sf, kind.__name__) is kind


@each_error
def test_an_error_survives_pickling(kind: type[FlowError]) -> None:
    fields = fields_of(kind)
    back = pickle.loads(pickle.dumps(kind("what happened", **fields)))
    assert type(back) is kind
    assert str(back) == "what happened"
    assert {name: getattr(back, name) for name in fields} == fields


@each_error
def test_an_error_survives_the_way_as_a_refusal(kind: type[FlowError]) -> None:
    fields = fields_of(kind)
    told = refusal(kind("what happened", **fields))
    assert isinstance(told, Refused)
    back = told.error()
    assert type(back) is kind
    assert str(back) == "what happened"
    assert {name: getattr(back, name) for name in fields} == fields
