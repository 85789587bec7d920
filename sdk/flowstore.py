"""What a workflow needs of a store, so that an application can hand in one of its own."""

from __future__ import annotations

from typing import Any, Protocol


class FlowStore(Protocol):
    """The commands that a workflow calls; `Store` has them, and so may a fake in a test.

    A workflow calls each with the arguments that `Store` documents, and only with those that the
    caller or a declaration gave, so a fake may name just the ones that its test needs. If the
    object has an attribute `aio` with awaitable forms of the same names, `Workflow.aio` uses
    those; otherwise it calls the plain ones in a thread. If it has an attribute `submit` with
    futures of the same names (as `Store` has: `get`, `add_done_callback`, `is_resolved`,
    `withdraw`), a `Worker` uses those and the `*_many` commands; otherwise it makes one call after
    the other. Signals and rewinding call `flow_signal` and `flow_rewind`; a store without them
    raises AttributeError there and serves everything else.
    """

    def flow_create(self, *args: Any, **kwargs: Any) -> Any:
        """Create one flow."""
        ...

    def flow_create_many(self, *args: Any, **kwargs: Any) -> Any:
        """Create several flows."""
        ...

    def flow_get(self, *args: Any, **kwargs: Any) -> Any:
        """Read one flow."""
        ...

    def flow_claim_due(self, *args: Any, **kwargs: Any) -> Any:
        """Lease what is due."""
        ...

    def flow_reclaim(self, *args: Any, **kwargs: Any) -> Any:
        """Take over expired leases."""
        ...

    def flow_extend_lease(self, *args: Any, **kwargs: Any) -> Any:
        """Renew one lease."""
        ...

    def flow_complete(self, *args: Any, **kwargs: Any) -> Any:
        """End a leased flow well."""
        ...

    def flow_fail(self, *args: Any, **kwargs: Any) -> Any:
        """End a leased flow badly."""
        ...

    def flow_retry(self, *args: Any, **kwargs: Any) -> Any:
        """Give a leased flow back for another attempt."""
        ...

    def flow_transition(self, *args: Any, **kwargs: Any) -> Any:
        """Move a flow to another state."""
        ...

    def flow_release(self, *args: Any, **kwargs: Any) -> Any:
        """Give a leased flow back as if it had not been claimed."""
        ...

    def flow_cancel(self, *args: Any, **kwargs: Any) -> Any:
        """End a flow from outside."""
        ...

    def flow_spawn_children(self, *args: Any, **kwargs: Any) -> Any:
        """Create children of a flow that waits for them."""
        ...

    def flow_history(self, *args: Any, **kwargs: Any) -> Any:
        """Read the events of one flow."""
        ...

    def flow_list(self, *args: Any, **kwargs: Any) -> Any:
        """List the flows of a type."""
        ...

    def flow_by_parent(self, *args: Any, **kwargs: Any) -> Any:
        """List the children of a flow."""
        ...

    def flow_by_root(self, *args: Any, **kwargs: Any) -> Any:
        """List the tree under a flow."""
        ...

    def flow_by_correlation(self, *args: Any, **kwargs: Any) -> Any:
        """List the flows with one correlation id."""
        ...

    def flow_info(self, *args: Any, **kwargs: Any) -> Any:
        """Count the flows of a type."""
        ...

    def flow_stuck(self, *args: Any, **kwargs: Any) -> Any:
        """List flows whose lease expired."""
        ...

    def flow_policy_set(self, *args: Any, **kwargs: Any) -> Any:
        """Store the policy of a type."""
        ...

    def flow_start_and_claim(self, *args: Any, **kwargs: Any) -> Any:
        """Create a flow and hold it."""
        ...

    def flow_complete_many(self, *args: Any, **kwargs: Any) -> Any:
        """End several leased flows well."""
        ...

    def flow_fail_many(self, *args: Any, **kwargs: Any) -> Any:
        """End several leased flows badly."""
        ...

    def flow_retry_many(self, *args: Any, **kwargs: Any) -> Any:
        """Give several leased flows back for another attempt."""
        ...

    def flow_transition_many(self, *args: Any, **kwargs: Any) -> Any:
        """Move several flows."""
        ...

    def flow_step_continue(self, *args: Any, **kwargs: Any) -> Any:
        """Move a leased flow and keep it."""
        ...

    def flow_cancel_many(self, *args: Any, **kwargs: Any) -> Any:
        """End several flows from outside."""
        ...

    def flow_policy_get(self, *args: Any, **kwargs: Any) -> Any:
        """Read a policy."""
        ...

    def flow_value_put(self, *args: Any, **kwargs: Any) -> Any:
        """Set a named value."""
        ...

    def flow_value_mget(self, *args: Any, **kwargs: Any) -> Any:
        """Read values by reference."""
        ...

    def flow_retention_cleanup(self, *args: Any, **kwargs: Any) -> Any:
        """Remove ended flows past their retention."""
        ...
