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
from shardflow.flow.record import FlowRecord, HistoryEvent
from shardflow.sdk.opening import default_store
from shardflow.sdk.opening import open_store as open
from shardflow.sdk.requests.reading import Page
from shardflow.sdk.requests.valuing import OmittedValue
from shardflow.sdk.store import Store

__version__ = version("shardflow")

__all__ = [
    "NEVER",
    "AmbiguousFlow",
    "Backoff",
    "BatchAborted",
    "BatchError",
    "ChildGroupConflict",
    "CorruptLog",
    "FlowAlreadyExists",
    "FlowError",
    "FlowNotFound",
    "FlowRecord",
    "FlowTerminal",
    "HistoryEvent",
    "IdempotencyConflict",
    "InvalidArgument",
    "MaxActiveExceeded",
    "OmittedValue",
    "OutcomeUnknown",
    "Overloaded",
    "Page",
    "Retry",
    "ShardUnavailable",
    "StaleLease",
    "StalePolicyGeneration",
    "Store",
    "StoreClosed",
    "StoreConfigError",
    "StoreLocked",
    "StoreNotRunning",
    "ValueConflict",
    "WrongState",
    "__version__",
    "default_store",
    "open",
]
