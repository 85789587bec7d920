"""Retry arithmetic: how long each wait is, which layer decides a field, what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardflow.flow import limits
from shardflow.flow.errors import InvalidArgument
from shardflow.flow.policy import (
    BACKOFF_FIELDS,
    BUILT_IN,
    KINDS,
    Backoff,
    BackoffKind,
    Retry,
    RetryPatch,
    RetryRule,
    check_retry,
    patch_of,
    resolve,
)

kinds: st.SearchStrategy[BackoffKind] = st.sampled_from(["none", "fixed", "linear", "exponential"])
waits = st.integers(0, limits.BACKOFF_MS_MAX)
retries = st.integers(0, limits.MAX_RETRIES_MAX)
attempts = st.integers(1, limits.MAX_RETRIES_MAX)
percents = st.integers(0, limits.JITTER_PCT_MAX)
reclaims = st.integers(0, limits.MAX_RECLAIMS_MAX)
states = st.text(min_size=1, max_size=20).filter(lambda state: state != "running")
ids = st.text(min_size=1, max_size=30)

rules = st.builds(
    RetryRule,
    max_retries=retries,
    kind=kinds,
    base_ms=waits,
    max_ms=waits,
    jitter_pct=percents,
    exhausted_to=states,
    max_reclaims=reclaims,
)
patches = st.builds(
    RetryPatch,
    max_retries=st.none() | retries,
    kind=st.none() | kinds,
    base_ms=st.none() | waits,
    max_ms=st.none() | waits,
    jitter_pct=st.none() | percents,
    exhausted_to=st.none() | states,
    max_reclaims=st.none() | reclaims,
)
backoffs = st.fixed_dictionaries(
    {}, optional={"kind": kinds, "base_ms": waits, "max_ms": waits, "jitter_pct": percents}
)
declarations = st.fixed_dictionaries(
    {},
    optional={
        "max_retries": retries,
        "exhausted_to": states,
        "max_reclaims": reclaims,
        "backoff": backoffs,
    },
)


def steady(kind: BackoffKind, base_ms: int, max_ms: int) -> RetryRule:
    return RetryRule(kind=kind, base_ms=base_ms, max_ms=max_ms, jitter_pct=0)


@given(rules, ids, attempts)
def test_a_wait_is_never_negative_and_never_over_the_cap(
    rule: RetryRule, flow_id: str, attempt: int
) -> None:
    assert 0 <= rule.delay_ms(flow_id, attempt) <= rule.max_ms


@given(rules, ids, attempts)
def test_a_wait_is_a_whole_number(rule: RetryRule, flow_id: str, attempt: int) -> None:
    assert type(rule.delay_ms(flow_id, attempt)) is int


@given(rules, ids, attempts)
def test_the_same_flow_and_attempt_always_wait_the_same(
    rule: RetryRule, flow_id: str, attempt: int
) -> None:
    again = RetryRule(**{name: getattr(rule, name) for name in rule.__struct_fields__})
    assert rule.delay_ms(flow_id, attempt) == again.delay_ms(flow_id, attempt)


@given(waits, waits, percents, ids, attempts)
def test_no_backoff_waits_not_at_all(
    base_ms: int, max_ms: int, jitter_pct: int, flow_id: str, attempt: int
) -> None:
    rule = RetryRule(kind="none", base_ms=base_ms, max_ms=max_ms, jitter_pct=jitter_pct)
    assert rule.delay_ms(flow_id, attempt) == 0


@given(waits, waits, ids, attempts)
def test_a_fixed_wait_is_its_base_within_the_cap(
    base_ms: int, max_ms: int, flow_id: str, attempt: int
) -> None:
    rule = steady("fixed", base_ms, max_ms)
    assert rule.delay_ms(flow_id, attempt) == min(base_ms, max_ms)


@given(waits, waits, ids, attempts)
def test_a_linear_wait_is_base_times_the_attempt_within_the_cap(
    base_ms: int, max_ms: int, flow_id: str, attempt: int
) -> None:
    rule = steady("linear", base_ms, max_ms)
    assert rule.delay_ms(flow_id, attempt) == min(base_ms * attempt, max_ms)


@given(waits, waits, ids, attempts)
@example(1, limits.BACKOFF_MS_MAX, "a", 1)
@example(1, limits.BACKOFF_MS_MAX, "a", 32)
@example(1, limits.BACKOFF_MS_MAX, "a", 64)
@example(1, limits.BACKOFF_MS_MAX, "a", 65)
@example(1, limits.BACKOFF_MS_MAX, "a", 1_000)
@example(0, limits.BACKOFF_MS_MAX, "a", 1_000)
def test_an_exponential_wait_doubles_within_the_cap(
    base_ms: int, max_ms: int, flow_id: str, attempt: int
) -> None:
    rule = steady("exponential", base_ms, max_ms)
    assert rule.delay_ms(flow_id, attempt) == min(base_ms * 2 ** (attempt - 1), max_ms)


@given(kinds, waits, waits, ids, attempts)
def test_waits_without_jitter_never_shrink(
    kind: BackoffKind, base_ms: int, max_ms: int, flow_id: str, attempt: int
) -> None:
    rule = steady(kind, base_ms, max_ms)
    assert rule.delay_ms(flow_id, attempt) <= rule.delay_ms(flow_id, attempt + 1)


@given(rules, ids, attempts)
def test_jitter_only_shortens_and_by_no_more_than_its_share(
    rule: RetryRule, flow_id: str, attempt: int
) -> None:
    full_ms = steady(rule.kind, rule.base_ms, rule.max_ms).delay_ms(flow_id, attempt)
    wait_ms = rule.delay_ms(flow_id, attempt)
    assert full_ms * (100 - rule.jitter_pct) <= wait_ms * 100 <= full_ms * 100


@given(kinds, waits, waits, percents, attempts)
def test_jitter_spreads_different_flows(
    kind: BackoffKind, base_ms: int, max_ms: int, jitter_pct: int, attempt: int
) -> None:
    rule = RetryRule(kind=kind, base_ms=base_ms, max_ms=max_ms, jitter_pct=jitter_pct)
    seen = {rule.delay_ms(f"flow-{number}", attempt) for number in range(200)}
    spread_ms = steady(kind, base_ms, max_ms).delay_ms("a", attempt) * jitter_pct // 100
    assert len(seen) <= spread_ms + 1
    if spread_ms >= 100:
        assert len(seen) > 20


def test_jitter_reaches_both_ends_of_its_range() -> None:
    rule = RetryRule(kind="fixed", base_ms=10, max_ms=10, jitter_pct=100)
    assert {rule.delay_ms(f"f{number}", 1) for number in range(500)} == set(range(11))


def test_a_flow_does_not_have_the_same_jitter_in_every_attempt() -> None:
    rule = RetryRule(kind="fixed", base_ms=10_000, max_ms=10_000, jitter_pct=50)
    assert len({rule.delay_ms("flow", attempt) for attempt in range(1, 51)}) > 40


@given(st.lists(st.none() | patches, max_size=5))
def test_each_field_comes_from_the_first_layer_that_sets_it(
    layers: list[RetryPatch | None],
) -> None:
    decided = resolve(*layers)
    for field in RetryPatch.__struct_fields__:
        given_values = [getattr(layer, field) for layer in layers if layer is not None]
        wanted = next((v for v in given_values if v is not None), getattr(BUILT_IN, field))
        assert getattr(decided, field) == wanted


@given(patches)
def test_a_layer_that_sets_nothing_decides_nothing(patch: RetryPatch) -> None:
    assert resolve(RetryPatch(), None, patch, RetryPatch()) == resolve(patch)


def test_without_layers_the_built_in_rule_decides() -> None:
    told = RetryRule(
        max_retries=3,
        kind="exponential",
        base_ms=1_000,
        max_ms=30_000,
        jitter_pct=20,
        exhausted_to="failed",
        max_reclaims=16,
    )
    assert told == BUILT_IN
    assert resolve() == resolve(None) == RetryRule() == told


def test_zero_is_a_decision_of_its_layer() -> None:
    weaker = RetryPatch(max_retries=5, base_ms=5, max_ms=5, jitter_pct=5, max_reclaims=5)
    zeros = RetryPatch(max_retries=0, base_ms=0, max_ms=0, jitter_pct=0, max_reclaims=0)
    decided = resolve(zeros, weaker)
    assert (decided.max_retries, decided.base_ms, decided.max_ms) == (0, 0, 0)
    assert (decided.jitter_pct, decided.max_reclaims) == (0, 0)


@given(declarations)
def test_a_declaration_is_the_layer_that_it_spells(declared: dict[str, Any]) -> None:
    patch = patch_of(declared)
    assert patch is not None
    flat = {key: value for key, value in declared.items() if key != "backoff"}
    flat |= declared.get("backoff", {})
    assert {
        field: getattr(patch, field)
        for field in RetryPatch.__struct_fields__
        if getattr(patch, field) is not None
    } == flat


@given(declarations)
def test_an_object_and_a_dict_of_its_fields_are_the_same_layer(declared: dict[str, Any]) -> None:
    retry = Retry(**declared)
    assert patch_of(retry) == patch_of(declared)
    assert patch_of(retry.as_dict()) == patch_of(declared)


def test_no_declaration_is_no_layer() -> None:
    assert patch_of(None) is None


@given(declarations, ids)
def test_a_preview_lists_one_wait_for_each_retry(declared: dict[str, Any], flow_id: str) -> None:
    retry = Retry(**declared)
    rule = resolve(patch_of(retry))
    waits_ms = retry.preview(flow_id)
    assert len(waits_ms) == rule.max_retries == retry.max_retries
    assert waits_ms == [rule.delay_ms(flow_id, n + 1) for n in range(rule.max_retries)]


def test_a_preview_without_retries_is_empty() -> None:
    assert Retry(max_retries=0).preview() == []


def test_a_preview_of_plain_numbers() -> None:
    backoff = Backoff("exponential", base_ms=1_000, max_ms=5_000, jitter_pct=0)
    assert Retry(4, backoff).preview() == [1_000, 2_000, 4_000, 5_000]
    assert Retry(3, Backoff("linear", 10, 25, 0)).preview() == [10, 20, 25]
    assert Retry(2, Backoff("none")).preview() == [0, 0]


@given(declarations)
def test_a_retry_shows_what_was_given_and_the_built_in_for_the_rest(
    declared: dict[str, Any],
) -> None:
    retry = Retry(**declared)
    backoff = declared.get("backoff", {})
    assert retry.max_retries == declared.get("max_retries", 3)
    assert retry.exhausted_to == declared.get("exhausted_to", "failed")
    assert retry.max_reclaims == declared.get("max_reclaims", 16)
    assert [getattr(retry.backoff, field) for field in BACKOFF_FIELDS] == [
        backoff.get(field, getattr(BUILT_IN, field)) for field in BACKOFF_FIELDS
    ]


@given(declarations, declarations)
def test_retries_are_equal_when_they_were_given_the_same(
    left: dict[str, Any], right: dict[str, Any]
) -> None:
    one, other = Retry(**left), Retry(**left)
    assert one == other
    assert hash(one) == hash(other)
    assert (one == Retry(**right)) == (patch_of(left) == patch_of(right))


@given(declarations)
def test_a_retry_survives_pickling(declared: dict[str, Any]) -> None:
    retry = Retry(**declared)
    assert pickle.loads(pickle.dumps(retry)) == retry


def test_short_forms_make_the_backoff_they_name() -> None:
    assert [made.kind for made in (Backoff.none(), Backoff.fixed(), Backoff.linear())] == [
        "none",
        "fixed",
        "linear",
    ]
    assert Backoff.exponential(base_ms=5, max_ms=50) == Backoff("exponential", 5, 50)


@given(waits, st.none() | percents)
def test_a_fixed_short_form_waits_its_base_however_long(
    base_ms: int, jitter_pct: int | None
) -> None:
    retry = Retry(1, Backoff.fixed(base_ms, jitter_pct=0))
    assert retry.preview() == [base_ms]
    spread = Retry(1, Backoff.fixed(base_ms, jitter_pct=jitter_pct)).preview()
    assert spread[0] <= base_ms


@given(declarations)
def test_every_declaration_within_the_bounds_is_accepted(declared: dict[str, Any]) -> None:
    check_retry(declared)


@pytest.mark.parametrize(
    ("field", "largest"),
    [
        ("max_retries", 1_000),
        ("max_reclaims", limits.MAX_RECLAIMS_MAX),
        ("base_ms", 30 * 24 * 3_600_000),
        ("max_ms", 30 * 24 * 3_600_000),
        ("jitter_pct", 100),
    ],
)
def test_a_number_is_accepted_up_to_its_bound(field: str, largest: int) -> None:
    def declare(value: Any) -> dict[str, Any]:
        return {"backoff": {field: value}} if field in BACKOFF_FIELDS else {field: value}

    for value in (0, 1, largest, None):
        check_retry(declare(value))
    refused: list[Any] = [-1, largest + 1, 1.0, True, "1", [1]]
    for bad in refused:
        with pytest.raises(InvalidArgument) as caught:
            check_retry(declare(bad))
        assert field in str(caught.value)
        with pytest.raises(InvalidArgument):
            patch_of(declare(bad))
        with pytest.raises(InvalidArgument):
            Retry(**declare(bad))


@pytest.mark.parametrize(
    "declared",
    [
        {"tries": 1},
        {"kind": "fixed"},
        {"backoff": {"max_retries": 1}},
        {"backoff": {"kind": "quadratic"}},
        {"backoff": {"kind": 1}},
        {"backoff": ["fixed"]},
        {"backoff": "fixed"},
        {"backoff": 1_000},
        {"exhausted_to": "running"},
        {"exhausted_to": ""},
        {"exhausted_to": 0},
        {"exhausted_to": ["failed"]},
        {"exhausted_to": "x" * 513},
        {"exhausted_to": "\ud800"},
        {"tries": 1, 2: 3},
    ],
    ids=lambda declared: repr(declared)[:40],
)
def test_a_declaration_that_is_not_understood_is_refused(declared: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        check_retry(declared)
    with pytest.raises(InvalidArgument):
        patch_of(declared)


@pytest.mark.parametrize("declared", ["fixed", 3, ["max_retries"], True], ids=repr)
def test_a_retry_is_an_object_or_a_dict(declared: Any) -> None:
    with pytest.raises(InvalidArgument):
        patch_of(declared)


@pytest.mark.parametrize("state", ["failed", "completed", "cancelled", "repair", "Running"])
def test_exhausted_flows_may_go_to_every_state_but_running(state: str) -> None:
    check_retry({"exhausted_to": state})
    assert Retry(exhausted_to=state).exhausted_to == state


def test_none_clears_any_field() -> None:
    check_retry({"max_retries": None, "exhausted_to": None, "max_reclaims": None})
    check_retry({"backoff": dict.fromkeys(BACKOFF_FIELDS)})
    check_retry({"backoff": None})


def test_a_refusal_changes_nothing_of_what_it_was_given() -> None:
    declared = {"max_retries": 1_001, "backoff": {"base_ms": 5}}
    with pytest.raises(InvalidArgument):
        check_retry(declared)
    assert declared == {"max_retries": 1_001, "backoff": {"base_ms": 5}}


def test_every_kind_of_the_contract_exists() -> None:
    assert set(KINDS) == {"none", "fixed", "linear", "exponential"}
