"""Index the standard library of this Python: each file is one flow through three states.

    found     read and hash the file
    parsed    parse it: names, docstrings, imports
    measured  sum it up; this is the flow's result

    python3 scripts/dev.py demo                     index everything, and show the summary
    python3 scripts/dev.py demo --kill-after 300    the same, with a SIGKILL in the middle

Interrupt it whenever you like: the next run goes on where the log ends. Files that do not parse
(the library's own tests contain some on purpose) are tried three times and then end as failed.
Needs rich: `pip install shardflow[demo]`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import shardflow as sf

LIBRARY = Path(sysconfig.get_path("stdlib"))
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
OUTLINE_BYTES = 2**20
"""The outline of the largest module is larger than what a claim brings along by default."""
LEASE_MS = 3_000
"""Short, so that a run after a kill soon gets what was in hand; running handlers renew theirs."""
KEPT = timedelta(days=3_650)
BATCH = 500
PAGE = 1_000
LOOK_S = 0.1
SHOWN = 10

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

console = Console(markup=False, highlight=False)

# ---- the workflow ----

TRIES = sf.Retry(max_retries=2, backoff=sf.Backoff.fixed(base_ms=50))


class IndexFlow(sf.Workflow, type="module", partition_by="package"):
    """One file of the standard library; its id is its path, its partition the top-level package."""

    found = sf.state(lease_ms=LEASE_MS, retry=TRIES, on_ok="parsed")
    parsed = sf.state(lease_ms=LEASE_MS, retry=TRIES, on_ok="measured")
    measured = sf.state(lease_ms=LEASE_MS, retry=TRIES, claim_payload=OUTLINE_BYTES)


@IndexFlow.found.handler
def read(job: sf.Job) -> sf.Ok:
    """Read and hash the file. What is returned is the payload of the next state."""
    data = (LIBRARY / job.id).read_bytes()
    return sf.Ok({"lines": len(data.splitlines()), "sha256": hashlib.sha256(data).hexdigest()})


@IndexFlow.parsed.handler
def parse(job: sf.Job) -> Any:
    """Parse the file into an outline. A SyntaxError is left to the state's retry."""
    tree = ast.parse((LIBRARY / job.id).read_bytes(), filename=job.id)
    functions: list[tuple[str, int, int]] = []
    classes = 0
    imports: set[str] = set()
    documentable: list[Any] = [tree]
    for name, node in statements(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.update(imported(node, job.id))
        elif isinstance(node, DEFINITIONS):
            documentable.append(node)
            if isinstance(node, FUNCTIONS):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                functions.append((name, node.lineno, length))
            else:
                classes += 1
    outline = {
        **job.payload,
        "functions": functions,
        "classes": classes,
        "documentable": len(documentable),
        "documented": sum(
            ast.get_docstring(node, clean=False) is not None for node in documentable
        ),
    }
    # The imports are for the summary alone, so they go beside the payload, as a named value. That
    # takes the command itself instead of an outcome, and the worker is told that it is given.
    IndexFlow.ok(job, outline, values={"imports": sorted(imports)})
    return sf.NOREPLY


@IndexFlow.measured.handler
def measure(job: sf.Job) -> sf.Ok:
    """Sum the outline up. The state declares no next one, so this completes the flow."""
    functions = job.payload["functions"]
    lengths = [length for _, _, length in functions]
    return sf.Ok(
        {
            **job.payload,
            "functions": len(functions),
            "function_lines": sum(lengths),
            "longest": functions[lengths.index(max(lengths))] if lengths else None,
        }
    )


def statements(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield every statement, with its dotted name if it defines something."""
    left: list[tuple[str, ast.AST]] = [("", tree)]
    while left:
        scope, node = left.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                continue
            name = f"{scope}.{child.name}".lstrip(".") if isinstance(child, DEFINITIONS) else scope
            yield name, child
            left.append((name, child))


def imported(node: ast.Import | ast.ImportFrom, path: str) -> list[str]:
    """Return the modules that a statement imports; relative ones in full."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not node.level:
        return [node.module or ""]
    package = PurePosixPath(path).parts[: -node.level]
    if node.module:
        return [".".join([*package, node.module])]
    return [".".join([*package, alias.name]) for alias in node.names]


# ---- a run ----


class Summary(NamedTuple):
    """What is in a finished index."""

    totals: Counter[str]
    packages: dict[str, Counter[str]]
    imports: Counter[str]
    longest: tuple[int, str]
    failed: dict[str, str]
    digest: str
    """Of every flow's outcome: two indexes with the same digest are the same."""


def index(
    path: Path, files: list[str], die_after: int | None = None
) -> tuple[dict[str, Any], Summary]:
    """Finish the index at a path; return what `info` said at the start, and the summary."""
    with sf.open(path, retention_ms=KEPT, failed_retention_ms=KEPT):
        before = IndexFlow.info()
        done = ended(before)
        if before["total"]:
            console.print(f"continuing: {done} of {len(files)} done already")
        elif done:
            console.print(f"nothing left to do: {done} of {len(files)} are done; reading the store")
        # Idempotent: a flow that an earlier run created is found, however far it has come.
        for at in range(0, len(files), BATCH):
            new = [{"id": file, "package": package_of(file)} for file in files[at : at + BATCH]]
            IndexFlow.create_many(new, idempotent=True)
        if IndexFlow.info()["total"]:
            work(die_after)
        return before, summarize()


def work(die_after: int | None) -> None:
    """Run workers until every flow has ended."""

    def measure_until_death(job: sf.Job) -> sf.Ok:
        if IndexFlow.info()["completed"] >= (die_after or 0):
            kill_everything()
        return measure(job)

    # A worker for each state, so that files end early and not all in the last moment.
    last = measure if die_after is None else measure_until_death
    with contextlib.ExitStack() as stack:
        stack.enter_context(sf.Worker(IndexFlow, states="found", concurrency=2))
        stack.enter_context(sf.Worker(IndexFlow, states="parsed", concurrency=4))
        stack.enter_context(sf.Worker(IndexFlow, states="measured", concurrency=2, handler=last))
        show_progress()


def show_progress() -> None:
    """Show how far the flows are, until all have ended."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("")
        while True:
            info = IndexFlow.info()
            states = [f"{name} {counts['total']}" for name, counts in info["states"].items()]
            if info["failed"]:
                states.append(f"failed {info['failed']}")
            done = ended(info)
            told = "  ".join(states)
            progress.update(bar, completed=done, total=done + info["total"], description=told)
            if not info["total"]:
                return
            time.sleep(LOOK_S)


def kill_everything() -> None:
    """End the shards and this process as a power cut would: nobody gets to tidy up."""
    for shard in sf.default_store().processes():
        os.kill(shard["pid"], signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def summarize() -> Summary:
    """Read every outcome from the store and add it up."""
    store = sf.default_store()
    outcomes: dict[str, Any] = {}
    for page in pages("failed"):
        errors = store.flow_value_mget([str(record.error_ref) for record in page])
        for record, error in zip(page, errors, strict=True):
            outcomes[record.id] = f"{error['exception']}: {error['message']}"
    failed = dict(outcomes)
    totals: Counter[str] = Counter()
    packages: dict[str, Counter[str]] = {}
    imports: Counter[str] = Counter()
    longest = (0, "")
    for page in pages("completed"):
        results = store.flow_value_mget([str(record.result_ref) for record in page])
        edges = store.flow_value_mget([record.value_refs["imports"] for record in page])
        for record, result, targets in zip(page, results, edges, strict=True):
            outcomes[record.id] = [result, targets]
            counts = Counter(files=1, **{n: v for n, v in result.items() if isinstance(v, int)})
            totals += counts
            packages.setdefault(str(record.partition_key), Counter()).update(counts)
            imports.update(targets)
            if result["longest"]:
                name, line, length = result["longest"]
                longest = max(longest, (length, f"{name} in {record.id}, line {line}"))
    told = json.dumps(outcomes, sort_keys=True).encode()
    digest = hashlib.sha256(told).hexdigest()[:16]
    return Summary(totals, packages, imports, longest, dict(sorted(failed.items())), digest)


def pages(state: str) -> Iterator[sf.Page]:
    """Yield the listing of a state, page by page."""
    after = None
    while True:
        page = IndexFlow.list(state, count=PAGE, after=after)
        if page:
            yield page
        after = page.after
        if after is None:
            return


def ended(info: dict[str, Any]) -> int:
    """Return how many flows have ended."""
    return int(info["completed"] + info["failed"] + info["cancelled"])


def library_files(limit: int | None) -> list[str]:
    """Return the library's files by path; with a limit so many of them, from all over it."""
    paths = [path.relative_to(LIBRARY) for path in LIBRARY.rglob("*.py")]
    files = sorted(p.as_posix() for p in paths if NOT_THE_LIBRARY.isdisjoint(p.parts))
    if limit is None or limit >= len(files):
        return files
    return [files[number * len(files) // limit] for number in range(limit)]


def package_of(file: str) -> str:
    """Return a file's top-level package, or its module if it is in none."""
    return PurePosixPath(file).parts[0].removesuffix(".py")


# ---- what is shown ----


def show(summary: Summary) -> None:
    """Print a finished index."""
    totals = summary.totals
    length, where = summary.longest
    table = Table(title=f"The standard library of Python {platform.python_version()}")
    table.add_column("what")
    table.add_column("found", justify="right")
    for name in ("files", "lines", "functions", "classes"):
        table.add_row(name, f"{totals[name]:,}")
    table.add_row("lines per function", f"{totals['function_lines'] / totals['functions']:.1f}")
    table.add_row("with a docstring", coverage(totals))
    table.add_row("longest function", f"{length:,} lines: {where}")
    top = ", ".join(f"{name} ({count:,})" for name, count in summary.imports.most_common(SHOWN))
    table.add_row("most imported", top)
    console.print(table)

    table = Table("package", title="The largest packages")
    for name in ("files", "lines", "functions", "docstrings"):
        table.add_column(name, justify="right")
    by_lines = sorted(summary.packages.items(), key=lambda pair: -pair[1]["lines"])
    for package, counts in by_lines[:SHOWN]:
        numbers = [f"{counts[name]:,}" for name in ("files", "lines", "functions")]
        table.add_row(package, *numbers, coverage(counts))
    console.print(table)

    if summary.failed:
        table = Table(title=f"Failed: {len(summary.failed)}")
        table.add_column("file", overflow="fold")
        table.add_column("error")
        for file, error in summary.failed.items():
            table.add_row(file, error)
        console.print(table)
    console.print(
        f"digest of all {totals['files'] + len(summary.failed):,} files: {summary.digest}"
    )


def coverage(counts: Counter[str]) -> str:
    """Return the share of modules, classes and functions that have a docstring."""
    return f"{100 * counts['documented'] / max(1, counts['documentable']):.1f} %"


# ---- the story of a kill ----


def tell_story(place: Path, files: list[str], kill_after: int, again: list[str]) -> None:
    """Kill a run, continue it, and compare what comes out with an undisturbed run."""
    if not 1 <= kill_after < len(files):
        sys.exit(f"--kill-after is from 1 to {len(files) - 1}, one less than there are files")
    killed = place.with_name(f"{place.name}-killed")
    undisturbed = place.with_name(f"{place.name}-undisturbed")
    wipe(killed)
    wipe(undisturbed)
    console.rule(f"1. A run that gets SIGKILL after {kill_after} files, and its shards as well")
    code = subprocess.run([sys.executable, __file__, *again], check=False).returncode
    console.show_cursor(True)  # the killed run could not
    if code != -signal.SIGKILL:
        sys.exit(f"the run ended with {code} before {kill_after} files were completed")
    console.print("\nkilled, in the middle of its work")

    console.rule("2. A second run on the same directory")
    found, summary = index(killed, files)
    show(summary)

    console.rule("3. An undisturbed run in another directory")
    _, wanted = index(undisturbed, files)
    console.print(f"digest: {wanted.digest}")

    console.rule("4. The comparison")
    if found["completed"] < kill_after:
        sys.exit(f"{kill_after} files were completed, but the kill left {found['completed']}")
    if summary != wanted:
        sys.exit(f"NOT the same summary: {summary.digest} and {wanted.digest}")
    done = ended(found)
    console.print(f"same summary: {done} files from before the kill, {len(files) - done} after it")


def wipe(path: Path) -> None:
    """Remove an index that an earlier run left."""
    if (path / "store.json").exists():
        shutil.rmtree(path)


def main(arguments: list[str]) -> None:
    """Index, or tell the story."""
    options = parsed_options(arguments)
    warnings.simplefilter("ignore", SyntaxWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    files = library_files(options.limit)
    name = "all" if options.limit is None else f"limit-{options.limit}"
    place = options.data.absolute() / f"python-{platform.python_version()}" / name
    if options.die_after is not None:
        index(place.with_name(f"{name}-killed"), files, options.die_after)
    elif options.kill_after is not None:
        again = [*arguments, "--die-after", str(options.kill_after)]
        tell_story(place, files, options.kill_after, again)
    else:
        if options.fresh:
            wipe(place)
        _, summary = index(place, files)
        show(summary)
        console.print("left to try: --kill-after 300 kills a run in the middle and continues it")


def parsed_options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=cache / "shardflow-demo", metavar="DIR")
    parser.add_argument("--limit", type=int, metavar="N", help="index only N of the files")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs did")
    parser.add_argument("--kill-after", type=int, metavar="N", help="tell the story of a kill")
    parser.add_argument("--die-after", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < 1:
        parser.error("--limit is at least 1")
    return options


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the next run continues")
    except sf.FlowError as error:
        sys.exit(f"{type(error).__name__}: {error}")
