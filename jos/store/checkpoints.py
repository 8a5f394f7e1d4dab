"""Checkpoints across jobs: whose one is, and who reads it.

  jos:checkpoints        HASH    checkpoint id => job id; written by the scripts that write, restore and delete a job's
  jos:checkpoints:known  STRING  there once the index has those as well that were written before there was an index
  jos:{JOB}:readers      ZSET    id of a job that reads one of JOB's checkpoints => when it was marked

May import: jos.store. Tests: tests/integration/test_store_checkpoints.py.
"""

from __future__ import annotations

from datetime import datetime

from jos.store import indexes
from jos.store.connection import Connection
from jos.store.records import JobKeys

INDEX = "jos:checkpoints"
_KNOWN = "jos:checkpoints:known"
_READ = 500  # jobs looked at in one round trip


async def job_of(connection: Connection, checkpoint_id: str) -> str | None:
    """The job that left this checkpoint; None where there is none. It may be gone by now."""
    owner, known = await connection.commands([("HGET", INDEX, checkpoint_id), ("EXISTS", _KNOWN)])
    if owner is None and not known:
        await _index_all(connection)
        owner = await connection.command("HGET", INDEX, checkpoint_id)
    return None if owner is None else owner.decode()


async def _index_all(connection: Connection) -> None:
    """Once in the life of a store: a job's checkpoints were found by looking at all jobs before there was an index."""
    names = await connection.command("ZRANGE", indexes.jobs_key(None, "training"), 0, -1)
    for start in range(0, len(names), _READ):
        jobs = names[start : start + _READ]
        found = await connection.commands([("HKEYS", JobKeys.of(job.decode()).checkpoints) for job in jobs])
        pairs = [(one, job) for job, ones in zip(jobs, found, strict=True) for one in ones]
        await connection.commands([("HSETNX", INDEX, one, job) for one, job in pairs])
    await connection.command("SET", _KNOWN, "")


# --- readers ------------------------------------------------------------------------------------------


async def mark(connection: Connection, job_id: str, reader: str, now: datetime) -> bool:
    """Notes that the job `reader` reads a checkpoint of `job_id`: call it before the reader's record is there. From
    then on `job_id` stays until the reader is over. False: it is gone."""
    keys = JobKeys.of(job_id)
    return bool(await connection.script("reader", [keys.job, keys.readers], [reader, repr(now.timestamp())]) == 1)


async def unmark(connection: Connection, job_id: str, reader: str) -> None:
    await connection.command("ZREM", JobKeys.of(job_id).readers, reader)


async def readers(connection: Connection, job_id: str) -> dict[str, float]:
    """Job id -> when it was marked, in the order that Store.delete compares."""
    found = await connection.command("ZRANGE", JobKeys.of(job_id).readers, 0, -1, "WITHSCORES")
    return {found[at].decode(): float(found[at + 1]) for at in range(0, len(found), 2)}
