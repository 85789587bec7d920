"""Claim for a worker: only what there are free slots for, in fair turn over its workflows.

Each workflow has at most one claim under way, and the slots that it may fill are kept for it. While
the claims of a workflow come back full it claims again at once; else its claim waits for work at
the store. With several workflows a waiting claim keeps one slot, and gives it up when another
workflow has no slot left to claim with.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from .asking import STORE_AWAY, has_futures
from .calls import Call, Caller, FutureCall
from .hands import Hands
from .job import Job
from .source import Source
from .tally import Tally

BLOCK_MS_FUTURE: Final = 30_000
"""How long a claim waits for work where it can be taken back."""
BLOCK_MS_CALL: Final = 500
"""Likewise where it cannot, in a store without futures: a stop waits for it."""
BACKOFF_BASE_S: Final = 0.1
BACKOFF_MAX_S: Final = 10.0
CLAIM_END_S: Final = 1.0
"""How long a claim that was given up is waited for; what it brings later is given back."""

logger = logging.getLogger("shardflow.worker")
_GiveBack = Callable[[Source, list[Job]], None]


class Turn:
    """What is known of one workflow's claims."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.call: Call | None = None
        """The claim under way."""
        self.slots = 0
        """How many slots are kept for it."""
        self.is_waiting = False
        """Whether it waits for work."""
        self.asked_at_s = 0.0
        self.end_at_s: float | None = None
        """When a claim that was given up is waited for no more."""
        self.not_before_s = 0.0
        self.is_busy = False
        """Whether its last claim came back full."""
        self.failures = 0
        self.caller: Caller | None = None


