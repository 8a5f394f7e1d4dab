"""How many inputs of a job are in which state, for many jobs in one round trip.

May import: jos.store. Tests: tests/integration/test_api_jobs.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from jos.store.connection import Connection
from jos.store.records import JobKeys

STATES = ("pending", "processing", "completed", "failed")


async def input_counts(connection: Connection, job_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Job id -> state -> how many inputs a driver said are in it; those it has not spoken of are not counted."""
    replies = await connection.commands([("HVALS", JobKeys.of(job_id).inputs) for job_id in job_ids])
    # in a state's JSON a message's quotes are escaped, so this can only be the field itself
    marks = {state: f'"status":"{state}"'.encode() for state in STATES}
    return {
        job_id: {state: sum(mark in value for value in values) for state, mark in marks.items()}
        for job_id, values in zip(job_ids, replies, strict=True)
    }
