"""Policies on all shards, brought to one state: a host's first work, done without waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..flow.commands import PolicyAdopt
from ..flow.queries import PolicyGet
from ..flow.replies import Data
from .gather import Everywhere
from .port import Link


def reconcile_policies(links: Sequence[Link], done: Callable[[], None]) -> None:
    """Bring every shard to the newest generation of every policy; call back when that is over.

    A host that died between a policy's decision and the last adoption leaves shards behind.
    """
    Everywhere(links, partial(_adopt, links, done)).send(PolicyGet(None))


def _adopt(links: Sequence[Link], done: Callable[[], None], told: list[Any]) -> None:
    served = [(link, r.data) for link, r in zip(links, told, strict=True) if isinstance(r, Data)]
    newest: dict[str, dict[str, Any]] = {}
    for _, policies in served:
        for policy in policies:
            have = newest.get(policy["type"])
            if have is None or have["generation"] < policy["generation"]:
                newest[policy["type"]] = policy
    behind: list[Link] = []
    adoptions: list[PolicyAdopt] = []
    for link, policies in served:
        generations = {policy["type"]: policy["generation"] for policy in policies}
        for name, policy in newest.items():
            if generations.get(name, 0) < policy["generation"]:
                behind.append(link)
                adoptions.append(PolicyAdopt(name, policy["policy"], policy["generation"]))
    if adoptions:
        Everywhere(behind, lambda replies: done()).send_each(adoptions)
    else:
        done()
