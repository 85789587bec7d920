"""What a worker needs of whatever runs its handlers, and the other way round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..hands import Assignment


class Executor(Protocol):
    """Runs handlers. Each job it was given is told of once: finished, ended, or crashed."""

    def start(self) -> None:
        """Begin."""
        ...

    def run(self, assignments: Sequence[Assignment]) -> None:
        """Run the handlers of jobs, as far as they are still waiting when their turn comes."""
        ...

    def end(self, assignment: Assignment) -> None:
        """End the handler of a job that was given up, if that is possible here."""
        ...

    def tell_cancelled(self, assignment: Assignment) -> None:
        """Let a handler know that its job was given up, where it cannot see that by itself."""
        ...

    def stop(self) -> None:
        """Run nothing more, and end."""
        ...

    def join(self, timeout_s: float) -> None:
        """Wait for the end of what can be waited for; not for handlers in threads."""
        ...

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller is a handler."""
        ...


class Watcher(Protocol):
    """Who is told what becomes of jobs: the worker's `Hands`, from any thread."""

    def resize(self, capacity: int) -> None:
        """So many handlers can run at once from now on."""
        ...

    def begin(self, assignment: Assignment) -> bool:
        """Ask whether a handler may begin."""
        ...

    def finish(self, assignment: Assignment, outcome: Any, seconds: float) -> None:
        """Hand over what a handler returned."""
        ...

    def put_down(self, assignments: Sequence[Assignment]) -> None:
        """Jobs that were given up: their handlers have ended."""
        ...


Crashed = Callable[[BaseException], None]
"""Called with what ends the worker."""