class Claimer:
    """A thread that claims. `take` is called with the jobs of each claim.

    `give_back` is called with those of a claim that had been given up, and `give_back_later` with
    those that came when nobody waited for them any more, in the thread that brought them.
    """

    def __init__(
        self,
        hands: Hands,
        sources: Sequence[Source],
        tally: Tally,
        *,
        limit: int,
        interval_s: float,
        name: str,
        take: Callable[[Source, list[Job]], None],
        give_back: _GiveBack,
        give_back_later: _GiveBack,
        crashed: Callable[[BaseException], None],
    ) -> None:
        self._hands = hands
        self._tally = tally
        self._limit = limit
        self._interval_s = interval_s
        self._name = name
        self._take = take
        self._give_back = give_back
        self._give_back_later = give_back_later
        self._crashed = crashed
        self._turns = deque(Turn(source) for source in sources)
        self._answered: deque[Turn] = deque()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=f"{name}/claim", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Claim no more. Returns at once; `join` waits for the claims under way."""
        with self._hands.changed:
            self._is_closed = True
            self._hands.changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    # ---- the thread ----

    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._read_answers()
                self._end_overdue()
                self._send_claims()
                self._sleep()
        except BaseException as error:
            self._crashed(error)
        finally:
            self._wind_up()

    def _sleep(self) -> None:
        changed = self._hands.changed
        with changed:
            while not (self._is_closed or self._answered):
                wait_s = self._next_s() - time.monotonic()
                if wait_s <= 0:
                    return
                changed.wait(None if wait_s == float("inf") else wait_s)

    def _next_s(self) -> float:
        """Return when there is something to do, if nothing happens before."""
        times = [turn.end_at_s for turn in self._turns if turn.end_at_s is not None]
        ready = [turn.not_before_s for turn in self._turns if turn.call is None]
        if ready and self._hands.room > self._slots_kept():
            times += ready
        elif ready and (holder := self._holder()) is not None:
            times.append(max(min(ready), holder.asked_at_s + self._interval_s))
        return min(times, default=float("inf"))

    def _send_claims(self) -> None:
        now_s = time.monotonic()
        ready = [t for t in self._turns if t.call is None and t.not_before_s <= now_s]
        for index, turn in enumerate(ready):
            free = self._hands.room - self._slots_kept()
            if free <= 0 and not self._take_slot_back(now_s):
                return
            free = max(free, 1)
            self._turns.remove(turn)
            self._turns.append(turn)
            if len(self._turns) == 1:
                self._send(turn, min(free, self._limit), now_s, waits=not turn.is_busy)
            elif turn.is_busy:
                share = -(-free // (len(ready) - index))
                self._send(turn, min(share, self._limit), now_s, waits=False)
            else:
                waits = not any(other.is_busy for other in self._turns)
                self._send(turn, 1, now_s, waits=waits)

    def _send(self, turn: Turn, slots: int, now_s: float, *, waits: bool) -> None:
        source = turn.source
        turn.asked_at_s = now_s
        try:
            store = source.store()
            block_ms = BLOCK_MS_FUTURE if has_futures(store) else BLOCK_MS_CALL
            plan = source.claim(slots, block_ms if waits else None)
            if has_futures(store):
                call: Call = FutureCall(store, plan)
            else:
                if turn.caller is None:
                    turn.caller = Caller(f"{self._name}/claim {source.workflow.definition.type}")
                call = turn.caller.call(store, plan)
        except STORE_AWAY as error:
            self._back_off(turn, error)
            return
        turn.call = call
        turn.slots = slots
        turn.is_waiting = waits
        call.when_answered(lambda: self._note_answer(turn))

    def _note_answer(self, turn: Turn) -> None:
        """In the thread that brings the answer."""
        with self._hands.changed:
            self._answered.append(turn)
            self._hands.changed.notify_all()

    def _read_answers(self) -> None:
        while self._answered:
            turn = self._answered.popleft()
            call, slots = turn.call, turn.slots
            if call is None or not call.is_answered:
                continue  # It was given up, or taken back, before its answer was looked at.
            was_waiting, was_given_up = turn.is_waiting, turn.end_at_s is not None
            self._clear(turn)
            try:
                jobs = turn.source.jobs(call.answer())
            except STORE_AWAY as error:
                self._back_off(turn, error)
                continue
            if turn.failures:
                logger.info("worker %s: the store is back", self._name)
                turn.failures = 0
            turn.is_busy = len(jobs) >= slots
            if jobs and was_given_up:
                # The store may have taken them back by itself already.
                self._give_back(turn.source, jobs)
            elif jobs:
                self._take(turn.source, jobs)
            elif was_waiting or any(other.is_busy for other in self._turns):
                # A store that does not wait as it was asked to must not be asked all the time.
                turn.not_before_s = turn.asked_at_s + self._interval_s

    def _clear(self, turn: Turn) -> None:
        turn.call = None
        turn.slots = 0
        turn.is_waiting = False
        turn.end_at_s = None

    def _back_off(self, turn: Turn, error: Exception) -> None:
        """Wait longer with each failure, by chance as well: not all workers come back at once."""
        self._tally.add("claim_errors")
        turn.failures += 1
        turn.is_busy = False
        longest_s = min(BACKOFF_BASE_S * 2.0 ** min(turn.failures - 1, 16), BACKOFF_MAX_S)
        asked_s = (getattr(error, "retry_after_ms", None) or 0) / 1_000
        delay_s = max(asked_s, longest_s * random.uniform(0.5, 1.0))
        logger.warning(
            "worker %s: claiming failed, next try in %.1f s: %s", self._name, delay_s, error
        )
        turn.not_before_s = time.monotonic() + delay_s

    # ---- slots and ends ----

    def _slots_kept(self) -> int:
        return sum(turn.slots for turn in self._turns)

    def _holder(self) -> Turn | None:
        """Return whose claim has waited longest, if there is no slot but what such claims keep."""
        waiting = [t for t in self._turns if t.is_waiting and t.end_at_s is None]
        holder = min(waiting, key=lambda turn: turn.asked_at_s, default=None)
        if holder is None or self._hands.room - self._slots_kept() + holder.slots <= 0:
            return None
        return holder

    def _take_slot_back(self, now_s: float) -> bool:
        """Give up the claim that has waited longest, for another workflow; False: there is none."""
        holder = self._holder()
        if holder is None or now_s < holder.asked_at_s + self._interval_s:
            return False
        self._withdraw(holder)
        holder.not_before_s = now_s + self._interval_s
        return holder.call is None

    def _withdraw(self, turn: Turn) -> None:
        """Take a claim back; if it is too late for that, its answer is near, or never comes."""
        assert turn.call is not None
        if not turn.call.is_answered and turn.call.withdraw():
            self._clear(turn)
        else:
            turn.end_at_s = time.monotonic() + CLAIM_END_S

    def _end_overdue(self) -> None:
        now_s = time.monotonic()
        for turn in self._turns:
            if turn.end_at_s is not None and turn.end_at_s <= now_s:
                self._abandon(turn)

    def _abandon(self, turn: Turn) -> None:
        """Wait for a claim no more: should it bring jobs after all, they go back."""
        call, source = turn.call, turn.source
        assert call is not None
        self._clear(turn)
        call.when_answered(lambda: self._give_back_late(source, call))

    def _give_back_late(self, source: Source, call: Call) -> None:
        try:
            jobs = source.jobs(call.answer())
        except Exception as error:
            logger.debug("worker %s: an abandoned claim failed: %s", self._name, error)
            return
        if jobs:
            self._give_back_later(source, jobs)

    def _wind_up(self) -> None:
        """Take back the claims under way; what they have brought, or still bring, goes back."""
        for turn in self._turns:
            if turn.call is not None:
                self._withdraw(turn)
        changed = self._hands.changed
        while times := [t.end_at_s for t in self._turns if t.end_at_s is not None]:
            with changed:
                wait_s = min(times) - time.monotonic()
                if not self._answered and wait_s > 0:
                    changed.wait(wait_s)
            try:
                self._read_answers()
            except Exception:
                logger.debug("worker %s: a last claim failed", self._name, exc_info=True)
            self._end_overdue()
        for turn in self._turns:
            if turn.caller is not None:
                turn.caller.stop()
