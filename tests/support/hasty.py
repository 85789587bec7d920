"""Shard processes whose upkeep never rests: tiny segments, merges, checkpoints and cold flows.

Importing this in a shard's process makes it so, if the environment says so.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from shardflow.actors import pace, process, supervisor
from shardflow.flow.engine import choice, project, upkeep
from shardflow.flow.index import table
from shardflow.flow.log import log as logs
from shardflow.flow.settings import Settings

HASTY = "HASTY_UPKEEP"
TESTS = str(Path(__file__).parents[1])


def hasty_shards(patch: pytest.MonkeyPatch) -> None:
    """Let all shards that this process starts be so."""
    patch.setenv(HASTY, "1")
    load = f"sys.path.append({TESTS!r}); import {__name__}; main()"
    patch.setattr(supervisor, "_BOOT", supervisor._BOOT.replace("main()", load))


def _settings(**given: object) -> Settings:
    return replace(Settings(**given), cold_flows_min=5)  # type: ignore[arg-type]


def install(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(process, "Settings", _settings)
    patch.setattr(logs, "SEGMENT_BYTES", 20_000)
    patch.setattr(logs, "SEGMENT_GROW_BYTES", 16_384)
    patch.setattr(choice, "SEGMENT_BYTES", 200_000)
    patch.setattr(upkeep, "SEAL_BYTES_MIN", 8_000)
    patch.setattr(choice, "MERGE_FILES_MIN", 3)
    patch.setattr(upkeep, "CHECKPOINT_LOG_BYTES", 40_000)
    patch.setattr(upkeep, "CHECKPOINT_GROWTH_RATIO", 0)
    patch.setattr(table, "TABLE_WALK_FLOWS", 20)
    patch.setattr(project, "COLD_BATCH_FLOWS", 5)
    patch.setattr(pace, "UPKEEP_IDLE_SECONDS", 0.005)
    patch.setattr(pace, "UPKEEP_QUIET_SECONDS", 0.0)


if HASTY in os.environ:
    install(pytest.MonkeyPatch())
