"""The active jobs, kept in memory by the stream of changes, so that a plan over 10,000 waiting jobs reads only what
changed.

Only the admitting loop writes it, and reads what changed before each plan: what this controller granted is in every
later plan, and what others did since can only have freed capacity.
May import: jos.core, jos.store. Tests: tests/unit/test_view.py, tests/integration/test_controller.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime

import structlog

from jos.core.model import Job, Status
from jos.core.snapshot import Holding, Waiting
from jos.store import changes
from jos.store.changes import ChangesLost
from jos.store.redis import Store

RESYNC = 60.0  # seconds between looks at all jobs, for whatever the stream may not have told

log = structlog.get_logger()


class View:
    def __init__(self, store: Store, resync: float = RESYNC) -> None:
        self._store = store
        self._resync = resync
        self._position = ""
        self._synced = 0.0  # monotonic
        self.jobs: dict[str, Job] = {}  # not over, or holding capacity
        self._waiting: dict[str, Waiting] = {}
        self._holding: dict[str, Job] = {}
        self._timed: dict[str, Job] = {}

    async def resync(self) -> None:
        """Looks at all active jobs. The position first: what changes meanwhile is then heard of again."""
        position = await changes.latest(self._store.connection)
        active = await self._store.active()
        self._position, self._synced = position, time.monotonic()
        for gone in self.jobs.keys() - {job.id for job in active}:
            self.drop(gone)
        for job in active:
            self.put(job)

    async def follow(self, block_ms: int) -> bool:
        """Waits for changes, `block_ms` at most; whether anything is different now."""
        if time.monotonic() - self._synced > self._resync:
            await self.resync()
            return True
        try:
            position, changed = await changes.wait(self._store.connection, self._position, block_ms)
        except ChangesLost:
            log.info("fell behind the changes; looking at all jobs")
            await self.resync()
            return True
        jobs = await self._store.get_many(changed) if changed else {}
        self._position = position
        different = [self.put(jobs[i]) if i in jobs else self.drop(i) for i in changed]
        return any(different)

    def put(self, job: Job) -> bool:
        """Takes a record over as it is now; whether it differs from what was known."""
        if job.status.terminal and not job.holds_capacity:
            return self.drop(job.id)
        if self.jobs.get(job.id) == job:
            return False
        self.drop(job.id)
        self.jobs[job.id] = job
        if job.queue and job.status is Status.PENDING:
            self._waiting[job.id] = waiting(job)
        if job.holds_capacity:
            self._holding[job.id] = job
        if (job.timeouts.queue if job.status is Status.PENDING else job.timeouts.run) is not None:
            self._timed[job.id] = job
        return True

    def drop(self, job_id: str) -> bool:
        self._waiting.pop(job_id, None)
        self._holding.pop(job_id, None)
        self._timed.pop(job_id, None)
        return self.jobs.pop(job_id, None) is not None

    @property
    def holding(self) -> list[Job]:
        return list(self._holding.values())

    @property
    def timed(self) -> list[Job]:
        """Those that may run out of time where they are; few, as a rule, however many wait."""
        return list(self._timed.values())

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        return tuple(self._waiting.values())

    def held(self, work_lost: Mapping[str, float], now: datetime) -> tuple[Holding, ...]:
        """A job without a queue is its own door's affair and not the controller's."""
        return tuple(holding(job, work_lost.get(job.id), now) for job in self._holding.values() if job.queue)


def waiting(job: Job) -> Waiting:
    return Waiting(
        id=job.id,
        org_id=job.org_id,
        queue=job.queue,
        priority=job.priority,
        queued_at=job.queued_at,
        not_before=job.not_before,
        resources=job.resources,
        parallelism=job.parallelism,
        preemption_count=job.preemption_count,
        holds_capacity=job.holds_capacity,
    )


def holding(job: Job, work_lost: float | None, now: datetime) -> Holding:
    """`work_lost`: seconds of work that a preemption would throw away; unknown: all since the attempt began."""
    attempt = job.attempt
    assert attempt is not None
    stays = job.status in (Status.ADMITTED, Status.RUNNING)
    began = attempt.started_at or attempt.admitted_at
    return Holding(
        id=job.id,
        org_id=job.org_id,
        queue=job.queue,
        priority=job.priority,
        resources=job.resources,
        parallelism=job.parallelism,
        indexes=job.granted,
        admitted_at=attempt.admitted_at,
        leaving=not stays,
        preemption_count=job.preemption_count,
        work_lost=(now - began).total_seconds() if work_lost is None else work_lost,
        growable=stays and attempt.indexes is not None and not attempt.shrunk,
    )
