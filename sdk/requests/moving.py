"""Moves between states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...flow import commands
from ...flow.commands import Move
from ...flow.limits import PRIORITY_MAX
from ...flow.record import FlowRecord
from ..checks import (
    NOT_GIVEN,
    check_attributes,
    check_int,
    check_name,
    check_name_or_none,
    check_open_state,
)
from ..times import instant_ms
from .ask import Ask, Draft, Requests, batch, now_of, read_one, single
from .creating import Duration, Instant, check_lease


class Moving(Requests):
    """transition, one by one and many at once, and step_continue."""

    def _transition(
        self,
        id: str,
        from_state: str,
        to_state: str,
        *,
        fencing_token: int,
        lease_token: str | None = None,
        payload: Any = NOT_GIVEN,
        run_at_ms: Instant | None = None,
        priority: int | None = None,
        values: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        partition_key: str | None = None,
        now_ms: Instant | None = None,
    ) -> Draft[Move]:
        """Move a flow to another state, due now or at `run_at_ms`; a lease ends.

        `from_state` is the logical state; "running" is accepted for a leased flow.

        Raises:
            WrongState: it is in another state.
            StaleLease: it is leased and the tokens are not the current ones.
            FlowTerminal: it has ended.
            FlowNotFound: there is no such flow.
        """
        item = Move(
            check_name(id, "id"),
            check_name_or_none(partition_key, "partition_key"),
            check_name(from_state, "from_state"),
            check_open_state(to_state, "to_state"),
            check_int(fencing_token, "fencing_token"),
            check_name_or_none(lease_token, "lease_token"),
            self._pack(payload, "payload"),
            None if run_at_ms is None else instant_ms(run_at_ms, "run_at_ms"),
            None if priority is None else check_int(priority, "priority", 0, PRIORITY_MAX),
            self._pack_named(values),
            check_attributes(attributes),
        )
        return item, now_ms

    flow_transition = single(_transition, commands.Transition)

    def flow_transition_many(
        self,
        /,
        items: Iterable[Mapping[str, Any]],
        *,
        independent: bool = False,
        now_ms: Instant | None = None,
        **defaults: Any,
    ) -> Ask[list[Any]]:
        """Move up to 1,000 flows; items are dicts of `flow_transition`'s arguments.

        Raises:
            BatchError: some shard's group was refused.
        """
        return batch(self._transition, items, defaults, commands.Transition, independent, now_ms)

    def flow_step_continue(
        self,
        id: str,
        lease_token: str | None,
        from_state: str,
        to_state: str,
        *,
        fencing_token: int,
        lease_ms: Duration,
        payload: Any = NOT_GIVEN,
        values: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        partition_key: str | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[FlowRecord]:
        """Move a claimed flow and keep it: a new lease token, the fencing token + 1.

        Raises:
            WrongState: it is in another state.
            StaleLease: the tokens are not those of the current lease.
            FlowNotFound: there is no such flow.
        """
        item, _ = self._transition(
            id,
            from_state,
            to_state,
            fencing_token=fencing_token,
            lease_token=check_name(lease_token, "lease_token"),
            payload=payload,
            values=values,
            attributes=attributes,
            partition_key=partition_key,
        )
        command = commands.StepContinue(item, check_lease(lease_ms), now_of(now_ms))
        return Ask(command, read_one)
