"""Why a shard was given up: the last failure's reason, not an older one's."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from shardflow.actors import supervisor as module
from shardflow.actors.supervisor import SupervisorActor
from shardflow.flow.errors import FlowError, ShardUnavailable


def test_a_shard_is_given_up_for_its_last_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Exception] = [ShardUnavailable("locked"), OSError("full"), OSError("full")]

    def spawn(config: dict[str, Any]) -> Any:
        raise failures.pop(0)

    told: list[FlowError] = []
    is_told = threading.Event()

    def given_up(shard: int, error: FlowError) -> None:
        told.append(error)
        is_told.set()

    monkeypatch.setattr(module, "spawn", spawn)
    monkeypatch.setattr(module, "RESTART_BACKOFF_MS", 1)
    actor = SupervisorActor.launch(1, lambda shard: {}, lambda shard: None, given_up)
    try:
        assert is_told.wait(10)
    finally:
        actor.actor_ref.stop(block=True)
    assert failures == []
    assert "full" in str(told[0])
    assert "locked" not in str(told[0])
