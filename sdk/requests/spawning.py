"""Fan-out: the children of a flow, and where it waits for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, get_args

from msgspec.structs import asdict

from ...flow.commands import NewFlow
from ...flow.errors import InvalidArgument
from ...flow.family import OnChildFailed, OnParentClosed, Spawn, SpawnChildren, Wait
from ...flow.limits import CHILDREN_MAX
from ...flow.record import RUNNING, FlowRecord
from ..checks import (
    check_distinct,
    check_int,
    check_name,
    check_name_or_none,
    check_open_state,
    check_word,
)
from ..childspec import GROUP_DEFAULT, WAIT_STATE_DEFAULT, ChildSpec
from ..names import did_you_mean
from .ask import Ask, now_of, read_one
from .creating import Creating, Instant

CHILD_FIELDS: Final = frozenset(ChildSpec.__struct_fields__)


class Spawning(Creating):
    """spawn_children."""

    def flow_spawn_children(
        self,
        parent_id: str,
        children: Iterable[ChildSpec | Mapping[str, Any]],
        *,
        group_id: str = GROUP_DEFAULT,
        wait: Wait = "all",
        wait_state: str = WAIT_STATE_DEFAULT,
        success: str | None = None,
        failure: str | None = None,
        on_child_failed: OnChildFailed = "fail_parent",
        on_parent_closed: OnParentClosed = "cancel_children",
        partition_key: str | None = None,
        from_state: str | None = None,
        lease_token: str | None = None,
        fencing_token: int | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[FlowRecord]:
        """Create children of a flow and let it wait for them, all of it or nothing.

        With `wait` all or any the parent moves to `wait_state` and its lease is gone; it waits
        there until the group resolves, and then moves to `success` or `failure`, open states or
        ends. With none nobody waits: it moves to `success` at once, due now, or, without `success`,
        stays as it is, lease included. Children are ChildSpecs or dicts of
        their fields; one without a partition key lives in its parent's partition. The same group
        with the same children, in whatever order, changes nothing and returns the parent.

        `on_child_failed="ignore"` lets a group succeed although children failed or were cancelled;
        `on_parent_closed="abandon_children"` leaves open children alone when the group resolves or
        the parent ends.

        Raises:
            FlowAlreadyExists: the id of a child is taken.
            ChildGroupConflict: the group exists with other children.
            StaleLease: it is leased and the tokens are not the current ones.
            WrongState: it is not in `from_state`.
            FlowTerminal: it has ended.
            FlowNotFound: there is no such flow.
        """
        name = check_name(parent_id, "parent_id")
        partition = check_name_or_none(partition_key, "partition_key")
        chosen = check_word(wait, "wait", get_args(Wait))
        if lease_token is not None and fencing_token is None:
            raise InvalidArgument(
                "lease_token and fencing_token prove a lease together; got lease_token alone",
                argument="fencing_token",
            )
        spawn = Spawn(
            name,
            partition,
            check_name(group_id, "group_id"),
            chosen,
            *_states(chosen, wait_state, success, failure),
            check_word(on_child_failed, "on_child_failed", get_args(OnChildFailed)),
            check_word(on_parent_closed, "on_parent_closed", get_args(OnParentClosed)),
            check_name_or_none(from_state, "from_state"),
            check_name_or_none(lease_token, "lease_token"),
            None if fencing_token is None else check_int(fencing_token, "fencing_token"),
            0,
            [],
            b"",
        )
        command = SpawnChildren(spawn, self._children(children, name, partition), now_of(now_ms))
        return Ask(command, read_one)

    def _children(self, children: Any, parent_id: str, partition_key: str | None) -> list[NewFlow]:
        found = [
            self._child(child, f"children[{place}]", partition_key)
            for place, child in enumerate(_listed(children))
        ]
        check_distinct(found, "children")
        if any(child.id == parent_id and child.partition_key == partition_key for child in found):
            raise InvalidArgument(
                f"children name flow {parent_id!r} in partition {partition_key!r}, their parent",
                argument="children",
            )
        return found

    def _child(self, child: Any, where: str, partition_key: str | None) -> NewFlow:
        arguments = _fields(child, where)
        if arguments.get("partition_key") is None:
            arguments["partition_key"] = partition_key
        try:
            item, _ = self._create(**arguments)
        except InvalidArgument as error:
            raise InvalidArgument(f"{where}: {error}", argument=error.argument) from None
        return item


def _states(
    wait: str, wait_state: Any, success: Any, failure: Any
) -> tuple[str | None, str | None, str | None]:
    """Return where the parent waits, and where it goes when the group resolves."""
    if wait != "none":
        return (
            check_open_state(wait_state, "wait_state"),
            _target(success, "success", wait),
            _target(failure, "failure", wait),
        )
    return (
        None,
        None if success is None else _target(success, "success", wait),
        None if failure is None else _target(failure, "failure", wait),
    )


def _target(state: Any, argument: str, wait: str) -> str:
    if state is None:
        raise InvalidArgument(
            f"wait={wait!r} needs {argument}: an open state, completed, failed or cancelled; "
            "there the parent goes when the group resolves",
            argument=argument,
        )
    if state == RUNNING:
        raise InvalidArgument(
            f"{argument} is an open state, completed, failed or cancelled; {state!r} is reserved: "
            "flows get there by a claim",
            argument=argument,
        )
    return check_name(state, argument)


def _listed(children: Any) -> list[Any]:
    if isinstance(children, str | bytes | Mapping) or not isinstance(children, Iterable):
        raise InvalidArgument(
            f"children is a list of ChildSpecs or dicts; got {children!r}", argument="children"
        )
    found = children if isinstance(children, list) else list(children)
    if not 1 <= len(found) <= CHILDREN_MAX:
        raise InvalidArgument(
            f"children has {len(found)} entries; 1 to {CHILDREN_MAX} are allowed",
            argument="children",
        )
    return found


def _fields(child: Any, where: str) -> dict[str, Any]:
    """Return a child's creation arguments."""
    if isinstance(child, ChildSpec):
        return asdict(child)
    if not isinstance(child, Mapping):
        raise InvalidArgument(
            f"{where} is a ChildSpec or a dict; got {child!r}", argument="children"
        )
    for field in child:
        if field not in CHILD_FIELDS:
            raise TypeError(
                f"{where} got the unexpected field {field!r}; {did_you_mean(field, CHILD_FIELDS)}"
            )
    for field in ("id", "type"):
        if field not in child:
            raise TypeError(f"{where} needs the field {field!r}")
    return dict(child)
