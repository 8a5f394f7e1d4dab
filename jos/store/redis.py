"""The store: job records, their events and progress, and what drivers mirror, in Redis or Valkey (6.2 and up).

One door changes a job: `transact` reads, lets jos.core.lifecycle decide, and writes record and events in one script
guarded by the record's version, so the log can never disagree with the state. No rule lives here.
May import: redis, jos.core, jos.store. Tests: tests/integration/test_store.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from jos.core import ids, lifecycle
from jos.core.commands import Command
from jos.core.errors import Conflict, NotFound, StaleAttempt
from jos.core.model import Event, EventDraft, InputState, Job, Level, Output, Progress, Status
from jos.store import records, streams
from jos.store.connection import Connection
from jos.store.records import JobKeys, Live, Mirror, MirrorReply

TRANSACT_TRIES = 30
# A finished job may leave the index of active ones only this long after it came in: a retry enters the index
# first and writes the record next, and must not be swept out in between.
_SWEEP_AFTER = timedelta(minutes=1)
_CHUNK = 500  # records looked at in one round trip


E = TypeVar("E", Event, Progress)


class Decide(Protocol):
    def __call__(self, job: Job, command: Command, now: datetime) -> lifecycle.Transition: ...


class Store:
    """Bound to the event loop that opened it. Safe for any number of tasks and processes at once.

    Every method raises StoreUnavailable when Redis stays away; those on one job raise NotFound."""

    def __init__(
        self,
        connection: Connection,
        *,
        keep_events: int = 100_000,
        keep_progress: int = 10_000,
        decide: Decide = lifecycle.decide,
    ) -> None:
        self._connection = connection
        self._keep_events = keep_events  # per job; older ones are trimmed, their ids are not given again
        self._keep_progress = keep_progress
        self._decide = decide

    @classmethod
    async def open(
        cls,
        url: str | None,
        data_dir: Path | None = None,
        *,
        keep_events: int = 100_000,
        keep_progress: int = 10_000,
        decide: Decide = lifecycle.decide,
    ) -> Self:
        """On `url` (redis://, rediss://, unix://), or without one on the embedded server of `data_dir`."""
        connection = await Connection.open(url, data_dir)
        return cls(connection, keep_events=keep_events, keep_progress=keep_progress, decide=decide)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connection.close()

    async def ping(self) -> None:
        await self._connection.command("PING")

    # --- jobs -----------------------------------------------------------------------------------------

    async def create(self, job: Job, events: Sequence[EventDraft]) -> Job:
        """Writes a new job and its first events; a second one with the same id raises Conflict."""
        await self._index(job, job.created_at)
        if not await self._write(job, events, version=0):
            raise Conflict(f"Job {job.id} exists already.")
        return job

    async def get(self, job_id: str) -> Job:
        job, _ = await self._read(job_id)
        return job

    async def transact(self, job_id: str, command: Command, now: datetime) -> Job:
        """Applies one command. Raises InvalidTransition or StaleAttempt as the lifecycle says; a command that
        was applied before changes nothing and returns the job as it is."""
        for attempt in range(TRANSACT_TRIES):
            job, version = await self._read(job_id)
            transition = self._decide(job, command, now)
            if transition.job is job and not transition.events:
                return job
            if _active(transition.job) and not _active(job):
                await self._index(transition.job, now)
            if await self._write(transition.job, transition.events, version):
                return transition.job
            await asyncio.sleep(random.uniform(0, 0.002 * 2 ** min(attempt, 6)))
        raise Conflict(f"Job {job_id} kept changing under {type(command).__name__}.", suggestion="Try again.")

    async def jobs(
        self,
        org_id: str | None,
        offset: int = 0,
        limit: int = 20,
        status: Status | None = None,
        q: str | None = None,
    ) -> tuple[int, list[Job]]:
        """(how many there are, the asked ones), newest first; `org_id` None: of all organisations; `q` is looked
        for in name, pipeline key and id."""
        index = records.ALL_JOBS if org_id is None else records.org_jobs(org_id)
        if status is None and not q:
            total = await self._connection.command("ZCARD", index)
            found = await self._connection.command("ZREVRANGE", index, offset, offset + limit - 1)
            return total, await self._jobs_of([name.decode() for name in found] if limit else [])
        matches = [name async for name in self._matching(index, status, (q or "").casefold())]
        return len(matches), await self._jobs_of(matches[offset : offset + limit])

    async def active(self, now: datetime) -> list[Job]:
        """All jobs that are not over or still hold capacity, longest in first: what a controller looks at."""
        members = await self._connection.command("ZRANGE", records.ACTIVE_JOBS, 0, -1, "WITHSCORES")
        entered = {name.decode(): float(score) for name, score in zip(members[::2], members[1::2], strict=True)}
        jobs = {job.id: job for job in await self._jobs_of(list(entered))}
        swept_before = _score(now - _SWEEP_AFTER)
        over = [
            name
            for name, score in entered.items()
            if score < swept_before and not (name in jobs and _active(jobs[name]))
        ]
        if over:
            await self._connection.command("ZREM", records.ACTIVE_JOBS, *over)
        return [job for job in jobs.values() if _active(job)]

    async def delete(self, job_id: str) -> None:
        """Removes all that is kept of a job; does nothing when there is none."""
        keys = JobKeys.of(job_id)
        record = await self._connection.command("HGET", keys.job, "record")
        if record is not None:  # indexes first: after a crash in between, the job is still there to be deleted
            indexes = records.indexes(records.load_job(record))
            await self._connection.commands([("ZREM", index, job_id) for index in indexes])
        await self._connection.command("UNLINK", *keys.all())

    # --- what a driver tells --------------------------------------------------------------------------

    async def mirror(self, job_id: str, batch: Mirror) -> MirrorReply:
        """Takes a batch over, all or nothing and once. Raises StaleAttempt when the attempt is over."""
        keys = JobKeys.of(job_id)
        code, status, version, seq = await self._connection.script(
            "mirror",
            [keys.job, keys.mirror, keys.events, keys.progress, keys.inputs, keys.outputs, keys.arrivals],
            records.mirror_arguments(batch, self._keep_events, self._keep_progress),
        )
        if code == b"missing":
            raise _not_found(job_id)
        if code == b"stale":
            raise StaleAttempt(f"This attempt of job {job_id} is over; another one may be running.")
        return MirrorReply(Status(status.decode()), version, seq, applied=code == b"applied")

    async def last_seq(self, job_id: str, token: str) -> int:
        """The latest batch of this attempt that was applied; 0 if none was."""
        live = await self.live(job_id)
        return live.seq if live is not None and live.token == token else 0

    async def live(self, job_id: str) -> Live | None:
        """The latest heartbeat and display data; None before the first batch."""
        key = JobKeys.of(job_id).mirror
        return records.load_live(await self._connection.command("HGETALL", key))

    async def inputs(self, job_id: str) -> dict[str, InputState]:
        """By input id; an input that no driver has spoken of yet is not there."""
        key = JobKeys.of(job_id).inputs
        fields = await self._connection.command("HGETALL", key)
        return {name.decode(): InputState.model_validate_json(state) for name, state in fields.items()}

    async def outputs(self, job_id: str) -> list[Output]:
        """In the order of their first arrival."""
        keys = JobKeys.of(job_id)
        arrivals, fields = await self._connection.commands(
            [("LRANGE", keys.arrivals, 0, -1), ("HGETALL", keys.outputs)]
        )
        return [Output.model_validate_json(fields[name]) for name in arrivals if name in fields]

    # --- events and progress --------------------------------------------------------------------------

    async def events(
        self,
        job_id: str,
        after: int = 0,
        limit: int = 100,
        order: streams.Order = "asc",
        *,
        offset: int = 0,
        level: Level | None = None,
        event_type: str | None = None,
        input_id: str | None = None,
    ) -> tuple[int, list[Event]]:
        """(how many there are, the asked ones). `after` leaves out ids up to it, `offset` skips so many in the
        given order. The total ignores `after`, and without filters counts trimmed events too."""
        wanted = {"level": level, "event_type": event_type, "input_id": input_id}
        page = streams.Page(after, offset, limit, order)
        return await self._page(job_id, "events", wanted, page, records.load_event)

    async def progress(
        self,
        job_id: str,
        after: int = 0,
        limit: int = 100,
        order: streams.Order = "asc",
        *,
        offset: int = 0,
        kind: str | None = None,
        input_id: str | None = None,
    ) -> tuple[int, list[Progress]]:
        """As `events`."""
        wanted = {"kind": kind, "input_id": input_id}
        page = streams.Page(after, offset, limit, order)
        return await self._page(job_id, "progress", wanted, page, records.load_progress)

    async def follow(
        self, job_id: str, after_event: int = 0, after_progress: int = 0, block_ms: int = 5_000
    ) -> AsyncIterator[list[Event | Progress]]:
        """What comes after the given ids, in batches, also over reconnects, with nothing missed or repeated.
        An empty batch says that nothing came for `block_ms` (5 s at most). Ends when the job is deleted."""
        await self._read(job_id)
        keys = JobKeys.of(job_id)
        while True:
            events, progress = await streams.wait(self._connection, keys, after_event, after_progress, block_ms)
            if not events and not progress and not await self._connection.command("EXISTS", keys.job):
                return
            after_event = events[-1].id if events else after_event
            after_progress = progress[-1].id if progress else after_progress
            yield streams.merged(events, progress)

    # --- inside ---------------------------------------------------------------------------------------

    async def _read(self, job_id: str) -> tuple[Job, int]:
        key = JobKeys.of(job_id).job
        record, version = await self._connection.command("HMGET", key, "record", "version")
        if record is None or version is None:
            raise _not_found(job_id)
        return records.load_job(record), int(version)

    async def _write(self, job: Job, events: Sequence[EventDraft], version: int) -> bool:
        """False: the record had changed. One id for all tries of the connection, so that a try whose reply was
        lost is known again, even after others wrote."""
        keys = JobKeys.of(job.id)
        code, _ = await self._connection.script(
            "write",
            [keys.job, keys.events, keys.writes],
            [
                version,
                ids.new_id("wrt"),
                self._keep_events,
                *records.record_fields(job),
                *(records.dump(event) for event in events),
            ],
        )
        return bool(code != b"conflict")

    async def _index(self, job: Job, when: datetime) -> None:
        """Before the record is written: an index entry without a job is skipped, a job without one is lost."""
        created, entered = _score(job.created_at), _score(when)
        await self._connection.commands(
            [
                ("ZADD", index, entered if index == records.ACTIVE_JOBS else created, job.id)
                for index in records.indexes(job)
            ]
        )

    async def _jobs_of(self, job_ids: list[str]) -> list[Job]:
        """In the given order, without those that are gone."""
        jobs: list[Job] = []
        for start in range(0, len(job_ids), _CHUNK):
            reads = [("HGET", JobKeys.of(name).job, "record") for name in job_ids[start : start + _CHUNK]]
            found = await self._connection.commands(reads)
            jobs += [records.load_job(record) for record in found if record is not None]
        return jobs

    async def _matching(self, index: str, status: Status | None, q: str) -> AsyncIterator[str]:
        members = await self._connection.command("ZREVRANGE", index, 0, -1)
        names = [name.decode() for name in members]
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            reads = [("HMGET", JobKeys.of(name).job, "status", "search") for name in chunk]
            found = await self._connection.commands(reads)
            for name, (has_status, search) in zip(chunk, found, strict=True):
                if has_status is None or (status is not None and has_status.decode() != status):
                    continue
                if q in search.decode():
                    yield name

    async def _page(
        self,
        job_id: str,
        name: str,
        wanted: dict[str, str | None],
        page: streams.Page,
        load: Callable[[int, bytes], E],
    ) -> tuple[int, list[E]]:
        keys = JobKeys.of(job_id)
        version, count = await self._connection.command("HMGET", keys.job, "version", name)
        if version is None:
            raise _not_found(job_id)
        filters = {field: value for field, value in wanted.items() if value is not None}
        key: str = getattr(keys, name)
        total, entries = await streams.read(self._connection, key, int(count or 0), filters, page)
        return total, [load(number, draft) for number, draft in entries]


def _active(job: Job) -> bool:
    return not job.status.terminal or job.holds_capacity


def _score(when: datetime) -> int:
    return int(when.timestamp() * 1_000_000)


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id}.")
