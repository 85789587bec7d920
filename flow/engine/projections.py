"""Where a state that is being made finds its cold flows: those of a checkpoint, or none."""

from __future__ import annotations

from collections import deque

from ..beside import Folder
from ..cold.environment import UUID_BYTES, ColdDamaged, lmdb_error
from ..cold.store import Cold
from ..host import Entropy
from ..log.position import unpack
from ..log.start import UnusableError
from ..log.values import Values
from ..machine.state import ShardState


class Projections:
    """Opens the environment anew for each state that recovery tries to make."""

    def __init__(self, folder: Folder | None, entropy: Entropy) -> None:
        """`folder`: None = ended flows stay in memory."""
        self._folder = folder
        self._entropy = entropy
        self.cold: Cold | None = None
        self.fault: str | None = None
        """Why ended flows stay in memory although they should not."""

    def attach(self, state: ShardState, values: Values, identity: bytes | None) -> None:
        """Give a state the cold flows as of a sync; without its identity, none yet.

        Raises:
            UnusableError: they are not there any more.
        """
        self.abandon()
        try:
            self._open(identity)
        except (lmdb_error, ColdDamaged, OSError) as error:
            path = None if self._folder is None else self._folder.path
            self.fault = f"ended flows stay in memory: {path}: {error}"
        cold = self.cold
        if identity is not None and (cold is None or cold.identity != identity):
            raise UnusableError("the cold flows that belong to it are not there")
        if cold is None:
            return
        state.cold = cold
        state.closed = deque()
        values.elsewhere = lambda number: (
            None if (place := cold.place(number)) is None else next(unpack(place))
        )

    def _open(self, identity: bytes | None) -> None:
        if self._folder is not None:
            uuid = self._entropy.token_bytes(UUID_BYTES)
            self.cold = Cold.open(self._folder, uuid, identity)
            self.fault = None

    def abandon(self) -> None:
        """Close what is open."""
        cold, self.cold = self.cold, None
        if cold is not None:
            cold.abandon()
