"""Requests of the client: what is tried again and what is not, and errors that say everything."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import httpx2
import pytest

from jos.client import Client, ServerFault, ServerUnreachable
from jos.client.errors import error_of
from jos.client.http import Http, RetryPolicy, retry_after
from jos.core.errors import (
    BadRequest,
    ConfigInvalid,
    Conflict,
    Forbidden,
    JosError,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthorized,
)
from jos.core.model import Status
from jos.wire import Job, QueueList

JOB = {
    "id": "job_1",
    "org_id": "org_a",
    "name": "n",
    "pipeline_type": "batch",
    "pipeline_key": "shout",
    "pipeline_version": "1.0.0",
    "status": "PENDING",
    "parameters": {},
    "priority": 0,
    "queue": "default",
    "retry_count": 0,
    "preemption_count": 0,
    "created_at": "2026-04-14T10:05:00.123456Z",
    "updated_at": "2026-04-14T10:05:00.123456Z",
}
QUEUE = {"queues": [{"pipeline_type": "batch", "depth": 3}]}


def failure(status: int, *errors: dict[str, str], **headers: str) -> httpx2.Response:
    entries = [{"error_uid": "err-1", "code": "c", "message": "m", **e} for e in errors]
    return httpx2.Response(status, json={"errors": entries}, headers=headers)


class Server:
    """Gives its answers one after another, and remembers what it was asked. An answer may be an exception."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[httpx2.Request] = []
        self.slept: list[float] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def http(self, **policy: float) -> Http:
        retry = RetryPolicy(**policy)  # type: ignore[arg-type]
        return Http("http://jos.test", "sk_1", retry, httpx2.MockTransport(self), self.slept.append)

    def client(self) -> Client:
        client = Client("http://jos.test", "sk_1", transport=httpx2.MockTransport(self))
        client._http.sleep = self.slept.append
        return client


def test_the_key_is_sent_and_the_answer_is_read() -> None:
    server = Server(httpx2.Response(200, json=QUEUE))
    assert server.client().queue() == {"batch": 3}
    assert server.asked[0].headers["authorization"] == "Bearer sk_1"
    assert str(server.asked[0].url) == "http://jos.test/v0.5/batch/jobs/queue"


def test_a_get_is_tried_again_after_a_fault_a_lost_connection_and_a_refusal() -> None:
    server = Server(failure(503), httpx2.ReadError("gone"), failure(429), httpx2.Response(200, json=QUEUE))
    assert server.http().get("/batch/jobs/queue", QueueList).queues[0].depth == 3
    assert len(server.slept) == 3


def test_it_gives_up_after_its_tries_and_says_what_the_server_said() -> None:
    server = Server(*[failure(503, {"message": "Redis is away.", "suggestion": "Wait."})] * 3)
    with pytest.raises(ServerFault, match=r"Redis is away\. \(error_uid err-1\) Wait\."):
        server.http(tries=3).get("/x", QueueList)
    assert len(server.asked) == 3


def test_a_server_that_is_not_there_is_told_with_a_way_out() -> None:
    server = Server(*[httpx2.ConnectError("refused")] * 2)
    with pytest.raises(ServerUnreachable, match="`jos up` starts one"):
        server.http(tries=2).get("/x", QueueList)


def test_a_mistake_is_not_tried_again() -> None:
    server = Server(failure(400))
    with pytest.raises(BadRequest):
        server.http().get("/x", QueueList)
    assert server.slept == []


def test_a_post_is_not_tried_again_when_it_may_have_worked() -> None:
    server = Server(httpx2.ReadError("gone"))
    with pytest.raises(ServerUnreachable):
        server.http().post("/keys", QueueList)
    assert len(server.asked) == 1


@pytest.mark.parametrize("unsent", [httpx2.ConnectError("refused"), failure(429)])
def test_a_post_is_tried_again_when_it_cannot_have_worked(unsent: httpx2.Response | Exception) -> None:
    server = Server(unsent, httpx2.Response(200, json=QUEUE))
    server.http().post("/keys", QueueList)
    assert len(server.asked) == 2


def test_a_job_is_created_with_one_idempotency_key_for_all_tries() -> None:
    pipelines = httpx2.Response(200, json={"total": 0, "offset": 0, "limit": 20, "pipelines": []})
    server = Server(pipelines, httpx2.ReadTimeout("slow"), failure(502), httpx2.Response(200, json=JOB))
    job = server.client().jobs.create("shout", {"data": "there.jsonl"}, parallelism=2)
    keys = {r.headers["idempotency-key"] for r in server.asked[1:]}
    assert (job.id, len(server.asked), len(keys)) == ("job_1", 4, 1)
    assert json.loads(server.asked[1].content) == {
        "name": "shout",
        "pipeline_type": "batch",
        "pipeline_key": "shout",
        "inputs": {"worker.data": [{"kind": "file", "file_id": "there.jsonl", "metadata": {}}]},
        "parameters": {"worker": {"parallelism": 2, "config": {}}},
    }


