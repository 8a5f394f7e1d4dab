"""The record of a job that was lost: when its archived end still holds, and what stands in for it when not."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from kept_lab import BEGAN, spec

from jos.core.ledger import Ledger
from jos.core.lifecycle import new_job
from jos.core.model import Attempt, Job, JobSpec, Status
from jos.core.rebuild import later_claims, rebuilt, told
from jos.core.standing import Claim, Replay

NOW = BEGAN + timedelta(hours=1)
SPEC = spec()


def second(n: int) -> datetime:
    return BEGAN + timedelta(seconds=n)


def claimed(*tokens: str, of: JobSpec = SPEC) -> Replay:
    replay = Replay(of, {})
    replay.claims = [Claim(token, second(10 * n)) for n, token in enumerate(tokens)]
    replay.ledger = Ledger()
    return replay


def end(token: str | None, number: int = 1, at: int = 5, **fields: Any) -> Job:
    job = new_job(SPEC, BEGAN).job
    attempt = Attempt(number=number, token=token, admitted_at=BEGAN) if token else None
    defaults = {"status": Status.CANCELLED, "cancelled_at": second(at), "updated_at": second(at), "attempt": attempt}
    return job.model_copy(update={**defaults, **fields})


@pytest.mark.parametrize(
    ("job", "tokens", "later"),
    [
        (end("a"), ["a"], []),
        (end("a"), ["a", "b"], ["b"]),
        (end("b", 2), ["a", "b"], []),
        (end("unclaimed", 2, at=15), ["a", "b"], []),
        (end("unclaimed", 2, at=5), ["a", "b"], ["b"]),
        (end(None, at=5), ["a", "b"], ["b"]),
        (end(None, at=-5), ["a", "b"], ["a", "b"]),
        (end(None), [], []),
    ],
)
def test_an_end_holds_until_a_later_attempt_claims_the_log(job: Job, tokens: list[str], later: list[str]) -> None:
    replay = claimed(*tokens)
    assert [claim.token for claim in later_claims(job, replay.claims)] == later
    found = rebuilt(SPEC, replay, job, NOW)
    assert found.status is (Status.PENDING if later else Status.CANCELLED)
    if not later:
        assert found == job


def test_numbers_of_attempts_never_go_back() -> None:
    def number(job: Job) -> int:
        return job.attempt.number if job.attempt else 0

    assert number(rebuilt(SPEC, claimed(), None, NOW)) == 0
    assert number(rebuilt(SPEC, claimed("a", "b"), None, NOW)) == 2
    assert number(rebuilt(SPEC, claimed("a", "b", "c"), end("a", number=4), NOW)) == 6, "4 never claimed, b, c"
    assert number(rebuilt(SPEC, claimed("a", "b"), end("lost", number=9), NOW)) == 10


def test_an_end_that_was_written_before_its_driver_had_left_holds_no_capacity() -> None:
    found = rebuilt(SPEC, claimed("a"), end("a", holds_capacity=True), NOW)
    assert found.attempt is not None
    assert (found.holds_capacity, found.attempt.ended_at, found.attempt.ended_by) == (False, NOW, "DriverGone")


def test_what_only_the_old_end_knows_is_kept_when_the_job_goes_on() -> None:
    old = end("a", queue="fast", priority=7, preemption_count=2, retry_count=3, automatic_retries=2)
    found = rebuilt(SPEC, claimed("a", "b"), old, NOW, queue="routed")
    assert (found.queue, found.priority, found.preemption_count) == ("fast", 7, 2)
    assert (found.retry_count, found.automatic_retries) == (1, 0), "a user's retries; the others begin anew"
    assert rebuilt(SPEC, claimed("a"), None, NOW, queue="routed").queue == "routed"


def test_a_job_that_goes_on_waits_from_now_on() -> None:
    """Else its time in the queue would have run out while nothing ran."""
    found = rebuilt(SPEC, claimed("a"), None, NOW)
    assert (found.status, found.queued_at, found.created_at, found.started_at) == (Status.PENDING, NOW, BEGAN, BEGAN)
    event = told(found, claimed("a"), NOW)
    assert (event.event_type, event.payload["attempts"]) == ("job.recovered", 1)
