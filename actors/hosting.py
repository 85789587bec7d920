"""What the owner of a directory runs: its shard processes, and the courier between them."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import Any

import msgspec

from ..flow.errors import FlowError
from ..flow.host import Clock
from .courier import Courier, start_courier
from .directory import Directory
from .notices import HostFacts
from .reconcile import reconcile_policies
from .router import Connect, GiveUp, RouterActor
from .supervisor import FINAL, Child, SupervisorActor

logger = logging.getLogger("shardflow.host")


class Hosting:
    """One process's time as the host, from the lock on the directory to the end of its shards."""

    def __init__(
        self, directory: Directory, facts: HostFacts, clock: Clock, router: RouterActor
    ) -> None:
        self._directory = directory
        self._notices = directory.notices
        self._facts = facts
        self._clock = clock
        self._router = router
        self._token = ""
        self._supervisor: SupervisorActor | None = None
        self._courier: Courier | None = None
        self.reconciled = threading.Event()
        """Set once all shards that serve have the same policies."""

    def start(self) -> None:
        """Start the shards, and tell other processes how to attach. Does not wait for anything.

        Raises:
            OSError: run/ cannot be written.
        """
        self._token = self._notices.renew(self._facts)
        for link in self._router.links:
            link.token = self._token
            link.revive()
        self._directory.owner.publish()
        logger.info("process %d hosts %s", os.getpid(), self._directory.path)
        self._supervisor = SupervisorActor.launch(
            self._directory.shards, self._config_of, self._on_up, self._on_given_up
        )
        # These wait at the links for as long as the shards take.
        reconcile_policies(self._router.links, self.reconciled.set)
        self._courier = start_courier(self._router.links)

    @property
    def children(self) -> list[Child]:
        """The shards' processes."""
        return [] if self._supervisor is None else self._supervisor.children

    @property
    def has_failed(self) -> bool:
        """Whether every shard is given up, for reasons that may be this process's own."""
        return all(
            child.is_given_up and child.error is not None and child.error.code not in FINAL
            for child in self.children
        )

    def stop(self, timeout_s: float) -> None:
        """End all shards; kill what has not ended in time. The directory stays locked."""
        if self._courier is not None:
            self._courier.stop()
        if self._supervisor is not None:
            self._supervisor.actor_ref.stop(block=True)
            self._supervisor.stop_children(timeout_s)

    def release_pipes(self) -> None:
        """In a forked child: let go of its copies of the lifelines."""
        for child in self.children:
            for pipe in (child.process and (child.process.stdin, child.process.stdout)) or ():
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _config_of(self, shard: int) -> dict[str, Any]:
        directory = self._directory
        settings = msgspec.structs.replace(
            self._facts.settings, shard=shard, shards=directory.shards
        )
        return {
            "shard": shard,
            "path": str(directory.shard_path(shard)),
            "socket": str(self._notices.socket_path(shard)),
            "settings": msgspec.to_builtins(settings),
            "sync": self._facts.sync,
            "clock_ms": self._clock.now_ms() if self._facts.manual else None,
            "token": self._token,
            "host_pid": os.getpid(),
        }

    # ---- told by the supervisor, in its thread ----

    def _on_up(self, shard: int) -> None:
        with contextlib.suppress(OSError):
            self._notices.put_up(shard)
        self._router.actor_ref.tell(Connect(shard))

    def _on_given_up(self, shard: int, error: FlowError) -> None:
        try:
            self._notices.put_down(shard, error)
        except OSError as problem:
            logger.warning("attached processes are not told of shard %d: %s", shard, problem)
        self._router.actor_ref.tell(GiveUp(shard, error))
