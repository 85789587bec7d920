"""Programs with workers: signals, stops past a lease, sudden ends, and where handlers may be."""

from __future__ import annotations

import ast
import os
import signal
from pathlib import Path

import pytest

import shardflow as sf
from support.processes import eventually, is_running, paused, running

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    "PYTHONWARNINGS": "error",
}

PROGRAM = """
import sys
import shardflow as sf
from support import handlers

with sf.open(sys.argv[1], shards=1, role=sys.argv[4] if sys.argv[4:] else "auto") as store:
    flow = handlers.BriefFlow.using(store)
    flow.create(id="f1", payload={"folder": sys.argv[2]})
    worker = sf.Worker(
        flow, states="queued", handler=handlers.until_told, concurrency=1, interval_ms=10,
        executor=sys.argv[3],
    )
    print("runs", flush=True)
    worker.run()
    print("stats", worker.stats(), flush=True)
    print("history", [event.name for event in store.flow_history("f1")], flush=True)
"""


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_one_signal_drains_a_program_and_a_second_ends_it_at_once(
    tmp_path: Path, executor: str
) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    arguments = (script, tmp_path / "data", tmp_path, executor)
    with running(*arguments, stderr=tmp_path / "err", env=ENVIRONMENT) as program:
        eventually((tmp_path / "f1.1.begun").exists, "it works")
        program.process.send_signal(signal.SIGTERM)
        program.process.send_signal(signal.SIGINT)
        history = program.wait_for_line("history ")
        assert program.wait() == 0, program.stderr
    assert history == "['created', 'claimed', 'released']"


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_late_commit_of_a_stopped_worker_is_refused_and_counted(
    tmp_path: Path, executor: str
) -> None:
    script, data = tmp_path / "program.py", tmp_path / "data"
    script.write_text(PROGRAM)
    arguments = (script, data, tmp_path, executor, "attach")
    with (
        sf.open(data, shards=1, role="host") as store,
        running(*arguments, stderr=tmp_path / "err", env=ENVIRONMENT) as program,
    ):
        eventually((tmp_path / "f1.1.begun").exists, "it works")
        with paused(program.pid):
            (record,) = eventually(
                lambda: store.flow_claim_due("brief", worker="w2", lease_ms=60_000),
                "its lease runs out",
            )
            assert record.fencing_token == 2
            (tmp_path / "go").touch()
        eventually((tmp_path / "f1.1.returned").exists, "the handler returns, too late")
        program.process.send_signal(signal.SIGTERM)
        stats = ast.literal_eval(program.wait_for_line("stats "))
        assert program.wait() == 0, program.stderr
        # It had every chance to spoil what the other holder does, and has not.
        assert [event.name for event in store.flow_history("f1")].count("completed") == 0
        store.flow_complete("f1", record.lease_token, fencing_token=2, result="the other's")
        done = store.flow_get("f1", payload=True)
        assert done is not None and done.result == "the other's"
        assert [event.name for event in store.flow_history("f1")].count("completed") == 1
    assert (stats["stale"], stats["ok"], stats["claimed"]) == (1, 0, 1)


def test_a_worker_that_is_killed_takes_its_handler_processes_along(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    arguments = (script, tmp_path / "data", tmp_path, "process")
    with running(*arguments, stderr=tmp_path / "err", env=ENVIRONMENT) as program:
        eventually((tmp_path / "f1.1.begun").exists, "it works")
        pid = int((tmp_path / "f1.1.begun").read_text())
        program.kill()
        eventually(lambda: not is_running(pid), "it ends with its worker")


FORKING = """
import os, sys, time
import shardflow as sf
from support import handlers

with sf.open(sys.argv[1], shards=1) as store:
    flow = handlers.BriefFlow.using(store)
    worker = sf.Worker(
        flow, states="queued", handler=handlers.until_told, concurrency=2, executor="process",
    ).start()
    flow.create(id="f1", payload={"folder": sys.argv[2]})
    while len(worker._executor.pids) < 2 or worker.stats()["claimed"] < 1:
        time.sleep(0.01)
    pids = worker._executor.pids
    child = os.fork()
    if child == 0:
        time.sleep(600)  # It is killed by the test, and has copies of all that was open.
        os._exit(0)
    print("forked", child, *pids, flush=True)
    time.sleep(600)
"""


def test_handler_processes_end_with_their_worker_although_its_forked_child_lives_on(
    tmp_path: Path,
) -> None:
    script = tmp_path / "program.py"
    script.write_text(FORKING)
    arguments = (script, tmp_path / "data", tmp_path)
    with running(*arguments, stderr=tmp_path / "err", env=ENVIRONMENT) as program:
        child, *pids = map(int, program.wait_for_line("forked ").split())
        try:
            eventually((tmp_path / "f1.1.begun").exists, "one is busy, the other idle")
            program.kill()
            eventually(lambda: not any(map(is_running, pids)), "they end with their worker")
            assert is_running(child)
        finally:
            os.kill(child, signal.SIGKILL)


# ---- where handlers may be defined ----

SCRIPT = """
import sys
import shardflow as sf

class ScriptFlow(sf.Workflow, type="script"):
    queued = sf.state()

    @queued.handler
    def work(job):
        return sf.Complete([__name__, sys.argv[1:]])

def main():
    with sf.open(sys.argv[1], shards=1) as store:
        ScriptFlow.create(id="f1")
        with sf.Worker(ScriptFlow, executor="process", concurrency=1) as worker:
            while store.flow_get("f1").state != "completed":
                if worker._stopping.wait(0.01):
                    break
        print("result", store.flow_get("f1", payload=True).result, flush=True)

{call}
"""
GUARDED = 'if __name__ == "__main__":\n    main()'


def test_a_workflow_may_be_defined_in_the_script_itself(tmp_path: Path) -> None:
    script, data = tmp_path / "program.py", tmp_path / "data"
    script.write_text(SCRIPT.replace("{call}", GUARDED))
    with running(script, data, stderr=tmp_path / "err", env=ENVIRONMENT) as program:
        assert program.wait_for_line("result ") == f"['__mp_main__', ['{data}']]"
        assert program.wait() == 0


def test_a_script_that_works_when_it_is_loaded_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(SCRIPT.replace("{call}", "main()").replace("sys.argv[1], ", "next_data(), "))
    text = script.read_text().replace(
        "def main():",
        "import tempfile\ndef next_data():\n    return tempfile.mkdtemp()\n\ndef main():",
    )
    script.write_text(text)
    with running(script, tmp_path, stderr=tmp_path / "err", env=ENVIRONMENT) as program:
        assert program.wait() == 1
        assert 'under `if __name__ == "__main__":`' in program.stderr


def test_a_command_line_has_no_module_to_load_again(tmp_path: Path) -> None:
    text = SCRIPT.replace("{call}", "main()")
    with running(
        "-c", text, tmp_path / "data", stderr=tmp_path / "err", env=ENVIRONMENT
    ) as program:
        assert program.wait() == 1
        assert "define them in a module of their own" in program.stderr


# ---- the example ----


def test_the_example_of_a_pool_runs(tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "worker_pool.py"
    arguments = (example, "--stretches", "6", "--processes", "2")
    with running(*arguments, stderr=tmp_path / "err", env=ENVIRONMENT) as program:
        assert program.wait() == 0, program.stderr
        assert program.lines()[-1].startswith("6 of 6 stretches, 11,221 primes below 121,000")
