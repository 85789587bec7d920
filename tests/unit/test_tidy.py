"""The shape of the code, checked: who may import whom, what is pure, how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Container, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("actors", "flow", "sdk")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# A module belongs to the room with the longest name that fits. `flow` itself holds the words: every
# module that stands directly in it and has no line of its own. A room may import from itself and
# from the rooms named beside it; adding one here is a decision about the design, not a repair.
ROOMS: dict[str, set[str]] = {
    "flow": set(),
    "flow.log": {"flow"},
    "flow.index": {"flow"},
    "flow.cold": {"flow", "flow.index"},
    "flow.machine": {"flow", "flow.index"},
    "flow.engine": {"flow", "flow.log", "flow.index", "flow.cold", "flow.machine"},
    "actors": {"flow", "flow.engine"},
    "sdk": {"flow"},
    "sdk.root": {"flow", "sdk"},
}
# Single files that may reach further than their room.
DOORS: dict[str, set[str]] = {
    "sdk.store": {"actors"},
    "sdk.opening": {"actors"},
    "sdk.testing": {"actors", "flow.engine"},
}

# The one file of flow/ that may touch the world: files, clock, entropy.
WORLD = "flow.host"
WORLDS = (WORLD, "flow.beside")
IMPURE_MODULES = {
    "asyncio",
    "concurrent",
    "ctypes",
    "datetime",
    "fcntl",
    "fileinput",
    "getpass",
    "glob",
    "importlib",
    "io",
    "logging",
    "mmap",
    "multiprocessing",
    "os",
    "pathlib",
    "platform",
    "psutil",
    "pykka",
    "queue",
    "random",
    "resource",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "socketserver",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "urllib",
    "uuid",
    "warnings",
    "zoneinfo",
}
IMPURE_CALLS = {"__import__", "breakpoint", "eval", "exec", "input", "open", "print"}

LINES_MAX = 400
FUNCTION_LINES_MAX = 70

# Words that no committed file may hold; each with its reason beside it.
FORBIDDEN_WORDS: tuple[str, ...] = ()

each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def module_name(path: Path) -> str:
    """Name a file from the root of the checkout: flow/log/frame.py is flow.log.frame."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name); our own names from the root as well: flow.log.frame.Frame."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, from_root(alias.name)) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *(node.module.split(".") if node.module else ())])
            for alias in node.names:
                yield node.lineno, from_root(f"{name}.{alias.name}" if name else alias.name)


def from_root(name: str) -> str:
    """Write shardflow.flow.log as flow.log, and shardflow.open as sdk.root.open."""
    top, _, rest = name.partition(".")
    if top != "shardflow":
        return name
    return rest if rest.split(".")[0] in FOLDERS else f"sdk.root.{rest}".rstrip(".")


def is_ours(name: str) -> bool:
    return name.split(".")[0] in FOLDERS


def is_within(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def room_of(name: str) -> str:
    return max((room for room in ROOMS if is_within(name, room)), key=len)


def module_of(name: str, modules: Container[str]) -> str | None:
    """Find the file that a dotted name is in: flow.log.frame for flow.log.frame.Frame."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def is_pure(path: Path) -> bool:
    return is_within(module_name(path), "flow") and module_name(path) not in WORLDS


@each_file
def test_imports_point_inward(path: Path) -> None:
    me = module_name(path)
    room = room_of(me)
    allowed = {room} | ROOMS[room] | DOORS.get(me, set())
    for line, name in imports(path):
        if is_ours(name):
            assert room_of(name) in allowed, f"{path}:{line} {me} may not import {name}"


@each_file
def test_rooms_import_each_other_relatively(path: Path) -> None:
    # Only sdk/root says `shardflow.…`: it is mounted a level above the place where it stands.
    for node in ast.walk(tree(path)):
        named = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        for name in named:
            top = name.split(".")[0]
            assert top not in FOLDERS, f"{path}: {name} is not importable once installed"
            if not is_within(module_name(path), "sdk.root"):
                assert top != "shardflow", f"{path}: import {name} relatively"


def test_no_module_imports_itself_through_others() -> None:
    modules = {module_name(path): path for path in FILES}
    needs = {
        me: {
            other
            for _, name in imports(path)
            if (other := module_of(name, modules)) not in (None, me)
        }
        for me, path in modules.items()
    }
    done: set[str] = set()

    def visit(me: str, way: tuple[str, ...]) -> None:
        assert me not in way, "imports in a circle: " + " -> ".join([*way[way.index(me) :], me])
        if me not in done:
            for other in needs[me]:
                visit(other, (*way, me))
            done.add(me)

    for module in modules:
        visit(module, ())


@each_file
def test_flow_imports_nothing_that_can_differ_between_runs(path: Path) -> None:
    if not is_pure(path):
        return
    for line, name in imports(path):
        top = name.split(".")[0]
        assert top not in IMPURE_MODULES, f"{path}:{line} imports {name}: that is {WORLD}'s"
        if top == "lmdb":
            assert is_within(module_name(path), "flow.cold"), f"{path}:{line} imports {name}"


@each_file
def test_flow_calls_nothing_that_can_differ_between_runs(path: Path) -> None:
    if not is_pure(path):
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in IMPURE_CALLS, f"{path}:{node.lineno} {node.func.id}()"


@each_file
def test_files_and_functions_are_short(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= LINES_MAX, f"{path} has {lines} lines: split it by idea"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{path}:{node.lineno} {node.name}: {length} lines"


def test_every_folder_is_shipped() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {place_of(package, settings["package-dir"]) for package in settings["packages"]}
    folders = {str(path.parent.relative_to(ROOT)) for path in FILES}
    assert folders <= shipped, f"not in pyproject.toml: {sorted(folders - shipped)}"


def place_of(package: str, places: dict[str, str]) -> str:
    """Find the folder of a package: that of its nearest mapped parent, and on from there."""
    nearest = max((name for name in places if is_within(package, name)), key=len)
    return places[nearest] + package.removeprefix(nearest).replace(".", "/")


def test_no_file_holds_a_forbidden_word() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    words = re.compile("|".join(map(re.escape, FORBIDDEN_WORDS)) or "(?!)", re.IGNORECASE)
    for path in files_of_the_project():
        if path != Path(__file__).resolve():
            found = words.search(path.read_text(errors="replace"))
            assert found is None, f"{path} says {found}"


def files_of_the_project() -> Iterator[Path]:
    """Yield what is committed, and what would be with the next `git add`."""
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    yield from (
        ROOT / name for name in sorted({*listed.split("\0")} - {""}) if (ROOT / name).is_file()
    )
