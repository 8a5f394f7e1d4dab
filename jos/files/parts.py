"""Uploads in parts: started, resumed, completed, aborted, expired.

The record in Redis is the state. Completing needs no lock: finishing in the storage may be done twice, and the one
change of the record decides who completed; so a call that died half-way is healed by the next.
May import: jos.core, jos.files, jos.storage, jos.store. Tests: tests/contract/test_files_uploads.py.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn

from jos.core import files as rules
from jos.core.errors import BadRequest, Conflict, StorageUnavailable, TooManyRequests
from jos.core.files import ChecksumMismatch, File, FileStatus, Part, Upload, UploadNotFound, UploadStatus
from jos.core.ids import new_id
from jos.core.model import Json
from jos.files import attributes
from jos.files.pour import in_thread, look_through, through
from jos.files.removal import Removal
from jos.storage.base import Storage
from jos.storage.source import stat_input
from jos.storage.uploads import Uploads
from jos.store.files import FileRecords

UPLOAD_LASTS = timedelta(hours=24)  # without a sign of life
URL_LASTS = timedelta(hours=1)
ENDED_KEPT = timedelta(days=7)  # so that a late call is told what became of its upload
ATTRIBUTES_READ = 256 << 20  # a larger file is not read for its number of rows alone
_BEGINNING = 1 << 20
_TRIES = 20
_MANY_OPEN_WAIT = 5.0  # seconds until another try makes sense
_HOURS = UPLOAD_LASTS // timedelta(hours=1)


@dataclass(frozen=True)
class Started:
    upload: Upload
    is_resume: bool
    left: list[Part]  # those that the client has to send


class PartUploads:
    def __init__(
        self,
        records: FileRecords,
        storage: Storage,
        uploads: Uploads,
        removal: Removal,
        *,
        smallest_part: int,
        most_open: int,
    ) -> None:
        self._records, self._storage, self._removal = records, storage, removal
        self._uploads, self._smallest_part, self._most_open = uploads, smallest_part, most_open

    async def initiate(
        self, org_id: str, name: str, declared_type: str, num_bytes: int, resume: bool, now: datetime
    ) -> Started:
        """Raises Conflict for a name that is registered, or when another upload of it is to be resumed, and
        TooManyRequests when too many are under way."""
        rules.check_name(name)
        rules.check_upload_size(num_bytes)
        rules.check_declared_type(declared_type)
        for _ in range(_TRIES):
            current = await self._records.named(org_id, name)
            if current is not None and current.status is FileStatus.REGISTERED:
                raise Conflict(
                    f"There is a file '{name}' already.", suggestion="Delete it first, or choose another name."
                )
            old = await self._unfinished(current)
            if old is not None and resume:
                if (old.num_bytes, old.declared_type) != (num_bytes, declared_type):
                    raise Conflict(
                        f"The unfinished upload of '{name}' is of {old.num_bytes} bytes of {old.declared_type}, not "
                        f"{num_bytes} of {declared_type}.",
                        suggestion="Start anew with resume_if_started=false.",
                    )
                if (resumed := await self._resume(old, now)) is not None:
                    return resumed
            if old is None:  # else that one ends
                await self._check_open_count(org_id)
            upload = await self._start(org_id, name, declared_type, num_bytes, now)
            if await self._enter(upload, current, old, now):
                return Started(upload, False, [upload.part(n + 1) for n in range(upload.num_parts)])
            await asyncio.to_thread(self._uploads.discard, upload.key, upload.handle)
        raise Conflict(f"'{name}' is being uploaded by many at once.")

    async def get(self, org_id: str, upload_id: str) -> Upload:
        """One that is under way. Raises UploadNotFound, and Conflict for one that is complete."""
        upload = await self._any(org_id, upload_id)
        _check_open(upload)
        return upload

    async def renewed(self, org_id: str, upload_id: str, numbers: Sequence[int]) -> tuple[Upload, list[Part]]:
        """The parts that fresh URLs are asked for, in the asked order."""
        upload = await self.get(org_id, upload_id)
        upload.check_numbers(numbers)
        return upload, [upload.part(n) for n in numbers]

    def url(self, upload: Upload, part: Part) -> str | None:
        """The storage's own URL for a part; None: the API takes it."""
        return self._uploads.url(upload.key, upload.handle, part, int(URL_LASTS.total_seconds()))

    async def send(self, org_id: str, upload_id: str, number: int, chunks: AsyncIterator[bytes]) -> str:
        """Takes one part for the storage, in constant memory; its token. Raises BadRequest for another length."""
        upload, [part] = await self.renewed(org_id, upload_id, [number])
        return await through(chunks, lambda batches: self._uploads.send(upload.key, upload.handle, part, batches))

    async def checkpoint(self, org_id: str, upload_id: str, tokens: Mapping[int, str], now: datetime) -> int:
        """How many parts are checkpointed now. A call that comes after `complete` changes nothing."""
        upload = await self._any(org_id, upload_id)
        upload.check_numbers(tokens)
        if upload.status is UploadStatus.REGISTERED:
            return upload.num_parts
        _check_open(upload)
        count = await self._records.checkpoint(org_id, upload_id, _bare(tokens))
        await self._prolong(upload, now)
        return count

    async def complete(
        self, org_id: str, upload_id: str, tokens: Mapping[int, str], checksum: str | None, now: datetime
    ) -> File:
        upload = await self.get(org_id, upload_id)
        upload.check_numbers(tokens)
        wanted = None if checksum is None else rules.parse_checksum(checksum)
        known = {**await self._records.checkpointed(org_id, upload_id), **_bare(tokens)}
        file = await self._records.by_uid(org_id, upload.file_uid)
        if file is None or file.status is not FileStatus.UPLOADING:
            raise Conflict(f"The name '{upload.name}' was given to another file meanwhile.")
        crc = await self._finish(upload, known, wanted)
        if wanted is not None and crc not in (None, wanted):
            await self._corrupt(upload, file, now)  # there is no object then, so this comes before any look at it
        unchecked = wanted is not None and crc is None and self._uploads.checks(upload.num_bytes)
        seen, found = await self._attributes(file, read_all=unchecked)
        if unchecked and seen != wanted:
            await self._corrupt(upload, file, now)
        _, fingerprint = await asyncio.to_thread(stat_input, self._storage.location(file.key))
        whole = file.but(status=FileStatus.REGISTERED, fingerprint=fingerprint, attributes=found)
        return await self._register(upload, file, whole, now)

    async def abort(self, org_id: str, upload_id: str, now: datetime) -> None:
        """Again: nothing happens. Raises Conflict once it is complete."""
        for _ in range(_TRIES):
            upload = await self._any(org_id, upload_id)
            if upload.status in (UploadStatus.ABORTED, UploadStatus.EXPIRED):
                return
            _check_open(upload)
            if await self._end(upload, UploadStatus.ABORTED, now):
                return
        raise Conflict(f"Upload {upload_id} is being changed by many at once.")

    async def expire(self, now: datetime) -> int:
        """For the pruner: ends uploads without a sign of life, and forgets those that ended long ago."""
        count = 0
        for org_id, upload_id in await self._records.expiring(now):
            upload = await self._records.upload(org_id, upload_id)
            if upload is not None and upload.status is UploadStatus.UPLOADING:
                if upload.expires_at <= now:  # prolonged ones stay
                    count += await self._end(upload, UploadStatus.EXPIRED, now)
                continue
            await self._records.apply(self._records.change(org_id).forget_upload(upload_id))
        return count

    async def tidy(self, now: datetime) -> None:
        """Frees what uploads hold that Redis knows nothing of any more."""
        await in_thread(lambda: self._uploads.tidy((now - UPLOAD_LASTS - ENDED_KEPT).timestamp()))

    # --- inside ---------------------------------------------------------------------------------------

    async def _any(self, org_id: str, upload_id: str) -> Upload:
        upload = await self._records.upload(org_id, upload_id)
        if upload is None:
            raise UploadNotFound(f"There is no upload {upload_id[:40]!r}.")
        return upload

    async def _unfinished(self, current: File | None) -> Upload | None:
        if current is None or current.status is not FileStatus.UPLOADING or current.upload_id is None:
            return None
        upload = await self._records.upload(current.org_id, current.upload_id)
        return upload if upload is not None and upload.status is UploadStatus.UPLOADING else None

    async def _check_open_count(self, org_id: str) -> None:
        """Those that begin at the very same moment may exceed it by their number. Not a Conflict: clients take that
        for a file which is there already."""
        if await self._records.open_uploads(org_id) >= self._most_open:
            raise TooManyRequests(
                f"{self._most_open:,} uploads of your organisation are under way, the most there may be.",
                _MANY_OPEN_WAIT,
                suggestion=f"Complete or abort some; one without a sign of life ends after {_HOURS} hours.",
            )

    async def _resume(self, upload: Upload, now: datetime) -> Started | None:
        """None when the storage lost it, or it ended meanwhile."""
        received = await asyncio.to_thread(self._uploads.received, upload.key, upload.handle)
        if received is None and not await self._is_there(upload):
            return None
        longer = await self._prolong(upload, now)
        if longer is None:
            return None
        if received is None:
            return Started(longer, True, [])  # a call to complete died right before its end; another heals it
        done = await self._records.checkpointed(upload.org_id, upload.id)
        there = {n for n, parts in received.items() if done.get(n) in {part.token for part in parts}}
        return Started(longer, True, [upload.part(n) for n in range(1, upload.num_parts + 1) if n not in there])

    async def _prolong(self, upload: Upload, now: datetime) -> Upload | None:
        longer = upload.but(expires_at=now + UPLOAD_LASTS)
        change = self._records.change(upload.org_id).if_upload(upload).put_upload(longer, longer.expires_at)
        if await self._records.apply(change):
            return longer
        there = await self._records.upload(upload.org_id, upload.id)  # another call prolonged it as well
        return there if there is not None and there.status is UploadStatus.UPLOADING else None

    async def _start(self, org_id: str, name: str, declared_type: str, num_bytes: int, now: datetime) -> Upload:
        upload = Upload(
            id=new_id("upl"),
            org_id=org_id,
            file_uid=new_id("fil"),
            name=name,
            declared_type=declared_type,
            num_bytes=num_bytes,
            part_size=rules.part_size(num_bytes, self._smallest_part),
            handle="",
            created_at=now,
            expires_at=now + UPLOAD_LASTS,
        )
        handle = await asyncio.to_thread(self._uploads.start, upload.key, num_bytes)
        return upload.but(handle=handle)

    async def _enter(self, upload: Upload, current: File | None, old: Upload | None, now: datetime) -> bool:
        """Writes the new upload, in the place of what had the name. False: that changed meanwhile."""
        file = File(
            uid=upload.file_uid,
            org_id=upload.org_id,
            name=upload.name,
            file_type=rules.file_type(upload.name, upload.declared_type),
            num_bytes=upload.num_bytes,
            status=FileStatus.UPLOADING,
            created_at=now,
            upload_id=upload.id,
        )
        change = self._records.change(upload.org_id).if_name(file.name, None if current is None else current.uid)
        if current is not None:
            change.if_file(current).drop(current, now)
        if old is not None:
            change.if_upload(old).put_upload(old.but(status=UploadStatus.ABORTED), now + ENDED_KEPT)
        change.put_file(file).show(file).put_upload(upload, upload.expires_at)
        entered = await self._records.apply(change)
        if not entered:
            there = await self._records.named(file.org_id, file.name)
            entered = there is not None and there.uid == file.uid  # written by the first of two sendings
        if entered and old is not None:
            await asyncio.to_thread(self._uploads.discard, old.key, old.handle)
        return entered

    async def _finish(self, upload: Upload, tokens: Mapping[int, str], wanted: int | None) -> int | None:
        """Puts the parts together in the storage, unless their CRC32C is known and not the wanted one; the CRC32C of
        the whole where the storage knows it."""
        received = await asyncio.to_thread(self._uploads.received, upload.key, upload.handle)
        if received is None:
            if not await self._is_there(upload):
                raise UploadNotFound(f"The storage knows nothing of upload {upload.id} any more; start it anew.")
            return None  # finished by a call that died before it could say so
        chosen = rules.choose_parts(upload, received, tokens)
        crc = rules.whole_crc32c(chosen)
        if wanted is None or crc is None or crc == wanted:
            await asyncio.to_thread(self._uploads.finish, upload.key, upload.handle, chosen)
            if not await self._is_there(upload):
                raise StorageUnavailable(f"'{upload.name}' does not have {upload.num_bytes} bytes once put together.")
        return crc

    async def _is_there(self, upload: Upload) -> bool:
        found = await asyncio.to_thread(self._storage.stat, upload.key)
        return found is not None and found.num_bytes == upload.num_bytes

    async def _attributes(self, file: File, read_all: bool) -> tuple[int | None, Json]:
        """(CRC32C if all was read, attributes)."""
        counter = attributes.counter(file.file_type)
        tells = not isinstance(counter, attributes.NoCounter)
        if read_all or (tells and file.num_bytes <= ATTRIBUTES_READ):
            crc = await in_thread(lambda: look_through(self._storage, file.key, file.num_bytes, counter))
            return crc, counter.result()
        if tells:
            counter.feed(await asyncio.to_thread(self._storage.read, file.key, 0, _BEGINNING))
        return None, counter.result(whole=False)

    async def _register(self, upload: Upload, before: File, whole: File, now: datetime) -> File:
        await asyncio.to_thread(self._storage.write, whole.record_key, whole.model_dump_json().encode())
        done = upload.but(status=UploadStatus.REGISTERED, completed_by=secrets.token_hex(8))
        for _ in range(_TRIES):
            change = self._records.change(upload.org_id).if_upload(upload).if_file(before)
            change.if_name(whole.name, whole.uid).put_file(whole).count(1, whole.num_bytes, now)
            change.put_upload(done, now + ENDED_KEPT)
            if await self._records.apply(change):
                break
            upload = await self._any(upload.org_id, upload.id)
            if upload.completed_by == done.completed_by:  # written by the first of two sendings
                break
            there = await self._records.by_uid(whole.org_id, whole.uid)
            lost = there is None or there.status is not FileStatus.UPLOADING
            if lost and upload.status is not UploadStatus.REGISTERED:  # it ended, or lost its name, while we worked
                await asyncio.to_thread(self._storage.delete, [whole.record_key, whole.key])
            _check_open(upload)
            if there is None or lost:
                raise Conflict(f"The name '{whole.name}' was given to another file meanwhile.")
            before = there
        else:
            raise Conflict(f"Upload {upload.id} is being changed by many at once.")
        await asyncio.to_thread(self._uploads.discard, upload.key, upload.handle)
        return whole

    async def _corrupt(self, upload: Upload, file: File, now: datetime) -> NoReturn:
        """Raises ChecksumMismatch, once the record says so."""
        change = self._records.change(upload.org_id).if_upload(upload).if_file(file)
        change.put_file(file.but(status=FileStatus.CORRUPT))
        change.put_upload(upload.but(status=UploadStatus.CORRUPT), now + ENDED_KEPT)
        if not await self._records.apply(change):
            upload = await self._any(upload.org_id, upload.id)
            if upload.status is UploadStatus.REGISTERED:  # another call completed it, with the right checksum or none
                _check_open(upload)
        await asyncio.to_thread(self._uploads.discard, upload.key, upload.handle)
        await asyncio.to_thread(self._storage.delete, [upload.key])
        raise ChecksumMismatch(
            f"The CRC32C of '{upload.name}' is not the one that was announced: the file is corrupt.",
            suggestion="Upload it again.",
        )

    async def _end(self, upload: Upload, status: UploadStatus, now: datetime) -> bool:
        """Aborted or expired: its name is free, what it holds in the storage goes."""
        change = self._records.change(upload.org_id).if_upload(upload)
        change.put_upload(upload.but(status=status), now + ENDED_KEPT)
        file = await self._records.by_uid(upload.org_id, upload.file_uid)
        if file is not None and file.status is FileStatus.UPLOADING:
            change.if_file(file).drop(file, now)
            named = await self._records.named(upload.org_id, upload.name)
            if named is not None and named.uid == file.uid:
                change.if_name(file.name, file.uid).free_name(file)
        if not await self._records.apply(change):
            return False
        await asyncio.to_thread(self._uploads.discard, upload.key, upload.handle)
        await self._removal.remove(upload.org_id, upload.file_uid, now)
        return True


def _check_open(upload: Upload) -> None:
    match upload.status:
        case UploadStatus.REGISTERED:
            raise Conflict(f"Upload {upload.id} is complete already.")
        case UploadStatus.CORRUPT:
            raise Conflict(f"Upload {upload.id} ended with a wrong checksum; upload the file again.")
        case UploadStatus.ABORTED | UploadStatus.EXPIRED:
            raise UploadNotFound(f"Upload {upload.id} was {upload.status.value.lower()}.")


def _bare(tokens: Mapping[int, str]) -> dict[int, str]:
    bare = {number: rules.bare(token) for number, token in tokens.items()}
    if any(not 0 < len(token) <= 256 or not token.isascii() for token in bare.values()):
        raise BadRequest("A part_token is the ETag that the answer to the part's PUT carried.")
    return bare
