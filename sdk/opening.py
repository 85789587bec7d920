"""Opening stores: options, the data directory, and the registry behind `default_store`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ..actors.directory import Directory, is_hosted, open_directory
from ..actors.ports import LocalPort, ProcessPort
from ..flow import limits
from ..flow.errors import InvalidArgument, StoreConfigError, StoreLocked, StoreNotRunning
from ..flow.host import Clock, DiskFiles, Files, SetClock, SystemClock
from ..flow.settings import Settings
from .checks import check_bool, check_int, not_yet
from .codecs import Codec
from .store import Store
from .times import duration_ms

Durability = Literal["sync", "relaxed"]
Role = Literal["auto", "host", "attach"]

_open_stores: dict[int, Store] = {}
_open_paths: dict[Path, Store | None] = {}
_registry_lock = threading.Lock()


def open_store(
    path: str | os.PathLike[str],
    *,
    shards: int | None = None,
    durability: Durability = "sync",
    clock: SetClock | None = None,
    role: Role = "auto",
    retention_ms: Any = limits.RETENTION_MS_DEFAULT,
    failed_retention_ms: Any = limits.FAILED_RETENTION_MS_DEFAULT,
    max_value_bytes: int = limits.VALUE_BYTES_DEFAULT,
    timeout: float = limits.TIMEOUT_S_DEFAULT,
    codec: Codec | None = None,
    in_process: bool = False,
) -> Store:
    """Open the store in a directory, making it where nothing is, and host its shards.

    `shards`: how many OS processes; default min(cores, 8); fixed when the directory is created.
    `durability`: "sync" answers once the bytes have passed fdatasync; "relaxed" answers after the
    write and syncs within 50 ms, so that a power loss (not a crash) can take that window.
    `clock`: None = wall clock; a `shardflow.testing.ManualClock` = time moves by its `advance`.
    `retention_ms`, `failed_retention_ms`: how long ended flows are kept: 7 and 30 days.
    `max_value_bytes`: the most that one payload, result, error or named value may take, packed.
    `timeout`: seconds that a command waits for its answer.
    `codec`: encodes values that are not plain data. Never pickle.
    `in_process=True`: the shards run inside this process, without processes or parallelism.

    Raises:
        InvalidArgument: an option is not allowed.
        StoreConfigError: the directory is something else, another version, or has other shards.
        StoreLocked: a process owns the directory.
        CorruptLog: the only shard's log is damaged; with several, the others go on.
    """
    where = Path(path).absolute()
    settings = settings_of(retention_ms, failed_retention_ms)
    manual = check_clock(clock)
    check_choices(durability, role)
    check_bool(in_process, "in_process")
    timeout_s = check_timeout(timeout)
    check_int(max_value_bytes, "max_value_bytes", 1, limits.VALUE_BYTES_CEILING)
    if shards is not None:
        check_int(shards, "shards", 1, limits.SHARDS_MAX)
    if role == "attach":
        _check_hosted(where)
        raise not_yet('role="attach"')
    default = min(os.cpu_count() or 1, limits.SHARDS_DEFAULT_MAX)
    with _told_of(where):
        directory = open_directory(where, shards, default)
        release = _take(where, directory)
        try:
            actual = clock or SystemClock()
            sync = durability == "sync"
            port: LocalPort | ProcessPort
            if in_process:
                files: list[Files] = [
                    DiskFiles(directory.shard_path(shard)) for shard in range(directory.shards)
                ]
                port = LocalPort(
                    files, settings, actual, sync=sync, manual=manual, may_begin=False
                )
            else:
                port = ProcessPort(directory, settings, actual, sync=sync, manual=manual)
        except BaseException:
            release()
            raise
    return make_store(port, clock, codec, max_value_bytes, timeout_s, str(where), release)


@contextlib.contextmanager
def _told_of(where: Path) -> Iterator[None]:
    """Name the directory in what the operating system refuses while it is opened."""
    try:
        yield
    except OSError as error:
        raise StoreConfigError(
            f"{where} cannot be a data directory: {error.strerror or error}; mend that, or use "
            "another directory",
            path=str(where),
        ) from error


def make_store(
    port: LocalPort | ProcessPort,
    clock: SetClock | None,
    codec: Codec | None,
    max_value_bytes: int,
    timeout_s: float,
    path: str | None,
    release: Any,
) -> Store:
    """Wrap a port as a registered store that its manual clock, if any, drives."""
    subscribe = getattr(clock, "subscribe", None)
    unsubscribe = subscribe(port.tick) if subscribe is not None else None

    def on_close(store: Store) -> None:
        if unsubscribe is not None:
            unsubscribe()
        with _registry_lock:
            _open_stores.pop(id(store), None)
        release()

    store = Store(
        port,
        codec=codec,
        max_value_bytes=max_value_bytes,
        timeout_s=timeout_s,
        on_close=on_close,
        path=path,
    )
    with _registry_lock:
        _open_stores[id(store)] = store
    return store


def default_store() -> Store:
    """Return the one open store of this process.

    Raises:
        StoreConfigError: none, or several, are open; the message says how many.
    """
    with _registry_lock:
        stores = list(_open_stores.values())
    if len(stores) != 1:
        raise StoreConfigError(
            f"{len(stores)} stores are open in this process and a default needs exactly one: "
            "open one, or name the store (store=..., or using(store))"
        )
    return stores[0]


def _check_hosted(where: Path) -> None:
    with _registry_lock:
        # To look at our own lock would give it up: POSIX locks go with any close of the file.
        hosted_here = where in _open_paths
    if not hosted_here and not is_hosted(where):
        raise StoreNotRunning(
            f'no process hosts {where}: open it with role="auto" or role="host"', path=str(where)
        )


def _take(where: Path, directory: Directory) -> Any:
    """Make this process, and this store in it, the directory's owner; return what undoes it."""
    with _registry_lock:
        if where in _open_paths:
            raise StoreLocked(
                f"{where} is open in this process ({os.getpid()}) already: use that store, or "
                "close it first",
                pid=os.getpid(),
                path=str(where),
            )
        directory.lock()
        _open_paths[where] = None

    def release() -> None:
        with _registry_lock:
            if _open_paths.pop(where, directory) is not directory:
                directory.unlock()

    return release


