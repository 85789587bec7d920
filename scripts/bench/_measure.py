"""What the benchmarks share: latencies, processes, the place of the data, and how figures are told.

The leading underscore keeps `dev.py bench` from listing it as a benchmark.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

import psutil

import shardflow as sf

P = ParamSpec("P")
T = TypeVar("T")
Figures = dict[str, Any]

ROOT: Final = Path(__file__).resolve().parents[2]
IN_MEMORY: Final = ("tmpfs", "ramfs")
DISK_BYTES: Final = 400
"""About what one small command puts into the log."""


class Latencies:
    """How long the calls of one command took. Each thread fills its own; `merged` joins them."""

    def __init__(self) -> None:
        self._ns: dict[str, list[int]] = {}

    def timed(self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call, and keep how long it took under the name of the command."""
        started_ns = time.perf_counter_ns()
        value = call(*args, **kwargs)
        self.add(name, time.perf_counter_ns() - started_ns)
        return value

    def add(self, name: str, ns: int) -> None:
        """Keep one call."""
        self._ns.setdefault(name, []).append(ns)

    def merge(self, other: Latencies) -> None:
        """Take in the calls of another thread."""
        for name, found in other._ns.items():
            self._ns.setdefault(name, []).extend(found)

    def figures(self, unit: str) -> Figures:
        """Return calls, p50 and p99 of each command, in "ms" or "us"."""
        ns_per_unit = {"ms": 1e6, "us": 1e3}[unit]
        told: Figures = {}
        for name, found in self._ns.items():
            told[f"{name}_calls"] = len(found)
            for percent in (50, 99):
                value = percentile(found, percent) / ns_per_unit
                told[f"{name}_p{percent}_{unit}"] = round(value, 2 if unit == "ms" else 1)
        return told


def percentile(found: list[int], percent: int) -> int:
    """Return the least value that so many percent of all do not exceed."""
    ordered = sorted(found)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


class Use(NamedTuple):
    """What one process holds and has used."""

    rss_bytes: int
    cpu_s: float


def processes_used(store: sf.Store) -> dict[str, Use]:
    """Return the use of this process, as `client`, and of each shard's."""
    pids = {"client": os.getpid()}
    pids |= {f"shard{n}": told["pid"] for n, told in enumerate(store.processes())}
    found = {}
    for name, pid in pids.items():
        process = psutil.Process(pid)
        times = process.cpu_times()
        found[name] = Use(process.memory_info().rss, times.user + times.system)
    return found


def use_figures(before: Mapping[str, Use], after: Mapping[str, Use]) -> Figures:
    """Return the memory of each process at the end, and the processor time in between."""
    told: Figures = {}
    for name, use in after.items():
        told[f"{name}_rss_mib"] = round(use.rss_bytes / 2**20, 1)
        told[f"{name}_cpu_s"] = round(use.cpu_s - before[name].cpu_s, 2)
    return told


def cpu_us_per_flow(before: Mapping[str, Use], after: Mapping[str, Use], flows: int) -> float:
    """Return the processor time of all processes, which a busy machine changes the least."""
    spent_s = sum(use.cpu_s - before[name].cpu_s for name, use in after.items())
    return round(spent_s * 1e6 / flows, 1)


def shards_rss_bytes(store: sf.Store) -> int:
    """Return the memory of all shards together."""
    return sum(use.rss_bytes for name, use in processes_used(store).items() if name != "client")


def log_figures(store: sf.Store, flows: int) -> Figures:
    """Return what this host's shards have written, and how often they have synced."""
    shards = store.stats()
    syncs = sum(shard["syncs"] for shard in shards)
    return {
        "bytes_written_per_flow": round(sum(s["bytes_written"] for s in shards) / flows, 1),
        "fsyncs": syncs,
        "flows_per_fsync": round(flows / max(1, syncs), 1),
    }


