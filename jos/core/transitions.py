"""What each command makes of a job: one function for each kind of transition, and TABLE, which says when it is legal.

Only jos.core.lifecycle calls these, after it has looked at the attempt's token. Pure: the time is passed in.
May import: stdlib, jos.core. Tests: tests/unit/test_lifecycle*.py. For people: docs/lifecycle.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from jos.core.commands import (
    Admit,
    Cancel,
    Completed,
    Drained,
    DriverGone,
    Exited,
    Expire,
    Grow,
    Hold,
    LastWord,
    Preempt,
    Reason,
    Recall,
    Retry,
    Shrink,
    Started,
    Taken,
    Waits,
)
from jos.core.errors import DeadlineExceeded, InvalidTransition, StaleAttempt
from jos.core.model import Attempt, EventDraft, Job, JobFailure, Level, RetryPolicy, Status, utc

RAN_WELL = timedelta(hours=1)  # an attempt that ran for so long before it failed renews the retry budget


@dataclass(frozen=True)
class Transition:
    """What a command made of a job. No change: the same job object and no events."""

    job: Job
    events: tuple[EventDraft, ...] = ()


Rule = Callable[[Job, Any, datetime], Transition]


# --- time that runs out -------------------------------------------------------------------------------


def overdue(job: Job, now: datetime) -> Expire | None:
    """The timeout that has run out, if one has. Time in back-off is not time in the queue, nor is time in which a
    driver comes up (pods, images) time in which the job runs."""
    match job.status:
        case Status.PENDING:
            since = max(job.queued_at, job.not_before or job.queued_at)
            return Expire("queue") if _passed(since, job.timeouts.queue, now) else None
        case Status.ADMITTED | Status.RUNNING if job.attempt is not None and job.attempt.started_at is not None:
            return Expire("run") if _passed(job.attempt.started_at, job.timeouts.run, now) else None
        case _:
            return None


def backoff(policy: RetryPolicy, retry: int) -> timedelta:
    """How long to wait before the `retry`th automatic retry (1, 2, …): doubles each time, up to a limit."""
    return timedelta(seconds=min(policy.backoff * 2.0 ** min(retry - 1, 64), policy.backoff_max))


def _passed(since: datetime, limit: float | None, now: datetime) -> bool:
    return limit is not None and (now - since).total_seconds() >= limit


# --- rules --------------------------------------------------------------------------------------------

_WANTED = (Status.ADMITTED, Status.RUNNING)  # in any other status a driver that holds capacity is to leave


def draft(
    now: datetime, event_type: str, message: str, level: Level = Level.INFO, payload: Mapping[str, Any] | None = None
) -> EventDraft:
    return EventDraft(event_type=event_type, level=level, message=message, payload=dict(payload or {}), created_at=now)


def _move(job: Job, now: datetime, status: Status, reason: Reason, **fields: Any) -> Job:
    moved: dict[str, Any] = {"status": status, "reason": reason.value, "reason_message": "", "updated_at": now}
    attempt = job.attempt
    if attempt is not None and job.holds_capacity and status not in _WANTED and attempt.asked_to_leave_at is None:
        # the first asking counts: a driver that will not leave gains no time by a retry and another cancel
        moved["attempt"] = attempt.model_copy(update={"asked_to_leave_at": now})
    return job.model_copy(update={**moved, **fields})


def _ended(job: Job, now: datetime, command: LastWord | DriverGone | Recall) -> dict[str, Any]:
    """The fields that say: this attempt's driver is gone and its capacity free."""
    assert job.attempt is not None
    ended = job.attempt.model_copy(update={"ended_at": now, "ended_by": type(command).__name__})
    return {"attempt": ended, "holds_capacity": False}


def _number(job: Job) -> int:
    return job.attempt.number if job.attempt else 0


def _admit(job: Job, command: Admit, now: datetime) -> Transition:
    if job.holds_capacity:  # retried right after a cancel: two drivers of one job would only fight over its log
        raise InvalidTransition(f"Job {job.id} is {job.status}: Admit is not possible until its last driver has left.")
    again = job.attempt is not None and job.attempt.token == command.token  # that was recalled
    number, token = _number(job) + (0 if again else 1), command.token
    if command.number not in (None, number):  # an old one: whoever has it must never be believed again
        raise InvalidTransition(f"Job {job.id} is {job.status}: Admit is not possible for attempt {command.number}.")
    attempt = Attempt(
        number=number, token=token, admitted_at=now, host=command.host, pid=command.pid, indexes=command.indexes
    )
    admitted = _move(
        job,
        now,
        Status.ADMITTED,
        Reason.CAPACITY_GRANTED,
        attempt=attempt,
        holds_capacity=True,
        not_before=None,
    )
    payload: dict[str, Any] = {"attempt": attempt.number}
    payload["waited_seconds"] = round((now - job.queued_at).total_seconds(), 3)
    if command.indexes is not None:
        payload["indexes"] = command.indexes
    event = draft(now, "job.admitted", f"Capacity granted for attempt {attempt.number}.", payload=payload)
    return Transition(admitted, (event,))


