"""The wire contract, row by row, over real HTTP with nothing but a plain HTTP library, on both storage roots: one
whole service (API, controller, drivers on Ray) a root."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from typing import Any

import google_crc32c
import httpx2
import orjson
import pytest
from jobs_lab import Head, until
from service_lab import Service

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
JOB_FIELDS = {
    *("id", "org_id", "name", "pipeline_type", "pipeline_key", "pipeline_version", "status", "parameters", "priority"),
    *("retry_count", "preemption_count", "queue_position", "queue_depth", "input_progress", "created_at"),
    *("updated_at", "started_at", "completed_at", "failed_at", "cancelled_at", "error"),
}
RECORDS = [{"text": f"word {n}"} for n in range(40)]


@pytest.fixture(scope="module", params=["local", "s3"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ray_jobs: Head
) -> Iterator[Service]:
    storage, settings = None, {"JOS_WARM_DRIVERS": "1"}
    if request.param == "s3":
        settings |= request.getfixturevalue("seaweedfs").environment
        storage = "s3://jos/contract"
    one = Service(tmp_path_factory.mktemp("contract"), ray_jobs, storage, settings)
    try:
        one.start()
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def words(service: Service) -> str:
    return service.records("words.jsonl", RECORDS)


@pytest.fixture(scope="module")
def done(service: Service, words: str) -> str:
    """A job that completed."""
    job_id = service.create("shout", [words], name="the done one", parallelism=2)
    service.wait(job_id, "COMPLETED")
    return job_id


def errors(answer: httpx2.Response, status: int) -> list[dict[str, Any]]:
    """The error body, in the one shape that all have."""
    assert answer.status_code == status, answer.text
    found: list[dict[str, Any]] = answer.json()["errors"]
    for error in found:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", error["code"])
        assert error["message"]
        assert re.fullmatch(r"err-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", error["error_uid"])
    return found


# --- section 1: everywhere ---


@pytest.mark.parametrize("base", ["/v0.5", "/api/v0.5", "/api"])
def test_the_same_routes_answer_below_each_base_path(service: Service, done: str, base: str) -> None:
    assert service.http.get(f"{base}/batch/jobs/{done}").json()["id"] == done
    assert service.http.get(f"{base}/batch/registry/pipelines").json()["total"] > 0
    assert service.http.get(f"{base}/files/info").json()["num_files"] > 0


def test_a_call_without_a_key_or_with_a_wrong_one_is_401(service: Service) -> None:
    for headers in ({}, {"Authorization": "Bearer sk_wrong"}, {"Authorization": "Basic eDp5"}):
        errors(httpx2.get(f"{service.url}/v0.5/batch/jobs", headers=headers), 401)


def test_ids_times_and_lists_have_their_shape(service: Service, done: str) -> None:
    page = service.get("/batch/jobs")
    assert set(page) == {"total", "offset", "limit", "jobs"}
    assert (page["offset"], page["limit"]) == (0, 20)
    assert service.get("/batch/jobs", limit=100)["limit"] == 100
    job = service.job(done)
    assert set(job) >= JOB_FIELDS
    assert re.fullmatch(r"job_[0-9a-z]{26}", job["id"])
    assert job["org_id"].startswith("org_")
    for name in ("created_at", "updated_at", "started_at", "completed_at"):
        assert TIME.fullmatch(job[name])
    assert job["failed_at"] is None
    assert job["cancelled_at"] is None


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "offset=-1", "status=COMPLETE", "pipeline_type=x"]
)
def test_a_bad_parameter_is_400(service: Service, query: str) -> None:
    errors(service.http.get(f"/v0.5/batch/jobs?{query}"), 400)


def test_an_unknown_route_object_or_method_has_the_same_error_shape(service: Service) -> None:
    errors(service.http.get("/v0.5/nothing/here"), 404)
    errors(service.http.get("/v0.5/batch/jobs/job_00000000000000000000000000"), 404)
    errors(service.http.put("/v0.5/batch/jobs"), 405)


# --- section 2: files (tests/contract/test_files.py has the fine print) ---


def test_a_file_is_uploaded_described_read_and_deleted(service: Service) -> None:
    data = b"a,b\n1,2\n3,4\n"
    answer = service.call("POST", "/files", files={"file": ("small.csv", data, "text/csv")})
    assert answer["is_valid"] is True
    assert answer["file_id"] == "small.csv"
    assert re.fullmatch(r"fil_[0-9a-z]{26}", answer["file_uid"])
    record = service.get("/files/metadata/small.csv")
    assert record["num_bytes"] == len(data)
    attributes = record["file_attributes"]
    assert (attributes["num_rows"], attributes["num_columns"], attributes["column_headers"]) == (2, 2, ["a", "b"])
    part = service.http.get("/v0.5/files/download/small.csv", headers={"Range": "bytes=4-6"})
    assert (part.status_code, part.content) == (206, b"1,2")
    assert service.http.get("/v0.5/files/download/small.csv").content == data
    again = service.call(
        "POST", "/files/base64", files={"file": ("small.csv", base64.b64encode(b"c\n1\n"), "text/csv")}
    )
    assert again["file_uid"] != answer["file_uid"]
    assert service.http.get("/v0.5/files/download/small.csv").content == b"c\n1\n"
    assert "small.csv" in [r["file_id"] for r in service.get("/files/metadata")]
    paged = service.http.get("/api/files/metadata", params={"limit": 1}).json()
    assert set(paged) == {"data", "has_more", "next_cursor", "prev_cursor"}
    assert paged["data"][0]["file_id"] == "small.csv"  # newest first
    assert isinstance(service.get("/files/info")["last_updated"], float)
    assert service.call("DELETE", "/files/delete/small.csv")["is_valid"] is True
    errors(service.http.get("/v0.5/files/download/small.csv"), 404)


def test_a_large_file_goes_up_in_parts_and_through_no_hands(service: Service) -> None:
    data = bytes(range(256)) * (40 << 12)  # 40 MiB
    body = {"filename": "large.csv", "file_type": "text/csv", "num_bytes": len(data)}
    upload = service.call("POST", "/files/uploads/initiate", json=body)
    assert upload["strategy"] == "multipart"
    assert upload["num_parts"] == len(upload["parts"]) > 1
    tokens = []
    for part in upload["parts"]:
        sent = httpx2.put(part["url"], content=data[part["offset"] : part["offset"] + part["length"]], timeout=60)
        assert sent.status_code == 200, sent.text
        tokens.append({"part_number": part["part_number"], "part_token": sent.headers["ETag"]})
    path = f"/files/uploads/{upload['upload_id']}"
    assert service.call("POST", f"{path}/parts/checkpoint", json={"parts": tokens[:1]})["num_checkpointed"] == 1
    resumed = service.call("POST", "/files/uploads/initiate", json={**body, "resume_if_started": True})
    assert resumed["is_resume"] is True
    assert resumed["upload_id"] == upload["upload_id"]
    assert [p["part_number"] for p in resumed["parts"]] == list(range(2, upload["num_parts"] + 1))
    checksum = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
    done = service.call("POST", f"{path}/complete", json={"parts": tokens[1:], "integrity_checksum": checksum})
    assert (done["num_bytes"], done["file_status"]) == (len(data), "Registered")
    assert service.http.get("/v0.5/files/download/large.csv").content == data
    errors(service.http.post(f"/v0.5{path}/complete", json={"parts": []}), 409)
    errors(service.http.post("/v0.5/files/uploads/initiate", json=body), 409)


# --- section 3: jobs ---


def test_a_new_job_is_pending_and_whole(service: Service, words: str) -> None:
    body = {
        "name": "first",
        "pipeline_type": "batch",
        "pipeline_key": "shout",
        "inputs": {"worker.data": [{"file_id": words, "metadata": {"shift": "night"}}]},
        "parameters": {"worker": {"parallelism": 1, "config": {}}},
    }
    answer = service.http.post("/v0.5/batch/jobs", json=body)
    assert answer.status_code in (200, 201)
    job = answer.json()
    assert set(job) >= JOB_FIELDS
    assert job["status"] == "PENDING"
    assert job["queue_position"] >= 1
    assert job["queue_depth"] >= job["queue_position"]
    assert set(job["input_progress"]) == {"pending", "processing", "completed", "failed"}
    assert job["parameters"]["worker"]["parallelism"] == 1
    ended = service.wait(job["id"])
    assert ended["status"] == "COMPLETED"
    assert ended["queue_position"] is None
    assert ended["input_progress"] == {"pending": 0, "processing": 0, "completed": 1, "failed": 0}
    kinds = [e["event_type"] for e in service.events(job["id"])]
    wanted = ["job.created", "job.admitted", "job.started", "input_started", "job.completed"]
    assert [k for k in kinds if k in wanted] == wanted


def test_what_is_wrong_with_a_new_job_is_told_at_once(service: Service, words: str) -> None:
    def post(**changed: Any) -> httpx2.Response:
        body = {"name": "x", "pipeline_type": "batch", "pipeline_key": "shout"}
        body |= {"inputs": {"worker.data": [{"file_id": words}]}, "parameters": {}}
        return service.http.post("/v0.5/batch/jobs", json={**body, **changed})

    (unknown,) = errors(post(pipeline_key="no-such", pipeline_version="9.9.9"), 404)
    assert unknown["code"] == "not_found"
    assert "no-such" in unknown["message"]
    assert "9.9.9" in unknown["message"]
    text = str(errors(post(inputs={"worker.data": [{"file_id": "gone-1.jsonl"}, {"file_id": "gone-2.jsonl"}]}), 400))
    assert "gone-1.jsonl" in text
    assert "gone-2.jsonl" in text
    wrong = errors(post(parameters={"worker": {"parallelism": 0, "config": {"nonsense": 1}}}), 422)
    assert len(wrong) >= 2
    assert all(e["path"].startswith("$.parameters.worker") for e in wrong)
    errors(post(inputs={}), 422)
    errors(post(pipeline_type="training"), 422)
    errors(service.http.post("/v0.5/batch/jobs", json={"name": "x"}), 422)


def test_the_same_idempotency_key_gives_the_same_job(service: Service, words: str) -> None:
    body = {"name": "once", "pipeline_type": "batch", "pipeline_key": "shout"}
    body |= {"inputs": {"worker.data": [{"file_id": words}]}}
    headers = {"Idempotency-Key": f"key-{time.time_ns()}"}
    first = service.call("POST", "/batch/jobs", json=body, headers=headers)
    assert service.call("POST", "/batch/jobs", json=body, headers=headers)["id"] == first["id"]
    other = service.http.post("/v0.5/batch/jobs", json={**body, "name": "twice"}, headers=headers)
    assert errors(other, 409)[0]["code"] == "conflict"
    service.wait(first["id"])


def test_jobs_are_listed_newest_first_and_filtered(service: Service, done: str) -> None:
    created = [j["created_at"] for j in service.get("/batch/jobs", limit=1000)["jobs"]]
    assert created == sorted(created, reverse=True)
    assert done in [j["id"] for j in service.get("/batch/jobs", status="COMPLETED", limit=1000)["jobs"]]
    assert done not in [j["id"] for j in service.get("/batch/jobs", status="FAILED", limit=1000)["jobs"]]
    assert done not in [j["id"] for j in service.get("/batch/jobs", pipeline_type="training", limit=1000)["jobs"]]
    assert [j["id"] for j in service.get("/batch/jobs", q="THE DONE")["jobs"]] == [done]
    assert [j["id"] for j in service.get("/batch/jobs", q=done)["jobs"]] == [done]


def test_a_running_job_is_cancelled_at_once_retried_and_deleted(service: Service, words: str) -> None:
    job_id = service.create("shout", [words], seconds=0.1, span_records=1)
    service.wait_for(job_id, "input_started")
    answer = service.call("POST", f"/batch/jobs/{job_id}/cancel")
    assert (answer["id"], answer["status"]) == (job_id, "CANCELLED")
    assert TIME.fullmatch(answer["cancelled_at"])
    assert service.job(job_id)["status"] == "CANCELLED"
    errors(service.http.post(f"/v0.5/batch/jobs/{job_id}/cancel"), 409)
    retried = service.call("POST", f"/batch/jobs/{job_id}/retry")
    assert retried == {"id": job_id, "status": "PENDING", "retry_count": 1}
    errors(service.http.post(f"/v0.5/batch/jobs/{job_id}/retry"), 409)
    errors(service.http.delete(f"/v0.5/batch/jobs/{job_id}"), 409)
    assert service.wait(job_id)["status"] == "COMPLETED"
    (content,) = service.outputs(job_id).values()
    assert [orjson.loads(line)["text"] for line in content.splitlines()] == [r["text"].upper() for r in RECORDS]
    errors(service.http.post(f"/v0.5/batch/jobs/{job_id}/retry"), 409)
    assert service.call("DELETE", f"/batch/jobs/{job_id}") == {"id": job_id, "deleted": True}
    for path in ("", "/events", "/inputs", "/outputs", "/progress"):
        errors(service.http.get(f"/v0.5/batch/jobs/{job_id}{path}"), 404)


def test_the_queue_counts_waiting_jobs_by_pipeline_type(service: Service) -> None:
    queues = service.get("/batch/jobs/queue")["queues"]
    assert {q["pipeline_type"] for q in queues} == {"batch", "training"}
    assert all(isinstance(q["depth"], int) for q in queues)


def test_a_bad_file_fails_alone(service: Service, words: str) -> None:
    bad = service.upload("bad.jsonl", b"this is no JSON\n", "application/x-ndjson")
    job_id = service.create("shout", [words, bad])
    job = service.wait(job_id)
    assert job["status"] == "COMPLETED"
    assert (job["input_progress"]["completed"], job["input_progress"]["failed"]) == (1, 1)
    (failed,) = service.get(f"/batch/jobs/{job_id}/inputs", status="failed")["inputs"]
    assert failed["file_id"] == "bad.jsonl"
    assert failed["error_message"]
    assert service.get(f"/batch/jobs/{job_id}/events", level="ERROR")["total"] >= 1


def test_a_job_in_which_everything_failed_is_failed_and_says_why(service: Service) -> None:
    bad = service.upload("all-bad.jsonl", b"no JSON\nno JSON either\n", "application/x-ndjson")
    job = service.wait(service.create("shout", [bad]))
    assert job["status"] == "FAILED"
    assert job["failed_at"]
    assert job["error"]["code"]
    assert job["error"]["message"]


# --- section 4: events and progress ---


def test_events_are_numbered_and_filtered(service: Service, done: str) -> None:
    page = service.get(f"/batch/jobs/{done}/events")
    assert set(page) == {"job_id", "total", "offset", "limit", "events"}
    ids = [e["id"] for e in page["events"]]
    assert ids == sorted(ids, reverse=True)
    for event in service.events(done):
        assert isinstance(event["level"], str)
        assert isinstance(event["message"], str)
        assert event["level"] in ("INFO", "WARN", "ERROR", "SUCCESS", "FAILED")
        assert TIME.fullmatch(event["created_at"])
    (created,) = service.get(f"/batch/jobs/{done}/events", event_type="job.created")["events"]
    assert created["id"] == 1
    success = service.get(f"/batch/jobs/{done}/events", level="SUCCESS")["events"]
    assert {e["level"] for e in success} == {"SUCCESS"}
    (inp,) = service.get(f"/batch/jobs/{done}/inputs")["inputs"]
    of_input = service.get(f"/batch/jobs/{done}/events", input_id=inp["id"])["events"]
    assert {e["input_id"] for e in of_input} == {inp["id"]}
    errors(service.http.get(f"/v0.5/batch/jobs/{done}/events?level=LOUD"), 400)


def test_progress_counts_tasks(service: Service, done: str) -> None:
    page = service.get(f"/batch/jobs/{done}/progress")
    assert set(page) == {"job_id", "total", "offset", "limit", "entries"}
    latest = page["entries"][-1]
    assert latest["kind"] == "inference"
    assert latest["metrics"]["items_processed"] == latest["metrics"]["items_total"] == len(RECORDS)
    assert latest["metrics"]["percent_complete"] == 100
    assert service.get(f"/batch/jobs/{done}/progress", kind="training")["total"] == 0


def frames(answer: httpx2.Response) -> Iterator[dict[str, str]]:
    frame: dict[str, str] = {}
    for line in answer.iter_lines():
        if not line and frame:
            yield frame
            frame = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(":")
            frame[name] = value.strip()


def test_the_stream_resumes_with_nothing_missed_or_repeated(service: Service, done: str) -> None:
    def read(last: str | None, most: int) -> list[dict[str, str]]:
        headers = {"Last-Event-ID": last} if last else {}
        found = []
        with service.http.stream("GET", f"/v0.5/batch/jobs/{done}/stream", headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for frame in frames(answer):
                if "id" in frame and frame.get("event") in ("event", "progress"):
                    found.append(frame)
                if len(found) == most or frame.get("event") == "end":
                    return found
        return found

    whole = read(None, 10_000)
    numbers = [orjson.loads(f["data"])["id"] for f in whole if f["event"] == "event"]
    assert numbers == [e["id"] for e in service.events(done)]
    assert any(f["event"] == "progress" for f in whole)
    pieces: list[dict[str, str]] = []
    while len(pieces) < len(whole):
        piece = read(pieces[-1]["id"] if pieces else None, 3)
        assert piece
        pieces += piece
    assert [(f["event"], f["data"]) for f in pieces] == [(f["event"], f["data"]) for f in whole]


# --- section 5: inputs and outputs ---


def test_inputs_are_told_with_their_state(service: Service, done: str, words: str) -> None:
    page = service.get(f"/batch/jobs/{done}/inputs")
    (one,) = page["inputs"]
    assert set(one) >= {
        *("id", "job_id", "port_name", "file_id", "data", "status", "error_message", "created_at", "completed_at")
    }
    assert (one["port_name"], one["file_id"], one["status"], one["job_id"]) == ("worker.data", words, "completed", done)
    data = {"ref", "filename", "file_type", "file_extension", "num_bytes", "metadata", "file_tags", "file_attributes"}
    assert set(one["data"]) >= data
    assert service.get(f"/batch/jobs/{done}/inputs", status="pending")["total"] == 0
    assert service.get(f"/batch/jobs/{done}/inputs", port_name="worker.other")["total"] == 0
    (item,) = service.get(f"/batch/jobs/{done}/inputs/progress")["items"]
    assert set(item) >= {"input", "latest_progress", "step"}
    assert item["step"] == 1
    assert (
        service.http.get(f"/v0.5/batch/jobs/{done}/inputs/progress?status=completed&status=failed").json()["total"] == 1
    )
    counts = service.get(f"/batch/jobs/{done}/inputs/progress/counts")
    assert counts == {"job_id": done, "pending": 0, "processing": 0, "completed": 1, "failed": 0}


def test_traces_are_cumulative_and_cached(service: Service, done: str) -> None:
    path = f"/v0.5/batch/jobs/{done}/inputs/progress/traces"
    answer = service.http.get(path, params={"buckets": 5})
    traces = answer.json()
    assert set(traces) >= {"job_id", "bucket_seconds", "latest_event_at", "points"}
    last = traces["points"][-1]
    assert last["files"] == {"completed": 1, "failed": 0}
    assert last["items"]["inference"] == {"success": len(RECORDS), "failed": 0}
    counts = [p["items"].get("inference", {"success": 0})["success"] for p in traces["points"]]
    assert counts == sorted(counts)
    again = service.http.get(path, params={"buckets": 5}, headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304


def test_outputs_are_links_that_need_no_key(service: Service, done: str) -> None:
    page = service.get(f"/batch/jobs/{done}/outputs")
    (one,) = page["outputs"]
    assert set(one) >= {*("id", "job_id", "port_name", "input_id", "input_file_id", "data", "expires_at", "created_at")}
    assert one["data"]["ref"].startswith("http")
    assert "/" not in one["data"]["filename"]
    content = httpx2.get(one["data"]["ref"]).content
    assert len(content) == one["data"]["num_bytes"]
    assert [orjson.loads(line)["text"] for line in content.splitlines()] == [r["text"].upper() for r in RECORDS]
    assert httpx2.get(one["data"]["ref"], headers={"Range": "bytes=0-4"}).content == content[:5]
    assert service.get(f"/batch/jobs/{done}/outputs", port_name="worker.none")["total"] == 0
    assert service.get(f"/batch/jobs/{done}/outputs", input_id=one["input_id"])["total"] == 1
    changed = one["data"]["ref"][:-4] + ("0000" if one["data"]["ref"][-4:] != "0000" else "1111")
    assert httpx2.get(changed).status_code in (401, 403, 404)


def test_outputs_appear_while_the_job_runs(service: Service, words: str) -> None:
    quick = service.records("quick.jsonl", RECORDS[:2])
    slow = service.records("slow.jsonl", [{"text": "slow"}] * 60)
    job_id = service.create("shout", [quick, slow], seconds=0.2, span_records=1)

    def early() -> bool:
        return service.get(f"/batch/jobs/{job_id}/outputs")["total"] > 0 and service.job(job_id)["status"] == "RUNNING"

    until(early, 60, 0.05)
    service.call("POST", f"/batch/jobs/{job_id}/cancel")


def test_a_training_job_leaves_checkpoints(service: Service) -> None:
    body = {"name": "t", "pipeline_type": "training", "pipeline_key": "quick-train", "inputs": {}, "parameters": {}}
    job_id = service.call("POST", "/batch/jobs", json=body)["id"]
    assert service.wait(job_id)["status"] == "COMPLETED"
    page = service.get(f"/batch/jobs/{job_id}/checkpoints")
    assert page["total"] >= 1
    assert set(page["checkpoints"][0]) >= {"id", "name", "step", "metrics", "created_at"}
    assert re.fullmatch(r"ckp_[0-9a-z]{26}", page["checkpoints"][0]["id"])
    assert service.get(f"/batch/jobs/{job_id}/progress", kind="training")["total"] >= 1


# --- section 6: registry ---


def test_the_registry_tells_all_about_a_pipeline(service: Service) -> None:
    found = service.get("/batch/registry/pipelines", pipeline_type="batch", status="published", limit=1000)["pipelines"]
    one = next(p for p in found if p["pipeline_key"] == "machine-state-classification")
    assert set(one) >= {
        *("id", "pipeline_key", "pipeline_version", "name", "description", "pipeline_type", "components", "inputs"),
        *("default_config", "config_schema", "user_config_schema", "edges", "outputs", "retry_policy", "visibility"),
        *("org_id", "status", "created_at", "updated_at", "image", "command", "resources", "queue", "timeouts"),
    }
    assert one["id"].startswith("ppl_")
    assert one["components"]["worker"].startswith("cmp_")
    assert one["inputs"]["worker.n_shots"]["mode"] == "n_shot_file_list"
    assert service.get(f"/batch/registry/pipelines/{one['id']}") == one
    schema = service.get(f"/batch/registry/pipelines/{one['id']}/schema")
    assert set(schema) >= {
        "id",
        "pipeline_key",
        "pipeline_version",
        "user_schema",
        "config_schema",
        "inputs",
        "outputs",
    }
    errors(service.http.get("/v0.5/batch/registry/pipelines/ppl_00000000000000000000000000"), 404)


def test_an_administrator_makes_publishes_and_retires_a_pipeline(service: Service) -> None:
    found = service.get("/batch/registry/pipelines", limit=1000)["pipelines"]
    shout = next(p for p in found if p["pipeline_key"] == "shout")
    fields = ("name", "description", "pipeline_type", "default_config", "config_schema", "user_config_schema")
    body = {f: shout[f] for f in (*fields, "inputs", "outputs", "edges")}
    body |= {
        "pipeline_key": "our-shout",
        "pipeline_version": "1.0.0",
        "worker": "lab_workers:Shout",
        "visibility": "org",
    }
    made = service.call("POST", "/batch/registry/pipelines", json=body)
    assert made["status"] == "draft"
    with service.as_(service.make_key("org_first", "user")) as user:
        assert user.post("/v0.5/batch/registry/pipelines", json=body).status_code == 403
    published = service.call("POST", f"/batch/registry/pipelines/{made['id']}/publish")
    assert published["status"] == "published"
    words = service.records("for-ours.jsonl", RECORDS[:3])
    assert service.wait(service.create("our-shout", [words]))["status"] == "COMPLETED"
    with service.as_(service.make_key("org_other", "admin")) as other:
        assert other.get(f"/v0.5/batch/registry/pipelines/{made['id']}").status_code == 404
    assert service.call("POST", f"/batch/registry/pipelines/{made['id']}/deactivate")["status"] == "deactivated"
    errors(service.http.post("/v0.5/batch/registry/pipelines", json=body), 409)
    service.call("DELETE", f"/batch/registry/pipelines/{made['id']}")
