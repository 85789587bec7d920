"""The disk under one log: what it has left, and what is kept back for the work that makes room.

A disk fills up while flows are created. What makes room again, ends and removals, has to be written
as well. So creations are to be refused while something is left, and beside the log lies a reserve:
a file of allocated, unused space, which is given back when they are.

    free      enough for any frame: nothing is measured
    tight     a frame might not fit: each command's changes get their space before they are made
    full      too little is left, or a file could not grow: tight, and nothing is created

`look` finds out what is the case, and takes creations again once the reserve is whole. What makes
room by itself, a merge above all, may go on with a part of what is left: else a disk that the log
has filled would stay full, though all of the log were dead.
"""

from __future__ import annotations

import errno

from ..errors import REFUSALS
from ..host import File, Files, Room
from ..limits import (
    DISK_FLOOR_BYTES,
    DISK_JOB_BYTES,
    DISK_JOB_RATIO,
    DISK_RESERVE_BYTES,
    FRAME_BYTES_MAX,
    INTEGER_MAX,
)

RESERVE_NAME = "reserve"


class Space:
    """Says whether creations are let in, and reserves disk space for the log."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.free_bytes: int | None = None
        """As of the last look, less what the log has reserved since; None = nobody can tell."""
        self.is_full = False
        self.is_tight = False
        self.is_read_only = False
        self.where = files.path_of("")
        self.cause = errno.ENOSPC
        """Why it is full, as an error number."""
        self._refused_bytes = INTEGER_MAX
        """What has failed is not tried again until the next look: it may take long to fail."""
        self._given_up: tuple[int, int] | None = None
        """The size of a job that found no room although it should, and what was free then."""
        self._may_hold = RESERVE_NAME in files.names()
        """Whether the reserve may take up space, be it whole or not."""
        self._has_reserve = self._may_hold and self._is_whole()
        # A recovery on a full disk may need what the reserve holds.
        self.look(wants_reserve=False)

    def look(self, *, wants_reserve: bool) -> None:
        """Measure what is free, and decide anew whether creations are let in.

        `wants_reserve`: the log is large enough to keep one. After trouble every log does.
        """
        room = self._files.room()
        self._refused_bytes = INTEGER_MAX
        self.free_bytes = None if room is None else room.free_bytes
        self.is_read_only = room is not None and room.is_read_only
        lacks_reserve = (wants_reserve or self.is_full) and not self._has_reserve
        needed = DISK_FLOOR_BYTES + (DISK_RESERVE_BYTES if lacks_reserve else 0)
        if self.is_read_only:
            self.fill(errno.EROFS)
        elif self.free_bytes is not None and self.free_bytes < needed:
            self.fill(errno.ENOSPC)
        elif not lacks_reserve or self._set_aside():
            self.is_full = False
        self._judge()

    @property
    def level(self) -> tuple[bool, int]:
        """What has to change before a job that found no room may find some, as of the last look."""
        return self.is_full, -1 if self.free_bytes is None else self.free_bytes // DISK_JOB_BYTES

    def has_room(self, size: int, *, makes_room: bool = False) -> bool:
        """Whether a job that may as well wait can write this much, with a margin; measures.

        `makes_room`: afterwards more is free than before. So it may use some of what is kept.
        """
        room = self._files.room()
        if room is None:
            return not self.is_full
        free_bytes = room.free_bytes
        if room.is_read_only or self._is_in_vain(size, room):
            return False
        if not self.is_full and free_bytes - size >= DISK_FLOOR_BYTES:
            return True
        if self.is_full and free_bytes >= DISK_FLOOR_BYTES + DISK_RESERVE_BYTES:
            # A quota is used up: it has what the reserve has given back, for all that is known.
            free_bytes = DISK_RESERVE_BYTES
        return makes_room and size + DISK_JOB_BYTES <= free_bytes * DISK_JOB_RATIO

    def give_up(self, size: int) -> None:
        """Take it that no job of this size finds room, until another amount is free than now."""
        room = self._files.room()
        self._given_up = None if room is None else (size, self._left_in(room))

    def _is_in_vain(self, size: int, room: Room) -> bool:
        if self._given_up is None:
            return False
        failed, left = self._given_up
        return size >= failed and abs(self._left_in(room) - left) < DISK_JOB_BYTES

    def _left_in(self, room: Room) -> int:
        """Return what is free, or would be without the reserve, which comes and goes."""
        return room.free_bytes + (DISK_RESERVE_BYTES if self._has_reserve else 0)

    def fill(self, cause: int) -> None:
        """Let no creations in, and give the reserve back."""
        self.is_full = self.is_tight = True
        self.cause = cause
        if self._may_hold and not self.is_read_only:
            self._release()

    def grow(self, file: File, end: int, step: int, *, spare: bool = False) -> int | None:
        """Reserve space up to `end`, in whole steps if they fit; return how far, None: no room.

        `spare`: what the reserve gives back is not meant for this.
        """
        whole = -(-end // step) * step
        if self._reserve(file, whole):
            return whole
        if not spare and self._reserve(file, end):
            return end
        return None

    def _reserve(self, file: File, size: int) -> bool:
        more = size - file.size()
        if more >= self._refused_bytes:
            return False
        try:
            file.reserve(size)
        except OSError as error:
            self._refused_bytes = more
            self.refused(error)
            return False
        if self.free_bytes is not None:
            self.free_bytes = max(0, self.free_bytes - max(0, more))
            if self.free_bytes < DISK_FLOOR_BYTES and not self.is_full:
                # Until the next look a fast writer would have used up the rest as well.
                self.fill(errno.ENOSPC)
            self._judge()
        return True

    def refused(self, error: OSError) -> None:
        """Take it that the disk lets no file grow.

        Raises:
            OSError: that is not what the error says.
        """
        if error.errno not in REFUSALS:
            raise error
        self.fill(error.errno)

    def _judge(self) -> None:
        self.is_tight = self.is_full or (
            self.free_bytes is not None and self.free_bytes < FRAME_BYTES_MAX
        )

    def _set_aside(self) -> bool:
        """Make the reserve whole; False: there is no room for it after all."""
        self._may_hold = True
        try:
            try:
                file = self._files.open(RESERVE_NAME)
            except FileNotFoundError:
                file = self._files.open(RESERVE_NAME, create=True)
            try:
                file.reserve(DISK_RESERVE_BYTES)
            finally:
                file.close()
        except OSError as error:
            self.refused(error)
            return False
        self._has_reserve = True
        return True

    def _release(self) -> None:
        """Give the reserve back. Its name stays: a full disk may have no room for another one."""
        self._has_reserve = False
        self._refused_bytes = INTEGER_MAX
        try:
            file = self._files.open(RESERVE_NAME)
            try:
                file.truncate(0)
                # Until the file system has noted it, others may not use the space.
                file.sync()
            finally:
                file.close()
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            return
        self._may_hold = False

    def _is_whole(self) -> bool:
        file = self._files.open(RESERVE_NAME)
        size = file.size()
        file.close()
        return size >= DISK_RESERVE_BYTES
