"""Section 7 of the wire contract over real HTTP with a plain HTTP library: what clients of activity-detection send, and
how they find and read its results. The pipeline is the one that is shipped, with its built-in model.

With JOS_TEST_DATA naming a folder that has volve/volve_activity_200.jsonl, some of its records are asked too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from jobs_lab import Head
from service_lab import Service

pytest.importorskip("xllamacpp")
SHIPPED = Path(__file__).parents[2] / "pipelines"
VOLVE = Path(os.environ.get("JOS_TEST_DATA", "")) / "volve" / "volve_activity_200.jsonl"
OUTPUT = re.compile(r"^inp_([A-Za-z0-9]+)_output\.jsonl$")
GENERATION = {
    "do_sample": True, "max_new_tokens": 4, "repetition_penalty": 1.1, "temperature": 0.7, "top_k": 40, "top_p": 0.95
}  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ray_jobs: Head) -> Iterator[Service]:
    settings = {"JOS_WARM_DRIVERS": "1"}
    one = Service(tmp_path_factory.mktemp("activity"), ray_jobs, settings=settings, pipelines=SHIPPED)
    try:
        one.start()
        yield one
    finally:
        one.close()


def upload(service: Service, name: str, lines: list[bytes]) -> dict[str, str]:
    """Declared as CSV, as a client is known to do; the answer of the upload."""
    found: dict[str, str] = service.call(
        "POST", "/files", files={"file": (name, b"\n".join(lines) + b"\n", "text/csv")}
    )
    return found


def record(text: str) -> bytes:
    return orjson.dumps({"system": "You watch a pump.", "instruction": "State?", "prompt": text})


def answers(service: Service, job_id: str, file_uid: str) -> list[dict[str, Any]]:
    """The answers of one uploaded file, found as a client finds them: by the file's uid in the name."""
    groups = {OUTPUT.fullmatch(name): body for name, body in service.outputs(job_id).items()}
    (body,) = (b for group, b in groups.items() if group and (group[1] in file_uid or file_uid in group[1]))
    return [orjson.loads(line) for line in body.splitlines()]


def test_each_record_of_each_file_has_its_answer_and_a_bad_line_is_null(service: Service) -> None:
    pump = upload(service, "pump.jsonl", [record("flow 3"), b"{oops", record("flow 0")])
    fan = upload(service, "fan.jsonl", [record("flow 3")])
    job_id = service.create(
        "activity-detection", ["pump.jsonl", "fan.jsonl"],
        model_variant="newton/c:2.4.0-7b-base", generation=GENERATION, batch_size=8, max_video_frames=8, seed=5,
    )  # fmt: skip
    service.wait(job_id, "COMPLETED")
    of_pump, of_fan = answers(service, job_id, pump["file_uid"]), answers(service, job_id, fan["file_uid"])
    assert [a["line_index"] for a in of_pump] == [0, 1, 2]
    assert [isinstance(a["prediction"], str) for a in of_pump] == [True, False, True]
    assert (of_pump[1]["prediction"], of_pump[1]["error"]) == (None, "parse error")
    assert of_fan == [of_pump[0]]  # the same record and seed: the same text, in whatever file it stands
    events = service.events(job_id)
    assert [e["level"] for e in events if e["event_type"] == "model.substituted"] == ["WARN"]
    assert any(e["level"] == "ERROR" and "pump.jsonl line 2" in e["message"] for e in events)


def test_one_file_given_twice_has_two_outputs_that_both_are_found_by_its_uid(service: Service) -> None:
    uid = upload(service, "twice.jsonl", [record("flow 3")])["file_uid"]
    job_id = service.create("activity-detection", ["twice.jsonl", "twice.jsonl"], generation=GENERATION)
    service.wait(job_id, "COMPLETED")
    groups = [OUTPUT.fullmatch(name) for name in service.outputs(job_id)]
    assert len(groups) == 2
    assert all(group and group[1] in uid for group in groups)


def test_a_configuration_that_cannot_be_is_refused_with_its_path(service: Service) -> None:
    upload(service, "a.jsonl", [record("flow 3")])
    config = {"model_variant": "unheard-of", "engine": {"api_key_env": "HOME"}}
    body = {
        "name": "a job",
        "pipeline_type": "batch",
        "pipeline_key": "activity-detection",
        "inputs": {"worker.data": [{"file_id": "a.jsonl"}]},
        "parameters": {"worker": {"parallelism": 1, "config": config}},
    }
    answer = service.http.post("/v0.5/batch/jobs", json=body)
    assert answer.status_code == 422
    said = " ".join(error["message"] for error in answer.json()["errors"])
    assert "model_variant" in said
    assert "api_key_env" in said


@pytest.mark.skipif(not VOLVE.is_file(), reason="JOS_TEST_DATA names no folder with the Volve records")
def test_real_records_of_a_drilling_rig_are_answered(service: Service) -> None:
    uid = upload(service, VOLVE.name, VOLVE.read_bytes().splitlines()[:10])["file_uid"]
    job_id = service.create(
        "activity-detection", [VOLVE.name], labels=["drilling", "not drilling"], generation=GENERATION
    )
    service.wait(job_id, "COMPLETED", seconds=240)
    found = answers(service, job_id, uid)
    assert len(found) == 10
    assert {a["prediction"] for a in found} <= {"drilling", "not drilling"}
