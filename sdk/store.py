"""Store: every command three ways: waiting, as a future, awaitable."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from functools import update_wrapper
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

import pykka

from ..actors.backup import BackupDone, back_up
from ..actors.future import ReplyFuture
from ..flow.errors import OutcomeUnknown, ShardUnavailable, StoreClosed, StoreConfigError
from ..flow.queries import Backup, Stats, is_query
from .codecs import Codec
from .requests.ask import Ask, read_data
from .requests.claiming import Claiming
from .requests.moving import Moving
from .requests.policing import Policing
from .requests.reading import Reading
from .requests.settling import Settling
from .requests.spawning import Spawning
from .requests.valuing import Valuing

P = ParamSpec("P")
T = TypeVar("T")


class Port(Protocol):
    """What a store needs of whatever answers its commands."""

    shards: int

    def submit(
        self, request: Any, read: Callable[[Any], T], until_ms: int | None = None
    ) -> ReplyFuture[T]:
        """Send a request to where it belongs; `read` makes the caller's value of the reply."""
        ...

    def now_ms(self) -> int:
        """Return the store's time."""
        ...

    @property
    def role(self) -> Literal["host", "attached"]:
        """Whether the shards are this process's own, as of now."""
        ...

    def close(self, timeout_s: float | None) -> None:
        """Stop everything; safe to repeat."""
        ...

    def abandon(self) -> None:
        """In a forked child: let go of what it has inherited, all of which is the parent's."""
        ...


class Builders(Spawning, Settling, Moving, Claiming, Reading, Policing, Valuing):
    """All `flow_*` commands, as values."""

    def __init__(self, codec: Codec | None, max_value_bytes: int, now_ms: Callable[[], int]):
        super().__init__(codec, max_value_bytes)
        self.codec = codec
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """Return the store's time."""
        return self._now_ms()


Build = Callable[Concatenate[Builders, P], Ask[T]]


