"""Workflows whose handlers run in other processes too: found there by the name of this module."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import shardflow as sf

INSTANT = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
RETRY = sf.Retry(max_retries=1, backoff=sf.Backoff.fixed(base_ms=0))
POLL_S = 0.005


class OddError(Exception):
    """Raised by a handler."""


def raising(job: sf.Job) -> Any:
    raise OddError(f"odd {job.id}")


class ContractFlow(sf.Workflow, type="contract", partition_by="tenant"):
    """Does what its payload says."""

    work = sf.state(on_ok="moved", retry=RETRY, on_error=sf.retry_or("failed"))
    moved = sf.state()
    parked = sf.state()

    @work.handler
    @staticmethod
    def do(job: sf.Job) -> Any:
        return OUTCOMES[job.payload["do"]](job)


def fields(job: sf.Job) -> Any:
    return sf.Complete(
        {
            "id": job.id,
            "type": job.type,
            "state": job.state,
            "partition_key": job.partition_key,
            "payload": job.payload,
            "attributes": job.attributes,
            "attempts": job.attempts,
            "fencing_token": job.fencing_token,
            "has_lease": bool(job.lease_token) and bool(job.lease_deadline_ms),
            "correlation_id": job.correlation_id,
            "root_flow_id": job.root_flow_id,
            "payload_size": job.payload_size,
            "cancelled": job.cancelled,
            "workflow": job.workflow.__name__,
            "log": sf.job_log_fields(),
            "pid": os.getpid(),
        }
    )


OUTCOMES: dict[str, Any] = {
    "ok": lambda job: sf.Ok({"n": 1}),
    "ok_tuple": lambda job: ("ok", {"n": 1}),
    "err": lambda job: sf.Err("no"),
    "error_tuple": lambda job: ("error", "no"),
    "exception": raising,
    "noreply": lambda job: sf.NOREPLY,
    "transition": lambda job: sf.Transition(ContractFlow.parked, {"n": 2}),
    "transition_wrong": lambda job: sf.Transition("nowhere"),
    "complete": lambda job: sf.Complete(INSTANT),
    "later": lambda job: sf.RetryLater("later", in_ms=timedelta(hours=1)),
    "fail": lambda job: sf.Fail({"why": [1, b"2"]}),
    "none": lambda job: None,
    "unpackable": lambda job: sf.Complete({1, 2}),
    "fields": fields,
}


class AsyncFlow(sf.Workflow, type="async"):
    """Its handler is a coroutine."""

    queued = sf.state()

    @queued.handler
    @staticmethod
    async def do(job: sf.Job) -> Any:
        await asyncio.sleep(0)
        return sf.Complete({"log": sf.job_log_fields(), "thread": threading.get_ident()})


# ---- middleware ----


def outer(job: sf.Job, call_next: Any) -> Any:
    return _told("outer", call_next(job))


def inner(job: sf.Job, call_next: Any) -> Any:
    return _told("inner", call_next(job))


async def outer_async(job: sf.Job, call_next: Any) -> Any:
    return _told("outer", await call_next(job))


async def inner_async(job: sf.Job, call_next: Any) -> Any:
    return _told("inner", await call_next(job))


def _told(name: str, returned: Any) -> Any:
    if isinstance(returned, sf.Complete):
        return sf.Complete([*(returned.value or []), name])
    return returned


def plain_complete(job: sf.Job) -> Any:
    return sf.Complete([])


def refuse(job: sf.Job, call_next: Any) -> Any:
    raise OddError("not let through")


# ---- handlers that take their time; a test talks to them through files ----


def say(job: sf.Job, name: str, text: str = "") -> None:
    """Let the test see a file, whole."""
    folder = Path(job.payload["folder"])
    (folder / f".{job.id}").write_text(text)
    (folder / f".{job.id}").rename(folder / name)


def until_told(job: sf.Job) -> Any:
    """Tell the process, wait for the file "go", and complete."""
    say(job, f"{job.id}.{job.fencing_token}.begun", str(os.getpid()))
    while not (Path(job.payload["folder"]) / "go").exists():
        time.sleep(POLL_S)
    say(job, f"{job.id}.{job.fencing_token}.returned")
    return sf.Complete(job.fencing_token)


def until_cancelled(job: sf.Job) -> Any:
    """Tell the process, and wait until the job was given up."""
    say(job, f"{job.id}.{job.fencing_token}.begun", str(os.getpid()))
    while not job.cancelled:
        time.sleep(POLL_S)
    say(job, f"{job.id}.{job.fencing_token}.cancelled")
    return sf.Complete("too late")


def killed_once(job: sf.Job) -> Any:
    """Die by SIGKILL at the first delivery."""
    if job.fencing_token == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return sf.Complete(job.fencing_token)


def exits(job: sf.Job) -> Any:
    """Leave the process the polite way, at the first delivery."""
    if job.fencing_token == 1:
        raise SystemExit(3)
    return sf.Complete(job.fencing_token)


def hogs(job: sf.Job) -> Any:
    """Hold the interpreter for a while: one long call of C code after the other."""
    end_s = time.monotonic() + job.payload["seconds"]
    while time.monotonic() < end_s:
        sum(range(100_000))
    return sf.Complete()


def logs(job: sf.Job) -> Any:
    logging.getLogger("application").warning("working", extra=sf.job_log_fields())
    return sf.Complete()


class BriefFlow(sf.Workflow, type="brief"):
    """With leases that run out soon, and a limit to how long a handler may run."""

    queued = sf.state(lease_ms=400)
    limited = sf.state(lease_ms=600, max_run_ms=150)


class Celsius:
    """What only a codec can store."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees


class CelsiusCodec:
    """A codec that handler processes can make again."""

    def encode(self, obj: Any) -> bytes:
        return repr(obj.degrees if isinstance(obj, Celsius) else obj).encode()

    def decode(self, data: bytes) -> Any:
        text = data.decode()
        return Celsius(float(text)) if text.replace(".", "").isdigit() else text


def warmer(job: sf.Job) -> Any:
    return sf.Complete(Celsius(job.payload.degrees + 1))
