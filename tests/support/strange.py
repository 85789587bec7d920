"""Requests that no SDK sends: a valid one of each kind, and what may be put in its places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from shardflow.flow import commands, family, queries
from shardflow.flow.bounds import Attributes
from shardflow.flow.commands import Hydration, NewFlow
from shardflow.flow.policy import RetryPatch
from support.lone import KIN, LATER_MS, NOW_MS, POLICY, TYPE, encode, spawn_of


def valid_requests(known: dict[str, Any]) -> list[Any]:
    """Return requests of every kind, all of their fields filled in, for a fresh shard."""
    return [*_of_flows(known["held"]), *_of_families(known["txn"], known["seq"])]


def _of_families(txn: str, seq: int) -> list[Any]:
    at_ms = NOW_MS + LATER_MS
    children = [
        NewFlow(
            "new", None, TYPE, "a", 1, at_ms, b"\x01", "c", None, None, {"k": 1}, {"v": b"\x01"}
        ),
        NewFlow("newer", "p", TYPE, "a"),
    ]
    end = family.ChildEnded("mother", None, "g", seq, "kid", None, "completed")
    posts: list[family.Post] = [
        replace(end, child_id="one"),
        family.CancelChildren("mother", None, "g", seq),
        family.Committed("unborn"),
        replace(end, end="failed"),
        replace(end, end="cancelled"),
    ]
    return [
        family.SpawnBegin(spawn_of("ready", 2, group_id="new", shards=[0, 1]), at_ms),
        family.SpawnDecide(None, spawn_of("ready", 2), children, at_ms),
        family.SpawnDecide(
            None, spawn_of("aunt", 2, wait="none", wait_state=None, success="z"), children
        ),
        family.SpawnDecide(txn, spawn_of("dad", 2, shards=[0, 1]), children, at_ms),
        family.SpawnEnd(txn, at_ms),
        family.AskOutcome(txn, at_ms),
        family.Prepare("next", 1, KIN, children, at_ms, at_ms),
        family.Commit("unborn", at_ms),
        family.Abort("unborn", at_ms),
        family.Deliver(1, 1, posts, at_ms),
        family.Collect([5, 5], [1, 1], at_ms),
    ]


def some_attributes() -> Attributes:
    return {"s": "eu", "i": 1, "f": 0.5, "b": True}


def _of_flows(held: str) -> list[Any]:
    at_ms = NOW_MS + LATER_MS
    values, attributes = {"n": b"\x02"}, some_attributes()
    created = NewFlow(
        "new",
        "p",
        TYPE,
        "a",
        1,
        at_ms,
        b"\x01",
        "c",
        "ready",
        "ready",
        attributes,
        values,
        5_000,
        10_000,
        3,
        True,
    )
    begun = replace(created, run_at_ms=None, idempotent=False)
    brought: dict[str, Any] = {"values": values, "attributes": attributes, "payload": b"\x03"}
    ending = commands.Ending("held", None, held, 1, b"\x01", b"\x01", values, attributes, 7, True)
    patch = RetryPatch(1, "linear", 10, 100, 20, "b", 4)
    retrying = commands.Retrying("held", None, held, 1, b"\x01", b"\x01", at_ms, patch)
    move = commands.Move("held", None, "a", "b", 1, held, b"\x01", at_ms, 2, values, attributes)
    loose = commands.Move("ready", None, "a", "b", 0, None, run_at_ms=at_ms, priority=0)
    step = commands.Move("held", None, "a", "b", 1, held, **brought)
    hydration = Hydration(True, True, 1_000, ["v"])
    where = (["a", "b"], ["p", "q"])
    cursor = (at_ms, "ready", "p")
    wanted = (TYPE, *where, 1, True, True)
    return [
        commands.Create([created], True, at_ms),
        commands.Create([created, NewFlow("other", None, TYPE, "a")], False, at_ms),
        commands.StartAndClaim(begun, "w", 1_000, at_ms),
        commands.Complete([ending], True, at_ms),
        commands.Fail([ending], False, at_ms),
        commands.Cancel([ending, commands.Ending("ready", None, None, 0)], True, at_ms),
        commands.Retry([retrying], False, at_ms),
        commands.Transition([move, loose], False, at_ms),
        commands.StepContinue(step, 1_000, at_ms),
        commands.ExtendLease([commands.Extension("held", None, held, 1, 5_000)], True, at_ms),
        commands.Release([commands.Releasing("held", None, held, 1, at_ms)], False, at_ms),
        commands.ClaimDue(TYPE, "w", *where, 2, 9, 0, True, True, 1, hydration, True, at_ms),
        commands.ClaimDue(TYPE, "w", None, None, 2, 9, None, True, True, 1, hydration),
        commands.ValuePut("ready", None, "n", b"\x01", True, at_ms),
        commands.SharedValuePut(b"\x01", at_ms),
        commands.PolicySet(TYPE, POLICY, True, 1, at_ms),
        commands.PolicyAdopt(TYPE, POLICY, 5, at_ms),
        commands.RetentionCleanup(10, at_ms),
        commands.Sweep(10, at_ms),
        queries.Get("ready", None, True, hydration, at_ms),
        queries.History(
            "ready", None, False, 10, True, "created", "w", 1, at_ms, 1, 9, True, True, at_ms
        ),
        queries.List(TYPE, ["a"], "p", attributes, 1, cursor, True, True, at_ms),
        queries.List(TYPE, None, None, None, 1, None, False, True),
        queries.Lineage("correlation", "c", None, ["a"], False, 1, None, True, at_ms),
        queries.Lineage("root", "ready", "p", None, None, 1, cursor, True, at_ms),
        queries.Info(TYPE, at_ms),
        queries.Stuck(TYPE, 5, 1, at_ms),
        queries.ValueGet([256, 512], 1_000, at_ms),
        queries.PolicyGet(TYPE, at_ms),
        queries.Probe(TYPE, *where, 5, 1, True, True, at_ms),
        queries.Watch(*wanted, at_ms + 5, at_ms, 7),
        queries.Watch("parent", None, None, None, True, True, at_ms + 5),
        queries.Unwatch(1, at_ms),
        queries.Backup("hold", "0" * 32, at_ms),
        queries.Tick(at_ms),
        queries.Stats(True, at_ms),
    ]


# ---- what is put in a place ----

INTEGERS = (-(2**63), -4, -1, 0, 1, 3, 9, 201, 1_001, 10_001, 2**53, 2**63 - 1, 2**64 - 1)
TEXTS = (
    *("", "\0", "any", "running", "completed", "failed", "cancelled", "ready", "p", "none"),
    *("é" * 512, "x" * 513, "\U0001f600" * 512, "y" * 70_000),
)
FLOATS = (float("nan"), float("inf"), float("-inf"), -0.0)
BLOBS = (b"", b"\xc1", b"x" * 5_000)
OTHERS: tuple[Any, ...] = (None, True, -1, 2**40, "z", b"z", 1.5, [], {}, [[]], {"a": {"a": 1}})

_DEPTH_MAX = 10
"""A thousand things that are each 900 levels deep have paths of some gigabytes."""
Path = tuple[Any, ...]
"""The way to a place: positions in arrays, keys of maps; `Key(k)` at its end: the key itself."""


class Key(str):
    """A key of a map, as a place of its own."""


def raw(request: Any) -> Any:
    """Return a request as arrays and maps."""
    return msgspec.msgpack.decode(encode(request))


def places(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every place of a raw request, and what stands there; nothing below `_DEPTH_MAX`."""
    yield path, node
    if len(path) == _DEPTH_MAX:
        return
    if isinstance(node, list):
        for index, child in enumerate(node):
            yield from places(child, (*path, index))
    elif isinstance(node, dict):
        for key, child in node.items():
            yield (*path, Key(key)), key
            yield from places(child, (*path, key))


