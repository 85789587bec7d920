"""The table: which function decides which command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import commands, family
from ..replies import Reply
from . import claim, create, expiry, lease, move, policies, posts, retry, settle, spawn, values
from .state import ShardState
from .turn import Turn

Decide = Callable[[ShardState, Any, Turn], Reply]


def _policy_set(state: ShardState, command: commands.PolicySet, turn: Turn) -> Reply:
    return policies.policy_set(state.policies, command, turn)


def _policy_adopt(state: ShardState, command: commands.PolicyAdopt, turn: Turn) -> Reply:
    return policies.policy_adopt(state.policies, command, turn)


TABLE: dict[type, Decide] = {
    commands.Create: create.create,
    commands.StartAndClaim: create.start_and_claim,
    commands.ClaimDue: claim.claim_due,
    commands.Complete: settle.complete,
    commands.Fail: settle.fail,
    commands.Cancel: settle.cancel,
    commands.Retry: retry.retry,
    commands.Transition: move.transition,
    commands.StepContinue: move.step_continue,
    commands.ExtendLease: lease.extend_lease,
    commands.Release: lease.release,
    commands.ValuePut: values.value_put,
    commands.SharedValuePut: values.shared_value_put,
    commands.PolicySet: _policy_set,
    commands.PolicyAdopt: _policy_adopt,
    commands.RetentionCleanup: expiry.retention_cleanup,
    commands.Sweep: expiry.sweep,
    family.SpawnBegin: spawn.spawn_begin,
    family.SpawnDecide: spawn.spawn_decide,
    family.SpawnEnd: spawn.spawn_end,
    family.AskOutcome: spawn.ask_outcome,
    family.Prepare: spawn.prepare,
    family.Commit: spawn.commit,
    family.Abort: spawn.abort,
    family.Deliver: posts.deliver,
}
