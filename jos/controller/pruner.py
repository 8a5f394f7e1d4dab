"""The pruning loop: what nobody will ask for any more. Streams of archived jobs after some hours; whole jobs after the
retention time, where one is set; abandoned uploads and replaced files.

May import: jos.controller, jos.removal, jos.storage, jos.store. Tests: tests/integration/test_controller_chores.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

import structlog

from jos import archive
from jos.archive import ArchiveDamaged
from jos.controller.archiver import over
from jos.controller.loops import complain
from jos.controller.metrics import Metrics
from jos.core.errors import Conflict, JosError
from jos.core.model import Job, Status
from jos.removal import Removals, check_deletable
from jos.storage.base import Storage
from jos.store.chores import Chores
from jos.store.redis import Store

PAGE = 100
MOST = 1000  # jobs removed in one step
AGAIN = timedelta(hours=1)  # after a job whose archive cannot be read

log = structlog.get_logger()

Sweep = Callable[[datetime], Awaitable[object]]


class Pruner:
    def __init__(
        self,
        store: Store,
        storage: Storage,
        removals: Removals,
        metrics: Metrics,
        *,
        streams_kept: timedelta,
        jobs_kept: timedelta | None,
        sweeps: Sequence[tuple[str, Sweep]] = (),
    ) -> None:
        self._store, self._storage, self._removals, self._metrics = store, storage, removals, metrics
        self._streams_kept, self._jobs_kept, self._sweeps = streams_kept, jobs_kept, sweeps
        self._chores = Chores(store.connection)

    async def step(self, now: datetime) -> None:
        sweeps: list[tuple[str, Sweep]] = [
            ("streams", self._streams),
            ("retention", self._jobs),
            ("removals", lambda _: self._removals.go_on()),
            *self._sweeps,
        ]
        for name, sweep in sweeps:
            try:
                await sweep(now)
            except Exception as error:  # the others go on
                complain(f"pruner: {name}", error, self._metrics.failed)

    async def _streams(self, now: datetime) -> None:
        while names := await self._chores.archived(now - self._streams_kept, PAGE):
            jobs = await self._store.get_many(names)
            for name in names:
                try:
                    await self._drop(jobs.get(name))
                except ArchiveDamaged as error:  # its streams stay, and keep no other ones
                    complain("pruner: streams", error, self._metrics.failed)
                    await self._chores.note_archived(name, now + AGAIN)
                else:
                    await self._chores.forget_archived(name)

    async def _drop(self, job: Job | None) -> None:
        if job is not None and over(job):  # a job that was retried is archived again at its next end
            end = await asyncio.to_thread(archive.end_of, self._storage, job.org_id, job.id)
            if end is not None:
                await self._store.drop_streams(job.id, end.events, end.progress)

    async def _jobs(self, now: datetime) -> None:
        if self._jobs_kept is None:
            return
        before = now - self._jobs_kept

        def check(job: Job) -> None:
            check_deletable(job)
            if ended_at(job) >= before:
                raise Conflict(f"Job {job.id} ended again meanwhile.")

        for status in (s for s in Status if s.terminal):
            for job in await self._old(status, before):
                try:
                    await self._removals.remove(job, check)
                    log.info("removed", job=job.id, ended=str(ended_at(job)))
                except Conflict:  # retried meanwhile, or a live job reads its checkpoint: another time
                    continue
                except JosError as error:
                    complain("pruner: retention", error, self._metrics.failed)

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


def ended_at(job: Job) -> datetime:
    return job.completed_at or job.failed_at or job.cancelled_at or job.updated_at
