"""What a transition leaves in the record of a job, and when its time has run out."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from lifecycle_lab import (
    ADMITTED,
    BOOM,
    CANCELLED,
    COMPLETED,
    NOW,
    OUT_OF_RETRIES,
    PENDING,
    PIPELINE,
    PREEMPTED,
    RUNNING,
    SPEC,
    moment,
    walk,
)

from jos.core.errors import InvalidTransition, StaleAttempt
from jos.core.lifecycle import (
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
    Preempt,
    Reason,
    Recall,
    Retry,
    Shrink,
    Started,
    Taken,
    Waits,
    backoff,
    decide,
    new_job,
    overdue,
    recalled,
)
from jos.core.model import Attempt, Job, JobFailure, Level, RetryPolicy, Status, Timeouts


def test_a_new_job_carries_what_the_request_and_the_pipeline_say() -> None:
    made = new_job(SPEC, NOW)
    assert [event.event_type for event in made.events] == ["job.created"]
    job = made.job
    assert (job.status, job.priority, job.parameters) == (Status.PENDING, 7, SPEC.parameters)
    assert (job.timeouts, job.retry_policy) == (PIPELINE.timeouts, PIPELINE.retry_policy)
    assert (job.pipeline_key, job.pipeline_version, job.holds_capacity) == ("noop", "1.0.0", False)


def test_attempts_are_numbered_and_the_first_start_is_kept() -> None:
    job = walk(*RUNNING, Drained("a"), Admit("b"))
    job = decide(job, Started("b", "node-2", 18), NOW + timedelta(minutes=5)).job
    assert job.attempt == Attempt(
        number=2,
        token="b",
        admitted_at=NOW,
        started_at=NOW + timedelta(minutes=5),
        host="node-2",
        pid=18,
    )
    assert job.started_at == NOW


def test_a_retry_waits_and_keeps_the_failure() -> None:
    after = decide(walk(*RUNNING), Exited("a", BOOM, True), NOW)
    job = after.job
    assert (job.not_before, job.error) == (NOW + timedelta(seconds=5), BOOM)
    assert (job.automatic_retries, job.retry_count) == (1, 1)
    assert [event.level for event in after.events] == [Level.ERROR, Level.WARN]
    assert after.events[0].message == BOOM.message
    assert after.events[1].payload["not_before"] == "2026-04-14T10:05:05.000000Z"
    assert walk(*RUNNING, Exited("a", BOOM, True), Admit("b")).not_before is None


def test_completion_forgets_the_failure_of_an_earlier_attempt() -> None:
    job = walk(*RUNNING, Exited("a", BOOM, True), Admit("b"), Started("b"), Completed("b", "Done."))
    assert (job.status, job.error, job.completed_at) == (Status.COMPLETED, None, NOW)


def test_a_reason_to_wait_is_told_once_and_gone_with_the_wait() -> None:
    job = walk(Hold(Reason.CLUSTER_FULL, "needs 1 GPU; 0 of 8 are free"))
    assert job.reason_message == "needs 1 GPU; 0 of 8 are free"
    assert decide(job, Hold(Reason.CLUSTER_FULL, "needs 1 GPU; 0 of 8 are free"), NOW).job is job
    assert decide(job, Admit("a"), NOW).job.reason_message == ""


def test_new_words_for_the_same_reason_are_written_without_an_event() -> None:
    after = decide(walk(Hold(Reason.BEHIND_HEAD, "job_a is before it")), Hold(Reason.BEHIND_HEAD, "job_b is"), NOW)
    assert (after.job.reason_message, after.events) == ("job_b is", ())


def test_what_a_driver_waits_for_is_told_once_however_its_words_change() -> None:
    job = walk(*ADMITTED, Waits("a", Reason.PULLING_IMAGE, "pulls it"))
    after = decide(job, Waits("a", Reason.PULLING_IMAGE, "pulls it, 2nd try"), NOW)
    assert (after.job.reason_message, after.events) == ("pulls it, 2nd try", ())
    taken = walk(*ADMITTED, Taken("a", "jos-1"))
    assert decide(taken, Waits("a", Reason.PULLING_IMAGE, "seen before it was taken"), NOW).job is taken


def test_a_recalled_attempt_is_taken_up_again_under_its_number_and_costs_nothing() -> None:
    waits = walk(*ADMITTED, Recall("a", "Kueue took it back."))
    assert waits.attempt is not None
    assert recalled(waits.attempt)
    later = NOW + timedelta(hours=1)
    job = decide(waits, Admit("a", indexes=2), later).job
    assert job.attempt == Attempt(number=1, token="a", admitted_at=later, indexes=2)
    assert (job.preemption_count, job.retry_count, job.retries_spent) == (0, 0, 0)
    other = walk(*ADMITTED, Recall("a"), Admit("b"))
    assert other.attempt is not None
    assert other.attempt.number == 2


def test_a_job_that_the_cluster_admits_and_puts_back_for_ever_runs_out_of_time_as_one_that_only_waits() -> None:
    job = walk().model_copy(update={"timeouts": Timeouts(queue=600)})
    for minutes in range(9):
        job = decide(job, Admit("a"), NOW + timedelta(minutes=minutes)).job
        job = decide(job, Recall("a"), NOW + timedelta(minutes=minutes, seconds=50)).job
    assert job.queued_at == NOW, "it keeps its place"
    assert overdue(job, NOW + timedelta(minutes=10)) == Expire("queue")


def test_a_timeout_that_an_earlier_attempts_driver_counted_fails_no_later_one() -> None:
    """Its own clock says that the run timeout has passed; of the attempt that runs now it has not."""
    job = walk(*RUNNING)
    for minutes, command in ((9, DriverGone("a")), (9, Admit("b", indexes=1)), (9, Started("b"))):
        job = decide(job, command, NOW + timedelta(minutes=minutes)).job
    with pytest.raises(InvalidTransition, match=r"Expire\(run\)"):
        decide(job, Expire("run"), NOW + timedelta(minutes=11))
    assert decide(job, Expire("run"), NOW + timedelta(minutes=19)).job.status is Status.FAILED


def test_a_grant_only_grows() -> None:
    job = walk(*RUNNING, Grow("a", 4))
    assert job.attempt is not None
    assert job.attempt.indexes == 4
    for fewer in (1, 3, 4):
        assert decide(job, Grow("a", fewer), NOW).job is job
    without_limit = walk(Admit("a"), Started("a"))
    assert decide(without_limit, Grow("a", 4), NOW).job is without_limit
    again = walk(*RUNNING, Grow("a", 4), Drained("a"), Admit("b", indexes=2))
    assert again.attempt is not None
    assert (again.attempt.indexes, again.attempt.driver) == (2, "")


def test_a_driver_that_needs_fewer_indexes_frees_the_others_for_good() -> None:
    job = walk(*RUNNING, Grow("a", 8), Shrink("a", 3))
    assert job.attempt is not None
    assert (job.attempt.indexes, job.holds_capacity) == (3, True)
    for said in (Grow("a", 8), Shrink("a", 3), Shrink("a", 5)):  # planned before the plan knew, or said twice
        assert decide(job, said, NOW).job is job
    last = decide(job, Shrink("a", 0), NOW).job.attempt
    assert last is not None
    assert last.indexes == 1  # the attempt itself goes by its last word
    without_limit = walk(Admit("a"), Started("a"))
    assert decide(without_limit, Shrink("a", 1), NOW).job is without_limit
    again = walk(*RUNNING, Grow("a", 4), Shrink("a", 2), Drained("a"), Admit("b", indexes=1), Grow("b", 4))
    assert again.attempt is not None
    assert again.attempt.indexes == 4


def test_whoever_takes_an_attempt_is_in_the_record_and_keeps_it() -> None:
    job = walk(*ADMITTED, Taken("a", "warm-1", "node-1", 17))
    attempt = job.attempt
    assert attempt is not None
    with pytest.raises(StaleAttempt, match="driven by warm-1"):
        decide(job, Taken("a", "warm-2", "node-2", 18), NOW)
    assert (attempt.driver, attempt.host, attempt.pid, attempt.started_at) == ("warm-1", "node-1", 17, None)


def test_a_second_process_under_the_same_name_is_refused_and_the_same_one_may_ask_again() -> None:
    """A cluster that lost its table of jobs runs the same command once more."""
    taken = Taken("a", "jos-job_1-1", "head", 17, process="first")
    job = walk(*ADMITTED, taken)
    assert decide(job, taken, NOW).job is job
    with pytest.raises(StaleAttempt, match="driven by jos-job_1-1"):
        decide(job, replace(taken, process="second"), NOW)


def test_a_driver_is_asked_to_leave_once_however_often_its_job_is_retried_and_cancelled_again() -> None:
    def asked(job: Job) -> datetime | None:
        assert job.attempt is not None
        return job.attempt.asked_to_leave_at

    for leaving in (Cancel(), Preempt(), Expire("run")):
        job, first = walk(*RUNNING), moment(leaving)
        assert asked(job) is None
        job = decide(job, leaving, first).job
        for minute, command in enumerate((Retry(), Cancel(), Retry()) if job.status is not Status.PREEMPTED else ()):
            job = decide(job, command, first + timedelta(minutes=minute + 1)).job
        assert asked(job) == first, leaving
    assert asked(decide(walk(*RUNNING), Completed("a"), NOW).job) is None
    assert asked(walk(*CANCELLED, Drained("a"), Retry(), Admit("b"))) is None


def test_preemption_and_draining_cost_no_retries() -> None:
    job = walk(*PREEMPTED, Drained("a"), *(Admit("b"), Started("b"), Drained("b")))
    assert (job.preemption_count, job.automatic_retries, job.retry_count, job.not_before) == (1, 0, 0, None)


def test_a_users_retry_renews_the_budget_and_clears_the_end() -> None:
    job = walk(*OUT_OF_RETRIES, Exited("a", BOOM, True))
    assert (job.automatic_retries, job.failed_at, job.error) == (2, NOW, BOOM)
    job = decide(job, Retry(), NOW).job
    assert (job.automatic_retries, job.retry_count) == (0, 3)
    assert (job.failed_at, job.cancelled_at, job.error) == (None, None, None)


def test_an_attempt_that_ran_well_renews_the_budget_and_is_no_users_retry() -> None:
    """A job of two weeks may lose a driver every day; which retries were a user's is still told apart."""
    job, now = walk(*RUNNING), NOW
    for day in range(1, 9):
        now = NOW + timedelta(days=day)
        after = decide(job, DriverGone(f"{'a' if day == 1 else day - 1}"), now)
        assert (after.job.status, after.job.retries_spent) == (Status.PENDING, 1)
        assert after.job.not_before == now + timedelta(seconds=5), "the back-off begins anew as well"
        assert after.job.automatic_retries == after.job.retry_count == day
        job = decide(decide(after.job, Admit(f"{day}"), now).job, Started(f"{day}"), now).job
    job = decide(job, DriverGone("8"), now + timedelta(minutes=59)).job
    assert job.retries_spent == 2, "less than an hour is not yet well"
    job = decide(job, Admit("9"), now).job
    assert decide(job, DriverGone("9"), now + timedelta(hours=9)).job.status is Status.FAILED, "it never started"


