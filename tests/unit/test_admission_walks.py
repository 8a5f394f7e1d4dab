"""Admission on random walks: whatever is submitted, ends, is preempted, cancelled or reconfigured, the rules hold.

The oracle knows nothing of ledgers and lanes: it adds up what jobs hold.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jos.core.admission import Holding, Node, Plan, Snapshot, Waiting, demand, plan
from jos.core.model import Gpu, Resources
from jos.core.queues import QueueConfig

START = datetime(2026, 1, 1, tzinfo=UTC)
SHAPES = [
    Resources(cpu=1),
    Resources(cpu=3),
    Resources(cpu=1, gpu=Gpu(count=1)),
    Resources(cpu=2, memory_bytes=8_000_000_000, gpu=Gpu(count=1, type="H100", required=True)),
    Resources(cpu=1, gpu=Gpu(count=3, required=True)),
]
PERMANENT = {"QueueStopped", "ExceedsQuota", "NoNodeFits"}
LACKING = {"QuotaExhausted", "ClusterFull"}
BIG = Node({"cpu": 8, "memory": 64e9, "gpu": 4, "gpu:H100": 4})
SMALL = Node({"cpu": 4, "memory": 16e9, "gpu": 1})
CLUSTERS: list[tuple[Node, ...] | None] = [None, (BIG,), (BIG, SMALL), (SMALL, SMALL), (BIG, BIG, SMALL)]
SHARED = {"cohort": "main", "borrowing_limit": {"gpu": 2}}
CONFIGS = [
    QueueConfig.of(data)
    for data in (
        None,
        {"queues": {"default": {"quota": {"cpu": 6, "gpu": 3}}, "a": {"strategy": "strict_fifo"}, "b": {}}},
        {
            "queues": {
                "default": {"quota": {"cpu": 3}, "preemption": {"within_queue": "never"}},
                "a": {"quota": {"cpu": 4, "gpu": 2}, "preemption": {"reclaim": "any"}, **SHARED},
                "b": {"quota": {"cpu": 4, "gpu": 2}, "weight": 2, **SHARED},
            },
            "organisations": {"org_x": {"max_running": 2}, "org_y": {"weight": 3}},
            "max_preemptions_before_exempt": 2,
        },
        {
            "queues": {
                "default": {"quota": {"gpu": 2}, "cohort": "main", "preemption": {"reclaim": "lower_priority"}},
                "a": {"quota": {"gpu": 1}, "cohort": "main", "strategy": "strict_fifo"},
                "b": {"quota": {"gpu": 0}, "cohort": "main", "preemption": {"reclaim": "never"}},
            },
            "organisations": {"default": {"max_running": 3}},
        },
    )
]


# --- the oracle ---------------------------------------------------------------------------------------


def add_up(snapshot: Snapshot, jobs: Iterable[tuple[Holding | Waiting, int]]) -> dict[tuple[str, str], float]:
    """(scope, resource) -> used."""
    used: dict[tuple[str, str], float] = {}
    for job, indexes in jobs:
        queue = snapshot.config.queues.get(job.queue)
        scopes = ["cluster"]
        if queue is not None:
            scopes += [f"queue {job.queue}"] + ([f"cohort {queue.cohort}"] if queue.cohort else [])
        for name, amount in demand(job.resources, snapshot.nodes).items():
            for scope in scopes:
                used[scope, name] = used.get((scope, name), 0.0) + amount * indexes
    return used


def limit(snapshot: Snapshot, scope: str, name: str) -> float:
    kind, _, which = scope.partition(" ")
    if kind == "cluster":
        return math.inf if snapshot.nodes is None else sum(n.resources.get(name, 0.0) for n in snapshot.nodes)
    if kind == "cohort":
        return sum(q.quota.get(name, math.inf) for q in snapshot.config.queues.values() if q.cohort == which)
    queue = snapshot.config.queues[which]
    more = queue.borrowing_limit.get(name, math.inf) if queue.cohort else 0.0
    return queue.quota.get(name, math.inf) + more


def scopes_of(snapshot: Snapshot, job: Waiting | Holding) -> Iterator[tuple[str, str]]:
    cohort = snapshot.config.queues[job.queue].cohort
    for name in demand(job.resources, snapshot.nodes):
        yield from (("cluster", name), (f"queue {job.queue}", name))
        if cohort:
            yield f"cohort {cohort}", name


def fits(snapshot: Snapshot, jobs: list[tuple[Holding | Waiting, int]], job: Waiting) -> bool:
    """Whether one index more is within all limits that concern the job, places of its size on the nodes among them."""
    used = add_up(snapshot, [*jobs, (job, 1)])
    if any(used[key] > limit(snapshot, *key) + 1e-6 for key in scopes_of(snapshot, job)):
        return False
    alike = sum(indexes for other, indexes in jobs if other.resources == job.resources)
    return snapshot.nodes is None or alike + 1 <= places(snapshot, job.resources)


def places(snapshot: Snapshot, resources: Resources) -> int:
    needs = demand(resources, snapshot.nodes)
    return sum(min(int(n.resources.get(r, 0) / amount) for r, amount in needs.items()) for n in snapshot.nodes or ())


def within_quota(snapshot: Snapshot, jobs: list[tuple[Holding | Waiting, int]], job: Waiting) -> bool:
    used, quota = add_up(snapshot, [*jobs, (job, 1)]), snapshot.config.queues[job.queue].quota
    needs = demand(job.resources, snapshot.nodes)
    return all(used[f"queue {job.queue}", name] <= quota[name] + 1e-6 for name in needs if name in quota)


def after(snapshot: Snapshot, made: Plan) -> dict[str, tuple[Holding | Waiting, int]]:
    """What is held once the plan was carried out and before anybody has left."""
    grown = {g.job_id: g.indexes for g in made.grows}
    waiting = {w.id: w for w in snapshot.waiting}
    held: dict[str, tuple[Holding | Waiting, int]] = {h.id: (h, grown.get(h.id, h.indexes)) for h in snapshot.holding}
    # a job that waits for its own old driver is in both
    return held | {a.job_id: (waiting[a.job_id], a.indexes) for a in made.admits}


# --- what must hold of every plan ---------------------------------------------------------------------


def check_everybody_is_told(snapshot: Snapshot, made: Plan) -> None:
    told = [a.job_id for a in made.admits] + [h.job_id for h in made.holds]
    assert sorted(told) == sorted(w.id for w in snapshot.waiting)
    assert all(h.message and h.reason for h in made.holds)


def check_limits(snapshot: Snapshot, made: Plan) -> None:
    before, held = {h.id: h.indexes for h in snapshot.holding}, after(snapshot, made)
    used = add_up(snapshot, held.values())
    for job_id, (job, indexes) in held.items():
        assert indexes <= max(job.parallelism, before.get(job_id, 0))
        if indexes > before.get(job_id, 0):
            for key in scopes_of(snapshot, job):
                assert used[key] <= limit(snapshot, *key) + 1e-6, (key, job)
            alike = sum(n for other, n in held.values() if other.resources == job.resources)
            assert snapshot.nodes is None or alike <= places(snapshot, job.resources)
    for job, _ in (held[a.job_id] for a in made.admits):
        most = snapshot.config.organisation(job.org_id).max_running
        assert most is None or sum(other.org_id == job.org_id for other, _ in held.values()) <= most


def check_nobody_of_lower_priority_goes_first(snapshot: Snapshot, made: Plan) -> None:
    """Where nothing is kept for anybody: then a refusal means that the job did not fit beside its betters."""
    if snapshot.promised or made.preempts or any(h.leaving for h in snapshot.holding):
        return
    held = after(snapshot, made)
    new = {a.job_id for a in made.admits}
    waiting = {w.id: w for w in snapshot.waiting}
    grown = {g.job_id for g in made.grows}
    first = {h.id: h.indexes for h in snapshot.holding}
    for hold in made.holds:
        job = waiting[hold.job_id]
        if hold.reason in LACKING:
            betters = [
                (other, first[i] if i in grown and other.priority < job.priority else n)
                for i, (other, n) in held.items()
                if i not in new or other.priority >= job.priority
            ]
            assert not fits(snapshot, betters, job), hold
        elif hold.reason == "ClaimedByOthers":
            assert snapshot.config.queues[job.queue].cohort
            assert not within_quota(snapshot, list(held.values()), job), hold


def check_strict_queues_keep_order(snapshot: Snapshot, made: Plan) -> None:
    skipped = {h.job_id for h in made.holds if h.reason in PERMANENT | {"OrganisationLimit"}}
    skipped |= {h.job_id for h in made.holds if h.reason in ("WaitingForBackoff", "WaitingForDriver")}
    admitted = {a.job_id for a in made.admits}
    for name, queue in snapshot.config.queues.items():
        if queue.strict:
            line = [w for w in snapshot.waiting if w.queue == name and w.id not in skipped]
            line.sort(key=lambda w: (-w.priority, w.queued_at, w.id))
            went = [w.id in admitted for w in line]
            assert went == sorted(went, reverse=True)


def check_victims(snapshot: Snapshot, made: Plan) -> None:
    holding, waiting = {h.id: h for h in snapshot.holding}, {w.id: w for w in snapshot.waiting}
    assert len({p.job_id for p in made.preempts}) == len(made.preempts)
    for preempt in made.preempts:
        victim, job = holding[preempt.job_id], waiting[preempt.for_job]
        rules = snapshot.config.queues[job.queue].preemption
        assert not victim.leaving
        assert victim.preemption_count < snapshot.config.max_preemptions_before_exempt
        if victim.queue == job.queue:
            assert rules.within_queue == "lower_priority"
            assert victim.priority < job.priority
        else:
            cohort = snapshot.config.queues[job.queue].cohort
            assert cohort is not None
            assert snapshot.config.queues[victim.queue].cohort == cohort
            assert rules.reclaim == "any" or (rules.reclaim == "lower_priority" and victim.priority < job.priority)
        assert job.id in made.promised | {a.job_id for a in made.admits}


def check(snapshot: Snapshot, made: Plan) -> None:
    check_everybody_is_told(snapshot, made)
    check_limits(snapshot, made)
    check_nobody_of_lower_priority_goes_first(snapshot, made)
    check_strict_queues_keep_order(snapshot, made)
    check_victims(snapshot, made)


# --- one newcomer: victims are the fewest -------------------------------------------------------------


@st.composite
def crowds(draw: st.DrawFn) -> Snapshot:
    config, nodes = draw(st.sampled_from(CONFIGS)), draw(st.sampled_from(CLUSTERS))
    holding = tuple(
        Holding(
            id=f"h{i}",
            org_id=draw(st.sampled_from(["org_x", "org_y"])),
            queue=draw(st.sampled_from(list(config.queues))),
            priority=draw(st.integers(0, 3)),
            resources=draw(st.sampled_from(SHAPES)),
            parallelism=3,
            indexes=draw(st.integers(1, 3)),
            admitted_at=START + timedelta(seconds=draw(st.integers(0, 3))),
            preemption_count=draw(st.integers(0, 2)),
            work_lost=draw(st.sampled_from([0.0, 5.0])),
            growable=False,
        )
        for i in range(draw(st.integers(1, 8)))
    )
    queue, shape = draw(st.sampled_from(list(config.queues))), draw(st.sampled_from(SHAPES))
    job = Waiting("new", "org_z", queue, draw(st.integers(0, 4)), START, None, shape, 1)
    return Snapshot(config, nodes, (job,), holding)


@settings(max_examples=300, deadline=None)
@given(crowds())
def test_one_newcomer_takes_as_few_victims_as_can_be(snapshot: Snapshot) -> None:
    made = plan(snapshot, START)
    check(snapshot, made)
    (job,) = snapshot.waiting
    rules, exempt = snapshot.config.queues[job.queue].preemption, snapshot.config.max_preemptions_before_exempt
    told = {p.job_id for p in made.preempts}
    stay = [(h, h.indexes) for h in snapshot.holding if h.id not in told]
    if told:
        assert fits(snapshot, stay, job)
        foreign = any(h.queue != job.queue for h in snapshot.holding if h.id in told)
        assert not foreign or within_quota(snapshot, stay, job)
        for victim in (h for h in snapshot.holding if h.id in told):
            more = [*stay, (victim, victim.indexes)]
            others = any(h.queue != job.queue for h in snapshot.holding if h.id in told and h.id != victim.id)
            assert not fits(snapshot, more, job) or (others and not within_quota(snapshot, more, job))
    elif made.holds and made.holds[0].reason in LACKING:  # not even without all of its own queue that it may push out
        own = {
            h.id
            for h in snapshot.holding
            if h.queue == job.queue and h.priority < job.priority and h.preemption_count < exempt
        }
        left = [(h, h.indexes) for h in snapshot.holding if h.id not in own or rules.within_queue == "never"]
        assert not fits(snapshot, left, job)


# --- walks --------------------------------------------------------------------------------------------


@dataclass
class Sim:
    """A job as the store would know it."""

    job: Waiting
    state: str = "waiting"  # waiting, running, preempted, cancelled
    indexes: int = 0  # held, whatever the state
    admitted_at: datetime = START


class Walk(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Sim] = {}
        self.now, self.count = START, 0
        self.config, self.nodes = CONFIGS[0], CLUSTERS[1]
        self.promised: frozenset[str] = frozenset()

    @initialize(config=st.sampled_from(CONFIGS), nodes=st.sampled_from(CLUSTERS))
    def begin(self, config: QueueConfig, nodes: tuple[Node, ...] | None) -> None:
        self.config, self.nodes = config, nodes

    @rule(
        queue=st.sampled_from(["default", "a", "b"]),
        org=st.sampled_from(["org_x", "org_y", "org_z"]),
        priority=st.integers(0, 3),
        shape=st.sampled_from(SHAPES),
        parallelism=st.sampled_from([1, 1, 2, 5, 64]),
        copies=st.integers(1, 4),
    )
    def submit(self, queue: str, org: str, priority: int, shape: Resources, parallelism: int, copies: int) -> None:
        for _ in range(copies):
            self.count += 1
            job_id = f"job_{self.count:03d}"
            self.jobs[job_id] = Sim(Waiting(job_id, org, queue, priority, self.now, None, shape, parallelism))

    @rule(config=st.sampled_from(CONFIGS))
    def configure(self, config: QueueConfig) -> None:
        self.config = config

    @rule(nodes=st.sampled_from(CLUSTERS))
    def change_cluster(self, nodes: tuple[Node, ...] | None) -> None:
        self.nodes = nodes

    def _any(self, which: random.Random, *states: str, holds: bool | None = None) -> Sim | None:
        found = [s for s in self.jobs.values() if s.state in states and holds in (None, s.indexes > 0)]
        return which.choice(found) if found else None

    @rule(which=st.randoms(use_true_random=False))
    def finish(self, which: random.Random) -> None:
        if sim := self._any(which, "running"):
            del self.jobs[sim.job.id]

    @rule(which=st.randoms(use_true_random=False))
    def fail_and_back_off(self, which: random.Random) -> None:
        if sim := self._any(which, "running"):
            sim.state, sim.indexes = "waiting", 0
            sim.job = replace(sim.job, queued_at=self.now, not_before=self.now + timedelta(seconds=5))

    @rule(which=st.randoms(use_true_random=False))
    def cancel(self, which: random.Random) -> None:
        if sim := self._any(which, "running", "waiting", "preempted"):
            sim.state = "cancelled"
            if not sim.indexes:
                del self.jobs[sim.job.id]

    @rule(which=st.randoms(use_true_random=False))
    def retry_before_the_driver_has_left(self, which: random.Random) -> None:
        if sim := self._any(which, "cancelled", holds=True):
            sim.state, sim.job = "waiting", replace(sim.job, queued_at=self.now, not_before=None, holds_capacity=True)

    @rule(which=st.randoms(use_true_random=False))
    def leave(self, which: random.Random) -> None:
        if sim := self._any(which, "preempted", "cancelled", "waiting", holds=True):
            self._left(sim)

    def _left(self, sim: Sim) -> None:
        sim.indexes = 0
        if sim.state == "cancelled":
            del self.jobs[sim.job.id]
        elif sim.state == "preempted":
            sim.state, sim.job = "waiting", replace(sim.job, queued_at=self.now, not_before=None)
        sim.job = replace(sim.job, holds_capacity=False)

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    def snapshot(self) -> Snapshot:
        waiting = tuple(s.job for s in self.jobs.values() if s.state == "waiting")
        holding = tuple(self._holding(s) for s in self.jobs.values() if s.indexes)
        return Snapshot(self.config, self.nodes, waiting, holding, self.promised)

    def _holding(self, sim: Sim) -> Holding:
        job, runs = sim.job, sim.state == "running"
        return Holding(
            job.id, job.org_id, job.queue, job.priority, job.resources, job.parallelism, sim.indexes, sim.admitted_at,
            leaving=not runs, preemption_count=job.preemption_count, growable=runs,
            work_lost=(self.now - sim.admitted_at).total_seconds(),
        )  # fmt: skip

    def apply(self, made: Plan) -> None:
        for admit in made.admits:
            sim = self.jobs[admit.job_id]
            sim.state, sim.indexes, sim.admitted_at = "running", admit.indexes, self.now
        for grow in made.grows:
            self.jobs[grow.job_id].indexes = grow.indexes
        for preempt in made.preempts:
            sim = self.jobs[preempt.job_id]
            sim.state = "preempted"
            sim.job = replace(sim.job, preemption_count=sim.job.preemption_count + 1)
        self.promised = made.promised

    def _plan(self) -> Plan:
        snapshot = self.snapshot()
        made = plan(snapshot, self.now)
        check(snapshot, made)
        turned = replace(snapshot, waiting=snapshot.waiting[::-1], holding=snapshot.holding[::-1])
        again = plan(turned, self.now)
        assert (sorted(again.admits, key=repr), again.preempts) == (sorted(made.admits, key=repr), made.preempts)
        assert sorted(again.holds, key=repr) == sorted(made.holds, key=repr)
        assert sorted(again.grows, key=repr) == sorted(made.grows, key=repr)
        self.apply(made)
        return made

    @precondition(lambda self: self.jobs)
    @rule()
    def plan_and_plan_again(self) -> None:
        """What was just given is not taken back, and soon nothing is left to say."""
        given: set[str] = set()
        for _ in range(4):
            made = self._plan()
            assert not given & {p.job_id for p in made.preempts}
            if not (made.admits or made.preempts):
                return
            given |= {one.job_id for one in (*made.admits, *made.grows)}
        raise AssertionError(f"no rest: {made}")

    @invariant()
    def preempted_jobs_stay_within_the_exemption(self) -> None:
        most = max(c.max_preemptions_before_exempt for c in CONFIGS)
        assert all(s.job.preemption_count <= most for s in self.jobs.values())

    def teardown(self) -> None:
        """Nothing new comes, and whoever runs comes to an end: then everybody has run, but those who never can."""
        for _ in range(40 * len(self.jobs) + 10):
            self.now += timedelta(seconds=10)
            made = self._plan()
            leaving = [s for s in self.jobs.values() if s.indexes and s.state != "running"]
            running = [s for s in self.jobs.values() if s.state == "running"]
            if leaving:
                self._left(leaving[0])
            elif running:
                del self.jobs[running[0].job.id]
            else:
                assert {h.reason for h in made.holds} <= PERMANENT
                return
        raise AssertionError(f"no rest: {self.jobs}")


TestWalk = Walk.TestCase
# the same walks each time, so that main is green or red for a reason; `make walks` takes new ones, and many more
LONG = int(os.environ.get("JOS_WALKS", "0"))
TestWalk.settings = settings(
    max_examples=LONG or 200, stateful_step_count=40, deadline=None, derandomize=not LONG, print_blob=True
)