def _hold(job: Job, command: Hold, now: datetime) -> Transition:
    """New words for the same reason (other figures, another job before it) are no event: they may change for ever."""
    held = job.model_copy(update={"reason": command.reason, "reason_message": command.message, "updated_at": now})
    if job.reason == command.reason:
        return Transition(held)
    return Transition(held, (draft(now, "job.waiting", command.message, payload={"reason": command.reason}),))


def _wait(job: Job, command: Waits, now: datetime) -> Transition:
    """As `_hold`. That it waits no more is no event: the next one tells of the driver."""
    words = {"reason": command.reason, "reason_message": command.message, "updated_at": now}
    waits = job.model_copy(update=words)
    if command.reason in (job.reason, Reason.CAPACITY_GRANTED):
        return Transition(waits)
    payload = {"reason": command.reason, "attempt": _number(job)}
    return Transition(waits, (draft(now, "job.waiting", command.message, payload=payload),))


def _recall(job: Job, command: Recall, now: datetime) -> Transition:
    """Back into the queue as if it had not been admitted: neither a preemption nor a failure, and its time in the queue
    goes on, or one that is admitted and put back for ever would never run out of it."""
    assert job.attempt is not None
    if job.attempt.driver:
        raise InvalidTransition(
            f"Job {job.id} is {job.status}: Recall is not possible once {job.attempt.driver} drives."
        )
    pending = _move(job, now, Status.PENDING, Reason.WAITING_FOR_CAPACITY, **_ended(job, now, command))
    message = command.message or "The cluster took its place back before its driver came up."
    return Transition(pending, (draft(now, "job.requeued", message, payload={"attempt": _number(job)}),))


def _take(job: Job, command: Taken, now: datetime) -> Transition:
    """Whatever the status: a driver of a job that was cancelled meanwhile takes it to say its last word."""
    assert job.attempt is not None
    if job.attempt.driver:
        raise StaleAttempt(f"Attempt {job.attempt.number} of job {job.id} is driven by {job.attempt.driver}.")
    update = {"driver": command.driver, "host": command.host, "pid": command.pid, "process": command.process}
    taken: dict[str, Any] = {"attempt": job.attempt.model_copy(update=update), "updated_at": now}
    if job.status is Status.ADMITTED:  # whatever it waited for is there
        taken |= {"reason": Reason.CAPACITY_GRANTED.value, "reason_message": ""}
    return Transition(job.model_copy(update=taken))


def _grow(job: Job, command: Grow, now: datetime) -> Transition:
    assert job.attempt is not None
    attempt = job.attempt.model_copy(update={"indexes": command.indexes})
    message = f"{command.indexes} of {job.parallelism} indexes are granted now."
    event = draft(now, "job.grown", message, payload={"attempt": attempt.number, "indexes": command.indexes})
    return Transition(job.model_copy(update={"attempt": attempt, "updated_at": now}), (event,))


def _shrink(job: Job, command: Shrink, now: datetime) -> Transition:
    """No event: the driver tells of each index that it stops."""
    assert job.attempt is not None
    attempt = job.attempt.model_copy(update={"indexes": max(command.indexes, 1), "shrunk": True})
    return Transition(job.model_copy(update={"attempt": attempt, "updated_at": now}))


def _start(job: Job, command: Started, now: datetime) -> Transition:
    assert job.attempt is not None
    attempt = job.attempt.model_copy(update={"started_at": now, "host": command.host, "pid": command.pid})
    started_at = job.started_at or now
    running = _move(job, now, Status.RUNNING, Reason.DRIVER_STARTED, attempt=attempt, started_at=started_at)
    where = f" on {command.host}" if command.host else ""
    payload = {"attempt": attempt.number, "host": command.host}
    return Transition(running, (draft(now, "job.started", f"Attempt {attempt.number} runs{where}.", payload=payload),))


