"""What a host writes into run/, and what is read there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardflow.actors.notices import HostFacts, Notices
from shardflow.flow.errors import (
    CorruptLog,
    FlowError,
    ShardUnavailable,
    StoreConfigError,
    StoreLocked,
)
from shardflow.flow.settings import Settings

FACTS = HostFacts(12, Settings(retention_ms=5), sync=True, manual=False, in_process=False)


@pytest.fixture
def notices(tmp_path: Path) -> Notices:
    found = Notices(tmp_path)
    found.renew(FACTS)
    return found


def test_what_a_host_tells_is_read_as_it_was_written(notices: Notices, tmp_path: Path) -> None:
    assert notices.facts() == FACTS
    token = notices.renew(msgspec.structs.replace(FACTS, pid=13))
    assert notices.token() == token
    assert notices.facts().pid == 13
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"token", "host.json"}


def test_each_host_has_another_token(notices: Notices) -> None:
    assert len({notices.renew(FACTS) for _ in range(10)}) == 10


def test_nothing_is_there_before_a_host_was(tmp_path: Path) -> None:
    notices = Notices(tmp_path)
    for ask in (notices.facts, notices.token):
        with pytest.raises(OSError):
            ask()
    assert notices.why_down(0) is None


def test_a_torn_notice_is_named(notices: Notices, tmp_path: Path) -> None:
    (tmp_path / "run" / "host.json").write_text("{")
    with pytest.raises(StoreConfigError, match=r"host\.json") as caught:
        notices.facts()
    assert caught.value.path == str(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        CorruptLog("damaged", shard=1, path="/p", offset=7),
        ShardUnavailable("no start", shard=1, reason="locked"),
        StoreConfigError("frozen", path="/p"),
    ],
)
def test_why_a_shard_is_down_reaches_others_as_it_was(notices: Notices, error: FlowError) -> None:
    notices.put_down(1, error)
    found = notices.why_down(1)
    assert found is not None and type(found) is type(error)
    assert (str(found), found._fields) == (str(error), error._fields)
    assert notices.why_down(0) is None
    notices.put_up(1)
    notices.put_up(1)
    assert notices.why_down(1) is None


def test_what_a_former_host_said_of_its_shards_is_forgotten(notices: Notices) -> None:
    notices.put_down(0, ShardUnavailable("no start"))
    notices.renew(FACTS)
    assert notices.why_down(0) is None


@pytest.mark.parametrize(
    ("change", "asked", "kind", "says"),
    [
        ({}, {}, None, ""),
        ({"sync": True}, {"sync": False}, None, ""),
        ({"sync": False}, {"sync": False}, None, ""),
        ({"manual": True}, {"manual": True}, None, ""),
        ({"sync": False}, {}, StoreConfigError, '"relaxed", and durability="sync"'),
        ({"manual": True}, {}, StoreConfigError, "a manual clock, and this process gave none"),
        ({}, {"manual": True}, StoreConfigError, "no manual clock, and this process gave one"),
        ({"protocol": 9}, {}, StoreConfigError, "protocol 9"),
        ({"in_process": True}, {}, StoreLocked, "in_process"),
    ],
)
def test_only_who_fits_the_host_may_attach(
    tmp_path: Path, change: dict[str, Any], asked: dict[str, bool], kind: Any, says: str
) -> None:
    facts = msgspec.structs.replace(FACTS, **change)
    wanted = {"sync": True, "manual": False, **asked}
    if kind is None:
        facts.check(tmp_path, **wanted)
        return
    with pytest.raises(kind, match=says) as caught:
        facts.check(tmp_path, **wanted)
    assert "process 12" in str(caught.value)
    assert caught.value.path == str(tmp_path)
