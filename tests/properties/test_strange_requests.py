"""Several things wrong at once, in any order of requests: a shard refuses, goes on, and reopens."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from support.lone import Shard
from support.strange import places, raw, replaced, strangers_of, valid_requests

COUNT = len(valid_requests(Shard().known))

picks = st.integers(0, 10_000)
anything = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=600),
    st.binary(max_size=20),
    st.floats(),
    st.lists(st.none() | st.booleans() | st.text(max_size=3), max_size=3),
)
changes = st.tuples(picks, picks | anything.map(lambda value: (value,)))
"""A place, and which of its strangers to put there, or (something drawn,)."""
requests = st.tuples(
    st.integers(0, COUNT - 1), st.lists(changes, max_size=4), st.booleans(), st.booleans()
)


# An example takes a few milliseconds: more of them than elsewhere.
@settings(max_examples=10 * settings().max_examples)
@given(asked=st.lists(requests, min_size=1, max_size=15))
def test_strange_requests_are_answered_and_the_shard_reopens(
    asked: list[tuple[int, list[tuple[int, Any]], bool, bool]],
) -> None:
    shard = Shard()
    for index, changed, is_repeated, is_reopened in asked:
        request = raw(valid_requests(shard.known)[index])
        for place, stranger in changed:
            request = _changed(request, place, stranger)
        for _ in range(1 + is_repeated):
            shard.send(msgspec.msgpack.encode(request))
        if is_reopened:
            shard.reopen()
    shard.aftermath()


def _changed(request: Any, place: int, stranger: Any) -> Any:
    found = list(places(request))
    path, node = found[place % len(found)]
    if isinstance(stranger, tuple):
        return replaced(request, path, stranger[0])
    choice = strangers_of(node)
    return replaced(request, path, choice[stranger % len(choice)])


@given(body=st.binary(max_size=60), index=st.integers(0, COUNT - 1), at=picks)
def test_bytes_that_are_no_request_are_turned_away(body: bytes, index: int, at: int) -> None:
    shard = Shard()
    shard.send(body)
    good = msgspec.msgpack.encode(valid_requests(shard.known)[index])
    cut = at % (len(good) + 1)
    shard.send(good[:cut] + body + good[cut + len(body) :])
    shard.aftermath()
