"""Following a job: the stream's own format, reconnects that repeat nothing, polling where there is no stream."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from jos.client import Client, JobFailed
from jos.client.http import RetryPolicy
from jos.client.stream import Message, messages
from jos.core.errors import NotFound
from jos.wire import Event

NOW = "2026-04-14T10:05:00.123456Z"
JOB = {
    "id": "job_1",
    "org_id": "org_a",
    "name": "n",
    "pipeline_type": "batch",
    "pipeline_key": "shout",
    "pipeline_version": "1.0.0",
    "status": "RUNNING",
    "parameters": {},
    "priority": 0,
    "queue": "default",
    "retry_count": 0,
    "preemption_count": 0,
    "created_at": NOW,
    "updated_at": NOW,
}


def event(number: int, event_type: str = "input_started") -> dict[str, Any]:
    return {"id": number, "event_type": event_type, "level": "INFO", "message": f"m{number}", "created_at": NOW}


def sse(*entries: dict[str, Any], end: bool = False) -> bytes:
    said = [": listening\n\n"]
    said += [f"id: e{e['id']}.p0\nevent: event\ndata: {json.dumps(e)}\n\n" for e in entries]
    said += ["event: end\ndata: {}\n\n"] if end else []
    return "".join(said).encode()


class Cut(httpx2.SyncByteStream):
    """A body whose connection breaks after it."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __iter__(self) -> Any:
        yield self.data
        raise httpx2.ReadError("gone")


class Server:
    """A job whose streams are given one after another; it has the status of the list's head, the last one for good."""

    def __init__(self, statuses: list[str], streams: list[bytes | httpx2.SyncByteStream | int]) -> None:
        self.statuses, self.streams = statuses, streams
        self.events: list[dict[str, Any]] = []
        self.cursors: list[str | None] = []
        self.slept: list[float] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        match request.url.path.rpartition("/")[2]:
            case "stream":
                self.cursors.append(request.headers.get("last-event-id"))
                body = self.streams.pop(0)
                headers = {"content-type": "text/event-stream; charset=utf-8"}
                if isinstance(body, int):
                    return httpx2.Response(body)
                if isinstance(body, bytes):
                    return httpx2.Response(200, headers=headers, content=body)
                return httpx2.Response(200, headers=headers, stream=body)
            case "events":
                page = {"job_id": "job_1", "total": len(self.events), "offset": 0, "limit": 1000}
                return httpx2.Response(200, json=page | {"events": list(reversed(self.events))})
            case _:
                status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
                failed = {"error": {"code": "c", "message": "it broke"}} if status == "FAILED" else {}
                return httpx2.Response(200, json=JOB | {"status": status} | failed)

    def client(self) -> Client:
        retry = RetryPolicy(tries=2)
        client = Client("http://jos.test", "sk_1", retry=retry, transport=httpx2.MockTransport(self))
        client._http.sleep = self.slept.append
        return client


def followed(server: Server) -> list[int]:
    return [e.id for e in server.client().job("job_1").follow()]


def test_the_lines_of_a_stream_are_read_as_messages() -> None:
    lines = [": beat", "", "id: 7", "event: event", "data: {", "data: }", "", "data:x", "", "data: cut off"]
    assert list(messages(lines)) == [None, Message("event", "{\n}", "7"), Message("message", "x", "7")]


def test_a_stream_is_told_to_its_end() -> None:
    server = Server(["RUNNING", "COMPLETED"], [sse(event(1), event(2), end=True)])
    assert followed(server) == [1, 2]


def test_a_broken_stream_goes_on_after_the_last_message_and_repeats_nothing() -> None:
    streams: list[Any] = [Cut(sse(event(1), event(2))), 503, sse(event(2), event(3), end=True)]
    server = Server(["RUNNING", "COMPLETED"], streams)
    assert followed(server) == [1, 2, 3]
    assert server.cursors == [None, "e2.p0", "e2.p0"]


def test_a_stream_that_ends_before_the_job_is_taken_up_again() -> None:
    server = Server(["RUNNING", "RUNNING", "COMPLETED"], [sse(event(1)), sse(event(2), end=True)])
    assert followed(server) == [1, 2]
    assert len(server.slept) == 1


def test_what_a_newer_server_says_besides_is_left_out() -> None:
    more = b'event: weather\ndata: {"sun": true}\n\ndata: not json\n\ndata: [1]\n\n'
    server = Server(["RUNNING", "COMPLETED"], [more + sse(event(1), end=True)])
    assert followed(server) == [1]


def test_without_a_stream_events_are_asked_for() -> None:
    server = Server(["RUNNING", "RUNNING", "RUNNING", "COMPLETED"], [404])
    server.events = [event(1), event(2)]
    assert followed(server) == [1, 2]


def test_a_job_that_is_not_there_is_told() -> None:
    def nothing(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(404, json={"errors": [{"code": "not_found", "message": "none", "error_uid": "e"}]})

    client = Client("http://jos.test", "sk_1", transport=httpx2.MockTransport(nothing))
    with pytest.raises(NotFound):
        client.job("job_1")


def test_events_come_oldest_first_whatever_the_server_does() -> None:
    server = Server(["COMPLETED"], [])
    server.events = [event(1), event(2), event(3)]
    found = list(server.client().job("job_1").events(after=1))
    assert [e.id for e in found] == [2, 3]
    assert all(isinstance(e, Event) for e in found)


def test_wait_returns_at_the_jobs_end_and_raises_for_a_bad_one() -> None:
    server = Server(["RUNNING", "RUNNING", "COMPLETED"], [sse(event(1, "job.completed"))])
    assert server.client().job("job_1").wait().record.status == "COMPLETED"
    server = Server(["RUNNING", "RUNNING", "FAILED"], [sse(event(1, "job.failed"))] * 2)
    with pytest.raises(JobFailed, match="is FAILED: it broke"):
        server.client().job("job_1").wait()
    assert Server(["FAILED"], []).client().job("job_1").wait(check=False).record.status == "FAILED"


def test_wait_ends_at_its_deadline() -> None:
    server = Server(["RUNNING"], [sse(event(n)) for n in range(1, 50)])
    with pytest.raises(TimeoutError, match="is still RUNNING"):
        server.client().job("job_1").wait(0.0)
