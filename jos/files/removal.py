"""When the bytes of a file may go: once nobody can ask for it by name, and no live job reads it.

May import: jos.core, jos.storage, jos.store. Tests: tests/contract/test_files_post.py.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from jos.core.files import File, FileStatus
from jos.storage.base import Storage
from jos.store.files import FileRecords
from jos.store.readers import Readers, judged, when_left
from jos.store.redis import Store


class Removal:
    def __init__(self, store: Store, records: FileRecords, storage: Storage) -> None:
        self._store, self._records, self._storage = store, records, storage

    async def readers(self, file: File, now: datetime) -> Readers:
        return await judged(self._store, await self._records.readers(file.org_id, file.uid), now)

    async def when_left(self, file: File) -> Readers:
        return await when_left(lambda: self.readers(file, datetime.now(UTC)))

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
