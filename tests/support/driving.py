"""One caller's fan-out in a simulation, and what its caller may rely on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from shardflow.actors.crossing import Crossing
from shardflow.actors.errands import Errand
from shardflow.flow.errors import ERRORS, Refused
from shardflow.flow.family import SpawnChildren, children_digest
from shardflow.flow.replies import Rejected
from support.families import Key
from support.network import Network, Process

UNSURE = ("outcome_unknown", "gone")
"""Outcomes that leave open whether the fan-out took place."""

Note = Callable[[Errand, Any], None]


class FanOut:
    """One call of a fan-out, from a process that may die under it; `note` hears of each reply."""

    def __init__(
        self, network: Network, process: Process, request: SpawnChildren, note: Note
    ) -> None:
        self.request = request
        self.process = process
        self.outcome: str | None = None
        """"record", the code of a refusal, or "gone" with its process."""
        self._network = network
        self._note = note
        self._crossing = Crossing(request, len(network.shards))
        self.digest = children_digest(request.children)
        alone = self._crossing.alone()
        self.is_across = alone is None
        if alone is not None:
            network.send(process, self._crossing.home, alone, self._answered)
        else:
            self._send(self._crossing.begin())

    @property
    def group(self) -> tuple[Key, str]:
        spawn = self.request.spawn
        return (spawn.partition_key, spawn.id), spawn.group_id

    @property
    def is_refused(self) -> bool:
        """Whether its caller may rely on it that nothing was done."""
        if self.outcome in (None, "record", *UNSURE):
            return False
        assert self.outcome is not None
        return ERRORS[self.outcome].applied == "no"

    def give_up(self) -> None:
        """Let its caller wait no longer."""
        if self.outcome is None and self.is_across:
            self.outcome = "shard_unavailable" if self._crossing.give_up() else "outcome_unknown"

    def _send(self, errands: list[Errand]) -> None:
        for errand in errands:
            self._network.send(
                self.process, errand.shard, errand.request, partial(self._take, errand)
            )

    def _take(self, errand: Errand, reply: Any) -> None:
        self._note(errand, reply)
        self._send(self._crossing.take(errand, reply))
        if self._crossing.reply is not None:
            self._answered(self._crossing.reply)

    def _answered(self, reply: Any) -> None:
        outcome = reply.refused if isinstance(reply, Rejected) else reply.outcomes[0]
        # Whoever waited no longer was told something already, and that has to hold.
        if self.outcome is None:
            self.outcome = outcome.code if isinstance(outcome, Refused) else "record"
