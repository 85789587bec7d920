"""Which executor a worker has: by name, with the handlers made ready for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from ...flow.errors import InvalidArgument
from ..dsl import Handler
from ..hands import Assignment, Hands
from ..middleware import Middleware, around, around_async, check_middleware
from ..running import require_plain
from ..source import Source
from .asyncs import Coroutines
from .executor import Crashed, Executor
from .processes import Processes
from .threads import Threads

ExecutorKind = Literal["thread", "process", "async"]


def make_executor(
    kind: ExecutorKind,
    hands: Hands,
    size: int,
    name: str,
    crashed: Crashed,
    *,
    sources: Sequence[Source],
    handler: Handler | None,
    middleware: Iterable[Middleware],
    died: Callable[[Assignment], None],
) -> Executor:
    """Return an executor, with the middleware around the handlers of the sources.

    Raises:
        InvalidArgument: a handler or a middleware that cannot run there.
    """
    checked = check_middleware(middleware, is_awaited=kind == "async")
    if kind == "async":
        for source in sources:
            source.prepare(lambda each: around_async(each, checked))
        return Coroutines(hands, size, name, crashed)
    for source in sources:
        require_plain(source.workflow.definition, source.states, handler)
    if kind == "thread":
        for source in sources:
            source.prepare(lambda each: around(each, checked))
        return Threads(hands, size, name, crashed)
    made = Processes(
        hands,
        size,
        name,
        crashed,
        sources=sources,
        handler=handler,
        middleware=checked,
        died=died,
    )
    for source in sources:
        source.prepare(lambda each: each)  # What is around them is in the processes.
    return made


def check_executor(kind: str, kill_lost: bool) -> None:
    """Refuse what is no executor, or could not do what is asked of it.

    Raises:
        InvalidArgument: naming the choices.
    """
    if kind not in get_args(ExecutorKind):
        raise InvalidArgument(
            f"executor is 'thread', 'process' or 'async'; got {kind!r}", argument="executor"
        )
    if kill_lost and kind == "thread":
        raise InvalidArgument(
            "kill_lost needs executor='process' or 'async': a thread cannot be ended from outside",
            argument="kill_lost",
        )
