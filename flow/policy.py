"""Retry policies: what a user declares, how layers merge, when the next attempt is due.

A policy is a stack of partial layers (command, state, type, built-in); each field is taken from
the first layer that sets it. `Retry` and `Backoff` remember which of their fields were given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args
from zlib import crc32

from msgspec import Struct

from . import limits
from .bounds import BackoffMs, JitterPct, MaxReclaims, MaxRetries, Name
from .errors import InvalidArgument
from .record import FAILED, RUNNING

BackoffKind = Literal["none", "fixed", "linear", "exponential"]
KINDS: tuple[str, ...] = get_args(BackoffKind)


class RetryRule(Struct, array_like=True, frozen=True, gc=False):
    """A retry policy with every field decided."""

    max_retries: int = limits.MAX_RETRIES_DEFAULT
    kind: BackoffKind = "exponential"
    base_ms: int = limits.BACKOFF_BASE_MS_DEFAULT
    max_ms: int = limits.BACKOFF_MAX_MS_DEFAULT
    jitter_pct: int = limits.JITTER_PCT_DEFAULT
    exhausted_to: str = FAILED
    max_reclaims: int = limits.MAX_RECLAIMS_DEFAULT

    def delay_ms(self, flow_id: str, attempt: int) -> int:
        """Return the wait before attempt number `attempt` + 1, in ms; `attempt` counts from 1.

        Jitter only shortens, and follows from (id, attempt) alone: a repeat gives the same.
        """
        if self.kind == "none":
            return 0
        delay = self.base_ms
        if self.kind == "linear":
            delay = self.base_ms * attempt
        elif self.kind == "exponential":
            # 2**64 ms is past every cap; the bound keeps the shift small for 1,000 retries.
            delay = self.base_ms << min(attempt - 1, 64)
        delay = min(delay, self.max_ms)
        spread = delay * self.jitter_pct // 100
        if spread == 0:
            return delay
        return delay - crc32(f"{flow_id}\n{attempt}".encode()) % (spread + 1)


BUILT_IN = RetryRule()


class RetryPatch(Struct, array_like=True, frozen=True, gc=False):
    """One layer: None means that the layer does not decide the field."""

    max_retries: MaxRetries | None = None
    kind: BackoffKind | None = None
    base_ms: BackoffMs | None = None
    max_ms: BackoffMs | None = None
    jitter_pct: JitterPct | None = None
    exhausted_to: Name | None = None
    max_reclaims: MaxReclaims | None = None


def resolve(*layers: RetryPatch | None) -> RetryRule:
    """Merge layers, the strongest first, over the built-in rule."""
    decided: dict[str, Any] = {}
    for layer in layers:
        if layer is None:
            continue
        for name in RetryPatch.__struct_fields__:
            value = getattr(layer, name)
            if value is not None and name not in decided:
                decided[name] = value
    return RetryRule(**decided)


class Backoff:
    """How long to wait between attempts, in milliseconds.

    `exponential` is base x 2^(n-1), `linear` base x n, `fixed` base, `none` zero; each capped at
    `max_ms`, then shortened by up to `jitter_pct` percent. Fields not given fall through to the
    next policy layer; read, they show the built-in default.
    """

    __slots__ = ("_given",)

    def __init__(
        self,
        kind: BackoffKind | None = None,
        base_ms: int | None = None,
        max_ms: int | None = None,
        jitter_pct: int | None = None,
    ) -> None:
        given = {"kind": kind, "base_ms": base_ms, "max_ms": max_ms, "jitter_pct": jitter_pct}
        self._given = {name: value for name, value in given.items() if value is not None}
        check_retry({"backoff": self._given})

    @classmethod
    def none(cls) -> Backoff:
        """Try again at once."""
        return cls("none")

    @classmethod
    def fixed(cls, base_ms: int | None = None, *, jitter_pct: int | None = None) -> Backoff:
        """Wait the same time before every attempt; the cap grows with it."""
        cap = None if base_ms is None else max(base_ms, limits.BACKOFF_MAX_MS_DEFAULT)
        return cls("fixed", base_ms, cap, jitter_pct)

    @classmethod
    def linear(
        cls,
        base_ms: int | None = None,
        max_ms: int | None = None,
        *,
        jitter_pct: int | None = None,
    ) -> Backoff:
        """Wait base, 2 base, 3 base, … up to max_ms."""
        return cls("linear", base_ms, max_ms, jitter_pct)

    @classmethod
    def exponential(
        cls,
        base_ms: int | None = None,
        max_ms: int | None = None,
        *,
        jitter_pct: int | None = None,
    ) -> Backoff:
        """Wait base, 2 base, 4 base, … up to max_ms."""
        return cls("exponential", base_ms, max_ms, jitter_pct)

    @property
    def kind(self) -> BackoffKind:
        """One of none, fixed, linear, exponential."""
        return cast(BackoffKind, self._given.get("kind", BUILT_IN.kind))

    @property
    def base_ms(self) -> int:
        """The first wait, in ms."""
        return cast(int, self._given.get("base_ms", BUILT_IN.base_ms))

    @property
    def max_ms(self) -> int:
        """The longest wait, in ms."""
        return cast(int, self._given.get("max_ms", BUILT_IN.max_ms))

    @property
    def jitter_pct(self) -> int:
        """How many percent of the wait may be taken off."""
        return cast(int, self._given.get("jitter_pct", BUILT_IN.jitter_pct))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that were given."""
        return dict(self._given)

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in BACKOFF_FIELDS)
        return f"Backoff({', '.join(fields)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Backoff) and self._given == other._given

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._given.items())))


