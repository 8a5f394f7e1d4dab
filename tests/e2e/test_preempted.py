"""Preempted on the service: a training in the middle of its steps leaves the same checkpoints as undisturbed, a
language model in the middle of its records the same answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from jobs_lab import Head, until
from service_lab import Service

ONE_AT_A_TIME = {"queues": {"default": {"quota": {"cpu": 1}, "preemption": {"within_queue": "lower_priority"}}}}


@pytest.fixture
def service(tmp_path: Path, ray_jobs: Head) -> Iterator[Service]:
    (tmp_path / "queues.yaml").write_text(json.dumps(ONE_AT_A_TIME))
    one = Service(tmp_path, ray_jobs, settings={"JOS_QUEUES": str(tmp_path / "queues.yaml")})
    try:
        one.start()
        yield one
    finally:
        one.close()


def recording(level: float, seed: int) -> bytes:
    values = np.random.default_rng(seed).normal(level, 1, (60, 2))
    return "\n".join(["time,a,b", *(f"{row},{a:.4f},{b:.4f}" for row, (a, b) in enumerate(values)), ""]).encode()


def labelled(service: Service) -> list[dict[str, Any]]:
    """Four files of each of three classes, uploaded."""
    files = []
    for at, label in enumerate(("idle", "slow", "fast")):
        for nth in range(4):
            name = service.upload(f"{label}_{nth}.csv", recording(at / 4, 10 * at + nth), "text/csv")
            files.append({"file_id": name, "metadata": {"class": label}})
    return files


def fine_tune(service: Service, files: list[dict[str, Any]]) -> str:
    """A job, PENDING: some seconds of training in 20 spans."""
    config = {
        "model_type": "stats",
        "batch_size": 8,
        "reader_config": {"data_columns": ["a", "b"], "window_size": 16, "step_size": 2},
        "train_config": {"epochs": 100, "patience": 100, "learning_rate": 1e-4, "hidden": 32},
        "seed": 3,
    }
    body = {
        "name": "a head",
        "pipeline_type": "training",
        "pipeline_key": "fine-tuning-omega",
        "inputs": {"worker.train_data": files},
        "parameters": {"worker": {"config": config}},
    }
    return str(service.call("POST", "/batch/jobs", json=body)["id"])


def checkpoints(service: Service, job_id: str) -> dict[str, tuple[dict[str, float], bytes]]:
    """By name: metrics and content, each read by its own link with no key."""
    found = service.get(f"/batch/jobs/{job_id}/checkpoints", limit=1000)["checkpoints"]
    return {one["name"]: (one["metrics"], httpx2.get(one["data"]["ref"]).content) for one in found}


def curve(service: Service, job_id: str) -> dict[int, dict[str, float]]:
    """Metrics after each span of steps."""
    found = service.get(f"/batch/jobs/{job_id}/progress", kind="training", limit=1000)["entries"]
    return {one["step"]: one["metrics"] for one in found}


def test_a_preempted_training_goes_on_to_the_very_same_checkpoints(service: Service) -> None:
    files = labelled(service)
    low = fine_tune(service, files)
    until(lambda: service.get(f"/batch/jobs/{low}/progress", kind="training")["total"] > 2)
    small = service.records("high.jsonl", [{"text": "a"}])
    high = service.create("shout", [small], priority=50)
    assert service.wait(high)["status"] == "COMPLETED"
    ended = service.wait(low)
    assert (ended["status"], ended["preemption_count"], ended["retry_count"]) == ("COMPLETED", 1, 0)
    undisturbed = fine_tune(service, files)
    assert service.wait(undisturbed)["status"] == "COMPLETED"
    assert len(curve(service, low)) == 20
    assert curve(service, low) == curve(service, undisturbed)
    assert checkpoints(service, low)
    assert checkpoints(service, low) == checkpoints(service, undisturbed)


def ask(service: Service, file: str) -> str:
    generation = {"do_sample": True, "max_new_tokens": 4, "temperature": 0.8, "top_k": 40, "top_p": 0.95}
    return service.create("activity-detection", [file], generation=generation, seed=5)


@pytest.mark.long
def test_a_preempted_language_model_gives_the_very_same_answers(service: Service) -> None:
    pytest.importorskip("xllamacpp")
    file = service.records("pump.jsonl", [{"instruction": "State?", "prompt": f"flow {n}"} for n in range(16)])
    low = ask(service, file)
    until(lambda: service.get(f"/batch/jobs/{low}/progress")["total"] > 1)
    high = service.create("shout", [service.records("high.jsonl", [{"text": "a"}])], priority=50)
    assert service.wait(high)["status"] == "COMPLETED"
    ended = service.wait(low)
    assert (ended["status"], ended["preemption_count"]) == ("COMPLETED", 1)
    undisturbed = ask(service, file)
    assert service.wait(undisturbed)["status"] == "COMPLETED"
    (interrupted,), (calm,) = (list(service.outputs(job).values()) for job in (low, undisturbed))
    assert interrupted == calm
    assert len(calm.splitlines()) == 16
