"""Who listens to which job: one reader of the store for each job and process, however many listen.

A feed keeps the latest entries, encoded once, in a ring. A listener has a cursor of its own: it walks the ring, and
where it is late, slow or new it reads what it misses from the store and the archive until it has caught up.
May import: stdlib, jos.archive, jos.core, jos.store. Tests: tests/integration/test_api_stream.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import islice

import structlog

from jos import archive
from jos.api import shapes
from jos.api.metrics import Metrics
from jos.core.errors import JosError, NotFound, TooManyRequests
from jos.core.model import Event, Job, Progress
from jos.storage.base import Storage
from jos.store.redis import Store

log = structlog.get_logger("jos.api")

BEAT = 15.0  # seconds of silence after which every listener hears a heartbeat
RING = 2000  # entries
_RING_BYTES = 4 << 20
_GATHER = 0.00025  # seconds for each listener that new entries gather before they are told: with many, fewer and
_GATHER_MOST = 0.25  # larger pieces, so that telling a thousand of them does not keep the API from answering
_PIECE = 256 << 10  # bytes given to one listener at once, which a slow one keeps in memory
MOST_FEEDS = 2000  # jobs listened to in one process; each holds a connection to the store
MOST_OF_ORG = 500
_LOOK_MS = 1000  # how long one read of the store waits; also how soon the end of a job is seen


@dataclass(frozen=True)
class Cursor:
    """Up to which event and which progress entry somebody has read."""

    event: int = 0
    progress: int = 0

    def covers(self, other: Cursor) -> bool:
        return self.event >= other.event and self.progress >= other.progress

    def past(self, entry: Encoded) -> Cursor:
        if entry.is_event:
            return Cursor(max(self.event, entry.number), self.progress)
        return Cursor(self.event, max(self.progress, entry.number))

    def has(self, entry: Encoded) -> bool:
        return entry.number <= (self.event if entry.is_event else self.progress)

    def __str__(self) -> str:
        return f"e{self.event}.p{self.progress}"


@dataclass(frozen=True)
class Encoded:
    """One entry as it goes over the wire, without its id: that depends on what its reader has read."""

    is_event: bool
    number: int
    body: bytes


def encoded(entry: Event | Progress) -> Encoded:
    is_event = isinstance(entry, Event)
    model = shapes.event(entry) if isinstance(entry, Event) else shapes.progress(entry)
    name = b"event" if is_event else b"progress"
    return Encoded(is_event, entry.id, b"event: %b\ndata: %b\n\n" % (name, model.model_dump_json().encode()))


class Feed:
    """What is new of one job, for as long as anybody listens; nothing, before `begin_at` and its task."""

    def __init__(self, org_id: str = "") -> None:
        self.org_id = org_id
        self.first = self.last = Cursor()  # everything after `first` that is still in the ring, is
        self.ring: deque[Encoded] = deque()
        self.base = 0  # how many entries have left the ring
        self.bytes = 0
        self.beats = 0
        self.over: str | None = None  # why nothing more will come
        self.listeners = 0
        self.task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def begin_at(self, start: Cursor) -> None:
        self.first = self.last = start
        self.base = 1  # so that whoever comes reads first what was there before

    def add(self, entries: Sequence[Event | Progress]) -> None:
        for entry in map(encoded, entries):
            self.ring.append(entry)
            self.bytes += len(entry.body)
            self.last = self.last.past(entry)
        while len(self.ring) > RING or (self.bytes > _RING_BYTES and len(self.ring) > 1):
            gone = self.ring.popleft()
            self.bytes -= len(gone.body)
            self.first = self.first.past(gone)
            self.base += 1
        self.wake()

    def wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def changed(self) -> asyncio.Event:
        """Set at the next change; take it before looking."""
        return self._changed

    def end(self, why: str) -> None:
        self.over = self.over or why
        self.wake()

    def beat(self) -> None:
        self.beats += 1
        self.wake()

    def after(self, place: int) -> tuple[list[Encoded], int]:
        """The next entries, as many as make one piece; and the place behind them."""
        found, size, skipped = list[Encoded](), 0, max(place - self.base, 0)
        for entry in islice(self.ring, skipped, None):
            if found and size + len(entry.body) > _PIECE:
                break
            found.append(entry)
            size += len(entry.body)
        return found, self.base + skipped + len(found)


class Listening:
    """One who listens, from `Hub.listen`: pieces of an event stream, to be read once. It has a place until `leave`,
    also if nobody ever reads it."""

    def __init__(self, hub: Hub, job: Job, feed: Feed, cursor: Cursor) -> None:
        self._hub, self._job, self._feed, self._cursor = hub, job, feed, cursor
        self._left = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._hub.told(self._job, self._feed, self._cursor)

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self._hub.leave(self._job.id, self._feed)


class Hub:
    def __init__(self, store: Store, storage: Storage, metrics: Metrics) -> None:
        self._store, self._storage, self._metrics = store, storage, metrics
        self._feeds: dict[str, Feed] = {}
        self.closing = False

    def close(self) -> None:
        """Every stream ends with a last word. For the moment before the server stops."""
        self.closing = True
        for feed in self._feeds.values():
            feed.end("closing")

    async def stop(self) -> None:
        self.close()
        tasks = [feed.task for feed in self._feeds.values() if feed.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- listening ------------------------------------------------------------------------------------

    def listen(self, job: Job, cursor: Cursor) -> Listening:
        """Everything after `cursor`, heartbeats, and why it ends. Raises TooManyRequests before the one too many would
        take the store's connections from everybody. The place is taken here, in the same step, so that those who come
        at once are counted; whoever gets one must call its `leave`."""
        return Listening(self, job, self._enter(job), cursor)

    async def told(self, job: Job, feed: Feed, cursor: Cursor) -> AsyncIterator[bytes]:
        """Pieces of an event stream, for one that has entered."""
        try:
            cursor = await self._within(job, feed, cursor)
            yield b": listening\n\n"  # from here on whatever comes is new to this listener
            await self._open(job, feed)
            async for piece in self._pieces(job, feed, cursor):
                yield piece
        except JosError as error:
            log.warning("a stream broke off; its listener comes back", job=job.id, error=str(error))
            yield _last("unavailable", cursor)

    async def _within(self, job: Job, feed: Feed, cursor: Cursor) -> Cursor:
        """The cursor, or the last that there is: after a recovery numbers that were told before are given again."""
        if feed.last.covers(cursor):
            return cursor
        events, _ = await self._store.events(job.id, limit=0)
        progress, _ = await self._store.progress(job.id, limit=0)
        return Cursor(min(cursor.event, events), min(cursor.progress, progress))

    async def _pieces(self, job: Job, feed: Feed, cursor: Cursor) -> AsyncIterator[bytes]:
        place, beats = 0, feed.beats
        while True:
            changed = feed.changed()
            wanted = feed.first
            if place < feed.base and not cursor.covers(wanted):  # what is missing has left the ring
                async for entries in self._history(job, cursor):
                    piece, cursor = self._piece([encoded(entry) for entry in entries], cursor)
                    yield piece
                # what is still missing of these is nowhere any more
                cursor = Cursor(max(cursor.event, wanted.event), max(cursor.progress, wanted.progress))
                continue
            fresh, place = feed.after(place)
            if fresh:
                piece, cursor = self._piece(fresh, cursor)
                if piece:
                    yield piece
                continue
            if feed.over is not None:
                yield _last(feed.over, cursor)
                return
            if beats != feed.beats:
                beats = feed.beats
                yield b": beat\n\n"
            await changed.wait()

    def _piece(self, entries: Sequence[Encoded], cursor: Cursor) -> tuple[bytes, Cursor]:
        """What of `entries` is new, each with the id from which its reader can go on."""
        parts: list[bytes] = []
        for entry in entries:
            if not cursor.has(entry):
                cursor = cursor.past(entry)
                parts.append(b"id: %b\n%b" % (str(cursor).encode(), entry.body))
        self._metrics.sent.inc(len(parts))
        return b"".join(parts), cursor

    # --- feeds ----------------------------------------------------------------------------------------

    def _enter(self, job: Job) -> Feed:
        """Without an await between the look and the step: else many would look at once and all go in."""
        feed = self._feeds.get(job.id)
        if feed is None or feed.over is not None:
            if feed is None:
                self._check_room(job.org_id)
            feed = self._feeds[job.id] = Feed(job.org_id)
            self._metrics.feeds.inc()
        feed.listeners += 1
        self._metrics.listeners.inc()
        return feed

    def _check_room(self, org_id: str) -> None:
        of_org = sum(feed.org_id == org_id for feed in self._feeds.values())
        if len(self._feeds) >= MOST_FEEDS or of_org >= MOST_OF_ORG:
            raise TooManyRequests("Too many jobs are listened to at once.", 5, suggestion="Close streams, or poll.")

    async def _open(self, job: Job, feed: Feed) -> None:
        if feed.task is None:
            events, _ = await self._store.events(job.id, limit=0)
            progress, _ = await self._store.progress(job.id, limit=0)
            if feed.task is None:  # else somebody was quicker
                feed.begin_at(Cursor(events, progress))
                feed.task = asyncio.create_task(self._feed(job.id, feed), name=f"feed {job.id}")

    def leave(self, job_id: str, feed: Feed) -> None:
        feed.listeners -= 1
        self._metrics.listeners.dec()
        if feed.listeners == 0:
            if self._feeds.get(job_id) is feed:
                del self._feeds[job_id]
            self._metrics.feeds.dec()
            if feed.task is not None:
                feed.task.cancel()

    async def _feed(self, job_id: str, feed: Feed) -> None:
        why = "closing"
        try:
            if self.closing:
                return
            why = await self._follow(job_id, feed)
        except NotFound:
            why = "deleted"
        except JosError as error:
            log.warning("a feed broke off; its listeners come back", job=job_id, error=str(error))
            why = "unavailable"
        except Exception:
            # Nobody awaits this task: whatever a fault of ours is, its traceback must be in the log, and the listeners
            # must hear of it now; they come back a second later, and a fault that stays is logged each time.
            why = "unavailable"
            log.exception("a feed broke off; its listeners come back", job=job_id)
        finally:
            feed.end(why)

    async def _follow(self, job_id: str, feed: Feed) -> str:
        loop = asyncio.get_running_loop()
        heard = loop.time()
        if await self._over(job_id, feed):
            return "over"
        source = self._store.follow(job_id, feed.last.event, feed.last.progress, _LOOK_MS)
        async with contextlib.aclosing(source):  # type: ignore[type-var]
            async for entries in source:
                if entries:
                    feed.add(entries)
                    heard = loop.time()
                    await asyncio.sleep(min(_GATHER * feed.listeners, _GATHER_MOST))
                elif loop.time() - heard >= BEAT:
                    feed.beat()
                    heard = loop.time()
                if (not entries or any(_final(entry) for entry in entries)) and await self._over(job_id, feed):
                    return "over"
        return "deleted"

    def _history(self, job: Job, cursor: Cursor) -> AsyncIterator[list[Event | Progress]]:
        return archive.history(self._store, self._storage, job, cursor.event, cursor.progress)

    async def _over(self, job_id: str, feed: Feed) -> bool:
        """Whether the job is over and its driver has left, so that nothing more can come; what is left is added."""
        job = await self._store.get(job_id)
        if not job.status.terminal or job.holds_capacity:
            return False
        async for entries in self._history(job, feed.last):
            feed.add(entries)
        return True


def _final(entry: Event | Progress) -> bool:
    return isinstance(entry, Event) and entry.event_type in ("job.completed", "job.failed", "job.canceled")


def _last(why: str, cursor: Cursor) -> bytes:
    """`end` says that a client need not come back; after a comment it should."""
    if why in ("over", "deleted"):
        return b'id: %b\nevent: end\ndata: {"reason":"%b"}\n\n' % (str(cursor).encode(), why.encode())
    return b"retry: 1000\n: %b\n\n" % why.encode()
