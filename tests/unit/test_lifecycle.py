"""The state machine: tables of single transitions."""

from __future__ import annotations

from datetime import timedelta

import pytest
from lifecycle_lab import (
    ADMITTED,
    BOOM,
    CANCELLED,
    COMPLETED,
    FAILED,
    IMPOSSIBLE,
    NOW,
    OUT_OF_RETRIES,
    PENDING,
    PREEMPTED,
    RETRIED_EARLY,
    RUNNING,
    TIMED_OUT,
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
    Started,
    Taken,
    Waits,
    decide,
)
from jos.core.model import Job, Status

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
