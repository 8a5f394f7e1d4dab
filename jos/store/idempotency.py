"""Idempotency keys: a request that is sent again makes no second job.

May import: jos.store.connection. Tests: tests/integration/test_store_keys.py.
"""

from __future__ import annotations

import hashlib

import orjson

from jos.store.connection import Connection

KEEP_SECONDS = 24 * 3600


async def claim(connection: Connection, org_id: str, key: str, body_hash: str, job_id: str) -> tuple[str, str]:
    """(job id, body hash) that go with an organisation's `key` from now on: the given ones, or those of whoever
    came first within 24 hours."""
    place = _place(org_id, key)
    mine = orjson.dumps([job_id, body_hash])
    _, there = await connection.commands([("SET", place, mine, "NX", "EX", KEEP_SECONDS), ("GET", place)])
    found = orjson.loads(there or mine)  # nothing there: a clock so far off that it expired at once
    return found[0], found[1]


async def known(connection: Connection, org_id: str, key: str) -> tuple[str, str] | None:
    """(job id, body hash) of whoever came first with this key; None: nobody did."""
    there = await connection.command("GET", _place(org_id, key))
    if there is None:
        return None
    found = orjson.loads(there)
    return found[0], found[1]


def _place(org_id: str, key: str) -> str:
    """The key is a stranger's text of any length, so it is hashed."""
    return f"jos:idempotency:{org_id}:{hashlib.sha256(key.encode()).hexdigest()}"
