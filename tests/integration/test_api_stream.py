"""The event stream of a job: resumption, heartbeats, many listeners on one reader, slow ones, and the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from api_lab import Api, now
from jobs_lab import until
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from jos import archive
from jos.api import hub
from jos.api.stream import stream_job
from jos.core.errors import TooManyRequests
from jos.core.model import EventDraft, ProgressDraft
from jos.store.redis import Store

Frame = dict[str, str]


def event(message: str) -> EventDraft:
    return EventDraft(event_type="index.started", message=message, created_at=now())


def step(number: int) -> ProgressDraft:
    return ProgressDraft(kind="training", step=number, created_at=now())


def frames(answer: httpx2.Response) -> Iterator[Frame]:
    """Messages and comments, the latter under ":"."""
    frame: Frame = {}
    for line in answer.iter_lines():
        if line.startswith(":"):
            yield {":": line[1:].strip()}
        elif line:
            name, _, value = line.partition(":")
            frame[name] = value.strip()
        elif frame:
            yield frame
            frame = {}


def entries(found: list[Frame]) -> list[tuple[str, int]]:
    return [(f["event"], orjson.loads(f["data"])["id"]) for f in found if f.get("event") in ("event", "progress")]


def read(api: Api, job_id: str, last: str | None = None, most: int | None = None) -> list[Frame]:
    """All messages until the stream ends, or so many."""
    headers = {"Last-Event-ID": last} if last else {}
    found: list[Frame] = []
    with api.http.stream("GET", f"/v0.5/batch/jobs/{job_id}/stream", headers=headers) as answer:
        assert answer.status_code == 200
        for frame in frames(answer):
            if ":" not in frame:
                found.append(frame)
            if len(found) == most:
                break
    return found


class Listener(threading.Thread):
    """Reads a stream as it comes, in a thread of its own."""

    def __init__(self, api: Api, job_id: str, last: str | None = None) -> None:
        super().__init__(daemon=True)
        self.api, self.job_id, self.last = api, job_id, last
        self.found: list[Frame] = []
        self.start()

    def run(self) -> None:
        headers = {"Last-Event-ID": self.last} if self.last else {}
        with (
            httpx2.Client(base_url=self.api.url, headers=self.api.http.headers, timeout=60) as client,
            client.stream("GET", f"/v0.5/batch/jobs/{self.job_id}/stream", headers=headers) as answer,
        ):
            for frame in frames(answer):
                self.found.append(frame)

    def messages(self) -> list[Frame]:
        return [f for f in self.found if ":" not in f]

    def wait(self, count: int) -> list[tuple[str, int]]:
        until(lambda: len(entries(self.messages())) >= count)
        return entries(self.messages())


def running(api: Api) -> str:
    job_id = api.create(pipeline="quick-train", pipeline_type="training", inputs={})
    api.admit(job_id)
    return job_id


@pytest.mark.parametrize("last", ["e90.p70", "e90.p0", "e1.p70"])
def test_a_listener_who_heard_more_than_a_recovery_brought_back_hears_what_is_new(api: Api, last: str) -> None:
    job_id = running(api)
    api.tell(job_id, progress=[step(1)])
    listener = Listener(api, job_id, last)
    until(lambda: job_id in api.service.hub._feeds and any(":" in f for f in listener.found))
    api.tell(job_id, seq=2, events=[event("new")], progress=[step(2)])
    api.complete(job_id)
    listener.join(20)
    found = entries(listener.messages())
    assert {("event", 4), ("event", 5), ("progress", 2)} <= set(found)
    assert listener.messages()[-1]["id"] == "e5.p2"


def test_a_stream_tells_what_was_and_what_comes_and_ends_with_the_job(api: Api) -> None:
    job_id = running(api)
    api.tell(job_id, events=[event("one")], progress=[step(1)])
    listener = Listener(api, job_id)
    listener.wait(5)  # created, admitted, started, one; step 1
    api.tell(job_id, seq=2, events=[event("two")], progress=[step(2)])
    api.complete(job_id)
    listener.join(20)
    assert not listener.is_alive()
    found = listener.messages()
    assert [e for e in entries(found) if e[0] == "event"] == [("event", n) for n in range(1, 7)]
    assert [e for e in entries(found) if e[0] == "progress"] == [("progress", 1), ("progress", 2)]
    assert (found[-1]["event"], found[-1]["data"], found[-1]["id"]) == ("end", '{"reason":"over"}', "e6.p2")
    shown = orjson.loads(next(f["data"] for f in found if f["event"] == "event"))
    assert shown == api.get(f"/batch/jobs/{job_id}/events", order="asc")["events"][0]


def test_a_stream_resumes_anywhere_with_nothing_missed_or_repeated(api: Api) -> None:
    job_id = running(api)
    api.tell(job_id, events=[event(str(n)) for n in range(20)], progress=[step(n) for n in range(20)])
    api.complete(job_id)
    whole = read(api, job_id)
    pieces: list[Frame] = []
    while not pieces or pieces[-1]["event"] != "end":
        pieces += read(api, job_id, pieces[-1]["id"] if pieces else None, 7)
    assert pieces == whole
    by_query = api.http.get(f"/v0.5/batch/jobs/{job_id}/stream", params={"last_event_id": whole[-2]["id"]})
    assert b"event: end" in by_query.content
    assert b"event: event" not in by_query.content
    assert api.http.get(f"/v0.5/batch/jobs/{job_id}/stream?last_event_id=x").status_code == 400


def test_many_listeners_share_one_reader_of_the_store(api: Api) -> None:
    job_id = running(api)
    listeners = [Listener(api, job_id) for _ in range(40)]
    for listener in listeners:
        listener.wait(3)
    text = api.http.get("/metrics").text
    assert "jos_api_stream_listeners 40.0" in text
    assert "jos_api_stream_jobs 1.0" in text
    for seq in range(1, 6):
        api.tell(job_id, seq=seq, events=[event(str(seq))], progress=[step(seq)])
    api.complete(job_id)
    for listener in listeners:
        listener.join(20)
        assert sorted(entries(listener.messages())) == [
            *(("event", n) for n in range(1, 10)),
            *(("progress", n) for n in range(1, 6)),
        ]
    until(lambda: "jos_api_stream_listeners 0.0" in api.http.get("/metrics").text)
    until(lambda: "jos_api_stream_jobs 0.0" in api.http.get("/metrics").text)


def test_a_slow_listener_reads_what_left_the_ring_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "RING", 10)
    api = Api(tmp_path)
    api.start()
    try:
        job_id = running(api)

        async def slow() -> list[tuple[str, int]]:
            """Takes a piece, then lets far more come than the ring holds."""
            parts, seq, found = api.service, 0, b""
            job = await parts.store.get(job_id)
            pieces = parts.hub.listen(job, hub.Cursor())
            async for piece in pieces:
                found += piece
                if seq < 3:
                    seq += 1
                    told = [event(str(n)) for n in range(30)]
                    await parts.store.mirror(job_id, mirror(job_id, seq, told))
                    feed = parts.hub._feeds[job_id]
                    while feed.task is not None and feed.last.event < 3 + 30 * seq:
                        await feed.changed().wait()
                if found.count(b"event: event") >= 93:
                    break
            pieces.leave()
            return [
                (f["event"], orjson.loads(f["data"])["id"]) for f in map(parsed, found.split(b"\n\n")) if "data" in f
            ]

        found = asyncio.run_coroutine_threadsafe(slow(), loop_of(api)).result(30)
        assert found == [("event", n) for n in range(1, 94)]
    finally:
        api.close()


def mirror(job_id: str, seq: int, events: list[EventDraft]) -> Any:
    from jos.store.records import Mirror

    return Mirror(token=job_id, seq=seq, at=now(), events=events)


def parsed(text: bytes) -> Frame:
    lines = [line.partition(": ") for line in text.decode().splitlines()]
    return {name: value for name, _, value in lines}


def loop_of(api: Api) -> asyncio.AbstractEventLoop:
    task = api.service.removals._resuming
    assert task is not None
    return task.get_loop()


def test_silence_is_broken_by_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "BEAT", 0.5)
    api = Api(tmp_path)
    api.start()
    try:
        listener = Listener(api, running(api))
        until(lambda: sum(f.get(":") == "beat" for f in listener.found) >= 2)
    finally:
        api.close()


def test_a_cancelled_job_is_listened_to_until_its_driver_has_left(api: Api) -> None:
    job_id = running(api)
    listener = Listener(api, job_id)
    listener.wait(3)
    api.call("POST", f"/batch/jobs/{job_id}/cancel")
    assert listener.wait(4)[-1] == ("event", 4)
    api.tell(job_id, events=[event("still leaving")])
    assert listener.wait(5)[-1] == ("event", 5)
    assert all(f.get("event") != "end" for f in listener.found)
    api.drained(job_id)
    listener.join(20)
    assert listener.messages()[-1]["event"] == "end"
    api.call("POST", f"/batch/jobs/{job_id}/retry")  # whoever comes back after it hears of it
    again = Listener(api, job_id, listener.messages()[-1]["id"])
    assert again.wait(1) == [("event", 6)]


def test_what_went_to_the_archive_is_streamed_as_well(api: Api) -> None:
    job_id = running(api)
    api.tell(job_id, events=[event(str(n)) for n in range(10)], progress=[step(n) for n in range(5)])
    api.complete(job_id)
    whole = read(api, job_id)

    async def put_away(store: Store) -> None:
        job = await store.get(job_id)
        await archive.archive(store, api.service.storage, job, everything=True)
        await store.drop_streams(job_id)

    api.with_store(put_away)
    assert read(api, job_id) == whole
    assert read(api, job_id, whole[4]["id"]) == whole[5:]
    assert api.get(f"/batch/jobs/{job_id}/events", limit=3)["total"] == 14


def test_a_listener_is_given_pieces_that_fit_a_slow_ones_memory() -> None:
    """Else a thousand slow listeners would each hold a whole ring."""
    feed = hub.Feed()
    feed.ring.extend(hub.Encoded(True, n, b"x" * 1000) for n in range(1, 1001))
    place, numbers = 0, list[int]()
    while (found := feed.after(place))[0]:
        entries, place = found
        assert sum(len(one.body) for one in entries) <= 256 << 10
        numbers += [one.number for one in entries]
    assert numbers == list(range(1, 1001))


def test_an_organisation_cannot_take_all_connections_of_the_store(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MOST_OF_ORG", 1)
    first, second = (api.create(api.upload(name)) for name in ("one.jsonl", "two.jsonl"))
    with api.http.stream("GET", f"/v0.5/batch/jobs/{first}/stream") as listening:
        pieces = listening.iter_raw()
        next(pieces)
        until(lambda: api.service.hub._feeds)
        refused = api.http.get(f"/v0.5/batch/jobs/{second}/stream")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
        with api.http.stream("GET", f"/v0.5/batch/jobs/{first}/stream") as again:  # it has its reader already
            assert again.status_code == 200
    until(lambda: not api.service.hub._feeds)
    with api.http.stream("GET", f"/v0.5/batch/jobs/{second}/stream") as later:
        assert later.status_code == 200


def test_the_limit_holds_for_those_who_come_at_once_and_whoever_never_listens_takes_no_place(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MOST_OF_ORG", 2)
    ids = [api.create(api.upload(f"{n}.jsonl")) for n in range(5)]

    async def come_at_once() -> list[Any]:
        jobs = [await api.service.store.get(job_id) for job_id in ids]
        return await asyncio.gather(*(stream_job(job, api.service) for job in jobs), return_exceptions=True)

    async def gone(_message: Any) -> None:
        raise OSError("the client is gone")

    found = asyncio.run_coroutine_threadsafe(come_at_once(), loop_of(api)).result(30)
    accepted = [one for one in found if isinstance(one, StreamingResponse)]
    assert [type(one) for one in found if one not in accepted] == [TooManyRequests] * 3
    assert api.http.get(f"/v0.5/batch/jobs/{ids[4]}/stream").status_code == 429
    for answer in accepted:  # nobody is there to hear even its head
        scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
        with pytest.raises(ClientDisconnect):
            asyncio.run_coroutine_threadsafe(answer(scope, gone, gone), loop_of(api)).result(30)
    assert not api.service.hub._feeds
    assert "jos_api_stream_jobs 0.0" in api.http.get("/metrics").text
    with api.http.stream("GET", f"/v0.5/batch/jobs/{ids[4]}/stream") as later:
        assert later.status_code == 200


def test_deleting_the_job_ends_its_streams(api: Api) -> None:
    job_id = api.create(pipeline="quick-train", pipeline_type="training", inputs={})
    listener = Listener(api, job_id)
    listener.wait(1)
    api.with_store(lambda store: store.delete(job_id))
    listener.join(20)
    assert listener.messages()[-1]["data"] == '{"reason":"deleted"}'


def test_when_the_server_stops_every_stream_gets_a_last_word_at_once(tmp_path: Path) -> None:
    api = Api(tmp_path)
    api.start()
    try:
        listener = Listener(api, running(api))
        listener.wait(3)
        api.stop()
        listener.join(5)
        assert {":": "closing"} in listener.found
    finally:
        api.close()
