"""Section 7: setting, patching, replacing and reading the policy of a type."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import DAY_MS, Flows, Name, assert_absent


def put(flows: Flows, **options: Any) -> dict[str, Any]:
    """Set the policy of the test's type and return what is stored now."""
    flows.store.flow_policy_set(flows.type, **options)
    return stored(flows)


def stored(flows: Flows) -> dict[str, Any]:
    found: dict[str, Any] = flows.store.flow_policy_get(flows.type)
    assert found["type"] == flows.type
    return found


def fields(policy: dict[str, Any]) -> dict[str, Any]:
    """Return what was set, without the fields that every answer has."""
    return {
        key: value
        for key, value in policy.items()
        if key not in ("type", "generation") and value not in (None, {})
    }


def test_a_policy_reads_as_it_was_set(flows: Flows) -> None:
    given = {
        "retry": {"max_retries": 8, "backoff": {"kind": "fixed", "base_ms": 0}},
        "retention_ttl_ms": 60_000,
        "states": {"created": {"retry": {"max_retries": 0}}, "charged": {"mode": "parallel"}},
    }
    assert fields(put(flows, **given)) == given


def test_a_retry_object_sets_the_fields_it_was_given(flows: Flows) -> None:
    retry = sf.Retry(max_retries=0, backoff=sf.Backoff(base_ms=5))
    assert fields(put(flows, retry=retry)) == {
        "retry": {"max_retries": 0, "backoff": {"base_ms": 5}}
    }


def test_a_policy_grows_by_patches(flows: Flows) -> None:
    put(flows, retry={"max_retries": 8})
    put(flows, retry={"backoff": {"base_ms": 10}})
    put(flows, retry={"backoff": {"kind": "linear"}}, retention_ttl_ms=5)
    put(flows, states={"a": {"retry": {"max_retries": 1}}})
    put(flows, states={"a": {"retry": {"backoff": {"jitter_pct": 0}}}, "b": {"retry": {}}})
    found = fields(put(flows, retry={"max_retries": 9}))
    assert found["retry"] == {"max_retries": 9, "backoff": {"base_ms": 10, "kind": "linear"}}
    assert found["retention_ttl_ms"] == 5
    assert found["states"]["a"]["retry"] == {"max_retries": 1, "backoff": {"jitter_pct": 0}}


def test_none_clears_a_field(flows: Flows) -> None:
    put(
        flows,
        retry={"max_retries": 8, "backoff": {"base_ms": 10, "max_ms": 20}},
        retention_ttl_ms=5,
        states={"a": {"retry": {"max_retries": 1}}, "b": {"retry": {"max_retries": 2}}},
    )
    put(flows, retention_ttl_ms=None)
    put(flows, retry={"backoff": {"base_ms": None}})
    found = fields(put(flows, states={"a": None}))
    assert found == {
        "retry": {"max_retries": 8, "backoff": {"max_ms": 20}},
        "states": {"b": {"retry": {"max_retries": 2}}},
    }
    assert fields(put(flows, retry=None, states=None)) == {}


def test_zero_is_a_setting_and_not_a_missing_one(flows: Flows) -> None:
    put(flows, retry={"max_retries": 8, "max_reclaims": 3, "backoff": {"jitter_pct": 10}})
    found = put(flows, retry={"max_retries": 0, "max_reclaims": 0, "backoff": {"jitter_pct": 0}})
    assert found["retry"] == {"max_retries": 0, "max_reclaims": 0, "backoff": {"jitter_pct": 0}}


def test_replace_swaps_the_whole_policy(flows: Flows) -> None:
    put(flows, retry={"max_retries": 8}, retention_ttl_ms=5, states={"a": {"retry": {}}})
    found = put(flows, replace=True, retry={"backoff": {"base_ms": 10}})
    assert fields(found) == {"retry": {"backoff": {"base_ms": 10}}}
    assert fields(put(flows, replace=True)) == {}


