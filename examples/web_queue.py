"""A web application of several processes that put work into one store, and a worker that does it.

    python3 examples/web_queue.py serve data --port 8000 --workers 4
    python3 examples/web_queue.py work data
    curl -d "some text" localhost:8000/jobs/job-1     accept a job; again with the same id: the same
    curl localhost:8000/jobs/job-1                    look what has become of it

Every process opens the same directory. The first one hosts the store, the others attach to it; when
the host is restarted or killed, one of the others takes its place, and requests that come meanwhile
wait. No process has a part of its own to play, so the server may start and stop them as it likes.
Needs uvicorn: `pip install shardflow[web]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import shardflow as sf

DIRECTORY = "WEB_QUEUE_DIRECTORY"
"""How the server's processes are told where the store is: each imports this file by itself."""
TRIES_MAX = 5
BODY_BYTES_MAX = 64 * 1024

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class ShoutFlow(sf.Workflow, type="shout"):
    """The work: one state, whose result is what the job asks for."""

    queued = sf.state()

    @queued.handler
    @staticmethod
    def shout(job: sf.Job) -> sf.Ok:
        """Say it loud."""
        return sf.Ok(job.payload.upper())


class Application:
    """A plain ASGI application. It opens the store when the server starts it, not when imported."""

    def __init__(self) -> None:
        self._opened: sf.Store | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or begin and end with the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            status, told = await self._answer(scope, receive)
            await respond(send, status, told)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                # Opening waits for the shards; the loop need not.
                self._opened = await asyncio.to_thread(sf.open, os.environ[DIRECTORY])
                await send({"type": "lifespan.startup.complete"})
            else:
                await asyncio.to_thread(self._store.close)
                await send({"type": "lifespan.shutdown.complete"})
                return

    @property
    def _store(self) -> sf.Store:
        assert self._opened is not None, "run the server with lifespan on"
        return self._opened

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, dict[str, Any]]:
        match scope["method"], scope["path"].strip("/").split("/"):
            case "GET", ["health"]:
                return 200, {"pid": os.getpid(), "role": self._store.role}
            case "POST", ["jobs", job_id]:
                body = await body_of(receive)
                if body is None:
                    return 413, {"error": f"more than {BODY_BYTES_MAX} bytes"}
                return await self._told(self._accept(job_id, body.decode(errors="replace")))
            case "GET", ["jobs", job_id]:
                return await self._told(self._look_up(job_id))
        return 404, {"error": "no such place"}

    async def _accept(self, job_id: str, text: str) -> tuple[int, dict[str, Any]]:
        for _ in range(TRIES_MAX):
            try:
                # Idempotent, so that it may be repeated: here, and by the client.
                record = await self._store.aio.flow_create(
                    job_id, type="shout", payload=text, idempotent=True
                )
            except sf.OutcomeUnknown:
                continue
            return 202, {"id": record.id, "state": record.logical_state}
        return 503, {"error": "try again"}

    async def _look_up(self, job_id: str) -> tuple[int, dict[str, Any]]:
        record = await self._store.aio.flow_get(job_id, payload=True)
        if record is None:
            return 404, {"error": f"no job {job_id}"}
        return 200, {"id": record.id, "state": record.logical_state, "result": record.result}

    @staticmethod
    async def _told(
        answer: Awaitable[tuple[int, dict[str, Any]]],
    ) -> tuple[int, dict[str, Any]]:
        try:
            return await answer
        except sf.InvalidArgument as error:
            return 400, {"error": str(error)}
        except sf.IdempotencyConflict as error:
            return 409, {"error": str(error)}
        except sf.FlowError as error:
            return 503, {"error": str(error), "retry_after_ms": error.retry_after_ms}


async def body_of(receive: Receive) -> bytes | None:
    """Return the body of a request; None if it is too large."""
    body, is_over = b"", False
    while not is_over:
        message = await receive()
        body += message.get("body", b"")
        is_over = not message.get("more_body", False)
        if len(body) > BODY_BYTES_MAX:
            return None
    return body


async def respond(send: Send, status: int, told: dict[str, Any]) -> None:
    """Answer with JSON."""
    headers = [(b"content-type", b"application/json")]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})


app = Application()
"""What the server imports."""


def serve(directory: Path, host: str, port: int, workers: int) -> None:
    """Run the web server until it is interrupted."""
    import uvicorn  # the worker does without

    os.environ[DIRECTORY] = str(directory.absolute())
    uvicorn.run(
        f"{Path(__file__).stem}:app",
        app_dir=str(Path(__file__).resolve().parent),
        host=host,
        port=port,
        workers=workers,
        lifespan="on",
        access_log=False,
        log_level="warning",
    )


def work(directory: Path) -> None:
    """Do what has been accepted, until SIGTERM or Ctrl-C."""
    with sf.open(directory) as store:
        sf.Worker(ShoutFlow.using(store), concurrency=4).run()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    server = verbs.add_parser("serve", help="accept jobs over HTTP")
    server.add_argument("directory", type=Path)
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=8000)
    server.add_argument("--workers", type=int, default=4, help="processes")
    worker = verbs.add_parser("work", help="do the jobs")
    worker.add_argument("directory", type=Path)
    given = parser.parse_args()
    if given.verb == "serve":
        serve(given.directory, given.host, given.port, given.workers)
    else:
        work(given.directory)


if __name__ == "__main__":
    main()
