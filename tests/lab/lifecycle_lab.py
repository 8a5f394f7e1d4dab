"""A job of the state machine's tests, and the commands that bring it into each status."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from jos.core.lifecycle import (
    Admit,
    Cancel,
    Command,
    Completed,
    Exited,
    Expire,
    Preempt,
    Retry,
    Started,
    decide,
    new_job,
)
from jos.core.model import Job, JobFailure, JobSpec, Pipeline, RetryPolicy, Timeouts

NOW = datetime(2026, 4, 14, 10, 5, tzinfo=UTC)
BOOM = JobFailure(code="compute_failed", message="Indexes keep dying.", details={"index": 3})
IMPOSSIBLE = JobFailure(code="invalid_job", message="3 reference windows are fewer than n_neighbors, 5.")
PAGE = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text()

PIPELINE = Pipeline(
    pipeline_key="noop",
    pipeline_version="1.0.0",
    name="Noop",
    worker="noop:Noop",
    timeouts=Timeouts(queue=60, run=600),
    retry_policy=RetryPolicy(max_retries=2, backoff=5, backoff_max=8),
    default_config={"worker": {"parallelism": 1, "config": {}}},
    config_schema={"worker": {"type": "object"}},
    user_config_schema={"worker": {"type": "object"}},
    inputs={},
    outputs={},
)
SPEC = JobSpec(
    id="job_1",
    org_id="org_1",
    name="a job",
    pipeline=PIPELINE,
    parameters={"worker": {"parallelism": 1, "config": {}}},
    inputs=[],
    priority=7,
    created_at=NOW,
)


def walk(*commands: Command) -> Job:
    job = new_job(SPEC, NOW).job
    for command in commands:
        job = decide(job, command, moment(command)).job
    return job


def moment(command: Command) -> datetime:
    """A timeout is only heard once it has run out."""
    return NOW + timedelta(seconds=600 if isinstance(command, Expire) else 0)


PENDING: tuple[Command, ...] = ()
ADMITTED = (Admit("a", indexes=1),)
RUNNING = (*ADMITTED, Started("a", "node-1", 17))
PREEMPTED = (*RUNNING, Preempt())
COMPLETED = (*RUNNING, Completed("a"))
FAILED = (*RUNNING, Exited("a", IMPOSSIBLE, False))
CANCELLED = (*RUNNING, Cancel())  # its driver has not left yet
TIMED_OUT = (*RUNNING, Expire("run"))  # its driver has not left yet
RETRIED_EARLY = (*CANCELLED, Retry())  # its driver has not left yet
OUT_OF_RETRIES = (
    *(Admit("x"), Exited("x", BOOM, True), Admit("y"), Exited("y", BOOM, True)),
    *RUNNING,
)

# what happens: before -> command -> status, reason, capacity still held, events
