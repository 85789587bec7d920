"""Ends, retries and leases of claimed flows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...flow import commands
from ...flow.commands import Ending, Extension, Retrying
from ...flow.limits import LEASE_MS_DEFAULT
from ...flow.policy import Retry, patch_of
from ...flow.record import FlowRecord
from ..checks import (
    NOT_GIVEN,
    check_attributes,
    check_batch,
    check_bool,
    check_distinct,
    check_int,
    check_name,
    check_name_or_none,
)
from ..times import duration_ms, instant_ms
from .ask import Ask, Requests, now_of, read_batch, read_each, read_one
from .creating import Duration, Instant, check_lease


class Settling(Requests):
    """complete, fail, cancel, retry and extend_lease, one by one and many at once."""

    def flow_complete(
        self,
        id: str,
        lease_token: str,
        *,
        fencing_token: int,
        result: Any = NOT_GIVEN,
        payload: Any = NOT_GIVEN,
        values: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        retention_ttl_ms: Duration | None = None,
        partition_key: str | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[FlowRecord]:
        """End a claimed flow well. Repeated with the same tokens, it returns the record.

        Raises:
            StaleLease: the tokens are not those of the current lease.
            FlowNotFound: there is no such flow.
        """
        item = self._ending(
            "result",
            id=id,
            lease_token=lease_token,
            fencing_token=fencing_token,
            result=result,
            payload=payload,
            values=values,
            attributes=attributes,
            retention_ttl_ms=retention_ttl_ms,
            partition_key=partition_key,
        )
        return Ask(commands.Complete([item], False, now_of(now_ms)), read_one)

    def flow_complete_many(
        self,
        /,
        items: Iterable[Mapping[str, Any]],
        *,
        independent: bool = False,
        now_ms: Instant | None = None,
        **defaults: Any,
    ) -> Ask[list[Any]]:
        """Complete up to 1,000 claimed flows; items are dicts of `flow_complete`'s arguments.

        Raises:
            BatchError: some shard's group was refused.
        """
        endings = self._endings("result", items, defaults)
        return many(commands.Complete, endings, independent, now_ms)

    def flow_fail(
        self,
        id: str,
        lease_token: str,
        *,
        fencing_token: int,
        error: Any = NOT_GIVEN,
        payload: Any = NOT_GIVEN,
        values: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        retention_ttl_ms: Duration | None = None,
        partition_key: str | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[FlowRecord]:
        """End a claimed flow badly. Repeated with the same tokens, it returns the record.

        Raises:
            StaleLease: the tokens are not those of the current lease.
            FlowNotFound: there is no such flow.
        """
        item = self._ending(
            "error",
            id=id,
            lease_token=lease_token,
            fencing_token=fencing_token,
            error=error,
            payload=payload,
            values=values,
            attributes=attributes,
            retention_ttl_ms=retention_ttl_ms,
            partition_key=partition_key,
        )
        return Ask(commands.Fail([item], False, now_of(now_ms)), read_one)

    def flow_fail_many(
        self,
        /,
        items: Iterable[Mapping[str, Any]],
        *,
        independent: bool = False,
        now_ms: Instant | None = None,
        **defaults: Any,
    ) -> Ask[list[Any]]:
        """Fail up to 1,000 claimed flows; items are dicts of `flow_fail`'s arguments.

        Raises:
            BatchError: some shard's group was refused.
        """
        return many(commands.Fail, self._endings("error", items, defaults), independent, now_ms)

    def flow_cancel(
        self,
        id: str,
        *,
        fencing_token: int | None = None,
        lease_token: str | None = None,
        reason: Any = NOT_GIVEN,
        force: bool = False,
        values: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        retention_ttl_ms: Duration | None = None,
        partition_key: str | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[FlowRecord]:
        """End a flow from outside. The reason is kept as its error.

        A leased flow takes its lease token, or `force=True`, which fences the holder off. A flow
        that is cancelled already is returned as it is.

        Raises:
            StaleLease: it is leased and neither the token nor force was given, or fencing_token
                is not the current one.
            FlowTerminal: it is completed or failed.
            FlowNotFound: there is no such flow.
        """
        item = self._cancelling(
            id=id,
            fencing_token=fencing_token,
            lease_token=lease_token,
            reason=reason,
            force=force,
            values=values,
            attributes=attributes,
            retention_ttl_ms=retention_ttl_ms,
            partition_key=partition_key,
        )
        return Ask(commands.Cancel([item], False, now_of(now_ms)), read_one)

    def flow_cancel_many(
        self,
        /,
        items: Iterable[Mapping[str, Any]],
        *,
        independent: bool = False,
        now_ms: Instant | None = None,
        **defaults: Any,
    ) -> Ask[list[Any]]:
        """Cancel up to 1,000 flows; items are dicts of `flow_cancel`'s arguments.

        Raises:
            BatchError: some shard's group was refused.
        """
        found = [self._cancelling(**{**defaults, **item}) for item in check_batch(items)]
        return many(commands.Cancel, found, independent, now_ms)

    def flow_retry(
        self,
        id: str,
        lease_token: str,
        *,
        fencing_token: int,
        error: Any = NOT_GIVEN,
        retry: Retry | Mapping[str, Any] | None = None,
        run_at_ms: Instant | None = None,
        payload: Any = NOT_GIVEN,
        values: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        partition_key: str | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[FlowRecord]:
        """Give a claimed flow back for another attempt, or end it if its attempts are used up.

        `retry` overrides the stored policies field by field.

        Raises:
            StaleLease: the tokens are not those of the current lease.
            FlowNotFound: there is no such flow.
        """
        item = self._retrying(
            id=id,
            lease_token=lease_token,
            fencing_token=fencing_token,
            error=error,
            retry=retry,
            run_at_ms=run_at_ms,
            payload=payload,
            values=values,
            attributes=attributes,
            partition_key=partition_key,
        )
        return Ask(commands.Retry([item], False, now_of(now_ms)), read_one)

    def flow_retry_many(
        self,
        /,
        items: Iterable[Mapping[str, Any]],
        *,
        independent: bool = False,
        now_ms: Instant | None = None,
        **defaults: Any,
    ) -> Ask[list[Any]]:
        """Retry up to 1,000 claimed flows; items are dicts of `flow_retry`'s arguments.

        Raises:
            BatchError: some shard's group was refused.
        """
        found = [self._retrying(**{**defaults, **item}) for item in check_batch(items)]
        return many(commands.Retry, found, independent, now_ms)

    def flow_extend_lease(
        self,
        id: str,
        lease_token: str,
        *,
        fencing_token: int,
        lease_ms: Duration = LEASE_MS_DEFAULT,
        partition_key: str | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[FlowRecord]:
        """Set the lease's deadline to now + lease_ms, even if that is sooner than it was.

        Raises:
            StaleLease: the tokens are not those of the current lease.
            FlowNotFound: there is no such flow.
        """
        item = Extension(
            check_name(id, "id"),
            check_name_or_none(partition_key, "partition_key"),
            check_name(lease_token, "lease_token"),
            check_int(fencing_token, "fencing_token"),
            check_lease(lease_ms),
        )
        return Ask(commands.ExtendLease([item], False, now_of(now_ms)), read_one)

    def _endings(
        self, kind: str, items: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any]
    ) -> list[Ending]:
        ending = self._ending
        if defaults:
            return [ending(kind, **{**defaults, **item}) for item in check_batch(items)]
        return [ending(kind, **item) for item in check_batch(items)]

    def _ending(
        self,
        kind: str,
        /,
        *,
        id: str,
        lease_token: str,
        fencing_token: int,
        payload: Any = NOT_GIVEN,
        values: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        retention_ttl_ms: Duration | None = None,
        partition_key: str | None = None,
        **outcome: Any,
    ) -> Ending:
        value = NOT_GIVEN
        if outcome:
            value = outcome.pop(kind, NOT_GIVEN)
            if outcome:
                raise TypeError(f"unexpected argument {next(iter(outcome))!r}")
        if retention_ttl_ms is not None:
            retention_ttl_ms = duration_ms(retention_ttl_ms, "retention_ttl_ms")
        return Ending(
            check_name(id, "id"),
            check_name_or_none(partition_key, "partition_key"),
            check_name(lease_token, "lease_token"),
            check_int(fencing_token, "fencing_token"),
            self._pack(value, kind),
            self._pack(payload, "payload"),
            self._pack_named(values),
            check_attributes(attributes),
            retention_ttl_ms,
        )

    def _cancelling(
        self,
        *,
        id: str,
        fencing_token: int | None = None,
        lease_token: str | None = None,
        reason: Any = NOT_GIVEN,
        force: bool = False,
        values: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        retention_ttl_ms: Duration | None = None,
        partition_key: str | None = None,
    ) -> Ending:
        if retention_ttl_ms is not None:
            retention_ttl_ms = duration_ms(retention_ttl_ms, "retention_ttl_ms")
        if fencing_token is not None:
            check_int(fencing_token, "fencing_token")
        return Ending(
            check_name(id, "id"),
            check_name_or_none(partition_key, "partition_key"),
            check_name_or_none(lease_token, "lease_token"),
            fencing_token,
            self._pack(reason, "reason"),
            None,
            self._pack_named(values),
            check_attributes(attributes),
            retention_ttl_ms,
            check_bool(force, "force"),
        )

    def _retrying(
        self,
        *,
        id: str,
        lease_token: str,
        fencing_token: int,
        error: Any = NOT_GIVEN,
        retry: Retry | Mapping[str, Any] | None = None,
        run_at_ms: Instant | None = None,
        payload: Any = NOT_GIVEN,
        values: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        partition_key: str | None = None,
    ) -> Retrying:
        return Retrying(
            check_name(id, "id"),
            check_name_or_none(partition_key, "partition_key"),
            check_name(lease_token, "lease_token"),
            check_int(fencing_token, "fencing_token"),
            self._pack(error, "error"),
            self._pack(payload, "payload"),
            None if run_at_ms is None else instant_ms(run_at_ms, "run_at_ms"),
            patch_of(retry),
            self._pack_named(values),
            check_attributes(attributes),
        )


def many(command: Any, items: list[Any], independent: Any, now_ms: Any) -> Ask[list[Any]]:
    """Return the request of a batch whose items are checked one by one already."""
    check_distinct(items)
    read: Any = read_each if check_bool(independent, "independent") else read_batch
    return Ask(command(items, independent, now_of(now_ms)), read)
