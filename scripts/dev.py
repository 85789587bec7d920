#!/usr/bin/env python3
"""The one door for developers. Standard library only; works from any directory.

python3 scripts/dev.py setup [--fresh]    make .venv and fill it; --fresh: from nothing
python3 scripts/dev.py demo [ARGS]        run examples/stdlib_index.py
python3 scripts/dev.py test [ARGS]        run pytest at the root of the checkout
python3 scripts/dev.py bench [NAME ARGS]  run scripts/bench/NAME.py; without a name: list them
python3 scripts/dev.py lint               ruff, mypy and pyright
python3 scripts/dev.py wheel              build a wheel and try it in an empty environment
python3 scripts/dev.py check              test, wheel and lint: what CI runs

Every verb sets up first where that is needed.
"""

from __future__ import annotations

import sys

# This file is started by whatever python3 is there: so far it must be readable for an old one.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        f"shardflow needs Python 3.11 or later; {sys.executable} is "
        f"{sys.version_info[0]}.{sys.version_info[1]}.\n"
        "Start this script with a later one, such as: python3.11 scripts/dev.py"
    )

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also under PYTHONSAFEPATH

from environment import (
    BIN,
    PYTHON,
    ROOT,
    VENV,
    call,
    ensure,
    make_environment,
    pip,
    quietly,
    run,
    say,
    step,
)

BENCHES = ROOT / "scripts" / "bench"


def main(arguments: list[str]) -> None:
    """Carry out the verb that the command line names."""
    verbs: dict[str, Callable[..., None]] = {
        "setup": setup,
        "demo": demo,
        "test": test,
        "bench": bench,
        "lint": lint,
        "wheel": wheel,
        "check": check,
    }
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb in ("", "help", "-h", "--help"):
        print(__doc__)
        return
    if verb not in verbs:
        sys.exit(f"dev.py has no verb {verb!r}; it has {', '.join(verbs)}")
    if rest and verb in ("lint", "wheel", "check"):
        sys.exit(f"dev.py {verb} takes no arguments")
    verbs[verb](*rest)


def setup(*options: str) -> None:
    """Make the environment ready; at once when it already is."""
    if options not in ((), ("--fresh",)):
        sys.exit("dev.py setup takes nothing or --fresh")
    if not ensure(fresh=bool(options)):
        say(f"{VENV} is ready")


def demo(*arguments: str) -> None:
    """Run the example; paths among the arguments are the caller's."""
    ensure()
    run(PYTHON, ROOT / "examples" / "stdlib_index.py", *arguments)


def test(*arguments: str) -> None:
    """Run pytest at the root."""
    ensure()
    run(BIN / "pytest", *arguments, cwd=ROOT)


def bench(*arguments: str) -> None:
    """Run one benchmark; paths among the arguments are the caller's."""
    names = sorted(p.stem for p in BENCHES.glob("*.py") if not p.stem.startswith("_"))
    if not arguments:
        print("\n".join(names) if names else "there are no benchmarks yet")
        return
    name, *rest = arguments
    if name not in names:
        sys.exit(f"no benchmark {name!r}; there are: {', '.join(names) or 'none yet'}")
    ensure()
    # As bench.NAME, and with no script's folder on the path: bench/queue.py must not hide the
    # standard library's queue, and may import what stands beside it.
    run(PYTHON, "-P", "-m", f"bench.{name}", *rest, PYTHONPATH=str(ROOT / "scripts"))


def lint() -> None:
    """Run every static check, all of them even when one fails."""
    ensure()
    checks: tuple[tuple[str, ...], ...] = (
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
        ("pyright",),
    )
    failed = []
    for tool, *arguments in checks:
        say(" ".join([tool, *arguments]))
        # The variable keeps pyright from asking for the newest version of itself.
        code = call(BIN / tool, *arguments, cwd=ROOT, PYRIGHT_PYTHON_IGNORE_WARNINGS="1")
        if code != 0:
            failed.append(" ".join([tool, *arguments]))
    if failed:
        sys.exit(f"lint: failed: {'; '.join(failed)}")


def wheel() -> None:
    """Build a wheel, install it far from the checkout, and run scripts/smoke.py there."""
    ensure()
    say("the wheel, tried in an environment of its own")
    with tempfile.TemporaryDirectory(prefix="shardflow-wheel-") as folder:
        place = Path(folder).resolve()
        if place.is_relative_to(ROOT):
            sys.exit(f"the temporary folder {place} lies in the checkout; set TMPDIR elsewhere")
        work, environment = place / "work", place / "venv"
        work.mkdir()
        with step(1, 4, "build the sdist, and the wheel from it") as note:
            # From the sdist, because a wheel built in place would take along whatever an
            # earlier build left in build/.
            quietly(BIN / "pyproject-build", "--outdir", work, ROOT, cwd=work, note=note)
        (built,) = work.glob("*.whl")
        with step(2, 4, "make an empty environment"):
            make_environment(environment)
        with step(3, 4, f"install {built.name}") as note:
            pip(environment / "bin" / "python", built, cwd=work, note=note)
        with step(4, 4, "run the smoke script"):
            script = shutil.copy(ROOT / "scripts" / "smoke.py", work)
            said = quietly(environment / "bin" / "python", "-P", script, cwd=work)
        say(said.strip())


def check() -> None:
    """Do what CI does."""
    test()
    wheel()
    lint()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
