"""How a shard's state comes back: by the newest checkpoint that checks, or from the whole log."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import CorruptLog
from ..host import Files
from ..log.parts import Part, Span, parts_in
from ..log.recover import recover
from ..log.shortcut import Shortcut, check, checkpoints_in, remove_shortcuts
from ..log.start import Recovery, UnusableError
from ..log.values import Values
from ..machine.state import ShardState
from ..settings import Settings
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


def restore(files: Files, settings: Settings) -> Restored:
    """Make a shard's state from what is on disk; shortcuts that are of no use are removed.

    Raises:
        CorruptLog: the log is damaged before its tail, or holds what cannot be read; nothing was
            changed.
    """
    notes: list[str] = []
    restored: Restored | None = None
    for name in checkpoints_in(files):
        try:
            restored = _by_checkpoint(files, settings, name)
            break
        except (UnusableError, CorruptLog) as error:
            # Whether the log is damaged, only all of it tells.
            notes.append(f"{name} is passed over: {error}")
    if restored is None:
        restored = _from_log(files, settings)
    keep = set() if restored.checkpoint is None else {restored.checkpoint.name}
    try:
        # Before anything is appended: what does not fit this log might seem to fit a longer one.
        remove_shortcuts(files, keep)
    except BaseException:
        _close(restored.log)
        restored.state.let_go()
        raise
    return restored._replace(notes=notes)


def _from_log(files: Files, settings: Settings) -> Restored:
    replay = Replay(files, settings, parts_in(files))
    try:
        recovered = recover(files, replay.take)
    except BaseException:
        replay.state.let_go()
        raise
    replay.finish()
    return Restored(replay.state, replay.values, recovered, None, [], [])


def _by_checkpoint(files: Files, settings: Settings, name: str) -> Restored:
    checkpoint = check(files, name, settings.shard, "checkpoint")
    resume = Resume(files, settings, parts_in(files), checkpoint)
    try:
        recovered = recover(files, resume.take, checkpoint.start)
    except BaseException:
        resume.state.let_go()
        raise
    resume.finish()
    resume.settle(recovered)
    unread = unread_of(checkpoint, recovered)
    return Restored(resume.state, resume.values, recovered, checkpoint, unread, [])


def unread_of(checkpoint: Shortcut, recovered: Recovery) -> list[Span]:
    """Return the files that a checkpoint has spared, as far as it has."""
    start = checkpoint.start
    unread = [span for number, span in start.spans.items() if number in recovered.spans]
    if start.offset:
        part = Part(start.segment, start.segment, start.segment)
        last_lsn = start.lsn - 1
        unread.append(Span(part, start.first_lsn, last_lsn, last_lsn, start.epoch, start.offset))
    return unread


def _close(recovered: Recovery) -> None:
    for handle in recovered.handles.values():
        handle.close()
