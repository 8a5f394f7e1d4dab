"""A checkpoint as an input, through the doors of the engine: by its id, and as a file that was fetched."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jobs_lab import Lab

from jos.core.commands import Admit, Completed, Started
from jos.core.errors import BadRequest, ConfigInvalid
from jos.core.ids import derived_id, new_id
from jos.core.model import Checkpoint, JobInput
from jos.request import build, from_options, read_request
from jos.store import checkpoints
from jos.store.records import Mirror

MODEL = b"weights of a model"
PORT = "worker.fine_tune_checkpoint"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with contextlib.closing(Lab(tmp_path, None)) as lab:
        (tmp_path / "s.csv").write_bytes(b"t,x\n1,2\n")
        yield lab


def trained(lab: Lab) -> tuple[str, str]:
    """(a training job that is over, the id of its checkpoint), as a driver leaves them."""
    job_id, now, engine = lab.submit("quick-train"), datetime.now(UTC), lab.engine
    lab.engine.storage.write(lab.folder_of(job_id) + "state/step_9", MODEL)
    model = Checkpoint(
        id=derived_id("ckp", job_id, "9"), name="step_9", step=9, metrics={"macro_f1": 0.5, "loss": 0.25},
        key="state/step_9", num_bytes=len(MODEL), sha256=hashlib.sha256(MODEL).hexdigest(), created_at=now,
    )  # fmt: skip
    store = engine.parts.store
    for command in (Admit("tok"), Started("tok")):
        engine._thread.call(store.transact(job_id, command, now))
    engine._thread.call(store.mirror(job_id, Mirror(token="tok", seq=1, at=now, checkpoints=[model])))
    engine._thread.call(store.transact(job_id, Completed("tok"), now))
    return job_id, model.id


def model_of(lab: Lab, request: Any) -> JobInput:
    """The checkpoint among the inputs of the job that is made."""
    found = [one for one in lab.engine.spec(lab.engine.submit(request).id).inputs if one.port == PORT]
    assert len(found) == 1
    return found[0]


def test_a_checkpoint_is_named_by_its_id_at_every_door(lab: Lab) -> None:
    job_id, name = trained(lab)
    sensor, key = str(lab.folder / "s.csv"), "machine-state-classification"
    file = lab.folder / "job.yaml"
    ref = {"kind": "checkpoint", "checkpoint_id": name}
    file.write_text(
        json.dumps(
            {"name": "n", "pipeline_key": key, "inputs": {"worker.inference": [{"file_id": "s.csv"}], PORT: [ref]}}
        )
    )
    options = [f"worker.inference={sensor}", f"{PORT}={name}"]
    for request in (
        build(key, {"inference": sensor, "fine_tune_checkpoint": name}),
        from_options(key, None, None, options, [], None),
        read_request(file),
    ):
        model = model_of(lab, request)
        assert Path(model.url).read_bytes() == MODEL
        assert (model.file_id, model.sha256, model.tracked) == (name, hashlib.sha256(MODEL).hexdigest(), False)
    marks = lab.engine._thread.call(checkpoints.readers(lab.engine.parts.store.connection, job_id))
    assert len(marks) == 3


def test_what_is_missing_is_told_with_all_else_that_is(lab: Lab) -> None:
    gone = new_id("ckp")
    request = build("machine-state-classification", {"inference": "gone.csv", "fine_tune_checkpoint": gone})
    with pytest.raises(BadRequest) as caught:
        lab.engine.submit(request)
    assert "2 of 2" in caught.value.message
    assert "gone.csv" in caught.value.message
    assert f"There is no checkpoint {gone}" in caught.value.message


def test_a_checkpoint_is_fetched_and_its_file_is_an_input_like_its_id(lab: Lab) -> None:
    job_id, name = trained(lab)
    process = lab.jos("checkpoints", job_id, "--download", "models", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (row,) = json.loads(out)["checkpoints"]
    assert (row["id"], row["step"], row["location"]) == (name, 9, f"models/{name}.ckpt")
    file = lab.folder / "models" / f"{name}.ckpt"
    assert file.read_bytes() == MODEL
    inputs = {"inference": lab.folder / "s.csv", "fine_tune_checkpoint": file}
    model = model_of(lab, build("machine-state-classification", inputs))
    assert (model.url, model.sha256) == (str(file), None)
    process = lab.jos("checkpoints", job_id)
    out, _ = process.communicate(timeout=60)
    assert "loss 0.25  macro_f1 0.5" in out
    with pytest.raises(ConfigInvalid, match="takes one checkpoint, not 2"):
        lab.engine.submit(build("machine-state-classification", {**inputs, "fine_tune_checkpoint": [file, name]}))
