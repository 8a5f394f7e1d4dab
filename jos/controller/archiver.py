"""The archiving loop: what Redis knows of a job goes to the storage, at once when it has ended, and in pieces while it
runs long, before its oldest entries are trimmed.

Which jobs have ended is read from the changes; how far is kept in Redis (jos.store.chores), so that the next
controller goes on there. Without a position it looks at all jobs once.
May import: jos.controller, jos.archive, jos.removal, jos.store. Tests: tests/integration/test_controller_chores.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Protocol

from jos import removal
from jos.archive import CHUNK, Archived
from jos.controller.loops import complain, each
from jos.controller.metrics import Metrics
from jos.controller.view import View
from jos.core.model import Job, Status
from jos.store import changes
from jos.store.changes import ChangesLost
from jos.store.chores import Chores, counts
from jos.store.redis import Store

PAGE = 500
AT_ONCE = 4
AGAIN = timedelta(minutes=1)  # after a job could not be archived
LONG_EVERY = timedelta(seconds=10)  # between pieces of a job that runs: less than trimming takes (jos.store.redis)


class Archive(Protocol):
    """jos.archive.archive, with store and storage bound."""

    def __call__(self, job: Job, *, everything: bool) -> Awaitable[Archived]: ...


class Archiver:
    def __init__(
        self,
        store: Store,
        view: View,
        archive: Archive,
        metrics: Metrics,
        ended: Callable[[Job], Awaitable[None]] | None = None,
    ) -> None:
        """`ended` hears of each job that is over, perhaps more than once."""
        self._store, self._view, self._archive, self._metrics = store, view, archive, metrics
        self._ended = ended
        self._chores = Chores(store.connection)
        self._pieces_at: datetime | None = None
        self._saved: dict[str, tuple[int, int]] = {}  # of jobs that run: events and progress that are in chunks

    async def step(self, now: datetime) -> None:
        await self._learn(now)
        while names := await self._chores.due(now):
            await each(AT_ONCE, names, lambda name: self._put_away(name, now))
        if self._pieces_at is None or now - self._pieces_at >= LONG_EVERY:
            self._pieces_at = now
            await self._pieces()

    async def _learn(self, now: datetime) -> None:
        """Which jobs ended since the last look."""
        connection, position = self._store.connection, await self._chores.position()
        try:
            if position is None:
                return await self._look_at_all(now)
            position, changed = await changes.wait(connection, position, 1)
        except ChangesLost:
            return await self._look_at_all(now)
        if changed:
            jobs = await self._store.get_many(changed)
            await self._chores.note_ended([job.id for job in jobs.values() if over(job)], now, position)

    async def _look_at_all(self, now: datetime) -> None:
        position, offset = await changes.latest(self._store.connection), 0
        for status in (s for s in Status if s.terminal):
            offset = 0
            while page := (await self._store.jobs(None, offset, PAGE, status))[1]:
                await self._chores.note_ended([job.id for job in page if over(job)], now)
                offset += PAGE
        await self._chores.note_ended([], now, position)

    async def _put_away(self, job_id: str, now: datetime) -> None:
        job = await self._record(job_id)
        if job is None or not over(job):  # deleted, or retried meanwhile: its next end comes as a change
            return await self._chores.forget_due(job_id)
        failure: Exception | None = None
        try:
            if self._ended is not None:
                await self._ended(job)
            await self._archive(job, everything=True)
        except Exception as error:  # a job that cannot be archived keeps no other one waiting
            failure = error
        if await self._record(job_id) is None:  # deleted meanwhile: what was written after that must go as well
            await removal.mark(self._store.connection, job.org_id, job_id)
            await self._chores.forget_due(job_id)
        elif failure is not None:
            complain("archiver", failure, self._metrics.failed)
            await self._chores.note_ended([job_id], now + AGAIN)
        else:
            await self._chores.note_archived(job_id, now)

    async def _record(self, job_id: str) -> Job | None:
        return (await self._store.get_many([job_id])).get(job_id)

    async def _pieces(self) -> None:
        """Of jobs that run and have filled a chunk since the last look."""
        holding = {job.id: job for job in self._view.holding}
        found = await counts(self._store.connection, list(holding))
        self._saved = {i: saved for i, saved in self._saved.items() if i in holding}

        async def save(job_id: str) -> None:
            try:
                saved = await self._archive(holding[job_id], everything=False)
            except Exception as error:
                return complain("archiver", error, self._metrics.failed)
            self._saved[job_id] = (saved.events, saved.progress)

        full = [i for i, now in found.items() if _grown(now, self._saved.get(i, (0, 0)))]
        await each(AT_ONCE, full, save)


def _grown(now: tuple[int, int], saved: tuple[int, int]) -> bool:
    return any(n - s >= CHUNK for n, s in zip(now, saved, strict=True))


def over(job: Job) -> bool:
    return job.status.terminal and not job.holds_capacity