def check(store: sf.Store, kind: str, *, completed: int = 0, queued: int = 0) -> None:
    """Leave unless the store holds exactly these flows and finds nothing wrong with itself."""
    info = store.flow_info(kind)
    expect("completed flows", info["completed"], completed)
    expect("queued flows", info["ready"], queued)
    expect("other flows", info["total"] + info["failed"] + info["cancelled"], queued)
    expect("problems", [p for shard in store.stats(check=True) for p in shard["problems"]], [])


def expect(what: str, found: object, wanted: object) -> None:
    """Leave unless the two are equal: no figures for work that was not done."""
    if found != wanted:
        sys.exit(f"wrong, so there are no figures: {what}: {found!r} instead of {wanted!r}")


def batches(count: int, size: int) -> list[range]:
    """Divide so many flows into batches of at most `size`."""
    return [range(at, min(at + size, count)) for at in range(0, count, size)]


def new_flow(number: int, payload_bytes: int) -> dict[str, Any]:
    """Return a flow's creation arguments; its payload tells it from all others."""
    return {"id": f"f{number}", "payload": payload_of(number, payload_bytes)}


def payload_of(number: int, payload_bytes: int) -> bytes:
    """Return the payload of a flow: its number, filled up."""
    return b"%0*d" % (payload_bytes, number)


def settling(record: sf.FlowRecord) -> dict[str, Any]:
    """Return what settles a claimed flow."""
    return {
        "id": record.id,
        "partition_key": record.partition_key,
        "lease_token": record.lease_token,
        "fencing_token": record.fencing_token,
    }


def complete_all(store: sf.Store, kind: str, batch: int) -> None:
    """Claim and complete everything that is due."""
    while claimed := store.flow_claim_due(kind, worker="w", limit=batch, payload=False):
        store.flow_complete_many([settling(record) for record in claimed])


def parser(about: str | None) -> ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    made = ArgumentParser(description=(about or "").partition("\n")[0])
    made.add_argument("--shards", type=int, help="default: as sf.open chooses")
    made.add_argument("--durability", choices=("sync", "relaxed"), default="sync")
    made.add_argument("--dir", type=Path, help="an empty or new directory, which is then kept")
    made.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return made


@contextlib.contextmanager
def data_directory(given: Path | None) -> Iterator[Path]:
    """Give a place for one store: the one that was named, or one that is removed afterwards."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="shardflow-bench-") as folder:
        yield Path(folder) / "data"


def circumstances(folder: Path) -> Figures:
    """Return what figures depend on besides the code; to be asked before the work begins."""
    kind = filesystem_of(folder)
    if kind in IN_MEMORY:
        print(f"note: {folder} is a {kind}: a sync costs nothing there; see --dir", file=sys.stderr)
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "filesystem": kind,
    }


def disk_figures(folder: Path, writes: int) -> Figures:
    """Return what a bare write of a small command's size and an fdatasync take, beside the data."""
    path = folder.with_name(folder.name + ".disk")
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    disk, data = Latencies(), bytes(DISK_BYTES)
    try:
        os.posix_fallocate(fd, 0, writes * DISK_BYTES)
        os.fsync(fd)
        for number in range(writes):
            disk.timed("disk", _write, fd, data, number * DISK_BYTES)
    finally:
        os.close(fd)
        path.unlink()
    return {**disk.figures("us"), "disk_bytes": DISK_BYTES}


def _write(fd: int, data: bytes, offset: int) -> None:
    os.pwrite(fd, data, offset)
    os.fdatasync(fd)


def commit() -> str:
    """Return the commit that is checked out, marked if there are changes on top of it."""
    command = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def filesystem_of(path: Path) -> str:
    """Return the type of the file system that a path is, or would be, on."""
    place = path.resolve()
    mounts = [
        part for part in psutil.disk_partitions(all=True) if place.is_relative_to(part.mountpoint)
    ]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def tell(title: str, figures: Mapping[str, Any], json_file: Path | None) -> None:
    """Print the figures as a table; write them all to a file if one was named."""
    width = max(map(len, figures))
    print(title)
    for name, value in figures.items():
        shown = f"{value:,}" if isinstance(value, int | float) else value
        print(f"  {name:{width}}  {shown:>14}")
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
