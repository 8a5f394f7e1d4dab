"""Who gets in, as what, to what: keys, roles, organisations, limits. Every route of the app is tried."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_lab import Api
from fastapi.routing import iter_route_contexts
from jobs_lab import until

OPEN = {"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"}
OPEN |= {"/console", "/console/{name}", "/console/assets/{name}"}  # a page without data; it asks for a key itself
SIGNED = "/v0.5/signed"  # opened by their signature; tests/contract/test_files_links.py
# what each route needs at least; a route that is not here fails the test
NEEDS = {
    "reader": {
        ("GET", "/batch/jobs"),
        ("GET", "/batch/jobs/queue"),
        ("GET", "/batch/jobs/{job_id}"),
        ("GET", "/batch/jobs/{job_id}/events"),
        ("GET", "/batch/jobs/{job_id}/progress"),
        ("GET", "/batch/jobs/{job_id}/stream"),
        ("GET", "/batch/jobs/{job_id}/inputs"),
        ("GET", "/batch/jobs/{job_id}/inputs/progress"),
        ("GET", "/batch/jobs/{job_id}/inputs/progress/counts"),
        ("GET", "/batch/jobs/{job_id}/inputs/progress/traces"),
        ("GET", "/batch/jobs/{job_id}/outputs"),
        ("GET", "/batch/jobs/{job_id}/outputs/{output_id}/content"),
        ("GET", "/batch/queues"),
        ("GET", "/batch/jobs/{job_id}/checkpoints"),
        ("GET", "/batch/registry/pipelines"),
        ("GET", "/batch/registry/pipelines/{pipeline_id}"),
        ("GET", "/batch/registry/pipelines/{pipeline_id}/schema"),
        ("GET", "/files/info"),
        ("GET", "/files/metadata"),
        ("GET", "/files/metadata/{file_id}"),
        ("GET", "/files/download/{file_id}"),
        ("HEAD", "/files/download/{file_id}"),
        ("GET", "/v0.6/fine_tuning/jobs"),
        ("GET", "/v0.6/fine_tuning/jobs/{fine_tuning_job_id}"),
        ("GET", "/v0.6/fine_tuning/jobs/{fine_tuning_job_id}/events"),
        ("GET", "/v0.6/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints"),
    },
    "user": {
        ("POST", "/batch/jobs"),
        ("POST", "/batch/jobs/{job_id}/cancel"),
        ("POST", "/batch/jobs/{job_id}/retry"),
        ("DELETE", "/batch/jobs/{job_id}"),
        ("POST", "/files"),
        ("POST", "/files/base64"),
        ("DELETE", "/files/delete/{file_id}"),
        ("POST", "/files/uploads/initiate"),
        ("POST", "/files/uploads/{upload_id}/parts/urls"),
        ("PUT", "/files/uploads/{upload_id}/parts/{part_number}"),
        ("POST", "/files/uploads/{upload_id}/parts/checkpoint"),
        ("POST", "/files/uploads/{upload_id}/complete"),
        ("POST", "/files/uploads/{upload_id}/abort"),
        ("POST", "/v0.6/fine_tuning/jobs"),
        ("POST", "/v0.6/fine_tuning/jobs/{fine_tuning_job_id}/cancel"),
    },
    "admin": {
        ("POST", "/batch/registry/pipelines"),
        ("POST", "/batch/registry/pipelines/{pipeline_id}/publish"),
        ("POST", "/batch/registry/pipelines/{pipeline_id}/deactivate"),
        ("DELETE", "/batch/registry/pipelines/{pipeline_id}"),
        ("POST", "/keys"),
        ("GET", "/keys"),
        ("DELETE", "/keys/{key_id}"),
    },
}
RANK = ["reader", "user", "admin"]
BODIES: dict[str, Any] = {
    "/files/uploads/{upload_id}/parts/urls": {"part_numbers": [1]},
    "/files/uploads/{upload_id}/parts/checkpoint": {"parts": []},
    "/files/uploads/{upload_id}/complete": {"parts": []},
}


def routes(api: Api) -> Iterator[tuple[str, str]]:
    """(method, path) of every route that needs a key, from the app itself; without /v0.5."""
    for route in all_routes(api):
        for method in sorted(route[0]):
            if route[1].startswith(("/v0.5", "/v0.6")) and not route[1].startswith(SIGNED):
                yield method, route[1].removeprefix("/v0.5")


def url_of(path: str) -> str:
    return path if path.startswith("/v0.6") else f"/v0.5{path}"


def all_routes(api: Api) -> list[tuple[set[str], str]]:
    found = []
    for context in iter_route_contexts(api.app.routes):
        methods, path = getattr(context, "methods", None), getattr(context, "path", None)
        if path is not None and methods:
            found.append((set(methods), re.sub(r":\w+\}", "}", str(path))))
    return found


def test_every_route_is_known_here_and_needs_what_is_written_here(shared_api: Api) -> None:
    known = set().union(*NEEDS.values())
    assert set(routes(shared_api)) == known
    others = {path for _, path in all_routes(shared_api) if not path.startswith(("/v0.5", "/v0.6", "/api"))}
    assert others == OPEN
    clients = {role: shared_api.as_(shared_api.make_key("org_roles", role)) for role in RANK}  # type: ignore[arg-type]
    for needed, some in NEEDS.items():
        for method, path in some:
            url = url_of(re.sub(r"\{\w+\}", "nothing", path.replace("{part_number}", "1")))
            for base in ("", "/api"):
                anonymous = httpx2.request(method, f"{shared_api.url}{base}{url}")
                assert anonymous.status_code == 401, f"{method} {base}{url}"
                assert anonymous.headers["WWW-Authenticate"] == "Bearer"
            for role, client in clients.items():
                allowed = RANK.index(role) >= RANK.index(needed)
                status = client.request(method, url).status_code
                assert (status != 403) == allowed, f"{role}: {method} {url} is {status}"
                assert status < 500


def test_every_object_of_another_organisation_is_404_on_every_route(shared_api: Api) -> None:
    api = shared_api
    name = api.upload("secret-of-a.jsonl")
    job_id = api.create(name)
    training = api.create(pipeline="quick-train", pipeline_type="training", inputs={})
    pipeline = own_pipeline(api)
    upload = api.call("POST", "/files/uploads/initiate", json={"filename": "big.csv", "num_bytes": 10})
    key_id = api.get("/keys")["keys"][0]["id"]
    objects = {
        "fine_tuning_job_id": training.replace("job_", "ftj_"),
        "job_id": job_id, "pipeline_id": pipeline, "file_id": name, "upload_id": upload["upload_id"], "key_id": key_id,
        "output_id": "out_1", "part_number": 1,
    }  # fmt: skip
    theirs = api.as_(api.make_key("org_b", "admin"))
    tried = 0
    for method, path in routes(api):
        if "{" not in path:
            continue
        url = url_of(path.format(**objects))
        tried += 1
        assert theirs.request(method, url, json=BODIES.get(path)).status_code == 404, f"{method} {path}"
        if method == "GET" and "{output_id}" not in path:  # it has none yet
            mine = api.http.stream("GET", url)
            with mine as answer:
                assert answer.status_code == 200, f"{method} {path} of one's own"
    assert tried >= 20
    by_uid = api.get(f"/files/metadata/{name}")["file_uid"]
    assert theirs.get(f"/v0.5/files/metadata/{by_uid}").status_code == 404
    for path, items in (("/batch/jobs", "jobs"), ("/keys", "keys")):
        page = theirs.get(f"/v0.5{path}").json()
        assert all(one["org_id"] == "org_b" for one in page[items])
    assert theirs.get("/v0.5/batch/jobs", params={"q": job_id}).json()["total"] == 0
    assert theirs.get("/v0.6/fine_tuning/jobs").json()["total"] == 0
    assert theirs.get("/v0.5/files/metadata").json() == []
    assert theirs.post("/v0.5/batch/jobs", json=api.body(name)).status_code == 400
    assert api.get(f"/batch/jobs/{job_id}")["status"] == "PENDING"  # nothing of all that did anything


def own_pipeline(api: Api) -> str:
    found = api.get("/batch/registry/pipelines", limit=1000)["pipelines"]
    shout = next(p for p in found if p["pipeline_key"] == "shout")
    server_side = ("id", "components", "org_id", "created_at", "updated_at", "status")
    body = {k: v for k, v in shout.items() if k not in server_side}
    body |= {"pipeline_key": "of-org-a", "visibility": "org"}
    return str(api.call("POST", "/batch/registry/pipelines", 201, json=body)["id"])


# --- keys ---------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_revoked_at_once(shared_api: Api) -> None:
    api = shared_api
    made = api.call("POST", "/keys", 201, json={"name": "ci", "role": "reader"})
    assert made["key"].startswith("sk_")
    assert made["key"].endswith(made["last4"])
    listed = api.get("/keys", limit=1000)["keys"]
    assert made["key"] not in str(listed)
    client = api.as_(made["key"])
    assert client.get("/v0.5/batch/jobs").status_code == 200
    api.call("DELETE", f"/keys/{made['id']}")
    assert client.get("/v0.5/batch/jobs").status_code == 401
    api.call("DELETE", f"/keys/{made['id']}", 404)


def test_only_the_operator_makes_keys_for_other_organisations(shared_api: Api) -> None:
    api = shared_api
    assert api.http.post("/v0.5/keys", json={"org_id": "org_b"}).status_code == 403
    assert api.http.get("/v0.5/keys?org_id=org_b").status_code == 403
    assert api.call("POST", "/keys", 201, json={"org_id": "org_a"})["org_id"] == "org_a"
    operator = api.as_(api.make_key("org_operator", "admin"))
    made = operator.post("/v0.5/keys", json={"org_id": "org_new", "role": "admin"}).json()
    assert made["org_id"] == "org_new"
    assert operator.get("/v0.5/keys?org_id=org_new").json()["total"] == 1
    assert operator.delete(f"/v0.5/keys/{made['id']}").status_code == 200
    assert operator.post("/v0.5/keys", json={"org_id": "../etc"}).status_code == 422


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer sk_wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic eDp5"},
        {"Authorization": "Bearer " + "x" * 5000},
        {"Authorization": "Bearer sk_\u00e9"},
        {"X-Api-Key": "sk_x"},
    ],
)
def test_without_a_good_key_there_is_nothing(shared_api: Api, headers: dict[str, str]) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = httpx2.get(f"{shared_api.url}/v0.5/batch/jobs", headers=raw)
    assert answer.status_code == 401, answer.text
    assert answer.json()["errors"][0]["code"] == "unauthorized"


def test_a_revoked_or_foreign_key_is_no_use_in_a_signed_url_and_none_is_needed(shared_api: Api) -> None:
    api = shared_api
    upload = api.call("POST", "/files/uploads/initiate", json={"filename": "part.csv", "num_bytes": 4})
    url = upload["parts"][0]["url"]
    assert httpx2.put(url.replace("signature=", "signature=0"), content=b"a,b\n").status_code == 403
    assert httpx2.put(url, content=b"a,b\n", headers={"Authorization": "Bearer sk_wrong"}).status_code == 200


# --- limits -------------------------------------------------------------------------------------------


def test_bodies_headers_and_urls_have_their_limits(shared_api: Api) -> None:
    api = shared_api
    assert api.http.post("/v0.5/keys", content=b" " * (1 << 20) + b"{}").status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 18)

    streamed = api.http.post("/v0.5/batch/jobs", content=chunks(), headers={"Content-Type": "application/json"})
    assert streamed.status_code == 413
    assert streamed.json()["errors"][0]["code"] == "too_large"
    many = {f"X-{n}": "y" for n in range(120)}
    for answer in (
        api.http.get("/v0.5/batch/jobs", headers={"X-Large": "x" * 40_000}),
        api.http.get("/v0.5/batch/jobs", headers=many),
        api.http.get("/v0.5/batch/jobs", params={"q": "x" * 20_000}),
    ):
        assert answer.status_code == 431
        assert answer.json()["errors"][0]["code"] == "headers_too_large"


def test_who_asks_too_often_waits_and_others_do_not(tmp_path: Path) -> None:
    api = Api(tmp_path, {"rate_limit": 0.5})
    api.start()
    try:
        answers = [api.http.get("/v0.5/batch/jobs/queue") for _ in range(30)]
        assert answers[0].status_code == 200
        refused = next(a for a in answers if a.status_code == 429)
        assert refused.headers["Retry-After"] in ("1", "2")
        assert refused.json()["errors"][0]["code"] == "too_many_requests"
        other = api.as_(api.make_key("org_a", "reader"))
        assert other.get("/v0.5/batch/jobs/queue").status_code == 200
        strangers = [httpx2.get(f"{api.url}/v0.5/batch/jobs").status_code for _ in range(30)]
        assert {401, 429} == set(strangers)
    finally:
        api.close()


def test_every_answer_carries_the_headers_that_protect_a_browser(shared_api: Api) -> None:
    for path in ("/healthz", "/v0.5/batch/jobs", "/nothing", "/docs"):
        headers = shared_api.http.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_no_secret_and_no_signature_is_ever_logged(shared_api: Api) -> None:
    api = shared_api
    made = api.call("POST", "/keys", 201, json={"name": "secret one"})
    upload = api.call("POST", "/files/uploads/initiate", json={"filename": "logged.csv", "num_bytes": 4})
    url = upload["parts"][0]["url"]
    httpx2.put(url, content=b"a,b\n")
    api.as_(made["key"]).get("/v0.5/batch/jobs?q=sk_in_a_query")
    until(lambda: made["id"] in api.said)  # of the last request
    said = api.said
    assert "/v0.5/signed/parts" in said
    for hidden in (made["key"], api.key, re.findall(r"signature=([^&]+)", url)[0], "sk_in_a_query"):
        assert hidden not in said
