"""Reading a job's two streams, events and progress: pages of them, and waiting for more.

Entry n of a stream has the id `<n>-0` and one field, `d`, with its draft as JSON (see scripts/write.lua).
May import: jos.core.model, jos.store. Tests: tests/integration/test_store.py.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from jos.core.model import Event, Progress
from jos.store import records
from jos.store.connection import BLOCK_LIMIT_MS, Connection
from jos.store.records import JobKeys

Order = Literal["asc", "desc"]
Entry = tuple[int, bytes]  # number, draft
_CHUNK = 1_000


@dataclass(frozen=True)
class Page:
    after: int
    offset: int
    limit: int
    order: Order


async def read(
    connection: Connection, key: str, count: int, filters: dict[str, str], page: Page
) -> tuple[int, list[Entry]]:
    """(total, the page's entries) of a stream whose numbers 1…count were given, old ones perhaps trimmed."""
    if filters:
        matches = [entry async for entry in _scan(connection, key) if _matches(entry[1], filters)]
        total = len(matches)
        matches = [entry for entry in matches if entry[0] > page.after]
        if page.order == "desc":
            matches.reverse()
        return total, matches[page.offset : page.offset + page.limit]
    if page.limit <= 0:
        return count, []
    if page.order == "desc":  # numbers have no gaps, so an offset is a subtraction
        newest, oldest = count - page.offset, page.after + 1
        if newest < oldest:
            return count, []
        return count, _entries(
            await connection.command("XREVRANGE", key, f"{newest}-0", f"{oldest}-0", "COUNT", page.limit)
        )
    first = _entries(await connection.command("XRANGE", key, f"{page.after + 1}-0", "+", "COUNT", 1))
    if not first:
        return count, []
    start = first[0][0] + page.offset
    return count, _entries(await connection.command("XRANGE", key, f"{start}-0", "+", "COUNT", page.limit))


async def wait(
    connection: Connection, keys: JobKeys, after_event: int, after_progress: int, block_ms: int
) -> tuple[list[Event], list[Progress]]:
    """What is newer in either stream; when there is nothing, what comes within `block_ms`."""
    events: list[Event] = []
    progress: list[Progress] = []
    reply = await connection.command(
        "XREAD",
        "COUNT",
        _CHUNK,
        "BLOCK",
        min(max(block_ms, 1), BLOCK_LIMIT_MS),
        "STREAMS",
        keys.events,
        keys.progress,
        f"{after_event}-0",
        f"{after_progress}-0",
    )
    for name, raw in reply or []:
        if name.decode() == keys.events:
            events = [records.load_event(*entry) for entry in _entries(raw)]
        else:
            progress = [records.load_progress(*entry) for entry in _entries(raw)]
    return events, progress


def merged(events: list[Event], progress: list[Progress]) -> list[Event | Progress]:
    """By time, but never against the order within a stream: clocks may disagree, numbers do not."""
    streams: tuple[Iterable[Event | Progress], ...] = (events, progress)
    return list(heapq.merge(*streams, key=lambda entry: entry.created_at))


async def _scan(connection: Connection, key: str) -> AsyncIterator[Entry]:
    start = 0
    while True:
        entries = _entries(await connection.command("XRANGE", key, f"{start + 1}-0", "+", "COUNT", _CHUNK))
        for entry in entries:
            yield entry
        if len(entries) < _CHUNK:
            return
        start = entries[-1][0]


def _matches(draft: bytes, filters: dict[str, str]) -> bool:
    fields = orjson.loads(draft)
    return all(fields.get(name) == value for name, value in filters.items())


def _entries(raw: list[Any]) -> list[Entry]:
    return [(int(name.partition(b"-")[0]), fields[b"d"]) for name, fields in raw]
