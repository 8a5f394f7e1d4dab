"""The state machine of a job: the only place where a status changes.

`decide(job, command, now)` looks (status, command) up in the TABLE of jos.core.transitions and gives the changed job
together with the events that tell of the change; the store writes both at once. Pure: the time is passed in, and
effects (starting and stopping drivers) are the controller's, which looks at what is and not at what happened.
May import: stdlib, jos.core. Tests: tests/unit/test_lifecycle*.py. For people: docs/lifecycle.md.

Three answers besides a change: the token of an attempt that is over raises StaleAttempt (its sender must stop);
a command that was applied already changes nothing; everything else that is not in TABLE raises InvalidTransition.

Who lets capacity go. The driver's last word (Completed, Exited, Drained) is sent once its indexes are gone, so it
releases at once and the next job need not wait until a launcher has noticed; DriverGone releases when no last word
came. Cancel, Preempt and Expire release nothing: the driver still runs. A driver that speaks its last word and then
hangs has no live job any more, and the controller stops it.
"""

from __future__ import annotations

from datetime import datetime

from jos.core.commands import (
    Admit,
    Cancel,
    Command,
    Completed,
    Drained,
    DriverGone,
    Exited,
    Expire,
    Grow,
    Hold,
    LastWord,
    OfAttempt,
    Preempt,
    Reason,
    Recall,
    Retry,
    Shrink,
    Started,
    Taken,
    Waits,
)
from jos.core.errors import StaleAttempt
from jos.core.model import Attempt, Job, JobSpec, Status
from jos.core.transitions import TABLE, TIMEOUT_REASON, Transition, backoff, draft, invalid, overdue

__all__ = [
    "TABLE",
    "Admit",
    "Cancel",
    "Command",
    "Completed",
    "Drained",
    "DriverGone",
    "Exited",
    "Expire",
    "Grow",
    "Hold",
    "LastWord",
    "OfAttempt",
    "Preempt",
    "Reason",
    "Recall",
    "Retry",
    "Shrink",
    "Started",
    "Taken",
    "Transition",
    "Waits",
    "backoff",
    "decide",
    "new_job",
    "overdue",
    "recalled",
]


def new_job(spec: JobSpec, now: datetime, queue: str | None = None) -> Transition:
    """The record of a job that was just asked for (or is being rebuilt from its `job.json`). `queue`: where the
    routes send it; default: the pipeline's own; "": no controller is to admit it, a driver admits itself."""
    job = Job(
        id=spec.id,
        org_id=spec.org_id,
        name=spec.name,
        pipeline_type=spec.pipeline.pipeline_type,
        pipeline_key=spec.pipeline.pipeline_key,
        pipeline_version=spec.pipeline.pipeline_version,
        parameters=spec.parameters,
        priority=spec.priority,
        queue=next(q for q in (queue, spec.queue, spec.pipeline.queue) if q is not None),
        resources=spec.pipeline.resources,
        parallelism=spec.parallelism,
        tracked_inputs=sum(source.tracked for source in spec.inputs),
        reason=Reason.WAITING_FOR_CAPACITY.value,
        timeouts=spec.pipeline.timeouts,
        retry_policy=spec.pipeline.retry_policy,
        created_at=spec.created_at,
        updated_at=now,
        queued_at=now,
    )
    pipeline = f"{job.pipeline_key} {job.pipeline_version}"
    return Transition(job, (draft(now, "job.created", f"Created to run {pipeline} on {len(spec.inputs)} inputs."),))


def decide(job: Job, command: Command, now: datetime) -> Transition:
    """What `command` makes of `job`. Raises StaleAttempt or InvalidTransition; changes nothing itself."""
    name = type(command).__name__
    token = command.token if isinstance(command, OfAttempt | Preempt) else None
    if token is not None and (job.attempt is None or job.attempt.token != token):
        raise StaleAttempt(f"{name} came from an attempt of job {job.id} that is over.")
    if _applied_already(job, command):
        return Transition(job)
    if isinstance(command, OfAttempt) and not job.holds_capacity:
        raise StaleAttempt(f"{name} came from an attempt of job {job.id} that ended before.")
    rule = TABLE.get((job.status, type(command)))
    if rule is None:
        raise invalid(job, name)
    return rule(job, command, now)


def _applied_already(job: Job, command: Command) -> bool:
    """Whether `command` is a repeat: its sender did not hear that it had been applied.

    Cancel and Retry carry no name by which a repeat could be told from a second order, so they are never one: a
    user who cancels a cancelled job is told so.
    """
    attempt = job.attempt
    match command:
        case Admit(token=token):
            return attempt is not None and attempt.token == token and not recalled(attempt)
        case Waits(reason=reason, message=message):
            known = (job.reason, job.reason_message) == (reason, message)
            return job.status is Status.ADMITTED and attempt is not None and (attempt.driver != "" or known)
        case Recall():
            return attempt is not None and recalled(attempt)
        case Taken(driver=driver, process=process):
            return attempt is not None and (attempt.driver, attempt.process) == (driver, process)
        case Grow(indexes=indexes):
            return attempt is not None and (attempt.shrunk or attempt.indexes is None or attempt.indexes >= indexes)
        case Shrink(indexes=indexes):
            return attempt is not None and (attempt.indexes is None or attempt.indexes <= max(indexes, 1))
        case Hold(reason, message):
            return job.status is Status.PENDING and (job.reason, job.reason_message) == (reason, message)
        case Started():
            return job.holds_capacity and attempt is not None and attempt.started_at is not None
        case DriverGone():
            return not job.holds_capacity
        case Completed() | Exited() | Drained():
            said = attempt.ended_by if attempt else None
            return said == type(command).__name__ or (said is not None and job.status is Status.CANCELLED)
        case Preempt():
            return job.status is Status.PREEMPTED
        case Expire(kind):
            return job.status is Status.FAILED and job.reason == TIMEOUT_REASON[kind]
        case _:
            return False


def recalled(attempt: Attempt) -> bool:
    """Whether the cluster took its place back before anybody took it: it may be taken up again."""
    return attempt.ended_by == Recall.__name__
