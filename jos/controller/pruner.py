"""The pruning loop: what nobody will ask for any more. Streams of archived jobs after some hours; whole jobs after the
retention time, where one is set; abandoned uploads and replaced files.

May import: jos.controller, jos.storage, jos.store. Tests: tests/integration/test_controller_chores.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

import structlog

from jos import archive
from jos.controller.archiver import over
from jos.controller.loops import complain
from jos.controller.metrics import Metrics
from jos.core.model import Job, Status, job_folder
from jos.storage.base import Storage
from jos.store.chores import Chores
from jos.store.redis import Store

PAGE = 100
MOST = 1000  # jobs removed in one step

log = structlog.get_logger()

Sweep = Callable[[datetime], Awaitable[object]]


class Pruner:
    def __init__(
        self,
        store: Store,
        storage: Storage,
        metrics: Metrics,
        *,
        streams_kept: timedelta,
        jobs_kept: timedelta | None,
        sweeps: Sequence[tuple[str, Sweep]] = (),
    ) -> None:
        self._store, self._storage, self._metrics = store, storage, metrics
        self._streams_kept, self._jobs_kept, self._sweeps = streams_kept, jobs_kept, sweeps
        self._chores = Chores(store.connection)

    async def step(self, now: datetime) -> None:
        sweeps: list[tuple[str, Sweep]] = [("streams", self._streams), ("retention", self._jobs), *self._sweeps]
        for name, sweep in sweeps:
            try:
                await sweep(now)
            except Exception as error:  # the others go on
                complain(f"pruner: {name}", error, self._metrics.failed)

    async def _streams(self, now: datetime) -> None:
        while names := await self._chores.archived(now - self._streams_kept, PAGE):
            jobs = await self._store.get_many(names)
            for name in names:
                job = jobs.get(name)
                if job is not None and over(job):  # a job that was retried is archived again at its next end
                    end = await asyncio.to_thread(archive.end_of, self._storage, job.org_id, name)
                    if end is not None:
                        await self._store.drop_streams(name, end.events, end.progress)
                await self._chores.forget_archived(name)

    async def _jobs(self, now: datetime) -> None:
        """The storage first: a job is found again, and removed, as long as its record is there."""
        if self._jobs_kept is None:
            return
        for status in (s for s in Status if s.terminal):
            for job in await self._old(status, now - self._jobs_kept):
                await asyncio.to_thread(self._remove_folder, job)
                await self._store.delete(job.id)
                log.info("removed", job=job.id, ended=str(ended_at(job)))

    async def _old(self, status: Status, before: datetime) -> list[Job]:
        """From the oldest on. A list is ordered by creation, and jobs end later: so it may stop at the first page
        whose jobs were all created since."""
        total, _ = await self._store.jobs(None, 0, 1, status)
        old: list[Job] = []
        end = total
        while end > 0 and len(old) < MOST:
            start = max(0, end - PAGE)
            _, page = await self._store.jobs(None, start, end - start, status)
            old += [job for job in page if over(job) and ended_at(job) < before]
            if all(job.created_at >= before for job in page):
                break
            end = start
        return old

    def _remove_folder(self, job: Job) -> None:
        """`job.json` goes first: without it, recovery does not take what is half removed for a job."""
        folder = job_folder(job.org_id, job.id)
        self._storage.delete([f"{folder}job.json"])
        self._storage.delete([stat.key for stat in self._storage.list(folder)])


def ended_at(job: Job) -> datetime:
    return job.completed_at or job.failed_at or job.cancelled_at or job.updated_at
