"""Named and shared values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ...flow import commands, queries
from ...flow.errors import InvalidArgument
from ...flow.limits import CLEANUP_LIMIT_DEFAULT, INTEGER_MAX, LIST_COUNT_MAX, VALUE_REFS_MAX
from ...flow.record import FlowRecord
from ..checks import check_bool, check_int, check_name, check_name_or_none
from .ask import Ask, Requests, now_of, read_data, read_one
from .creating import Instant


class OmittedValue(NamedTuple):
    """Stands for a value that is larger than what was asked for."""

    ref: str
    size: int
    """Bytes, packed."""


class Valuing(Requests):
    """value_put, value_mget, retention_cleanup."""

    def flow_value_put(
        self,
        value: Any,
        *,
        id: str | None = None,
        name: str | None = None,
        override: bool = False,
        partition_key: str | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[FlowRecord | str]:
        """Set a named value of a flow, and return the flow; or store a value of its own.

        First write wins: the same bytes again change nothing, other bytes need `override=True`.
        Without id and name the value belongs to no flow and its reference is returned; such a
        value is never removed by itself.

        Raises:
            ValueConflict: the name has other bytes.
            FlowNotFound: there is no such flow.
        """
        if (id is None) != (name is None):
            raise InvalidArgument("a named value needs both id and name; a shared one neither")
        data = self._pack(value, "value")
        assert data is not None
        if id is None or name is None:
            return Ask(commands.SharedValuePut(data, now_of(now_ms)), read_data)
        command = commands.ValuePut(
            check_name(id, "id"),
            check_name_or_none(partition_key, "partition_key"),
            check_name(name, "name"),
            data,
            check_bool(override, "override"),
            now_of(now_ms),
        )
        return Ask(command, read_one)

    def flow_value_mget(
        self, refs: Iterable[str], *, max_bytes: int | None = None, now_ms: Instant | None = None
    ) -> Ask[list[Any]]:
        """Read values by reference, in order: None for an unknown one.

        One that takes more than `max_bytes` packed is an `OmittedValue` with its size.
        """
        if isinstance(refs, str | bytes):
            raise InvalidArgument(f"refs is a list of references; got {refs!r}", argument="refs")
        asked = list(refs)
        if len(asked) > VALUE_REFS_MAX:
            raise InvalidArgument(
                f"refs has {len(asked)} entries; {VALUE_REFS_MAX} is the most", argument="refs"
            )
        numbers = [_number(ref) for ref in asked]
        most = INTEGER_MAX if max_bytes is None else check_int(max_bytes, "max_bytes")
        query = queries.ValueGet(numbers, most, now_of(now_ms))

        def read(reply: Any) -> list[Any]:
            found = read_data(reply)
            return [
                OmittedValue(ref, data) if isinstance(data, int) else self._unpack(data)
                for ref, data in zip(asked, found, strict=True)
            ]

        return Ask(query, read)

    def flow_retention_cleanup(
        self, *, limit: int = CLEANUP_LIMIT_DEFAULT, now_ms: Instant | None = None
    ) -> Ask[int]:
        """Remove up to `limit` ended flows whose retention is over; return how many.

        Shards do this by themselves too; a flow past its retention is absent in any case.
        """
        check_int(limit, "limit", 1, LIST_COUNT_MAX)
        return Ask(commands.RetentionCleanup(limit, now_of(now_ms)), read_data)


def _number(ref: Any) -> int:
    if isinstance(ref, str) and ref[:1] == "v":
        try:
            number = int(ref[1:], 16)
        except ValueError:
            number = -1
        if 0 <= number < 2**63 and ref == f"v{number:x}":
            return number
    raise InvalidArgument(
        f"a reference is what payload_ref and its like say, unchanged; got {ref!r}",
        argument="refs",
    )
