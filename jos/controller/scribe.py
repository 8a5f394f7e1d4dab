"""Writes what the admitting loop decided: whoever plans (jos.controller.admitter), or offers (jos.controller.offerer).

May import: jos.controller, jos.core, jos.store. Tests: tests/integration/test_controller.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import structlog

from jos.controller.lookout import Lookout
from jos.controller.loops import each
from jos.controller.metrics import Metrics
from jos.controller.telling import AWAY, MOST_HOLDS, NO_ANSWER, new_holds
from jos.controller.view import View
from jos.core import commands
from jos.core.commands import Reason
from jos.core.errors import Conflict, NotFound
from jos.core.model import Job
from jos.core.snapshot import Hold, Waiting
from jos.store.lease import Lease
from jos.store.redis import Store
from jos.tracing import span

AT_ONCE = 16

log = structlog.get_logger()


class Scribe:
    def __init__(self, store: Store, lease: Lease, view: View, metrics: Metrics) -> None:
        self._store, self._lease, self._view, self._metrics = store, lease, view, metrics
        self._unsaid: list[Hold] = []  # reasons of the last plan that are still to be written, the last one first

    async def admit(self, job_id: str, token: str, indexes: int, number: int | None = None) -> Job | None:
        """The admitted job; None: it went on meanwhile. `number`: which attempt the token was made for, if it is not
        fresh."""
        before = self._view.jobs.get(job_id)
        with span("admit", job_id, indexes=indexes):
            job = await self.transact(job_id, commands.Admit(token, indexes=indexes, number=number))
        if job is None or job.attempt is None or job.attempt.token != token or not job.holds_capacity:
            return None
        self._view.put(job)
        self._metrics.admitted.labels(job.queue).inc()
        self._metrics.waited.observe(_waited(job, before))
        log.info("admitted", job=job.id, attempt=job.attempt.number, queue=job.queue, indexes=indexes)
        return job

    def to_say(self, holds: Sequence[Hold]) -> None:
        """What all that wait are to be told; it replaces what was still to be told."""
        self._unsaid = new_holds(holds, self._view.jobs, datetime.now(UTC))

    @property
    def says_on(self) -> bool:
        return bool(self._unsaid)

    async def say(self) -> None:
        """Tells the next few."""
        told, self._unsaid = self._unsaid[-MOST_HOLDS:], self._unsaid[:-MOST_HOLDS]
        await each(AT_ONCE, reversed(told), self._hold)

    async def _hold(self, what: Hold) -> None:
        if (job := await self.transact(what.job_id, commands.Hold(what.reason, what.message))) is not None:
            self._view.put(job)

    async def transact(self, job_id: str, command: commands.Command) -> Job | None:
        """None: the job went on meanwhile, and the next plan knows. LeaseLost ends the loop."""
        try:
            return await self._store.transact(job_id, command, datetime.now(UTC), lease=self._lease)
        except (Conflict, NotFound) as error:
            log.info("not done", job=job_id, command=type(command).__name__, error=str(error))
            return None


def unavailable(lookout: Lookout, waiting: Iterable[Waiting], now: datetime) -> list[Hold]:
    """Why all wait that could be planned for, once the cluster has been away for more than a moment."""
    if now - lookout.since < AWAY:
        return []
    could = (j for j in waiting if not j.holds_capacity and (j.not_before is None or j.not_before <= now))
    return [Hold(job.id, Reason.CLUSTER_UNAVAILABLE, NO_ANSWER) for job in could]


def _waited(job: Job, before: Job | None) -> float:
    """Seconds since it was queued, or since its back-off had passed."""
    now = datetime.now(UTC)
    not_before = before.not_before if before is not None else None
    return max(0.0, (now - max(job.queued_at, not_before or job.queued_at)).total_seconds())
