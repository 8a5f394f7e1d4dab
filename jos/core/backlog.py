"""The work that nobody has in hand: what is to be planned, what came back, what is under suspicion, what is fresh.

Which index gets what, and when, is for jos.core.dispatch to say; here stands what comes next, and what becomes of work
that failed. May import: stdlib, jos.core. Tests: tests/unit/test_dispatch.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from jos.core.ledger import STEPS, Ledger
from jos.core.plan import InputPlan, PlanWork, SpanWork, Work, remaining

LEASES_IN_HAND = 2


class Backlog:
    """`task_attempts`: tries of a span before it is cut in half. A method that returns a bool says whether the search
    for a culprit has come forward."""

    def __init__(self, ledger: Ledger, task_attempts: int) -> None:
        self.ledger, self.task_attempts = ledger, task_attempts
        self.to_plan: deque[PlanWork] = deque()
        self.again: deque[SpanWork] = deque()  # came back; before anything new
        self.alone: deque[SpanWork] = deque()  # suspects: one at a time, nothing else on that index
        self.fresh: deque[Iterator[SpanWork]] = deque()  # one per plan, expanded as it is needed
        self.heads: deque[SpanWork] = deque()  # the next of them, looked ahead
        self.attempts: dict[tuple[int, int, int], int] = {}  # only of spans that failed
        self.plan_attempts: dict[int, int] = {}  # group -> deaths of an index that planned it
        self.steps_done = len(ledger.of(STEPS).done)  # of a trainer, those on their way to the log included

    def __bool__(self) -> bool:
        return bool(self.to_plan) or self.spans() > 0

    def spans(self, enough: int = 1) -> int:
        """How many spans wait; fresh ones are counted only up to `enough`."""
        return len(self.again) + len(self.alone) + self._fresh_left(enough)

    def waiting(self) -> Iterator[SpanWork]:
        return chain(self.again, self.alone)

    def add(self, plan: InputPlan) -> None:
        if plan.error is None:
            # lazy: the ledger it is compared with cannot yet hold a span that this iterator has not given out
            self.fresh.append(remaining(plan, self.ledger.of(plan.input)))

    def _fresh_left(self, enough: int = 1) -> int:
        while len(self.heads) < enough and self.fresh:
            head = next(self.fresh[0], None)
            if head is None:
                self.fresh.popleft()
            else:
                self.heads.append(head)
        return len(self.heads)

    # --- what comes next ---

    def suspect(self) -> SpanWork:
        """One that must go alone."""
        work = self.alone.popleft()
        self.attempts.setdefault(work.key, 0)
        return work

    def bundle(self, most: int, indexes: int) -> tuple[Work, ...]:
        """The next spans for one lease: at most a fair share of what is left, so that all end together."""
        taken: list[SpanWork] = []
        while len(taken) < most:
            if self.again:
                taken.append(self.again.popleft())
            elif self._fresh_left():
                taken.append(self.heads.popleft())
            else:
                break
        share = -(-len(taken) // (LEASES_IN_HAND * indexes))
        if len(taken) < most and len(taken) > share:  # the queue just ran dry: share the end
            self.again.extend(taken[share:])
            taken = taken[:share]
        return tuple(taken)

    # --- what came back ---

    def blame(self, work: SpanWork, message: str, *, whole: bool = False) -> bool:
        """A span at fault: alone, then in halves until the bad task stands alone, then never again."""
        tries = self.attempts.pop(work.key, 0) + 1
        if tries < self.task_attempts:
            self.attempts[work.key] = tries
            self.alone.append(work)
            return False
        if whole or work.end - work.start == 1:
            return self.bury(work, message)
        middle = (work.start + work.end) // 2
        for half in (work.part_of(work.start, middle), work.part_of(middle, work.end)):
            self.attempts[half.key] = self.task_attempts - 1  # the halves get one try each
            self.alone.append(half)
        return True

    def bury(self, work: SpanWork, message: str) -> bool:
        self.again.append(replace(work, bury=message))
        return True

    def plan_again(self, work: PlanWork, first: bool, reason: str) -> bool:
        """Planning that an index died of: again, then file by file, then the file at fault is given up alone."""
        tries = self.plan_attempts.get(work.group, 0) + first
        self.plan_attempts[work.group] = tries
        if tries < self.task_attempts or STEPS in work.inputs:  # without steps there is no job: losses end the attempt
            self.to_plan.appendleft(work)
            return False
        if len(work.inputs) > 1:
            self.to_plan.extendleft(reversed(work.singly()))
        else:
            text = f"it cannot be planned, the process died of it {tries} times"
            self.to_plan.appendleft(replace(work, bury=text))
        return True

    # --- the steps of a training, one line of spans ---

    def next_steps(self) -> tuple[Work, ...]:
        """The earliest open span, with the state to begin from, if that is committed; if it is not, the index must
        already stand there (its last lease ends where this begins), else it drops the work."""
        if self.again:
            work = min(self.again, key=lambda w: w.start)
            self.again.remove(work)
        elif self._fresh_left():
            work = self.heads.popleft()
        else:
            return ()
        last = self.ledger.of(STEPS).state
        key = last.state.key if last and last.state and last.end == work.start else None
        return (replace(work, state=key),)

    def steps_again(self, spans: Iterable[SpanWork]) -> None:
        self.again.extend(replace(w, state=None) for w in spans if w.start >= self.steps_done)

    def forget_steps(self) -> None:
        """The training stopped early: those that are left are not needed."""
        self.fresh.clear()
        self.heads.clear()
        self.again.clear()
