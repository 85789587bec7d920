"""The job: a claimed record in a worker's hand, with the guards that its commands need."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from ..flow.record import AttributeValue, FlowRecord


class Cancellation:
    """Whether a job is to be given up: set by its worker, read through the job. All are equal."""

    __slots__ = ("is_set",)

    def __init__(self) -> None:
        self.is_set = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cancellation)

    def __hash__(self) -> int:
        return hash(Cancellation)


class Job(Struct, frozen=True):
    """One claimed flow, as its handler sees it.

    A frozen view of the record as of the claim: commands given for the job do not change it. To
    test a handler without a store, make one from any record, or from any object that has the
    attributes which the handler reads:

        charge(sf.Job(BillingFlow, SimpleNamespace(id="i9", payload={"amount": 4200})))
    """

    workflow: type[Any]
    """The workflow that claimed it, a class."""
    record: FlowRecord
    """All that the claim returned."""
    _cancellation: Cancellation = Cancellation()
    """The worker's; without a worker one that is never set."""

    @property
    def cancelled(self) -> bool:
        """Whether its worker has given it up: what the handler returns will be dropped.

        True once the lease is known to be lost, the flow was cancelled, `max_run_ms` is over, or
        a stopping worker has given the flow back. A long handler should look now and then.
        """
        return self._cancellation.is_set

    @property
    def id(self) -> str:
        """The flow's id."""
        return self.record.id

    @property
    def type(self) -> str:
        """The flow's type."""
        return self.record.type

    @property
    def state(self) -> str:
        """The logical state: the one declared in the workflow, never `running`."""
        return getattr(self.record, "run_state", None) or self.record.state

    @property
    def partition_key(self) -> str | None:
        """The flow's partition; None if it was created without one."""
        return getattr(self.record, "partition_key", None)

    @property
    def lease_token(self) -> str | None:
        """Proves the lease, together with the fencing token."""
        return self.record.lease_token

    @property
    def fencing_token(self) -> int:
        """Grows with each lease of the flow."""
        return self.record.fencing_token

    @property
    def lease_deadline_ms(self) -> int | None:
        """When the lease of the claim ends; a worker's heartbeat moves the real one on."""
        return getattr(self.record, "lease_deadline_ms", None)

    @property
    def attempts(self) -> int:
        """Retries charged so far in this state; 0 at the first try."""
        return getattr(self.record, "attempts", 0)

    @property
    def payload(self) -> Any:
        """The payload; None also if it was not asked for, or is larger than the claim's cap."""
        return getattr(self.record, "payload", None)

    @property
    def payload_omitted(self) -> bool:
        """Whether the payload was left out because of its size."""
        return getattr(self.record, "payload_omitted", False)

    @property
    def payload_size(self) -> int:
        """The payload's size in bytes, brought along or not."""
        return getattr(self.record, "payload_size", 0)

    @property
    def payload_ref(self) -> str | None:
        """What `flow_value_mget` takes to read the payload."""
        return getattr(self.record, "payload_ref", None)

    @property
    def values(self) -> dict[str, Any]:
        """The named values that the claim asked for."""
        return getattr(self.record, "values", None) or {}

    @property
    def attributes(self) -> dict[str, AttributeValue]:
        """The flow's attributes."""
        return getattr(self.record, "attributes", None) or {}

    @property
    def correlation_id(self) -> str | None:
        """The application's own key that ties flows together."""
        return getattr(self.record, "correlation_id", None)

    @property
    def root_flow_id(self) -> str:
        """The top of the flow's tree; its own id when it has no parent."""
        return getattr(self.record, "root_flow_id", None) or self.record.id

    def __hash__(self) -> int:
        return hash((self.id, self.partition_key, self.lease_token))

    def __repr__(self) -> str:
        return (
            f"<Job {self.id!r} of {self.workflow.__name__} in {self.state!r}, "
            f"attempts {self.attempts}, fencing token {self.fencing_token}>"
        )


Claimed = Job | FlowRecord
"""What the commands of a lease take: a job, or a leased record that the store returned."""


def logical_state(claimed: Claimed) -> str:
    """Return the logical state of a job or a leased record."""
    return getattr(claimed, "run_state", None) or claimed.state
