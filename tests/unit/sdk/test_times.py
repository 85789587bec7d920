"""Durations and instants as users write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from shardflow.flow.errors import InvalidArgument
from shardflow.flow.limits import INTEGER_MAX, NEVER
from shardflow.sdk.times import duration_ms, instant_ms


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (1_500, 1_500),
        (timedelta(seconds=1.5), 1_500),
        (timedelta(microseconds=1_999), 1),
        (INTEGER_MAX, INTEGER_MAX),
    ],
)
def test_a_duration_is_milliseconds_or_a_timedelta(value: Any, expected: int) -> None:
    assert duration_ms(value, "lease_ms") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (NEVER, NEVER),
        (datetime(1970, 1, 2, tzinfo=UTC), 86_400_000),
        (datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 0),
        (datetime(1970, 1, 1, 0, 0, 0, 1_999, tzinfo=UTC), 1),
    ],
)
def test_an_instant_is_milliseconds_or_an_aware_datetime(value: Any, expected: int) -> None:
    assert instant_ms(value, "run_at_ms") == expected


@pytest.mark.parametrize("convert", [duration_ms, instant_ms])
@pytest.mark.parametrize("value", [-1, INTEGER_MAX + 1, True, 1.0, "1", None])
def test_other_values_are_refused_by_name(convert: Any, value: Any) -> None:
    with pytest.raises(InvalidArgument, match="some_ms is"):
        convert(value, "some_ms")


def test_a_negative_duration_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="lease_ms is a duration"):
        duration_ms(timedelta(milliseconds=-1), "lease_ms")


def test_a_naive_datetime_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"run_at_ms is a naive datetime.*time zone"):
        instant_ms(datetime(2024, 1, 1), "run_at_ms")


def test_an_instant_is_no_duration_and_a_duration_no_instant() -> None:
    with pytest.raises(InvalidArgument):
        duration_ms(datetime(2024, 1, 1, tzinfo=UTC), "lease_ms")
    with pytest.raises(InvalidArgument):
        instant_ms(timedelta(1), "run_at_ms")
