"""Random walks over the state machine."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from lifecycle_lab import (
    BOOM,
    IMPOSSIBLE,
    NOW,
    PIPELINE,
    SPEC,
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
    decide,
    new_job,
    recalled,
)
from jos.core.model import Attempt, Job, Status

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
