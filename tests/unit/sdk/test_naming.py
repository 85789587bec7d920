"""What crosses to a handler process by name, and what cannot."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from shardflow.flow.errors import InvalidArgument
from shardflow.sdk.executors.frames import (
    Finished,
    Stream,
    finished_of,
    frame_of,
    job_of,
    outcome_of_frame,
    read_by_parent,
    work_of,
)
from shardflow.sdk.executors.naming import (
    Main,
    Name,
    find,
    main_of_program,
    name_of,
    name_of_codec,
)
from shardflow.sdk.job import Job
from shardflow.sdk.outcome import (
    NOREPLY,
    Complete,
    Err,
    Fail,
    Ok,
    Outcome,
    Raised,
    RetryLater,
    Transition,
)
from support import handlers
from support.handlers import INSTANT, BriefFlow, Celsius, CelsiusCodec
from support.recording import a_leased_record


def test_functions_classes_and_what_is_in_classes_are_found_again() -> None:
    for thing in (handlers.until_told, BriefFlow, handlers.ContractFlow.do):
        assert find(name_of(thing, "handler")) is thing
    store: Any = SimpleNamespace(flow_create=None)
    assert name_of(BriefFlow.using(store), "workflow") == Name("support.handlers", "BriefFlow")


class Twin:
    pass


Other = type("Twin", (), {"__module__": __name__})


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (lambda job: None, "lambda"),
        (5, "neither a function nor a class"),
        (Other, "something else has that name|cannot find"),
    ],
)
def test_what_would_not_be_found_is_refused(thing: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        name_of(thing, "handler")


def test_a_codec_is_a_module_a_class_or_made_by_a_class() -> None:
    assert name_of_codec(None) is None
    assert name_of_codec(json) == Name("json")
    assert name_of_codec(CelsiusCodec) == Name("support.handlers", "CelsiusCodec")
    name = name_of_codec(CelsiusCodec())
    assert name is not None
    assert isinstance(find(name), CelsiusCodec)


def test_the_main_module_is_loaded_again_by_name_or_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main_of_program({"support.handlers"}) is None
    main: Any = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    main.__file__ = handlers.__file__
    main.__spec__ = None
    assert main_of_program({"__main__"}) == Main(None, handlers.__file__)
    main.__spec__ = SimpleNamespace(name="package.tool")
    assert main_of_program({"__main__"}) == Main("package.tool", None)
    for spec, file in ((SimpleNamespace(name="package.__main__"), "x"), (None, None)):
        main.__spec__, main.__file__ = spec, file
        with pytest.raises(InvalidArgument, match="in a module of their own"):
            main_of_program({"__main__"})


# ---- frames ----


def crossed(outcome: Outcome, codec: Any = None) -> Outcome:
    (body,) = Stream().feed(frame_of(finished_of(7, 0.5, outcome, codec)))
    finished = read_by_parent(body)
    assert isinstance(finished, Finished)
    assert (finished.number, finished.seconds) == (7, 0.5)
    return outcome_of_frame(finished, codec)


@pytest.mark.parametrize(
    "outcome",
    [
        Ok({"a": [1, b"2", INSTANT]}),
        Ok(),
        Err("no"),
        Raised({"exception": "ValueError"}),
        NOREPLY,
        Transition("parked", 1),
        Complete(None),
        RetryLater("later", 5),
        RetryLater(),
        Fail(["x"]),
    ],
    ids=repr,
)
def test_an_outcome_crosses_as_it_is(outcome: Outcome) -> None:
    assert crossed(outcome) == outcome
    assert type(crossed(outcome)) is type(outcome)


def test_states_and_exceptions_cross_as_names_and_words() -> None:
    assert crossed(Transition(BriefFlow.limited)) == Transition("limited")
    reason: Any = crossed(Err(ValueError("no funds")))
    assert reason.reason["message"] == "no funds"


@pytest.mark.parametrize(
    "outcome",
    [Ok({1}), RetryLater("x", in_ms=-1), Transition(5)],  # type: ignore[arg-type]
    ids=repr,
)
def test_what_cannot_cross_is_the_handlers_error(outcome: Outcome) -> None:
    error: Any = crossed(outcome)
    assert isinstance(error, Err)
    assert error.reason["exception"] == "InvalidArgument"


def test_values_cross_by_the_codec_of_the_store() -> None:
    codec = CelsiusCodec()
    warm: Any = crossed(Ok(Celsius(20.5)), codec)
    assert warm.value.degrees == 20.5
    job = Job(BriefFlow, a_leased_record(payload=Celsius(3.5), values={"v": Celsius(4.5)}))
    again = job_of(work_of(1, 0, job, codec), BriefFlow, codec)
    assert (again.payload.degrees, again.values["v"].degrees) == (3.5, 4.5)
    assert (again.id, again.state, again.lease_token) == (job.id, job.state, job.lease_token)


def test_frames_are_cut_wherever_they_were_torn() -> None:
    data = b"".join(frame_of(finished_of(n, 0.0, Ok("x" * n), None)) for n in range(20))
    stream = Stream()
    bodies = [body for at in range(len(data)) for body in stream.feed(data[at : at + 1])]
    assert len(bodies) == 20
    assert [outcome_of_frame(read_by_parent(b), None) for b in bodies] == [  # type: ignore[arg-type]
        Ok("x" * n) for n in range(20)
    ]
