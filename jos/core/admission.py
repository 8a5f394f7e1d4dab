"""Who gets capacity next: `plan(snapshot, now)` says whom to admit, to grow and to preempt, and why all others wait.

Pure: no clock, no I/O; the same snapshot gives the same plan. A plan made again right after this one was carried out
should take back nothing that this one gave, and a few plans later nothing is left to do. Long random walks (`make
walks`) still find rare snapshots that break the first, e.g. where an organisation is at its limit of running jobs while
drivers are leaving: then a job that was just admitted may be preempted by the next plan.
Cost is linear: waiting jobs that differ in nothing that counts (queue, organisation, need) form a lane, and once the
first of a lane does not fit, the rest is held without a look.
May import: stdlib, jos.core. Tests: tests/unit/test_admission.py and test_admission_walks.py. For people:
docs/queues.md. Speed: benchmarks/admission.py.

Three ledgers count what is used:
  now    all that is held, by jobs that are leaving as well: nothing is granted that is not free in it
  soon   without those that are leaving, with those who wait for just that: so the first in line gets what comes
         back, nobody slips in before it, and no second victim is taken for the same need
  kept   soon, and what others were promised who have their turn later: growing and borrowing stay out of it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice, takewhile
from operator import attrgetter

from jos.core.capacity import Ledger, Limits, Shape, Shares, demand
from jos.core.commands import Reason
from jos.core.growth import Growing, grow
from jos.core.reasons import free_but_kept, lacking, never_fits, waits_first
from jos.core.snapshot import Admit, Grow, Hold, Holding, Node, Plan, Preempt, Snapshot, Waiting
from jos.core.victims import Victim, Victims

__all__ = ["Admit", "Grow", "Hold", "Holding", "Node", "Plan", "Preempt", "Snapshot", "Waiting", "demand", "plan"]

# One plan preempts for so many jobs, and looks so often at victims one by one; the next plan goes on. This bounds what
# a plan costs when hundreds could preempt at once.
PREEMPTORS, LOOKS = 16, 48
# It is made anew so often at most because it lent what its lenders would reclaim at once, and looks so often for that.
LOANS, LOAN_LOOKS = 3, 8


def plan(snapshot: Snapshot, now: datetime) -> Plan:
    promised = snapshot.promised
    claims: frozenset[str] = frozenset()
    loans = LOANS
    while True:
        # 1. What is used, now and soon.
        desk = _Desk(snapshot)
        # 2. Who cannot be considered: back-off, old driver, stopped queue, can never fit. All others are in line.
        line = desk.set_aside(snapshot.waiting, now)
        # 3. Keep what the plan before promised to those that wait for others to leave.
        desk.keep(line, promised, claims)
        tiers = _tiers(line, desk.growing)
        for priority, jobs in tiers:  # over all queues, the highest first
            # 4. One index for each: promised first, then by share. Preempt where the rules allow.
            desk.serve(jobs)
            # 5. What is left grows the jobs of this priority.
            desk.grow(priority)
        # 6. Lenders wait that may take back what this plan lent: plan again with their part kept for them.
        claimed = desk.claimed(now) - claims
        if claimed and loans:
            claims, promised, loans = claims | claimed, promised | claimed, loans - 1
            continue
        # 7. A promise that did not hold up kept others out for nothing: plan again without it.
        in_vain = (desk.outstanding.keys() | desk.broken) - claims
        if not (desk.kept_out and in_vain):
            return desk.plan()
        promised -= in_vain


@dataclass(slots=True, eq=False)
class _Lane:
    """Jobs that are alike, in order. Of a strict queue: all its jobs of one priority."""

    queue: str
    strict: bool
    jobs: list[tuple[Waiting, Shape]]
    at: int = 0
    refusal: tuple[str, str] | None = None  # reason and message for the first; set while it is parked

    @property
    def head(self) -> tuple[Waiting, Shape]:
        return self.jobs[self.at]


Key = tuple[bool, float, float, datetime, str, _Lane]


def _tiers(
    line: Iterable[tuple[Waiting, Shape]], growing: dict[int, list[Growing]]
) -> list[tuple[int, list[tuple[Waiting, Shape]]]]:
    tiers: dict[int, list[tuple[Waiting, Shape]]] = {priority: [] for priority in growing}
    for entry in line:
        tiers.setdefault(entry[0].priority, []).append(entry)
    return sorted(tiers.items(), reverse=True)


class _Desk:
    """The state of one plan in the making."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.config = snapshot.config
        self.limits = limits = Limits(snapshot.config, snapshot.nodes, snapshot.optional_gpus)
        self.shares = Shares(limits)
        self.now, self.soon = Ledger(limits), Ledger(limits)
        self.growing: dict[int, list[Growing]] = {}
        self.held = [(job, limits.shape(job.resources)) for job in snapshot.holding]
        for job, shape in self.held:
            self._count(job, shape)
        self.kept = self.soon.copy()
        self.victims = Victims(snapshot.config, self.held, (self.soon, self.kept))
        self.version = 0  # raised when somebody is told to leave: who did not fit may fit now
        self.outstanding: dict[str, tuple[Waiting, Shape]] = {}  # promised, and their turn is yet to come
        self.broken: set[str] = set()  # promised, but others came first
        self.kept_out = False  # whether a promise kept anybody out
        self.took: set[str] = set()  # queues in which this plan gave something that can be reclaimed
        self.claims: set[str] = set()  # jobs that would reclaim from there what was there before
        self.lenders: list[_Lane] = []  # that were turned away and may take back what their queue lent
        self.promised: frozenset[str] = frozenset()
        self.lasting: frozenset[str] = frozenset()
        self.reserved: list[tuple[Waiting, Shape]] = []  # in soon and not in now
        self.refused: dict[tuple[str, Shape], tuple[int, str, str]] = {}  # version, reason, message
        self.turned_away: dict[tuple[str, str, Shape], tuple[Waiting, Shape]] = {}  # the first of each kind
        self.blocked: set[str] = set()  # strict queues whose head waits
        self.admitted: dict[str, Growing] = {}
        self.fresh: list[tuple[Waiting, Shape]] = []  # the same
        self.grown: dict[str, Growing] = {}
        self.leaving: set[str] = set()  # told to leave by this plan
        self.preempts: list[Preempt] = []
        self.holds: list[Hold] = []

    def _count(self, job: Holding, shape: Shape) -> None:
        self.now.charge(job.queue, job.org_id, shape, job.indexes, 1)
        self.shares.charge(job.org_id, shape, job.indexes)
        if job.leaving:
            return
        self.soon.charge(job.queue, job.org_id, shape, job.indexes, 1)
        queue = self.config.queues.get(job.queue)
        if job.growable and queue is not None and not queue.stopped and job.indexes < job.parallelism:
            entry = Growing(job.id, job.org_id, job.queue, shape, job.indexes, job.parallelism, job.admitted_at)
            self.growing.setdefault(job.priority, []).append(entry)

    # --- who is in line ---------------------------------------------------------------------------------

    def set_aside(self, waiting: Iterable[Waiting], now: datetime) -> list[tuple[Waiting, Shape]]:
        line = []
        verdicts: dict[tuple[str, Shape], tuple[str, str] | None] = {}
        # two stable sorts instead of one by pairs: thousands of pairs would wake the garbage collector
        for job in sorted(sorted(waiting, key=attrgetter("id")), key=attrgetter("queued_at")):
            if first := waits_first(job.not_before, job.holds_capacity, now):
                self._hold(job, *first)
                continue
            shape = self.limits.shape(job.resources)
            key = job.queue, shape
            if key not in verdicts:
                verdicts[key] = never_fits(self.limits, job.queue, shape)
            verdict = verdicts[key]
            if verdict is None:
                line.append((job, shape))
            else:
                self._hold(job, *verdict)
        return line

    def keep(
        self, line: Iterable[tuple[Waiting, Shape]], promised: frozenset[str], claims: frozenset[str] = frozenset()
    ) -> None:
        """`claims`: those of the promised for which it is kept even when they do not fit at their turn."""
        self.promised, self.lasting = promised, claims
        for job, shape in line if promised else ():
            if job.id in promised:
                self._outstands(job, shape)

    def _outstands(self, job: Waiting, shape: Shape) -> None:
        self.outstanding[job.id] = job, shape
        self.kept.charge(job.queue, job.org_id, shape, 1, 1)

    # --- one index for each -----------------------------------------------------------------------------

    def serve(self, jobs: list[tuple[Waiting, Shape]]) -> None:
        """One tier: always the lane whose turn it is; keys only grow, so a stale one is put back."""
        parked = self._lanes(jobs)
        version = -1
        while version != self.version:  # somebody was told to leave: more may come back than was asked for
            version = self.version
            self.blocked.difference_update(lane.queue for lane in parked if lane.refusal)
            parked = self._turns(parked)
        for lane in parked:
            self._turn_away(lane)

    def _turns(self, lanes: Iterable[_Lane]) -> list[_Lane]:
        """Serves them until none can go on; those that are left."""
        parked: list[_Lane] = []
        turns = [self._key(lane) for lane in lanes if not self._settled(lane, parked)]
        heapify(turns)
        while turns:
            lane = turns[0][-1]
            if self._settled(lane, parked):
                heappop(turns)
                continue
            fresh = self._key(lane)
            if fresh > turns[0]:
                heapreplace(turns, fresh)
                continue
            heappop(turns)
            if not self._serve(lane):
                parked.append(lane)
            elif lane.at < len(lane.jobs):
                heappush(turns, self._key(lane))
        return parked

    def _settled(self, lane: _Lane, parked: list[_Lane]) -> bool:
        """Whether the same need was refused in its queue before and nobody was told to leave since."""
        job, shape = lane.head
        known = self.refused.get((job.queue, shape))
        if lane.strict or known is None or known[0] != self.version or job.id in self.outstanding:
            return False
        lane.refusal = known[1:]
        parked.append(lane)
        return True

    def _lanes(self, jobs: Iterable[tuple[Waiting, Shape]]) -> list[_Lane]:
        lanes: dict[tuple[object, ...], _Lane] = {}
        promised = self.promised
        for entry in jobs:
            job, shape = entry
            strict = self.config.queues[job.queue].strict
            key = (job.queue,) if strict else (job.queue, job.org_id, shape, job.id in promised)
            lane = lanes.get(key)
            if lane is None:
                lanes[key] = _Lane(job.queue, strict, [entry])
            else:
                lane.jobs.append(entry)
        return list(lanes.values())

    def _key(self, lane: _Lane) -> Key:
        """Promised first; then queues within their quota; then the organisation with the least; then by time."""
        job, shape = lane.head
        borrowed = self.now.borrowed_share(job.queue, shape)
        return job.id not in self.promised, borrowed, self.shares.of(job.org_id), job.queued_at, job.id, lane

    def _serve(self, lane: _Lane) -> bool:
        """The first of the lane has its turn. False: it does not fit, and so does nobody behind it."""
        job, shape = lane.head
        if lane.strict and job.queue in self.blocked:
            lane.refusal = None
            return False
        lane.refusal = self._consider(job, shape)
        if lane.refusal is None:
            lane.at += 1
            if lane.strict and job.id not in self.admitted:  # it waits for others to leave, and all wait with it
                self.blocked.add(job.queue)
            return True
        if not lane.strict:
            return False
        if lane.refusal[0] == Reason.ORGANISATION_LIMIT:  # its organisation's affair; others need not wait for it
            self._hold(job, *lane.refusal)
            self.turned_away.setdefault((job.queue, job.org_id, shape), (job, shape))
            lane.at += 1
            return True
        self.blocked.add(job.queue)
        return False

    def _consider(self, job: Waiting, shape: Shape) -> tuple[str, str] | None:
        """Admits it, or reserves for it what comes back; else why not."""
        if self.outstanding.pop(job.id, None):
            self.kept.charge(job.queue, job.org_id, shape, -1, -1)
        refusal: tuple[str, str] | None = None
        if not self.soon.may_run(job.org_id):
            most = self.config.organisation(job.org_id).max_running
            refusal = Reason.ORGANISATION_LIMIT, f"Its organisation runs {most} jobs, as many as it may at once."
        elif self._fits_soon(job, shape):
            self._give(job, shape, "Jobs that hold what it needs are leaving.")
        else:
            refusal = self._push_out(job, shape)
        if refusal is not None and job.id in self.lasting:
            self._outstands(job, shape)
        elif refusal is not None and job.id in self.promised:
            self.broken.add(job.id)
        return refusal

    def _fits_soon(self, job: Waiting, shape: Shape) -> bool:
        if not self.soon.fits(job.queue, shape):
            return False
        if self._unclaimed(job, shape):
            return True
        self.kept_out = True
        return False

    def _unclaimed(self, job: Waiting, shape: Shape) -> bool:
        """What it would borrow is kept for nobody else. Within a queue no claim counts, but priority."""
        if not self.soon.borrows(job.queue, shape):
            return True
        rivals = self.outstanding.values() if self.lasting else ()
        own = [entry for entry in rivals if entry[0].queue == job.queue and entry[0].id in self.lasting]
        for other, needs in own:
            self.kept.charge(other.queue, other.org_id, needs, -1, -1)
        fits = self.kept.fits(job.queue, shape)
        for other, needs in own:
            self.kept.charge(other.queue, other.org_id, needs, 1, 1)
        return fits

    def _give(self, job: Waiting, shape: Shape, message: str) -> None:
        """It fits once those that leave have left: at once where there is room beside them, else it is kept for it."""
        if self.now.fits(job.queue, shape) and self.now.may_run(job.org_id):
            self._admit(job, shape)
        else:
            self._reserve(job, shape, message)

    def _admit(self, job: Waiting, shape: Shape) -> None:
        for ledger in (self.now, self.soon, self.kept):
            ledger.charge(job.queue, job.org_id, shape, 1, 1)
        self.shares.charge(job.org_id, shape, 1)
        entry = Growing(job.id, job.org_id, job.queue, shape, 1, job.parallelism, job.queued_at)
        self.admitted[job.id] = entry
        self.fresh.append((job, shape))
        self.took.add(job.queue)
        if job.parallelism > 1:
            self.growing.setdefault(job.priority, []).append(entry)

    def _reserve(self, job: Waiting, shape: Shape, message: str) -> None:
        for ledger in (self.soon, self.kept):
            ledger.charge(job.queue, job.org_id, shape, 1, 1)
        self.shares.charge(job.org_id, shape, 1)
        self.reserved.append((job, shape))
        self._hold(job, Reason.WAITING_FOR_PREEMPTION, message)

    def _push_out(self, job: Waiting, shape: Shape) -> tuple[str, str] | None:
        known = self.refused.get((job.queue, shape))
        if known is not None and known[0] == self.version:
            return known[1:]
        able = self.version < PREEMPTORS and self.victims.looks < LOOKS
        victims = self.victims.choose(job, shape, lambda: self._fits_soon(job, shape)) if able else []
        if self._lent(job, victims):
            self.claims.add(job.id)
        if victims and not self._overtaken(job, shape, victims):
            self.victims.tell(victims)
            self.victims.release(victims)
            self.leaving.update(v.job.id for v in victims)
            self.version += 1
            # one before it may be who waits for what they leave, while this one has room beside them
            self._give(job, shape, f"Waits for {len(victims)} running job(s) that were told to leave for it.")
            message = f"Job {job.id} (priority {job.priority}, queue {job.queue}) needs the capacity."
            self.preempts += [Preempt(v.job.id, job.id, message) for v in victims]
            return None
        lacks = self.now.lacks(job.queue, shape)
        if lacks:
            reason, message = lacking(shape, lacks[0])
        else:
            reason, message = free_but_kept(shape, self.soon.lacks(job.queue, shape))
        self.refused[job.queue, shape] = self.version, reason, message
        return reason, message

    def _overtaken(self, job: Waiting, shape: Shape, victims: list[Victim]) -> bool:
        """Whether somebody of higher priority, who may not preempt as much, would take what the victims leave: the
        victims would have left for nothing, and others would have to follow them."""
        ahead = [entry for entry in self.turned_away.values() if entry[0].priority > job.priority]
        if not ahead:
            return False
        self.victims.release(victims)
        self.kept.charge(job.queue, job.org_id, shape, 1, 1)
        waiting = sorted(self.reserved, key=lambda entry: -entry[0].priority)
        put_back = []
        overtaken = False
        for other, needs in sorted(ahead, key=lambda entry: entry[0].priority):
            while waiting and waiting[-1][0].priority < other.priority:  # its turn comes before theirs
                put_back.append(waiting.pop())
                self._charge_soon(put_back[-1], -1)
            if self._way_in(other, needs):
                overtaken = True
                break
        for entry in put_back:
            self._charge_soon(entry, 1)
        self.kept.charge(job.queue, job.org_id, shape, -1, -1)
        self.victims.release(victims, -1)
        return overtaken

    def _charge_soon(self, entry: tuple[Waiting, Shape], sign: int) -> None:
        job, shape = entry
        self.soon.charge(job.queue, job.org_id, shape, sign, sign)

    def _way_in(self, job: Waiting, shape: Shape) -> bool:
        if not self.soon.may_run(job.org_id):
            return False
        return self._fits_soon(job, shape) or bool(self.victims.choose(job, shape, lambda: self._fits_soon(job, shape)))

    def _turn_away(self, lane: _Lane) -> None:
        """The rest of the lane waits: the first with what it lacks, the others behind it."""
        if lane.strict and lane.refusal is None:
            message = f"Queue {lane.queue} is strict, and an earlier job of it waits for capacity."
            for job, _ in lane.jobs[lane.at :]:
                self._hold(job, Reason.BEHIND_HEAD, message)
            return
        assert lane.refusal is not None
        if self._reclaims(lane.queue):
            self.lenders.append(lane)
        head, shape = lane.head
        reason, message = lane.refusal
        self._hold(head, reason, message)
        limited = head.org_id if reason == Reason.ORGANISATION_LIMIT else ""
        self.turned_away.setdefault((head.queue, limited, shape), (head, shape))
        if lane.strict:
            reason, message = Reason.BEHIND_HEAD, f"Queue {lane.queue} is strict, and job {head.id} is before it."
        else:
            message = f"{message} Job {head.id} needs the same and is before it."
        self.holds += [Hold(job.id, reason, message) for job, _ in lane.jobs[lane.at + 1 :]]

    def _hold(self, job: Waiting, reason: str, message: str) -> None:
        self.holds.append(Hold(job.id, reason, message))

    # --- loans ------------------------------------------------------------------------------------------

    def claimed(self, now: datetime) -> set[str]:
        """Jobs that this plan preempts for, or the next one would, because of what this one lent out of their own
        queue's quota. With them those of their queue that were admitted: nothing was kept for these either."""
        claims = set(self.claims)
        if self.lenders and self.took:
            candidates = Victims(self.config, self._afterwards(now), (self.soon, self.kept))
            queues: set[str] = set()
            asked: set[tuple[str, Shape]] = set()
            for lane in self.lenders:
                job, shape = lane.head
                if lane.queue in queues or (lane.queue, shape) in asked or candidates.looks >= LOAN_LOOKS:
                    continue
                asked.add((lane.queue, shape))
                fits = partial(self._fits_unclaimed, job, shape)
                if self._lent(job, candidates.choose(job, shape, fits)):
                    queues.add(lane.queue)  # those of one lane claim all that is left of its quota
                    claims.update(self._alike(lane))
            claims.update(entry.id for entry in self.admitted.values() if entry.queue in queues)
        return claims

    def _reclaims(self, queue: str) -> bool:
        """From any priority, that is; from a lower one whoever has the higher one was served before."""
        return self.config.queues[queue].preemption.reclaim == "any"

    def _lent(self, job: Waiting, victims: Iterable[Victim]) -> bool:
        return any(v.job.queue != job.queue and v.job.queue in self.took for v in victims) and self._reclaims(job.queue)

    def _fits_unclaimed(self, job: Waiting, shape: Shape) -> bool:
        return self.soon.fits(job.queue, shape) and self._unclaimed(job, shape)

    def _afterwards(self, now: datetime) -> Iterator[tuple[Holding, Shape]]:
        """What is held once this plan was carried out."""
        for holding, shape in self.held:
            if holding.id not in self.leaving:
                grown = self.grown.get(holding.id)
                yield (replace(holding, indexes=grown.granted) if grown else holding), shape
        for job, shape in self.fresh:
            yield (
                Holding(
                    job.id, job.org_id, job.queue, job.priority, job.resources, job.parallelism,
                    self.admitted[job.id].granted, now, preemption_count=job.preemption_count,
                ),
                shape,
            )  # fmt: skip

    def _alike(self, lane: _Lane) -> Iterator[str]:
        """The first, and those behind it that need the same, as many as are within their queue's own quota."""
        _, shape = lane.head
        most = int(min(max(1, self.soon.own_room(lane.queue, shape)), len(lane.jobs)))
        alike = takewhile(lambda entry: entry[1] is shape, islice(lane.jobs, lane.at, None))
        return (job.id for job, _ in islice(alike, most))

    # --- the rest -----------------------------------------------------------------------------------------

    def grow(self, priority: int) -> None:
        growing = self.growing.get(priority, ())
        able = [entry for entry in growing if entry.queue not in self.blocked and entry.id not in self.leaving]
        if able and grow(able, self.now, self.soon, self.kept, self.shares):
            self.kept_out = True
        for entry in able:
            if entry.granted > entry.before and entry.id not in self.admitted:
                self.grown[entry.id] = entry
                self.took.add(entry.queue)

    def plan(self) -> Plan:
        return Plan(
            admits=[Admit(entry.id, entry.granted) for entry in self.admitted.values()],
            grows=[Grow(entry.id, entry.granted) for entry in self.grown.values()],
            preempts=self.preempts,
            holds=self.holds,
            promised=frozenset(job.id for job, _ in self.reserved),
        )
