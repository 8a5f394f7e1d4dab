"""The record of a job whose record was lost, from what storage tells of it: `job.json`, the commit log, and the
archived record of its end.

Pure. May import: stdlib, jos.core. Tests: tests/unit/test_rebuild.py. For people: docs/recovery.md.
"""

from __future__ import annotations

from datetime import datetime

from jos.core import lifecycle
from jos.core.commands import Reason
from jos.core.model import Attempt, EventDraft, Job, JobSpec, Level, Status
from jos.core.standing import Claim, Replay, complete, verdict


def rebuilt(spec: JobSpec, replay: Replay, end: Job | None, now: datetime, queue: str | None = None) -> Job:
    """`end`: the record as it was archived when the job was last over. It holds unless a later attempt claimed the
    log. Without one the work speaks: all of it committed is an end too; any other job waits, to go on."""
    if end is not None and not later_claims(end, replay.claims):
        return _left(end, now)
    fresh = lifecycle.new_job(spec, now, end.queue if end else queue).job
    claims = replay.claims
    user_retries = max(replay.ledger.retry, end.retry_count - end.automatic_retries if end else 0)
    job = fresh.model_copy(
        update={
            "attempt": _last_attempt(end, claims, now),
            "started_at": claims[0].at if claims else None,
            "retry_count": user_retries,  # the automatic ones begin anew, with their budget
            "preemption_count": end.preemption_count if end else 0,
            "priority": end.priority if end else spec.priority,
        }
    )
    if claims and complete(spec, replay.plans, replay.ledger):
        return _over(job, replay)
    return job


def later_claims(end: Job, claims: list[Claim]) -> list[Claim]:
    """The attempts that began after this record was written."""
    tokens = [claim.token for claim in claims]
    if end.attempt is not None and end.attempt.token in tokens:
        return claims[tokens.index(end.attempt.token) + 1 :]
    return [claim for claim in claims if claim.at > end.updated_at]  # its last attempt never came to claim the log


def told(job: Job, replay: Replay, now: datetime) -> EventDraft:
    """The event that says so."""
    done, attempts = replay.ledger.tasks_done, len(replay.claims)
    message = f"The record was lost and rebuilt from storage: {job.status}, {done:,} tasks committed."
    payload = {"status": job.status.value, "items_processed": done, "attempts": attempts}
    return EventDraft(event_type="job.recovered", level=Level.WARN, message=message, payload=payload, created_at=now)


def _left(end: Job, now: datetime) -> Job:
    """An archived record whose driver may not have been gone when it was written."""
    if not end.holds_capacity or end.attempt is None:
        return end
    attempt = end.attempt.model_copy(update={"ended_at": now, "ended_by": "DriverGone"})
    return end.model_copy(update={"attempt": attempt, "holds_capacity": False})


def _last_attempt(end: Job | None, claims: list[Claim], now: datetime) -> Attempt | None:
    """Numbers go on from here: they never go back, whatever else was forgotten. A driver that lives on is told that
    its attempt is over, and fenced by the log in any case."""
    if not claims:
        return None
    number = len(claims)
    if end is not None and end.attempt is not None:
        number = max(number, end.attempt.number + len(later_claims(end, claims)))
    last = claims[-1]
    return Attempt(
        number=number,
        token=last.token,
        admitted_at=last.at,
        started_at=last.at,
        ended_at=now,
        ended_by="DriverGone",
    )


def _over(job: Job, replay: Replay) -> Job:
    at, found = replay.last_at, verdict(replay.spec, replay.plans, replay.ledger)
    if found.failure is not None:
        reason = Reason.ATTEMPT_FAILED.value
        fields = {"status": Status.FAILED, "reason": reason, "failed_at": at, "error": found.failure}
    else:
        fields = {"status": Status.COMPLETED, "reason": Reason.ALL_WORK_COMMITTED.value, "completed_at": at}
    return job.model_copy(update=fields | {"updated_at": at, "queued_at": job.created_at})
