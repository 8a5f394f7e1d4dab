"""Random secrets of this installation, made by whoever needs one first, e.g. to sign URLs.

May import: jos.store.connection. Tests: tests/integration/test_store_keys.py.
"""

from __future__ import annotations

import os

from jos.store.connection import Connection


async def secret(connection: Connection, name: str) -> bytes:
    """32 random bytes, the same for every process that asks for this name."""
    key = f"jos:secret:{name}"
    there: bytes | None
    _, there = await connection.commands([("SET", key, os.urandom(32), "NX"), ("GET", key)])
    assert there is not None
    return there
