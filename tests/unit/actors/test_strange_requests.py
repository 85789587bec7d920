"""Something wrong in any one place of any request is refused, or does no harm; nothing escapes."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from shardflow.actors.messages import Arrival
from shardflow.flow import commands, family, queries
from support.lone import FAR_MS, LATER_MS, NOW_MS, Shard
from support.strange import places, raw, replaced, strangers_of, valid_requests

KINDS = [type(request) for request in valid_requests(Shard().known)]
each_request = pytest.mark.parametrize(
    "index", range(len(KINDS)), ids=[f"{kind.__name__}-{n}" for n, kind in enumerate(KINDS)]
)


def test_every_kind_of_request_is_among_them() -> None:
    flows = {*get_args(commands.AnyCommand), *get_args(queries.AnyQuery)}
    assert set(KINDS) == {*flows, *get_args(family.AnyFamilyCommand), family.Collect}


@pytest.mark.parametrize("first", ["t", "u"])
@pytest.mark.parametrize("is_woken", [False, True])
def test_who_watches_twice_under_one_number_watches_the_second_thing(
    first: str, is_woken: bool
) -> None:
    shard = Shard()
    watches = [
        queries.Watch(flow_type, ["x"], None, priority, True, True, FAR_MS)
        for flow_type, priority in ((first, None), ("t", 0))
    ]
    flows = [commands.Create([commands.NewFlow(n, None, n[0], "x")]) for n in ("t1", "u1", "t2")]
    requests = [watches[0], *flows[: 2 * is_woken], watches[1], *flows[2 * is_woken :]]
    for request in requests:
        number = 9 if isinstance(request, queries.Watch) else 10
        shard.service.serve([Arrival(shard, number, request)])
    assert len(shard.service.waiters) == 0
    for later_ms in (1, 1_000):
        shard.ask(queries.Tick(NOW_MS + LATER_MS + later_ms))
    shard.service.forget(shard)
    shard.aftermath()


@each_request
def test_a_valid_request_is_taken(index: int) -> None:
    shard = Shard()
    replies = shard.send(msgspec.msgpack.encode(valid_requests(shard.known)[index]))
    assert all(getattr(reply, "refused", None) is None for reply in replies)
    shard.aftermath()


@each_request
def test_a_strange_value_in_any_place_ends_no_shard(index: int) -> None:
    shard = Shard()
    for path, node in places(raw(valid_requests(shard.known)[index])):
        for stranger in strangers_of(node):
            shard = _survives(shard, index, path, stranger)


def _survives(shard: Shard, index: int, path: Any, stranger: Any) -> Shard:
    """Send it; return a shard that is as good as new."""
    request = replaced(raw(valid_requests(shard.known)[index]), path, stranger)
    frames = shard.engine.log.frames_written
    try:
        shard.send(msgspec.msgpack.encode(request))
        if shard.engine.log.frames_written == frames and not shard.service.waiters:
            return shard
        shard.aftermath()
    except Exception as error:
        raise AssertionError(f"{stranger!r:.80} at {path} of {KINDS[index].__name__}") from error
    return Shard()
