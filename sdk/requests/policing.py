"""Policies of types."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from ...flow import commands, queries
from ...flow.errors import InvalidArgument
from ...flow.limits import POLICY_STATES_MAX
from ...flow.policy import Backoff, Retry, check_retry, patch_of, resolve
from ..checks import NOT_GIVEN, check_bool, check_int, check_name, check_open_state
from ..names import did_you_mean
from ..times import duration_ms
from .ask import Ask, Requests, now_of, read_data
from .creating import Duration, Instant, active_ms_of

_STATE_FIELDS = ("mode", "retry")
_MODES = ("parallel", "fifo")


class Policing(Requests):
    """policy_set and policy_get."""

    def flow_policy_set(
        self,
        type: str,
        *,
        replace: bool = False,
        expected_generation: int | None = None,
        retry: Retry | Mapping[str, Any] | None = NOT_GIVEN,
        retention_ttl_ms: Duration | None = NOT_GIVEN,
        max_active_ms: Duration | None = NOT_GIVEN,
        states: Mapping[str, Any] | None = NOT_GIVEN,
        now_ms: Instant | None = None,
    ) -> Ask[dict[str, Any]]:
        """Change a type's stored policy on every shard, and return it with its generation.

        A patch, merged field by field, in which None clears a field; `replace=True` swaps the
        whole policy.

        Raises:
            StalePolicyGeneration: the policy is not at `expected_generation`.
        """
        patch: dict[str, Any] = {}
        if retry is not NOT_GIVEN:
            patch["retry"] = _retry_patch(retry)
        if retention_ttl_ms is not NOT_GIVEN:
            patch["retention_ttl_ms"] = _ttl(retention_ttl_ms)
        if max_active_ms is not NOT_GIVEN:
            patch["max_active_ms"] = active_ms_of(max_active_ms)
        if states is not NOT_GIVEN:
            patch["states"] = _states_patch(states)
        if expected_generation is not None:
            check_int(expected_generation, "expected_generation")
        command = commands.PolicySet(
            check_name(type, "type"),
            patch,
            check_bool(replace, "replace"),
            expected_generation,
            now_of(now_ms),
        )
        return Ask(command, lambda reply: _told(read_data(reply)))

    def flow_policy_get(
        self, type: str, state: str | None = None, *, now_ms: Instant | None = None
    ) -> Ask[dict[str, Any]]:
        """Return a type's stored policy with its generation (0: none was ever set).

        With `state`, the policy in effect there, every field decided.
        """
        query = queries.PolicyGet(check_name(type, "type"), now_of(now_ms))
        if state is None:
            return Ask(query, lambda reply: _told(read_data(reply)))
        check_name(state, "state")
        return Ask(query, lambda reply: _effective(read_data(reply), state))


def _ttl(value: Any) -> int | None:
    return None if value is None else duration_ms(value, "retention_ttl_ms")


def _told(data: dict[str, Any]) -> dict[str, Any]:
    return {"type": data["type"], "generation": data["generation"], **deepcopy(data["policy"])}


def _effective(data: dict[str, Any], state: str) -> dict[str, Any]:
    policy = data["policy"]
    of_state = policy.get("states", {}).get(state, {})
    rule = resolve(patch_of(of_state.get("retry")), patch_of(policy.get("retry")))
    return {
        "type": data["type"],
        "state": state,
        "generation": data["generation"],
        "mode": of_state.get("mode", "parallel"),
        "retention_ttl_ms": policy.get("retention_ttl_ms"),
        "max_active_ms": policy.get("max_active_ms"),
        "retry": {
            "max_retries": rule.max_retries,
            "exhausted_to": rule.exhausted_to,
            "max_reclaims": rule.max_reclaims,
            "backoff": {
                "kind": rule.kind,
                "base_ms": rule.base_ms,
                "max_ms": rule.max_ms,
                "jitter_pct": rule.jitter_pct,
            },
        },
    }


def _retry_patch(retry: Any) -> dict[str, Any] | None:
    if retry is None:
        return None
    if isinstance(retry, Retry):
        return retry.as_dict()
    if not isinstance(retry, Mapping):
        raise InvalidArgument(
            f"retry is a Retry or a dict of its fields; got {retry!r}", argument="retry"
        )
    fields = dict(retry)
    if isinstance(fields.get("backoff"), Backoff):
        fields["backoff"] = fields["backoff"].as_dict()
    elif isinstance(fields.get("backoff"), Mapping):
        fields["backoff"] = dict(fields["backoff"])
    check_retry(fields)
    return fields


def _states_patch(states: Any) -> dict[str, Any] | None:
    if states is None:
        return None
    if not isinstance(states, Mapping):
        raise InvalidArgument(
            f"states is a dict of states to policies; got {states!r}", argument="states"
        )
    if len(states) > POLICY_STATES_MAX:
        raise InvalidArgument(
            f"states has {len(states)} entries; {POLICY_STATES_MAX} is the most",
            argument="states",
        )
    patch: dict[str, Any] = {}
    for state, policy in states.items():
        check_open_state(state, "states")
        patch[state] = None if policy is None else _state_patch(state, policy)
    return patch


def _state_patch(state: str, policy: Any) -> dict[str, Any]:
    if not isinstance(policy, Mapping):
        raise InvalidArgument(
            f"states[{state!r}] is a dict or None; got {policy!r}", argument="states"
        )
    for name in policy:
        if name not in _STATE_FIELDS:
            raise InvalidArgument(
                f"states[{state!r}]: {name!r} is not understood; "
                f"{did_you_mean(name, _STATE_FIELDS)}",
                argument="states",
            )
    patch: dict[str, Any] = {}
    if "retry" in policy:
        patch["retry"] = _retry_patch(policy["retry"])
    if "mode" in policy:
        patch["mode"] = _mode(state, policy["mode"])
    return patch


def _mode(state: str, mode: Any) -> str | None:
    if mode is not None and mode not in _MODES:
        raise InvalidArgument(
            f"states[{state!r}]: mode is one of {', '.join(_MODES)}; got {mode!r}",
            argument="states",
        )
    if mode == "fifo":
        raise InvalidArgument(
            f"states[{state!r}]: this version of shardflow has no fifo lanes yet; use "
            'mode="parallel"',
            argument="states",
        )
    return str(mode) if mode is not None else None
