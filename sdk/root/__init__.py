"""Durable queues and state-machine workflows in one directory: the public names of shardflow.

This folder is installed as `shardflow` itself, beside the rooms `actors`, `flow` and `sdk`.
Imports here are absolute, so that they mean the same wherever a tool reads this file.
"""

from __future__ import annotations

from importlib.metadata import version

from shardflow.flow.errors import (
    AmbiguousFlow,
    BatchAborted,
    BatchError,
    ChildGroupConflict,
    CorruptLog,
    FlowAlreadyExists,
    FlowError,
    FlowNotFound,
    FlowTerminal,
    IdempotencyConflict,
    InvalidArgument,
    MaxActiveExceeded,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
    StaleLease,
    StalePolicyGeneration,
    StoreClosed,
    StoreConfigError,
    StoreLocked,
    StoreNotRunning,
    ValueConflict,
    WrongState,
)
from shardflow.flow.limits import NEVER
from shardflow.flow.policy import Backoff, Retry
from shardflow.flow.record import ChildGroup, FlowRecord, HistoryEvent
from shardflow.sdk.childspec import ChildSpec
from shardflow.sdk.codecs import Codec
from shardflow.sdk.dsl import State, complete, fail, retry_or, state
from shardflow.sdk.flowstore import FlowStore
from shardflow.sdk.job import Job
from shardflow.sdk.logs import JobLogFilter, job_log_fields
from shardflow.sdk.opening import default_store
from shardflow.sdk.opening import open_store as open
from shardflow.sdk.outcome import NOREPLY, Complete, Err, Fail, Ok, RetryLater, Transition
from shardflow.sdk.pool import WorkerPool, WorkerStatus
from shardflow.sdk.requests.reading import Page
from shardflow.sdk.requests.valuing import OmittedValue
from shardflow.sdk.store import Store
from shardflow.sdk.worker import Worker
from shardflow.sdk.workflow import Workflow

__version__ = version("shardflow")

__all__ = [
    "NEVER",
    "NOREPLY",
    "AmbiguousFlow",
    "Backoff",
    "BatchAborted",
    "BatchError",
    "ChildGroup",
    "ChildGroupConflict",
    "ChildSpec",
    "Codec",
    "Complete",
    "CorruptLog",
    "Err",
    "Fail",
    "FlowAlreadyExists",
    "FlowError",
    "FlowNotFound",
    "FlowRecord",
    "FlowStore",
    "FlowTerminal",
    "HistoryEvent",
    "IdempotencyConflict",
    "InvalidArgument",
    "Job",
    "JobLogFilter",
    "MaxActiveExceeded",
    "Ok",
    "OmittedValue",
    "OutcomeUnknown",
    "Overloaded",
    "Page",
    "Retry",
    "RetryLater",
    "ShardUnavailable",
    "StaleLease",
    "StalePolicyGeneration",
    "State",
    "Store",
    "StoreClosed",
    "StoreConfigError",
    "StoreLocked",
    "StoreNotRunning",
    "Transition",
    "ValueConflict",
    "Worker",
    "WorkerPool",
    "WorkerStatus",
    "Workflow",
    "WrongState",
    "__version__",
    "complete",
    "default_store",
    "fail",
    "job_log_fields",
    "open",
    "retry_or",
    "state",
]