def settings_of(retention_ms: Any, failed_retention_ms: Any) -> Settings:
    """Return the shards' settings, checked."""
    return Settings(
        retention_ms=duration_ms(retention_ms, "retention_ms"),
        failed_retention_ms=duration_ms(failed_retention_ms, "failed_retention_ms"),
    )


def check_clock(clock: Clock | None) -> bool:
    """Return whether time stands still between `advance`s."""
    if clock is None:
        return False
    if not isinstance(clock, SetClock):
        raise InvalidArgument(
            f"clock is None or a shardflow.testing.ManualClock; got {clock!r}", argument="clock"
        )
    return True


def check_choices(durability: str, role: str) -> None:
    """Refuse words that are no choice."""
    if durability not in ("sync", "relaxed"):
        raise InvalidArgument(
            f'durability is "sync" or "relaxed"; got {durability!r}', argument="durability"
        )
    if role not in ("auto", "host", "attach"):
        raise InvalidArgument(f'role is "auto", "host" or "attach"; got {role!r}', argument="role")


def check_timeout(timeout: Any) -> float:
    """Return how long a command waits, in seconds."""
    if isinstance(timeout, int | float) and not isinstance(timeout, bool) and timeout > 0:
        return float(timeout)
    raise InvalidArgument(
        f"timeout is a number of seconds above 0; got {timeout!r}", argument="timeout"
    )


def _forget_after_fork() -> None:
    """In a forked child: the parent's stores are not this process's, nor who held the lock."""
    global _registry_lock
    _registry_lock = threading.Lock()
    _open_stores.clear()
    _open_paths.clear()


with contextlib.suppress(AttributeError):
    os.register_at_fork(after_in_child=_forget_after_fork)