def _preempt(job: Job, command: Preempt, now: datetime) -> Transition:
    count = job.preemption_count + 1
    message = command.message or "Another job needs the capacity."
    payload = {"attempt": _number(job), "preemption_count": count}
    event = draft(now, "job.preempted", message, Level.WARN, payload)
    return Transition(_move(job, now, Status.PREEMPTED, Reason.PREEMPTED, preemption_count=count), (event,))


def _cancel(job: Job, command: Cancel, now: datetime) -> Transition:
    message = "Cancelled; the driver commits what it has in hand and leaves." if job.holds_capacity else "Cancelled."
    cancelled = _move(job, now, Status.CANCELLED, Reason.CANCELLED_BY_USER, cancelled_at=now, not_before=None)
    return Transition(cancelled, (draft(now, "job.canceled", message, Level.WARN),))


def _complete(job: Job, command: Completed, now: datetime) -> Transition:
    completed = _move(
        job,
        now,
        Status.COMPLETED,
        Reason.ALL_WORK_COMMITTED,
        completed_at=now,
        error=None,  # of an earlier attempt; it no longer says anything about this job
        **_ended(job, now, command),
    )
    message = command.message or "All work is committed."
    event = draft(now, "job.completed", message, Level.SUCCESS, {"attempt": _number(job)})
    return Transition(completed, (event,))


def _requeue(job: Job, command: LastWord | DriverGone, now: datetime) -> Transition:
    """Back into the queue through no fault of the job: nothing is taken from its retry budget."""
    pending = _move(job, now, Status.PENDING, Reason.WAITING_FOR_CAPACITY, queued_at=now, **_ended(job, now, command))
    cause = "preemption" if job.status is Status.PREEMPTED else "being asked to leave"
    event = draft(now, "job.requeued", f"Back in the queue after {cause}.", payload={"attempt": _number(job)})
    return Transition(pending, (event,))


def _fail_attempt(job: Job, command: Exited | DriverGone, now: datetime) -> Transition:
    """Another attempt after a back-off, while the retry policy allows one; else the job fails."""
    if isinstance(command, Exited):
        failure, retryable = command.failure, command.retryable
    else:
        message = command.message or "The driver ended without a last word."
        failure, retryable = JobFailure(code="driver_lost", message=message), True
    ended = _ended(job, now, command)
    if not retryable:
        return _fail(job, failure, Reason.ATTEMPT_FAILED, now, **ended)
    spent = 0 if _ran_well(job, now) else job.retries_spent
    if spent >= job.retry_policy.max_retries:
        return _fail(job, failure, Reason.RETRIES_EXHAUSTED, now, **ended)
    retry = spent + 1
    wait = backoff(job.retry_policy, retry)
    pending = _move(
        job,
        now,
        Status.PENDING,
        Reason.WAITING_FOR_BACKOFF,
        queued_at=now,
        not_before=now + wait,
        retries_spent=retry,
        automatic_retries=job.automatic_retries + 1,
        retry_count=job.retry_count + 1,
        error=failure,
        **ended,
    )
    number = _number(job)
    lost = {"attempt": number, "code": failure.code, "details": failure.details}
    again = {"attempt": number, "automatic_retries": pending.automatic_retries, "not_before": utc(now + wait)}
    of = f"{retry} of {job.retry_policy.max_retries}"
    return Transition(
        pending,
        (
            draft(now, "attempt.failed", failure.message, Level.ERROR, lost),
            draft(now, "job.requeued", f"Retry {of} in {wait.total_seconds():g} s.", Level.WARN, again),
        ),
    )


def _ran_well(job: Job, now: datetime) -> bool:
    """Long enough that its end is a new trouble: a job of two weeks may lose more drivers than one of an hour."""
    started = job.attempt.started_at if job.attempt else None
    return started is not None and now - started >= RAN_WELL


def _fail_preempted(job: Job, command: Exited, now: datetime) -> Transition:
    """A failure while leaving is put down to the preemption, unless no attempt could ever succeed."""
    return _requeue(job, command, now) if command.retryable else _fail_attempt(job, command, now)


def _fail(job: Job, failure: JobFailure, reason: Reason, now: datetime, **fields: Any) -> Transition:
    failed = _move(job, now, Status.FAILED, reason, failed_at=now, not_before=None, error=failure, **fields)
    payload = {"attempt": _number(job), "code": failure.code, "reason": reason.value, "details": failure.details}
    return Transition(failed, (draft(now, "job.failed", failure.message, Level.FAILED, payload),))


