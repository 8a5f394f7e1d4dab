"""The admitting loop: waits for a change, plans over all that waits and holds, and carries the plan out.

May import: jos.controller, jos.core, jos.store. Tests: tests/integration/test_controller.py.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime

import structlog

from jos.controller.crew import Crew
from jos.controller.lookout import Lookout
from jos.controller.loops import each
from jos.controller.meter import Meter
from jos.controller.metrics import Metrics
from jos.controller.scribe import Scribe, unavailable
from jos.controller.view import View
from jos.core import commands
from jos.core.admission import plan
from jos.core.commands import Reason
from jos.core.model import Status
from jos.core.queues import QueueConfig
from jos.core.snapshot import Admit, Grow, Hold, Plan, Preempt, Snapshot, capacity

IDLE = 1.0  # seconds: without a change, a plan is made so often, since back-offs pass and nodes come
MOST_COMING = 64  # attempts that wait for their driver: more could not be started before their time is up
AT_ONCE = 16

log = structlog.get_logger()


class Admitter:
    def __init__(
        self,
        scribe: Scribe,
        view: View,
        lookout: Lookout,
        crew: Crew,
        meter: Meter,
        metrics: Metrics,
        config: Callable[[], QueueConfig],
        planner: Executor,
        idle: float = IDLE,
    ) -> None:
        self._scribe, self._view, self._lookout, self._crew, self._meter = scribe, view, lookout, crew, meter
        self._metrics, self._config = metrics, config
        self._planner = planner  # of its own: a slow storage fills the threads that all others share
        self._idle = idle
        self._planned = float("-inf")  # monotonic
        self._promised: frozenset[str] | None = None  # who preempted jobs leave for, as the last plan had it

    async def step(self) -> None:
        rest = self._planned + self._idle - time.monotonic()  # a new leader plans at once
        block = 1 if rest <= 0 or self._scribe.says_on else max(1, round(rest * 1000))
        different = await self._view.follow(block)
        if different or time.monotonic() - self._planned >= self._idle:
            if self._lookout.answers:
                await self._apply(await self._plan())
            else:  # nobody could start a driver
                self._planned = time.monotonic()
                self._scribe.to_say(unavailable(self._lookout, self._view.waiting, datetime.now(UTC)))
        await self._scribe.say()

    async def _plan(self) -> Plan:
        now, began = datetime.now(UTC), time.monotonic()
        held = self._view.held(self._meter.work_lost(now), now)
        config = self._config()
        nodes = capacity(config, self._lookout.nodes)
        promised = self._promises() if self._promised is None else self._promised
        snapshot = Snapshot(config, nodes, self._view.waiting, held, promised, self._lookout.optional_gpus)
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
        self._scribe.to_say([*later, *made.holds])

    def _coming(self) -> int:
        """How many attempts no driver has taken yet."""
        held = (job for job in self._view.holding if job.queue and job.status is Status.ADMITTED)
        return sum(job.attempt is not None and not job.attempt.driver for job in held)

    async def _admit(self, what: Admit) -> None:
        job = await self._scribe.admit(what.job_id, secrets.token_hex(16), what.indexes)
        if job is not None:
            self._crew.start(job)

    async def _preempt(self, what: Preempt) -> None:
        if (job := await self._scribe.transact(what.job_id, commands.Preempt(what.message))) is not None:
            self._view.put(job)
            self._metrics.preempted.inc()
            log.info("preempted", job=job.id, for_job=what.for_job)

    async def _grow(self, what: Grow) -> None:
        known = self._view.jobs.get(what.job_id)
        if known is None or known.attempt is None:
            return
        command = commands.Grow(known.attempt.token, what.indexes)
        if (job := await self._scribe.transact(what.job_id, command)) is not None:
            self._view.put(job)
            log.info("grown", job=job.id, attempt=known.attempt.number, indexes=what.indexes)
