"""run/: what a host tells the processes that attach to it. Made anew by each host.

token           what a connecting process has to show
host.json       who hosts, and how: `HostFacts`
shard-N.sock    where shard N listens
shard-N.down    why shard N does not serve, once it was given up

For the owner's eyes only. Files are there whole or not at all, but are not synced: after a power
loss nobody hosts, and the next host writes them again.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path

import msgspec

from ..flow.errors import (
    ERRORS,
    OUT_OF_SPACE,
    FlowError,
    ShardUnavailable,
    StoreConfigError,
    StoreLocked,
)
from ..flow.settings import Settings
from .small import overwrite_file
from .wire import PROTOCOL


class HostFacts(msgspec.Struct, frozen=True):
    """Who hosts a store, and how. A process that attaches goes by it, and hosts likewise later."""

    pid: int
    settings: Settings
    sync: bool
    """Whether a command is answered only after its sync."""
    manual: bool
    """Whether time stands still between ticks."""
    in_process: bool
    """Whether the shards live inside the host: then nobody can attach."""
    protocol: int = PROTOCOL

    def check(self, path: Path, *, sync: bool, manual: bool) -> None:
        """Refuse to attach where what was asked for does not fit what the host does.

        Raises:
            StoreConfigError: another protocol, a weaker durability, another kind of clock.
            StoreLocked: nobody can attach to this host.
        """
        problem = None
        if self.protocol != PROTOCOL:
            problem = (
                f"which speaks protocol {self.protocol}, and this version of shardflow speaks "
                f"{PROTOCOL}: use the same version in both"
            )
        elif sync and not self.sync:
            problem = (
                'with durability="relaxed", and durability="sync" was asked for: open it with '
                '"relaxed", or let the host use "sync"'
            )
        elif manual != self.manual:
            has, has_not = ("a manual", "none") if self.manual else ("no manual", "one")
            problem = f"with {has} clock, and this process gave {has_not}: use the same kind"
        if self.in_process:
            raise StoreLocked(
                f"{path} is hosted by process {self.pid} inside itself (in_process=True), so no "
                "other process can attach: open it there without in_process",
                path=str(path),
                pid=self.pid,
            )
        if problem is not None:
            raise StoreConfigError(
                f"{path} is hosted by process {self.pid} {problem}", path=str(path)
            )


class Notices:
    """The folder run/ of one data directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "run"

    def socket_path(self, shard: int) -> Path:
        """Return the path of a shard's socket."""
        return self._path / f"shard-{shard}.sock"

    def renew(self, facts: HostFacts) -> str:
        """Make the folder this host's; return the token that connecting processes have to show."""
        self._path.mkdir(mode=0o700, exist_ok=True)
        self._path.chmod(0o700)
        for stale in self._path.glob("shard-*.down"):
            stale.unlink(missing_ok=True)
        token = secrets.token_hex(16)
        self._write("token", token.encode())
        self._write("host.json", msgspec.json.format(msgspec.json.encode(facts)))
        return token

    def token(self) -> str:
        """Return the token that is to be shown now.

        Raises:
            OSError: there is none.
        """
        return (self._path / "token").read_text().rstrip()

    def facts(self) -> HostFacts:
        """Return what the newest host has told of itself.

        Raises:
            OSError: nothing.
            StoreConfigError: it is not understood.
        """
        file = self._path / "host.json"
        try:
            return msgspec.json.decode(file.read_bytes(), type=HostFacts)
        except msgspec.MsgspecError as error:
            raise StoreConfigError(
                f"{file} is not understood ({error}): use the version of shardflow that hosts the "
                "store",
                path=str(self._directory),
            ) from error

    def put_down(self, shard: int, error: FlowError) -> None:
        """Say that a shard was given up, and why."""
        told = {"code": error.code, "message": str(error), "fields": error._fields}
        self._write(f"shard-{shard}.down", json.dumps(told, default=str).encode())

    def put_up(self, shard: int) -> None:
        """Say that a shard serves."""
        (self._path / f"shard-{shard}.down").unlink(missing_ok=True)

    def why_down(self, shard: int) -> FlowError | None:
        """Return why a shard was given up, if it was."""
        try:
            told = json.loads((self._path / f"shard-{shard}.down").read_bytes())
        except (OSError, ValueError):
            return None
        kind = ERRORS.get(told["code"], ShardUnavailable)
        return kind(told["message"], **told["fields"])

    def _write(self, name: str, data: bytes) -> None:
        fresh = self._path / f"{name}.{os.getpid()}.tmp"
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with contextlib.closing(os.fdopen(fd, "wb")) as file:
                file.write(data)
            fresh.replace(self._path / name)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            if error.errno not in OUT_OF_SPACE:
                raise
            # The file of the host before has room for this. Who reads it in between asks again.
            overwrite_file(self._path / name, data)
