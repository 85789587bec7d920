"""The shard process: a fresh interpreter that builds one engine and serves it until its host ends.

Started by actors/supervisor.py; never imports the user's main module. Configuration comes as one
line of JSON on stdin, which then stays open as the lifeline: its end means that the host is gone.
One line of JSON on stdout says how the start went.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from ..flow.beside import cold_folder
from ..flow.engine import Engine
from ..flow.errors import FlowError, ShardUnavailable, advice
from ..flow.host import Clock, DiskFiles, SetClock, SystemClock, SystemEntropy
from ..flow.settings import Settings
from .address import bind_address
from .leftover import sign_lock, take_lock
from .service import Service
from .shard import EXIT_BROKEN, ShardActor
from .staging import Staging
from .supervisor import REPORT_MARK

logger = logging.getLogger("shardflow.shard")

_BACKLOG = 128
_GC_THRESHOLD = 50_000


def main() -> None:
    """Read the configuration, recover, serve, exit."""
    # Ctrl-C in the host's terminal reaches the whole foreground group; the host decides instead.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s")
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        os._exit(0)  # The host has ended already.
    config = json.loads(line)
    try:
        actor = build(config)
    except FlowError as error:
        _report_error(error)
        os._exit(EXIT_BROKEN)
    except OSError as error:
        reason = f"shard {config['shard']} cannot start: {error}"
        told = f"{reason}; {advice(error.errno)}, then open the store again"
        _report({"code": "shard_unavailable", "message": told, "fields": {"reason": reason}})
        os._exit(EXIT_BROKEN)
    actor.run()
    logging.shutdown()
    os._exit(0)


def build(config: dict[str, Any]) -> ShardActor:
    """Recover the engine, listen, tell the host, and return the actor that is to run."""
    started = time.monotonic()
    files = DiskFiles(Path(config["path"]))
    lock = Path(config["path"]) / "LOCK"
    if not take_lock(files, lock, lambda: os.getppid() == config["host_pid"]):
        raise ShardUnavailable(
            f"shard {config['shard']} at {config['path']} is locked by another process",
            shard=config["shard"],
            reason="locked",
        )
    sign_lock(lock)
    settings = Settings(**config["settings"])
    engine = Engine(
        files,
        SystemEntropy(),
        settings,
        sync=config["sync"],
        may_begin=False,
        folder=cold_folder(files),
    )
    if engine.cold_fault is not None:
        logger.warning("shard %d: %s", settings.shard, engine.cold_fault)
    clock: Clock = SystemClock()
    if config["clock_ms"] is not None:
        clock = SetClock(config["clock_ms"])
    for note in engine.restored.notes:
        logger.info("shard %d: %s", config["shard"], note)
    # Recovered state lives as long as the process: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    listener = _listen(Path(config["socket"]))
    staging = Staging(Path(config["path"]))
    service = Service(engine, clock, relaxed=not config["sync"], staging=staging)
    lifeline = _lifeline(config["host_pid"])
    actor = ShardActor(service, listener, lifeline, config["token"], report=_report_error)
    _report(
        {
            "pid": os.getpid(),
            "flows": len(engine.state.table) + engine.state.cold.rows,
            "cut_bytes": engine.cut_bytes,
            "recovery_ms": round((time.monotonic() - started) * 1_000),
        }
    )
    return actor


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with bind_address(path) as address:
        listener.bind(address)
    path.chmod(0o600)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def _lifeline(host_pid: int) -> list[Any]:
    """Return what becomes readable when the host ends, however it ends.

    The pipe alone is not enough: a process that the host forked keeps a copy of its other end.
    """
    channels: list[Any] = [sys.stdin.buffer]
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(ProcessLookupError, OSError):
            channels.append(os.pidfd_open(host_pid))
    if os.getppid() != host_pid:
        os._exit(0)
    return channels


def _report_error(error: FlowError) -> None:
    _report({"code": error.code, "message": str(error), "fields": error._fields})


def _report(told: dict[str, Any]) -> None:
    line = b"\n" + REPORT_MARK + json.dumps(told, default=str).encode() + b"\n"
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), line)


if __name__ == "__main__":
    main()
