"""What a fan-out is told of each flow that it is to create, and its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from msgspec import Struct

from ..flow.limits import STATE_DEFAULT
from ..flow.record import AttributeValue
from .checks import NOT_GIVEN

GROUP_DEFAULT: Final = "fanout"
WAIT_STATE_DEFAULT: Final = "waiting_children"


class ChildSpec(Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """A child to be spawned: its creation arguments, checked when it is spawned.

    Made by a workflow's `child`, or by hand. Parent and root are added by the store; a dict of the
    same fields does as well.

        sf.ChildSpec(id="email-1", type="email", payload={"template": "paid"})
    """

    id: str
    type: str
    state: str = STATE_DEFAULT
    payload: Any = NOT_GIVEN
    partition_key: str | None = None
    """None: the parent's."""
    priority: int = 0
    run_at_ms: int | datetime | None = None
    correlation_id: str | None = None
    """None: the parent's."""
    attributes: Mapping[str, AttributeValue] | None = None
    values: Mapping[str, Any] | None = None
    max_active_ms: int | timedelta | None = None
    retention_ttl_ms: int | timedelta | None = None
    history_max_events: int | None = None
