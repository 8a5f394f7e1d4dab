"""The driver's brain: stimuli in, instructions out. No clock, no network, no Ray: every race is a unit test.

It knows which index has what in hand, and decides what to push, retry, give up, restart and finish; what waits
stands in jos.core.backlog. The driver (jos/driver/driver.py) carries the instructions out.

Rules that stand here and nowhere else:
  * An index has at most two leases in hand: it computes one and reads ahead the other. A lease is as many spans
    as take about LEASE_SECONDS, so that neither calls nor lost work grow out of hand.
  * A span at fault is tried alone, `task_attempts` times, then cut in half until the bad task stands alone;
    that task is then buried: recorded as failed without being touched again.
  * A controller's grant may hold the number of indexes below the job's parallelism; it only ever grows.
  * Waiting for a node is no lack of progress: that is counted from when an index was placed. Where none has been
    placed for long, a controller's attempt leaves and is queued again.
  * An index that died is started again with back-off; losses without any progress end the attempt.
  * A training first has its inputs prepared, over all indexes; once that is committed and put together, its steps are
    done in order by one index, or by several together where its plan asks for that, and the others go.
  * Nothing is pushed while too many leases wait to be committed: memory does not grow when storage is slow.

May import: stdlib, jos.core. Tests: tests/unit/test_dispatch.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from jos.core.backlog import LEASES_IN_HAND, Backlog
from jos.core.ledger import STEPS, Commit, InputLedger, Ledger
from jos.core.plan import InputPlan, PlanWork, SpanWork, Work
from jos.core.standing import over
from jos.core.stimuli import (
    AllCommitted,
    Committed,
    Drain,
    GiveUp,
    Grant,
    IndexDown,
    IndexUp,
    Instruction,
    LeaseDone,
    NoRoom,
    Placed,
    Push,
    SpanFault,
    StartIndex,
    Stimulus,
    StopIndex,
    Tick,
    WriteCommits,
)

LEASE_SECONDS = 0.3
MAX_LEASE_SPANS = 64
STORAGE_BACKOFF = (1.0, 2.0, 4.0)  # seconds without new work after storage refused a write; then the attempt ends
TIMED_OUT = "timed out:"
RESTART_BACKOFF = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before the 1st, 2nd, … restart in a row


# --- the brain ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Lease:
    work: tuple[Work, ...]
    since: float  # when the index could begin with it: pushed, or the lease before it came back


@dataclass(slots=True)
class _Index:
    life: int = 1
    placed: bool = False  # a node had room for it: its process runs
    up: bool = False
    stopping: bool = False
    losses: int = 0  # in a row, without a finished lease between
    leases: dict[int, _Lease] = field(default_factory=dict)  # insertion order = order of work
    planned_last: bool = False

    @property
    def idle(self) -> bool:
        return self.up and not self.leases


@dataclass(frozen=True, slots=True)
class Limits:
    """From the pipeline's timeouts and retry policy; seconds."""

    task_attempts: int = 3
    task_seconds: float | None = None
    no_progress_seconds: float | None = None
    no_room_seconds: float | None = None  # without any index placed; None: waiting for nodes is as no progress
    training: bool = False  # inputs are prepared first, then come the steps
    most_together: int | None = None  # indexes that a group may have; None: as many as are allowed


