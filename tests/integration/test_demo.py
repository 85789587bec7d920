"""The demo, as a user runs it: in a process of its own, with a kill in the middle."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "examples" / "stdlib_index.py"
FILES, KILL_AFTER = 60, 20
TIMEOUT_S = 120


def demo(data: Path, *arguments: str) -> str:
    """Run the demo on a few files; return what it said."""
    command = [sys.executable, str(DEMO), "--data", str(data), "--limit", str(FILES), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, cwd=data
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    return done.stdout


def digest(said: str) -> str:
    found = re.search(rf"digest of all {FILES} files: (\w+)", said)
    assert found is not None, said
    return found[1]


def test_a_killed_run_continues_and_ends_with_the_summary_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    said = demo(tmp_path, "--kill-after", str(KILL_AFTER))
    assert "killed, in the middle of its work" in said
    continued = re.search(rf"continuing: (\d+) of {FILES} done already", said)
    assert continued is not None, said
    assert KILL_AFTER <= int(continued[1]) < FILES
    assert "\nsame summary: " in said


def test_a_second_run_shows_the_summary_without_working_again(tmp_path: Path) -> None:
    first = demo(tmp_path)
    assert "continuing" not in first
    second = demo(tmp_path)
    assert f"nothing left to do: {FILES} of {FILES} are done" in second
    assert digest(second) == digest(first)
    assert digest(demo(tmp_path, "--fresh")) == digest(first)
