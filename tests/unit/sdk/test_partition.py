"""Partition keys: readable, stable, and never the same for different parts."""

from __future__ import annotations

import re
from enum import Enum, IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardflow.flow.errors import InvalidArgument
from shardflow.sdk.partition import partition_key_of

NAMES = ("tenant_id", "invoice_id")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.text(
    st.sampled_from(":\\a"), max_size=8
)


def key(*parts: Any) -> str:
    return partition_key_of(NAMES, dict(zip(NAMES, parts, strict=True)), "BillingFlow")


class Tenant(str, Enum):  # noqa: UP042 - its str() differs from that of a StrEnum
    FIRST = "t1"


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("t1", "i9"), "t1:i9"),
        (("a:b", "c"), r"a\:b:c"),
        (("a", "b:c"), r"a:b\:c"),
        (("a\\", "b"), "a\\\\:b"),
        (("", "b"), ":b"),
        ((7, -1), "7:-1"),
        ((True, False), "true:false"),
        ((1.0, 0.1), "1.0:0.1"),
        ((-0.0, 1e300), "0.0:1e+300"),
        ((Tenant.FIRST, Number.ONE), "t1:1"),
    ],
)
def test_parts_are_joined_as_the_contract_says(parts: tuple[Any, ...], expected: str) -> None:
    assert key(*parts) == expected


@given(texts, texts)
def test_the_parts_can_be_read_back_so_no_two_lists_of_parts_collide(one: str, two: str) -> None:
    joined = key(one, two)
    found = [re.sub(r"\\(.)", r"\1", p, flags=re.DOTALL) for p in _split(joined)]
    assert found == [one, two]


def _split(joined: str) -> list[str]:
    """Split at every ":" that no backslash escapes."""
    parts, current, escaped = [], "", False
    for letter in joined:
        if letter == ":" and not escaped:
            parts.append(current)
            current = ""
            continue
        escaped = letter == "\\" and not escaped
        current += letter
    return [*parts, current]


@pytest.mark.parametrize(
    "value",
    [None, b"t1", ["t1"], ("t1",), {"a": 1}, object(), float("nan"), float("inf")],
    ids=repr,
)
def test_a_part_of_another_type_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="invoice_id") as caught:
        key("t1", value)
    assert caught.value.argument == "invoice_id"


def test_a_missing_part_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="BillingFlow: invoice_id is missing") as caught:
        partition_key_of(NAMES, {"tenant_id": "t1"}, "BillingFlow")
    assert caught.value.argument == "invoice_id"


@pytest.mark.parametrize("parts", [("x" * 400, "y" * 400), ("\ud800", "x")])
def test_a_key_that_the_store_could_not_hold_is_refused(parts: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="partition key"):
        key(*parts)


def test_a_single_empty_part_makes_no_key() -> None:
    with pytest.raises(InvalidArgument, match="1 to 512 bytes"):
        partition_key_of(("tenant_id",), {"tenant_id": ""}, "BillingFlow")
