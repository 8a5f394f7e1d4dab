"""How many inputs of a job are in which state, for many jobs in one round trip; kept by scripts/steps.lua.

May import: jos.store. Tests: tests/integration/test_api_jobs.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from jos.store.connection import Connection
from jos.store.records import JobKeys

STATES = ("pending", "processing", "completed", "failed")


async def input_counts(connection: Connection, job_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Job id -> state -> how many inputs a driver said are in it; those it has not spoken of are not counted."""
    fields = [f"inputs:{state}" for state in STATES]
    replies = await connection.commands([("HMGET", JobKeys.of(job_id).job, *fields) for job_id in job_ids])
    return {
        job_id: {state: int(count or 0) for state, count in zip(STATES, counts, strict=True)}
        for job_id, counts in zip(job_ids, replies, strict=True)
    }
