"""Stored policies: one per type, the same on every shard, by generation."""

from __future__ import annotations

from typing import Any

from ..commands import PolicyAdopt, PolicySet
from ..document import fault_of
from ..events import PolicyStored
from ..limits import INTEGER_MAX, POLICY_STATES_MAX
from ..policy import RetryPatch, RetryRule, patch_of, resolve
from ..queries import PolicyGet
from ..replies import Data, Reply, reject
from .turn import Turn

_RULES_MAX = 10_000
"""Merged rules kept; past it they are made anew."""


class Policies:
    """The stored policies of a shard, with the retry rules that follow from them."""

    def __init__(self) -> None:
        self._stored: dict[str, PolicyStored] = {}
        self._rules: dict[tuple[str, str], RetryRule] = {}
        """Merged without a command layer; forgotten when the type's policy changes."""

    def get(self, flow_type: str) -> PolicyStored | None:
        """Return the stored policy of a type."""
        return self._stored.get(flow_type)

    def all(self) -> list[PolicyStored]:
        """Return every stored policy."""
        return list(self._stored.values())

    def store(self, policy: PolicyStored) -> None:
        """Put a policy in the place of its predecessor."""
        self._stored[policy.type] = policy
        self._rules.clear()

    def rule(self, flow_type: str, state: str, command: RetryPatch | None = None) -> RetryRule:
        """Return the retry rule of a state: command over state over type over built-in."""
        key = (flow_type, state)
        if command is None and (rule := self._rules.get(key)) is not None:
            return rule
        stored = self._stored.get(flow_type)
        policy = {} if stored is None else stored.policy
        of_state = policy.get("states", {}).get(state, {})
        rule = resolve(command, patch_of(of_state.get("retry")), patch_of(policy.get("retry")))
        if command is None:
            if len(self._rules) >= _RULES_MAX:
                self._rules.clear()
            self._rules[key] = rule
        return rule

    def retention_ttl_ms(self, flow_type: str) -> int | None:
        """Return how long ended flows of the type are kept, if its policy says so."""
        stored = self._stored.get(flow_type)
        return None if stored is None else stored.policy.get("retention_ttl_ms")


def policy_set(policies: Policies, command: PolicySet, turn: Turn) -> Reply:
    """Merge or replace a type's policy; every applied call is a new generation."""
    if (fault := fault_of(command.patch)) is not None:
        return _invalid(command.type, fault)
    stored = policies.get(command.type)
    generation = 0 if stored is None else stored.generation
    if command.expected_generation not in (None, generation):
        return reject(
            "stale_policy_generation",
            f"the policy of {command.type!r} is at generation {generation}, not "
            f"{command.expected_generation}: read it again and repeat the change",
            generation=generation,
        )
    base = {} if stored is None or command.replace else stored.policy
    policy = PolicyStored(command.type, _merge(base, command.patch), generation + 1)
    if len(policy.policy.get("states", ())) > POLICY_STATES_MAX:
        return _invalid(command.type, f"it would have over {POLICY_STATES_MAX} states")
    if policy.generation > INTEGER_MAX:
        return _invalid(command.type, "there is no generation after this one")
    turn.facts.append(policy)
    return Data(_told(policy))


def policy_adopt(policies: Policies, command: PolicyAdopt, turn: Turn) -> Reply:
    """Follow the deciding shard; a generation that is not newer is already here."""
    if (fault := fault_of(command.policy)) is not None:
        return _invalid(command.type, fault)
    stored = policies.get(command.type)
    if stored is None or stored.generation < command.generation:
        # What a patch may clear has no place in a policy that is kept.
        policy = _merge({}, command.policy)
        turn.facts.append(PolicyStored(command.type, policy, command.generation))
    return Data(None)


def policy_get(policies: Policies, query: PolicyGet) -> Reply:
    """Return the stored policy of one type, or of all."""
    if query.type is None:
        return Data([_told(policy) for policy in policies.all()])
    stored = policies.get(query.type)
    return Data(_told(stored or PolicyStored(query.type, {}, 0)))


def _invalid(flow_type: str, fault: str) -> Reply:
    return reject("invalid_argument", f"the policy of {flow_type!r}: {fault}", argument="policy")


def _told(policy: PolicyStored) -> dict[str, Any]:
    return {"type": policy.type, "policy": policy.policy, "generation": policy.generation}


def _merge(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Deep-merge: None clears a field, a dict merges into a dict, anything else replaces."""
    merged = dict(base)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            below = merged.get(name)
            merged[name] = _merge(below if isinstance(below, dict) else {}, value)
            if not merged[name]:
                del merged[name]
        else:
            merged[name] = value
    return merged
