"""Which job a line of the log is about: the fields of the job that the caller works on."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, Final

from .job import Job

JOB_FIELDS: Final = (
    "flow_id",
    "flow_type",
    "flow_state",
    "partition_key",
    "attempts",
    "worker",
)
current_job: Final[ContextVar[Job | None]] = ContextVar("shardflow_job", default=None)
"""Set by a worker around each handler and its middleware, in every executor."""


def job_log_fields() -> dict[str, Any]:
    """Return what names the job that the calling handler works on; {} outside of handlers.

        logger.info("charged", extra=sf.job_log_fields())
        logger = logging.LoggerAdapter(logger, sf.job_log_fields())

    The fields are flow_id, flow_type, flow_state, partition_key, attempts and worker.
    """
    job = current_job.get()
    return {} if job is None else fields_of(job)


class JobLogFilter(logging.Filter):
    """Adds the fields of `job_log_fields` to every record that passes; None outside of handlers.

        handler = logging.StreamHandler()
        handler.addFilter(sf.JobLogFilter())
        handler.setFormatter(logging.Formatter("%(flow_id)s %(attempts)s %(message)s"))

    Fields that a record has already, by `extra`, stay. In a process executor the handlers of jobs
    log in processes of their own: configure logging where their module is imported.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields and let the record pass."""
        fields = job_log_fields()
        for name in JOB_FIELDS:
            if not hasattr(record, name):
                setattr(record, name, fields.get(name))
        return True


def fields_of(job: Job) -> dict[str, Any]:
    """Return what names a job in the log."""
    return {
        "flow_id": job.id,
        "flow_type": job.type,
        "flow_state": job.state,
        "partition_key": job.partition_key,
        "attempts": job.attempts,
        "worker": getattr(job.record, "lease_owner", None),
    }
