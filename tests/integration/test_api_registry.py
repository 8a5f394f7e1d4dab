"""The registry over HTTP: what is there, and what administrators add to it."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from api_lab import Api

PATH = "/batch/registry/pipelines"


def draft(api: Api, key: str, version: str = "1.0.0", **changed: Any) -> dict[str, Any]:
    """A variation of the platform's `shout`, as an administrator would send it."""
    shout = next(p for p in api.get(PATH, limit=1000)["pipelines"] if p["pipeline_key"] == "shout")
    server_side = ("id", "components", "org_id", "created_at", "updated_at", "status")
    body = {name: value for name, value in shout.items() if name not in server_side}
    return {**body, "pipeline_key": key, "pipeline_version": version, "visibility": "org", **changed}


def error(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()["errors"][0]
    return found


def test_platform_pipelines_are_listed_and_described(shared_api: Api) -> None:
    api = shared_api
    page = api.get(PATH, limit=1)
    assert (len(page["pipelines"]), page["limit"]) == (1, 1)
    assert page["total"] > 5
    training = api.get(PATH, pipeline_type="training", limit=1000)["pipelines"]
    assert {p["pipeline_type"] for p in training} == {"training"}
    assert api.get(PATH, visibility="platform", status="published")["total"] > 0
    assert api.get(PATH, status="deleted")["total"] == 0
    one = next(p for p in api.get(PATH, limit=1000)["pipelines"] if p["pipeline_key"] == "machine-state-classification")
    assert (one["visibility"], one["org_id"], one["status"]) == ("platform", None, "published")
    assert one["components"]["worker"].startswith("cmp_")
    assert one["inputs"]["worker.n_shots"]["mode"] == "n_shot_file_list"
    assert api.get(f"{PATH}/{one['id']}") == one
    schema = api.get(f"{PATH}/{one['id']}/schema")
    assert schema["user_schema"] == one["user_config_schema"]
    assert set(schema) == {
        *("id", "pipeline_key", "pipeline_version", "user_schema", "config_schema", "inputs", "outputs")
    }
    error(api.http.get(f"/v0.5{PATH}/ppl_00000000000000000000000000"), 404)


def test_a_draft_is_created_changed_published_and_retired(shared_api: Api) -> None:
    api = shared_api
    words = api.upload("words.jsonl")
    made = api.call("POST", PATH, 201, json=draft(api, "ours"))
    assert (made["status"], made["visibility"], made["org_id"]) == ("draft", "org", "org_a")
    error(api.http.post("/v0.5/batch/jobs", json=api.body(words, pipeline="ours")), 404)  # a draft must be named
    api.create(words, pipeline="ours", pipeline_version="1.0.0")
    changed = api.call("POST", PATH, 201, json=draft(api, "ours", name="Another name"))
    assert (changed["id"], changed["name"], changed["created_at"]) == (made["id"], "Another name", made["created_at"])
    path = f"{PATH}/{made['id']}"
    assert api.call("POST", f"{path}/publish")["status"] == "published"
    assert api.call("POST", f"{path}/publish")["status"] == "published"  # again: no change
    api.create(words, pipeline="ours")
    assert error(api.http.post(f"/v0.5{PATH}", json=draft(api, "ours")), 409)["code"] == "conflict"
    newer = api.call("POST", PATH, 201, json=draft(api, "ours", "1.10.0"))
    api.call("POST", f"{PATH}/{newer['id']}/publish")
    job = api.get(f"/batch/jobs/{api.create(words, pipeline='ours')}")
    assert job["pipeline_version"] == "1.10.0"
    assert [p["pipeline_version"] for p in api.get(PATH, visibility="org")["pipelines"]] == ["1.10.0", "1.0.0"]
    api.call("POST", f"{PATH}/{newer['id']}/deactivate")
    job = api.get(f"/batch/jobs/{api.create(words, pipeline='ours')}")
    assert job["pipeline_version"] == "1.0.0"
    named = api.body(words, pipeline="ours", pipeline_version="1.10.0")
    assert "deactivated" in error(api.http.post("/v0.5/batch/jobs", json=named), 409)["message"]
    assert api.call("DELETE", path) == {"id": made["id"], "deleted": True}
    error(api.http.get(f"/v0.5{path}"), 404)
    error(api.http.post("/v0.5/batch/jobs", json=api.body(words, pipeline="ours", pipeline_version="1.0.0")), 404)
    error(api.http.post(f"/v0.5{PATH}", json=draft(api, "ours")), 409)  # a published version's name stays taken
    unused = api.call("POST", PATH, 201, json=draft(api, "ours", "2.0.0"))
    api.call("DELETE", f"{PATH}/{unused['id']}")
    api.call("POST", PATH, 201, json=draft(api, "ours", "2.0.0"))  # a draft's is free again


def test_another_organisation_sees_none_of_it(shared_api: Api) -> None:
    api = shared_api
    made = api.call("POST", PATH, 201, json=draft(api, "private"))
    other = api.as_(api.make_key("org_b", "admin"))
    for method, route in (
        ("GET", ""),
        ("GET", "/schema"),
        ("POST", "/publish"),
        ("POST", "/deactivate"),
        ("DELETE", ""),
    ):
        error(other.request(method, f"/v0.5{PATH}/{made['id']}{route}"), 404)
    assert other.get(f"/v0.5{PATH}?visibility=org").json()["total"] == 0
    theirs = other.post(f"/v0.5{PATH}", json=draft(api, "private")).json()  # the same name is free for them
    assert theirs["id"] != made["id"]


def test_new_code_is_the_operators_to_bring_in(shared_api: Api) -> None:
    api = shared_api
    operator = api.as_(api.make_key("org_operator", "admin"))
    for changed in (
        {"worker": "subprocess:Popen"},
        {"image": "evil:1"},
        {"command": ["sh"]},
        {"visibility": "platform"},
    ):
        error(api.http.post(f"/v0.5{PATH}", json=draft(api, "new-code", **changed)), 403)
    body = draft(api, "new-code", visibility="platform", worker="our_workers:New", image="ours:1")
    made = operator.post(f"/v0.5{PATH}", json=body)
    assert (made.status_code, made.json()["visibility"], made.json()["org_id"]) == (201, "platform", None)
    path = f"/v0.5{PATH}/{made.json()['id']}"
    error(api.http.post(f"{path}/publish"), 403)
    assert operator.post(f"{path}/publish").status_code == 200
    assert api.get(f"{PATH}/{made.json()['id']}")["status"] == "published"  # everybody sees it


def test_a_pipeline_does_not_lift_its_jobs_above_what_its_maker_may_ask_for(shared_api: Api) -> None:
    error(shared_api.http.post(f"/v0.5{PATH}", json=draft(shared_api, "pushy", priority=1001)), 403)
    assert shared_api.http.post(f"/v0.5{PATH}", json=draft(shared_api, "modest", priority=1000)).status_code == 201


def test_schemas_of_strangers_cannot_tie_the_service_up(shared_api: Api) -> None:
    """A reference to itself has no end, one to two references doubles, and one to elsewhere would be fetched."""

    def made(key: str, schema: Any, client: Any = shared_api.http) -> Any:
        schemas = {"config_schema": {"worker": schema}, "user_config_schema": {"worker": schema}}
        return client.post(f"/v0.5{PATH}", json=draft(shared_api, key, **schemas))

    itself = {"type": "object", "properties": {"a": {"$ref": "#"}}}
    error(made("bomb", itself), 403)
    operator = shared_api.as_(shared_api.make_key("org_operator", "admin"))
    assert made("trusted", itself, operator).status_code == 201
    for schema in ({"$ref": "http://127.0.0.1:1/s"}, {"$ref": "file:///etc/passwd"}):
        assert made("remote", schema, operator).status_code == 422
    assert made("odd", {"$schema": 7}).status_code == 422
    named: dict[str, Any] = {"span_records": {}, "seconds": {}}
    patterns = {"properties": named, "patternProperties": {r"^(\p{L}+)+$": {}}, "additionalProperties": False}
    pipeline = made("patterns", patterns)
    assert pipeline.status_code == 201, pipeline.text
    body = shared_api.body(shared_api.upload("pattern.jsonl"), pipeline="patterns", pipeline_version="1.0.0")
    body["parameters"] = {"worker": {"config": {"a" * 60 + "!": 1}}}
    error(shared_api.http.post("/v0.5/batch/jobs", json=body), 422)
    body["parameters"] = {"worker": {"config": {"schön": 1}}}
    assert shared_api.http.post("/v0.5/batch/jobs", json=body).status_code == 201


def test_templates_in_folders_are_changed_there(shared_api: Api) -> None:
    api = shared_api
    operator = api.as_(api.make_key("org_operator", "admin"))
    shout = next(p for p in api.get(PATH, limit=1000)["pipelines"] if p["pipeline_key"] == "shout")
    for client in (api.http, operator):
        assert "folder" in error(client.post(f"/v0.5{PATH}/{shout['id']}/deactivate"), 409)["message"]
        error(client.delete(f"/v0.5{PATH}/{shout['id']}"), 409)
    error(operator.post(f"/v0.5{PATH}", json=draft(api, "shout", visibility="platform")), 409)


def test_a_pipeline_with_mistakes_is_told_all_of_them(shared_api: Api) -> None:
    api = shared_api
    body = draft(api, "wrong", worker="nonsense", inputs={}, timeouts={"task": 5000})
    body["default_config"] = {"worker": {"parallelism": 0, "config": {}}}
    answer = api.http.post(f"/v0.5{PATH}", json=body)
    assert answer.status_code == 422, answer.text
    paths = {one["path"] for one in answer.json()["errors"]}
    assert paths >= {"$.worker", "$.inputs", "$.default_config.worker.parallelism", "$.timeouts.task"}
    shape = api.http.post(f"/v0.5{PATH}", json={**draft(api, "Wrong Key", "one"), "colour": "red"})
    assert {one["path"] for one in shape.json()["errors"]} == {"$.pipeline_key", "$.pipeline_version", "$.colour"}


@pytest.mark.parametrize("role", ["reader", "user"])
def test_only_administrators_change_the_registry(shared_api: Api, role: Any) -> None:
    client = shared_api.as_(shared_api.make_key("org_a", role))
    error(client.post(f"/v0.5{PATH}", json=draft(shared_api, "mine")), 403)
    assert client.get(f"/v0.5{PATH}").status_code == 200
