"""/v0.6/fine_tuning: the calls that clients of an OpenAI-like API make, over jobs that the test moves on."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from api_lab import Api, now

from jos.core.commands import Admit, Exited, Started
from jos.core.ids import derived_id
from jos.core.model import Checkpoint, EventDraft, JobFailure, Json, Level, job_folder

CSV = b"t,a,b\n" + b"".join(b"%d,%d,%d\n" % (n, n, n * n) for n in range(40))
FILES = ("idle_1.csv", "idle_2.csv", "busy_1.csv", "busy_2.csv")


@pytest.fixture(scope="module")
def tuned(shared_api: Api) -> Api:
    for name in FILES:
        shared_api.upload(name, CSV, "text/csv")
    return shared_api


def call(api: Api, method: str, path: str, status: int = 200, **options: Any) -> Any:
    answer = api.http.request(method, f"/v0.6/fine_tuning{path}", **options)
    assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
    return answer.json()


def errors(answer: httpx2.Response, status: int) -> list[Json]:
    assert answer.status_code == status, answer.text
    found: list[Json] = answer.json()["errors"]
    return found


def files(*names: str) -> list[Json]:
    return [{"type": "n_shot", "file_id": n, "label": n.partition("_")[0], "format": "csv"} for n in names]


def head(**changed: Any) -> Json:
    reader = {"window_size": 16, "step_size": 2, "data_columns": ["a", "b"]}
    settings = {"hyperparameters": {"batch_size": 8, "n_epochs": 3}, "reader": reader}
    body = {"name": "pumps", "seed": 7, "model": "omega", "method": {"type": "head", "head": settings}}
    return {**body, "training_files": files(*FILES), "validation_files": files(*FILES[:3]), **changed}


def knn(**hyperparameters: Any) -> Json:
    settings = {"hyperparameters": hyperparameters, "reader": {"window_size": 16, "data_columns": ["a"]}}
    return head(method={"type": "knn", "knn": settings})


def job_of(tuning: Json) -> str:
    assert tuning["job_id"] == tuning["id"].replace("ftj_", "job_")
    return str(tuning["job_id"])


def checkpoint(api: Api, job_id: str, step: int, score: float) -> Checkpoint:
    key = f"state/step_{step}"
    api.service.storage.write(job_folder("org_a", job_id) + key, b"model %d" % step)
    made = derived_id("ckp", job_id, str(step))
    metrics = {"macro_f1": score}
    return Checkpoint(
        id=made, name=f"step_{step}", step=step, metrics=metrics, key=key, num_bytes=7, sha256="", created_at=now()
    )


# --- creation -------------------------------------------------------------------------------------------


def test_a_head_is_asked_for_in_the_clients_words_and_trained_by_the_pipeline(tuned: Api) -> None:
    made = call(tuned, "POST", "/jobs", 201, json=head())
    assert (made["status"], made["name"], made["model"], made["seed"]) == ("QUEUED", "pumps", "omega", 7)
    assert made["method"]["head"]["reader"] == {"window_size": 16, "step_size": 2, "data_columns": ["a", "b"]}
    assert made["method"]["head"]["hyperparameters"]["n_epochs"] == 3
    assert (made["training_files"], made["validation_files"]) == (files(*FILES), files(*FILES[:3]))
    assert (made["fine_tuned_model"], made["error"], made["finished_at"]) == (None, None, None)
    job = tuned.get(f"/batch/jobs/{job_of(made)}")
    config = job["parameters"]["worker"]["config"]
    assert (job["pipeline_key"], job["pipeline_type"], job["status"]) == ("fine-tuning-omega", "training", "PENDING")
    assert (config["batch_size"], config["train_config"]["epochs"], config["seed"]) == (8, 3, 7)
    given = tuned.get(f"/batch/jobs/{job['id']}/inputs")["inputs"]
    assert [(one["port_name"], one["data"]["metadata"]) for one in given[3:5]] == [
        ("worker.train_data", {"class": "busy"}),
        ("worker.eval_data", {"class": "idle"}),
    ]
    for base in ("/api/v0.6", "/api"):
        assert tuned.http.get(f"{base}/fine_tuning/jobs/{made['id']}").json() == made


def test_stored_neighbours_take_their_own_settings_and_auto_is_the_default(tuned: Api) -> None:
    body = knn(batch_size="auto", n_neighbors=3, metric="cosine", weights=None) | {"model": "rocket", "seed": None}
    made = call(tuned, "POST", "/jobs", 201, json=body)
    job = tuned.get(f"/batch/jobs/{job_of(made)}")
    config = job["parameters"]["worker"]["config"]
    assert job["pipeline_key"] == "knn-fine-tuning-omega"
    assert (config["classifier_config"]["n_neighbors"], config["classifier_config"]["metric"]) == (3, "cosine")
    assert (config["classifier_config"]["weights"], config["batch_size"], config["seed"]) == ("uniform", 64, 0)
    assert (made["model"], config["model_type"]) == ("rocket", "rocket")
    assert made["method"]["knn"]["hyperparameters"]["metric"] == "cosine"


def test_what_is_wrong_is_told_at_once_at_its_place_in_this_body(tuned: Api) -> None:
    def paths(body: Json) -> list[str]:
        return [error["path"] for error in errors(tuned.http.post("/v0.6/fine_tuning/jobs", json=body), 422)]

    body = head(model="gpt", seed=-1)
    body["method"]["head"] = {"hyperparameters": {"batch_size": 0, "n_epochs": 0, "n_epoch": 1}, "reader": {"x": 1}}
    hyper, reader = "$.method.head.hyperparameters", "$.method.head.reader"
    found = {f"{hyper}.batch_size", f"{hyper}.n_epochs", f"{hyper}.n_epoch", "$.model", "$.seed"}
    found |= {f"{reader}.x", f"{reader}.data_columns", f"{reader}.window_size"}
    assert set(paths(body)) == found
    wide = head(name="", training_files=files(FILES[0], FILES[1]))
    wide["training_files"].append({"file_id": FILES[2]})
    assert set(paths(wide)) == {"$.name", "$.training_files[2].label"}
    assert set(paths({})) == {"$.name", "$.method"}
    assert paths(head(training_files=None)) == ["$.training_files"]
    assert paths(head(training_files=files(*FILES[:2]))) == ["$.training_files"]  # one class only
    assert paths(head(validation_files=[{"file_id": "a.csv", "label": ""}])) == ["$.validation_files[0].label"]
    misspelt = head(trainin_files=[], suffix="passed over")
    del misspelt["training_files"]
    assert paths(misspelt) == ["$.trainin_files", "$.training_files"]
    assert paths(head(method={"type": "sft"})) == ["$.method.type"]
    both = head()
    both["method"]["knn"] = {}
    assert paths(both) == ["$.method.knn"]
    assert paths(knn(n_neighbors=1)) == ["$.method.knn.hyperparameters.n_neighbors"]
    stamped = head()
    stamped["method"]["head"]["reader"]["data_columns"] = "a,b"
    assert paths(stamped) == ["$.method.head.reader.data_columns"]
    (gone,) = errors(tuned.http.post("/v0.6/fine_tuning/jobs", json=head(validation_files=files("gone.csv"))), 400)
    assert "gone.csv" in gone["message"]
    assert errors(tuned.http.post("/v0.6/fine_tuning/jobs", content=b"{"), 400)[0]["code"] == "bad_request"


def test_the_same_idempotency_key_gives_the_same_job(tuned: Api) -> None:
    headers = {"Idempotency-Key": "tune"}
    first = call(tuned, "POST", "/jobs", 201, json=head(), headers=headers)
    assert call(tuned, "POST", "/jobs", 201, json=head(), headers=headers)["id"] == first["id"]
    errors(tuned.http.post("/v0.6/fine_tuning/jobs", json=head(seed=8), headers=headers), 409)


# --- looking --------------------------------------------------------------------------------------------


def test_it_is_watched_to_its_end_and_its_best_checkpoint_is_the_model(tuned: Api) -> None:
    made = call(tuned, "POST", "/jobs", 201, json=head())
    path, job_id = f"/jobs/{made['id']}", job_of(made)
    tuned.with_store(lambda store: store.transact(job_id, Admit(job_id), now()))
    assert call(tuned, "GET", path)["status"] == "QUEUED"
    tuned.with_store(lambda store: store.transact(job_id, Started(job_id), now()))
    assert call(tuned, "GET", path)["status"] == "RUNNING"
    models = [checkpoint(tuned, job_id, step, step / 100) for step in (20, 60, 40)]
    said = [
        EventDraft(event_type="training.note", level=Level.WARN, message=f"{n}", created_at=now()) for n in range(9)
    ]
    tuned.tell(job_id, events=said, checkpoints=models)
    assert call(tuned, "GET", path)["fine_tuned_model"] is None
    tuned.complete(job_id)
    done = call(tuned, "GET", path)
    assert (done["status"], done["fine_tuned_model"]) == ("SUCCEEDED", models[1].id)
    assert done["finished_at"].endswith("Z")
    found = call(tuned, "GET", f"{path}/checkpoints")
    assert [(one["step"], one["metrics"], one["name"]) for one in found["data"]] == [
        (60, {"macro_f1": 0.6}, "step_60"),
        (40, {"macro_f1": 0.4}, "step_40"),
        (20, {"macro_f1": 0.2}, "step_20"),
    ]
    page = call(tuned, "GET", f"{path}/checkpoints", params={"limit": 1, "after": models[1].id})
    assert ([one["step"] for one in page["data"]], page["has_more"]) == ([40], True)
    errors(tuned.http.get(f"/v0.6/fine_tuning{path}/checkpoints?after=nobody"), 400)
    errors(tuned.http.post(f"/v0.6/fine_tuning{path}/cancel"), 409)


def test_events_come_newest_first_in_pages_without_gaps(tuned: Api) -> None:
    made = call(tuned, "POST", "/jobs", 201, json=head())
    path, job_id = f"/jobs/{made['id']}/events", job_of(made)
    tuned.admit(job_id)
    said = [
        EventDraft(event_type="training.note", level=Level.WARN, message=f"{n}", created_at=now()) for n in range(9)
    ]
    tuned.tell(job_id, events=said)
    everything = call(tuned, "GET", path, params={"limit": 100})
    assert [one["id"] for one in everything["data"]] == list(range(12, 0, -1))
    newest = everything["data"][0]
    assert (newest["level"], newest["type"], newest["message"]) == ("WARN", "training.note", "8")
    assert (everything["data"][-1]["event_type"], everything["has_more"]) == ("job.created", False)
    seen, after = list[Json](), {}
    while True:
        page = call(tuned, "GET", path, params={"limit": 5, **after})
        seen += page["data"]
        if not page["has_more"]:
            break
        after = {"after": page["data"][-1]["id"]}
    assert seen == everything["data"]
    assert call(tuned, "GET", path, params={"after": 1})["data"] == []
    assert len(call(tuned, "GET", path, params={"after": 2**63})["data"]) <= 20
    errors(tuned.http.get(f"/v0.6/fine_tuning{path}?limit=0"), 400)


def test_jobs_are_listed_newest_first_by_place_or_by_the_last_one_seen(api: Api) -> None:
    for name in FILES:
        api.upload(name, CSV, "text/csv")
    ids = [call(api, "POST", "/jobs", 201, json=head(name=str(n)))["id"] for n in range(5)][::-1]
    api.create(api.upload("a.jsonl"))  # no training
    page = call(api, "GET", "/jobs", params={"limit": 2})
    assert ([one["id"] for one in page["data"]], page["total"], page["has_more"]) == (ids[:2], 5, True)
    rest = call(api, "GET", "/jobs", params={"after": ids[1], "limit": 3})
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (ids[2:], False)
    assert [one["id"] for one in call(api, "GET", "/jobs", params={"offset": 4})["data"]] == ids[4:]
    errors(api.http.get("/v0.6/fine_tuning/jobs?after=ftj_nobody"), 400)


def test_a_failed_and_a_cancelled_one_say_so(tuned: Api) -> None:
    made = call(tuned, "POST", "/jobs", 201, json=head())
    job_id = job_of(made)
    tuned.admit(job_id)
    failure = JobFailure(code="invalid_job", message="only one class")
    tuned.with_store(lambda store: store.transact(job_id, Exited(job_id, failure, retryable=False), now()))
    failed = call(tuned, "GET", f"/jobs/{made['id']}")
    assert (failed["status"], failed["error"]) == ("FAILED", {"code": "invalid_job", "message": "only one class"})
    made = call(tuned, "POST", "/jobs", 201, json=head())
    assert call(tuned, "POST", f"/jobs/{made['id']}/cancel")["status"] == "CANCELLED"
    (over,) = errors(tuned.http.post(f"/v0.6/fine_tuning/jobs/{made['id']}/cancel"), 409)
    assert (over["code"], f"{made['id']} is CANCELLED" in over["message"]) == ("conflict", True)


def test_what_is_no_training_of_theirs_does_not_exist(tuned: Api) -> None:
    made = call(tuned, "POST", "/jobs", 201, json=head())
    batch = tuned.create(tuned.upload("b.jsonl"))
    theirs = tuned.as_(tuned.make_key("org_b"))
    reader = tuned.as_(tuned.make_key("org_a", "reader"))
    path = "/v0.6/fine_tuning/jobs"
    for route in ("", "/events", "/checkpoints"):
        errors(theirs.get(f"{path}/{made['id']}{route}"), 404)
        assert reader.get(f"{path}/{made['id']}{route}").status_code == 200
        errors(tuned.as_(None).get(f"{path}/{made['id']}{route}"), 401)
        for wrong in (batch.replace("job_", "ftj_"), made["job_id"], "ftj_nobody"):
            (unknown,) = errors(tuned.http.get(f"{path}/{wrong}{route}"), 404)
            assert wrong in unknown["message"]
    errors(theirs.post(f"{path}/{made['id']}/cancel"), 404)
    errors(reader.post(f"{path}/{made['id']}/cancel"), 403)
    errors(reader.post(path, json=head()), 403)
    assert theirs.get(path).json()["data"] == []
