"""Jobs over HTTP, from their creation to their deletion, without a controller: what it and a driver would say is said
by the test."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from api_lab import Api, now
from jobs_lab import until

from jos import removal
from jos.api.limits import Turns
from jos.cli_where import There
from jos.client.client import Client
from jos.core.commands import Admit, Exited, Hold, Started, Waits
from jos.core.model import (
    Checkpoint,
    EventDraft,
    InputState,
    InputStatus,
    JobFailure,
    Json,
    Level,
    Output,
    ProgressDraft,
    job_folder,
)
from jos.core.queues import QueueConfig
from jos.files.service import Files


def errors(answer: httpx2.Response, status: int) -> list[Json]:
    assert answer.status_code == status, answer.text
    found: list[Json] = answer.json()["errors"]
    return found


def inputs_of(api: Api, job_id: str) -> list[Json]:
    found: list[Json] = api.get(f"/batch/jobs/{job_id}/inputs", limit=1000)["inputs"]
    return found


def state(input_id: str, status: InputStatus, **fields: Any) -> InputState:
    return InputState(input_id=input_id, status=status, **fields)


def progress(input_id: str, done: int, total: int, failed: int = 0) -> ProgressDraft:
    metrics = {"percent_complete": 100 * done / total, "items_processed": done, "items_total": total}
    metrics |= {"success": done - failed, "failed": failed}
    return ProgressDraft(kind="inference", step=done, metrics=metrics, input_id=input_id, created_at=now())


# --- creation -----------------------------------------------------------------------------------------


def test_a_job_is_written_down_whole_and_waits_its_turn(api: Api) -> None:
    first, second = api.upload("a.jsonl"), api.upload("b.jsonl")
    uid = api.get("/files/metadata/b.jsonl")["file_uid"]
    ahead = api.create(first)
    body = api.body(first, uid, name="two files")
    body["inputs"]["worker.data"][0]["metadata"] = {"shift": "night"}
    job = api.call("POST", "/batch/jobs", 201, json=body)
    assert (job["status"], job["org_id"], job["name"], job["queue"]) == ("PENDING", "org_a", "two files", "default")
    assert (job["queue_position"], job["queue_depth"]) == (2, 2)
    assert job["waiting"]["code"] == "WaitingForCapacity"
    assert job["input_progress"] == {"pending": 2, "processing": 0, "completed": 0, "failed": 0}
    assert job["parameters"]["worker"]["config"]["span_records"] == 16  # the pipeline's default
    one, two = inputs_of(api, job["id"])
    assert (one["file_id"], one["data"]["metadata"], one["status"]) == ("a.jsonl", {"shift": "night"}, "pending")
    assert two["file_id"] == second
    spec = orjson.loads((api.settings.home_dir / "storage" / job_folder("org_a", job["id"]) / "job.json").read_bytes())
    assert Path(spec["inputs"][0]["url"]).read_bytes() == b'{"text": "a"}\n'
    assert api.get("/batch/jobs/queue")["queues"] == [
        {"pipeline_type": "batch", "depth": 2},
        {"pipeline_type": "training", "depth": 0},
    ]
    api.cancel(ahead)
    assert api.get(f"/batch/jobs/{job['id']}")["queue_position"] == 1


def test_what_is_wrong_is_told_at_once_and_leaves_nothing_behind(api: Api) -> None:
    words = api.upload("words.jsonl")

    def post(**changed: Any) -> httpx2.Response:
        return api.http.post("/v0.5/batch/jobs", json={**api.body(words), **changed})

    (unknown,) = errors(post(pipeline_key="shot", pipeline_version="9.9.9"), 404)
    assert (unknown["code"], '"shot", version "9.9.9"' in unknown["message"]) == ("not_found", True)
    assert unknown["suggestion"] == 'Did you mean "shout"?'
    assert "no version" in errors(post(pipeline_version="9.9.9"), 404)[0]["message"]
    missing = [{"file_id": "gone-1"}, {"file_id": words}, {"file_id": "gone-2"}]
    (gone,) = errors(post(inputs={"worker.data": missing}), 400)
    assert "gone-1, gone-2" in gone["message"]
    wrong = errors(post(parameters={"worker": {"parallelism": 0, "config": {"nonsense": 1}}}), 422)
    assert [e["path"] for e in wrong] == ["$.parameters.worker.parallelism", "$.parameters.worker.config.nonsense"]
    (port,) = errors(post(inputs={"worker.dta": [], "worker.data": [{"file_id": words}]}), 422)
    assert port["path"] == '$.inputs["worker.dta"]'
    (deep,) = errors(post(inputs={"worker.data": [{"file_id": words}, {"file_id": 7}]}), 422)
    assert deep["path"] == '$.inputs["worker.data"][1].file_id'
    assert {e["path"] for e in errors(api.http.post("/v0.5/batch/jobs", json={}), 422)} == {
        "$.name",
        "$.pipeline_type",
        "$.pipeline_key",
    }
    assert errors(post(priorty=1), 422)[0]["path"] == "$.priorty"
    assert errors(post(inputs={}), 422)
    assert errors(post(pipeline_type="training"), 422)
    assert api.get("/batch/jobs")["total"] == 0
    assert not (api.settings.home_dir / "storage" / "org_a" / "jobs").exists()


def test_what_breaks_the_shape_hides_nothing_that_the_pipeline_refuses(api: Api) -> None:
    words = api.upload("words.jsonl")

    def paths(**changed: Any) -> list[str]:
        return [e["path"] for e in errors(api.http.post("/v0.5/batch/jobs", json={**api.body(words), **changed}), 422)]

    config = {"parallelism": -1, "config": {"nope": 1}}
    refused = ["$.parameters.worker.parallelism", "$.parameters.worker.config.nope"]
    assert paths(name="", parameters={"worker": config}) == ["$.name", *refused]
    assert paths(pipeline_type=7, parameters={"worker": config}) == ["$.pipeline_type", *refused]
    broken = {"worker": {**config, "parallelism": "2"}}
    assert paths(parameters=broken) == refused  # once each
    refs = [{"file_id": words}, 7, {"kind": "checkpoint", "checkpoint_id": "ckp_x"}]
    at = '$.inputs["worker.data"]'
    assert paths(inputs={"worker.data": refs, "worker.dta": []}) == [f"{at}[1]", '$.inputs["worker.dta"]', f"{at}[2]"]
    assert paths(inputs={"worker.data": "words.jsonl"}) == [at]  # and not that it is missing
    assert paths(name="", pipeline_key="nobody") == ["$.name"]
    assert paths(pipeline_version=1, parameters={"worker": config}) == ["$.pipeline_version"]


def test_numbers_are_numbers_and_what_is_empty_is_left_out(api: Api) -> None:
    words = api.upload("words.jsonl")
    for wrong in ("5", True, 5.0):
        (error,) = errors(api.http.post("/v0.5/batch/jobs", json=api.body(words, priority=wrong)), 422)
        assert error["path"] == "$.priority"
        parameters = {"worker": {"parallelism": wrong}}
        (error,) = errors(api.http.post("/v0.5/batch/jobs", json=api.body(words, parameters=parameters)), 422)
        assert error["path"] == "$.parameters.worker.parallelism"
    body = api.body(words, pipeline_version="", parameters={"worker": None})
    assert api.call("POST", "/batch/jobs", 201, json=body)["pipeline_version"]


def test_every_missing_file_is_named_and_one_on_its_way_is_not_called_missing(api: Api) -> None:
    gone = [f"gone-{n}.jsonl" for n in range(150)]
    start = {"filename": "late.jsonl", "file_type": "application/x-ndjson", "num_bytes": 10}
    api.call("POST", "/files/uploads/initiate", json=start)
    bad = {**start, "filename": "bad.bin", "file_type": "application/octet-stream"}
    upload = api.call("POST", "/files/uploads/initiate", json=bad)
    (part,) = upload["parts"]
    token = httpx2.put(part["url"], content=b"0123456789").headers["ETag"]
    done = {"parts": [{"part_number": 1, "part_token": token}], "integrity_checksum": "AAAAAA=="}
    api.call("POST", f"/files/uploads/{upload['upload_id']}/complete", 400, json=done)
    body = api.body(*gone, "late.jsonl", "bad.bin", api.upload("there.jsonl"))
    (error,) = errors(api.http.post("/v0.5/batch/jobs", json=body), 400)
    missing, uploading, corrupt = error["message"].split(". ")
    assert missing == f"150 of the inputs do not exist: {', '.join(gone)}"
    assert uploading == "1 of the inputs are still being uploaded: late.jsonl"
    assert corrupt == "1 of the inputs are corrupt: bad.bin."


def test_an_organisation_may_have_so_many_jobs_waiting(api: Api) -> None:
    words = api.upload("words.jsonl")
    api.service.queues = QueueConfig.of({"organisations": {"org_a": {"max_pending": 2}}})
    headers = {"Idempotency-Key": "first"}
    first = api.call("POST", "/batch/jobs", 201, json=api.body(words), headers=headers)
    api.create(words)
    answer = api.http.post("/v0.5/batch/jobs", json=api.body(words))
    (error,) = errors(answer, 429)
    assert (error["message"], answer.headers["Retry-After"]) == (
        "2 jobs of this organisation wait already; 2 are the most.",
        "30",
    )
    assert api.call("POST", "/batch/jobs", 201, json=api.body(words), headers=headers)["id"] == first["id"]
    api.admit(first["id"])
    api.create(words)


def test_a_key_may_ask_for_a_priority_up_to_its_ceiling(api: Api) -> None:
    words, user = api.upload("words.jsonl"), api.as_(api.make_key("org_a", "user"))
    errors(user.post("/v0.5/batch/jobs", json=api.body(words, priority=101)), 403)
    errors(api.http.post("/v0.5/batch/jobs", json=api.body(words, priority=1001)), 403)
    low = user.post("/v0.5/batch/jobs", json=api.body(words, priority=100)).json()
    high = api.call("POST", "/batch/jobs", 201, json=api.body(words, priority=101))
    assert (low["priority"], high["priority"]) == (100, 101)
    assert api.get(f"/batch/jobs/{low['id']}")["queue_position"] == 2


def test_the_same_idempotency_key_gives_the_same_job_and_another_body_a_conflict(api: Api) -> None:
    words, other = api.upload("words.jsonl"), api.as_(api.make_key("org_b"))
    headers = {"Idempotency-Key": "abc"}
    broken = api.http.post("/v0.5/batch/jobs", json=api.body("gone"), headers=headers)
    errors(broken, 400)  # an invalid request takes no key
    first = api.call("POST", "/batch/jobs", 201, json=api.body(words), headers=headers)
    again = api.call("POST", "/batch/jobs", 201, json=api.body(words), headers=headers)
    assert again["id"] == first["id"]
    assert api.get("/batch/jobs")["total"] == 1
    (error,) = errors(api.http.post("/v0.5/batch/jobs", json=api.body(words, name="b"), headers=headers), 409)
    assert error["code"] == "conflict"
    theirs = other.post("/v0.5/files", files={"file": ("words.jsonl", b"{}\n", "application/json")})
    assert theirs.status_code == 200
    made = other.post("/v0.5/batch/jobs", json=api.body(words), headers=headers).json()
    assert made["id"] != first["id"]  # keys are an organisation's own


def test_the_same_request_gives_its_job_whatever_became_of_its_files(api: Api) -> None:
    headers, body = {"Idempotency-Key": "late"}, api.body(api.upload("gone.jsonl"))
    job_id = api.call("POST", "/batch/jobs", 201, json=body, headers=headers)["id"]
    api.cancel(job_id)
    api.call("DELETE", "/files/delete/gone.jsonl")
    assert api.call("POST", "/batch/jobs", 201, json=body, headers=headers)["id"] == job_id


def test_a_deleted_job_is_not_made_again_by_its_old_key(api: Api) -> None:
    headers, body = {"Idempotency-Key": "gone"}, api.body(api.upload("words.jsonl"))
    job_id = api.call("POST", "/batch/jobs", 201, json=body, headers=headers)["id"]
    api.cancel(job_id)
    api.call("DELETE", f"/batch/jobs/{job_id}")
    (error,) = errors(api.http.post("/v0.5/batch/jobs", json=body, headers=headers), 409)
    assert "deleted" in error["message"]


def test_a_file_that_a_live_job_reads_stays_until_the_job_is_deleted(api: Api) -> None:
    words = api.upload("words.jsonl")
    job_id = api.create(words)
    errors(api.http.delete(f"/v0.5/files/delete/{words}"), 409)
    api.cancel(job_id)
    api.call("DELETE", f"/batch/jobs/{job_id}")
    api.call("DELETE", f"/files/delete/{words}")


# --- looking ------------------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_in_pages_and_by_filters(api: Api) -> None:
    words = api.upload("words.jsonl")
    made = [api.create(words, name=f"Number {n}") for n in range(5)]
    trained = api.create(pipeline="quick-train", pipeline_type="training", inputs={})
    api.cancel(made[1])
    page = api.get("/batch/jobs", limit=2, offset=1)
    assert (page["total"], page["offset"], page["limit"]) == (6, 1, 2)
    assert [job["id"] for job in page["jobs"]] == [made[4], made[3]]
    assert api.get("/batch/jobs")["limit"] == 20

    def found(**query: Any) -> list[str]:
        return [job["id"] for job in api.get("/batch/jobs", **query)["jobs"]]

    assert found(status="CANCELLED") == [made[1]]
    assert found(pipeline_type="training") == [trained]
    assert found(q="nUMBER 3") == [made[3]]
    assert found(q=made[0]) == [made[0]]
    assert found(status="PENDING", q="quick") == [trained]
    both = api.http.get("/v0.5/batch/jobs?status=CANCELLED&status=PENDING&limit=3&offset=3").json()
    assert (both["total"], [job["id"] for job in both["jobs"]]) == (6, [made[2], made[1], made[0]])
    assert api.http.get("/v0.5/batch/jobs?status=CANCELLED&status=PENDING&q=number").json()["total"] == 5
    assert api.http.get("/v0.5/batch/jobs?status=RUNNING&status=PENDING").json()["total"] == 5
    empty = api.http.get("/v0.5/batch/jobs?status=&q=&pipeline_type=&limit=&offset=").json()
    assert (empty["total"], empty["limit"]) == (6, 20)
    for bad in ("limit=0", "limit=1001", "limit=x", "offset=-1", "status=COMPLETE", "pipeline_type=x"):
        assert errors(api.http.get(f"/v0.5/batch/jobs?{bad}"), 400)[0]["path"] == bad.partition("=")[0]


def test_searches_take_turns_and_one_that_would_wait_too_long_is_told_so(api: Api) -> None:
    api.service.searches = Turns(0, 0.1)
    (error,) = errors(api.http.get("/v0.5/batch/jobs?q=x"), 429)
    assert error["message"] == "Too many searches run at once."
    assert api.get("/batch/jobs", q="")["total"] == 0  # a list is no search
    several = "/v0.5/batch/jobs?status=PENDING&status=RUNNING"
    assert api.http.get(f"{several}&offset=10000").status_code == 200
    errors(api.http.get(f"{several}&offset=10001"), 429)  # it reads as much


def test_a_waiting_job_says_why(api: Api) -> None:
    job_id = api.create(api.upload("a.jsonl"))
    held = Hold("ClusterFull", "needs 1 CPU; 0 of 4 are free")
    api.with_store(lambda store: store.transact(job_id, held, now()))
    job = api.get(f"/batch/jobs/{job_id}")
    assert job["waiting"] == {"code": "ClusterFull", "message": "needs 1 CPU; 0 of 4 are free"}
    api.admit(job_id)
    job = api.get(f"/batch/jobs/{job_id}")
    assert (job["status"], job["waiting"], job["queue_position"]) == ("RUNNING", None, None)


def test_an_admitted_job_whose_driver_waits_for_the_cluster_says_why(api: Api) -> None:
    job_id = api.create(api.upload("a.jsonl"))
    api.with_store(lambda store: store.transact(job_id, Admit("tok", indexes=1), now()))
    assert api.get(f"/batch/jobs/{job_id}")["waiting"] is None
    waits = Waits("tok", "PullingImage", "node-1 pulls jos:1")
    api.with_store(lambda store: store.transact(job_id, waits, now()))
    job = api.get(f"/batch/jobs/{job_id}")
    assert (job["status"], job["waiting"]["code"]) == ("ADMITTED", "PullingImage")
    assert job["waiting"]["message"] == "node-1 pulls jos:1"


def test_inputs_progress_counts_and_traces_tell_the_same_story(api: Api) -> None:
    names = [api.upload(f"{n}.jsonl") for n in range(4)]
    job_id = api.create(*names)
    api.admit(job_id)
    one, two, three, _ = (found["id"] for found in inputs_of(api, job_id))
    bad = {"failed": 1, "error_message": 'a "bad" line, "status":"completed"'}
    states = [
        state(one, InputStatus.COMPLETED, tasks=10, done=10, completed_at=now(), step=2),
        state(two, InputStatus.FAILED, tasks=10, done=10, completed_at=now(), step=1, **bad),
        state(three, InputStatus.PROCESSING, tasks=10, done=4),
    ]
    told = [progress(one, 5, 10), progress(two, 10, 10, 1), progress(three, 4, 10), progress(one, 10, 10)]
    api.tell(job_id, inputs=states, progress=told)
    counts = {"pending": 1, "processing": 1, "completed": 1, "failed": 1}
    assert api.get(f"/batch/jobs/{job_id}")["input_progress"] == counts
    path = f"/batch/jobs/{job_id}/inputs"
    assert api.get(f"{path}/progress/counts") == {"job_id": job_id, **counts}
    assert api.get(f"{path}/progress/counts", port_name="worker.data") == {"job_id": job_id, **counts}
    (failed,) = api.get(path, status="failed")["inputs"]
    assert (failed["id"], failed["error_message"]) == (two, bad["error_message"])
    page = api.http.get(f"/v0.5{path}/progress?status=completed&status=failed&order=desc").json()
    assert [(item["input"]["id"], item["step"]) for item in page["items"]] == [(two, 1), (one, 2)]
    assert page["items"][1]["latest_progress"]["metrics"]["items_processed"] == 10
    assert api.get(f"{path}/progress", offset=3)["items"][0]["latest_progress"] is None
    answer = api.http.get(f"/v0.5{path}/progress/traces", params={"buckets": 3})
    last = answer.json()["points"][-1]
    assert len(answer.json()["points"]) == 10  # 3 is clamped to 10
    assert (last["files"], last["step"]) == ({"completed": 1, "failed": 1}, 2)
    assert last["items"] == {"inference": {"success": 23, "failed": 1}}
    etag = {"If-None-Match": f'W/"x", {answer.headers["ETag"]}'}
    same = api.http.get(f"/v0.5{path}/progress/traces", params={"buckets": 10}, headers=etag)
    assert (same.status_code, same.content) == (304, b"")
    api.tell(job_id, seq=2, progress=[progress(three, 5, 10)], inputs=[state(two, InputStatus.PENDING)])
    assert api.get(f"/batch/jobs/{job_id}")["input_progress"] == {**counts, "pending": 2, "failed": 0}
    assert api.http.get(f"/v0.5{path}/progress/traces", params={"buckets": 10}, headers=etag).status_code == 200


def test_events_come_newest_first_and_progress_oldest_first_with_filters(api: Api) -> None:
    job_id = api.create(api.upload("a.jsonl"))
    api.admit(job_id)
    (source,) = inputs_of(api, job_id)
    error = EventDraft(
        event_type="inference.failed", level=Level.ERROR, message="no", input_id=source["id"], created_at=now()
    )
    api.tell(job_id, events=[error], progress=[progress(source["id"], n, 10) for n in (1, 2, 3)])
    path = f"/batch/jobs/{job_id}"
    assert [event["id"] for event in api.get(f"{path}/events")["events"]] == [4, 3, 2, 1]
    page = api.get(f"{path}/events", order="asc", offset=1, limit=2)
    assert [event["event_type"] for event in page["events"]] == ["job.admitted", "job.started"]
    for query in ({"level": "ERROR"}, {"event_type": "inference.failed"}, {"input_id": source["id"]}):
        found = api.get(f"{path}/events", **query)
        assert (found["total"], found["events"][0]["message"]) == (1, "no")
    assert [entry["step"] for entry in api.get(f"{path}/progress", limit=2)["entries"]] == [1, 2]
    assert [entry["step"] for entry in api.get(f"{path}/progress", offset=2)["entries"]] == [3]
    assert [entry["step"] for entry in api.get(f"{path}/progress", order="desc", limit=2)["entries"]] == [3, 2]
    assert api.get(f"{path}/progress", kind="training")["total"] == 0
    assert api.get(f"{path}/events?level=&event_type=&input_id=&limit=&order=")["total"] == 4
    assert api.get(f"{path}/inputs?port_name=&status=")["total"] == 1
    errors(api.http.get(f"/v0.5{path}/events?level=LOUD"), 400)
    errors(api.http.get(f"/v0.5{path}/events?order=up"), 400)


def test_outputs_are_links_that_need_no_key_in_order_of_arrival(api: Api) -> None:
    job_id = api.create(api.upload("a.jsonl"), api.upload("b.jsonl"))
    api.admit(job_id)
    one, two = inputs_of(api, job_id)
    made = []
    for number, source in enumerate((two, one)):
        filename = f"inp_{number}_output.jsonl"
        key = f"outputs/{filename}"
        api.service.storage.write(job_folder("org_a", job_id) + key, b'{"n": 1}\n')
        made.append(
            Output(
                id=f"out_{number}", port="worker.results", input_id=source["id"], filename=filename, key=key,
                num_bytes=9, sha256="", tasks=1, created_at=now(),
            )
        )  # fmt: skip
    api.tell(job_id, outputs=made)
    page = api.get(f"/batch/jobs/{job_id}/outputs")
    assert [(o["id"], o["input_file_id"]) for o in page["outputs"]] == [("out_0", "b.jsonl"), ("out_1", "a.jsonl")]
    assert page["job_id"] == job_id
    first = page["outputs"][0]
    assert (first["data"]["file_type"], first["data"]["file_extension"]) == ("application/x-ndjson", ".jsonl")
    assert httpx2.get(first["data"]["ref"]).content == b'{"n": 1}\n'
    through = api.get(f"/batch/jobs/{job_id}/outputs", links="api", offset=1)["outputs"][0]["data"]["ref"]
    assert through.startswith(f"{api.url}/v0.5/signed/files/inp_1_output.jsonl?")
    assert httpx2.get(through).content == b'{"n": 1}\n'
    errors(api.http.get(f"/v0.5/batch/jobs/{job_id}/outputs?links=elsewhere"), 400)
    content = f"/v0.5/batch/jobs/{job_id}/outputs/out_0/content"
    ranged = api.http.get(content, headers={"Range": "bytes=0-3"})
    assert (ranged.status_code, ranged.content) == (206, b'{"n"')
    assert api.as_(None).get(content).status_code == 401
    assert api.as_(api.make_key("org_b")).get(content).status_code == 404
    errors(api.http.get(content.replace("out_0", "out_9")), 404)
    assert api.get(f"/batch/jobs/{job_id}/outputs", input_id=one["id"])["outputs"][0]["id"] == "out_1"
    assert api.get(f"/batch/jobs/{job_id}/outputs", port_name="worker.none")["total"] == 0


def test_an_input_shows_its_file_by_a_link_that_needs_no_key_for_as_long_as_it_is_there(api: Api) -> None:
    name = api.upload("s.csv", b"t,x\n1,2\n", "text/csv")
    job_id = api.create(name, "s.csv")
    path = f"/batch/jobs/{job_id}/inputs"
    page = api.get(path)
    assert page["job_id"] == job_id == api.get(f"{path}/progress")["job_id"]
    for data in (page["inputs"][0]["data"], api.get(f"{path}/progress")["items"][1]["input"]["data"]):
        assert httpx2.get(data["ref"]).content == b"t,x\n1,2\n"
        assert (data["filename"], data["file_extension"]) == ("s.csv", ".csv")
        assert data["file_attributes"] == {"num_rows": 1, "num_columns": 2, "column_headers": ["t", "x"]}
    api.upload("s.csv", b"t,x\n3,4\n5,6\n", "text/csv")  # another content of the name; the job reads the old one
    assert httpx2.get(api.get(path)["inputs"][0]["data"]["ref"]).content == b"t,x\n1,2\n"
    api.cancel(job_id)
    api.call("DELETE", "/files/delete/s.csv")
    api.with_store(lambda store: Files(store, api.service.storage).prune(now()))
    data = api.get(path)["inputs"][0]["data"]
    assert (data["ref"], data["file_attributes"]) == ("s.csv", {})


def test_a_checkpoint_of_the_organisation_can_be_an_input(api: Api) -> None:
    job_id = api.create(pipeline="quick-train", pipeline_type="training", inputs={})
    api.admit(job_id)
    api.service.storage.write(job_folder("org_a", job_id) + "state/step_1", b"weights")
    checkpoint = Checkpoint(
        id="ckp_00000000000000000000000001", name="step_1", step=1, metrics={"macro_f1": 0.5}, key="state/step_1",
        num_bytes=7, sha256="", created_at=now(),
    )  # fmt: skip
    api.tell(job_id, checkpoints=[checkpoint])
    (shown,) = api.get(f"/batch/jobs/{job_id}/checkpoints")["checkpoints"]
    assert (shown["id"], shown["metrics"]) == (checkpoint.id, {"macro_f1": 0.5})
    sensor = api.upload("s.csv", b"t,x\n1,2\n", "text/csv")
    ref = {"kind": "checkpoint", "checkpoint_id": checkpoint.id}
    body = api.body(pipeline="machine-state-classification", parameters={})
    body["inputs"] = {"worker.inference": [{"file_id": sensor}], "worker.fine_tune_checkpoint": [ref]}
    job = api.call("POST", "/batch/jobs", 201, json=body)
    _, given = inputs_of(api, job["id"])
    assert (given["file_id"], given["status"], given["data"]["num_bytes"]) == (checkpoint.id, "reference", 7)
    assert given["data"]["ref"] == checkpoint.id  # no file, so there is no link
    assert api.get(f"/batch/jobs/{job['id']}/checkpoints")["job_id"] == job["id"]
    tracked = api.get(f"/batch/jobs/{job['id']}/inputs/progress")
    assert (tracked["total"], tracked["items"][0]["input"]["file_id"]) == (1, sensor)
    assert api.get(f"/batch/jobs/{job['id']}/inputs/progress", status="reference")["total"] == 0
    with Client(api.url, api.key) as client:  # `jos inputs` shows them all
        rows = There(client).inputs(job["id"])["inputs"]
    assert [(row["filename"], row["status"], row["done"]) for row in rows] == [
        ("s.csv", "pending", 0),
        ("step_1", "reference", 0),
    ]
    assert job["input_progress"]["pending"] == 1
    ref["checkpoint_id"] = "ckp_00000000000000000000000002"
    assert ref["checkpoint_id"] in errors(api.http.post("/v0.5/batch/jobs", json=body), 400)[0]["message"]
    theirs = api.as_(api.make_key("org_b"))
    theirs.post("/v0.5/files", files={"file": ("s.csv", b"t,x\n1,2\n", "text/csv")})
    ref["checkpoint_id"] = checkpoint.id
    errors(theirs.post("/v0.5/batch/jobs", json=body), 400)


# --- orders -------------------------------------------------------------------------------------------


def test_cancel_retry_and_delete_keep_to_the_statuses(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = api.create(api.upload("a.jsonl"))
    path = f"/batch/jobs/{job_id}"
    assert errors(api.http.post(f"/v0.5{path}/retry"), 409)[0]["code"] == "conflict"
    api.admit(job_id)
    cancelled = api.call("POST", f"{path}/cancel")
    assert set(cancelled) == {"id", "status", "cancelled_at"}
    assert api.get(path)["status"] == "CANCELLED"
    errors(api.http.post(f"/v0.5{path}/cancel"), 409)
    monkeypatch.setattr(removal, "LEAVING_TAKES", 0.3)
    (stays,) = errors(api.http.delete(f"/v0.5{path}"), 409)  # its driver will not leave
    assert stays["suggestion"] == "Delete it again in a minute."
    api.drained(job_id)
    assert api.call("POST", f"{path}/retry") == {"id": job_id, "status": "PENDING", "retry_count": 1}
    errors(api.http.delete(f"/v0.5{path}"), 409)
    api.cancel(job_id)
    folder = api.settings.home_dir / "storage" / job_folder("org_a", job_id)
    assert (folder / "job.json").exists()
    assert api.call("DELETE", path) == {"id": job_id, "deleted": True}
    assert not list(folder.rglob("*.json"))
    for route in ("", "/events", "/inputs", "/outputs", "/stream"):
        errors(api.http.get(f"/v0.5{path}{route}"), 404)
    errors(api.http.delete(f"/v0.5{path}"), 404)


def test_a_job_is_deleted_right_after_its_cancel_once_its_driver_has_left(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = api.create(api.upload("a.jsonl"))
    api.admit(job_id)
    api.call("POST", f"/batch/jobs/{job_id}/cancel")
    waits, sleep = threading.Event(), asyncio.sleep

    async def told_of(seconds: float, *more: Any) -> Any:
        if seconds == removal.LOOK_AGAIN:
            waits.set()
        return await sleep(seconds, *more)

    monkeypatch.setattr(removal.asyncio, "sleep", told_of)
    with ThreadPoolExecutor(1) as pool:
        deletion = pool.submit(api.call, "DELETE", f"/batch/jobs/{job_id}")
        assert waits.wait(10)
        api.drained(job_id)
        assert deletion.result(20) == {"id": job_id, "deleted": True}
    errors(api.http.get(f"/v0.5/batch/jobs/{job_id}"), 404)


def test_a_deletion_that_was_killed_is_carried_on_by_the_next_process(api: Api) -> None:
    job_id = api.create(api.upload("a.jsonl"))
    api.cancel(job_id)
    kept = api.create("a.jsonl")
    since = int((now() - timedelta(hours=1)).timestamp())

    async def kill_midway(store: Any) -> None:
        for name in (job_id, kept):  # the second was killed before its record was gone
            await store.connection.command("ZADD", "jos:deleting", since, f"org_a {name}")
        await store.delete(job_id)

    api.with_store(kill_midway)
    api.stop()
    again = Api(api.folder)
    again.start()
    try:
        storage = api.settings.home_dir / "storage"
        until(lambda: not (storage / job_folder("org_a", job_id) / "job.json").exists())
        assert again.get(f"/batch/jobs/{kept}")["status"] == "PENDING"
        assert (storage / job_folder("org_a", kept) / "job.json").exists()
    finally:
        again.stop()
        again.stack.close()


def test_a_failed_job_tells_its_error(api: Api) -> None:
    job_id = api.create(api.upload("a.jsonl"))

    async def fail(store: Any) -> None:
        await store.transact(job_id, Admit("t"), now())
        await store.transact(job_id, Started("t"), now())
        failure = JobFailure(code="all_inputs_failed", message="nothing worked", details={"n": 1})
        await store.transact(job_id, Exited("t", failure, retryable=False), now())

    api.with_store(fail)
    job = api.get(f"/batch/jobs/{job_id}")
    assert (job["status"], job["error"]["code"], job["error"]["details"]) == ("FAILED", "all_inputs_failed", {"n": 1})
    assert job["failed_at"]
