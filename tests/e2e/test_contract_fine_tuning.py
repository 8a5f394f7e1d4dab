"""Sections 7 and 8 of the wire contract over real HTTP with a plain HTTP library: fine-tune on real recordings, take
the best checkpoint, classify recordings that were never seen with it, score them. The pipelines are those shipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_lab import Head, until
from service_lab import Service

from jos import demo

SHIPPED = Path(__file__).parents[2] / "pipelines"
READER = {"data_columns": demo.CHANNELS, "window_size": demo.WINDOW, "step_size": demo.STEP}
KEPT_BACK = 4  # recordings of each activity that no training sees, to choose the best checkpoint by


class Recordings:
    """BasicMotions as files of the service: labelled ones to train and to validate, and some to classify."""

    def __init__(self, folder: Path, service: Service) -> None:
        self.folder = folder
        n_shots, inference, self.truth = demo.write_files(folder)
        self.labelled: dict[str, list[str]] = {}
        for path, label in n_shots:
            self.labelled.setdefault(label, []).append(path.name)
        self.inference = [path.name for path in inference]
        for path in (*(path for path, _ in n_shots), *inference):
            service.upload(path.name, path.read_bytes(), "text/csv")

    def split(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """(file, label) to train and to validate with."""
        pairs = [(name, label, at) for label, names in self.labelled.items() for at, name in enumerate(names)]
        kept = [(name, label) for name, label, at in pairs if at < KEPT_BACK]
        return [(name, label) for name, label, at in pairs if at >= KEPT_BACK], kept

    def score(self, service: Service, job_id: str) -> float:
        """Accuracy over the windows of a job's results."""
        names = {one["id"]: one["data"]["filename"] for one in service.get(f"/batch/jobs/{job_id}/inputs")["inputs"]}
        content = service.outputs(job_id)
        found: dict[str, list[Path]] = {}
        for output in service.get(f"/batch/jobs/{job_id}/outputs", limit=1000)["outputs"]:
            path = self.folder / f"{job_id}_{output['data']['filename']}"
            path.write_bytes(content[output["data"]["filename"]])
            found.setdefault(names[output["input_id"]], []).append(path)
        assert set(found) == set(self.inference)
        return float(demo.score(found, self.truth)["accuracy"])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ray_jobs: Head) -> Iterator[Service]:
    settings = {"JOS_WARM_DRIVERS": "1"}
    one = Service(tmp_path_factory.mktemp("tuned"), ray_jobs, settings=settings, pipelines=SHIPPED)
    try:
        one.start()
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def recordings(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    return Recordings(tmp_path_factory.mktemp("motions"), service)


def classify(service: Service, recordings: Recordings, checkpoint: str) -> str:
    """A classification that takes window, columns and classifier from the checkpoint."""
    body = {
        "name": "never seen",
        "pipeline_type": "batch",
        "pipeline_key": "machine-state-classification",
        "inputs": {
            "worker.inference": [{"file_id": name} for name in recordings.inference],
            "worker.fine_tune_checkpoint": [{"kind": "checkpoint", "checkpoint_id": checkpoint}],
        },
        "parameters": {"worker": {"config": {"reader_config": {"timestamp_column": "time_ms"}}}},
    }
    return str(service.call("POST", "/batch/jobs", json=body)["id"])


def tune(service: Service, **body: Any) -> dict[str, Any]:
    answer = service.http.post("/v0.6/fine_tuning/jobs", json=body)
    assert answer.status_code in (200, 201), answer.text
    made: dict[str, Any] = answer.json()
    return made


def tuned(service: Service, tuning_id: str, path: str = "", **query: Any) -> dict[str, Any]:
    answer = service.http.get(f"/v0.6/fine_tuning/jobs/{tuning_id}{path}", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def examples(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"type": "n_shot", "file_id": name, "label": label, "format": "csv"} for name, label in pairs]


def test_a_head_is_fine_tuned_and_its_best_checkpoint_classifies_what_was_never_seen(
    service: Service, recordings: Recordings
) -> None:
    train, kept = recordings.split()
    method = {"type": "head", "head": {"hyperparameters": {"batch_size": 32, "n_epochs": 20}, "reader": READER}}
    made = tune(
        service, name="motions", seed=3, model="omega", method=method,
        training_files=examples(train), validation_files=examples(kept),
    )  # fmt: skip
    assert made["id"].startswith("ftj_")
    until(lambda: tuned(service, made["id"])["status"] in ("SUCCEEDED", "FAILED", "CANCELLED"), 180, 0.3)
    done = tuned(service, made["id"])
    assert done["status"] == "SUCCEEDED", done
    checkpoints = tuned(service, made["id"], "/checkpoints")["data"]
    best = max(checkpoints, key=lambda one: one["step"])
    assert best["id"] == done["fine_tuned_model"]
    scores = [one["metrics"]["macro_f1"] for one in sorted(checkpoints, key=lambda one: one["step"])]
    assert scores == sorted(scores)  # one at each rise; of equal scores the one with the smaller loss comes later
    events = tuned(service, made["id"], "/events", limit=100)["data"]
    assert {"id", "level", "type", "message", "created_at"} <= set(events[0])
    assert [e["id"] for e in events] == sorted((e["id"] for e in events), reverse=True)
    job_id = made["id"].replace("ftj_", "job_")
    entries = service.get(f"/batch/jobs/{job_id}/progress", kind="training", limit=1000)["entries"]
    assert all("loss" in entry["metrics"] for entry in entries)
    assert max(entry["metrics"].get("macro_f1", 0) for entry in entries) == scores[-1]
    classified = classify(service, recordings, best["id"])
    service.wait(classified, "COMPLETED", seconds=240)
    assert recordings.score(service, classified) > 0.9


def test_stored_neighbours_are_a_checkpoint_too(service: Service, recordings: Recordings) -> None:
    train, kept = recordings.split()
    ports = {"worker.train_data": train, "worker.eval_data": kept}
    body = {
        "name": "stored",
        "pipeline_type": "training",
        "pipeline_key": "knn-fine-tuning-omega",
        "inputs": {
            port: [{"file_id": name, "metadata": {"class": label}} for name, label in pairs]
            for port, pairs in ports.items()
        },
        "parameters": {"worker": {"config": {"model_type": "omega_1_4_base", "reader_config": READER}}},
    }
    job_id = str(service.call("POST", "/batch/jobs", json=body)["id"])
    service.wait(job_id, "COMPLETED", seconds=240)
    (only,) = service.get(f"/batch/jobs/{job_id}/checkpoints")["checkpoints"]
    assert only["metrics"]["macro_f1"] > 0.9
    classified = classify(service, recordings, only["id"])
    service.wait(classified, "COMPLETED", seconds=240)
    assert recordings.score(service, classified) > 0.9
    refused = service.http.delete(f"/v0.5/batch/jobs/{job_id}")
    assert refused.status_code == 200  # nothing reads it any more


def test_a_training_whose_files_do_not_fit_says_which_and_why(service: Service, recordings: Recordings) -> None:
    reader = {**READER, "data_columns": ["acc_x", "pressure"]}
    train, _ = recordings.split()
    made = tune(
        service, name="wrong", model="omega", training_files=examples(train),
        method={"type": "head", "head": {"hyperparameters": {}, "reader": reader}},
    )  # fmt: skip
    until(lambda: tuned(service, made["id"])["status"] in ("SUCCEEDED", "FAILED", "CANCELLED"), 120, 0.3)
    done = tuned(service, made["id"])
    assert done["status"] == "FAILED"
    assert "pressure" in done["error"]["message"]
