"""The checkout's own virtual environment: made, kept up to date, and run in. Part of dev.py."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
PYTHON = BIN / "python"
STAMP = VENV / "shardflow-setup.json"
LINKS = VENV / "types" / "shardflow"
PYPROJECT = ROOT / "pyproject.toml"

# What a shell, another environment or pip's own settings could put between us and .venv.
FOREIGN = (
    "CONDA_PREFIX",
    "MYPYPATH",
    "PIP_PREFIX",
    "PIP_PYTHON",
    "PIP_ROOT",
    "PIP_TARGET",
    "PIP_USER",
    "PYRIGHT_PYTHON_FORCE_VERSION",
    "PYRIGHT_PYTHON_PYLANCE_VERSION",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "VIRTUAL_ENV",
    "__PYVENV_LAUNCHER__",
)
# How pip words a network that is away.
OFFLINE = (
    "ConnectTimeoutError",
    "Connection refused",
    "Max retries exceeded",
    "Name or service not known",
    "Network is unreachable",
    "NewConnectionError",
    "NameResolutionError",
    "ProxyError",
    "ReadTimeoutError",
    "Temporary failure in name resolution",
)


def ensure(*, fresh: bool = False) -> bool:
    """Set up unless that is done; return whether there was anything to do."""
    if not fresh and is_ready():
        return False
    with one_at_a_time():
        if fresh:
            STAMP.unlink(missing_ok=True)
        elif is_ready():  # somebody else did it while we waited
            return False
        started = time.monotonic()
        if has_usable_environment():
            say("pyproject.toml or the rooms have changed: bringing .venv up to date")
        else:
            say("setting up .venv; this is done once and takes about a minute")
        prepare()
        say(f"ready after {time.monotonic() - started:.1f} s")
    return True


def prepare() -> None:
    """Bring .venv to what the stamp will promise; the stamp is away in between."""
    usable = has_usable_environment()
    before = STAMP.read_bytes() if usable else b""
    STAMP.unlink(missing_ok=True)
    with step(1, 3, "keep the virtual environment" if usable else "make a virtual environment"):
        if not usable:
            make_environment(VENV)
    try:
        with step(2, 3, "install shardflow as editable, with its tools") as note:
            pip(PYTHON, "--editable", f"{ROOT}[dev,demo]", cwd=ROOT, note=note)
    except SystemExit:
        # pip ended in order and left the old packages: the next try need not begin from nothing.
        if usable:
            STAMP.write_bytes(before)
        raise
    with step(3, 3, "lay the links that the type checkers read"):
        lay_links()
    fresh = STAMP.with_suffix(".new")
    fresh.write_text(json.dumps(wanted_stamp(), indent=1))
    fresh.replace(STAMP)


def is_ready() -> bool:
    """Whether .venv is whole, made from this pyproject.toml, by this Python, at this place."""
    return has_usable_environment() and read_stamp() == wanted_stamp() and links_are_laid()


def has_usable_environment() -> bool:
    """Whether .venv was once finished, here and by this Python; else it is made anew."""
    found, wanted = read_stamp(), wanted_stamp()
    same = all(found.get(key) == wanted[key] for key in ("checkout", "python"))
    return same and PYTHON.exists() and (BIN / "pytest").exists()


def wanted_stamp() -> dict[str, str]:
    """Describe everything that .venv depends on."""
    return {
        "checkout": str(ROOT),
        "python": f"{base_python()} {sys.version}",
        "pyproject": hashlib.sha256(PYPROJECT.read_bytes()).hexdigest(),
    }


def read_stamp() -> dict[str, str]:
    """Read what .venv was made from; empty if it was never finished."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def base_python() -> str:
    """Find the interpreter below any virtual environment that this script runs in."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def make_environment(folder: Path) -> None:
    """Make an empty virtual environment, whatever stood there."""
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        sys.exit(
            f"{sys.executable} has no module {missing[0]}, so it can make no environment.\n"
            f"On Debian and Ubuntu: apt install python{version}-venv"
        )
    quietly(base_python(), "-I", "-m", "venv", "--clear", folder)


def pip(python: Path, *what: str | Path, cwd: Path, note: Callable[[str], None]) -> None:
    """Install with the pip of an environment; a network that is away gets a message of its own."""
    options = ("--disable-pip-version-check", "--no-input", "--retries", "2")
    quietly(python, "-P", "-m", "pip", "install", *options, *what, cwd=cwd, note=note)


def lay_links() -> None:
    """Lay the rooms out under their import name, for tools that do not run import hooks."""
    if LINKS.exists():
        shutil.rmtree(LINKS)  # removes links, never what they point at
    LINKS.mkdir(parents=True)
    for name, target in wanted_links().items():
        (LINKS / name).symlink_to(target)


def links_are_laid() -> bool:
    """Whether the links are exactly those that are wanted."""
    if not LINKS.is_dir():
        return False
    found = {p.name: os.readlink(p) for p in LINKS.iterdir() if p.is_symlink()}  # noqa: PTH115
    return found == wanted_links()


def wanted_links() -> dict[str, str]:
    """Read from pyproject.toml what lies where: name under `shardflow` to relative path."""
    settings: dict[str, Any] = tomllib.loads(PYPROJECT.read_text())
    places: dict[str, str] = settings["tool"]["setuptools"]["package-dir"]
    links: dict[str, Path] = {}
    for package, place in places.items():
        top, _, room = package.partition(".")
        if room:
            links[room] = ROOT / place
        else:
            kept = (p for p in (ROOT / place).iterdir() if p.suffix in (".py", ".typed"))
            links |= {p.name: p for p in kept}
        assert top == "shardflow" and "." not in room, package
    return {name: os.path.relpath(target, LINKS) for name, target in links.items()}


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Keep two runs from making the same .venv; the lock goes with the process."""
    descriptor = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another setup is at work in this checkout; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> None:
    """Run a command; leave with its exit code if it fails."""
    code = call(*command, cwd=cwd, **variables)
    if code != 0:
        sys.exit(code)


