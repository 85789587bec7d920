"""Ends, retries and leases of claimed flows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...flow import commands
from ...flow.commands import Ending, Extension, Releasing, Retrying
from ...flow.limits import LEASE_MS_DEFAULT
from ...flow.policy import Retry, patch_of
from ..checks import (
    NOT_GIVEN,
    check_attributes,
    check_bool,
    check_int,
    check_name,
    check_name_or_none,
)
from ..times import duration_ms, instant_ms
from .ask import Ask, Draft, Requests, batch, single
from .creating import Duration, Instant, check_lease


class Settling(Requests):
    """complete, fail, cancel, retry, extend_lease and release, one by one and many at once."""

    def _complete(
        self,
        id: str,
        lease_token: str | None,
        *,
        fencing_token: int,
        result: Any = NOT_GIVEN,
        payload: Any = NOT_GIVEN,
        values: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        retention_ttl_ms: Duration | None = None,
        partition_key: str | None = None,
        now_ms: Instant | None = None,
    ) -> Draft[Ending]:
        """End a claimed flow well. Repeated with the same tokens, it returns the record.

        Raises:
            StaleLease: the tokens are not those of the current lease.
            FlowNotFound: there is no such flow.
        """
        item = self._ending(
            id,
            partition_key,
            check_name(lease_token, "lease_token"),
            check_int(fencing_token, "fencing_token"),
            self._pack(result, "result"),
            payload,
            values,
            attributes,
            retention_ttl_ms,
        )
        return item, now_ms

    flow_complete = single(_complete, commands.Complete)

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
        return batch(self._complete, items, defaults, commands.Complete, independent, now_ms)

    def _fail(
        self,
        id: str,
        lease_token: str | None,
        *,
        fencing_token: int,
        error: Any = NOT_GIVEN,
        payload: Any = NOT_GIVEN,
        values: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        retention_ttl_ms: Duration | None = None,
        partition_key: str | None = None,
        now_ms: Instant | None = None,
    ) -> Draft[Ending]:
        """End a claimed flow badly. Repeated with the same tokens, it returns the record.

        Raises:
            StaleLease: the tokens are not those of the current lease.
            FlowNotFound: there is no such flow.
        """
        item = self._ending(
            id,
            partition_key,
            check_name(lease_token, "lease_token"),
            check_int(fencing_token, "fencing_token"),
            self._pack(error, "error"),
            payload,
            values,
            attributes,
            retention_ttl_ms,
        )
        return item, now_ms

    flow_fail = single(_fail, commands.Fail)

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
        return batch(self._fail, items, defaults, commands.Fail, independent, now_ms)

    def _cancel(
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
    ) -> Draft[Ending]:
        """End a flow from outside. The reason is kept as its error.

        A leased flow takes its lease token, or `force=True`, which fences the holder off. A flow
        that is cancelled already is returned as it is.

        Raises:
            StaleLease: it is leased and neither the token nor force was given, or fencing_token
                is not the current one.
            FlowTerminal: it is completed or failed.
            FlowNotFound: there is no such flow.
        """
        if fencing_token is not None:
            check_int(fencing_token, "fencing_token")
        item = self._ending(
            id,
            partition_key,
            check_name_or_none(lease_token, "lease_token"),
            fencing_token,
            self._pack(reason, "reason"),
            NOT_GIVEN,
            values,
            attributes,
            retention_ttl_ms,
            force=force,
        )
        return item, now_ms

    flow_cancel = single(_cancel, commands.Cancel)

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
        return batch(self._cancel, items, defaults, commands.Cancel, independent, now_ms)

    def _retry(
        self,
        id: str,
        lease_token: str | None,
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
    ) -> Draft[Retrying]:
        """Give a claimed flow back for another attempt, or end it if its attempts are used up.

        `retry` overrides the stored policies field by field.

        Raises:
            StaleLease: the tokens are not those of the current lease.
            FlowNotFound: there is no such flow.
        """
        item = Retrying(
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
        return item, now_ms

    flow_retry = single(_retry, commands.Retry)

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
        return batch(self._retry, items, defaults, commands.Retry, independent, now_ms)

    def _extend_lease(
        self,
        id: str,
        lease_token: str | None,
        *,
        fencing_token: int,
        lease_ms: Duration = LEASE_MS_DEFAULT,
        partition_key: str | None = None,
        now_ms: Instant | None = None,
    ) -> Draft[Extension]:
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
        return item, now_ms

    flow_extend_lease = single(_extend_lease, commands.ExtendLease)

    def _release(
        self,
        id: str,
        lease_token: str | None,
        *,
        fencing_token: int,
        run_at_ms: Instant | None = None,
        partition_key: str | None = None,
        now_ms: Instant | None = None,
    ) -> Draft[Releasing]:
        """Give a claimed flow back to its state, as if it had not been claimed.

        Neither an attempt nor a reclaim is charged, and its turn comes first again, unless
        `run_at_ms` says when. Repeated with the same tokens, it returns the record.

        Raises:
            StaleLease: the tokens are not those of the current lease.
            FlowNotFound: there is no such flow.
        """
        item = Releasing(
            check_name(id, "id"),
            check_name_or_none(partition_key, "partition_key"),
            check_name(lease_token, "lease_token"),
            check_int(fencing_token, "fencing_token"),
            None if run_at_ms is None else instant_ms(run_at_ms, "run_at_ms"),
        )
        return item, now_ms

    flow_release = single(_release, commands.Release)

    def flow_release_many(
        self,
        /,
        items: Iterable[Mapping[str, Any]],
        *,
        independent: bool = False,
        now_ms: Instant | None = None,
        **defaults: Any,
    ) -> Ask[list[Any]]:
        """Give up to 1,000 claimed flows back; items are dicts of `flow_release`'s arguments.

        Raises:
            BatchError: some shard's group was refused.
        """
        return batch(self._release, items, defaults, commands.Release, independent, now_ms)

    def _ending(
        self,
        id: str,
        partition_key: str | None,
        lease_token: str | None,
        fencing_token: int | None,
        value: bytes | None,
        payload: Any,
        values: Mapping[str, Any] | None,
        attributes: Mapping[str, Any] | None,
        retention_ttl_ms: Duration | None,
        *,
        force: bool = False,
    ) -> Ending:
        if retention_ttl_ms is not None:
            retention_ttl_ms = duration_ms(retention_ttl_ms, "retention_ttl_ms")
        return Ending(
            check_name(id, "id"),
            check_name_or_none(partition_key, "partition_key"),
            lease_token,
            fencing_token,
            value,
            self._pack(payload, "payload"),
            self._pack_named(values),
            check_attributes(attributes),
            retention_ttl_ms,
            check_bool(force, "force"),
        )
