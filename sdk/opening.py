"""Opening stores: options, the data directory, and the registry behind `default_store`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from ..actors.budget import share_of
from ..actors.directory import Directory
from ..actors.leftover import end_leftovers
from ..actors.notices import HostFacts
from ..actors.ports import LocalPort
from ..actors.processes import ProcessPort
from ..actors.role import Role, take_role
from ..flow import limits
from ..flow.errors import InvalidArgument, StoreConfigError, StoreLocked
from ..flow.host import Clock, DiskFiles, Files, SetClock, SystemClock
from ..flow.settings import Settings
from .checks import check_bool, check_int
from .codecs import Codec
from .store import Store
from .times import duration_ms

Durability = Literal["sync", "relaxed"]

_open_stores: dict[int, Store] = {}
_open_directories: set[tuple[int, int]] = set()
"""Those of the open stores, and of stores that are being opened: (device, inode)."""
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
    max_rss_bytes: int | None = None,
    timeout: float = limits.TIMEOUT_S_DEFAULT,
    codec: Codec | None = None,
    in_process: bool = False,
    upkeep: bool = True,
) -> Store:
    """Open the store in a directory, making it where nothing is.

    `role`: with "auto" the first process hosts the shards, and others attach to them; "host" and
    "attach" raise instead of the other. When the host ends, one of those attached hosts the store.
    `shards`: how many OS processes; default min(cores, 8); fixed when the directory is created.
    `durability`: "sync" answers once the bytes have passed fdatasync; "relaxed" answers after the
    write and syncs within 50 ms, so that a power loss (not a crash) can take that window.
    `clock`: None = wall clock; a `shardflow.testing.ManualClock` = time moves by its `advance`.
    `retention_ms`, `failed_retention_ms`: how long ended flows are kept: 7 and 30 days.
    `max_value_bytes`: the most that one payload, result, error or named value may take, packed.
    `max_rss_bytes`: memory of all shard processes together; one that holds more than its equal
    share refuses creations, with `Overloaded`. Default 60 % of the machine's, or of its cgroup's.
    `timeout`: seconds that a command waits. `codec`: encodes values that are not plain data.
    `in_process=True`: the shards run inside this process alone, without `max_rss_bytes`.
    `upkeep=False`: the host does not merge the log; for measurements.
    Retentions, memory and durability are the host's; "sync" may not be asked of a "relaxed" one.

    Raises:
        InvalidArgument: an option is not allowed.
        StoreConfigError: the directory is something else, another version, or has other shards;
            or the host's options are others.
        StoreLocked: a process owns the directory that may not, or cannot, be attached to; or this
            very process has it open.
        StoreNotRunning: role="attach", and no process hosts the store.
        CorruptLog: the only shard's log is damaged; with several, the others go on.
    """
    where = Path(path).absolute()
    settings = replace(settings_of(retention_ms, failed_retention_ms), upkeep=upkeep)
    manual = check_clock(clock)
    check_choices(durability, role, in_process, upkeep)
    timeout_s = check_timeout(timeout)
    check_int(max_value_bytes, "max_value_bytes", 1, limits.VALUE_BYTES_CEILING)
    if shards is not None:
        check_int(shards, "shards", 1, limits.SHARDS_MAX)
    if max_rss_bytes is not None:
        check_int(max_rss_bytes, "max_rss_bytes", 1)
    actual = clock or SystemClock()
    sync = durability == "sync"
    default = min(os.cpu_count() or 1, limits.SHARDS_DEFAULT_MAX)
    with _told_of(where):
        directory, found = take_role(where, role, shards, default, may_attach=not in_process)
        release = _register(directory)
        try:
            if found is None:
                share = replace(settings, max_rss_bytes=share_of(max_rss_bytes, directory.shards))
                facts = HostFacts(os.getpid(), share, sync, manual, in_process)
                port = _host(directory, facts, actual)
            else:
                found.check(where, sync=sync, manual=manual)
                port = ProcessPort(directory, found, actual, owns=False, sync=sync)
        except BaseException:
            release()
            raise
    return make_store(port, clock, codec, max_value_bytes, timeout_s, str(where), release)


def _host(directory: Directory, facts: HostFacts, clock: Clock) -> LocalPort | ProcessPort:
    """Start the shards of a directory that this process owns."""
    if not facts.in_process:
        return ProcessPort(directory, facts, clock, owns=True, sync=facts.sync)
    # Others are told that they cannot attach.
    directory.notices.renew(facts)
    directory.owner.publish()
    end_leftovers(directory)
    shards = range(directory.shards)
    files: list[Files] = [DiskFiles(directory.shard_path(shard)) for shard in shards]
    # What this process holds is not the shards' alone.
    settings = replace(facts.settings, max_rss_bytes=None)
    sync, manual = facts.sync, facts.manual
    return LocalPort(files, settings, clock, sync=sync, manual=manual, may_begin=False)


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


def _register(directory: Directory) -> Callable[[], None]:
    """Note that this process has the directory open; return what undoes it, and gives it back."""
    found = directory.path.stat()
    identity = found.st_dev, found.st_ino
    with _registry_lock:
        is_open = identity in _open_directories
        _open_directories.add(identity)
    if is_open:
        directory.owner.unlock()
        raise StoreLocked(
            f"{directory.path} is open in this process ({os.getpid()}) already: use that store, or "
            "close it first",
            pid=os.getpid(),
            path=str(directory.path),
        )

    def release() -> None:
        directory.owner.unlock()
        with _registry_lock:
            _open_directories.discard(identity)

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


def check_choices(
    durability: str, role: str, in_process: object = False, upkeep: object = True
) -> None:
    """Refuse words that are no choice, or not together."""
    check_bool(in_process, "in_process")
    check_bool(upkeep, "upkeep")
    if durability not in ("sync", "relaxed"):
        raise InvalidArgument(
            f'durability is "sync" or "relaxed"; got {durability!r}', argument="durability"
        )
    if role not in ("auto", "host", "attach"):
        raise InvalidArgument(f'role is "auto", "host" or "attach"; got {role!r}', argument="role")
    if in_process and role == "attach":
        raise InvalidArgument(
            'in_process=True hosts the shards here, and role="attach" never does: choose one',
            argument="role",
        )


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
    stores = list(_open_stores.values())
    _open_stores.clear()
    _open_directories.clear()
    for store in stores:
        store.port.abandon()


os.register_at_fork(after_in_child=_forget_after_fork)
