"""Files of organisations: taken, found, listed, deleted, marked as read by jobs, restored from the storage.

A content once registered never changes; another content of the same name is another uid. What a live job reads stays
until that job is over. May import: jos.core, jos.files, jos.storage, jos.store. Tests: tests/contract/test_files*.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cached_property

from pydantic import ValidationError

from jos.core import files as rules
from jos.core.errors import BadRequest, Conflict, JosError, NotFound
from jos.core.files import File, FileStatus
from jos.core.ids import is_id, new_id
from jos.core.model import Job, JobSpec, job_folder
from jos.files import attributes
from jos.files.parts import PartUploads
from jos.files.pour import pour
from jos.files.removal import Removal
from jos.storage.base import Storage
from jos.storage.source import stat_input
from jos.storage.uploads import Uploads, open_uploads, takes_parts
from jos.store.files import FileRecords, Info, Page
from jos.store.redis import Store

_TRIES = 20
_TIDY_EVERY = timedelta(hours=1)
_RECOVERERS = 16
_MARKING_TAKES = timedelta(hours=1)  # at most, until a recovery has marked the readers of all it restored
_MARKED = 500  # files in one step, so that Redis serves others in between


class Files:
    """`smallest_part`: bytes of a part of an upload; S3 wants at least 5 MiB. `open_uploads`: the most that an
    organisation may have under way."""

    def __init__(
        self,
        store: Store,
        storage: Storage,
        *,
        public_endpoint: str | None = None,
        smallest_part: int = rules.PART_SIZE,
        open_uploads: int = rules.OPEN_UPLOADS,
    ) -> None:
        self._storage, self._public = storage, public_endpoint
        self._smallest_part, self._open_uploads = smallest_part, open_uploads
        self._store, self._records = store, FileRecords(store.connection)
        self._removal = Removal(store, self._records, storage)
        self._tidied: datetime | None = None

    @cached_property
    def direct(self) -> Uploads:
        """How parts get into this storage. Raises StorageUnfit where they cannot."""
        return open_uploads(self._storage, self._public)

    @cached_property
    def uploads(self) -> PartUploads:
        return PartUploads(
            self._records,
            self._storage,
            self.direct,
            self._removal,
            smallest_part=self._smallest_part,
            most_open=self._open_uploads,
        )

    # --- taking ---------------------------------------------------------------------------------------

    async def post(self, org_id: str, name: str, declared_type: str | None, chunks: AsyncIterator[bytes]) -> File:
        """Takes a whole file as it comes, in the place of one of the same name. Raises InvalidFileSize,
        InvalidFileType, BadRequest."""
        rules.check_name(name)
        found = rules.check_type(name, declared_type)
        file = File(
            uid=new_id("fil"),
            org_id=org_id,
            name=name,
            file_type=found,
            num_bytes=0,
            status=FileStatus.REGISTERED,
            created_at=datetime.now(UTC),
        )
        counter = attributes.counter(found)
        num_bytes = await pour(self._storage, file.key, chunks, counter, rules.MAX_POST_BYTES)
        try:
            _, fingerprint = await asyncio.to_thread(stat_input, self._storage.location(file.key))
            file = file.but(num_bytes=num_bytes, fingerprint=fingerprint, attributes=counter.result())
            await asyncio.to_thread(self._storage.write, file.record_key, file.model_dump_json().encode())
            replaced = await self._register(file, datetime.now(UTC))
        except JosError:
            await asyncio.to_thread(self._storage.delete, [file.record_key, file.key])
            raise
        if replaced is not None:
            await self._removal.remove(org_id, replaced.uid, datetime.now(UTC))
        return file

    async def _register(self, file: File, now: datetime, grace: timedelta = timedelta(0)) -> File | None:
        """Gives the file its name. What had it is unwanted from then on, or after `grace`, and is returned."""
        for _ in range(_TRIES):
            current = await self._records.named(file.org_id, file.name)
            if current is not None and current.uid == file.uid:
                return None  # written by the first of two sendings; the pruner sees to what was replaced
            change = self._records.change(file.org_id).if_name(file.name, None if current is None else current.uid)
            change.put_file(file).show(file).count(1, file.num_bytes, now)
            if current is not None:
                change.if_file(current)
                if current.status is FileStatus.REGISTERED:
                    change.put_file(current.but(status=FileStatus.REPLACED)).hide(current)
                    change.unwanted(current.uid, now + grace)
                    change.count(-1, -current.num_bytes, now)
                else:
                    change.drop(current, now)
            if await self._records.apply(change):
                return current
        raise Conflict(f"'{file.name}' is being written by many at once.")

    # --- looking --------------------------------------------------------------------------------------

    async def get(self, org_id: str, name_or_uid: str) -> File:
        """Whatever its status, if it has a name. Raises NotFound."""
        file = await self._records.find(org_id, name_or_uid)
        if file is None or file.status in (FileStatus.REPLACED, FileStatus.REMOVING):
            raise NotFound(f"There is no file {name_or_uid[:300]!r}.")
        return file

    async def readable(self, org_id: str, name_or_uid: str) -> File:
        """Raises NotFound, and BadRequest while it is uploaded or once it is corrupt."""
        file = await self.get(org_id, name_or_uid)
        if file.status is not FileStatus.REGISTERED:
            what = "is still being uploaded" if file.status is FileStatus.UPLOADING else "is corrupt; upload it again"
            raise BadRequest(f"The file {file.name!r} {what}.")
        return file

    async def resolve(self, org_id: str, names_or_uids: Sequence[str]) -> dict[str, File]:
        """Those that a job may read, by what they were asked for."""
        found = await self._records.find_many(org_id, names_or_uids)
        return {n: file for n, file in found.items() if file is not None and file.status is FileStatus.REGISTERED}

    async def named(self, org_id: str, names_or_uids: Sequence[str]) -> dict[str, File]:
        """Those that there are, also on their way in or corrupt, by what they were asked for."""
        found = await self._records.find_many(org_id, names_or_uids)
        gone = (FileStatus.REPLACED, FileStatus.REMOVING)
        return {name: file for name, file in found.items() if file is not None and file.status not in gone}

    async def read_by_job(self, org_id: str, urls: Iterable[str]) -> dict[str, File]:
        """By the URL that a job reads, the files whose bytes are still there; in one round trip. What is no file of
        this organisation is left out."""
        uids = {url: found[0] for url in urls if (found := rules.uids_in(url))}
        wanted = sorted(set(uids.values()))
        files = dict(zip(wanted, await self._records.by_uids(org_id, wanted), strict=True))
        return {
            url: file
            for url, uid in uids.items()
            if (file := files[uid]) is not None
            and file.status in (FileStatus.REGISTERED, FileStatus.REPLACED)
            and url == self._storage.location(file.key)
        }

    async def info(self, org_id: str) -> Info:
        return await self._records.info(org_id)

    async def page(
        self, org_id: str, limit: int, after: str | None, before: str | None, file_type: str | None = None
    ) -> Page:
        """Newest first. The cursors are uids."""
        for cursor in (after, before):
            if cursor is not None and not is_id(cursor, "fil"):
                raise BadRequest("after and before must be cursors of an earlier answer.")
        if after is not None and before is not None:
            raise BadRequest("Give after or before, not both.")
        if file_type is not None:
            return await self._filtered(org_id, limit, after, before, file_type)
        return await self._records.page(org_id, limit, after, before)

    async def _filtered(self, org_id: str, limit: int, after: str | None, before: str | None, file_type: str) -> Page:
        """Of one type: looks through all, which the unfiltered list does not."""
        fit = [f for f in reversed(await self._records.all(org_id)) if rules.matches_type(f.file_type, file_type)]
        if before is not None:
            newer = [f for f in fit if f.uid > before]
            return Page(newer[-limit:], newer=len(newer) > limit, older=True)
        older = [f for f in fit if after is None or f.uid < after]
        return Page(older[:limit], newer=after is not None, older=len(older) > limit)

    async def shard(self, org_id: str, index: int, size: int, file_type: str | None) -> list[File]:
        """Oldest first, so that a shard stays what it is while files are added; -1 and -1: everything."""
        files = [
            f
            for f in await self._records.all(org_id)
            if file_type is None or rules.matches_type(f.file_type, file_type)
        ]
        if index < 0:
            return files
        if size < 1:
            return files if index == 0 else []
        return files[index * size : (index + 1) * size]

    # --- readers and removal ----------------------------------------------------------------------------

    async def readers(self, org_id: str, uids: Sequence[str], job_id: str, some: bool = False) -> None:
        """Marks a job as a reader of these files: call it before the job's record is there. From then on they stay
        until the job is over. Raises NotFound if one is gone by now, unless `some` of them will do; marks of a job
        that never comes lapse."""
        for start in range(0, len(uids), _MARKED):
            await self._mark(org_id, uids[start : start + _MARKED], job_id, some)

    async def _mark(self, org_id: str, uids: Sequence[str], job_id: str, some: bool = False) -> None:
        for _ in range(_TRIES):
            change, now = self._records.change(org_id), datetime.now(UTC)
            for uid, file in zip(uids, await self._records.by_uids(org_id, uids), strict=True):
                if file is not None and file.status in (FileStatus.REGISTERED, FileStatus.REPLACED):
                    change.if_file(file).read_by(uid, job_id, now)
                elif not some:
                    raise NotFound(f"File {uid} was deleted meanwhile.")
            if await self._records.apply(change):
                return
        raise Conflict("The job's files are being changed by many at once.")

    async def mark_reader(self, org_id: str, uid: str, job_id: str) -> None:
        await self.readers(org_id, [uid], job_id)

    async def release(self, org_id: str, uids: Sequence[str], job_id: str) -> None:
        """Takes the marks back, e.g. of a job that was deleted."""
        change = self._records.change(org_id)
        for uid in uids:
            change.not_read_by(uid, job_id)
        if uids:
            await self._records.apply(change)

    async def delete(self, org_id: str, name_or_uid: str) -> File:
        """Raises NotFound, and Conflict while a live job reads it. Waits for the drivers of jobs that are over."""
        for _ in range(_TRIES):
            file, now = await self.get(org_id, name_or_uid), datetime.now(UTC)
            if file.status is FileStatus.UPLOADING and file.upload_id is not None:
                await self.uploads.abort(org_id, file.upload_id, now)
                return file
            readers = await self._removal.when_left(file)
            readers.check_none(f"The file {file.name!r}")
            change = self._records.change(org_id).if_file(file).if_readers(file.uid, readers.marked)
            change.if_name(file.name, file.uid).free_name(file).drop(file, now)
            if file.status is FileStatus.REGISTERED:
                change.count(-1, -file.num_bytes, now)
            if await self._records.apply(change):
                await self._removal.remove(org_id, file.uid, now)
                return file
        raise Conflict(f"The file {name_or_uid[:300]!r} is being changed by many at once.")

    async def prune(self, now: datetime) -> int:
        """For a loop of the controller: ends abandoned uploads, and removes what was replaced or deleted and is read
        by nobody any more. How much there was."""
        count = 0
        for org_id, uid in await self._records.unwanted(now):
            count += await self._removal.remove(org_id, uid, now)
        if not takes_parts(self._storage):
            return count
        count += await self.uploads.expire(now)
        if self._tidied is None or now - self._tidied > _TIDY_EVERY:
            await self.uploads.tidy(now)
            self._tidied = now
        return count

    # --- recovery ---------------------------------------------------------------------------------------

    async def recover(self) -> int:
        """Restores the records of all registered files that the store lacks, and the marks of the live jobs that it
        has; how many files. Uploads that were under way have to start anew."""
        count = 0
        for org_id in await asyncio.to_thread(self._folders, ""):
            uids = [uid for uid in await asyncio.to_thread(self._folders, f"{org_id}/files/") if is_id(uid, "fil")]
            known = await self._records.by_uids(org_id, uids)
            lost = [uid for uid, file in zip(uids, known, strict=True) if file is None]
            for file in await asyncio.to_thread(self._stored, org_id, lost):
                count += await self._restore(file)
        for job in await self._store.active():
            await self._mark_again(job)
        return count

    def _folders(self, prefix: str) -> list[str]:
        return list(self._storage.folders(prefix))

    def _stored(self, org_id: str, uids: Sequence[str]) -> list[File]:
        """Newest first, so that an older content of a name never has it, not even for a moment."""
        with ThreadPoolExecutor(_RECOVERERS) as pool:
            found = pool.map(lambda uid: self._stored_one(org_id, uid), uids)
            files = [file for file in found if file is not None]
        return sorted(files, key=lambda file: (file.created_at, file.uid), reverse=True)

    def _stored_one(self, org_id: str, uid: str) -> File | None:
        """None for what was never registered, or is half removed."""
        try:
            raw = self._storage.read(f"{rules.file_folder(org_id, uid)}file.json")
            file = File.stored(raw)
            num_bytes, fingerprint = stat_input(self._storage.location(file.key))
        except (NotFound, ValidationError):
            return None
        if (file.org_id, file.uid, file.num_bytes) != (org_id, uid, num_bytes):
            return None
        return file.but(fingerprint=fingerprint, status=FileStatus.REGISTERED)

    async def _restore(self, file: File) -> bool:
        """Of several contents of one name the newest gets it; the others wait for the pruner, as they did: long enough
        for all jobs that read them to be marked again."""
        now = datetime.now(UTC)
        current = await self._records.named(file.org_id, file.name)
        if current is None or current.created_at < file.created_at:
            await self._register(file, now, _MARKING_TAKES)
            return True
        old = file.but(status=FileStatus.REPLACED)
        change = self._records.change(file.org_id).put_file(old).unwanted(file.uid, now + _MARKING_TAKES)
        return await self._records.apply(change)

    async def _mark_again(self, job: Job) -> None:
        try:
            raw = await asyncio.to_thread(self._storage.read, f"{job_folder(job.org_id, job.id)}job.json")
            spec = JobSpec.stored(raw)
        except (NotFound, ValidationError):  # not a job of this storage, or one that cannot run
            return
        uids = rules.uids_in(" ".join(source.url for source in spec.inputs))
        await self.readers(job.org_id, uids, job.id, some=True)
