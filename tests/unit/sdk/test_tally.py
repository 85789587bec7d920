"""What a worker counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardflow.sdk.tally import BUCKET_GROWTH, COUNTERS, Histogram, Tally

durations = st.lists(st.floats(0.001, 1e7), min_size=1, max_size=50)


@given(durations, st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_a_quantile_is_true_to_one_bucket(found: list[float], share: float) -> None:
    histogram = Histogram()
    for duration_ms in found:
        histogram.add(duration_ms)
    told = histogram.quantile_ms(share)
    not_above = sum(duration_ms <= told * (1 + 1e-9) for duration_ms in found)
    assert not_above >= share * len(found)
    below = sum(duration_ms < told / BUCKET_GROWTH * (1 - 1e-9) for duration_ms in found)
    assert below <= max(share * len(found), 1)
    assert histogram.count == len(found)
    assert histogram.max_ms == max(found)
    assert histogram.sum_ms == pytest.approx(sum(found))


def test_what_lies_beyond_the_last_bucket_is_kept_as_the_largest() -> None:
    histogram = Histogram()
    histogram.add(1e12)
    assert histogram.quantile_ms(0.5) == 1e12


def test_nothing_counted_is_zero_everywhere() -> None:
    figures = Tally().figures()
    assert set(figures) == {
        *COUNTERS,
        "handled",
        "handler_sum_ms",
        "handler_p50_ms",
        "handler_p99_ms",
        "handler_max_ms",
    }
    assert set(figures.values()) == {0}


def test_counts_add_up() -> None:
    tally = Tally()
    tally.add("ok")
    tally.add("ok", 2)
    tally.add_all({"ok": 1, "stale": 4})
    tally.handled(0.25)
    figures = tally.figures()
    assert (figures["ok"], figures["stale"], figures["handled"]) == (4, 4, 1)
    assert figures["handler_p50_ms"] == figures["handler_max_ms"] == 250
