"""Helpful words about names that nobody knows: "did you mean"."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known name, or all of them."""
    names = sorted(known)
    near = get_close_matches(str(word), names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(map(repr, names))}" if names else "none are known"