def test_retry_after_is_waited_for_and_a_very_long_one_is_told_instead() -> None:
    server = Server(failure(429, **{"Retry-After": "7"}), httpx2.Response(200, json=QUEUE))
    server.http().get("/x", QueueList)
    assert server.slept == [7.0]
    server = Server(failure(429, {"message": "full"}, **{"Retry-After": "3600"}))
    with pytest.raises(TooManyRequests) as caught:
        server.http().get("/x", QueueList)
    assert (caught.value.retry_after, server.slept) == (3600.0, [])


def test_retry_after_may_be_a_date_and_nonsense_is_nothing() -> None:
    now = datetime(2026, 4, 14, 10, 0, 0, tzinfo=UTC)
    assert retry_after({"retry-after": "Tue, 14 Apr 2026 10:00:30 GMT"}, now) == 30
    assert retry_after({"retry-after": "Tue, 14 Apr 2026 09:00:00 GMT"}, now) == 0
    assert retry_after({"retry-after": "soon"}, now) is None
    assert retry_after({}, now) is None


def test_back_off_doubles_up_to_a_limit_and_half_of_it_is_chance() -> None:
    policy = RetryPolicy(first=1, most=10)
    assert [policy.delay(n, None, 1.0) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert policy.delay(1, None, 0.0) == 0.5


def cancelled_at_the_first_try() -> list[httpx2.Response | Exception]:
    return [httpx2.ReadError("gone"), failure(409), *[httpx2.Response(200, json=JOB | {"status": "CANCELLED"})] * 2]


def test_a_cancel_whose_answer_was_lost_is_no_conflict() -> None:
    server = Server(httpx2.Response(200, json=JOB), *cancelled_at_the_first_try())
    assert server.client().job("job_1").cancel().record.status is Status.CANCELLED


def test_a_cancel_of_a_job_that_is_over_is_a_conflict() -> None:
    server = Server(httpx2.Response(200, json=JOB), failure(409, {"code": "conflict"}))
    job = server.client().job("job_1")
    with pytest.raises(Conflict) as caught:
        job.cancel()
    assert caught.value.code == "conflict"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (401, Unauthorized), (403, Forbidden), (404, NotFound), (409, Conflict), (413, TooLarge)],
)
def test_each_status_has_its_error(status: int, kind: type[JosError]) -> None:
    body = json.dumps({"errors": [{"code": "upload_not_found", "message": "m", "error_uid": "err-1"}]}).encode()
    error = error_of(status, body, "GET /x")
    assert type(error) is kind
    assert (error.code, error.http_status, error.message) == ("upload_not_found", status, "m")


def test_all_violations_of_a_request_are_told() -> None:
    entries = [
        {"code": "invalid", "message": "must be at least 1", "path": "$.parameters.worker.parallelism"},
        {"code": "locked", "message": "is locked", "path": "$.parameters.worker.config.x"},
    ]
    body = json.dumps({"errors": [e | {"error_uid": "err-1"} for e in entries]}).encode()
    error = error_of(422, body, "POST /batch/jobs")
    assert isinstance(error, ConfigInvalid)
    assert [(v.path, v.code) for v in error.violations] == [(e["path"], e["code"]) for e in entries]
    assert "$.parameters.worker.config.x: is locked" in str(error)


@pytest.mark.parametrize("body", [b"", b"<html>bad gateway</html>", b"[]", b'{"errors": 3}'])
def test_an_answer_without_words_of_ours_is_told_by_its_status(body: bytes) -> None:
    assert "GET /x was answered 502 Bad Gateway" in str(error_of(502, body, "GET /x"))


def test_a_success_that_is_not_of_this_api_is_no_success() -> None:
    server = Server(httpx2.Response(200, text="<html>hello</html>"))
    with pytest.raises(ServerFault, match="Is this the URL of a JOS server"):
        server.http().get("/x", Job)


@pytest.mark.parametrize("url", ["jos.test", "ftp://jos.test", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(JosError):
        Http(url, None)


def test_the_base_path_may_be_part_of_the_url() -> None:
    told: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        told.append(str(request.url))
        return httpx2.Response(200, json=QUEUE)

    Http("http://jos.test/v0.5/", "k", transport=httpx2.MockTransport(answer)).get("/batch/jobs/queue", QueueList)
    assert told == ["http://jos.test/v0.5/batch/jobs/queue"]
