"""What every request needs: the values' codec, the checks, and the way back from a reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from msgspec import UNSET
from msgspec.structs import force_setattr

from ...flow.codec import public
from ...flow.commands import Item
from ...flow.errors import BatchError, FlowError, InvalidArgument, Refused
from ...flow.limits import NAMED_VALUES_MAX
from ...flow.record import FlowRecord
from ...flow.replies import Rejected, Values
from ..checks import check_batch, check_bool, check_distinct, check_name
from ..codecs import Codec, pack, unpack
from ..times import instant_ms

T = TypeVar("T")


class Ask(Generic[T]):
    """A request, and how its reply is read."""

    __slots__ = ("block_ms", "read", "request")

    def __init__(self, request: Any, read: Callable[[Any], T], block_ms: int | None = None) -> None:
        self.request = request
        self.read = read
        self.block_ms = block_ms
        """How long a claim waits for something to become due."""


class Requests:
    """Base of the request builders."""

    def __init__(self, codec: Codec | None, max_value_bytes: int) -> None:
        self._codec = codec
        self._max_value_bytes = max_value_bytes

    # ---- there ----

    def _pack(self, value: Any, argument: str) -> bytes | None:
        """Return a value's bytes; None if it was not given (None itself is a value)."""
        if value is UNSET:
            return None
        return pack(value, self._codec, self._max_value_bytes, argument)

    def _pack_named(self, values: Any) -> dict[str, bytes] | None:
        if values is None or values is UNSET:
            return None
        if not isinstance(values, Mapping):
            raise InvalidArgument(
                f"values is a dict of names to values; got {values!r}", argument="values"
            )
        if len(values) > NAMED_VALUES_MAX:
            raise InvalidArgument(
                f"values has {len(values)} entries; {NAMED_VALUES_MAX} is the most",
                argument="values",
            )
        return {
            check_name(name, "values"): pack(
                value, self._codec, self._max_value_bytes, f"values[{name!r}]"
            )
            for name, value in values.items()
        }

    # ---- and back ----

    def _unpack(self, data: bytes | None) -> Any:
        return None if data is None else unpack(data, self._codec)

    def _hydrate(self, record: FlowRecord, values: Values | None) -> FlowRecord:
        """Fill in the values that the shard sent along. The record is the caller's own."""
        if values is None:
            return record
        if values.payload is not None:
            force_setattr(record, "payload", unpack(values.payload, self._codec))
        if values.omitted is None and values.named is None and values.error is values.result:
            return record
        force_setattr(record, "result", self._unpack(values.result))
        force_setattr(record, "error", self._unpack(values.error))
        named = {name: self._unpack(data) for name, data in (values.named or {}).items()}
        force_setattr(record, "values", named)
        for kind in values.omitted or ():
            if kind in ("payload", "result", "error"):
                force_setattr(record, f"{kind}_omitted", True)
        return record

    def _records(self, reply: Any) -> list[FlowRecord]:
        """Return the records of a listing or a claim, values filled in."""
        raise_refused(reply)
        records = [own(outcome) for outcome in reply.outcomes]
        if reply.values is not None:
            for record, values in zip(records, reply.values, strict=True):
                self._hydrate(record, values)
        return records


P = ParamSpec("P")
RequestsT = TypeVar("RequestsT", bound=Requests)
ItemT = TypeVar("ItemT", bound=Item)

Draft = tuple[ItemT, Any]
"""An item, and the `now_ms` that came with it: what one flow's part of a batch is built as."""


def single(
    draft: Callable[Concatenate[RequestsT, P], Draft[ItemT]], command: Callable[..., Any]
) -> Callable[Concatenate[RequestsT, P], Ask[FlowRecord]]:
    """Return the form of a batch command that has one item: the item's own arguments."""

    def build(self: RequestsT, /, *args: P.args, **kwargs: P.kwargs) -> Ask[FlowRecord]:
        item, now_ms = draft(self, *args, **kwargs)
        return Ask(command([item], False, now_of(now_ms)), read_one)

    update_wrapper(build, draft)
    return build


def batch(
    draft: Callable[..., Draft[ItemT]],
    items: Any,
    defaults: Mapping[str, Any],
    command: Callable[..., Any],
    independent: Any,
    now_ms: Any,
) -> Ask[list[Any]]:
    """Return the form that has many items: dicts of the same arguments; an item beats a default.

    All are built before anything is sent, so an error in the last item leaves nothing done.
    """
    found = []
    for item in check_batch(items):
        built, own_now_ms = draft(**{**defaults, **item}) if defaults else draft(**item)
        if own_now_ms is not None:
            raise TypeError("now_ms is an argument of the whole batch, not of its items")
        found.append(built)
    check_distinct(found)
    read: Any = read_each if check_bool(independent, "independent") else read_batch
    return Ask(command(found, independent, now_of(now_ms)), read)


def own(outcome: Any) -> FlowRecord:
    """Return a record in its public form, the caller's own copy."""
    return outcome if isinstance(outcome, FlowRecord) else public(outcome)


def raise_refused(reply: Any) -> None:
    """Raise what the whole request was refused with."""
    if isinstance(reply, Rejected):
        raise reply.refused.error()


def read_one(reply: Any) -> FlowRecord:
    """Return the record of a write on one flow, or raise its refusal."""
    raise_refused(reply)
    (outcome,) = reply.outcomes
    if isinstance(outcome, Refused):
        raise outcome.error()
    return own(outcome)


def read_batch(reply: Any) -> list[FlowRecord]:
    """Return the records of a batch in the order of its items.

    Raises:
        BatchError: some shard's group was refused; `results` tells of each item.
    """
    raise_refused(reply)
    results = _results(reply)
    errors = [result for result in results if isinstance(result, FlowError)]
    if errors:
        first = next((e for e in errors if e.code != "batch_aborted"), errors[0])
        unknown = any(error.applied == "unknown" for error in errors)
        raise BatchError(
            f"{len(errors)} of {len(results)} items were not written; the first refusal: {first}; "
            "see results for each item",
            results=results,
            applied="unknown" if unknown else "no" if len(errors) == len(results) else "yes",
        )
    return results


def read_each(reply: Any) -> list[FlowRecord | FlowError]:
    """Return a record or an error for each item of an independent batch."""
    raise_refused(reply)
    return _results(reply)


def _results(reply: Any) -> list[Any]:
    return [
        outcome.error() if isinstance(outcome, Refused) else own(outcome)
        for outcome in reply.outcomes
    ]


def read_data(reply: Any) -> Any:
    """Return plain data."""
    raise_refused(reply)
    return reply.data


def now_of(now_ms: Any) -> int | None:
    """Return the time that overrides the clock for one command, if it was given."""
    return None if now_ms is None else instant_ms(now_ms, "now_ms")
