"""The heartbeats of many drivers in few round trips, with or without what a display wants to know as well.

May import: jos.store. Tests: tests/integration/test_store.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from jos.store.connection import Connection
from jos.store.records import JobKeys, Live, load_live

_READ = 1_000  # jobs of one script, during which the server does nothing else: about a millisecond
_SHOWN = 100  # jobs of one round trip, whose reading takes some milliseconds of nothing else here

Beat = tuple[str, int]  # token of the attempt, number of its latest batch: it grows with each heartbeat


async def beats(connection: Connection, job_ids: Sequence[str]) -> dict[str, Beat]:
    """By job; a job whose drivers never spoke is not there."""
    found: dict[str, Beat] = {}
    for start in range(0, len(job_ids), _READ):
        asked = job_ids[start : start + _READ]
        told: bytes = await connection.script("beats", [JobKeys.of(job_id).mirror for job_id in asked], [])
        for job_id, line in zip(asked, told.decode().split("\n"), strict=True):
            if line:
                token, _, seq = line.rpartition(" ")
                found[job_id] = token, int(seq)
    return found


async def lives(connection: Connection, job_ids: Sequence[str]) -> dict[str, Live]:
    """As Store.live, by job; a job whose drivers never spoke is not there."""
    found: dict[str, Live] = {}
    for start in range(0, len(job_ids), _SHOWN):
        asked = job_ids[start : start + _SHOWN]
        told = await connection.commands([("HGETALL", JobKeys.of(job_id).mirror) for job_id in asked])
        loaded = {job_id: load_live(fields) for job_id, fields in zip(asked, told, strict=True)}
        found |= {job_id: live for job_id, live in loaded.items() if live is not None}
    return found