def test_the_generation_goes_up_by_one_each_time(flows: Flows) -> None:
    first = put(flows, retry={"max_retries": 1})["generation"]
    assert put(flows, retry={"max_retries": 2})["generation"] == first + 1
    assert put(flows, retry={"max_retries": 2})["generation"] == first + 2
    assert put(flows, replace=True)["generation"] == first + 3
    assert stored(flows)["generation"] == first + 3


def test_an_expected_generation_guards_a_change(flows: Flows) -> None:
    first = put(flows, retry={"max_retries": 1})
    second = put(flows, retry={"max_retries": 2}, expected_generation=first["generation"])
    for expected in (first["generation"], second["generation"] + 1, 0):
        for replace in (False, True):
            with pytest.raises(sf.StalePolicyGeneration) as caught:
                put(
                    flows,
                    retry={"max_retries": 3},
                    replace=replace,
                    expected_generation=expected,
                )
            assert caught.value.generation == second["generation"]
    assert stored(flows) == second


def test_types_have_policies_of_their_own(flows: Flows, name: Name) -> None:
    mine = put(flows, retry={"max_retries": 1})
    flows.store.flow_policy_set(name("other-type"), retry={"max_retries": 2})
    assert stored(flows) == mine


@pytest.mark.parametrize(
    "wrong",
    [
        {"retry": {"max_retries": 1_001}},
        {"retry": {"max_retries": -1}},
        {"retry": {"exhausted_to": "running"}},
        {"retry": {"backoff": {"base_ms": 30 * DAY_MS + 1}}},
        {"retry": {"backoff": {"jitter_pct": 101}}},
        {"retry": {"backoff": {"kind": "quadratic"}}},
        {"retry": {"colour": "red"}},
        {"retry": "fixed"},
        {"retention_ttl_ms": -1},
        {"retention_ttl_ms": 1.5},
        {"retention_ttl_ms": 2**53},
        {"states": {"a": {"retry": {"max_retries": 1_001}}}},
        {"states": {"a": {"mode": "sideways"}}},
        {"states": {"a": {"colour": "red"}}},
        {"states": {"": {"retry": {}}}},
        {"states": {"running": {"retry": {}}}},
        {"states": {"a": "fifo"}},
        {"states": ["a"]},
        {"expected_generation": -1},
    ],
    ids=repr,
)
def test_a_policy_that_is_not_allowed_changes_nothing(flows: Flows, wrong: dict[str, Any]) -> None:
    before = put(flows, retry={"max_retries": 1})
    with pytest.raises(sf.InvalidArgument):
        put(flows, **wrong)
    assert stored(flows) == before


def test_a_policy_with_an_unknown_field_is_a_type_error(flows: Flows) -> None:
    loose: Any = flows.store
    with pytest.raises(TypeError):
        loose.flow_policy_set(flows.type, colour="red")


def test_bounds_themselves_are_allowed(flows: Flows) -> None:
    retry = {
        "max_retries": 1_000,
        "backoff": {"base_ms": 30 * DAY_MS, "max_ms": 30 * DAY_MS, "jitter_pct": 100},
    }
    assert put(flows, retry=retry)["retry"] == retry


def test_a_changed_answer_does_not_change_the_policy(flows: Flows) -> None:
    first = put(flows, retry={"max_retries": 1})
    first["retry"]["max_retries"] = 5
    assert stored(flows)["retry"] == {"max_retries": 1}


def test_the_policy_decides_how_long_a_flow_is_kept(flows: Flows, clock: ManualClock) -> None:
    put(flows, retention_ttl_ms=1_000)
    by_policy = flows.ended("policy")
    by_creation = flows.ended("creation", retention_ttl_ms=2_000)
    by_end = flows.complete(flows.leased("end"), retention_ttl_ms=3_000)
    clock.advance(1_000)
    assert_absent(flows, by_policy)
    assert flows.get(by_creation).state == "completed"
    clock.advance(1_000)
    assert_absent(flows, by_creation)
    assert flows.get(by_end).state == "completed"
    clock.advance(1_000)
    assert_absent(flows, by_end)


def test_a_retention_of_zero_in_the_policy_is_a_retention(flows: Flows) -> None:
    put(flows, retention_ttl_ms=0)
    assert_absent(flows, flows.ended())
