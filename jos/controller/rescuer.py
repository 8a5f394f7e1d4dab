"""The rescuing loop: timeouts that ran out, drivers that were lost or overstay, drivers that nobody needs.

jos.controller.reconcile says what is to be done. A driver is stopped or given up only after the record was read
again: it may just have ended its job and drive the next one, or another driver may have taken the job.
May import: jos.controller, jos.core, jos.store. Tests: tests/integration/test_controller.py.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

import structlog

from jos.controller import reconcile
from jos.controller.crew import Crew
from jos.controller.lookout import Lookout
from jos.controller.loops import each
from jos.controller.metrics import Metrics
from jos.controller.reconcile import Action, Evict, Gone, Limits, PutBack, Start, Stop, Tell
from jos.controller.view import View
from jos.core import lifecycle
from jos.core.commands import Command, DriverGone, Preempt, Recall, Waits
from jos.core.errors import Conflict, NotFound
from jos.core.model import Job
from jos.store.beats import beats
from jos.store.lease import Lease
from jos.store.redis import Store

AT_ONCE = 8

log = structlog.get_logger()


class Rescuer:
    def __init__(
        self,
        store: Store,
        lease: Lease,
        view: View,
        lookout: Lookout,
        crew: Crew,
        metrics: Metrics,
        limits: Limits = reconcile.LIMITS,
    ) -> None:
        self._store, self._lease, self._view, self._lookout = store, lease, view, lookout
        self._crew, self._metrics, self._limits = crew, metrics, limits
        self._now = datetime.now(UTC)  # when heartbeats were last listened to
        self._orphans: dict[str, float] = {}  # driver -> when it was first seen to have nothing to drive, monotonic

    async def step(self) -> None:
        now = datetime.now(UTC)
        late = [job for job in self._view.timed if lifecycle.overdue(job, now)]
        await each(AT_ONCE, late, self._expire)
        holding = self._view.holding
        heard = await beats(self._store.connection, [job.id for job in holding])
        self._now = datetime.now(UTC)  # one for all: while Redis keeps us waiting below, nobody is listened to
        self._lookout.hear(holding, heard, self._now)
        await each(AT_ONCE, holding, self._look_after)
        await self._dismiss()

    async def _expire(self, late: Job) -> None:
        job = await self._as_it_is(late)
        if (expire := lifecycle.overdue(job, datetime.now(UTC))) is not None:
            log.warning("out of time", job=job.id, timeout=expire.kind)
            await self._transact(job, expire, datetime.now(UTC))

    async def _as_it_is(self, job: Job) -> Job:
        return (await self._store.get_many([job.id])).get(job.id, job)

    async def _look_after(self, job: Job) -> None:
        actions = self._decide(job)
        if any(isinstance(action, Stop | Gone | Evict | PutBack) for action in actions):
            job = await self._as_it_is(job)
            actions = self._decide(job)
        for action in actions:
            await self._obey(job, action)

    def _decide(self, job: Job) -> tuple[Action, ...]:
        if not job.holds_capacity:
            return ()
        return reconcile.decide(job, self._lookout.sight(job), self._now, self._limits)

    async def _obey(self, job: Job, action: Action) -> None:
        match action:
            case Start():
                self._crew.start(job)
            case Stop(name, why):
                self._crew.stop(name, why, job.id)
            case Tell(token, reason, message):
                await self._transact(job, Waits(token, reason, message), datetime.now(UTC))
            case Evict(token, message):
                log.warning("the cluster took its place", job=job.id, why=message)
                if await self._transact(job, Preempt(message, token), datetime.now(UTC)) is not None:
                    self._metrics.preempted.inc()
            case PutBack(token, message):
                log.info("the cluster took its place back before it began", job=job.id, why=message)
                await self._transact(job, Recall(token, message), datetime.now(UTC))
            case Gone(token, message):
                log.warning("a driver is gone", job=job.id, attempt=job.attempt and job.attempt.number, why=message)
                now = datetime.now(UTC)
                ended = await self._transact(job, DriverGone(token, message), now)
                if ended is not None and ended.attempt is not None and ended.attempt.ended_at == now:
                    self._metrics.gone.inc()

    async def _dismiss(self) -> None:
        """Stops drivers whose attempt has been over for a while. Of a job that this store does not know they may be
        another installation's, on the same cluster."""
        idle = reconcile.orphans(self._lookout.drivers, self._lookout.needed(self._view.holding))
        now = time.monotonic()
        self._orphans = {name: self._orphans.get(name, now) for name in idle}
        names = [name for name, since in self._orphans.items() if now - since >= self._limits.orphan]
        jobs = await self._store.get_many([job_id for n in names if (job_id := reconcile.job_of(n))]) if names else {}
        for name in names:
            job = jobs.get(reconcile.job_of(name) or "")
            if job is not None and self._lookout.offering and reconcile.yet_to_come(job, name):
                continue  # an offer: the offerer withdraws it, should it be needless
            if job is not None and name not in (self._lookout.needed([job]) if job.holds_capacity else ()):
                self._crew.stop(name, "its attempt is over", job.id)

    async def _transact(self, job: Job, command: Command, now: datetime) -> Job | None:
        """None: the job went on meanwhile, which the view will hear."""
        try:
            return await self._store.transact(job.id, command, now, lease=self._lease)
        except (Conflict, NotFound) as error:
            log.info("not done", job=job.id, command=type(command).__name__, error=str(error))
            return None
