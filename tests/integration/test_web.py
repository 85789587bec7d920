"""examples/web_queue.py: four server processes and a worker on one store, with real requests."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import shardflow as sf
from support.processes import Program, eventually, running

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "web_queue.py"
WORKERS = 4
HANDS = 8
JOBS_EACH = 40
REPEATED = 5
"""Every so many requests are sent a second time, as by a client that lost the answer."""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
        return found


@pytest.fixture
def server(path: Path, port: int, tmp_path: Path) -> Iterator[Program]:
    arguments = ("serve", path, "--port", str(port), "--workers", str(WORKERS))
    with running(EXAMPLE, *arguments, stderr=tmp_path / "server") as server:
        yield server


def fresh_connections() -> httpx.Client:
    """Return a client each of whose requests goes to whichever process takes the connection."""
    return httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), timeout=40, verify=False)


def health(port: int) -> dict[int, str]:
    """Return pid → role of the server's processes, as far as requests have met them."""
    found: dict[int, str] = {}
    with fresh_connections() as client:
        for _ in range(40):
            try:
                told = client.get(f"http://127.0.0.1:{port}/health").json()
            except httpx.TransportError:
                break
            found[told["pid"]] = told["role"]
    return found


def all_serve(port: int) -> dict[int, str] | None:
    found = health(port)
    return found if len(found) == WORKERS else None


class Hand(threading.Thread):
    """A client that sends one job after the other until each is accepted."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__()
        self.url = f"http://127.0.0.1:{port}/jobs"
        self.ids = [f"job-{number}-{part}" for part in range(JOBS_EACH)]
        self.refusals: Counter[str] = Counter()
        self.accepted = 0
        self.errors: list[BaseException] = []

    def run(self) -> None:
        try:
            with fresh_connections() as client:
                for part, job_id in enumerate(self.ids):
                    self.send(client, job_id)
                    if part % REPEATED == 0:
                        self.send(client, job_id)
                    self.accepted += 1
        except BaseException as error:
            self.errors.append(error)

    def send(self, client: httpx.Client, job_id: str) -> None:
        deadline_s = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline_s, (job_id, self.refusals)
            try:
                answer = client.post(f"{self.url}/{job_id}", content=f"text of {job_id}")
            except httpx.TransportError as error:
                self.refusals[type(error).__name__] += 1
                time.sleep(0.05)
                continue
            if answer.status_code == 202:
                assert answer.json()["id"] == job_id
                return
            assert answer.status_code == 503, answer.text
            self.refusals["503"] += 1


def goes_on(hands: list[Hand], since: int) -> bool:
    """Whether more was accepted than since then, or there is nothing left to send."""
    accepted = sum(hand.accepted for hand in hands)
    return accepted > since + 40 or not any(hand.is_alive() for hand in hands)


def get(port: int, job_id: str) -> Any:
    return httpx.get(f"http://127.0.0.1:{port}/jobs/{job_id}", timeout=40).json()


@pytest.mark.timeout(240)
def test_every_accepted_request_becomes_one_flow_although_hosts_are_killed(
    server: Program, path: Path, port: int, tmp_path: Path
) -> None:
    roles = eventually(lambda: all_serve(port), "not all processes serve")
    assert roles is not None
    assert sorted(roles.values()) == ["attached"] * (WORKERS - 1) + ["host"]
    hands = [Hand(port, number) for number in range(HANDS)]
    with running(EXAMPLE, "work", path, stderr=tmp_path / "worker") as worker:
        for hand in hands:
            hand.start()
        for _ in range(2):
            since = sum(hand.accepted for hand in hands)
            eventually(lambda since=since: goes_on(hands, since), "nothing is accepted")  # type: ignore[misc]
            host = int((path / "OWNER").read_text())
            if host != worker.pid:
                os.kill(host, signal.SIGKILL)
                eventually(lambda host=host: not psutil.pid_exists(host), "it is not reaped")  # type: ignore[misc]
                eventually(lambda: (path / "OWNER").read_text().strip(), "nobody takes over")
        for hand in hands:
            hand.join()
        assert [hand.errors for hand in hands] == [[]] * HANDS
        job_id = random.choice(hands[0].ids)
        eventually(
            lambda: get(port, job_id).get("result") == f"TEXT OF {job_id}".upper(),
            "the job is not done",
        )
        with sf.open(path) as store:
            assert store.role == "attached"
            check(store, [job_id for hand in hands for job_id in hand.ids])
        worker.process.terminate()
        assert worker.wait() == 0, worker.stderr
    eventually(lambda: all_serve(port), "the server's processes are not replaced")
    server.process.terminate()
    server.wait()
    assert "Traceback" not in server.stderr, server.stderr
    print(sum((hand.refusals for hand in hands), Counter()))


def check(store: sf.Store, ids: list[str]) -> None:
    """Find each job as one flow, done once."""
    eventually(lambda: store.flow_info("shout")["completed"] == len(ids), "jobs are left", 60)
    flows: list[sf.FlowRecord] = []
    after = None
    while True:
        page = store.flow_list("shout", count=1_000, after=after)
        flows += page
        if (after := page.after) is None:
            break
    assert Counter(record.id for record in flows) == Counter(ids)
    for record in flows:
        names = [event.name for event in store.flow_history(record.id)]
        assert names.count("created") == names.count("completed") == 1
        done = store.flow_get(record.id, payload=True)
        assert done is not None and done.result == f"text of {record.id}".upper()


def test_the_example_refuses_what_it_cannot_take(server: Program, port: int) -> None:
    eventually(lambda: all_serve(port), "not all processes serve")
    url = f"http://127.0.0.1:{port}"
    assert httpx.post(f"{url}/jobs/a", content="one").status_code == 202
    assert httpx.post(f"{url}/jobs/a", content="one").status_code == 202
    assert httpx.post(f"{url}/jobs/a", content="two").status_code == 409
    assert httpx.post(f"{url}/jobs/b", content="x" * 100_000).status_code == 413
    assert httpx.post(f"{url}/jobs/{'n' * 600}", content="x").status_code == 400
    assert httpx.get(f"{url}/jobs/b").status_code == 404
    assert httpx.get(f"{url}/elsewhere").status_code == 404
    assert httpx.get(f"{url}/jobs/a").json() == {"id": "a", "state": "queued", "result": None}
