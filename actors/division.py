"""A claim over several shards: which part of it each shard gets, and their grants as one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from ..flow.commands import ClaimDue
from ..flow.record import Record
from ..flow.replies import Done, Heads


def divide(command: ClaimDue, heads: Sequence[Heads]) -> list[ClaimDue | None]:
    """Return each shard's part of a claim, such that together they take the first in order."""
    expired = sorted((at, shard) for shard, head in enumerate(heads) for at in head.expired)
    due = sorted((key, shard) for shard, head in enumerate(heads) for key in head.due)
    first = expired[: command.expired_first]
    due = due[: command.limit - len(first)]
    after = expired[len(first) :][: command.limit - len(first) - len(due)]
    limits = [0] * len(heads)
    firsts = [0] * len(heads)
    for _, shard in first:
        firsts[shard] += 1
        limits[shard] += 1
    for _, shard in due:
        limits[shard] += 1
    for _, shard in after:
        limits[shard] += 1
    return [
        replace(command, limit=limit, expired_first=expired_first) if limit else None
        for limit, expired_first in zip(limits, firsts, strict=True)
    ]


def merge(command: ClaimDue, dones: Sequence[Any]) -> Done:
    """Merge what several shards granted: reclaimed up to the ratio, due in order, the rest."""
    granted = [
        (record, values)
        for done in dones
        for record, values in zip(
            done.outcomes, done.values or [None] * len(done.outcomes), strict=True
        )
    ]
    if len(dones) > 1:
        reclaimed = [pair for pair in granted if is_reclaimed(pair[0])]
        due = [pair for pair in granted if not is_reclaimed(pair[0])]
        due.sort(key=lambda pair: order_of(pair[0]))
        first = command.expired_first
        granted = reclaimed[:first] + due + reclaimed[first:]
    has_values = any(done.values is not None for done in dones)
    return Done(
        [record for record, _ in granted],
        [values for _, values in granted] if has_values else None,
    )


def is_reclaimed(record: Record) -> bool:
    """Whether a claim granted it as an expired lease."""
    return record.event_details is not None and record.event_details.get("reclaimed") is True


def order_of(record: Record) -> tuple[int, int, int]:
    """Return where a claimed flow stood among the due ones."""
    return -record.priority, record.next_run_at_ms or 0, record.state_seq


def first_of(heads: Heads) -> tuple[int, int, int]:
    """Return where the first flow that a shard would grant stands."""
    if heads.due:
        return heads.due[0]
    return 1, heads.expired[0], 0
