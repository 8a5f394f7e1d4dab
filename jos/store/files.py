"""File and upload records in Redis. Every change is one script that first checks what the change was decided on, so
that of two racing changes one is decided anew; no rule lives here.

    jos:{ORG}:files          HASH  file uid => File as JSON
    jos:{ORG}:files:names    HASH  name => uid of the content that has the name now
    jos:{ORG}:files:order    ZSET  uids in order of creation, all with score 0 (ids sort by time)
    jos:{ORG}:files:info     HASH  num_files, num_bytes of registered files; last_updated in Unix seconds
    jos:{ORG}:files:readers:UID  ZSET  job id => when it was marked as a reader
    jos:{ORG}:uploads        HASH  upload id => Upload as JSON
    jos:{ORG}:uploads:open   SET   ids of uploads that are under way
    jos:{ORG}:upload:ID      HASH  part number => token, of checkpointed parts
    jos:files:expiring       ZSET  "ORG ID" of uploads => when they expire, or when the record of an ended one goes
    jos:files:unwanted       ZSET  "ORG UID" of contents to remove once no live job reads them => since when
May import: jos.core, jos.store. Tests: tests/contract/test_files*.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import orjson

from jos.core.files import File, FileStatus, Record, Upload, UploadStatus
from jos.core.ids import is_id
from jos.store.connection import Argument, Connection

EXPIRING = "jos:files:expiring"
UNWANTED = "jos:files:unwanted"
_CHUNK = 1000


@dataclass(frozen=True)
class OrgKeys:
    org_id: str

    @property
    def files(self) -> str:
        return f"jos:{{{self.org_id}}}:files"

    @property
    def names(self) -> str:
        return f"{self.files}:names"

    @property
    def order(self) -> str:
        return f"{self.files}:order"

    @property
    def info(self) -> str:
        return f"{self.files}:info"

    @property
    def uploads(self) -> str:
        return f"jos:{{{self.org_id}}}:uploads"

    @property
    def open_uploads(self) -> str:
        return f"{self.uploads}:open"

    def readers(self, uid: str) -> str:
        return f"{self.files}:readers:{uid}"

    def parts(self, upload_id: str) -> str:
        return f"jos:{{{self.org_id}}}:upload:{upload_id}"


@dataclass
class Change:
    """Checks and writes of one atomic step, gathered by the methods below."""

    keys: OrgKeys
    checks: list[list[str]] = field(default_factory=list)
    writes: list[list[str]] = field(default_factory=list)

    # checks

    def if_name(self, name: str, uid: str | None) -> Change:
        self.checks.append([uid or "", "HGET", self.keys.names, name])
        return self

    def if_file(self, file: File) -> Change:
        self.checks.append([_guard(file), "HGET", self.keys.files, file.uid])
        return self

    def if_upload(self, upload: Upload) -> Change:
        self.checks.append([_guard(upload), "HGET", self.keys.uploads, upload.id])
        return self

    def if_readers(self, uid: str, job_ids: Sequence[str]) -> Change:
        self.checks.append([" ".join(job_ids), "ZRANGE", self.keys.readers(uid), "0", "-1"])
        return self

    # writes

    def read_by(self, uid: str, job_id: str, now: datetime) -> Change:
        return self.do("ZADD", self.keys.readers(uid), now.timestamp(), job_id)

    def not_read_by(self, uid: str, job_id: str) -> Change:
        return self.do("ZREM", self.keys.readers(uid), job_id)

    def do(self, *parts: str | int | float) -> Change:
        self.writes.append([str(part) for part in parts])
        return self

    def put_file(self, file: File) -> Change:
        return self.do("HSET", self.keys.files, file.uid, _dump(file))

    def show(self, file: File) -> Change:
        """Under its name and in lists."""
        return self.do("HSET", self.keys.names, file.name, file.uid).do("ZADD", self.keys.order, 0, file.uid)

    def hide(self, file: File) -> Change:
        return self.do("ZREM", self.keys.order, file.uid)

    def free_name(self, file: File) -> Change:
        return self.do("HDEL", self.keys.names, file.name)

    def forget_file(self, uid: str) -> Change:
        return self.do("HDEL", self.keys.files, uid).do("DEL", self.keys.readers(uid))

    def count(self, files: int, num_bytes: int, now: datetime) -> Change:
        info = self.keys.info
        self.do("HINCRBY", info, "num_files", files).do("HINCRBY", info, "num_bytes", num_bytes)
        return self.do("HSET", info, "last_updated", repr(now.timestamp()))

    def unwanted(self, uid: str, now: datetime) -> Change:
        return self.do("ZADD", UNWANTED, now.timestamp(), f"{self.keys.org_id} {uid}")

    def drop(self, file: File, now: datetime) -> Change:
        """Out of lists at once, its bytes with the next look of the pruner. Its name is freed or given elsewhere."""
        return self.put_file(file.but(status=FileStatus.REMOVING)).hide(file).unwanted(file.uid, now)

    def removed(self, uid: str) -> Change:
        return self.do("ZREM", UNWANTED, f"{self.keys.org_id} {uid}")

    def put_upload(self, upload: Upload, until: datetime) -> Change:
        self.do("HSET", self.keys.uploads, upload.id, _dump(upload))
        self.do("SADD" if upload.status is UploadStatus.UPLOADING else "SREM", self.keys.open_uploads, upload.id)
        return self.do("ZADD", EXPIRING, until.timestamp(), f"{upload.org_id} {upload.id}")

    def forget_upload(self, upload_id: str) -> Change:
        self.do("HDEL", self.keys.uploads, upload_id).do("DEL", self.keys.parts(upload_id))
        self.do("SREM", self.keys.open_uploads, upload_id)
        return self.do("ZREM", EXPIRING, f"{self.keys.org_id} {upload_id}")


@dataclass(frozen=True)
class Info:
    num_files: int
    num_bytes: int
    last_updated: float


@dataclass(frozen=True)
class Page:
    files: list[File]
    newer: bool  # there are more before the first
    older: bool  # there are more after the last


class FileRecords:
    """Every method is for one organisation, except `expiring` and `unwanted`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def change(self, org_id: str) -> Change:
        return Change(OrgKeys(org_id))

    async def apply(self, change: Change) -> bool:
        """False: something had changed meanwhile; look again and decide anew. As a command may be sent twice, False
        may also follow on a change that was made; deciding anew then finds it made."""
        touched = sorted({check[2] for check in change.checks} | {write[1] for write in change.writes})
        body = orjson.dumps({"checks": change.checks, "writes": change.writes}).decode()
        return bool(await self._connection.script("files", touched, [body]) == 1)

    # --- files ----------------------------------------------------------------------------------------

    async def find(self, org_id: str, name_or_uid: str) -> File | None:
        return (await self.find_many(org_id, [name_or_uid]))[name_or_uid]

    async def find_many(self, org_id: str, names_or_uids: Sequence[str]) -> dict[str, File | None]:
        """By name first: nothing keeps a user from naming a file like a uid."""
        keys = OrgKeys(org_id)
        wanted = list(dict.fromkeys(names_or_uids))
        if not wanted:
            return {}
        uids = [
            uid.decode() if uid is not None else name
            for name, uid in zip(wanted, await self._connection.command("HMGET", keys.names, *wanted), strict=True)
        ]
        found = await self._connection.command("HMGET", keys.files, *uids)
        return {name: _load(File, raw) for name, raw in zip(wanted, found, strict=True)}

    async def named(self, org_id: str, name: str) -> File | None:
        """What has this name now, whatever its status."""
        uid = await self._connection.command("HGET", OrgKeys(org_id).names, name)
        return None if uid is None else await self.by_uid(org_id, uid.decode())

    async def by_uids(self, org_id: str, uids: Sequence[str]) -> list[File | None]:
        if not uids:
            return []
        found = await self._connection.command("HMGET", OrgKeys(org_id).files, *uids)
        return [_load(File, raw) for raw in found]

    async def by_uid(self, org_id: str, uid: str) -> File | None:
        raw = await self._connection.command("HGET", OrgKeys(org_id).files, uid)
        return _load(File, raw)

    async def page(self, org_id: str, limit: int, after: str | None = None, before: str | None = None) -> Page:
        """Newest first: those after (older than) or before (newer than) the file with this uid."""
        keys = OrgKeys(org_id)
        if before is not None:
            command: tuple[Argument, ...] = ("ZRANGEBYLEX", keys.order, f"({before}", "+")
        else:
            command = ("ZREVRANGEBYLEX", keys.order, f"({after}" if after else "+", "-")
        found = [uid.decode() for uid in await self._connection.command(*command, "LIMIT", 0, limit + 1)]
        more, found = len(found) > limit, found[:limit]
        files = await self._files(keys, found[::-1] if before is not None else found)
        if before is not None:
            return Page(files, newer=more, older=True)
        return Page(files, newer=after is not None, older=more)

    async def all(self, org_id: str) -> list[File]:
        """Oldest first."""
        keys = OrgKeys(org_id)
        return await self._files(
            keys, [u.decode() for u in await self._connection.command("ZRANGE", keys.order, 0, -1)]
        )

    async def info(self, org_id: str) -> Info:
        fields = ("num_files", "num_bytes", "last_updated")
        files, num_bytes, updated = await self._connection.command("HMGET", OrgKeys(org_id).info, *fields)
        return Info(int(files or 0), int(num_bytes or 0), float(updated or 0))

    async def readers(self, org_id: str, uid: str) -> dict[str, float]:
        """Job id -> when it was marked, in the order that `if_readers` compares."""
        found = await self._connection.command("ZRANGE", OrgKeys(org_id).readers(uid), 0, -1, "WITHSCORES")
        return {found[at].decode(): float(found[at + 1]) for at in range(0, len(found), 2)}

    async def _files(self, keys: OrgKeys, uids: Sequence[str]) -> list[File]:
        files: list[File] = []
        for start in range(0, len(uids), _CHUNK):
            found = await self._connection.command("HMGET", keys.files, *uids[start : start + _CHUNK])
            files += [file for raw in found if (file := _load(File, raw)) is not None]
        return files

    # --- uploads --------------------------------------------------------------------------------------

    async def upload(self, org_id: str, upload_id: str) -> Upload | None:
        if not is_id(upload_id, "upl"):
            return None
        raw = await self._connection.command("HGET", OrgKeys(org_id).uploads, upload_id)
        return _load(Upload, raw)

    async def open_uploads(self, org_id: str) -> int:
        """How many are under way."""
        return int(await self._connection.command("SCARD", OrgKeys(org_id).open_uploads))

    async def checkpoint(self, org_id: str, upload_id: str, tokens: dict[int, str]) -> int:
        """How many parts are checkpointed now."""
        key = OrgKeys(org_id).parts(upload_id)
        flat = [str(item) for pair in tokens.items() for item in pair]
        writes = [("HSET", key, *flat)] if flat else []
        replies = await self._connection.commands([*writes, ("HLEN", key)])
        return int(replies[-1])

    async def checkpointed(self, org_id: str, upload_id: str) -> dict[int, str]:
        found = await self._connection.command("HGETALL", OrgKeys(org_id).parts(upload_id))
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return {int(number): token.decode() for number, token in pairs}

    # --- what waits for the pruner ----------------------------------------------------------------------

    async def expiring(self, until: datetime) -> list[tuple[str, str]]:
        """(organisation, upload id) of those that are due."""
        return await self._due(EXPIRING, until)

    async def unwanted(self, until: datetime) -> list[tuple[str, str]]:
        """(organisation, file uid)."""
        return await self._due(UNWANTED, until)

    async def _due(self, key: str, until: datetime) -> list[tuple[str, str]]:
        found = await self._connection.command(
            "ZRANGEBYSCORE", key, "-inf", repr(until.timestamp()), "LIMIT", 0, _CHUNK
        )
        return [(org, name) for org, _, name in (member.decode().partition(" ") for member in found)]


def _dump(record: Record) -> str:
    return record.model_dump_json()


def _guard(record: Record) -> str:
    return record.raw or _dump(record)


R = TypeVar("R", bound=Record)


def _load(kind: type[R], raw: bytes | None) -> R | None:
    """None for a record that there is not."""
    return None if raw is None else kind.stored(raw).model_copy(update={"raw": raw.decode()})
