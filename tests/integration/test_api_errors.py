"""Every error has one shape and the right status, whatever is sent."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import pytest
from api_lab import Api

from jos.core.errors import ObjectMissing, StorageUnavailable, StoreUnavailable

UID = re.compile(r"err-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
JSON = {"Content-Type": "application/json"}


def errors(answer: httpx2.Response, status: int) -> list[dict[str, Any]]:
    assert answer.status_code == status, answer.text
    found: list[dict[str, Any]] = answer.json()["errors"]
    assert found
    for error in found:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", error["code"])
        assert error["message"]
        assert UID.fullmatch(error["error_uid"])
    return found


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v0.5/nothing/here", 404, "not_found"),
        ("GET", "/v0.5/batch/jobs/job_00000000000000000000000000", 404, "not_found"),
        ("GET", "/v0.5/batch/jobs/%00%ff%7B", 404, "not_found"),
        ("PUT", "/v0.5/batch/jobs", 405, "method_not_allowed"),
        ("GET", "/v0.5/batch/jobs?offset=99999999999999999999", 400, "bad_request"),
        ("GET", "/v0.5/batch/jobs?limit=NaN", 400, "bad_request"),
        ("GET", "/v0.5/batch/registry/pipelines?visibility=all", 400, "bad_request"),
    ],
)
def test_unknown_routes_objects_methods_and_parameters(
    shared_api: Api, method: str, path: str, status: int, code: str
) -> None:
    (error,) = errors(shared_api.http.request(method, path), status)
    assert error["code"] == code


def test_a_wrong_method_is_told_the_right_ones(shared_api: Api) -> None:
    job = shared_api.http.put("/v0.5/batch/jobs/job_x")
    assert (job.status_code, job.headers["Allow"]) == (405, "DELETE, GET")
    assert shared_api.http.put("/api/batch/jobs").headers["Allow"] == "GET, POST"
    assert shared_api.http.put("/v0.5/batch/jobs/queue").headers["Allow"] == "GET"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b"null", 422),
        (b"\xff\xfe{}", 400),
        (b'{"name": NaN}', 400),
        (b'{"name": "\\ud800"}', 400),
        (b'{"parameters": ' * 50_000, 400),
        (b'{"a":' * 200 + b"1" + b"}" * 200, 400),
        (b'{"priority": 1e400}', 400),
        (b'{"priority": 99999999999999999999999}', 422),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_body_that_is_no_json_is_400_and_one_that_breaks_its_schema_422(
    shared_api: Api, body: bytes, status: int
) -> None:
    errors(shared_api.http.post("/v0.5/batch/jobs", content=body, headers=JSON), status)


def test_a_body_of_another_content_type_is_told_what_it_should_be(shared_api: Api) -> None:
    answer = shared_api.http.post("/v0.5/batch/jobs", content=b"{}", headers={"Content-Type": "text/plain"})
    assert "application/json" in errors(answer, 422)[0]["message"]


def test_many_violations_are_cut_off_and_counted(shared_api: Api) -> None:
    refs = [{"file_id": n} for n in range(300)]
    body = {**shared_api.body(), "inputs": {"worker.data": refs}}
    found = errors(shared_api.http.post("/v0.5/batch/jobs", json=body), 422)
    assert len(found) == 201
    assert found[0]["path"] == '$.inputs["worker.data"][0].file_id'
    assert found[-1]["message"] == "100 more are not shown."


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (StoreUnavailable("Redis is away."), 503, "store_unavailable"),
        (StorageUnavailable("The folder /srv/secret is away."), 503, "storage_unavailable"),
        (ObjectMissing("There is no /srv/secret/x."), 404, "not_found"),
        (RuntimeError("a secret detail"), 500, "internal_error"),
    ],
)
def test_what_fails_inside_is_told_without_details(
    shared_api: Api, monkeypatch: pytest.MonkeyPatch, raised: Exception, status: int, code: str
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(shared_api.service.store, "jobs", fail)
    answer = shared_api.http.get("/v0.5/batch/jobs")
    (error,) = errors(answer, status)
    assert error["code"] == code
    assert answer.headers["X-Request-Id"]
    assert "secret" not in answer.text
    if status == 503:
        assert int(answer.headers["Retry-After"]) >= 1
    if code != "store_unavailable":
        assert error["error_uid"] in shared_api.said
        assert str(raised) in shared_api.said


@pytest.mark.parametrize("path", ["/keys", "/files/uploads/initiate", "/batch/jobs"])
def test_a_stranger_is_told_so_before_the_body_is_looked_at(shared_api: Api, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer sk_wrong"}):
        errors(httpx2.post(f"{shared_api.url}/v0.5{path}", content=b"{" * 9, headers={**JSON, **headers}), 401)


@pytest.mark.parametrize("path", ["/keys", "/files/uploads/initiate"])
def test_broken_unicode_is_400_everywhere(shared_api: Api, path: str) -> None:
    body = b'{"name": "\\ud800", "filename": "\\ud800", "num_bytes": 1}'
    errors(shared_api.http.post(f"/v0.5{path}", content=body, headers=JSON), 400)


def test_json_without_a_content_type_is_read(shared_api: Api) -> None:
    request = shared_api.http.build_request("POST", "/v0.5/files/uploads/initiate", content=b'{"filename": "x.csv"}')
    assert "content-type" not in request.headers
    assert errors(shared_api.http.send(request), 422)[0]["path"] == "$.num_bytes"


def test_slashes_too_many_do_no_harm(shared_api: Api) -> None:
    for path in ("/v0.5//batch/jobs", "/v0.5/batch/jobs/", "//v0.5/files/metadata/"):
        assert shared_api.http.get(f"{shared_api.url}{path}").status_code == 200
    body = shared_api.body(shared_api.upload("slash.jsonl"))
    assert shared_api.http.post(f"{shared_api.url}/v0.5/batch/jobs/", json=body).status_code == 201
    assert shared_api.http.delete(f"{shared_api.url}/v0.5/batch/jobs/").status_code == 405


@pytest.mark.parametrize("host", ["[", "a b", "a/b"])
def test_a_host_that_is_none_is_no_failure_of_ours(shared_api: Api, host: str) -> None:
    answer = shared_api.http.post(
        "/v0.5/files/uploads/initiate",
        json={"filename": f"h{len(host)}{ord(host[-1])}.csv", "num_bytes": 3},
        headers={"Host": host},
    )
    assert answer.status_code < 500


def test_a_configuration_of_nothing_but_mistakes_is_refused_at_once(shared_api: Api) -> None:
    body = shared_api.body(shared_api.upload("many.jsonl"))
    for config in ({"records": [1] * 30_000}, {f"field{n}": n for n in range(19_000)}):
        body["parameters"] = {"worker": {"config": config}}
        errors(shared_api.http.post("/v0.5/batch/jobs", json=body), 422)


def test_an_unexpected_error_is_logged_without_the_values_of_variables(
    shared_api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        password = "hunter" + "2" * 8
        raise RuntimeError(f"{len(password)} characters")

    monkeypatch.setattr(shared_api.service.store, "jobs", fail)
    secret = shared_api.make_key("org_log")
    errors(shared_api.as_(secret).get("/v0.5/batch/jobs"), 500)
    assert "10 characters" in shared_api.said or "14 characters" in shared_api.said
    assert "hunter22222222" not in shared_api.said
    assert secret not in shared_api.said
