"""How a shard's state comes back: by the newest checkpoint that checks, or from the whole log."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ..cold.environment import ColdDamaged, ColdFull
from ..cold.store import Cold
from ..errors import CorruptLog
from ..host import Files
from ..log.parts import Part, Span, parts_in
from ..log.recover import recover
from ..log.shortcut import (
    Shortcut,
    check,
    checkpoints_in,
    hint_name,
    hints_of,
    remove_shortcuts,
)
from ..log.start import Recovery, Start, UnusableError
from ..log.values import Values
from ..machine.state import ShardState
from ..settings import Settings
from .hints import hint_for
from .projections import Projections
from .replay import Replay
from .resume import Resume


class Restored(NamedTuple):
    """A shard's state, and how it was come by."""

    state: ShardState
    values: Values
    log: Recovery
    """Where the log continues."""
    checkpoint: Shortcut | None
    """What the state was taken from."""
    unread: list[Span]
    """Files that were not read, and of the segment where reading began, what comes before."""
    notes: list[str]
    """Why shortcuts were passed over."""
    cold: Cold | None


def restore(files: Files, settings: Settings, projections: Projections) -> Restored:
    """Make a shard's state from what is on disk; shortcuts that are of no use are removed.

    `projections`: closed again if this fails.

    Raises:
        CorruptLog: the log is damaged before its tail, or holds what cannot be read; nothing was
            changed.
    """
    attempts = [*checkpoints_in(files), None]
    shortcuts = _Shortcuts(files, settings, projections)
    restored: Restored | None = None
    for name in attempts:
        try:
            restored = shortcuts.restore(name)
            break
        except (UnusableError, CorruptLog) as error:
            if name is None and isinstance(error, CorruptLog):
                raise
            # Whether the log is damaged, only all of it tells.
            shortcuts.notes.append(f"{name or 'a hint'} is passed over: {error}")
    if restored is None:
        shortcuts.may_hint = False
        restored = shortcuts.restore(None)
    try:
        # Before anything is appended: what does not fit this log might seem to fit a longer one.
        remove_shortcuts(files, shortcuts.kept(restored))
    except BaseException:
        projections.abandon()
        _close(restored.log)
        restored.state.let_go()
        raise
    return restored


class _Shortcuts:
    """Tries one way after the other, and remembers which shortcuts were of no use."""

    def __init__(self, files: Files, settings: Settings, projections: Projections) -> None:
        self._projections = projections
        self._files = files
        self._settings = settings
        self._parts = parts_in(files)
        self._used: list[Span] = []
        """Merged files that were not read, because a hint was."""
        self._useless: set[str] = set()
        self.may_hint = True
        self.notes: list[str] = []

    def restore(self, checkpoint_name: str | None) -> Restored:
        """Make the state by a checkpoint and the log's tail, or by the whole log."""
        files, settings = self._files, self._settings
        self._used.clear()
        if checkpoint_name is None:
            checkpoint = None
            replay = Replay(files, settings, self._parts)
        else:
            checkpoint = check(files, checkpoint_name, settings.shard, "checkpoint")
            replay = Resume(files, settings, self._parts, checkpoint)
        try:
            identity = None if checkpoint is None else checkpoint.header.cold
            self._projections.attach(replay.state, replay.values, identity)
            replay.cold = self._projections.cold
            recovered = recover(
                files,
                replay.take,
                None if checkpoint is None else checkpoint.start,
                lambda part: self._take_hint(replay, part),
            )
            replay.finish(recovered)
        except BaseException as error:
            self._projections.abandon()
            replay.state.let_go()
            if isinstance(error, ColdDamaged | ColdFull):
                raise UnusableError(str(error)) from error
            raise
        unread = list(self._used)
        if checkpoint is not None:
            unread += unread_of(checkpoint.start, recovered)
        cold = self._projections.cold
        state, values, notes = replay.state, replay.values, self.notes
        return Restored(state, values, recovered, checkpoint, unread, notes, cold)

    def _take_hint(self, replay: Replay, part: Part) -> Span | None:
        if not self.may_hint:
            return None
        try:
            hint = hint_for(self._files, part, self._settings.shard)
        except UnusableError as error:
            self._useless.add(hint_name(part))
            self.notes.append(f"{hint_name(part)} is passed over: {error}")
            return None
        if hint is None:
            return None
        try:
            replay.take_hint(hint)
        except msgspec.MsgspecError as error:
            # Half of it is taken in: all begins anew.
            raise UnusableError(f"{hint.name} cannot be read: {error}") from error
        (file,) = hint.header.files
        self._used.append(file.span)
        return file.span

    def kept(self, restored: Restored) -> set[str]:
        """Return the names of the shortcuts that are of this log."""
        kept = set(hints_of(restored.log.spans.values())) if self.may_hint else set()
        if restored.checkpoint is not None:
            kept.add(restored.checkpoint.name)
        return kept - self._useless


def unread_of(start: Start, recovered: Recovery) -> list[Span]:
    """Return the files that a checkpoint has spared, as far as it has."""
    unread = [span for number, span in start.spans.items() if number in recovered.spans]
    if start.offset:
        part = Part(start.segment, start.segment, start.segment)
        last_lsn = start.lsn - 1
        unread.append(Span(part, start.first_lsn, last_lsn, last_lsn, start.epoch, start.offset))
    return unread


def _close(recovered: Recovery) -> None:
    for handle in recovered.handles.values():
        handle.close()
