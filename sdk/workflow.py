"""Workflow: a class that declares states, and the functions that it gets for them.

Each function is written once, as a plan in the module named after its idea; here it is bound
twice, to wait (`BillingFlow.create`) and to be awaited (`BillingFlow.aio.create`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, TypeVar, cast

from ..flow.errors import InvalidArgument
from . import children as family
from . import claims, creation, policy, reads, running, settles, steering
from .definition import Definition, define
from .dsl import State, StateRef
from .flowstore import FlowStore
from .plan import awaits, awaits_itself, runs_itself, waits

StoreSource = FlowStore | Callable[[], FlowStore]
W = TypeVar("W", bound="Workflow")
_make_class: Final[Any] = type


class Aio:
    """The functions of a workflow, to be awaited: same names, same arguments."""

    workflow: ClassVar[type[Workflow]]

    create = awaits(creation.create)
    create_many = awaits(creation.create_many)
    child = awaits_itself(family.child_async)
    claim_due = awaits(claims.claim_due)
    run_once = awaits_itself(running.run_once_async)
    handle = awaits_itself(running.handle_async)
    reclaim_once = awaits(claims.reclaim_once)
    ok = awaits(settles.ok)
    error = awaits(settles.error)
    transition = awaits(settles.transition)
    complete = awaits(settles.complete)
    retry = awaits(settles.retry)
    fail = awaits(settles.fail)
    extend_lease = awaits(settles.extend_lease)
    fanout = awaits(family.spawn_children)
    spawn_children = awaits(family.spawn_children)
    cancel = awaits(steering.cancel)
    signal = awaits(steering.signal)
    rewind = awaits(steering.rewind)
    get = awaits(reads.get)
    history = awaits(reads.history)
    by_parent = awaits(reads.by_parent)
    by_root = awaits(reads.by_root)
    by_correlation = awaits(reads.by_correlation)
    info = awaits(reads.info)
    stuck = awaits(reads.stuck)
    children = awaits(reads.children)
    waiting_children = awaits(reads.waiting_children)
    install_policy = awaits(policy.install_policy)

    list = awaits(reads.list_flows)


class Workflow:
    """Base of workflows: subclass it, declare states, and call the class.

        class EmailFlow(sf.Workflow, type="email"):
            queued = sf.state(lease_ms=30_000, on_error=sf.retry_or("failed"))

            @queued.handler
            def send(job: sf.Job):
                return sf.Ok("sent")

        EmailFlow.create(id="email-1", payload="welcome:user-1")
        EmailFlow.run_once(worker="worker-1")

    Class options: `type`, the flows' type in the store; `store`, a FlowStore or a function that
    gives one, else the process's one open store; `partition_by`, the attributes that make the
    partition key; `initial_state`, else the first declared one. A subclass of a workflow inherits
    states and options, and may override them. The class is never instantiated.

    Raises:
        InvalidArgument: when the class is made, naming what is wrong with it.
    """

    definition: ClassVar[Definition]
    """What the class declares, checked."""
    aio: ClassVar[type[Aio]]
    """The same functions, awaitable."""
    _give_store: ClassVar[Any] = None

    def __init_subclass__(
        cls,
        *,
        type: str | None = None,
        store: StoreSource | None = None,
        partition_by: str | Iterable[str] | None = None,
        initial_state: StateRef | None = None,
    ) -> None:
        super().__init_subclass__()
        base: Definition | None = getattr(cls, "definition", None)
        if base is not None:
            type = base.type if type is None else type
            partition_by = base.partition_by if partition_by is None else partition_by
            initial_state = base.initial_state if initial_state is None else initial_state
        cls.definition = define(
            cls.__name__,
            _declared_states(cls),
            type=type,
            partition_by=() if partition_by is None else partition_by,
            initial_state=initial_state,
            taken=FUNCTIONS,
        )
        if store is not None:
            cls._give_store = staticmethod(_giver(cls.__name__, store))
        cls.aio = _make_class("Aio", (Aio,), {"workflow": cls})

    @classmethod
    def using(cls: type[W], store: StoreSource) -> type[W]:
        """Return the same workflow bound to another store; this one stays as it is."""
        names = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        bound = _make_class(cls.__name__, (cls,), names, store=store)
        bound.__qualname__ = cls.__qualname__
        bound.definition = cls.definition
        return cast(type[W], bound)

    @classmethod
    def bound_store(cls) -> FlowStore:
        """Return the store that the next call goes to.

        Raises:
            FlowError: if none was named and the process has no open store, or several.
        """
        if cls._give_store is None:
            # Here, because opening a store loads the engine, which a fake does without.
            from .opening import default_store

            return default_store()
        return cast(FlowStore, cls._give_store())

    create = waits(creation.create)
    create_many = waits(creation.create_many)
    child = runs_itself(family.child)
    claim_due = waits(claims.claim_due)
    run_once = runs_itself(running.run_once)
    handle = runs_itself(running.handle)
    reclaim_once = waits(claims.reclaim_once)
    ok = waits(settles.ok)
    error = waits(settles.error)
    transition = waits(settles.transition)
    complete = waits(settles.complete)
    retry = waits(settles.retry)
    fail = waits(settles.fail)
    extend_lease = waits(settles.extend_lease)
    fanout = waits(family.spawn_children)
    spawn_children = waits(family.spawn_children)
    cancel = waits(steering.cancel)
    signal = waits(steering.signal)
    rewind = waits(steering.rewind)
    get = waits(reads.get)
    history = waits(reads.history)
    by_parent = waits(reads.by_parent)
    by_root = waits(reads.by_root)
    by_correlation = waits(reads.by_correlation)
    info = waits(reads.info)
    stuck = waits(reads.stuck)
    children = waits(reads.children)
    waiting_children = waits(reads.waiting_children)
    install_policy = waits(policy.install_policy)
    list = waits(reads.list_flows)


FUNCTIONS: Final = frozenset(dir(Workflow)) | {"aio", "definition"}
"""What no state may be called: the attributes of every workflow."""


def _declared_states(cls: type) -> dict[str, State]:
    """Return the states in reach of a class by attribute, those of its bases first."""
    declared: dict[str, State] = {}
    for owner in reversed(cls.__mro__):
        for attribute, value in vars(owner).items():
            if isinstance(value, State):
                declared[attribute] = value
            else:
                declared.pop(attribute, None)
    return declared


def _giver(owner: str, store: Any) -> Callable[[], Any]:
    """Return what gives the store at each call: the function that was named, or the one store."""
    # A fake may have only some of the commands, or answer to any name.
    if hasattr(store, "flow_create") or any(name.startswith("flow_") for name in dir(store)):
        return lambda: store
    if not callable(store):
        raise InvalidArgument(
            f"{owner}: store is an object with the flow_* commands, or a function that gives one; "
            f"got {store!r}",
            argument="store",
        )
    give: Callable[[], Any] = store
    return give
