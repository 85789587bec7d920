"""What the SDK lets through, a shard takes: no bound at its door is narrower than the SDK's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from shardflow.flow import limits, queries
from shardflow.flow.codec import encoder
from shardflow.flow.policy import Backoff, Retry
from shardflow.flow.record import Record
from shardflow.flow.replies import Done, Rejected
from shardflow.sdk.requests.reading import _text
from shardflow.sdk.store import Builders
from support.lone import NOW_MS, Shard

MOST = limits.INTEGER_MAX
NAMES = ["x" * limits.NAME_BYTES_MAX, "é" * 256, "\U0001f600" * 128, "\0", "any of it"]
MANY = [f"s{n}" for n in range(limits.FILTER_NAMES_MAX)]
BACKOFF = Backoff("fixed", limits.BACKOFF_MS_MAX, limits.BACKOFF_MS_MAX, limits.JITTER_PCT_MAX)


def attributes() -> dict[str, Any]:
    return {
        **{f"a{n}": None for n in range(limits.ATTRIBUTES_MAX - 5)},
        "i": MOST,
        "j": -MOST,
        "f": 1.7976931348623157e308,
        "é" * 256: "é" * 512,
        "s": "x" * limits.ATTRIBUTE_BYTES_MAX,
    }


def everything(name: str, state: str) -> dict[str, Any]:
    return {
        "type": name,
        "state": state,
        "partition_key": name,
        "payload": b"x" * 5_000,
        "priority": limits.PRIORITY_MAX,
        "run_at_ms": limits.NEVER,
        "parent_flow_id": name,
        "root_flow_id": name,
        "correlation_id": name,
        "attributes": attributes(),
        "values": {f"v{n}": n for n in range(limits.NAMED_VALUES_MAX - 1)} | {name: 1},
        "idempotent": True,
        "max_active_ms": MOST,
        "retention_ttl_ms": MOST,
        "history_max_events": limits.HISTORY_EVENTS_MAX,
        "now_ms": MOST,
    }


Build = Callable[[Builders, str], Any]
LEASED: dict[str, Any] = {"fencing_token": MOST, "now_ms": MOST}
RETRY = Retry(
    max_retries=limits.MAX_RETRIES_MAX,
    max_reclaims=limits.MAX_RECLAIMS_MAX,
    backoff=BACKOFF,
    exhausted_to="x" * limits.NAME_BYTES_MAX,
)
BROUGHT: dict[str, Any] = {"attributes": attributes(), "values": {"v" * 512: 1}, "payload": None}

ASKS: dict[str, Build] = {
    "create": lambda b, n: b.flow_create(n, **everything(n, n)),
    "create, the least": lambda b, n: b.flow_create("i", type="t", run_at_ms=0, now_ms=0),
    "create many": lambda b, n: b.flow_create_many(
        [{"id": f"{i}"} for i in range(limits.BATCH_ITEMS_MAX)], type=n
    ),
    "start and claim": lambda b, n: b.flow_start_and_claim(n, type=n, worker=n, lease_ms=MOST),
    "claim": lambda b, n: b.flow_claim_due(
        n,
        worker=n,
        state=MANY,
        partition_keys=[n, *MANY[1:]],
        limit=limits.CLAIM_LIMIT_MAX,
        lease_ms=MOST,
        reclaim_ratio=100,
        priority=0,
        payload_max_bytes=MOST,
        values=[n, *MANY[1:]],
    ),
    "claim, the least": lambda b, n: b.flow_claim_due(
        "t", worker="w", lease_ms=1, payload_max_bytes=0, values=[], reclaim_ratio=0
    ),
    "release": lambda b, n: b.flow_release(n, n, run_at_ms=MOST, **LEASED),
    "reclaim": lambda b, n: b.flow_reclaim(n, worker=n, state="running", limit=1_000, lease_ms=1),
    "complete": lambda b, n: b.flow_complete(n, n, retention_ttl_ms=0, **BROUGHT, **LEASED),
    "fail": lambda b, n: b.flow_fail(n, n, retention_ttl_ms=MOST, **LEASED),
    "cancel": lambda b, n: b.flow_cancel(n, partition_key=n, force=True),
    "retry": lambda b, n: b.flow_retry(n, n, retry=RETRY, run_at_ms=MOST, **BROUGHT, **LEASED),
    "transition": lambda b, n: b.flow_transition(n, n, n, priority=2, run_at_ms=MOST, **LEASED),
    "step": lambda b, n: b.flow_step_continue(n, n, n, n, lease_ms=MOST, **BROUGHT, **LEASED),
    "extend": lambda b, n: b.flow_extend_lease(n, n, lease_ms=timedelta(days=10_000), **LEASED),
    "value": lambda b, n: b.flow_value_put(b"x" * 5_000, id=n, name=n, partition_key=n),
    "shared value": lambda b, n: b.flow_value_put(None),
    "values": lambda b, n: b.flow_value_mget([f"v{2**63 - 1:x}"] * limits.VALUE_REFS_MAX),
    "no values": lambda b, n: b.flow_value_mget([], max_bytes=0),
    "clean up": lambda b, n: b.flow_retention_cleanup(limit=limits.LIST_COUNT_MAX),
    "get": lambda b, n: b.flow_get(n, partition_key=n, payload=True, values=MANY),
    "history": lambda b, n: b.flow_history(
        n, count=limits.HISTORY_COUNT_MAX, event=n, worker=n, from_ms=MOST, to_version=MOST
    ),
    "list": lambda b, n: b.flow_list(
        n, state=MANY, attributes=attributes(), count=limits.LIST_COUNT_MAX, after=cursor(n)
    ),
    "list on": lambda b, n: b.flow_list(n, after=_text((0, n, ""))),
    "by root": lambda b, n: b.flow_by_root(n, state=n, terminal=True, count=1_000, after=cursor(n)),
    "info": lambda b, n: b.flow_info(n),
    "stuck": lambda b, n: b.flow_stuck(n, older_than_ms=MOST, count=limits.LIST_COUNT_MAX),
    "policy": lambda b, n: b.flow_policy_set(
        n,
        retry=RETRY,
        retention_ttl_ms=MOST,
        max_active_ms=MOST,
        expected_generation=0,
        states={
            n: {"retry": RETRY, "mode": "parallel"},
            "other": None,
            **{f"s{i}": {"retry": {"backoff": {"kind": None}}} for i in range(998)},
        },
    ),
    "no policy": lambda b, n: b.flow_policy_set(n, retry=None, states=None, max_active_ms=None),
    "policy of": lambda b, n: b.flow_policy_get(n),
}


def cursor(name: str) -> str:
    return _text((MOST, name, name))


@pytest.mark.parametrize("name", NAMES, ids=["ascii", "two bytes", "four bytes", "nul", "text"])
@pytest.mark.parametrize("what", ASKS)
def test_what_the_sdk_lets_through_is_no_invalid_argument(what: str, name: str) -> None:
    shard = Shard()
    builders = Builders(None, limits.VALUE_BYTES_DEFAULT, lambda: NOW_MS)
    (reply,) = shard.send(encoder.encode(ASKS[what](builders, name).request))
    refusals = [reply.refused] if isinstance(reply, Rejected) else getattr(reply, "outcomes", [])
    assert [r for r in refusals if getattr(r, "code", None) == "invalid_argument"] == []
    shard.reopen()


def test_a_watch_may_end_as_late_as_the_longest_wait_says() -> None:
    watch = queries.Watch("t", None, None, None, True, True, MOST + MOST)
    assert Shard().send(encoder.encode(watch))[0].data is True


def test_the_largest_value_is_taken() -> None:
    value = bytes(limits.VALUE_BYTES_CEILING)
    builders = Builders(None, 2 * limits.VALUE_BYTES_CEILING, lambda: NOW_MS)
    ask = builders.flow_value_put(value[:-5], id="ready", name="large")
    (reply,) = Shard().send(encoder.encode(ask.request))
    assert reply.applied


def test_a_flow_that_is_all_names_has_a_record_within_its_bound() -> None:
    shard = Shard()
    builders = Builders(None, limits.VALUE_BYTES_DEFAULT, lambda: NOW_MS)
    name = "\U0001f600" * 128
    some_time = {"run_at_ms": 0, "now_ms": None, "max_active_ms": None}
    arguments: dict[str, Any] = everything(name, "a") | some_time | {"attributes": None}
    shard.send(encoder.encode(builders.flow_create(name, **arguments).request))
    for number in range(8):
        some = {f"{number}{n}" + "x" * 509: "y" * 1_024 for n in range(8)}
        claim = builders.flow_claim_due(name, worker=name, lease_ms=5)
        (job,) = shard.send(encoder.encode(claim.request))[0].outcomes
        ask = builders.flow_transition(
            name,
            job.run_state,
            f"{number}" + "z" * 511,
            fencing_token=job.fencing_token,
            lease_token=job.lease_token,
            partition_key=name,
            attributes=some,
        )
        shard.send(encoder.encode(ask.request))
    record: Record = shard.records()[name, name]
    assert len(record.attributes) == limits.ATTRIBUTES_MAX
    assert len(encoder.encode(record)) < limits.RECORD_BYTES_MAX / 2


def test_a_done_with_a_cursor_is_read_back() -> None:
    for cursor in ((MOST, NAMES[0], NAMES[1]), (0, "i", "")):
        packed = msgspec.msgpack.encode(Done([], cursor=cursor))
        assert msgspec.msgpack.decode(packed, type=Done).cursor == cursor