def call(*command: str | Path, cwd: Path | None = None, **variables: str) -> int:
    """Run a command in our environment and return its exit code, as a shell would write it."""
    sys.stdout.flush()
    with subprocess.Popen(command, cwd=cwd, env=environment_with(**variables)) as process:
        while True:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                continue  # the terminal told the command as well; it ends in its own way
            return code if code >= 0 else 128 - code


def quietly(
    *command: str | Path, cwd: Path = ROOT, note: Callable[[str], None] | None = None
) -> str:
    """Run a command and return what it printed, which is shown only if it fails."""
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environment_with(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        output: IO[str] | None = process.stdout
        for line in output or ():
            lines.append(line)
            if note is not None:
                note(line.strip())
    said = "".join(lines)
    if process.returncode != 0:
        what = " ".join(str(part) for part in command)
        print(f"\n{said}\ndev.py: failed with {process.returncode}: {what}", file=sys.stderr)
        if any(sign in said for sign in OFFLINE):
            say("no package index could be reached: is the network away, or is a proxy needed?")
        sys.exit(1)
    return said


def environment_with(**variables: str) -> dict[str, str]:
    """Make the environment of a child: ours first on the path, nobody else's in the way."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    path = f"{BIN}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, **variables}


@contextlib.contextmanager
def step(number: int, count: int, label: str) -> Iterator[Callable[[str], None]]:
    """Print one line per step, with its time; on a terminal the line lives in between."""
    out, started = sys.stderr, time.monotonic()
    head = f"  {number}/{count} {label}"
    live = out.isatty()
    print(f"{head} ...", end="", file=out, flush=True)

    def note(text: str) -> None:
        if live and text:
            room = max(0, shutil.get_terminal_size().columns - len(head) - 6)
            print(f"\r\x1b[K{head} ... {text[:room]}", end="", file=out, flush=True)

    try:
        yield note
    except BaseException:
        print(file=out)
        raise
    end = "\r\x1b[K" + head + " ..." if live else ""
    print(f"{end} {time.monotonic() - started:.1f} s", file=out, flush=True)


def say(text: str) -> None:
    """Speak on stderr: stdout belongs to the command that is run."""
    print(f"shardflow: {text}", file=sys.stderr, flush=True)
