"""The indexes that a job is in, as a function of its record; and reading them: lists, the queue, the active jobs.

Whoever writes a record removes the job from the indexes of the old one and adds it to those of the new one in the
same script, which is guarded by the record's version: so no index can ever disagree with a record.

  jos:jobs:OWNER[:TYPE][:STATUS]  ZSET  job id => created_at; OWNER is `all` or `org:ORG`; every combination
  jos:jobs:active                 ZSET  job id => created_at; jobs that are not over or still hold capacity
  jos:queue:QUEUE                 ZSET  "priority:queued_at:job id" of each PENDING job, in the order of admission

May import: jos.core, jos.store. Tests: tests/integration/test_store_indexes.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from jos.core.model import Job, Status
from jos.store import records
from jos.store.connection import Connection
from jos.store.records import job_key

ACTIVE = "jos:jobs:active"
TYPES = ("batch", "training")
Membership = tuple[str, int, str]  # key, score, member
_READ = 500  # records read in one round trip
_SEARCH = 1_000  # jobs searched in one go: a few ms in which neither the server nor this loop does anything else
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOWEST = 10**9  # priorities are between minus and plus this


# --- what a job is in -------------------------------------------------------------------------------------


def of(job: Job) -> list[Membership]:
    created = microseconds(job.created_at)
    owners = (None, job.org_id)
    found: list[Membership] = [
        (jobs_key(owner, kind, status), created, job.id)
        for owner in owners
        for kind in (None, job.pipeline_type)
        for status in (None, job.status)
    ]
    if not over(job):
        found.append((ACTIVE, created, job.id))
    if job.status is Status.PENDING:
        found.append((queue_key(job.queue), 0, _ticket(job)))
    return found


def over(job: Job) -> bool:
    """Nothing happens to it any more unless a user wants it to."""
    return job.status.terminal and not job.holds_capacity


def moves(old: Job | None, new: Job | None) -> tuple[list[Membership], list[Membership]]:
    """(those to leave, those to enter) when `new` takes the place of `old`."""
    before, after = (of(job) if job is not None else [] for job in (old, new))
    return [entry for entry in before if entry not in after], [entry for entry in after if entry not in before]


def jobs_key(org_id: str | None, pipeline_type: str | None = None, status: Status | None = None) -> str:
    owner = "all" if org_id is None else f"org:{org_id}"
    return ":".join(("jos:jobs", owner, *(part for part in (pipeline_type, status) if part is not None)))


def queue_key(queue: str) -> str:
    return f"jos:queue:{queue}"


def microseconds(when: datetime) -> int:
    return (when - _EPOCH) // timedelta(microseconds=1)


def _ticket(job: Job) -> str:
    """Sorts as text: the highest priority first, then who queued first, then the id."""
    rank = _LOWEST - max(-_LOWEST, min(job.priority, _LOWEST))
    return f"{rank:010d}:{microseconds(job.queued_at):017d}:{job.id}"


# --- reading --------------------------------------------------------------------------------------------


async def read(connection: Connection, job_ids: Sequence[str]) -> list[Job]:
    """In the given order, without those that are gone."""
    jobs: list[Job] = []
    for start in range(0, len(job_ids), _READ):
        found = await connection.script("read", [job_key(name) for name in job_ids[start : start + _READ]], [])
        jobs += [records.load_job(record) for record in found if record is not None]
    return jobs


async def listed(connection: Connection, keys: Sequence[str], offset: int, limit: int) -> tuple[int, list[str]]:
    """(how many are in the indexes, the ids of the asked ones), newest first."""
    if len(keys) > 1:
        return await _listed_of_several(connection, keys, offset, limit)
    commands: list[tuple[str | int, ...]] = [("ZCARD", keys[0])]
    if limit > 0:
        commands.append(("ZREVRANGE", keys[0], offset, offset + limit - 1))
    total, *found = await connection.commands(commands)
    return total, _names(found[0]) if found else []


async def _listed_of_several(
    connection: Connection, keys: Sequence[str], offset: int, limit: int
) -> tuple[int, list[str]]:
    """No index holds their union, so each is read from its newest on up to the page's end."""
    commands: list[tuple[str | int, ...]] = [("ZCARD", key) for key in keys]
    if limit > 0:
        commands += [("ZREVRANGE", key, 0, offset + limit - 1, "WITHSCORES") for key in keys]
    replies = await connection.commands(commands)
    entries = {
        (float(score), name.decode())  # once each: a job may have gone from one to another meanwhile
        for reply in replies[len(keys) :]
        for name, score in zip(reply[::2], reply[1::2], strict=True)
    }
    names = [name for _, name in sorted(entries, reverse=True)]
    return sum(replies[: len(keys)]), names[offset : offset + limit]


async def size(connection: Connection, key: str) -> int:
    return int(await connection.command("ZCARD", key))


async def searched(connection: Connection, keys: Sequence[str], text: str) -> list[str]:
    """The ids of all jobs in the indexes whose search text holds `text` (case folded), newest first. Looks at each."""
    matches: dict[str, None] = {}  # once each: jobs created meanwhile push others into the next chunk
    for key in keys:
        for start in itertools.count(0, _SEARCH):
            chunk = _names(await connection.command("ZREVRANGE", key, start, start + _SEARCH - 1))
            found = await connection.script("search", [job_key(name) for name in chunk], [text]) if chunk else []
            matches |= dict.fromkeys(chunk[position] for position in found)
            if len(chunk) < _SEARCH:
                break
    return list(matches) if len(keys) == 1 else sorted(matches, reverse=True)  # ids sort by time, too


async def active(connection: Connection) -> list[Job]:
    """Oldest first."""
    return await read(connection, _names(await connection.command("ZRANGE", ACTIVE, 0, -1)))


async def at_work(connection: Connection) -> list[Job]:
    """The active jobs that do not wait: they hold capacity, or are about to give it back. However many wait, only
    these are read."""
    waiting = jobs_key(None, None, Status.PENDING)
    return await read(connection, _names(await connection.command("ZDIFF", 2, ACTIVE, waiting)))


async def queued(connection: Connection, queues: Sequence[str]) -> dict[str, int]:
    """By queue: how many jobs wait in it."""
    sizes = await connection.commands([("ZCARD", queue_key(queue)) for queue in queues])
    return dict(zip(queues, sizes, strict=True))


async def places(connection: Connection, jobs: Sequence[Job]) -> dict[str, tuple[int, int]]:
    """By how many tickets stand before its own, and not by its own: a job that was admitted since its record was read
    has the place that it had, and no answer shows it waiting nowhere."""
    waiting = [job for job in jobs if job.status is Status.PENDING]
    queues = sorted({job.queue for job in waiting})
    commands: list[tuple[str, ...]] = [("ZLEXCOUNT", queue_key(job.queue), "-", f"({_ticket(job)}") for job in waiting]
    commands += [("ZCARD", queue_key(queue)) for queue in queues]
    replies = await connection.commands(commands)
    depths = dict(zip(queues, replies[len(waiting) :], strict=True))
    before = zip(waiting, replies[: len(waiting)], strict=True)
    return {job.id: (count + 1, max(count + 1, depths[job.queue])) for job, count in before}


async def depths(connection: Connection) -> dict[str, int]:
    counts = await connection.commands([("ZCARD", jobs_key(None, kind, Status.PENDING)) for kind in TYPES])
    return dict(zip(TYPES, counts, strict=True))


def _names(members: Iterable[bytes]) -> list[str]:
    return [member.decode() for member in members]