class Retry:
    """When a failed attempt is repeated, and what becomes of a flow that used them all up.

    `max_retries` counts the attempts after the first; 0 means that the first failure exhausts.
    `max_reclaims` bounds how often a lease may expire in one state. `exhausted_to` is a state,
    terminal or active. Fields not given fall through to the next policy layer; read, they show
    the built-in default.
    """

    __slots__ = ("_given", "backoff")

    def __init__(
        self,
        max_retries: int | None = None,
        backoff: Backoff | Mapping[str, Any] | None = None,
        exhausted_to: str | None = None,
        max_reclaims: int | None = None,
    ) -> None:
        given = {
            "max_retries": max_retries,
            "exhausted_to": exhausted_to,
            "max_reclaims": max_reclaims,
        }
        self._given = {name: value for name, value in given.items() if value is not None}
        if not isinstance(backoff, Backoff):
            backoff = Backoff() if backoff is None else _backoff_of(backoff)
        self.backoff = backoff
        check_retry(self._given)

    @property
    def max_retries(self) -> int:
        """Attempts after the first."""
        return cast(int, self._given.get("max_retries", BUILT_IN.max_retries))

    @property
    def exhausted_to(self) -> str:
        """The state of a flow that used up its attempts."""
        return cast(str, self._given.get("exhausted_to", BUILT_IN.exhausted_to))

    @property
    def max_reclaims(self) -> int:
        """How often a lease may expire in one state."""
        return cast(int, self._given.get("max_reclaims", BUILT_IN.max_reclaims))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that were given, nested as `flow_policy_set` takes them."""
        given: dict[str, Any] = dict(self._given)
        if backoff := self.backoff.as_dict():
            given["backoff"] = backoff
        return given

    def preview(self, flow_id: str = "preview") -> list[int]:
        """Return the waits in ms before each retry, as a flow with this id would have them."""
        rule = resolve(patch_of(self))
        return [rule.delay_ms(flow_id, n) for n in range(1, rule.max_retries + 1)]

    def __repr__(self) -> str:
        return (
            f"Retry(max_retries={self.max_retries}, backoff={self.backoff!r}, "
            f"exhausted_to={self.exhausted_to!r}, max_reclaims={self.max_reclaims})"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Retry) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((tuple(sorted(self._given.items())), self.backoff))


BACKOFF_FIELDS = ("kind", "base_ms", "max_ms", "jitter_pct")
_BOUNDS = {
    "max_retries": limits.MAX_RETRIES_MAX,
    "max_reclaims": limits.MAX_RECLAIMS_MAX,
    "base_ms": limits.BACKOFF_MS_MAX,
    "max_ms": limits.BACKOFF_MS_MAX,
    "jitter_pct": limits.JITTER_PCT_MAX,
}


def check_retry(fields: Mapping[str, Any]) -> None:
    """Refuse a retry declaration (nested, partial) that is not allowed. None clears a field.

    Raises:
        InvalidArgument: naming the field, what was given and what is allowed.
    """
    backoff = fields.get("backoff")
    if isinstance(backoff, Backoff):
        backoff = backoff.as_dict()
    flat = {name: value for name, value in fields.items() if name != "backoff"}
    known: set[str] = {"max_retries", "exhausted_to", "max_reclaims"}
    if isinstance(backoff, Mapping):
        unknown = set(backoff) - set(BACKOFF_FIELDS)
        flat.update((n, v) for n, v in backoff.items() if n not in unknown)
        known |= set(BACKOFF_FIELDS)
    else:
        unknown = set() if backoff is None else {"backoff"}
    unknown |= set(flat) - known
    if unknown:
        raise InvalidArgument(
            f"retry: {sorted(map(str, unknown))} not understood; a retry has max_retries, "
            f"exhausted_to, max_reclaims and backoff (with {', '.join(BACKOFF_FIELDS)})",
            argument="retry",
        )
    for name, value in flat.items():
        _check_field(name, value)


def _check_field(name: str, value: Any) -> None:
    if value is None:
        return
    if name == "kind":
        if value not in KINDS:
            raise InvalidArgument(
                f"retry: backoff kind is one of {', '.join(KINDS)}; got {value!r}",
                argument="retry",
            )
    elif name == "exhausted_to":
        if not _is_state(value):
            raise InvalidArgument(
                f"retry: exhausted_to is a state other than {RUNNING!r}; got {value!r}",
                argument="retry",
            )
    elif type(value) is not int or not 0 <= value <= _BOUNDS[name]:
        raise InvalidArgument(
            f"retry: {name} is an integer from 0 to {_BOUNDS[name]}; got {value!r}",
            argument="retry",
        )


def _is_state(value: Any) -> bool:
    if not isinstance(value, str) or not value or value == RUNNING:
        return False
    try:
        return len(value.encode()) <= limits.NAME_BYTES_MAX
    except UnicodeEncodeError:
        return False


def _backoff_of(fields: Mapping[str, Any]) -> Backoff:
    check_retry({"backoff": fields})
    return Backoff(**fields)


def patch_of(retry: Retry | Mapping[str, Any] | None) -> RetryPatch | None:
    """Return the flat layer of a user's declaration.

    Raises:
        InvalidArgument: if a field is unknown or out of bounds.
    """
    if retry is None:
        return None
    if isinstance(retry, Retry):
        fields: Mapping[str, Any] = retry.as_dict()
    elif isinstance(retry, Mapping):
        fields = retry
    else:
        raise InvalidArgument(
            f"retry is a Retry or a dict of its fields; got {retry!r}", argument="retry"
        )
    check_retry(fields)
    backoff: Any = fields.get("backoff") or {}
    if isinstance(backoff, Backoff):
        backoff = backoff.as_dict()
    return RetryPatch(**{n: v for n, v in fields.items() if n != "backoff"}, **backoff)
