"""The admitting loop: waits for a change, plans over all that waits and holds, and carries the plan out.

May import: jos.controller, jos.core, jos.store. Tests: tests/integration/test_controller.py.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta

import structlog

from jos.controller.crew import Crew
from jos.controller.lookout import Lookout
from jos.controller.loops import each
from jos.controller.meter import Meter
from jos.controller.metrics import Metrics
from jos.controller.view import View
from jos.core import commands
from jos.core.admission import plan
from jos.core.commands import Reason
from jos.core.errors import Conflict, NotFound
from jos.core.model import Job, Status
from jos.core.queues import QueueConfig
from jos.core.snapshot import Admit, Grow, Hold, Plan, Preempt, Snapshot, capacity
from jos.store.lease import Lease
from jos.store.redis import Store
from jos.tracing import span

IDLE = 1.0  # seconds: without a change, a plan is made so often, since back-offs pass and nodes come
MOST_HOLDS = 50  # reasons written in one step: nobody who comes waits for them longer than some 0.05 s
MOST_COMING = 64  # attempts that wait for their driver: more could not be started before their time is up
REASON_STAYS = timedelta(seconds=10)  # before a reason is replaced by another one
WORDS_STAY = timedelta(minutes=1)  # before the same reason is told in other words
AWAY = timedelta(seconds=10)  # without an answer of the cluster, until those who wait are told
AT_ONCE = 16

log = structlog.get_logger()


class Admitter:
    def __init__(
        self,
        store: Store,
        lease: Lease,
        view: View,
        lookout: Lookout,
        crew: Crew,
        meter: Meter,
        metrics: Metrics,
        config: Callable[[], QueueConfig],
        planner: Executor,
        idle: float = IDLE,
    ) -> None:
        self._store, self._lease, self._view, self._lookout = store, lease, view, lookout
        self._crew, self._meter, self._metrics, self._config = crew, meter, metrics, config
        self._planner = planner  # of its own: a slow storage fills the threads that all others share
        self._idle = idle
        self._planned = float("-inf")  # monotonic
        self._promised: frozenset[str] | None = None  # who preempted jobs leave for, as the last plan had it
        self._unsaid: list[Hold] = []  # reasons of the last plan that are still to be written, the last one first

    async def step(self) -> None:
        rest = self._planned + self._idle - time.monotonic()  # a new leader plans at once
        block = 1 if rest <= 0 or self._unsaid else max(1, round(rest * 1000))
        different = await self._view.follow(block)
        if different or time.monotonic() - self._planned >= self._idle:
            if self._lookout.answers:
                await self._apply(await self._plan())
            else:  # nobody could start a driver
                self._planned, self._unsaid = time.monotonic(), self._new_reasons(self._unavailable())
        told, self._unsaid = self._unsaid[-MOST_HOLDS:], self._unsaid[:-MOST_HOLDS]
        await each(AT_ONCE, reversed(told), self._hold)

    async def _plan(self) -> Plan:
        now, began = datetime.now(UTC), time.monotonic()
        held = self._view.held(self._meter.work_lost(now), now)
        config = self._config()
        nodes = capacity(config, self._lookout.nodes)
        promised = self._promises() if self._promised is None else self._promised
        snapshot = Snapshot(config, nodes, self._view.waiting, held, promised)
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._planner, plan, snapshot, now)  # the lease is renewed meanwhile
        self._planned, self._promised = time.monotonic(), made.promised
        self._metrics.planning.observe(self._planned - began)
        return made

    def _promises(self) -> frozenset[str]:
        """Who preempted jobs leave for, as an earlier leader told it: without that, others might take what comes back,
        and a second victim would have to go."""
        jobs = self._view.jobs.values()
        return frozenset(j.id for j in jobs if j.status is Status.PENDING and j.reason == Reason.WAITING_FOR_PREEMPTION)

    async def _apply(self, made: Plan) -> None:
        """What gives capacity first; reasons last. Of those that could begin, the last wait for the next plan where
        too many are on their way: nothing else is given what is meant for them."""
        most = max(0, MOST_COMING - self._coming())
        await each(AT_ONCE, made.admits[:most], self._admit)
        await each(AT_ONCE, made.preempts, self._preempt)
        await each(AT_ONCE, made.grows, self._grow)
        words = f"It is next: it starts as soon as fewer than {MOST_COMING} drivers are on their way."
        later = [Hold(admit.job_id, Reason.WAITING_FOR_CAPACITY, words) for admit in made.admits[most:]]
        self._unsaid = self._new_reasons([*later, *made.holds])

    def _unavailable(self) -> list[Hold]:
        """Why all wait that could be planned for, once the cluster has been away for more than a moment."""
        now = datetime.now(UTC)
        if now - self._lookout.since < AWAY:
            return []
        words = "The cluster does not answer; jobs start again when it does."
        could = (
            j for j in self._view.waiting if not j.holds_capacity and (j.not_before is None or j.not_before <= now)
        )
        return [Hold(job.id, Reason.CLUSTER_UNAVAILABLE, words) for job in could]

    def _coming(self) -> int:
        """How many attempts no driver has taken yet."""
        held = (job for job in self._view.holding if job.queue and job.status is Status.ADMITTED)
        return sum(job.attempt is not None and not job.attempt.driver for job in held)

    async def _admit(self, what: Admit) -> None:
        token = secrets.token_hex(16)
        with span("admit", what.job_id, indexes=what.indexes):
            job = await self._transact(what.job_id, commands.Admit(token, indexes=what.indexes))
        if job is None or job.attempt is None or job.attempt.token != token:
            return
        self._crew.start(job)
        now = datetime.now(UTC)
        since = self._waited_since(what.job_id, job, now)
        self._view.put(job)
        self._metrics.admitted.labels(job.queue).inc()
        self._metrics.waited.observe(max(0.0, (now - since).total_seconds()))
        log.info("admitted", job=job.id, attempt=job.attempt.number, queue=job.queue, indexes=what.indexes)

    def _waited_since(self, job_id: str, job: Job, now: datetime) -> datetime:
        before = self._view.jobs.get(job_id)
        not_before = before.not_before if before is not None else None
        return min(now, max(job.queued_at, not_before or job.queued_at))

    async def _preempt(self, what: Preempt) -> None:
        if (job := await self._transact(what.job_id, commands.Preempt(what.message))) is not None:
            self._view.put(job)
            self._metrics.preempted.inc()
            log.info("preempted", job=job.id, for_job=what.for_job)

    async def _grow(self, what: Grow) -> None:
        known = self._view.jobs.get(what.job_id)
        if known is None or known.attempt is None:
            return
        if (job := await self._transact(what.job_id, commands.Grow(known.attempt.token, what.indexes))) is not None:
            self._view.put(job)
            log.info("grown", job=job.id, attempt=known.attempt.number, indexes=what.indexes)

    async def _hold(self, what: Hold) -> None:
        if (job := await self._transact(what.job_id, commands.Hold(what.reason, what.message))) is not None:
            self._view.put(job)

    def _new_reasons(self, holds: Sequence[Hold]) -> list[Hold]:
        """Those that say something new, the last one first; one that was just given stays a while, or two could take
        turns for ever. Other words for a known reason come last, and only so many at once: they can wait."""
        now = datetime.now(UTC)
        new: list[Hold] = []
        reworded: list[Hold] = []
        for hold in holds:
            job = self._view.jobs.get(hold.job_id)
            if job is None or (job.reason, job.reason_message) == (hold.reason, hold.message):
                continue
            known = job.reason == hold.reason
            if not job.reason_message or now - job.updated_at >= (WORDS_STAY if known else REASON_STAYS):
                (reworded if known else new).append(hold)
        return [*new, *reworded[:MOST_HOLDS]][::-1]

    async def _transact(self, job_id: str, command: commands.Command) -> Job | None:
        """None: the job went on meanwhile, and the next plan knows. LeaseLost ends the loop."""
        try:
            return await self._store.transact(job_id, command, datetime.now(UTC), lease=self._lease)
        except (Conflict, NotFound) as error:
            log.info("not done", job=job_id, command=type(command).__name__, error=str(error))
            return None
