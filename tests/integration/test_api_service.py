"""The frame around all routes: health, metrics, request ids, the description, and the pages for people."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from api_lab import Api
from jobs_lab import until

from jos.api.auth import bootstrap
from jos.core.errors import StoreUnavailable
from jos.store.keys import ApiKey, ApiKeys
from jos.store.lease import Lease
from jos.store.redis import Store


def test_the_same_routes_answer_below_each_base_path(shared_api: Api) -> None:
    for base in ("/v0.5", "/api/v0.5", "/api"):
        assert shared_api.http.get(f"{base}/batch/jobs").status_code == 200
        assert shared_api.http.get(f"{base}/batch/registry/pipelines").json()["total"] > 0
        assert "num_files" in shared_api.http.get(f"{base}/files/info").json()


def test_readiness_says_what_is_missing(shared_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api = shared_api
    assert api.http.get("/healthz").json() == {"status": "ok"}
    ready = api.http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["checks"]["controller"].startswith("no controller leads")

    async def lead(store: Store) -> dict[str, Any]:
        lease = Lease(store.connection, "controller", "me")
        assert await lease.acquire()
        return dict(api.http.get("/readyz").json())

    assert api.with_store(lead) == {"ready": True, "checks": dict.fromkeys(("store", "storage", "controller"), "ok")}

    async def away() -> None:
        raise StoreUnavailable("Redis is away.")

    monkeypatch.setattr(api.service.store, "ping", away)
    missing = api.http.get("/readyz")
    assert (missing.status_code, missing.json()["checks"]["store"]) == (503, "Redis is away.")


def test_metrics_name_routes_and_no_objects(shared_api: Api) -> None:
    shared_api.http.get("/v0.5/batch/jobs/job_of_somebody")
    shared_api.http.get("/nothing/of/the/kind")
    text = shared_api.http.get("/metrics").text
    assert 'route="/batch/jobs/{job_id}",status="404"' in text
    assert 'route="unknown",status="404"' in text
    assert "job_of_somebody" not in text
    assert "jos_api_requests_in_flight 1.0" in text


def test_a_request_id_is_the_clients_own_or_a_fresh_one(shared_api: Api) -> None:
    given = shared_api.http.get("/v0.5/batch/jobs", headers={"X-Request-Id": "abc-123"})
    assert given.headers["X-Request-Id"] == "abc-123"
    until(lambda: "abc-123" in shared_api.said)
    odd = shared_api.http.get("/v0.5/batch/jobs", headers={"X-Request-Id": "a b;c"})
    assert re.fullmatch(r"[0-9a-f]{32}", odd.headers["X-Request-Id"])


def test_the_pages_for_people_ask_nobody_else_for_anything(shared_api: Api) -> None:
    page = shared_api.http.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "Create a job" in page.text
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page.text)
    assert "<script" not in page.text
    assert shared_api.http.get("/openapi.json").json()["openapi"].startswith("3.")


def test_every_operation_is_described_with_its_errors(shared_api: Api) -> None:
    found = shared_api.http.get("/openapi.json").json()
    operations = [(m, p, o) for p, item in found["paths"].items() for m, o in item.items() if p.startswith("/v0.5")]
    assert len(operations) >= 35
    for method, path, operation in operations:
        where = f"{method} {path}"
        assert operation["security"] == [{"ApiKey": []}], where
        assert operation["summary"], where
        answers = operation["responses"]
        assert {"401", "403", "429", "500", "503"} <= answers.keys(), where
        for status, answer in answers.items():
            if status >= "400":
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}, where
            elif status != "304":
                assert answer.get("content") or answer["headers"], where
        assert ("{" in path) <= ("404" in answers), where
        assert ("requestBody" in operation) <= bool({"413", "422"} & answers.keys()), where
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(set(names)) == len(names)


def test_the_first_key_is_made_once(shared_api: Api) -> None:
    async def work(store: Store) -> tuple[str | None, str | None, ApiKey | None]:
        keys = ApiKeys(store.connection)
        first, again = await bootstrap(keys, "org_first"), await bootstrap(keys, "org_first", datetime.now(UTC))
        assert first is not None
        return first, again, await keys.find(first)

    first, again, key = shared_api.with_store(work)
    assert first is not None
    assert again is None
    assert key is not None
    assert (key.org_id, key.role) == ("org_first", "admin")
    assert shared_api.as_(first).get("/v0.5/keys").status_code == 200


def test_many_calls_at_once_are_all_answered(shared_api: Api) -> None:
    import httpx2

    async def work() -> list[int]:
        headers = {"Authorization": f"Bearer {shared_api.key}"}
        async with httpx2.AsyncClient(base_url=shared_api.url, headers=headers, timeout=30) as client:
            answers = await asyncio.gather(*(client.get("/v0.5/batch/jobs") for _ in range(60)))
        return [answer.status_code for answer in answers]

    assert set(asyncio.run(work())) == {200}
