"""Checkpoints over HTTP: fetched by a link, read by another job, and kept for as long as a live job reads them."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx2
import orjson
import pytest
from api_lab import Api, now

from jos import checkpoints
from jos.core.ids import derived_id
from jos.core.model import Checkpoint, Json, job_folder
from jos.recovery import recover
from jos.store.redis import Store

MODEL = b"weights of a model"


def trained(api: Api) -> tuple[str, str]:
    """(a training job that is over, the id of its checkpoint)."""
    job_id = api.create(pipeline="quick-train", pipeline_type="training", inputs={})
    api.admit(job_id)
    api.service.storage.write(job_folder("org_a", job_id) + "state/step_9", MODEL)
    checkpoint = Checkpoint(
        id=derived_id("ckp", job_id, "9"), name="step_9", step=9, metrics={"macro_f1": 0.5}, key="state/step_9",
        num_bytes=len(MODEL), sha256=hashlib.sha256(MODEL).hexdigest(), created_at=now(),
    )  # fmt: skip
    api.tell(job_id, checkpoints=[checkpoint])
    api.complete(job_id)
    return job_id, checkpoint.id


def classify(api: Api, checkpoint_id: str) -> Json:
    sensor = api.upload("s.csv", b"t,x\n1,2\n", "text/csv")
    ref = {"kind": "checkpoint", "checkpoint_id": checkpoint_id}
    body = api.body(pipeline="machine-state-classification", parameters={})
    return {**body, "inputs": {"worker.inference": [{"file_id": sensor}], "worker.fine_tune_checkpoint": [ref]}}


def reader_of(api: Api, checkpoint_id: str) -> str:
    return str(api.call("POST", "/batch/jobs", 201, json=classify(api, checkpoint_id))["id"])


def refused(answer: httpx2.Response, status: int) -> Json:
    assert answer.status_code == status, answer.text
    (error,) = answer.json()["errors"]
    return dict(error)


def test_a_checkpoint_is_fetched_by_a_link_that_needs_no_key(api: Api) -> None:
    job_id, checkpoint_id = trained(api)
    (shown,) = api.get(f"/batch/jobs/{job_id}/checkpoints")["checkpoints"]
    assert (shown["id"], shown["data"]["num_bytes"]) == (checkpoint_id, len(MODEL))
    answer = httpx2.get(shown["data"]["ref"])
    assert answer.content == MODEL
    assert f"{checkpoint_id}.ckpt" in answer.headers["content-disposition"]
    assert httpx2.get(shown["data"]["ref"].replace("step_9", "step_8")).status_code == 403


def test_a_job_that_reads_a_checkpoint_knows_its_checksum(api: Api) -> None:
    reader = reader_of(api, trained(api)[1])
    spec = orjson.loads(api.service.storage.read(job_folder("org_a", reader) + "job.json"))
    sums = {one["port"]: one["sha256"] for one in spec["inputs"]}
    assert sums == {"worker.inference": None, "worker.fine_tune_checkpoint": hashlib.sha256(MODEL).hexdigest()}


def test_a_training_stays_while_a_live_job_reads_its_checkpoint(api: Api) -> None:
    job_id, checkpoint_id = trained(api)
    reader = reader_of(api, checkpoint_id)
    error = refused(api.http.delete(f"/v0.5/batch/jobs/{job_id}"), 409)
    assert (error["code"], reader in error["message"], error["suggestion"]) == (
        "conflict",
        True,
        "Cancel these jobs, or wait.",
    )
    assert api.service.storage.read(job_folder("org_a", job_id) + "state/step_9") == MODEL
    api.cancel(reader)
    assert api.call("DELETE", f"/batch/jobs/{job_id}") == {"id": job_id, "deleted": True}
    assert (
        checkpoint_id in refused(api.http.post("/v0.5/batch/jobs", json=classify(api, checkpoint_id)), 400)["message"]
    )


def test_a_deleted_reader_no_longer_keeps_the_training(api: Api) -> None:
    job_id, checkpoint_id = trained(api)
    reader = reader_of(api, checkpoint_id)
    api.cancel(reader)
    api.call("DELETE", f"/batch/jobs/{reader}")
    api.call("DELETE", f"/batch/jobs/{job_id}")  # at once, though the mark was made just now


def test_a_training_that_is_deleted_while_a_job_is_created_from_it_is_missed_or_stays(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the moment between the look at the checkpoint and the reader's record."""
    job_id, checkpoint_id = trained(api)
    mark = checkpoints.mark_reader

    async def deleted_before(*given: Any) -> None:
        await api.service.removals.remove(await api.service.store.get(job_id))
        await mark(*given)

    async def deleted_after(*given: Any) -> None:
        await mark(*given)
        with pytest.raises(Exception, match="being read by"):
            await api.service.removals.remove(await api.service.store.get(job_id))

    monkeypatch.setattr(checkpoints, "mark_reader", deleted_after)
    reader_of(api, checkpoint_id)
    job_id, checkpoint_id = trained(api)
    monkeypatch.setattr(checkpoints, "mark_reader", deleted_before)
    error = refused(api.http.post("/v0.5/batch/jobs", json=classify(api, checkpoint_id)), 400)
    assert error["message"] == f"The checkpoint {checkpoint_id} was deleted meanwhile."
    assert api.get("/batch/jobs", pipeline_type="batch")["total"] == 1


def test_recovery_marks_the_readers_again(api: Api) -> None:
    job_id, checkpoint_id = trained(api)
    reader = reader_of(api, checkpoint_id)

    async def wiped(store: Store) -> None:
        await store.connection.command("DEL", f"jos:{{{job_id}}}:readers")
        await recover(store, api.service.storage)

    api.with_store(wiped)
    assert reader in refused(api.http.delete(f"/v0.5/batch/jobs/{job_id}"), 409)["message"]
