"""The store: job records, their events and progress, and what drivers mirror, in Redis or Valkey (6.2 and up).

One door changes a job: `transact` reads, lets jos.core.lifecycle decide, and writes record, events and the job's
places in indexes and queue in one script guarded by the record's version, so they can never disagree. No rule lives
here. Other nouns have modules of their own, which work on `Store.connection`.
May import: redis, jos.core, jos.store. Tests: tests/integration/test_store.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from jos.core import ids, lifecycle
from jos.core.commands import Command
from jos.core.errors import Conflict, NotFound, StaleAttempt
from jos.core.model import (
    Checkpoint,
    Event,
    EventDraft,
    InputState,
    Job,
    Level,
    Output,
    Progress,
    ProgressDraft,
    Status,
)
from jos.store import beats, changes, indexes, records, streams
from jos.store.checkpoints import INDEX as CHECKPOINTS
from jos.store.connection import Argument, Connection
from jos.store.lease import Lease, LeaseLost
from jos.store.records import JobKeys, Live, Mirror, MirrorReply

TRANSACT_TRIES = 30
_NO_LEASE = "jos:lease:none"  # a script names every key that it could touch

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
        keep_progress: int = 50_000,
        decide: Decide = lifecycle.decide,
    ) -> None:
        self.connection = connection
        self._keep_events = keep_events  # per job; older ones are trimmed, their ids are not given again
        self._keep_progress = keep_progress  # as well; several chunks of the archive, so that none is missed
        self._decide = decide

    @classmethod
    async def open(
        cls,
        url: str | None,
        data_dir: Path | None = None,
        *,
        keep_events: int = 100_000,
        keep_progress: int = 50_000,
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
        await self.connection.close()

    async def ping(self) -> None:
        await self.connection.command("PING")

    # --- jobs -----------------------------------------------------------------------------------------

    async def create(self, job: Job, events: Sequence[EventDraft]) -> Job:
        """Writes a new job and its first events; a second one with the same id raises Conflict."""
        if not await self._write(None, job, events, version=0):
            raise Conflict(f"Job {job.id} exists already.")
        return job

    async def get(self, job_id: str) -> Job:
        job, _ = await self._read(job_id)
        return job

    async def get_many(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """Those that exist, by id."""
        return {job.id: job for job in await indexes.read(self.connection, list(dict.fromkeys(job_ids)))}

    async def transact(self, job_id: str, command: Command, now: datetime, *, lease: Lease | None = None) -> Job:
        """Applies one command. Raises InvalidTransition or StaleAttempt as the lifecycle says; a command that
        was applied before changes nothing and returns the job as it is. With a lease, nothing is written once
        it is over: LeaseLost."""
        for attempt in range(TRANSACT_TRIES):
            job, version = await self._read(job_id)
            transition = self._decide(job, command, now)
            if transition.job is job and not transition.events:
                return job
            if await self._write(job, transition.job, transition.events, version, lease):
                return transition.job
            await asyncio.sleep(random.uniform(0, 0.002 * 2 ** min(attempt, 6)))
        raise Conflict(f"Job {job_id} kept changing under {type(command).__name__}.", suggestion="Try again.")

    async def jobs(
        self,
        org_id: str | None,
        offset: int = 0,
        limit: int = 20,
        status: Status | Sequence[Status] | None = None,
        q: str | None = None,
        pipeline_type: str | None = None,
    ) -> tuple[int, list[Job]]:
        """(how many there are, the asked ones), newest first; `org_id` None: of all organisations; `status`: one, or
        any of several; `q` is looked for in name, pipeline key and id, of each job there is."""
        keys = [indexes.jobs_key(org_id, pipeline_type, one) for one in _several(status)]
        if q:
            matches = await indexes.searched(self.connection, keys, q.casefold())
            return len(matches), await indexes.read(self.connection, matches[offset : offset + limit])
        total, found = await indexes.listed(self.connection, keys, offset, limit)
        return total, await indexes.read(self.connection, found)

    async def place_in_list(self, org_id: str, job_id: str, pipeline_type: str | None = None) -> int | None:
        """From 1, in the list that `jobs` gives; None for a job that is not in it."""
        key = indexes.jobs_key(org_id, pipeline_type)
        rank = await self.connection.command("ZREVRANK", key, job_id)
        return None if rank is None else int(rank) + 1

    async def active(self) -> list[Job]:
        """All jobs that are not over or still hold capacity, oldest first: what a controller looks at."""
        return await indexes.active(self.connection)

    async def places(self, jobs: Sequence[Job]) -> dict[str, tuple[int, int]]:
        """By job id: (place in its queue, from 1; how many wait in that queue), of those that
        wait by the records given."""
        return await indexes.places(self.connection, jobs)

    async def pending(self, org_id: str) -> int:
        """How many jobs of an organisation are PENDING."""
        return await indexes.size(self.connection, indexes.jobs_key(org_id, None, Status.PENDING))

    async def depths(self) -> dict[str, int]:
        """By pipeline type: how many jobs are PENDING, in back-off too."""
        return await indexes.depths(self.connection)

    async def delete(
        self, job_id: str, check: Callable[[Job], None] | None = None, readers: Sequence[str] | None = None
    ) -> None:
        """Removes all that is kept of a job; does nothing when there is none. `check` looks at the very record that
        is removed, and raises to keep it. `readers`: those of its checkpoints that the caller looked at, see
        jos.store.checkpoints; Conflict when there are others by now."""
        keys = JobKeys.of(job_id)
        for _ in range(TRANSACT_TRIES):
            record, version = await self.connection.command("HMGET", keys.job, "record", "version")
            job = records.load_job(record) if record is not None else None
            if job is not None and check is not None:
                check(job)
            leave, _ = indexes.moves(job, None)
            removed = await self.connection.script(
                "delete",
                [
                    *(keys.job, changes.CHANGES, keys.checkpoints, CHECKPOINTS, keys.readers),
                    *(key for key, _, _ in leave),
                    *keys.all()[1:],
                ],
                [
                    int(version or 0),
                    job_id,
                    job.org_id if job else "",
                    changes.KEEP,
                    len(leave),
                    "*" if readers is None else " ".join(readers),
                    *(member for _, _, member in leave),
                ],
            )
            if removed == 1:
                return
            if removed == -1:
                raise Conflict(f"A checkpoint of job {job_id} is input of a job that is being created.")
        raise Conflict(f"Job {job_id} kept changing while it was deleted.", suggestion="Try again.")

    async def restore(
        self,
        job: Job,
        events: Sequence[EventDraft] = (),
        inputs: Sequence[InputState] = (),
        outputs: Sequence[Output] = (),
        progress: Sequence[ProgressDraft] = (),
        checkpoints: Sequence[Checkpoint] = (),
        event_count: int = 0,
        progress_count: int = 0,
    ) -> bool:
        """Writes a whole job, all or nothing, for recovery; False: there is one with its id, which stays as it is.
        `event_count` and `progress_count` are the numbers that were given before (and are in the archive): the
        given events and entries get the next ones."""
        keys = JobKeys.of(job.id)
        _, enter = indexes.moves(None, job)
        places: list[Argument] = [part for _, score, member in enter for part in (score, member)]
        code = await self.connection.script(
            "restore",
            [
                *(keys.job, keys.writes, changes.CHANGES, keys.events, keys.progress, keys.inputs, keys.outputs),
                *(keys.arrivals, keys.checkpoints, keys.mirror, CHECKPOINTS),
                *(key for key, _, _ in enter),
            ],
            [
                ids.new_id("wrt"),
                *records.record_fields(job),
                changes.KEEP,
                self._keep_events,
                self._keep_progress,
                event_count,
                progress_count,
                len(enter),
                *records.content(events, progress, inputs, outputs, checkpoints, *places),
            ],
        )
        return bool(code != b"exists")

    # --- what a driver tells --------------------------------------------------------------------------

    async def mirror(self, job_id: str, batch: Mirror) -> MirrorReply:
        """Takes a batch over, all or nothing and once. Raises StaleAttempt when the attempt is over."""
        keys = JobKeys.of(job_id)
        code, status, version, seq = await self.connection.script(
            "mirror",
            [
                *(keys.job, keys.mirror, keys.events, keys.progress),
                *(keys.inputs, keys.outputs, keys.arrivals, keys.checkpoints, CHECKPOINTS),
            ],
            records.mirror_arguments(job_id, batch, self._keep_events, self._keep_progress),
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
        return records.load_live(await self.connection.command("HGETALL", key))

    async def lives(self, job_ids: Sequence[str]) -> dict[str, Live]:
        """The same of many, by job; one whose drivers never spoke is not there."""
        return await beats.lives(self.connection, job_ids)

    async def inputs(self, job_id: str) -> dict[str, InputState]:
        """By input id; an input that no driver has spoken of yet is not there."""
        key = JobKeys.of(job_id).inputs
        fields = await self.connection.command("HGETALL", key)
        return {name.decode(): InputState.stored(state) for name, state in fields.items()}

    async def outputs(self, job_id: str) -> list[Output]:
        """In the order of their first arrival."""
        keys = JobKeys.of(job_id)
        arrivals, fields = await self.connection.commands([("LRANGE", keys.arrivals, 0, -1), ("HGETALL", keys.outputs)])
        return [Output.stored(fields[name]) for name in arrivals if name in fields]

    async def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """By step."""
        found = await self.connection.command("HVALS", JobKeys.of(job_id).checkpoints)
        checkpoints = [Checkpoint.stored(record) for record in found]
        return sorted(checkpoints, key=lambda checkpoint: (checkpoint.step, checkpoint.id))

    async def checkpoint(self, job_id: str, checkpoint_id: str) -> Checkpoint | None:
        found = await self.connection.command("HGET", JobKeys.of(job_id).checkpoints, checkpoint_id)
        return None if found is None else Checkpoint.stored(found)

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
            events, progress = await streams.wait(self.connection, keys, after_event, after_progress, block_ms)
            if not events and not progress and not await self.connection.command("EXISTS", keys.job):
                return
            after_event = events[-1].id if events else after_event
            after_progress = progress[-1].id if progress else after_progress
            yield streams.merged(events, progress)

    async def drop_streams(
        self, job_id: str, event_count: int | None = None, progress_count: int | None = None
    ) -> bool:
        """Forgets a job's events and progress entries up to the given numbers (those that the archive holds);
        without a number, all that are there. Numbers are not given again, totals stay. False, and nothing is
        forgotten: the job is gone or not over; what it told since it was archived would be lost."""
        keys = JobKeys.of(job_id)
        record, events, progress = await self.connection.command("HMGET", keys.job, "record", "events", "progress")
        if record is None or not indexes.over(records.load_job(record)):
            return False
        last = {
            keys.events: int(events or 0) if event_count is None else event_count,
            keys.progress: int(progress or 0) if progress_count is None else progress_count,
        }
        # by number, and not the whole stream: a retry may come between the look and this
        await self.connection.commands([("XTRIM", key, "MINID", f"{n + 1}-0") for key, n in last.items()])
        return True

    # --- inside ---------------------------------------------------------------------------------------

    async def _read(self, job_id: str) -> tuple[Job, int]:
        key = JobKeys.of(job_id).job
        record, version = await self.connection.command("HMGET", key, "record", "version")
        if record is None or version is None:
            raise _not_found(job_id)
        return records.load_job(record), int(version)

    async def _write(
        self, old: Job | None, job: Job, events: Sequence[EventDraft], version: int, lease: Lease | None = None
    ) -> bool:
        """False: the record had changed. One id for all tries of the connection, so that a try whose reply was
        lost is known again, even after others wrote."""
        if lease is not None and not lease.token:
            raise _lost(lease)
        keys = JobKeys.of(job.id)
        leave, enter = indexes.moves(old, job)
        code, _ = await self.connection.script(
            "write",
            [
                *(keys.job, keys.events, keys.writes, changes.CHANGES, lease.key if lease else _NO_LEASE),
                *(key for key, _, _ in leave),
                *(key for key, _, _ in enter),
            ],
            [
                version,
                ids.new_id("wrt"),
                self._keep_events,
                *records.record_fields(job),
                changes.KEEP,
                lease.token if lease else "",
                len(leave),
                len(enter),
                *(member for _, _, member in leave),
                *(part for _, score, member in enter for part in (score, member)),
                *(records.dump(event) for event in events),
            ],
        )
        if code == b"lease_lost" and lease is not None:
            raise _lost(lease)
        return bool(code != b"conflict")

    async def _page(
        self,
        job_id: str,
        name: str,
        wanted: dict[str, str | None],
        page: streams.Page,
        load: Callable[[int, bytes], E],
    ) -> tuple[int, list[E]]:
        keys = JobKeys.of(job_id)
        version, count = await self.connection.command("HMGET", keys.job, "version", name)
        if version is None:
            raise _not_found(job_id)
        filters = {field: value for field, value in wanted.items() if value is not None}
        key: str = getattr(keys, name)
        total, entries = await streams.read(self.connection, key, int(count or 0), filters, page)
        return total, [load(number, draft) for number, draft in entries]


def _several(status: Status | Sequence[Status] | None) -> list[Status | None]:
    if status is None or isinstance(status, Status):
        return [status]
    return [*dict.fromkeys(status)] or [None]


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"{lease.holder} does not hold the lease {lease.name} any more.")


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id}.")
