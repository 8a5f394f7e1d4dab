"""A job's events and progress as they come: server-sent events with reconnects that miss and repeat nothing, polling
where the server has no stream.

May import: httpx2, jos.wire, jos.client.http. Tests: tests/unit/test_client_stream.py, tests/e2e/test_client.py.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import httpx2
import orjson

from jos.client.errors import ServerFault, ServerUnreachable
from jos.client.http import Http
from jos.core.errors import JosError, NotFound, TooManyRequests
from jos.wire import Event, EventList, Job, Progress

SILENCE = 45.0  # seconds without a byte, not even a comment, after which the connection is taken for dead
PATIENCE = 300.0  # seconds that a server may be away before whoever waits is told
POLL_EVERY = 1.0
PAGE = 1000
ENDS = ("job.completed", "job.failed", "job.canceled")


@dataclass(frozen=True)
class Message:
    """One server-sent event."""

    event: str
    data: str
    id: str | None


def messages(lines: Iterable[str]) -> Iterator[Message | None]:
    """The lines of a stream as messages; None for a comment, which is a heartbeat. A message cut off is no message."""
    event, data, at = "message", list[str](), None
    for line in lines:
        if not line:
            if data:
                yield Message(event, "\n".join(data), at)
            event, data = "message", []
            continue
        if line.startswith(":"):
            yield None
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            event = value
        elif field == "data":
            data.append(value)
        elif field == "id":
            at = value


def entry_of(message: Message) -> Event | Progress | None:
    """What a message tells; None for what a newer server may say."""
    try:
        data = orjson.loads(message.data)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(data, dict):
        return None
    if "event_type" in data:
        return Event.model_validate(data)
    return Progress.model_validate(data) if "kind" in data and "metrics" in data else None


class Following:
    """One reader of one job's stream."""

    def __init__(self, http: Http, job_id: str, deadline: float | None = None) -> None:
        self.http, self.job_id = http, job_id
        self.deadline = deadline  # of the caller, by the monotonic clock: it is given a None no later than that
        self.ended = False  # an event said that the job is over
        self.last_id: str | None = None
        self.last_event = 0  # so that polling, or a restart of the stream from its beginning, repeats nothing
        self.last_progress = 0

    def run(self) -> Iterator[Event | Progress | None]:
        """Ends when the job is over and all was told. None now and then when nothing came, so that a caller can look
        at its own clock."""
        tried, heard = 0, time.monotonic()
        while True:
            tried += 1
            try:
                for entry in self._connection():
                    tried, heard = 0, time.monotonic()
                    yield entry
                if self._over():  # the server ends a stream when it has told all of a finished job
                    return
                yield None
                self._pause(tried)
            except NotFound:
                self._over()  # raises the same if it is the job that is not there
                yield from self._poll()
                return
            except (httpx2.TransportError, ServerFault, ServerUnreachable, TooManyRequests) as error:
                if time.monotonic() - heard > PATIENCE:
                    if isinstance(error, JosError):
                        raise
                    raise ServerUnreachable(f"{self.http.url} does not answer any more: {error}") from error
                yield None
                self._pause(tried)

    def _pause(self, tried: int) -> None:
        self.http.sleep(self.http.retry.delay(min(tried, 6), None, random.random()))

    def _connection(self) -> Iterator[Event | Progress | None]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self.last_id} if self.last_id else {})
        url = f"/v0.5/batch/jobs/{self.job_id}/stream"
        left = SILENCE if self.deadline is None else max(0.1, self.deadline - time.monotonic())
        with self.http.open(url, keyed=True, headers=headers, read_timeout=min(SILENCE, left)) as answer:
            if "text/event-stream" not in answer.headers.get("content-type", ""):
                raise NotFound("no stream")  # an older server's catch-all
            for message in messages(answer.iter_lines()):
                entry = None
                if message is not None:
                    self.last_id = message.id or self.last_id
                    entry = entry_of(message)
                elif self.ended and self._over():
                    return
                yield entry if entry is not None and self._new(entry) else None

    def _new(self, entry: Event | Progress) -> bool:
        if isinstance(entry, Event):
            self.ended = entry.event_type in ENDS or (self.ended and entry.event_type != "job.retried")
            fresh, self.last_event = entry.id > self.last_event, max(self.last_event, entry.id)
        else:
            fresh, self.last_progress = entry.id > self.last_progress, max(self.last_progress, entry.id)
        return fresh

    def _over(self) -> bool:
        return self.http.get(f"/batch/jobs/{self.job_id}", Job).status.terminal

    def _poll(self) -> Iterator[Event | Progress | None]:
        while True:
            over = self._over()  # asked before the events: whatever it did before is among them
            yield from (e for e in events(self.http, self.job_id, after=self.last_event) if self._new(e))
            if over:
                return
            yield None
            self.http.sleep(POLL_EVERY)


def events(http: Http, job_id: str, *, after: int = 0, **filters: object) -> list[Event]:
    """All events so far, oldest first. A server that does not know `order` gives them newest first, which is why they
    are sorted here."""
    found: dict[int, Event] = {}
    offset = 0
    while True:
        path = f"/batch/jobs/{job_id}/events"
        page = http.get(path, EventList, order="asc", offset=offset, limit=PAGE, **filters)
        found |= {e.id: e for e in page.events}
        offset += len(page.events)
        if not page.events or offset >= page.total:
            return [found[i] for i in sorted(found) if i > after]