def _waiting(build: Build[P, T]) -> Callable[Concatenate[Store, P], T]:
    def call(self: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._wait(build(self._builders, *args, **kwargs))

    update_wrapper(call, build)
    return call


def _submitting(build: Build[P, T]) -> Callable[Concatenate[Submit, P], ReplyFuture[T]]:
    def call(self: Submit, /, *args: P.args, **kwargs: P.kwargs) -> ReplyFuture[T]:
        return self._store._send(build(self._store._builders, *args, **kwargs))

    update_wrapper(call, build)
    return call


def _awaiting(build: Build[P, T]) -> Callable[Concatenate[Aio, P], Awaitable[T]]:
    async def call(self: Aio, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._store._await(build(self._store._builders, *args, **kwargs))

    update_wrapper(call, build)
    return call


class Submit:
    """The commands as futures: they return at once, and `.get(timeout=seconds)` waits."""

    def __init__(self, store: Store) -> None:
        self._store = store

    flow_create = _submitting(Builders.flow_create)
    flow_create_many = _submitting(Builders.flow_create_many)
    flow_start_and_claim = _submitting(Builders.flow_start_and_claim)
    flow_get = _submitting(Builders.flow_get)
    flow_claim_due = _submitting(Builders.flow_claim_due)
    flow_reclaim = _submitting(Builders.flow_reclaim)
    flow_extend_lease = _submitting(Builders.flow_extend_lease)
    flow_release = _submitting(Builders.flow_release)
    flow_release_many = _submitting(Builders.flow_release_many)
    flow_complete = _submitting(Builders.flow_complete)
    flow_complete_many = _submitting(Builders.flow_complete_many)
    flow_fail = _submitting(Builders.flow_fail)
    flow_fail_many = _submitting(Builders.flow_fail_many)
    flow_retry = _submitting(Builders.flow_retry)
    flow_retry_many = _submitting(Builders.flow_retry_many)
    flow_transition = _submitting(Builders.flow_transition)
    flow_transition_many = _submitting(Builders.flow_transition_many)
    flow_step_continue = _submitting(Builders.flow_step_continue)
    flow_cancel = _submitting(Builders.flow_cancel)
    flow_cancel_many = _submitting(Builders.flow_cancel_many)
    flow_spawn_children = _submitting(Builders.flow_spawn_children)
    flow_history = _submitting(Builders.flow_history)
    flow_list = _submitting(Builders.flow_list)
    flow_by_parent = _submitting(Builders.flow_by_parent)
    flow_by_root = _submitting(Builders.flow_by_root)
    flow_by_correlation = _submitting(Builders.flow_by_correlation)
    flow_info = _submitting(Builders.flow_info)
    flow_stuck = _submitting(Builders.flow_stuck)
    flow_policy_set = _submitting(Builders.flow_policy_set)
    flow_policy_get = _submitting(Builders.flow_policy_get)
    flow_value_put = _submitting(Builders.flow_value_put)
    flow_value_mget = _submitting(Builders.flow_value_mget)
    flow_retention_cleanup = _submitting(Builders.flow_retention_cleanup)


class Aio:
    """The commands as coroutines. A cancelled one may have been applied all the same."""

    def __init__(self, store: Store) -> None:
        self._store = store

    flow_create = _awaiting(Builders.flow_create)
    flow_create_many = _awaiting(Builders.flow_create_many)
    flow_start_and_claim = _awaiting(Builders.flow_start_and_claim)
    flow_get = _awaiting(Builders.flow_get)
    flow_claim_due = _awaiting(Builders.flow_claim_due)
    flow_reclaim = _awaiting(Builders.flow_reclaim)
    flow_extend_lease = _awaiting(Builders.flow_extend_lease)
    flow_release = _awaiting(Builders.flow_release)
    flow_release_many = _awaiting(Builders.flow_release_many)
    flow_complete = _awaiting(Builders.flow_complete)
    flow_complete_many = _awaiting(Builders.flow_complete_many)
    flow_fail = _awaiting(Builders.flow_fail)
    flow_fail_many = _awaiting(Builders.flow_fail_many)
    flow_retry = _awaiting(Builders.flow_retry)
    flow_retry_many = _awaiting(Builders.flow_retry_many)
    flow_transition = _awaiting(Builders.flow_transition)
    flow_transition_many = _awaiting(Builders.flow_transition_many)
    flow_step_continue = _awaiting(Builders.flow_step_continue)
    flow_cancel = _awaiting(Builders.flow_cancel)
    flow_cancel_many = _awaiting(Builders.flow_cancel_many)
    flow_spawn_children = _awaiting(Builders.flow_spawn_children)
    flow_history = _awaiting(Builders.flow_history)
    flow_list = _awaiting(Builders.flow_list)
    flow_by_parent = _awaiting(Builders.flow_by_parent)
    flow_by_root = _awaiting(Builders.flow_by_root)
    flow_by_correlation = _awaiting(Builders.flow_by_correlation)
    flow_info = _awaiting(Builders.flow_info)
    flow_stuck = _awaiting(Builders.flow_stuck)
    flow_policy_set = _awaiting(Builders.flow_policy_set)
    flow_policy_get = _awaiting(Builders.flow_policy_get)
    flow_value_put = _awaiting(Builders.flow_value_put)
    flow_value_mget = _awaiting(Builders.flow_value_mget)
    flow_retention_cleanup = _awaiting(Builders.flow_retention_cleanup)


class Store:
    """An open store. Made by `shardflow.open`; safe to use from any number of threads.

    Each command waits for its answer up to `timeout` seconds (an option of `open`; a blocking
    claim's own wait comes on top) and then raises `OutcomeUnknown` if it may have been applied.
    `store.submit` has the same commands as futures, `store.aio` as coroutines.
    """

    def __init__(
        self,
        port: Port,
        *,
        codec: Codec | None,
        max_value_bytes: int,
        timeout_s: float,
        on_close: Callable[[Store], None],
        path: str | None = None,
    ) -> None:
        self._port = port
        self._builders = Builders(codec, max_value_bytes, port.now_ms)
        self._timeout_s = timeout_s
        self._on_close = on_close
        self._pid = os.getpid()
        self._is_closed = False
        self.path = path
        self.submit = Submit(self)
        self.aio = Aio(self)

    flow_create = _waiting(Builders.flow_create)
    flow_create_many = _waiting(Builders.flow_create_many)
    flow_start_and_claim = _waiting(Builders.flow_start_and_claim)
    flow_get = _waiting(Builders.flow_get)
    flow_claim_due = _waiting(Builders.flow_claim_due)
    flow_reclaim = _waiting(Builders.flow_reclaim)
    flow_extend_lease = _waiting(Builders.flow_extend_lease)
    flow_release = _waiting(Builders.flow_release)
    flow_release_many = _waiting(Builders.flow_release_many)
    flow_complete = _waiting(Builders.flow_complete)
    flow_complete_many = _waiting(Builders.flow_complete_many)
    flow_fail = _waiting(Builders.flow_fail)
    flow_fail_many = _waiting(Builders.flow_fail_many)
    flow_retry = _waiting(Builders.flow_retry)
    flow_retry_many = _waiting(Builders.flow_retry_many)
    flow_transition = _waiting(Builders.flow_transition)
    flow_transition_many = _waiting(Builders.flow_transition_many)
    flow_step_continue = _waiting(Builders.flow_step_continue)
    flow_cancel = _waiting(Builders.flow_cancel)
    flow_cancel_many = _waiting(Builders.flow_cancel_many)
    flow_spawn_children = _waiting(Builders.flow_spawn_children)
    flow_history = _waiting(Builders.flow_history)
    flow_list = _waiting(Builders.flow_list)
    flow_by_parent = _waiting(Builders.flow_by_parent)
    flow_by_root = _waiting(Builders.flow_by_root)
    flow_by_correlation = _waiting(Builders.flow_by_correlation)
    flow_info = _waiting(Builders.flow_info)
    flow_stuck = _waiting(Builders.flow_stuck)
    flow_policy_set = _waiting(Builders.flow_policy_set)
    flow_policy_get = _waiting(Builders.flow_policy_get)
    flow_value_put = _waiting(Builders.flow_value_put)
    flow_value_mget = _waiting(Builders.flow_value_mget)
    flow_retention_cleanup = _waiting(Builders.flow_retention_cleanup)

    @property
    def shards(self) -> int:
        """How many shards the store has."""
        return self._port.shards

    @property
    def port(self) -> Port:
        """What carries the commands; for tools."""
        return self._port

    @property
    def codec(self) -> Codec | None:
        """What encodes values that are not plain data, if the store was opened with one."""
        return self._builders.codec

    @property
    def role(self) -> Literal["host", "attached"]:
        """Whether this process hosts the shards, as of now, or is attached to another's.

        An attached process becomes the host, by itself, when the host is gone.
        """
        return self._port.role

    def now_ms(self) -> int:
        """Return the store's time, in ms since the epoch."""
        return self._port.now_ms()

    def processes(self) -> list[dict[str, Any]]:
        """Return what each shard process told when it began to serve: pid, flows, recovery_ms.

        An attached process knows only the pid, and nothing of a shard that is away. Empty where
        the shards live in this process.
        """
        told: Callable[[], list[dict[str, Any]]] | None
        told = getattr(self._port, "processes", None)
        return [] if told is None else told()

    def stats(self, *, check: bool = False) -> list[dict[str, Any]]:
        """Return each shard's counters; `check` also lists broken invariants (slow)."""
        told: list[dict[str, Any]] = self._wait(Ask(Stats(check), read_data))
        return told

    def backup(self, path: str | os.PathLike[str]) -> BackupDone:
        """Copy the store, while it serves, into a new directory that `open` can open.

        Every shard's part shows the same moment, and is whole: all files are checked before the
        directory is there. On the same file system files are linked, not copied: at once, and
        without space of their own, but also with the same bytes of the disk. Fan-outs over several
        shards wait for some milliseconds meanwhile.

        Raises:
            StoreConfigError: the directory is there already or cannot be used; the store is in
                memory.
            Overloaded: the shards could not be held at one moment: try again.
            CorruptLog: the store's own files are damaged.
        """
        if self.path is None:
            raise StoreConfigError("a store in memory has no files to copy; open one on disk")
        target = Path(path).absolute()
        return back_up(Path(self.path), target, self.shards, self._backup_step)

    def _backup_step(self, step: Backup) -> list[Any]:
        told: list[Any] = self._wait(Ask(step, read_data))
        return told

    def close(self, timeout: float | None = None) -> None:
        """Stop the shards, if this process hosts them; safe to repeat. `timeout` in seconds.

        If other processes are attached, one of them hosts the store from then on.
        """
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._port.close(timeout)
        finally:
            self._on_close(self)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{self.shards} shards"
        return f"<Store {self.path or 'in memory'} ({state})>"

    def _send(self, ask: Ask[T]) -> ReplyFuture[T]:
        if self._is_closed:
            raise StoreClosed("the store is closed; open it again")
        if os.getpid() != self._pid:
            raise StoreClosed(
                f"this store was opened by process {self._pid} and cannot be used after a fork: "
                "open it again in this process"
            )
        until_ms = None if ask.block_ms is None else self._port.now_ms() + ask.block_ms
        return self._port.submit(ask.request, ask.read, until_ms)

    def _wait(self, ask: Ask[T]) -> T:
        future = self._send(ask)
        timeout_s = self._timeout_of(ask)
        try:
            return future.get(timeout=timeout_s)
        except pykka.Timeout:
            raise _unanswered(future, ask, timeout_s) from None

    async def _await(self, ask: Ask[T]) -> T:
        loop = asyncio.get_running_loop()
        answered = loop.create_future()
        future = self._send(ask)

        def wake() -> None:
            if not answered.done():
                answered.set_result(None)

        def resolved() -> None:
            # The loop may be gone by the time of an answer that nobody waits for any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(wake)

        future.add_done_callback(resolved)
        timeout_s = self._timeout_of(ask)
        try:
            await asyncio.wait_for(answered, timeout_s)
        except TimeoutError:
            raise _unanswered(future, ask, timeout_s) from None
        except asyncio.CancelledError:
            future.withdraw()
            raise
        return future.get(timeout=0)

    def _timeout_of(self, ask: Ask[Any]) -> float:
        return self._timeout_s + (ask.block_ms or 0) / 1_000


def _unanswered(future: ReplyFuture[Any], ask: Ask[Any], timeout_s: float) -> Exception:
    """Return the error for a command that was not answered in time."""
    if future.withdraw() or is_query(ask.request):
        return ShardUnavailable(
            f"no answer to {type(ask.request).__name__} within {timeout_s} seconds; nothing was "
            "changed",
            reason="no answer",
        )
    return OutcomeUnknown(
        f"no answer to {type(ask.request).__name__} within {timeout_s} seconds: it may have been "
        "applied; read before repeating it"
    )
