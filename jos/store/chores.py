"""What is still to be done about jobs that ended: which are to be archived, and whose streams may go.

Kept in Redis so that a controller that dies forgets nothing. Losing it costs one look at all jobs.
May import: jos.store. Tests: tests/integration/test_controller_chores.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from jos.store.connection import Connection
from jos.store.records import JobKeys

POSITION = "jos:chores:position"  # STRING: up to here the changes are in DUE
DUE = "jos:chores:due"  # ZSET job id -> when it is to be archived, in seconds
ARCHIVED = "jos:chores:archived"  # ZSET job id -> when its archive was complete


class Chores:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def position(self) -> str | None:
        """Where in the changes to go on; None: look at all jobs."""
        found = await self._connection.command("GET", POSITION)
        return None if found is None else str(found.decode())

    async def note_ended(self, job_ids: Iterable[str], when: datetime, position: str | None = None) -> None:
        """To be archived from `when` on. `position`: what was read to learn of them; saved after them."""
        commands = [("ZADD", DUE, int(when.timestamp()), job_id) for job_id in job_ids]
        await self._connection.commands([*commands, *([("SET", POSITION, position)] if position else [])])

    async def due(self, now: datetime, limit: int = 100) -> list[str]:
        found = await self._connection.command("ZRANGEBYSCORE", DUE, "-inf", int(now.timestamp()), "LIMIT", 0, limit)
        return [name.decode() for name in found]

    async def note_archived(self, job_id: str, when: datetime) -> None:
        added = ("ZADD", ARCHIVED, int(when.timestamp()), job_id)
        await self._connection.commands([added, ("ZREM", DUE, job_id)])

    async def forget_due(self, job_id: str) -> None:
        await self._connection.command("ZREM", DUE, job_id)

    async def archived(self, before: datetime, limit: int = 100) -> list[str]:
        until = int(before.timestamp())
        found = await self._connection.command("ZRANGEBYSCORE", ARCHIVED, "-inf", until, "LIMIT", 0, limit)
        return [name.decode() for name in found]

    async def forget_archived(self, job_id: str) -> None:
        await self._connection.command("ZREM", ARCHIVED, job_id)


async def counts(connection: Connection, job_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """By job: how many events and progress entries it has had so far, in one round trip."""
    found = await connection.commands([("HMGET", JobKeys.of(i).job, "events", "progress") for i in job_ids])
    return {i: (int(e or 0), int(p or 0)) for i, (e, p) in zip(job_ids, found, strict=True)}
