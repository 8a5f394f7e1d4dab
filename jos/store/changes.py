"""What changed: one entry for each write of a job's record, which wakes whoever looks after jobs.

An entry only says where to look; the record says what is. So it does no harm to hear of a job twice, and a reader
that fell too far behind looks at all jobs once.
May import: jos.core.errors, jos.store.connection. Tests: tests/integration/test_store_changes.py.
"""

from __future__ import annotations

from typing import Any

from jos.core.errors import JosError
from jos.store.connection import BLOCK_LIMIT_MS, Connection

CHANGES = "jos:changes"  # STREAM job, org; written by scripts/write.lua and scripts/delete.lua
KEEP = 100_000
_MOST = 10_000  # entries of one read
_START = "0-0"


class ChangesLost(JosError):
    """Changes after the given position are gone (trimmed, or the server lost its data): look at all jobs."""

    code = "changes_lost"


async def latest(connection: Connection) -> str:
    """The position of the newest change. Take it before looking at all jobs, then wait from there."""
    newest = await connection.command("XREVRANGE", CHANGES, "+", "-", "COUNT", 1)
    return newest[0][0].decode() if newest else _START


async def wait(connection: Connection, after: str, block_ms: int) -> tuple[str, list[str]]:
    """(the new position, the distinct ids of the jobs that changed after `after`, in order). Blocks on a socket of
    its own until there is one, `block_ms` at most (and never longer than 5 s). Raises ChangesLost."""
    block = min(max(block_ms, 1), BLOCK_LIMIT_MS)
    reply = await connection.command("XREAD", "COUNT", _MOST, "BLOCK", block, "STREAMS", CHANGES, after)
    entries: list[Any] = reply[0][1] if reply else []
    await _check(connection, after)
    if not entries:
        return after, []
    return entries[-1][0].decode(), list(dict.fromkeys(fields[b"job"].decode() for _, fields in entries))


async def _check(connection: Connection, after: str) -> None:
    """That nothing after `after` was missing. Asked after the read: what was trimmed before it, is gone now."""
    first, last, length = await connection.commands(
        [
            ("XRANGE", CHANGES, "-", "+", "COUNT", 1),
            ("XREVRANGE", CHANGES, "+", "-", "COUNT", 1),
            ("XLEN", CHANGES),
        ]
    )
    if after == _START:
        lost = length >= KEEP
    else:
        lost = not first or _order(first[0][0]) > _order(after) or _order(last[0][0]) < _order(after)
    if lost:
        raise ChangesLost(f"The changes of jobs after {after} are not kept any more.")


def _order(position: str | bytes) -> tuple[int, int]:
    text = position.decode() if isinstance(position, bytes) else position
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number)
