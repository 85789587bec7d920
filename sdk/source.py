"""One workflow of a worker: what it claims, and what its jobs are handled by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from ..flow.errors import InvalidArgument
from ..flow.limits import LEASE_MS_DEFAULT
from .claims import States, claim_defaults, claim_due
from .definition import ANY
from .dsl import Handler
from .flowstore import FlowStore
from .job import Cancellation, Job
from .plan import Plan
from .running import handled_states, handler_of

if TYPE_CHECKING:
    from .workflow import Workflow

WORKFLOWS_MAX: Final = 100
RENEWALS_PER_LEASE: Final = 3

Around = Callable[[Handler], Handler]


class Source:
    """What one worker claims of one workflow. `around` puts the middleware around a handler."""

    def __init__(
        self, workflow: type[Workflow], states: States, handler: Handler | None, worker: str
    ) -> None:
        definition = workflow.definition
        self.workflow: type[Workflow] = workflow
        self.states = handled_states(definition, states, handler)
        self.handler = handler
        """Given for all states, or None."""
        self.lease_ms: int = claim_defaults(definition, self.states).get(
            "lease_ms", LEASE_MS_DEFAULT
        )
        self.interval_s = self.lease_ms / 1_000 / RENEWALS_PER_LEASE
        """How often a lease is renewed."""
        limits = {state.name: state.max_run_ms for state in definition.active_states}
        self.max_run_s = {name: ms / 1_000 for name, ms in limits.items() if ms is not None}
        """By state: after how long a handler is given up."""
        self._worker = worker
        self._calls: dict[str, Handler] = {}

    @property
    def handlers(self) -> list[Handler]:
        """The functions that its jobs may go to."""
        if self.handler is not None:
            return [self.handler]
        states = [self.states] if isinstance(self.states, str) else self.states
        return [handler_of(self.workflow.definition, name) for name in states]

    def prepare(self, around: Around) -> None:
        """Put what belongs around every handler around it."""
        if self.handler is not None:
            self.handler = around(self.handler)
            return
        states = [self.states] if isinstance(self.states, str) else self.states
        for name in states:
            self._calls[name] = around(handler_of(self.workflow.definition, name))

    def call_of(self, job: Job) -> Handler | None:
        """Return what to call for a job; None if this worker knows nothing of its kind."""
        if job.type != self.workflow.definition.type:
            return None
        return self.handler or self._calls.get(job.state)

    def store(self) -> FlowStore:
        """Return the store that its next call goes to."""
        return self.workflow.bound_store()

    def claim(self, limit: int, block_ms: int | None) -> Plan[list[Job]]:
        """Return a claim; None = do not wait for work."""
        waiting = {} if block_ms is None else {"block_ms": block_ms}
        return claim_due(self.workflow, self.states, worker=self._worker, limit=limit, **waiting)

    def jobs(self, records: Iterable[Any]) -> list[Job]:
        """Return claimed records as jobs that can be cancelled."""
        workflow = self.workflow
        return [Job(workflow, record, Cancellation()) for record in records]


def sources_of(
    workflow: type[Workflow] | Sequence[type[Workflow]],
    states: States | Mapping[type[Workflow], States],
    handler: Handler | None,
    worker: str,
) -> list[Source]:
    """Return what a worker claims.

    Raises:
        InvalidArgument: no workflow, too many, two of one type, states that are not theirs, or
            none with a handler.
    """
    workflows = [workflow] if isinstance(workflow, type) else list(workflow)
    if not 1 <= len(workflows) <= WORKFLOWS_MAX:
        raise InvalidArgument(
            f"a worker works for 1 to {WORKFLOWS_MAX} workflows; got {len(workflows)}",
            argument="workflow",
        )
    types = [each.definition.type for each in workflows]
    for name in types:
        if types.count(name) > 1:
            raise InvalidArgument(
                f"two of the workflows are of type {name!r}; a worker needs only one of them",
                argument="workflow",
            )
    return [
        Source(each, _states_for(each, workflows, states), handler, worker) for each in workflows
    ]


def _states_for(
    workflow: type[Workflow],
    workflows: list[type[Workflow]],
    states: States | Mapping[type[Workflow], States],
) -> States:
    if isinstance(states, Mapping):
        strangers = [key for key in states if key not in workflows]
        if strangers:
            raise InvalidArgument(
                f"states names {strangers[0]!r}, which is none of the workflows", argument="states"
            )
        chosen: Any = states
        return cast(States, chosen.get(workflow, ANY))
    if states != ANY and len(workflows) > 1:
        raise InvalidArgument(
            'for several workflows states is "any", or a dict from workflow to its states; '
            f"got {states!r}",
            argument="states",
        )
    return states
