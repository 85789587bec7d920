"""One LMDB environment: its databases, its transactions, its growth, and whether it is believed.

Only one thread at a time uses it, and the shard's lock keeps other processes out, so that LMDB need
not lock. It is not synced by commits: a crash of the process loses nothing, a power loss may leave
any mixture of pages. What tells the two apart must not lie in those pages, so it is in files:

    IN_USE     how many processes in a row have ended soon after opening it
    UNSYNCED   the boot of the machine whose commits may not be on disk; blank: all are

They are written over in place, which a full disk does not hinder.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb

from ..beside import Background, Folder, boot_id
from ..errors import REFUSALS
from ..limits import COLD_MAP_BYTES, COLD_UNCLEAN_ENDS_MAX, DISK_FLOOR_BYTES, INTEGER_MAX

T = TypeVar("T")
lmdb_error = lmdb.Error
"""What opening raises when LMDB cannot be used."""

if TYPE_CHECKING:
    # Generic for type checkers only.
    Txn = lmdb.Transaction[bytes]
    Cursor = lmdb.Cursor[bytes]

_DATA = "data.mdb"
IN_USE = "IN_USE"
UNSYNCED = "UNSYNCED"
UUID_BYTES = 16
_NAMES = ("rows", "ids", "lists", "expiry", "values", "counts", "meta", "former")
_UUID = b"uuid"
_NO_BOOT = b"?"
"""Nothing tells one boot from another."""


class ColdDamaged(Exception):
    """The environment cannot be believed any more, and has been removed.

    Whoever meets it ends the shard's process: the next one makes the environment anew.
    """


class ColdFull(OSError):
    """The disk has no room for a transaction; nothing was changed."""


class Environment:
    """Databases by name, one transaction at a time."""

    def __init__(
        self, folder: Folder, uuid: bytes, map_bytes: int, *, is_old: bool, ends: int
    ) -> None:
        """Open what is in the folder (`is_old`), or make it.

        `ends`: how many processes in a row have ended soon after opening it.

        Raises:
            lmdb.Error, OSError: it cannot be used.
        """
        self._folder = folder
        self._ends = ends
        self._is_closed = False
        """Whether there is nothing to be noted about it any more."""
        self._map_bytes = map_bytes
        self._read: Txn | None = None
        self._cursors: dict[str, Cursor] = {}
        self._syncing: Background | None = None
        self._env = lmdb.open(
            folder.path,
            map_size=map_bytes,
            max_dbs=len(_NAMES),
            mode=0o600,
            lock=False,
            sync=False,
            readahead=False,
        )
        self._map_bytes = self._env.info()["map_size"]
        try:
            self._is_synced = is_old and folder.read(UNSYNCED) == b""
            if is_old:
                # Nothing is written: there may be no room for it.
                self._refuse_if_cut()
            else:
                self._begin_unsynced(sync=False)
            names = [name.encode() for name in _NAMES]
            dbs = [self._env.open_db(name, create=not is_old) for name in names]
            self._dbs: dict[str, Any] = dict(zip(_NAMES, dbs, strict=True))
            if is_old:
                self._uuid = self.get("meta", _UUID) or b""
            else:
                self._uuid = uuid
                self.write(lambda writing: writing.put("meta", _UUID, uuid))
        except BaseException:
            self.abandon()
            raise

    def _refuse_if_cut(self) -> None:
        """Reading a page that the file does not have would kill the process."""
        pages = self._env.info()["last_pgno"] + 1
        if self._folder.size(_DATA) < pages * self._env.stat()["psize"]:
            raise lmdb.CorruptedError("the file was cut")

    # ---- reading ----

    def reader(self) -> Txn:
        """Return the transaction to read in: the same one until something is written."""
        if self._read is None:
            self._read = self._env.begin()
        return self._read

    def cursor(self, name: str) -> Cursor:
        """Return the cursor of a database in that transaction; one user at a time."""
        found = self._cursors.get(name)
        if found is None:
            found = self._cursors[name] = self.reader().cursor(self._dbs[name])
        return found

    def scan(self, name: str) -> Cursor:
        """Return a cursor of its own."""
        return self.reader().cursor(self._dbs[name])

    def page(
        self, name: str, first: bytes, count: int, bytes_max: int = INTEGER_MAX
    ) -> list[tuple[bytes, bytes]]:
        """Return so many keys and values, from a key on; fewer at the end of the database.

        `bytes_max`: none is added to values of this size.

        Raises:
            lmdb.Error: they cannot be read.
        """
        cursor = self.scan(name)
        found: list[tuple[bytes, bytes]] = []
        size = 0
        for key, value in islice(cursor.iternext(), count) if cursor.set_range(first) else ():
            found.append((key, value))
            size += len(value)
            if size >= bytes_max:
                break
        return found

    def get(self, name: str, key: bytes) -> bytes | None:
        """Return the value of a key.

        Raises:
            ColdDamaged: it cannot be read; likewise below.
        """
        try:
            return self.reader().get(key, None, self._dbs[name])
        except lmdb.Error as error:
            raise self.damaged(str(error)) from error

    def size(self, name: str) -> int:
        """Return how many keys a database has."""
        try:
            return self.reader().stat(self._dbs[name])["entries"]
        except lmdb.Error as error:
            raise self.damaged(str(error)) from error

    # ---- writing ----

    def write(self, work: Callable[[Writing], T]) -> T:
        """Do work in one transaction. It may be done again, if there was not room enough.

        Raises:
            ColdFull: the disk is full; nothing was changed.
            ColdDamaged: anything else.
        """
        self._end_read()
        self.end_sync()
        if self._is_synced:
            try:
                self._begin_unsynced(sync=True)
            except OSError as error:
                raise ColdFull(error.errno, f"no room for cold flows: {error}") from error
        try:
            while True:
                try:
                    with self._env.begin(write=True) as txn:
                        return work(Writing(txn, self._dbs))
                except lmdb.MapFullError:
                    self._map_bytes *= 2
                    self._env.set_mapsize(self._map_bytes)
        except lmdb.Error as error:
            if self._is_full(getattr(error, "code", 0)):
                raise ColdFull(errno.ENOSPC, f"no room for cold flows: {error}") from error
            raise self.damaged(str(error)) from error

    def _is_full(self, code: int) -> bool:
        if code != errno.EIO:
            return code in REFUSALS
        # So ends a write that a nearly full disk has cut short.
        try:
            return self._folder.free_bytes() < DISK_FLOOR_BYTES
        except OSError:
            return False

    def begin_sync(self, work: Callable[[Writing], T]) -> None:
        """Do work in one transaction, and begin to put everything on disk.

        It may take long, so it is done beside, while others read. Whoever writes waits for it.
        """
        self.write(work)
        self._syncing = Background(partial(self._env.sync, True))

    @property
    def is_syncing(self) -> bool:
        """Whether the last sync is still under way."""
        return self._syncing is not None and self._syncing.is_running

    def end_sync(self) -> None:
        """Wait for the last sync.

        Raises:
            ColdDamaged: it has failed.
        """
        syncing, self._syncing = self._syncing, None
        if syncing is None:
            return
        try:
            syncing.wait()
        except lmdb.Error as error:
            raise self.damaged(str(error)) from error
        self._note_synced()

    @property
    def uuid(self) -> bytes:
        """What tells this environment from all others."""
        return self._uuid

    def remap(self) -> None:
        """Give the pages that were touched back to the system, which reads them again if need be.

        They would count as memory of the process.
        """
        self._end_read()
        self._env.set_mapsize(self._map_bytes)

    # ---- its end ----

    def served(self) -> None:
        """Note that all of it could be read: no end of the process is its fault any more."""
        self._ends = 0
        self._note_ends(0)

    def close(self) -> None:
        """Close in order, with all that was committed on disk."""
        self.end_sync()
        self._end_read()
        if not self._is_synced:
            with suppress(lmdb.Error):
                self._env.sync(True)
                self._note_synced()
        self._ends = 0
        self.abandon()

    def abandon(self) -> None:
        """Close; safe to repeat. A process that comes here was not killed by what it has read."""
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            with suppress(lmdb.Error):
                syncing.wait()
        self._end_read()
        self._env.close()
        if not self._is_closed:
            self._is_closed = True
            self._note_ends(self._ends)

    def damaged(self, why: str) -> ColdDamaged:
        """Remove what cannot be believed; return what is to be raised."""
        self._folder.clear()
        self._is_closed = True
        return ColdDamaged(f"cold flows in {self._folder.path}: {why}; to be made anew")

    def _end_read(self) -> None:
        # Without locks, LMDB uses pages again that an older transaction may still be reading.
        self._cursors.clear()
        if self._read is not None:
            self._read.abort()
            self._read = None

    def _note_ends(self, count: int) -> None:
        with suppress(OSError):
            self._folder.write(IN_USE, b"%d" % count, sync=False)

    def _note_synced(self) -> None:
        with suppress(OSError):
            self._folder.write(UNSYNCED, b"", sync=False)
            self._is_synced = True

    def _begin_unsynced(self, *, sync: bool) -> None:
        self._folder.write(UNSYNCED, boot_id() or _NO_BOOT, sync=sync)
        self._is_synced = False


class Writing:
    """A write transaction."""

    __slots__ = ("_dbs", "_txn")

    def __init__(self, txn: Txn, dbs: dict[str, Any]) -> None:
        self._txn = txn
        self._dbs = dbs

    def put(self, name: str, key: bytes, value: bytes) -> None:
        """Set a key."""
        self._txn.put(key, value, db=self._dbs[name])

    def put_all(self, name: str, items: list[tuple[bytes, bytes]]) -> None:
        """Set many keys, fastest in their order."""
        self._txn.cursor(self._dbs[name]).putmulti(items)

    def get(self, name: str, key: bytes) -> bytes | None:
        """Return the value of a key."""
        return self._txn.get(key, None, self._dbs[name])

    def delete(self, name: str, key: bytes) -> bool:
        """Remove a key; return whether it was there."""
        return self._txn.delete(key, db=self._dbs[name])

    def clear(self, name: str) -> None:
        """Remove all keys of a database."""
        self._txn.drop(self._dbs[name], delete=False)

    def scan(self, name: str) -> Cursor:
        """Return a cursor of a database."""
        return self._txn.cursor(self._dbs[name])


def open_environment(
    folder: Folder, uuid: bytes, wanted: bytes | None, map_bytes: int = COLD_MAP_BYTES
) -> tuple[Environment, bool]:
    """Open an environment; return it, and whether it is the wanted one, or one that was made anew.

    `uuid`: that of a new one. `wanted`: that of the one that is kept if it is there, and no power
    loss can have come over what was committed since its last sync.

    Raises:
        lmdb.Error, OSError: LMDB cannot be used there.
    """
    folder.make()
    told = folder.read(IN_USE) or b""
    ends = int(told) if told.isdigit() else COLD_UNCLEAN_ENDS_MAX
    is_whole = folder.read(UNSYNCED) in (b"", boot_id())
    if wanted is not None and is_whole and ends < COLD_UNCLEAN_ENDS_MAX:
        with suppress(OSError):
            folder.write(IN_USE, b"%d" % (ends + 1), sync=False)
        try:
            found = Environment(folder, uuid, map_bytes, is_old=True, ends=ends)
        except (lmdb.Error, ColdDamaged):
            pass
        else:
            if found.uuid == wanted:
                return found, True
            found.abandon()
    folder.clear()
    folder.write(IN_USE, b"1", sync=False)
    return Environment(folder, uuid, map_bytes, is_old=False, ends=0), False
