"""Sections 5 and 7: which layer decides each field of a retry."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from support.contract import Flows, Name

BUILT_IN: dict[str, Any] = {
    "max_retries": 3,
    "exhausted_to": "failed",
    "max_reclaims": 16,
    "backoff": {"kind": "exponential", "base_ms": 1_000, "max_ms": 30_000, "jitter_pct": 20},
}


def effective(flows: Flows, state: str = "queued") -> dict[str, Any]:
    found: dict[str, Any] = flows.store.flow_policy_get(flows.type, state=state)
    assert (found["type"], found["state"]) == (flows.type, state)
    return found


def wait_ms(flows: Flows, suffix: object, **options: Any) -> int:
    """Retry a new flow once and return how long it has to wait."""
    flow = flows.retry(flows.leased(suffix), **options)
    assert flow.next_run_at_ms is not None
    return flow.next_run_at_ms - flows.clock.now_ms()


def test_without_a_policy_the_built_in_one_is_effective(flows: Flows) -> None:
    found = effective(flows)
    assert found["retry"] == BUILT_IN
    assert found["mode"] == "parallel"


def test_the_type_decides_over_the_built_in(flows: Flows) -> None:
    flows.store.flow_policy_set(
        flows.type, retry={"max_retries": 0, "backoff": {"base_ms": 7}}, retention_ttl_ms=9
    )
    found = effective(flows)
    assert found["retry"] == {
        **BUILT_IN,
        "max_retries": 0,
        "backoff": {**BUILT_IN["backoff"], "base_ms": 7},
    }
    assert found["retention_ttl_ms"] == 9
    assert found["generation"] == flows.store.flow_policy_get(flows.type)["generation"]


def test_the_state_decides_over_the_type_field_by_field(flows: Flows) -> None:
    flows.store.flow_policy_set(
        flows.type,
        retry={"max_retries": 9, "exhausted_to": "repair", "backoff": {"base_ms": 7, "max_ms": 8}},
        states={"charging": {"retry": {"max_retries": 0, "backoff": {"max_ms": 6}}}},
    )
    assert effective(flows, "charging")["retry"] == {
        **BUILT_IN,
        "max_retries": 0,
        "exhausted_to": "repair",
        "backoff": {**BUILT_IN["backoff"], "base_ms": 7, "max_ms": 6},
    }
    assert effective(flows, "other")["retry"]["max_retries"] == 9


@pytest.mark.parametrize("layer", ["type", "state"])
def test_a_stored_policy_decides_how_a_flow_is_retried(flows: Flows, layer: str) -> None:
    retry = {"backoff": {"kind": "fixed", "base_ms": 321, "jitter_pct": 0}}
    given: dict[str, Any] = {"retry": retry}
    policy: dict[str, Any] = given if layer == "type" else {"states": {"queued": given}}
    flows.store.flow_policy_set(flows.type, **policy)
    assert wait_ms(flows, "a") == 321


def test_a_stored_policy_of_another_state_does_not_count(flows: Flows) -> None:
    flows.store.flow_policy_set(
        flows.type,
        retry={"backoff": {"kind": "fixed", "base_ms": 11, "jitter_pct": 0}},
        states={"other": {"retry": {"backoff": {"base_ms": 22}}}},
    )
    assert wait_ms(flows, "a") == 11


def test_the_command_decides_over_everything_field_by_field(flows: Flows) -> None:
    flows.store.flow_policy_set(
        flows.type,
        retry={"max_retries": 0, "backoff": {"kind": "linear", "base_ms": 10, "jitter_pct": 0}},
        states={"queued": {"retry": {"backoff": {"base_ms": 20}}}},
    )
    assert flows.retry(flows.leased("none")).state == "failed"
    assert wait_ms(flows, "some", retry={"max_retries": 5}) == 20
    assert wait_ms(flows, "object", retry=sf.Retry(max_retries=5)) == 20
    deep = {"max_retries": 5, "backoff": {"base_ms": 30}}
    assert wait_ms(flows, "deep", retry=deep) == 30


def test_a_command_does_not_change_what_is_stored(flows: Flows) -> None:
    before = effective(flows)
    wait_ms(flows, "a", retry={"max_retries": 5, "backoff": {"kind": "none"}})
    assert effective(flows) == before


def test_zero_in_a_stronger_layer_is_a_decision(flows: Flows) -> None:
    flows.store.flow_policy_set(
        flows.type,
        retry={"max_retries": 5, "backoff": {"kind": "fixed", "base_ms": 10, "jitter_pct": 50}},
        states={"queued": {"retry": {"backoff": {"jitter_pct": 0, "base_ms": 0}}}},
    )
    assert flows.retry(flows.leased("command"), retry={"max_retries": 0}).state == "failed"
    assert wait_ms(flows, "state") == 0


def test_a_policy_holds_for_flows_that_were_there_before(flows: Flows) -> None:
    job = flows.leased()
    flows.store.flow_policy_set(flows.type, retry={"max_retries": 0, "exhausted_to": "repair"})
    assert flows.retry(job).state == "repair"


def test_a_policy_holds_on_every_shard(flows: Flows, name: Name) -> None:
    flows.store.flow_policy_set(flows.type, retry={"max_retries": 0, "exhausted_to": "repair"})
    for key in name.partitions():
        assert flows.retry(flows.leased(key, partition_key=key)).state == "repair"
    flows.store.flow_policy_set(flows.type, retry={"exhausted_to": None})
    for key in name.partitions():
        job = flows.leased(f"{key}-2", partition_key=key)
        assert flows.retry(job).state == "failed"


def test_the_policy_of_the_state_left_decides_not_that_of_the_state_reached(
    flows: Flows,
) -> None:
    flows.store.flow_policy_set(
        flows.type,
        states={
            "queued": {"retry": {"max_retries": 0, "exhausted_to": "repair"}},
            "repair": {"retry": {"max_retries": 1, "backoff": {"kind": "none"}}},
        },
    )
    flow = flows.retry(flows.leased())
    assert flow.state == "repair"
    flow = flows.retry(flows.take(flow))
    assert (flow.state, flow.attempts) == ("repair", 1)
    assert flows.retry(flows.take(flow)).state == "failed"


def test_a_leased_flow_is_judged_by_its_logical_state(flows: Flows) -> None:
    flows.store.flow_policy_set(flows.type, states={"b": {"retry": {"max_retries": 0}}})
    stepped = flows.step(flows.leased(state="a"), "b")
    assert flows.retry(stepped).state == "failed"
