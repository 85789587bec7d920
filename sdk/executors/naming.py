"""What crosses to a handler process by name: where a function or class is found again."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from msgspec import Struct

from ...flow.errors import InvalidArgument

MAIN: Final = "__main__"
MAIN_IN_CHILD: Final = "__mp_main__"
"""What a script is called in a handler process, as in those of `multiprocessing`."""

_loading = False


class Name(Struct, frozen=True, array_like=True):
    """A module and what is in it, dotted; "" is the module itself."""

    module: str
    path: str = ""
    is_called: bool = False
    """Whether the thing meant is made by calling what is found, a class."""


class Main(Struct, frozen=True, array_like=True):
    """How the program's own module is loaded again: by name, or from a file."""

    module: str | None
    file: str | None


def name_of(thing: Any, what: str) -> Name:
    """Return where a function or class is found again.

    Raises:
        InvalidArgument: it cannot be, and what to do about it.
    """
    module = getattr(thing, "__module__", None)
    path = getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(path, str):
        raise _not_found_again(what, repr(thing), "it is neither a function nor a class")
    if "<" in path:
        raise _not_found_again(what, path, "it is defined inside a function, or is a lambda")
    name = Name(module, path)
    try:
        found = find(name)
    except (AttributeError, ImportError) as error:
        raise _not_found_again(what, f"{module}.{path}", str(error)) from None
    if not _is_same(found, thing):
        raise _not_found_again(what, f"{module}.{path}", "something else has that name")
    return name


def name_of_codec(codec: Any) -> Name | None:
    """Return where a codec is found again: a module, a class, or an object of a class.

    Raises:
        InvalidArgument: it cannot be, or its class cannot be called without arguments.
    """
    if codec is None:
        return None
    if isinstance(codec, ModuleType):
        return Name(codec.__name__)
    if isinstance(codec, type):
        return name_of(codec, "codec")
    name = name_of(type(codec), "codec")
    try:
        type(codec)()
    except Exception as error:
        raise _not_found_again(
            "codec", repr(codec), f"its class cannot be called without arguments ({error})"
        ) from None
    return Name(name.module, name.path, is_called=True)


def main_of_program(modules: set[str]) -> Main | None:
    """Return how the program's own module is loaded again, if something is in it.

    Raises:
        InvalidArgument: it cannot be loaded again: an interactive session, or a command line.
    """
    if MAIN not in modules:
        return None
    main = sys.modules[MAIN]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if isinstance(name, str) and name != MAIN and not name.endswith("." + MAIN):
        return Main(name, None)
    file = getattr(main, "__file__", None)
    if name is None and file is not None and Path(file).is_file():
        return Main(None, str(Path(file).absolute()))
    raise InvalidArgument(
        "the workflow or its handlers are defined in a main module that handler processes cannot "
        "load again (an interactive session, python -c, or a package's __main__.py): define them "
        "in a module of their own and import it",
        argument="executor",
    )


def load_main(main: Main) -> None:
    """Load the program's own module, under another name, in a handler process."""
    if main.module is not None:
        sys.modules[MAIN] = importlib.import_module(main.module)
        return
    assert main.file is not None
    module = ModuleType(MAIN_IN_CHILD)
    sys.modules[MAIN_IN_CHILD] = module
    module.__dict__.update(runpy.run_path(main.file, run_name=MAIN_IN_CHILD))
    sys.modules[MAIN] = module


def find(name: Name) -> Any:
    """Return what a name stands for.

    Raises:
        ImportError, AttributeError: it is not there.
    """
    found: Any = sys.modules.get(name.module) or importlib.import_module(name.module)
    for part in name.path.split(".") if name.path else ():
        found = getattr(found, part)
    return found() if name.is_called else found


class loading:
    """While a handler process loads modules: a worker must not be started by that."""

    def __enter__(self) -> None:
        global _loading
        _loading = True

    def __exit__(self, *_: object) -> None:
        global _loading
        _loading = False


def check_not_loading() -> None:
    """Refuse what a script does at its outermost level, when a handler process only loads it.

    Raises:
        InvalidArgument: naming the remedy.
    """
    if _loading:
        raise InvalidArgument(
            "a worker was started while a handler process loaded its module: put what the "
            'program does under `if __name__ == "__main__":`, so that the module can be loaded '
            "for its handlers alone",
            argument="executor",
        )


def _is_same(found: Any, thing: Any) -> bool:
    if found is thing:
        return True
    # A workflow bound to another store bears the name of the one that it was made of.
    definition = getattr(thing, "definition", None)
    return definition is not None and getattr(found, "definition", None) is definition


def _not_found_again(what: str, named: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"handler processes cannot find the {what} {named}: {reason}; define it at the outermost "
        "level of a module that can be imported, or use executor='thread'",
        argument=what,
    )