def strangers_of(node: Any) -> list[Any]:
    """Return what to put where something of this kind stands."""
    own: list[Any] = []
    if isinstance(node, bool):
        own = []
    elif isinstance(node, int):
        own = list(INTEGERS)
    elif isinstance(node, str):
        own = list(TEXTS)
    elif isinstance(node, bytes):
        own = list(BLOBS)
    elif isinstance(node, float):
        own = list(FLOATS)
    elif isinstance(node, list):
        own = [node[:-1], node + node, (node * 1_001)[:1_001]]
    elif isinstance(node, dict):
        some = next(iter(node.values()), None)
        own = [{f"{n}": some for n in range(1_001)}, {"": some}, nested(60), nested(900)]
    return [*own, *OTHERS]


def nested(depth: int) -> Any:
    """Return maps inside each other."""
    node: Any = 1
    for _ in range(depth):
        node = {"a": node}
    return node


def replaced(node: Any, path: Path, stranger: Any) -> Any:
    """Return a raw request with something else in one place."""
    if not path:
        return stranger
    step, *rest = path
    if isinstance(step, Key):
        key = stranger if isinstance(stranger, str | bytes | int | None) else "k"
        return {(key if name == step else name): child for name, child in node.items()}
    copy = node.copy()
    copy[step] = replaced(node[step], tuple(rest), stranger)
    return copy