class Dispatch:
    """State of one attempt's work. `handle` is the only door; `check` asserts what must always hold."""

    def __init__(
        self,
        ledger: Ledger,
        plans: Iterable[InputPlan],
        to_plan: Iterable[PlanWork],
        parallelism: int,
        limits: Limits,
        now: float,
        granted: int | None = None,
    ) -> None:
        """`parallelism`: the most indexes the job can use; `granted`: how many it may have at first, if not all."""
        self.ledger = ledger
        self.limits = limits
        self.most_indexes = parallelism
        self.plans: dict[int, InputPlan] = {}
        self.backlog = Backlog(ledger, limits.task_attempts)
        self.steps_to_come = limits.training  # until all inputs are prepared
        self.plan_steps: PlanWork | None = None  # kept back until then
        self.stepping = False  # from then on: all work is steps
        self.seat: int | None = None  # the index that does them, once they are planned
        self.group = 1  # how many processes it has
        self.allowed = self.most_indexes if granted is None else max(1, min(granted, self.most_indexes))
        self.indexes = {i: _Index() for i in range(self.allowed)}
        self.uncommitted = 0  # commits handed to the driver and not yet durable
        self.lease_seconds_per_span: float | None = None
        self.lease_spans = 1
        self.next_lease = 0
        self.draining = False
        self.over = False
        self.last_progress = now
        self.homeless_since = now  # when the last placed index went; counts while none is placed
        self.losses = 0  # of any index since the last progress
        self.storage_errors = 0  # in a row
        self.paused_until = now
        self.now = now
        for work in to_plan:
            if STEPS in work.inputs:
                self.plan_steps = work
            else:
                self.backlog.to_plan.append(work)
        for plan in plans:
            self._add_plan(plan)

    def start(self) -> list[Instruction]:
        """The first instructions: as many indexes as there can be work for."""
        if self.steps_to_come and self._prepared():
            self.indexes = {0: _Index()}
            self._open_steps()
        if self.nothing_left():
            self.over = True
            return [AllCommitted()]
        return [StartIndex(i, index.life, 0.0, group=self.group) for i, index in self.indexes.items()]

    def handle(self, stimulus: Stimulus, now: float) -> list[Instruction]:
        """One thing happened; what is to be done. Never raises on late or repeated stimuli: they are ignored."""
        self.now = now
        if self.over:
            return []
        out: list[Instruction] = []
        match stimulus:
            case Placed(i, life):
                if self._alive(i, life):
                    self._place(self.indexes[i])
            case IndexUp(i, life):
                if self._alive(i, life):
                    self._place(self.indexes[i])
                    self.indexes[i].up = True
            case IndexDown(i, life, reason):
                if self._alive(i, life):
                    self._index_down(i, reason, out)
            case LeaseDone():
                if self._alive(stimulus.index, stimulus.life):
                    self._lease_done(stimulus, out)
            case Committed(commits):
                self.uncommitted -= len(commits)
                self._progress()
            case Tick():
                self._timeouts(out)
            case Drain():
                self.draining = True
            case Grant(indexes):
                self._grow(indexes, out)
        if self.steps_to_come and not self.draining and self._prepared():
            self._open_steps()
        self._push_all(out)
        if not any(isinstance(o, GiveUp | NoRoom) for o in out) and self._finished():
            self.over = True
            out.append(AllCommitted())
        return out

    # --- what is left ---

    def nothing_left(self) -> bool:
        """Whether all work was given out (it may still be in hand, or come back)."""
        return not (self.steps_to_come or self.backlog)

    def settled(self) -> bool:
        """Whether no more indexes can be needed than there are: nothing is left and no file that is being planned can
        bring more, or the steps of a training are under way."""
        return self.seat is not None or (self.nothing_left() and not self._planning())

    def _finished(self) -> bool:
        if self.uncommitted or any(i.leases for i in self.indexes.values()):
            return False
        return self.draining or self.nothing_left()

    def _add_plan(self, plan: InputPlan) -> None:
        self.plans[plan.input] = plan
        if not (plan.input == STEPS and self.steps_to_come):
            self.backlog.add(plan)

    # --- stimuli ---

    def _alive(self, index: int, life: int) -> bool:
        return self.indexes[index].life == life

    def _grow(self, granted: int, out: list[Instruction]) -> None:
        """More indexes, unless there is nothing left to give them."""
        if self.draining or self.settled():
            return
        self.allowed = max(self.allowed, min(granted, self.most_indexes))
        if self.stepping:
            return  # it shows with the plan of the steps how many do them
        for i in range(len(self.indexes), min(granted, self.most_indexes)):
            self.indexes[i] = _Index()
            out.append(StartIndex(i, self.indexes[i].life, 0.0))

    def _place(self, index: _Index) -> None:
        if self._homeless():  # the time without any room does not count
            self.last_progress += self.now - max(self.homeless_since, self.last_progress)
        index.placed = True

    def _homeless(self) -> bool:
        """Indexes are wanted, and no node holds one. At the end, when all were sent home, none is wanted."""
        wanted = [x for x in self.indexes.values() if not x.stopping]
        return bool(wanted) and not any(x.placed for x in wanted)

    def _progress(self) -> None:
        self.last_progress = self.now
        self.losses = 0

    def _lease_done(self, done: LeaseDone, out: list[Instruction]) -> None:
        index = self.indexes[done.index]
        lease = index.leases.pop(done.lease, None)
        if lease is None:
            return
        index.losses = 0
        for waiting in index.leases.values():  # the index begins with the next one only now
            waiting.since = self.now
        for plan in done.plans:
            if plan.input not in self.plans:
                self._add_plan(plan)
                if plan.input == STEPS:
                    self._take_seat(done.index, plan, out)
        if done.plans:
            self._progress()
        else:
            self.backlog.to_plan.extendleft(w for w in reversed(lease.work) if isinstance(w, PlanWork))
        spans = sum(isinstance(w, SpanWork) for w in lease.work)
        if commits := self._in_order(done.commits, lease) if self.stepping else done.commits:
            self._learn_pace(done.seconds / max(spans, 1))
            self.uncommitted += len(commits)
            for commit in commits:
                self.backlog.attempts.pop((commit.input, commit.start, commit.end), None)
            out.append(WriteCommits(commits))
        for fault in done.faults:
            self._fault(fault, out)
        self._storage(done.storage_error, out)
        if done.sick:
            out.append(StopIndex(done.index, index.life, kill=True, reason=done.sick))
            self._index_down(done.index, done.sick, out)

    def _in_order(self, commits: tuple[Commit, ...], lease: _Lease) -> tuple[Commit, ...]:
        """A trainer's commits form one line from step 0. One that comes before its forerunner (whose reply is late,
        or whose state could not be stored) is done again: with a hole in the log no index could ever fill, since
        only the latest state is kept, the training could not go on."""
        taken = []
        for commit in sorted(commits, key=lambda c: c.start):
            if commit.start == self.backlog.steps_done:
                self.backlog.steps_done = commit.end
                taken.append(commit)
                if commit.stopped is not None:
                    self.backlog.forget_steps()
            else:
                self.backlog.steps_again(w for w in lease.work if isinstance(w, SpanWork) and w.start == commit.start)
        return tuple(taken)

    def _storage(self, error: str | None, out: list[Instruction]) -> None:
        """A store that is slow or full gets a little time; nothing is lost, the spans are queued again."""
        if error is None:
            self.storage_errors = 0
        elif self.now < self.paused_until:
            return  # one outage, seen by several leases
        elif self.storage_errors == len(STORAGE_BACKOFF):
            self.over = True
            out.append(GiveUp("storage_unavailable", error, True))
        else:
            self.paused_until = self.now + STORAGE_BACKOFF[self.storage_errors]
            self.storage_errors += 1

    def _learn_pace(self, seconds_per_span: float) -> None:
        old = self.lease_seconds_per_span
        self.lease_seconds_per_span = seconds_per_span if old is None else 0.7 * old + 0.3 * seconds_per_span
        fits = int(LEASE_SECONDS / max(self.lease_seconds_per_span, 1e-6))
        self.lease_spans = max(1, min(fits, self.lease_spans * 2, MAX_LEASE_SPANS))

    def _fault(self, fault: SpanFault, out: list[Instruction]) -> None:
        """A span failed inside a living index: again, in halves, or never."""
        work = fault.work
        if self.stepping:
            self.backlog.steps_again([work])
            if not fault.dropped:
                self._step_fault(fault, out)
        elif fault.dropped:
            self.backlog.again.appendleft(work)
        elif fault.final:
            self._searched(self.backlog.bury(work, fault.message))
        else:
            self._searched(self.backlog.blame(work, fault.message, whole=fault.whole))

    def _step_fault(self, fault: SpanFault, out: list[Instruction]) -> None:
        """A step cannot be left out: the ones after it depend on it."""
        work, attempts = fault.work, self.backlog.attempts
        tries = attempts[work.key] = attempts.get(work.key, 0) + 1
        if fault.final or tries >= self.limits.task_attempts:
            where = f"steps {work.start}..{work.end}"
            out.append(GiveUp("step_failed", f"{where} failed {tries} times: {fault.message}", False))
            self.over = True

    def _searched(self, forward: bool) -> None:
        """Of a search for a culprit; it ends by itself."""
        if forward:
            self._progress()

    def _index_down(self, i: int, reason: str, out: list[Instruction]) -> None:
        index = self.indexes[i]
        was_stopping, leases = index.stopping, list(index.leases.values())
        doing = "" if index.up else " while it was being set up"
        index.leases.clear()
        if index.placed:
            self.homeless_since = self.now
        index.placed = index.up = index.stopping = False
        index.life += 1
        index.losses += 1
        self.losses += 1
        for position, lease in enumerate(leases):
            self._take_back(lease, first=position == 0, reason=reason)
        if was_stopping or self.draining:
            return
        if self.losses > max(8, 2 * len(self.indexes)):
            self.over = True
            text = f"indexes were lost {self.losses} times in a row without any progress; the last{doing}: {reason}"
            out.append(GiveUp("compute_failed", text, True))
            return
        delay = RESTART_BACKOFF[min(index.losses, len(RESTART_BACKOFF)) - 1]
        out.append(StartIndex(i, index.life, delay, reason, self.group))

    def _take_back(self, lease: _Lease, first: bool, reason: str) -> None:
        """The work of a dead index. Only what it was computing is under suspicion; if that was one span alone,
        the span is to blame, else each goes alone next time so that we learn which it was."""
        spans = [w for w in lease.work if isinstance(w, SpanWork)]
        for plan in (w for w in lease.work if isinstance(w, PlanWork)):
            self._searched(self.backlog.plan_again(plan, first, reason))
        if self.stepping:
            self.backlog.steps_again(spans)
        elif not first:
            self.backlog.again.extend(spans)
        elif len(spans) == 1 and spans[0].bury is None:
            # the same words each time, since they may end up in an output; the event has the details
            told = reason if reason.startswith(TIMED_OUT) else "the process died while it worked on this"
            self._searched(self.backlog.blame(spans[0], told))
        else:
            self.backlog.alone.extend(w for w in spans if w.bury is None)
            self.backlog.again.extend(w for w in spans if w.bury is not None)

    # --- the steps of a training ---

    def _prepared(self) -> bool:
        """Whether every input is planned, committed and put together."""
        if self.backlog or self.uncommitted or any(x.leases for x in self.indexes.values()):
            return False
        nothing, known = InputLedger(), self.ledger.inputs
        return all(over(plan, known.get(o, nothing)) for o, plan in self.plans.items() if o != STEPS)

    def _open_steps(self) -> None:
        self.steps_to_come, self.stepping = False, True
        self.lease_seconds_per_span, self.lease_spans = None, 1  # a span of steps is something else
        if (plan := self.plans.get(STEPS)) is not None:  # of an earlier attempt; no index is up yet
            self._add_plan(plan)
            self.seat, self.group = 0, self._together(plan)
        elif self.plan_steps is not None:
            self.backlog.to_plan.append(self.plan_steps)

    def _together(self, plan: InputPlan) -> int:
        return max(1, min(plan.group, self.allowed, self.limits.most_together or self.allowed))

    def _take_seat(self, planner: int, plan: InputPlan, out: list[Instruction]) -> None:
        """Who planned the steps does them, for it has loaded all that they need; unless several do them together: then
        every index makes room for these."""
        self.group = self._together(plan) if plan.error is None else 1
        self.seat = planner if self.group == 1 else 0
        reason = "nothing is left for it" if self.group == 1 else f"{self.group} processes do the steps together"
        for i, index in self.indexes.items():  # those that are still being started, too: what they hold is given back
            if i != self.seat or self.group > 1:
                out.append(StopIndex(i, index.life, kill=False, reason=reason))
                index.stopping = i != self.seat
        if self.group == 1:
            return
        seat = self.indexes[self.seat]
        seat.up = seat.placed = False
        seat.life += 1
        self.homeless_since = self.now
        out.append(StartIndex(self.seat, seat.life, 0.0, group=self.group))

    def _timeouts(self, out: list[Instruction]) -> None:
        limit = self.limits.task_seconds
        for i, index in self.indexes.items():
            lease = next(iter(index.leases.values()), None)
            if limit is None or lease is None or isinstance(lease.work[0], PlanWork):
                continue  # planning has no tasks; if it hangs, no_progress ends it
            tasks = sum(w.end - w.start for w in lease.work if isinstance(w, SpanWork))
            allowed = limit * tasks
            if self.lease_seconds_per_span is not None:  # so that one hanging task is not given the time of all
                allowed = min(allowed, limit + 4 * self.lease_seconds_per_span * len(lease.work))
            if self.now - lease.since > allowed:
                reason = f"{TIMED_OUT} a task took longer than {limit:g} s"
                out.append(StopIndex(i, index.life, kill=True, reason=reason))
                self._index_down(i, reason, out)
        if self.draining or self.over:
            return
        room = self.limits.no_room_seconds
        if room is not None and self._homeless():
            if self.now - self.homeless_since > room:
                self.over = True
                out.append(NoRoom(f"no node has had room for an index for {room:g} s"))
            return
        quiet = self.limits.no_progress_seconds
        if quiet is not None and self.now - self.last_progress > quiet:
            self.over = True
            out.append(GiveUp("no_progress", f"nothing was committed for {quiet:g} s", True))

    # --- pushing ---

    def _push_all(self, out: list[Instruction]) -> None:
        if self.draining or self.over or self.now < self.paused_until:
            return
        # one lease to each index in turn, so that a short queue is shared out
        for in_hand in range(LEASES_IN_HAND):
            for i, index in self.indexes.items():
                if in_hand and self._near_end():
                    break  # the last spans go to whoever is free first; a kept one would wait behind another
                if self.seat not in (None, i):
                    continue
                if index.up and not index.stopping and len(index.leases) == in_hand:
                    self._push(i, index, out)
        self._release_idle(out)

    def _near_end(self) -> bool:
        """Whether fewer spans are left than there are indexes to do them."""
        if self.backlog.to_plan or self.stepping:
            return False
        indexes = sum(x.up for x in self.indexes.values())
        return self.backlog.spans(indexes) < indexes

    def _push(self, i: int, index: _Index, out: list[Instruction]) -> None:
        if self.uncommitted > 4 * MAX_LEASE_SPANS * len(self.indexes):
            return  # storage cannot keep up: wait for Committed
        work = self._next_work(index)
        if not work:
            return
        lease, self.next_lease = self.next_lease, self.next_lease + 1
        index.leases[lease] = _Lease(work, self.now)
        out.append(Push(i, index.life, lease, work))

    def _next_work(self, index: _Index) -> tuple[Work, ...]:
        holds_alone = any(
            len(lease.work) == 1 and isinstance(w := lease.work[0], SpanWork) and w.key in self.backlog.attempts
            for lease in index.leases.values()
        )
        if holds_alone and not self.stepping:
            return ()  # a suspect has the index to itself, so that a death can be laid at its door
        if self._may_plan(index):
            index.planned_last = True
            return (self.backlog.to_plan.popleft(),)
        index.planned_last = False
        if self.stepping:
            return self.backlog.next_steps()
        if self.backlog.alone:
            return () if index.leases else (self.backlog.suspect(),)
        return self.backlog.bundle(self.lease_spans, len(self.indexes))

    def _may_plan(self, index: _Index) -> bool:
        """Plan first, so that totals are known early, but never let planning keep every index from work."""
        if not self.backlog.to_plan:
            return False
        if not self.backlog.spans():
            return True
        return not index.planned_last and self._planning() < max(1, len(self.indexes) // 2)

    def _planning(self) -> int:
        return sum(isinstance(le.work[0], PlanWork) for x in self.indexes.values() for le in x.leases.values())

    def _release_idle(self, out: list[Instruction]) -> None:
        """An index for which nothing is left goes, and frees its GPU; the last one stays for what may come back."""
        if not self.settled():
            return
        busy = sum(bool(x.leases) for x in self.indexes.values())
        for i, index in self.indexes.items():
            if (busy if self.seat is None else i != self.seat) and index.idle and not index.stopping:
                index.stopping = True
                out.append(StopIndex(i, index.life, kill=False, reason="nothing is left for it"))

    def wanted(self) -> int:
        """How many indexes there is work for, or may be again."""
        if self.stepping:
            return self.allowed if self.seat is None else self.group
        return max(1, sum(not index.stopping for index in self.indexes.values()))

    def check(self) -> None:
        """Raises AssertionError if a span is in two places, or an index has too much in hand."""
        seen: set[tuple[int, int]] = set()
        in_hand = (w for x in self.indexes.values() for le in x.leases.values() for w in le.work)
        for work in chain(in_hand, self.backlog.waiting()):
            if isinstance(work, SpanWork):
                tasks = {(work.input, t) for t in range(work.start, work.end)}
                assert not tasks & seen, f"{work} is in two places"
                assert not self.ledger.of(work.input).done.overlaps(work.start, work.end), f"{work} was committed"
                seen |= tasks
        for i, index in self.indexes.items():
            assert len(index.leases) <= LEASES_IN_HAND, f"index {i} holds {len(index.leases)} leases"
            assert self.uncommitted >= 0
