"""A store that only writes down what it was asked, and answers what the test laid out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shardflow.flow.record import FlowRecord, Record


class RecordingStore:
    """Has every flow_* command. `answers` maps a command to its answer.

    An exception is raised; a list of answers under "claims" is handed out claim by claim, then [].
    A function is called with the command's arguments.
    """

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, command: str) -> Callable[..., Any]:
        if not command.startswith("flow_"):
            raise AttributeError(command)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((command, args, kwargs))
            return self.answer(command, args, kwargs)

        return call

    def answer(self, command: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = self.answers.get(command, [] if command in LISTS else a_record())
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            return answer(*args, **kwargs)
        return answer

    @property
    def commands(self) -> list[str]:
        """The names of the commands so far, in order."""
        return [command for command, _, _ in self.calls]

    @property
    def only_call(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        assert len(self.calls) == 1, self.commands
        return self.calls[0]


LISTS = frozenset(
    ("flow_claim_due", "flow_reclaim", "flow_list", "flow_history", "flow_create_many")
)


def a_record(id: str = "f1", **fields: Any) -> FlowRecord:
    """Return an unleased record of type billing in state created."""
    given: dict[str, Any] = {
        "id": id,
        "partition_key": None,
        "type": "billing",
        "state": "created",
        "run_state": None,
        "version": 1,
        "fencing_token": 0,
        "attempts": 0,
        "reclaims": 0,
        "priority": 0,
        "created_at_ms": 1_000,
        "updated_at_ms": 1_000,
        "next_run_at_ms": 1_000,
        "state_seq": 1,
        **fields,
    }
    assert given.keys() <= set(FlowRecord.__struct_fields__) >= set(Record.__struct_fields__)
    return FlowRecord(**given)


def a_leased_record(id: str = "f1", state: str = "created", **fields: Any) -> FlowRecord:
    """Return a record as a claim returns it: running, with tokens."""
    leased: dict[str, Any] = {
        "state": "running",
        "run_state": state,
        "version": 2,
        "fencing_token": 7,
        "lease_owner": "w1",
        "lease_token": "token-7",
        "lease_deadline_ms": 61_000,
        "next_run_at_ms": None,
        "partition_key": "t1:i9",
        **fields,
    }
    return a_record(id, **leased)
