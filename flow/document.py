"""A type's policy as a document: what is sent, stored, and told. Checked before it is kept.

A document that is in the log is read at every start, and every decision about its type goes by
it: one that a decision cannot read would end the shard again and again.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from .bounds import BackoffMs, JitterPct, MaxReclaims, MaxRetries, Name, Natural, Positive, is_long
from .limits import POLICY_STATES_MAX
from .policy import BackoffKind
from .record import RUNNING, TERMINAL_STATES


class _Backoff(Struct, forbid_unknown_fields=True, gc=False):
    kind: BackoffKind | None = None
    base_ms: BackoffMs | None = None
    max_ms: BackoffMs | None = None
    jitter_pct: JitterPct | None = None


class _Retry(Struct, forbid_unknown_fields=True, gc=False):
    max_retries: MaxRetries | None = None
    exhausted_to: Name | None = None
    max_reclaims: MaxReclaims | None = None
    backoff: _Backoff | None = None


class _State(Struct, forbid_unknown_fields=True, gc=False):
    mode: Literal["parallel", "fifo"] | None = None
    retry: _Retry | None = None


class _Policy(Struct, forbid_unknown_fields=True, gc=False):
    """None clears a field of the policy that a patch is merged into."""

    retry: _Retry | None = None
    retention_ttl_ms: Natural | None = None
    max_active_ms: Positive | None = None
    states: Annotated[dict[Name, _State | None], Meta(max_length=POLICY_STATES_MAX)] | None = None


def fault_of(document: dict[str, Any]) -> str | None:
    """Return what is wrong with a policy or a patch of one, for its sender; None = nothing."""
    try:
        policy = msgspec.convert(document, _Policy)
    except msgspec.ValidationError as error:
        return str(error)
    retries = [policy.retry]
    for state, of_state in (policy.states or {}).items():
        if state == RUNNING or state in TERMINAL_STATES or is_long(state):
            return f"states: {state!r} is reserved or too long"
        if of_state is not None:
            retries.append(of_state.retry)
    for retry in retries:
        end = None if retry is None else retry.exhausted_to
        if end is not None and (end == RUNNING or is_long(end)):
            return f"exhausted_to: {end!r} is reserved or too long"
    return None
