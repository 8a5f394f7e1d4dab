"""When the bytes of a file may go: once nobody can ask for it by name, and no live job reads it.

A job is marked as a reader before its record is written, so a mark without a job counts for a while.
May import: jos.core, jos.storage, jos.store. Tests: tests/contract/test_files_post.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic

from jos.core.errors import Conflict
from jos.core.files import File, FileStatus
from jos.storage.base import Storage
from jos.store.files import FileRecords
from jos.store.redis import Store

MARK_COUNTS = 900.0  # seconds that the record of a job may come after its marks
LEAVING_TAKES = 10.0  # seconds that a deletion, of a job or a file, waits for the drivers of jobs that are over
LOOK_AGAIN = 0.15


@dataclass
class Readers:
    marked: list[str]  # all jobs with a mark, as `if_readers` compares them
    live: list[str] = field(default_factory=list)  # of these
    leaving: list[str] = field(default_factory=list)  # over, but their drivers may still read

    def check_none(self, name: str) -> None:
        """Raises Conflict."""
        jobs = self.live or self.leaving
        if not jobs:
            return
        shown = ", ".join(jobs[:5]) + (" and others" if len(jobs) > 5 else "")
        if self.live:
            raise Conflict(f"The file {name!r} is being read by {shown}.", suggestion="Cancel these jobs, or wait.")
        raise Conflict(
            f"The file {name!r} was read by {shown}: over, but the driver still leaves.", suggestion="Try again soon."
        )


class Removal:
    def __init__(self, store: Store, records: FileRecords, storage: Storage) -> None:
        self._store, self._records, self._storage = store, records, storage

    async def readers(self, file: File, now: datetime) -> Readers:
        marks = await self._records.readers(file.org_id, file.uid)
        jobs = await self._store.get_many(list(marks))
        found = Readers(list(marks))
        for job_id, marked in marks.items():
            job = jobs.get(job_id)
            if job is None:
                if now.timestamp() - marked < MARK_COUNTS:
                    found.live.append(job_id)
            elif not job.status.terminal:
                found.live.append(job_id)
            elif job.holds_capacity:
                found.leaving.append(job_id)
        return found

    async def when_left(self, file: File) -> Readers:
        """The readers, once the drivers of jobs that are over have left, or after a while. Not with a live job among
        them, for which nobody would wait."""
        until = monotonic() + LEAVING_TAKES
        while True:
            found = await self.readers(file, datetime.now(UTC))
            if found.live or not found.leaving or monotonic() >= until:
                return found
            await asyncio.sleep(LOOK_AGAIN)

    async def remove(self, org_id: str, uid: str, now: datetime) -> bool:
        """Removes the bytes and the record of what is replaced or deleted, unless a live job reads it. Done again
        after a crash it goes on."""
        file = await self._records.by_uid(org_id, uid)
        if file is None:
            await self._records.apply(self._records.change(org_id).removed(uid))
            return False
        if file.status is FileStatus.REPLACED:
            readers = await self.readers(file, now)
            if readers.live or readers.leaving:
                await self._records.apply(self._records.change(org_id).unwanted(uid, now))  # to the end of the queue
                return False
            gone = file.but(status=FileStatus.REMOVING)
            change = self._records.change(org_id).if_file(file).if_readers(uid, readers.marked).put_file(gone)
            if not await self._records.apply(change):
                return False  # the pruner comes again
        elif file.status is not FileStatus.REMOVING:
            return False
        # The record first: without it, recovery does not take the rest for a file.
        await asyncio.to_thread(self._storage.delete, [file.record_key])
        await asyncio.to_thread(self._storage.delete, [file.key])
        await self._records.apply(self._records.change(org_id).forget_file(uid).removed(uid))
        return True
