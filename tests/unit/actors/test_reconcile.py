"""Policies are brought to one state over whatever shards serve."""

from __future__ import annotations

from typing import Any

from shardflow.actors.reconcile import reconcile_policies
from shardflow.flow.commands import PolicyAdopt
from shardflow.flow.queries import PolicyGet
from shardflow.flow.replies import Data, reject
from support.links import ScriptedLink


def a_policy(kind: str, generation: int) -> dict[str, Any]:
    return {"type": kind, "policy": {"retention_ttl_ms": generation}, "generation": generation}


def a_link(shard: int, *policies: dict[str, Any]) -> ScriptedLink:
    return ScriptedLink(
        shard, lambda asked: Data(list(policies) if isinstance(asked, PolicyGet) else True)
    )


def adopted(link: ScriptedLink) -> list[tuple[str, int]]:
    return [(a.type, a.generation) for a in link.asked if isinstance(a, PolicyAdopt)]


def test_who_is_behind_adopts_the_newest_generation_of_each_policy() -> None:
    links = [
        a_link(0, a_policy("a", 3), a_policy("b", 1)),
        a_link(1, a_policy("a", 2), a_policy("b", 2)),
        a_link(2),
    ]
    done: list[int] = []
    reconcile_policies(links, lambda: done.append(1))
    assert [sorted(adopted(link)) for link in links] == [
        [("b", 2)],
        [("a", 3)],
        [("a", 3), ("b", 2)],
    ]
    assert done == [1]


def test_where_all_agree_nothing_is_written() -> None:
    links = [a_link(shard, a_policy("a", 1)) for shard in range(3)]
    done: list[int] = []
    reconcile_policies(links, lambda: done.append(1))
    assert [adopted(link) for link in links] == [[], [], []]
    assert done == [1]


def test_a_shard_that_does_not_serve_is_passed_over() -> None:
    away = ScriptedLink(0, lambda asked: reject("shard_unavailable", "away"))
    links = [away, a_link(1, a_policy("a", 1)), a_link(2)]
    done: list[int] = []
    reconcile_policies(links, lambda: done.append(1))
    assert [adopted(link) for link in links] == [[], [], [("a", 1)]]
    assert done == [1]


def test_it_is_over_only_when_every_shard_has_answered() -> None:
    silent = ScriptedLink(0, lambda asked: None)
    done: list[int] = []
    reconcile_policies([silent, a_link(1)], lambda: done.append(1))
    assert done == []