TIMEOUT_REASON = {"queue": Reason.QUEUE_TIMEOUT, "run": Reason.RUN_TIMEOUT}


def _expire(job: Job, command: Expire, now: datetime) -> Transition:
    if overdue(job, now) != command:  # it went on meanwhile, or an earlier attempt's driver counts its own time
        raise invalid(job, f"Expire({command.kind})")
    limit = job.timeouts.queue if command.kind == "queue" else job.timeouts.run
    what = "waited in the queue" if command.kind == "queue" else "ran"
    failure = JobFailure(
        code=DeadlineExceeded.code,
        message=f"The job {what} for longer than its {command.kind} timeout of {limit or 0:g} s.",
        details={"timeout": command.kind, "seconds": limit},
    )
    return _fail(job, failure, TIMEOUT_REASON[command.kind], now)


def _retry(job: Job, command: Retry, now: datetime) -> Transition:
    pending = _move(
        job,
        now,
        Status.PENDING,
        Reason.WAITING_FOR_DRIVER if job.holds_capacity else Reason.WAITING_FOR_CAPACITY,
        queued_at=now,
        queue=job.queue if command.queue is None else command.queue,
        retry_count=job.retry_count + 1,
        retries_spent=0,
        automatic_retries=0,
        not_before=None,
        failed_at=None,
        cancelled_at=None,
        error=None,  # a waiting job that tells of an error reads as broken; the events keep it
    )
    message = "Retried; goes on from what was committed."
    return Transition(pending, (draft(now, "job.retried", message, payload={"retry_count": pending.retry_count}),))


def _release(job: Job, command: LastWord | DriverGone, now: datetime) -> Transition:
    """The job went on without this driver (cancelled, timed out, retried): its leaving frees the capacity, and
    whatever else it says comes too late to count."""
    fields: dict[str, Any] = {"updated_at": now, **_ended(job, now, command)}
    if job.status is Status.PENDING:
        fields |= {"reason": Reason.WAITING_FOR_CAPACITY.value, "reason_message": ""}
    return Transition(job.model_copy(update=fields))


def invalid(job: Job, name: str) -> InvalidTransition:
    legal = [str(status) for status, command in TABLE if command.__name__ == name]
    return InvalidTransition(
        f"Job {job.id} is {job.status}: {name} is not possible.",
        suggestion=f"It is possible while a job is {' or '.join(legal)}.",
    )


def _table() -> Mapping[tuple[Status, type], Rule]:
    table: dict[tuple[Status, type], Rule] = {
        (Status.PENDING, Admit): _admit,
        (Status.PENDING, Cancel): _cancel,
        (Status.PENDING, Expire): _expire,
        (Status.PENDING, Hold): _hold,
        (Status.ADMITTED, Waits): _wait,
        (Status.ADMITTED, Recall): _recall,
        (Status.ADMITTED, Grow): _grow,
        (Status.ADMITTED, Shrink): _shrink,
        (Status.ADMITTED, Started): _start,
        (Status.ADMITTED, Drained): _requeue,
        (Status.ADMITTED, Exited): _fail_attempt,
        (Status.ADMITTED, DriverGone): _fail_attempt,
        (Status.ADMITTED, Preempt): _preempt,
        (Status.ADMITTED, Cancel): _cancel,
        (Status.RUNNING, Grow): _grow,
        (Status.RUNNING, Shrink): _shrink,
        (Status.RUNNING, Completed): _complete,
        (Status.RUNNING, Drained): _requeue,
        (Status.RUNNING, Exited): _fail_attempt,
        (Status.RUNNING, DriverGone): _fail_attempt,
        (Status.RUNNING, Preempt): _preempt,
        (Status.RUNNING, Cancel): _cancel,
        (Status.RUNNING, Expire): _expire,
        (Status.PREEMPTED, Completed): _complete,
        (Status.PREEMPTED, Drained): _requeue,
        (Status.PREEMPTED, Exited): _fail_preempted,
        (Status.PREEMPTED, DriverGone): _requeue,
        (Status.PREEMPTED, Cancel): _cancel,
        (Status.FAILED, Retry): _retry,
        (Status.CANCELLED, Retry): _retry,
    }
    for status in (Status.PENDING, Status.FAILED, Status.CANCELLED):
        for command in (Completed, Drained, Exited, DriverGone):
            table[status, command] = _release
    for status in set(Status) - {Status.COMPLETED}:  # which never holds capacity
        table[status, Taken] = _take  # decide() lets it through only while the capacity is held
    return table


TABLE = _table()
