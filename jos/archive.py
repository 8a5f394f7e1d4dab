"""Events and progress beyond the store: copied to storage beside a job's outputs, and read as one with what the
store still has.

    {job}archive/events/000000000001.jsonl    entries 1 to 10,000, one a line; named by its first; never replaced
    {job}archive/progress/000000000001.jsonl
    {job}archive/end.json                     the record of a job that is over

While a job runs only full chunks are written, so that there are few; when it is over, the rest. Ids have no gaps, so
a chunk begins where the one before ends, whoever wrote that, and two archivers at once do no harm.
May import: jos.core, jos.storage, jos.store. Tests: tests/integration/test_archive.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

import orjson
from pydantic import ValidationError

from jos.core.errors import JosError, NotFound
from jos.core.model import Event, Job, Level, Model, Progress, job_folder
from jos.storage.base import Storage
from jos.store import streams
from jos.store.redis import Store

CHUNK = 10_000  # entries of one object
BATCH = 1_000  # entries read from the store at once
_TAIL = 65_536  # bytes of a chunk's end that nearly always hold its last line

Order = Literal["asc", "desc"]
Name = Literal["events", "progress"]
NAMES: tuple[Name, ...] = ("events", "progress")
E = TypeVar("E", bound=Event | Progress)


class ArchiveDamaged(JosError):
    """An object of the archive was changed or cut; the message names it."""

    code = "archive_damaged"


class End(Model):
    """`archive/end.json`: how a job ended. An attempt that claimed the commit log later makes it out of date."""

    job: Job
    events: int  # numbers given so far, and all archived
    progress: int
    attempt: int  # the latest attempt's number; 0: it never had one


@dataclass(frozen=True)
class Archived:
    """Up to which ids events and progress are in storage now."""

    events: int
    progress: int


# --- writing ------------------------------------------------------------------------------------------


async def archive(store: Store, storage: Storage, job: Job, *, everything: bool) -> Archived:
    """Copies what is not yet copied; with `everything` also what does not fill a chunk, and if the job is over, its
    end. Safe to repeat, to break off and to run twice at once. Raises NotFound if the store has no such job."""
    events = await _Stream(store, storage, job, "events", Event).save(everything)
    progress = await _Stream(store, storage, job, "progress", Progress).save(everything)
    archived = Archived(events, progress)
    if everything:
        await _save_end(store, storage, job, archived)
    return archived


async def _save_end(store: Store, storage: Storage, job: Job, archived: Archived) -> None:
    now = await store.get(job.id)  # the caller's may be older than what another archiver wrote
    if not now.status.terminal:
        return
    number = now.attempt.number if now.attempt else 0
    new = End(job=now, attempt=number, **vars(archived))
    key = end_key(job.org_id, job.id)
    data = new.model_dump_json(indent=1).encode()
    if await asyncio.to_thread(_read, storage, key) != data:
        await asyncio.to_thread(storage.write, key, data)


# --- reading ------------------------------------------------------------------------------------------


async def events(
    store: Store,
    storage: Storage,
    job: Job,
    *,
    after: int = 0,
    offset: int = 0,
    limit: int = 100,
    order: Order = "asc",
    level: Level | None = None,
    event_type: str | None = None,
    input_id: str | None = None,
) -> tuple[int, list[Event]]:
    """(how many there are, the asked ones), over archive and store. `after` leaves out ids up to it, `offset` skips
    so many in the given order. The total counts what the filters let through and ignores `after`."""
    wanted = {"level": level, "event_type": event_type, "input_id": input_id}
    return await _Stream(store, storage, job, "events", Event).page(streams.Page(after, offset, limit, order), wanted)


async def progress(
    store: Store,
    storage: Storage,
    job: Job,
    *,
    after: int = 0,
    offset: int = 0,
    limit: int = 100,
    order: Order = "asc",
    kind: str | None = None,
    input_id: str | None = None,
) -> tuple[int, list[Progress]]:
    """As `events`."""
    wanted = {"kind": kind, "input_id": input_id}
    stream = _Stream(store, storage, job, "progress", Progress)
    return await stream.page(streams.Page(after, offset, limit, order), wanted)


async def history(
    store: Store, storage: Storage, job: Job, after_event: int = 0, after_progress: int = 0
) -> AsyncIterator[list[Event | Progress]]:
    """Everything after the given ids up to now, in batches, in the order of `Store.follow`, which goes on from the
    last ids seen here: a reader who was away for long misses nothing and hears nothing twice."""
    one: _Side[Any] = _Side(_Stream(store, storage, job, "events", Event).ascending(after_event))
    other: _Side[Any] = _Side(_Stream(store, storage, job, "progress", Progress).ascending(after_progress))
    while await one.fill() | await other.fill():
        full = [side for side in (one, other) if side.batch]
        first = min(full, key=lambda side: side.batch[-1].created_at)  # nothing more of it is known: tell all of it
        until = first.batch[-1].created_at
        taken = {side: side.take(None if side is first else until) for side in full}
        yield streams.merged(taken.get(one, []), taken.get(other, []))


def end_of(storage: Storage, org_id: str, job_id: str) -> End | None:
    """How the job last ended, if it is over or was. Raises ArchiveDamaged."""
    key = end_key(org_id, job_id)
    data = _read(storage, key)
    if data is None:
        return None
    try:
        return End.stored(data)
    except ValidationError as error:
        raise _damaged(storage, key, f"is no record of an end: {error.errors()[0]['msg']}") from error


def end_key(org_id: str, job_id: str) -> str:
    return f"{job_folder(org_id, job_id)}archive/end.json"


def chunks(storage: Storage, org_id: str, job_id: str, name: Name) -> list[tuple[int, str]]:
    """(first id, key) of all chunks, in order."""
    prefix = f"{job_folder(org_id, job_id)}archive/{name}/"
    found = (stat.key for stat in storage.list(prefix))
    numbers = ((key.removeprefix(prefix).removesuffix(".jsonl"), key) for key in found if key.endswith(".jsonl"))
    return [(int(number), key) for number, key in numbers if number.isdecimal()]


def chunk_entries(storage: Storage, key: str, start: int = 0, end: int | None = None) -> Iterator[dict[str, Any]]:
    """The entries of a chunk as JSON, or its lines [start, end). Raises ArchiveDamaged, NotFound."""
    for line in storage.read(key).splitlines()[start:end]:
        yield _parsed(storage, key, line)


def archived_until(storage: Storage, org_id: str, job_id: str, name: Name) -> tuple[int, dict[str, Any] | None]:
    """The last id in the archive, 0 without any, and the entry itself."""
    found = chunks(storage, org_id, job_id, name)
    if not found:
        return 0, None
    key = found[-1][1]
    stat = storage.stat(key)
    start = max(stat.num_bytes - _TAIL, 0) if stat else 0
    lines = storage.read(key, start).splitlines()
    if start and len(lines) < 2:  # a line longer than that: the first of them may have been cut
        lines = storage.read(key).splitlines()
    if not lines:
        raise _damaged(storage, key, "is empty")
    last = _parsed(storage, key, lines[-1])
    return int(last["id"]), last


# --- inside -------------------------------------------------------------------------------------------


class _Stream(Generic[E]):
    """Events or progress of one job, wherever they are."""

    def __init__(self, store: Store, storage: Storage, job: Job, name: Name, model: type[E]) -> None:
        self.store, self.storage, self.job, self.name, self.model = store, storage, job, name, model
        self._read: Callable[..., Any] = getattr(store, name)

    async def stored(self, after: int, offset: int, limit: int, order: Order, **wanted: Any) -> tuple[int, list[E]]:
        """(numbers given so far, or matches with a filter; what of the page the store still has)."""
        count, found = await self._read(self.job.id, after, limit, order, offset=offset, **wanted)
        return int(count), list(found)

    # --- writing

    async def save(self, everything: bool) -> int:
        at = await self._until()
        while True:
            count, _ = await self.stored(at, 0, 0, "asc")
            if count - at < (1 if everything else CHUNK):
                return at
            _, batch = await self.stored(at, 0, CHUNK, "asc")
            if not batch or (len(batch) < CHUNK and not everything):
                return at
            lines = b"".join(entry.model_dump_json().encode() + b"\n" for entry in batch)
            key = f"{job_folder(self.job.org_id, self.job.id)}archive/{self.name}/{batch[0].id:012d}.jsonl"
            made = await asyncio.to_thread(self.storage.create, key, lines)
            # somebody else's chunk may be longer or shorter than ours would have been: go on where it ends
            at = batch[-1].id if made else max(await self._until(), at)

    async def _until(self) -> int:
        job = self.job
        return (await asyncio.to_thread(archived_until, self.storage, job.org_id, job.id, self.name))[0]

    # --- pages

    async def page(self, page: streams.Page, filters: dict[str, Any]) -> tuple[int, list[E]]:
        wanted = {name: value for name, value in filters.items() if value is not None}
        if wanted:
            return await self._filtered(page, wanted)
        count, found = await self.stored(page.after, page.offset, page.limit, page.order)
        ids = _asked(page, count)
        if [entry.id for entry in found] == list(ids):
            return count, found
        entries = await self._between(min(ids), max(ids)) if ids else []
        return count, entries if page.order == "asc" else entries[::-1]

    async def _filtered(self, page: streams.Page, wanted: dict[str, Any]) -> tuple[int, list[E]]:
        answer = await self.stored(page.after, page.offset, page.limit, page.order, **wanted)
        count, first = await self.stored(0, 0, 1, "asc")
        if count == 0 or (first and first[0].id == 1):  # the store has them all, so it had them then
            return answer
        total = seen = 0
        entries: list[E] = []
        async for batch in self.ascending(0) if page.order == "asc" else self._descending():
            for entry in batch:
                if not all(getattr(entry, name) == value for name, value in wanted.items()):
                    continue
                total += 1
                if entry.id > page.after:
                    if page.offset <= seen < page.offset + page.limit:
                        entries.append(entry)
                    seen += 1
        return total, entries

    async def _between(self, low: int, high: int) -> list[E]:
        """Entries `low` to `high`: from the store what it has, the older ones from the archive."""
        _, found = await self.stored(low - 1, 0, high - low + 1, "asc")
        recent = [entry for entry in found if entry.id <= high]
        older = (recent[0].id if recent else high + 1) - 1
        entries: list[E] = []
        if older >= low:
            for chunk in await self._chunks(low, older):
                entries += await self._chunk(chunk, low, older)
        return entries + recent

    # --- everything, batch by batch

    async def ascending(self, after: int) -> AsyncIterator[list[E]]:
        while True:
            count, batch = await self.stored(after, 0, BATCH, "asc")
            if not batch and after >= count:
                return
            if not batch or batch[0].id != after + 1:  # gone from the store
                async for entries in self._archived(after + 1, (batch[0].id if batch else count + 1) - 1):
                    after = entries[-1].id
                    yield entries
                if not batch:
                    return
            yield batch
            after = batch[-1].id

    async def _archived(self, low: int, high: int) -> AsyncIterator[list[E]]:
        for chunk in await self._chunks(low, high):
            if entries := await self._chunk(chunk, low, high):
                low = entries[-1].id + 1
                yield entries

    async def _descending(self) -> AsyncIterator[list[E]]:
        count, batch = await self.stored(0, 0, BATCH, "desc")
        low = count + 1  # everything from here on was given
        while batch:
            yield batch
            low = batch[-1].id
            count, batch = await self.stored(0, count - low + 1, BATCH, "desc")
            batch = [entry for entry in batch if entry.id < low]  # more came meanwhile: offsets have moved
        for chunk in reversed(await self._chunks(1, low - 1)):
            if entries := await self._chunk(chunk, 1, low - 1):
                low = entries[0].id
                yield entries[::-1]

    async def _chunks(self, low: int, high: int) -> list[tuple[int, str]]:
        """The chunks that may hold any of these ids."""
        found = await asyncio.to_thread(chunks, self.storage, self.job.org_id, self.job.id, self.name)
        nexts = [first for first, _ in found[1:]] + [high + 1]
        return [one for one, after in zip(found, nexts, strict=True) if one[0] <= high and after > low]

    async def _chunk(self, chunk: tuple[int, str], low: int, high: int) -> list[E]:
        first, key = chunk

        def load() -> list[E]:
            validate: Any = self.model.model_validate
            entries = chunk_entries(self.storage, key, max(low - first, 0), max(high - first + 1, 0))
            try:
                return [validate(entry, extra="ignore") for entry in entries if low <= entry["id"] <= high]
            except ValidationError as error:
                raise _damaged(self.storage, key, f"holds what is none of {self.name}") from error

        return await asyncio.to_thread(load)


class _Side(Generic[E]):
    """One of two streams that are being merged."""

    def __init__(self, source: AsyncIterator[list[E]]) -> None:
        self.source, self.batch = source, list[E]()

    async def fill(self) -> bool:
        if not self.batch:
            self.batch = await anext(self.source, [])
        return bool(self.batch)

    def take(self, until: datetime | None) -> list[E]:
        """The entries up to that time (None: all), as far as they lie at the front."""
        beyond = (n for n, entry in enumerate(self.batch) if until is not None and entry.created_at > until)
        cut = next(beyond, len(self.batch))
        taken, self.batch = self.batch[:cut], self.batch[cut:]
        return taken


def _asked(page: streams.Page, count: int) -> Sequence[int]:
    """The ids of a page without filters, in its order; numbers have no gaps, so an offset is a subtraction."""
    if page.order == "asc":
        first = page.after + page.offset + 1
        return range(first, min(first + page.limit, count + 1))
    newest = count - page.offset
    return range(newest, max(newest - page.limit, page.after), -1)


def _read(storage: Storage, key: str) -> bytes | None:
    try:
        return storage.read(key)
    except NotFound:
        return None


def _parsed(storage: Storage, key: str, line: bytes) -> dict[str, Any]:
    try:
        entry = orjson.loads(line)
    except ValueError as error:
        raise _damaged(storage, key, "has a line that is no JSON") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
        raise _damaged(storage, key, "has a line that is no entry")
    return entry


def _damaged(storage: Storage, key: str, what: str) -> ArchiveDamaged:
    where = storage.location(key)
    return ArchiveDamaged(f"The archive is damaged: {where} {what}.", suggestion="Restore it from a backup.")
