"""The heartbeats of many drivers in one round trip, without what a display would want to know as well.

May import: jos.store. Tests: tests/integration/test_controller.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from jos.store.connection import Connection
from jos.store.records import JobKeys

Beat = tuple[str, int]  # token of the attempt, number of its latest batch: it grows with each heartbeat


async def beats(connection: Connection, job_ids: Sequence[str]) -> dict[str, Beat]:
    """By job; a job whose drivers never spoke is not there."""
    reads = [("HMGET", JobKeys.of(job_id).mirror, "token", "seq") for job_id in job_ids]
    found = await connection.commands(reads)
    return {i: (token.decode(), int(seq)) for i, (token, seq) in zip(job_ids, found, strict=True) if token is not None}
