"""The state machine: tables of single transitions, the page that describes it, and random walks over it."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jos.core.errors import InvalidTransition, StaleAttempt
from jos.core.lifecycle import (
    TABLE,
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
    backoff,
    decide,
    new_job,
    overdue,
    recalled,
)
from jos.core.model import Attempt, Job, JobFailure, JobSpec, Level, Pipeline, RetryPolicy, Status, Timeouts

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
CHANGES: dict[str, tuple[tuple[Command, ...], Command, Status, Reason, bool, list[str]]] = {
    "a waiting job is granted capacity": (
        *(PENDING, Admit("a"), Status.ADMITTED, Reason.CAPACITY_GRANTED, True),
        ["job.admitted"],
    ),
    "a waiting job is told why it waits": (
        *(PENDING, Hold(Reason.CLUSTER_FULL, "0 of 8 GPUs are free"), Status.PENDING, Reason.CLUSTER_FULL, False),
        ["job.waiting"],
    ),
    "a waiting job is told of another reason": (
        *((Hold(Reason.CLUSTER_FULL, "full"),), Hold(Reason.QUOTA_EXHAUSTED, "used up")),
        *(Status.PENDING, Reason.QUOTA_EXHAUSTED, False),
        ["job.waiting"],
    ),
    "an admitted job's driver waits for its image": (
        *(ADMITTED, Waits("a", Reason.PULLING_IMAGE, "pulls it"), Status.ADMITTED, Reason.PULLING_IMAGE, True),
        ["job.waiting"],
    ),
    "its driver waits for something else": (
        *((*ADMITTED, Waits("a", Reason.NO_NODE_FOR_PODS, "no")), Waits("a", Reason.PULLING_IMAGE, "pulls it")),
        *(Status.ADMITTED, Reason.PULLING_IMAGE, True),
        ["job.waiting"],
    ),
    "its driver waits for nothing any more": (
        *((*ADMITTED, Waits("a", Reason.PULLING_IMAGE, "pulls it")), Waits("a", Reason.CAPACITY_GRANTED)),
        *(Status.ADMITTED, Reason.CAPACITY_GRANTED, True),
        [],
    ),
    "a driver that was waited for takes its attempt on": (
        *((*ADMITTED, Waits("a", Reason.PULLING_IMAGE, "pulls it")), Taken("a", "jos-1")),
        *(Status.ADMITTED, Reason.CAPACITY_GRANTED, True),
        [],
    ),
    "the cluster takes its place back before a driver came": (
        *(ADMITTED, Recall("a", "Preempted in Kueue."), Status.PENDING, Reason.WAITING_FOR_CAPACITY, False),
        ["job.requeued"],
    ),
    "the cluster gives it its place again": (
        *((*ADMITTED, Recall("a")), Admit("a", indexes=1), Status.ADMITTED, Reason.CAPACITY_GRANTED, True),
        ["job.admitted"],
    ),
    "the cluster gives it its place again, for the same attempt": (
        *((*ADMITTED, Recall("a")), Admit("a", number=1), Status.ADMITTED, Reason.CAPACITY_GRANTED, True),
        ["job.admitted"],
    ),
    "a recalled job is admitted in another way": (
        *((*ADMITTED, Recall("a")), Admit("b"), Status.ADMITTED, Reason.CAPACITY_GRANTED, True),
        ["job.admitted"],
    ),
    "the cluster takes the place of a running job": (
        *(RUNNING, Preempt("Kueue preempted it.", "a"), Status.PREEMPTED, Reason.PREEMPTED, True),
        ["job.preempted"],
    ),
    "a driver takes an attempt on": (
        *(ADMITTED, Taken("a", "warm-1", "node-1", 17), Status.ADMITTED, Reason.CAPACITY_GRANTED, True),
        [],
    ),
    "a driver takes a job that was cancelled meanwhile": (
        *((*ADMITTED, Cancel()), Taken("a", "warm-1"), Status.CANCELLED, Reason.CANCELLED_BY_USER, True),
        [],
    ),
    "a driver takes a job that was retried meanwhile": (
        *((*ADMITTED, Cancel(), Retry()), Taken("a", "warm-1"), Status.PENDING, Reason.WAITING_FOR_DRIVER, True),
        [],
    ),
    "a running job is granted more": (
        *(RUNNING, Grow("a", 4), Status.RUNNING, Reason.DRIVER_STARTED, True),
        ["job.grown"],
    ),
    "an admitted job is granted more before its driver is up": (
        *(ADMITTED, Grow("a", 2), Status.ADMITTED, Reason.CAPACITY_GRANTED, True),
        ["job.grown"],
    ),
    "the driver of an admitted job has an index up": (
        *(ADMITTED, Started("a"), Status.RUNNING, Reason.DRIVER_STARTED, True),
        ["job.started"],
    ),
    "all work of a running job is committed": (
        *(RUNNING, Completed("a"), Status.COMPLETED, Reason.ALL_WORK_COMMITTED, False),
        ["job.completed"],
    ),
    "an attempt fails in a way that may pass": (
        *(RUNNING, Exited("a", BOOM, True), Status.PENDING, Reason.WAITING_FOR_BACKOFF, False),
        ["attempt.failed", "job.requeued"],
    ),
    "an attempt fails before its first index is up": (
        *(ADMITTED, Exited("a", BOOM, True), Status.PENDING, Reason.WAITING_FOR_BACKOFF, False),
        ["attempt.failed", "job.requeued"],
    ),
    "an attempt fails in a way that no retry can mend": (
        *(RUNNING, Exited("a", IMPOSSIBLE, False), Status.FAILED, Reason.ATTEMPT_FAILED, False),
        ["job.failed"],
    ),
    "an attempt fails and the retries are used up": (
        *(OUT_OF_RETRIES, Exited("a", BOOM, True), Status.FAILED, Reason.RETRIES_EXHAUSTED, False),
        ["job.failed"],
    ),
    "the driver is killed": (
        *(RUNNING, DriverGone("a", "killed: out of memory"), Status.PENDING, Reason.WAITING_FOR_BACKOFF, False),
        ["attempt.failed", "job.requeued"],
    ),
    "the driver never comes up": (
        *(ADMITTED, DriverGone("a"), Status.PENDING, Reason.WAITING_FOR_BACKOFF, False),
        ["attempt.failed", "job.requeued"],
    ),
    "the driver is killed and the retries are used up": (
        *(OUT_OF_RETRIES, DriverGone("a"), Status.FAILED, Reason.RETRIES_EXHAUSTED, False),
        ["job.failed"],
    ),
    "the driver's node is drained": (
        *(RUNNING, Drained("a"), Status.PENDING, Reason.WAITING_FOR_CAPACITY, False),
        ["job.requeued"],
    ),
    "the driver is asked to leave before its first index is up": (
        *(ADMITTED, Drained("a"), Status.PENDING, Reason.WAITING_FOR_CAPACITY, False),
        ["job.requeued"],
    ),
    "a running job must make room": (
        *(RUNNING, Preempt(), Status.PREEMPTED, Reason.PREEMPTED, True),
        ["job.preempted"],
    ),
    "an admitted job must make room before its driver is up": (
        *(ADMITTED, Preempt(), Status.PREEMPTED, Reason.PREEMPTED, True),
        ["job.preempted"],
    ),
    "a preempted job's driver has drained": (
        *(PREEMPTED, Drained("a"), Status.PENDING, Reason.WAITING_FOR_CAPACITY, False),
        ["job.requeued"],
    ),
    "a preempted job's driver had to be killed": (
        *(PREEMPTED, DriverGone("a"), Status.PENDING, Reason.WAITING_FOR_CAPACITY, False),
        ["job.requeued"],
    ),
    "a preempted job's driver stumbles on its way out": (
        *(PREEMPTED, Exited("a", BOOM, True), Status.PENDING, Reason.WAITING_FOR_CAPACITY, False),
        ["job.requeued"],
    ),
    "a preempted job turns out to be impossible": (
        *(PREEMPTED, Exited("a", IMPOSSIBLE, False), Status.FAILED, Reason.ATTEMPT_FAILED, False),
        ["job.failed"],
    ),
    "a preempted job finishes before it has left": (
        *(PREEMPTED, Completed("a"), Status.COMPLETED, Reason.ALL_WORK_COMMITTED, False),
        ["job.completed"],
    ),
    "a user cancels a waiting job": (
        *(PENDING, Cancel(), Status.CANCELLED, Reason.CANCELLED_BY_USER, False),
        ["job.canceled"],
    ),
    "a user cancels an admitted job": (
        *(ADMITTED, Cancel(), Status.CANCELLED, Reason.CANCELLED_BY_USER, True),
        ["job.canceled"],
    ),
    "a user cancels a running job": (
        *(RUNNING, Cancel(), Status.CANCELLED, Reason.CANCELLED_BY_USER, True),
        ["job.canceled"],
    ),
    "a user cancels a preempted job": (
        *(PREEMPTED, Cancel(), Status.CANCELLED, Reason.CANCELLED_BY_USER, True),
        ["job.canceled"],
    ),
    "a cancelled job's driver has drained": (
        *(CANCELLED, Drained("a"), Status.CANCELLED, Reason.CANCELLED_BY_USER, False),
        [],
    ),
    "a cancelled job's driver was killed": (
        *(CANCELLED, DriverGone("a"), Status.CANCELLED, Reason.CANCELLED_BY_USER, False),
        [],
    ),
    "a cancelled job's driver had just finished": (
        *(CANCELLED, Completed("a"), Status.CANCELLED, Reason.CANCELLED_BY_USER, False),
        [],
    ),
    "a cancelled job's driver had just failed": (
        *(CANCELLED, Exited("a", BOOM, True), Status.CANCELLED, Reason.CANCELLED_BY_USER, False),
        [],
    ),
    "a user retries a failed job": (
        *(FAILED, Retry(), Status.PENDING, Reason.WAITING_FOR_CAPACITY, False),
        ["job.retried"],
    ),
    "a user retries a cancelled job": (
        *((*CANCELLED, Drained("a")), Retry(), Status.PENDING, Reason.WAITING_FOR_CAPACITY, False),
        ["job.retried"],
    ),
    "a user retries a cancelled job before its driver has left": (
        *(CANCELLED, Retry(), Status.PENDING, Reason.WAITING_FOR_DRIVER, True),
        ["job.retried"],
    ),
    "the driver from before an early retry leaves": (
        *(RETRIED_EARLY, Drained("a"), Status.PENDING, Reason.WAITING_FOR_CAPACITY, False),
        [],
    ),
    "the driver from before an early retry had just finished": (
        *(RETRIED_EARLY, Completed("a"), Status.PENDING, Reason.WAITING_FOR_CAPACITY, False),
        [],
    ),
    "a job waits too long": (
        *(PENDING, Expire("queue"), Status.FAILED, Reason.QUEUE_TIMEOUT, False),
        ["job.failed"],
    ),
    "a job runs too long": (
        *(RUNNING, Expire("run"), Status.FAILED, Reason.RUN_TIMEOUT, True),
        ["job.failed"],
    ),
    "a timed out job's driver has drained": (
        *(TIMED_OUT, Drained("a"), Status.FAILED, Reason.RUN_TIMEOUT, False),
        [],
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_change(case: str) -> None:
    before, command, status, reason, held, events = CHANGES[case]
    job = walk(*before)
    later = moment(command) + timedelta(seconds=1)
    after = decide(job, command, later)
    assert (after.job.status, after.job.reason, after.job.holds_capacity) == (status, reason, held)
    assert [event.event_type for event in after.events] == events
    assert all(event.created_at == later and event.message for event in after.events)
    assert after.job.updated_at == later
    assert Job.model_validate_json(after.job.model_dump_json()) == after.job


@pytest.mark.parametrize("case", [c for c in CHANGES if not isinstance(CHANGES[c][1], Cancel | Retry)])
def test_a_repeat_changes_nothing(case: str) -> None:
    before, command, *_ = CHANGES[case]
    job = walk(*before, command)
    again = decide(job, command, NOW + timedelta(seconds=5))
    assert again.job is job
    assert again.events == ()


def test_after_a_cancel_no_last_word_does_harm() -> None:
    job = walk(*CANCELLED, Drained("a"))
    for late in (Completed("a"), Exited("a", IMPOSSIBLE, False), Drained("a"), DriverGone("a")):
        assert decide(job, late, NOW).job is job


STALE: dict[str, tuple[tuple[Command, ...], Command]] = {
    "a command of a job that never had an attempt": (PENDING, Started("a")),
    "a start from the attempt before": ((*RUNNING, Drained("a"), Admit("b")), Started("a")),
    "a completion from the attempt before": ((*RUNNING, Drained("a"), Admit("b"), Started("b")), Completed("a")),
    "a death of the attempt before": ((*RUNNING, DriverGone("a"), Admit("b")), DriverGone("a")),
    "a zombie's completion after it was given up": ((*RUNNING, DriverGone("a")), Completed("a")),
    "a zombie's start after it was given up": ((*ADMITTED, DriverGone("a")), Started("a")),
    "a start after the end": (COMPLETED, Started("a")),
    "a second, different last word": (FAILED, Completed("a")),
    "a driver of a recalled attempt": ((*ADMITTED, Recall("a")), Taken("a", "jos-1")),
    "a last word of a recalled attempt": ((*ADMITTED, Recall("a")), Drained("a")),
    "a wait of the attempt before": ((*RUNNING, Drained("a"), Admit("b")), Waits("a", Reason.PULLING_IMAGE)),
    "a recall of the attempt before": ((*RUNNING, Drained("a"), Admit("b")), Recall("a")),
    "a preemption of the attempt before": ((*RUNNING, Drained("a"), Admit("b"), Started("b")), Preempt("", "a")),
    "a place that is given back for an attempt before": (
        (*ADMITTED, Recall("a"), Admit("b"), Drained("b")),
        Started("a"),
    ),
    "a driver for an attempt that was given up": ((*ADMITTED, DriverGone("a")), Taken("a", "warm-1")),
    "a driver for an attempt that is done": (COMPLETED, Taken("a", "warm-1")),
    "more for the attempt before": ((*RUNNING, Drained("a"), Admit("b", indexes=1)), Grow("a", 4)),
    "more for an attempt that is done": (COMPLETED, Grow("a", 4)),
}


@pytest.mark.parametrize("case", STALE)
def test_stale(case: str) -> None:
    before, command = STALE[case]
    with pytest.raises(StaleAttempt, match=type(command).__name__):
        decide(walk(*before), command, NOW)


INVALID: dict[str, tuple[tuple[Command, ...], Command]] = {
    "admit while admitted": (ADMITTED, Admit("b")),
    "admit while the driver before has not left": (RETRIED_EARLY, Admit("b")),
    "admit under an old token": ((*RUNNING, Drained("a"), Admit("b"), Drained("b")), Admit("a", number=1)),
    "admit an attempt that is yet far": (PENDING, Admit("b", number=2)),
    "complete before the start": (ADMITTED, Completed("a")),
    "start after a cancel": ((*ADMITTED, Cancel()), Started("a")),
    "start after a preemption": ((*ADMITTED, Preempt()), Started("a")),
    "preempt while waiting": (PENDING, Preempt()),
    "preempt after the end": (COMPLETED, Preempt()),
    "cancel after completion": (COMPLETED, Cancel()),
    "cancel after failure": (FAILED, Cancel()),
    "cancel twice": (CANCELLED, Cancel()),
    "retry after completion": (COMPLETED, Retry()),
    "retry while running": (RUNNING, Retry()),
    "retry while waiting": (PENDING, Retry()),
    "queue timeout of a running job": (RUNNING, Expire("queue")),
    "run timeout of a waiting job": (PENDING, Expire("run")),
    "timeout after the end": (COMPLETED, Expire("run")),
    "a reason to wait while running": (RUNNING, Hold(Reason.CLUSTER_FULL, "full")),
    "a reason to wait after the end": (FAILED, Hold(Reason.CLUSTER_FULL, "full")),
    "more while on the way out": (PREEMPTED, Grow("a", 4)),
    "more after a cancel": (CANCELLED, Grow("a", 4)),
    "a wait while running": (RUNNING, Waits("a", Reason.PULLING_IMAGE)),
    "a wait after a cancel": ((*ADMITTED, Cancel()), Waits("a", Reason.PULLING_IMAGE)),
    "a recall of what a driver has taken": ((*ADMITTED, Taken("a", "jos-1")), Recall("a")),
    "a recall of what runs": (RUNNING, Recall("a")),
    "a recall after a cancel": ((*ADMITTED, Cancel()), Recall("a")),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid(case: str) -> None:
    before, command = INVALID[case]
    job = walk(*before)
    with pytest.raises(InvalidTransition, match=type(command).__name__) as caught:
        decide(job, command, moment(command))
    assert str(job.status) in caught.value.message
    assert job.id in caught.value.message
    assert caught.value.http_status == 409


# --- what a transition leaves behind ------------------------------------------------------------------


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


# --- the page and the table ---------------------------------------------------------------------------


def reachable() -> list[Job]:
    """A job in every situation that the table tells apart."""
    grown = [(*ADMITTED, Grow("a", 3)), (*RUNNING, Grow("a", 3))]
    walks = [*grown, PENDING, ADMITTED, RUNNING, PREEMPTED, COMPLETED, FAILED, CANCELLED, TIMED_OUT, RETRIED_EARLY]
    return [walk(*one) for one in (*walks, OUT_OF_RETRIES, (*OUT_OF_RETRIES[:-1],))]


def every_command() -> list[Command]:
    fixed: list[Command] = [Preempt(), Cancel(), Retry(), Expire("queue"), Expire("run"), Admit("new")]
    fixed += [Hold(Reason.CLUSTER_FULL, "full"), Taken("a", "warm-1"), Grow("a", 4), Shrink("a", 0)]
    fixed += [Waits("a", Reason.PULLING_IMAGE, "pulls it"), Recall("a")]
    failed = [Exited("a", BOOM, True), Exited("a", IMPOSSIBLE, False)]
    return [*fixed, *failed, Started("a"), Completed("a"), Drained("a"), DriverGone("a")]


def test_the_diagram_shows_exactly_what_the_table_allows() -> None:
    drawn = defaultdict(set)
    for start, end, label in re.findall(r"^\s+(\w+) --> (\w+): (.+)$", PAGE, re.M):
        drawn[start, end] |= set(label.split(", "))
    happens = defaultdict(set)
    for job, command in itertools.product(reachable(), every_command()):
        try:
            after = decide(job, command, moment(command)).job
        except (InvalidTransition, StaleAttempt):
            continue
        if after is not job:
            happens[str(job.status), str(after.status)].add(type(command).__name__)
    assert drawn == happens
    pairs = {(start, command) for (start, _), commands in drawn.items() for command in commands}
    assert pairs == {(str(status), command.__name__) for status, command in TABLE}


def test_the_page_has_a_line_for_each_status_command_and_reason() -> None:
    rows = re.findall(r"^\| (\w+) \|", PAGE, re.M)
    named = [str(status) for status in Status] + [one.__name__ for one in get_args(Command)] + [*Reason]
    assert sorted(row for row in rows if row not in ("status", "command", "reason")) == sorted(named)


# --- random walks -------------------------------------------------------------------------------------

EVENT_OF = {
    Status.ADMITTED: "job.admitted",
    Status.RUNNING: "job.started",
    Status.PREEMPTED: "job.preempted",
    Status.COMPLETED: "job.completed",
    Status.FAILED: "job.failed",
    Status.CANCELLED: "job.canceled",
}


class Walk(RuleBasedStateMachine):
    """Controllers, users, launchers and drivers, some of them long dead, talk at random; the invariants hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.job = new_job(SPEC, NOW).job
        self.tokens: list[str] = []  # of every attempt there ever was
        self.alive: set[str] = set()  # tokens whose driver may still run, as the world knows it
        self.driven: set[str] = set()  # tokens that a driver took
        self.last: Command | None = None
        self.retries = 0  # automatic ones since the last Retry

    def send(self, command: Command) -> bool:
        """Applies the command and checks what holds for every single step. False if it was refused."""
        self.now += timedelta(seconds=1)
        before = self.job
        try:
            after = decide(before, command, self.now)
        except StaleAttempt:
            assert isinstance(command, OfAttempt)
            current = before.attempt is not None and command.token == before.attempt.token
            taken = before.attempt is not None and before.attempt.driver != "" and isinstance(command, Taken)
            assert not current or command.token not in self.alive or taken
            return False
        except InvalidTransition:
            assert not isinstance(command, Drained | Exited | DriverGone), "a driver that leaves is always heard"
            assert not isinstance(command, Taken), "a driver that comes is told Yes or that it is stale"
            return False
        self.check(before, command, after.job, [event.event_type for event in after.events])
        self.job, self.last = after.job, command
        return True

    def check(self, before: Job, command: Command, after: Job, events: list[str]) -> None:
        if after is before:
            assert not events
            return
        if before.status != after.status:
            expected = EVENT_OF.get(after.status) or ("job.retried" if isinstance(command, Retry) else "job.requeued")
            assert expected in events
        elif isinstance(command, Hold | Waits | Taken | Grow | Shrink):
            waits = before.reason != after.reason and after.reason != Reason.CAPACITY_GRANTED
            told = ["job.waiting"] if waits else []
            assert events == {Hold: told, Waits: told, Taken: [], Grow: ["job.grown"], Shrink: []}[type(command)]
            assert after.holds_capacity == before.holds_capacity
        else:
            assert not events
            assert before.holds_capacity
            assert not after.holds_capacity
        self.check_attempt(before.attempt, after.attempt)
        if before.status.terminal and after.status != before.status:
            assert isinstance(command, Retry)
            assert before.status is not Status.COMPLETED
        assert before.status is not Status.PREEMPTED or "attempt.failed" not in events
        if isinstance(command, Admit):
            assert not before.holds_capacity
            if command.token in self.tokens:  # only what the cluster took back may come again, and nobody drove it
                assert before.attempt is not None
                assert recalled(before.attempt)
                assert command.token == before.attempt.token == self.tokens[-1]
                assert command.token not in self.driven
            else:
                self.tokens.append(command.token)
            self.alive.add(command.token)
        if isinstance(command, LastWord | DriverGone | Recall):
            self.alive.discard(command.token)
        if isinstance(command, Taken | Started):
            self.driven.add(command.token)
        if isinstance(command, Recall):
            assert command.token not in self.driven
            counted = "preemption_count", "retry_count", "retries_spent", "automatic_retries"
            assert all(getattr(before, name) == getattr(after, name) for name in counted)
        if isinstance(command, Retry):
            self.retries = 0
        self.retries += events.count("attempt.failed")

    def check_attempt(self, before: Attempt | None, after: Attempt | None) -> None:
        """Within one attempt the driver stays the same, and a grant is taken back by the driver alone, for good."""
        if before is None or after is None or before.token != after.token:
            return
        assert before.driver in ("", after.driver)
        if before.indexes is None or (recalled(before) and not recalled(after)):  # it begins anew
            return
        assert after.indexes is not None
        assert after.indexes >= before.indexes if not after.shrunk else after.indexes <= before.indexes

    @rule(indexes=st.sampled_from([None, 1, 2]))
    def admit(self, indexes: int | None) -> None:
        self.send(Admit(f"token-{len(self.tokens) + 1}", indexes=indexes))

    @rule(age=st.integers(0, 2))
    @precondition(lambda self: self.tokens)
    def a_place_is_given_back(self, age: int) -> None:
        which = max(len(self.tokens) - 1 - age, 0)
        self.send(Admit(self.tokens[which], indexes=1, number=which + 1))

    @rule(reason=st.sampled_from([Reason.PULLING_IMAGE, Reason.NO_NODE_FOR_PODS, Reason.CAPACITY_GRANTED]))
    @precondition(lambda self: self.tokens)
    def its_driver_waits(self, reason: Reason) -> None:
        self.send(Waits(self.tokens[-1], reason, "in words"))

    @rule()
    @precondition(lambda self: self.tokens)
    def its_place_is_taken_back(self) -> None:
        self.send(Recall(self.tokens[-1]))

    @rule()
    @precondition(lambda self: self.tokens)
    def the_cluster_preempts(self) -> None:
        self.send(Preempt("its place is gone", self.tokens[-1]))

    @rule(reason=st.sampled_from([Reason.CLUSTER_FULL, Reason.QUOTA_EXHAUSTED]))
    def hold(self, reason: Reason) -> None:
        assert self.send(Hold(reason, "in words")) == (self.job.status is Status.PENDING)

    @rule(indexes=st.integers(1, 4))
    @precondition(lambda self: self.tokens)
    def grow(self, indexes: int) -> None:
        self.send(Grow(self.tokens[-1], indexes))

    @rule(indexes=st.integers(0, 4))
    @precondition(lambda self: self.tokens)
    def shrink(self, indexes: int) -> None:
        self.send(Shrink(self.tokens[-1], indexes))

    @rule(driver=st.sampled_from(["warm-1", "warm-2"]))
    @precondition(lambda self: self.tokens)
    def driver_comes(self, driver: str) -> None:
        """Of all that come for an attempt, only the first is let in, whatever became of the job."""
        attempt = self.job.attempt
        assert attempt is not None
        free = attempt.driver == driver or (self.job.holds_capacity and attempt.driver == "")
        assert self.send(Taken(self.tokens[-1], driver)) == free

    def say(self, token: str, kind: str) -> Command:
        words: dict[str, Command] = {
            "take": Taken(token, "zombie"),
            "wait": Waits(token, Reason.PULLING_IMAGE, "pulls it"),
            "recall": Recall(token),
            "grow": Grow(token, 9),
            "shrink": Shrink(token, 1),
            "start": Started(token, "node"),
            "complete": Completed(token),
            "drain": Drained(token),
            "gone": DriverGone(token),
            "stumble": Exited(token, BOOM, True),
            "give up": Exited(token, IMPOSSIBLE, False),
        }
        return words[kind]

    @rule()
    @precondition(lambda self: self.tokens)
    def driver_starts(self) -> None:
        self.send(self.say(self.tokens[-1], "start"))

    @rule(kind=st.sampled_from(["complete", "stumble", "stumble", "give up", "drain", "gone"]))
    @precondition(lambda self: self.tokens)
    def driver_leaves(self, kind: str) -> None:
        self.send(self.say(self.tokens[-1], kind))

    @rule(
        age=st.integers(1, 3),
        kind=st.sampled_from(
            ["take", "grow", "shrink", "start", "complete", "stumble", "give up", "drain", "gone", "wait", "recall"]
        ),
    )
    @precondition(lambda self: len(self.tokens) > 1)
    def zombie_speaks(self, age: int, kind: str) -> None:
        """The driver of an earlier attempt wakes up."""
        before = self.job
        assert not self.send(self.say(self.tokens[max(len(self.tokens) - 1 - age, 0)], kind))
        assert self.job is before

    @rule()
    def preempt(self) -> None:
        self.send(Preempt())

    @rule(command=st.sampled_from([Cancel(), Retry(), Retry()]))
    def user(self, command: Command) -> None:
        self.send(command)

    @rule(kind=st.sampled_from(["queue", "run"]))
    @precondition(lambda self: self.now.second % 3 == 0)
    def expire(self, kind: Literal["queue", "run"]) -> None:
        self.now += timedelta(seconds=600)
        self.send(Expire(kind))

    @rule()
    @precondition(lambda self: self.last is not None and not isinstance(self.last, Cancel | Retry))
    def repeat(self) -> None:
        """Nobody heard the answer to the last command."""
        before, last = self.job, self.last
        assert last is not None
        assert self.send(last)
        assert self.job is before

    @invariant()
    def capacity_is_held_while_a_driver_may_live(self) -> None:
        current = self.job.attempt
        assert self.job.holds_capacity == (current is not None and current.token in self.alive)
        assert self.job.holds_capacity == (current is not None and current.ended_at is None)
        if self.job.status in (Status.ADMITTED, Status.RUNNING, Status.PREEMPTED):
            assert self.job.holds_capacity
        assert self.job.status is not Status.COMPLETED or not self.job.holds_capacity
        assert len(self.alive) <= 1

    @invariant()
    def the_retry_budget_is_never_exceeded(self) -> None:
        assert self.job.automatic_retries == self.retries
        assert self.job.retries_spent <= min(self.retries, PIPELINE.retry_policy.max_retries)
        assert (self.job.not_before is not None) <= (self.job.status is Status.PENDING)

    @invariant()
    def the_record_agrees_with_itself(self) -> None:
        job = self.job
        assert job.status is not Status.FAILED or (job.error is not None and job.failed_at is not None)
        assert (job.failed_at is not None) == (job.status is Status.FAILED)
        assert (job.cancelled_at is not None) == (job.status is Status.CANCELLED)
        assert (job.completed_at is not None) == (job.status is Status.COMPLETED)
        assert job.reason in {reason.value for reason in Reason}
        assert (job.attempt.number if job.attempt else 0) == len(self.tokens)


Walk.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
TestWalk = Walk.TestCase


def test_commands_are_plain_values() -> None:
    assert Admit("a") == Admit("a")
    assert replace(Started("a"), host="node") == Started("a", "node")
