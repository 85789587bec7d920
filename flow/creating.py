"""Which requests bring what stays: they are refused first where room runs out.

What ends flows, moves them on or gives them back makes room, so it goes on for as long as it can.
"""

from __future__ import annotations

from typing import Any

from .commands import Create, SharedValuePut, StartAndClaim
from .family import Prepare, SpawnBegin, SpawnDecide

_CREATING = (Create, StartAndClaim, SharedValuePut, SpawnBegin, Prepare)


def is_creating(request: Any) -> bool:
    """Whether a request brings new flows or values that stay."""
    if isinstance(request, SpawnDecide):
        # With a transaction it ends one that was let in.
        return request.txn is None
    return isinstance(request, _CREATING)