def test_a_lost_driver_is_told_with_the_launchers_words() -> None:
    job = walk(*RUNNING, DriverGone("a", "killed: out of memory"))
    assert job.error == JobFailure(code="driver_lost", message="killed: out of memory")


def test_tokens_never_appear_in_events() -> None:
    secret = "4f1c-secret"
    commands = (Admit(secret), Started(secret), Preempt(), Exited(secret, BOOM, True))
    job, seen = new_job(SPEC, NOW).job, ""
    for command in commands:
        after = decide(job, command, NOW)
        job, seen = after.job, seen + "".join(event.model_dump_json() for event in after.events)
    assert secret not in seen


@pytest.mark.parametrize(("retry", "seconds"), [(1, 5), (2, 10), (3, 20), (4, 40), (7, 300), (5000, 300)])
def test_backoff_doubles_up_to_a_limit(retry: int, seconds: float) -> None:
    assert backoff(RetryPolicy(backoff=5, backoff_max=300), retry) == timedelta(seconds=seconds)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


OVERDUE: dict[str, tuple[tuple[Command, ...], float, Expire | None]] = {
    "not yet too long in the queue": (PENDING, 59, None),
    "too long in the queue": (PENDING, 60, Expire("queue")),
    "back-off is not time in the queue": ((*RUNNING, Exited("a", BOOM, True)), 64, None),
    "too long in the queue after a back-off": ((*RUNNING, Exited("a", BOOM, True)), 65, Expire("queue")),
    "not yet too long running": (RUNNING, 599, None),
    "too long running": (RUNNING, 600, Expire("run")),
    "its driver may take longer to come up than it may run": (ADMITTED, 600, None),
    "a preempted job is on its way out": (PREEMPTED, 9999, None),
    "a completed job cannot be late": (COMPLETED, 9999, None),
}


@pytest.mark.parametrize("case", OVERDUE)
def test_overdue(case: str) -> None:
    before, seconds, expected = OVERDUE[case]
    job = walk(*before)
    assert overdue(job, at(seconds)) == expected
    if expected is not None:
        failed = decide(job, expected, at(seconds)).job
        assert failed.error is not None
        assert failed.error.code == "deadline_exceeded"


def test_without_timeouts_nothing_is_ever_overdue() -> None:
    for before in (PENDING, RUNNING):
        assert overdue(walk(*before).model_copy(update={"timeouts": Timeouts()}), at(1e9)) is None
