"""machine-state-classification from a checkpoint of either kind: what it brings, what the request still says, and what
does not fit."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
import torch
from devices import of_cpu
from test_fine_tune import EVAL, TRAIN, file, files, train
from test_machine_state import LOW, Memory, make, run, spoil, table

from actors.fine_tune import HeadTrainer, KnnTrainer
from actors.machine_state import MachineStateWorker
from actors.model_file import Model, pack_model, unpack_model
from jos.worker import InputInvalid, JobImpossible

torch.set_num_threads(1)  # tests run side by side

TRAINED = {
    "head": train(HeadTrainer, {TRAIN: files()}),
    "knn": train(KnnTrainer, {TRAIN: files(), EVAL: [file("later", "idle", 0, seed=77)]}),
}
each_kind = pytest.mark.parametrize("kind", TRAINED)


def checkpoint(kind: str, **changes: Any) -> Memory:
    data = TRAINED[kind].checkpoints[max(TRAINED[kind].checkpoints)]
    if changes:
        data = pack_model(Model(**vars(unpack_model(data, "it")) | changes))
    return Memory(data, "step_9.safetensors", "inp_ckp")


def classifier(given: Memory, said: list[Any] | None = None, **reader: Any) -> MachineStateWorker:
    return make(shots=[], said=said, checkpoint=given, reader_config={"timestamp_column": "DATE_TIME", **reader})


def rows_of(worker: MachineStateWorker, source: Memory) -> list[dict[str, str]]:
    plan, body, _ = run(worker, source)
    return list(csv.DictReader(io.StringIO(plan.header.decode() + body)))


@each_kind
def test_a_checkpoint_brings_columns_window_and_classes(kind: str) -> None:
    source = Memory(table(100, 2, 99))
    rows = rows_of(classifier(checkpoint(kind)), source)
    assert list(rows[0]) == ["DATE_TIME", "Prediction", "p_fast", "p_idle", "p_slow"]
    assert len(rows) == (100 - 16) // 2 + 1  # the checkpoint's step
    assert [row["DATE_TIME"] for row in rows] == [str(1_400_000_000 + 2 * at) for at in range(len(rows))]
    assert {row["Prediction"] for row in rows} == {"fast"}
    for row in rows:
        assert sum(float(row[f"p_{label}"]) for label in ("fast", "idle", "slow")) == pytest.approx(1, abs=2e-4)


@of_cpu
@each_kind
def test_any_cut_and_another_index_give_the_same_bytes(kind: str) -> None:
    source = Memory(table(400, 1.5, 98))
    _, whole, _ = run(classifier(checkpoint(kind)), source)
    assert run(classifier(checkpoint(kind)), source, cuts=[1, 7, 130, 150])[1] == whole


@each_kind
def test_the_step_of_the_request_counts_if_there_is_one(kind: str) -> None:
    assert len(rows_of(classifier(checkpoint(kind), step_size=1), Memory(table(100, 2, 99)))) == 85


def test_without_a_column_of_time_stamps_rows_are_numbered_and_the_owner_told() -> None:
    said: list[Any] = []
    worker = classifier(checkpoint("head"), said, timestamp_column=None)
    rows = rows_of(worker, Memory(table(40, 0, 99)))
    assert [row["row"] for row in rows] == [str(1 + 2 * at) for at in range(13)]
    assert [(event[0], event[1]) for event in said] == [("results.without_timestamps", "WARN")]


def test_what_the_request_says_otherwise_is_told_and_the_checkpoint_counts() -> None:
    said: list[Any] = []
    worker = classifier(checkpoint("head"), said, data_columns=["RPM"], window_size=64)
    assert len(rows_of(worker, Memory(table(40, 0, 99)))) == 13
    assert [event[3]["field"] for event in said] == ["reader_config.data_columns", "reader_config.window_size"]
    said.clear()
    classifier(checkpoint("head"), said, data_columns=["HKLD", "RPM"], window_size=16)
    assert not said


def test_labelled_examples_beside_a_checkpoint_are_not_used_and_that_is_said() -> None:
    said: list[Any] = []
    make(shots=[LOW], said=said, checkpoint=checkpoint("head"))
    assert "worker.n_shots are not used" in said[0][2]


def test_a_hosted_model_s_name_means_nothing_beside_a_checkpoint() -> None:
    said: list[Any] = []
    make(shots=[], said=said, checkpoint=checkpoint("knn"), model_type="omega_1_5_base")
    assert not said


def test_bad_cells_and_missing_columns_are_told_as_ever() -> None:
    worker = classifier(checkpoint("head"))
    _, _, failures = run(worker, Memory(spoil(table(60, 0, 1), 30, b"1400000029,abc,idle,1")))
    assert set(failures.values()) == {"sensor.csv row 30 (line 31), column 'HKLD': 'abc' is not a number"}
    with pytest.raises(InputInvalid, match="no column 'HKLD'"):
        worker.plan(Memory(b"DATE_TIME,RPM\n1,2\n", id="inp_other"))


UNFIT: dict[str, tuple[Any, str]] = {
    "no checkpoint": (lambda: Memory(table(60, 0, 1), "low.csv"), "low.csv is not a JOS checkpoint"),
    "half a checkpoint": (lambda: Memory(checkpoint("head").data[:-9], "half"), "half is damaged"),
    "a tensor is missing": (lambda: checkpoint("head", classifier_tensors={}), "cannot be used by this version"),
    "an unknown encoder": (
        lambda: checkpoint("knn", embedder={**unpack_model(checkpoint("knn").data, "it").embedder, "encoder": "new"}),
        "unknown encoder 'new'",
    ),
    "classes that are not the classifier's": (lambda: checkpoint("head", classes=("a", "b")), "contradicts itself"),
    "columns that are not the encoder's": (lambda: checkpoint("knn", data_columns=("a",)), "contradicts itself"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_file_that_cannot_be_started_from_stops_the_job_with_the_reason(case: str) -> None:
    given, why = UNFIT[case]
    with pytest.raises(JobImpossible) as caught:
        classifier(given())
    assert why in caught.value.message
