"""What goes into a store comes out of it again, or is refused at the door by name."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from threading import Thread
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardflow.flow.errors import InvalidArgument
from shardflow.sdk.codecs import CODEC_EXTENSION, DEPTH_MAX, PACKER_BYTES_MAX, pack, unpack

LIMIT = 64 * 1024 * 1024

offsets = st.integers(-(86_400 * 10**6 - 1), 86_400 * 10**6 - 1).map(
    lambda us: timezone(timedelta(microseconds=us))
)
instants = st.datetimes(timezones=offsets)
integers = st.integers(-(2**63), 2**64 - 1)
leaves = (
    st.none()
    | st.booleans()
    | integers
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | instants
)
keys = st.text(st.characters(exclude_categories=["Cs"])) | integers | st.binary()
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner),
    max_leaves=30,
)


def round_trip(value: Any) -> Any:
    return unpack(pack(value, None, LIMIT, "payload"))


def identity(value: Any) -> Any:
    """Make equal values of different types, such as 1 and 1.0, differ."""
    if isinstance(value, dict):
        return [(identity(key), identity(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [identity(item) for item in value]
    offset = value.utcoffset() if isinstance(value, datetime) else None
    return type(value).__name__, value, offset


@given(values)
def test_every_plain_value_comes_back_as_it_was(value: Any) -> None:
    assert identity(round_trip(value)) == identity(value)


@given(instants)
def test_an_instant_keeps_its_microseconds_and_its_offset(value: datetime) -> None:
    back = round_trip(value)
    assert back.replace(tzinfo=None) == value.replace(tzinfo=None)
    assert back.utcoffset() == value.utcoffset()


def test_an_instant_in_a_named_zone_comes_back_with_the_offset_it_had() -> None:
    zone = ZoneInfo("Europe/Berlin")
    for fold, hours in ((0, 2), (1, 1)):
        value = datetime(2024, 10, 27, 2, 30, tzinfo=zone, fold=fold)
        assert round_trip(value).utcoffset() == timedelta(hours=hours)


def test_utc_comes_back_as_utc_itself() -> None:
    assert round_trip(datetime(2024, 1, 1, tzinfo=UTC)).tzinfo is UTC


def test_tuples_become_lists_and_bytearrays_become_bytes() -> None:
    assert round_trip((1, (2, bytearray(b"x")))) == [1, [2, b"x"]]


def test_the_values_of_an_int_enum_are_their_ints() -> None:
    from http import HTTPStatus

    assert round_trip({HTTPStatus.OK: HTTPStatus.NOT_FOUND}) == {200: 404}


class Circle(list[Any]):
    """A list that holds itself."""

    def __init__(self) -> None:
        super().__init__([self])

    def __repr__(self) -> str:
        return "Circle()"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (datetime(2024, 1, 1), "naive"),
        ({"at": datetime(2024, 1, 1)}, "naive"),
        (UUID(int=1), "type UUID"),
        ([{"price": Decimal("1.5")}], "type Decimal"),
        ({1, 2}, "type set"),
        (object, "type type"),
        (2**64, "64 bits"),
        ({"n": [-(2**63) - 1]}, "64 bits"),
        ({2**64: 1}, "64 bits"),
        ({1.5: "x"}, "keys of a dict"),
        ({None: "x"}, "keys of a dict"),
        ([{"deep": {True: "x"}}], "keys of a dict"),
        ({("a", "b"): "x"}, "keys of a dict"),
        (msgpack.ExtType(1, b"x" * 16), "type ExtType"),
        ([msgpack.Timestamp(0)], "type Timestamp"),
        ("\ud800", "UTF-8"),
        (["\ud800"], "UTF-8"),
        (Circle(), "nested too deeply"),
    ],
    ids=repr,
)
def test_what_cannot_come_back_is_refused_with_the_name_of_the_field(
    value: Any, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        pack(value, None, LIMIT, "payload")
    assert str(caught.value).startswith("payload")
    assert caught.value.argument == "payload"


def test_depth_is_refused_before_it_hurts_the_reader() -> None:
    deep: Any = 1
    for _ in range(DEPTH_MAX // 2):
        deep = [{"x": deep}]
    assert round_trip(deep) == deep
    with pytest.raises(InvalidArgument, match="nested too deeply"):
        pack([deep], None, LIMIT, "payload")


def test_a_value_over_the_limit_is_refused_with_both_sizes() -> None:
    assert pack("x" * 98, None, 100, "result") == b"\xd9\x62" + b"x" * 98
    with pytest.raises(InvalidArgument, match=r"result is 101 bytes, more than .* 100") as caught:
        pack("x" * 99, None, 100, "result")
    assert (caught.value.argument, caught.value._fields["size"]) == ("result", 101)


def test_a_refusal_leaves_nothing_behind_for_the_next_value() -> None:
    with pytest.raises(InvalidArgument):
        pack(["first", object()], None, LIMIT, "payload")
    assert round_trip("second") == "second"


def test_a_large_value_does_not_hurt_the_next_one() -> None:
    large = b"x" * (PACKER_BYTES_MAX + 1)
    assert round_trip(large) == large
    assert round_trip({"a": 1}) == {"a": 1}


def test_threads_pack_without_touching_each_other() -> None:
    results: list[bool] = []

    def work(number: int) -> None:
        value = {"number": number, "list": list(range(number))}
        results.append(all(round_trip(value) == value for _ in range(200)))

    threads = [Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


class JsonOfDecimals:
    """Encodes decimals, which the built-in encoding refuses."""

    def encode(self, obj: Any, /) -> bytes:
        return json.dumps(obj, default=str).encode()

    def decode(self, data: bytes, /) -> Any:
        return json.loads(data)


def test_a_codec_carries_what_the_built_in_encoding_refuses() -> None:
    codec = JsonOfDecimals()
    data = pack({"price": Decimal("1.5")}, codec, LIMIT, "payload")
    assert unpack(data, codec) == {"price": "1.5"}
    assert msgpack.unpackb(data).code == CODEC_EXTENSION


@given(values)
def test_plain_values_are_read_alike_with_and_without_a_codec(value: Any) -> None:
    data = pack(value, None, LIMIT, "payload")
    assert identity(unpack(data, JsonOfDecimals())) == identity(value)


def test_a_value_of_a_codec_is_not_read_without_one() -> None:
    data = pack(1, JsonOfDecimals(), LIMIT, "payload")
    with pytest.raises(InvalidArgument, match="written with a codec"):
        unpack(data)


def test_a_codec_that_fails_is_a_refusal_that_names_field_and_type() -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    with pytest.raises(InvalidArgument, match=r"error: the codec cannot encode .* type dict"):
        pack(circle, JsonOfDecimals(), LIMIT, "error")


def test_a_codec_has_to_return_bytes() -> None:
    class Text(JsonOfDecimals):
        def encode(self, obj: Any, /) -> bytes:
            return "text"  # type: ignore[return-value]

    with pytest.raises(InvalidArgument, match="returned str instead of bytes"):
        pack(1, Text(), LIMIT, "payload")


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x01", b"\x01\x01", b"\xd4\x63\x00"])
def test_bytes_that_are_no_value_are_an_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(data)
