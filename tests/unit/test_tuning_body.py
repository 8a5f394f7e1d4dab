"""Fine-tuning in its clients' words, and the same as a job of a pipeline."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from jos.api import tuning_body
from jos.core import config
from jos.core.errors import ConfigInvalid, Violation
from jos.core.model import JobInput, JobRequest, JobSpec
from jos.registry import Registry
from jos.wire_tuning import TuningCreate

READER = {"data_columns": ["a"], "window_size": 8, "step_size": 2}
FILES = [{"file_id": "one.csv", "label": "idle"}, {"file_id": "two.csv", "label": 2}]


def body(kind: str = "head", **fields: Any) -> TuningCreate:
    settings = {"hyperparameters": fields.pop("hyperparameters", {}), "reader": READER}
    method = {"type": kind, kind: settings}
    return TuningCreate.model_validate({"name": "n", "method": method, "training_files": FILES, **fields})


@pytest.mark.parametrize("kind", ["head", "knn"])
def test_what_was_asked_for_reads_the_same_after_it_became_a_job(kind: str) -> None:
    own = {"n_epochs": 4, "learning_rate": 0.1} if kind == "head" else {"n_neighbors": 3, "metric": "cosine"}
    asked = body(kind, seed=3, model="rocket", hyperparameters={"batch_size": 5, **own}, validation_files=FILES[:1])
    made = tuning_body.translated(asked)
    request = JobRequest.model_construct(**vars(made))
    pipeline = Registry().get(made.pipeline_key)
    parameters = config.resolve(pipeline, request)
    inputs = [
        JobInput(id=f"inp_{n}", port=port, url="/x", filename="x", num_bytes=1, fingerprint="f", **ref.model_dump(
            include={"file_id", "metadata"}
        ))
        for port, refs in made.inputs.items()
        for n, ref in enumerate(refs)
    ]  # fmt: skip
    spec = JobSpec(
        id="job_1",
        org_id="o",
        name="n",
        pipeline=pipeline,
        parameters=parameters,
        inputs=inputs,
        created_at=datetime.now(UTC),
    )
    told = tuning_body.described(spec)
    assert told["method"]["type"] == kind
    given = told["method"][kind]
    assert given["reader"] == READER
    assert {"batch_size": 5, **own}.items() <= given["hyperparameters"].items()
    assert (told["model"], told["seed"]) == ("rocket", 3)
    assert [(f["file_id"], f["label"]) for f in told["training_files"]] == [("one.csv", "idle"), ("two.csv", "2")]
    assert [f["file_id"] for f in told["validation_files"]] == ["one.csv"]


def test_what_keeps_its_default_is_left_out() -> None:
    made = tuning_body.translated(body(hyperparameters={"n_epochs": "auto", "batch_size": None}))
    assert made.parameters["worker"].config == {"reader_config": READER}
    assert list(made.inputs) == ["worker.train_data"]


@pytest.mark.parametrize(
    ("kind", "inside", "told"),
    [
        ("head", "$.parameters.worker.config.train_config.epochs", "$.method.head.hyperparameters.n_epochs"),
        ("head", "$.parameters.worker.config.train_config.patience", "$.method.head.hyperparameters.patience"),
        ("head", "$.parameters.worker.config.batch_size", "$.method.head.hyperparameters.batch_size"),
        ("knn", "$.parameters.worker.config.classifier_config.metric", "$.method.knn.hyperparameters.metric"),
        ("knn", "$.parameters.worker.config.reader_config.data_columns[3]", "$.method.knn.reader.data_columns[3]"),
        ("knn", "$.parameters.worker.config.model_type", "$.model"),
        ("knn", "$.parameters.worker.config.seed", "$.seed"),
        ("knn", "$.parameters.worker.config", "$.method.knn"),
        ("head", '$.inputs["worker.train_data"][7].metadata.class', "$.training_files[7].label"),
        ("head", '$.inputs["worker.eval_data"]', "$.validation_files"),
        ("head", "$.parameters.worker.config.reader_config.metadata.class", "$.method.head.reader.metadata.class"),
        ("head", "$.pipeline_type", "$"),
    ],
)
def test_what_a_pipeline_refuses_is_told_of_the_body_that_was_sent(kind: str, inside: str, told: str) -> None:
    (found,) = tuning_body.in_their_terms(kind, [Violation(inside, "is wrong.", "missing")])
    assert found == Violation(told, "is wrong.", "missing")


def test_settings_of_the_other_method_are_not_passed_over() -> None:
    both = {"type": "knn", "knn": {"reader": READER}, "head": {}}
    with pytest.raises(ConfigInvalid) as caught:
        tuning_body.translated(body(method=both))
    assert [one.path for one in caught.value.violations] == ["$.method.head"]


def test_the_pipelines_have_the_ports_and_sections_that_are_written_to() -> None:
    for kind, key in tuning_body.PIPELINES.items():
        pipeline = Registry().get(key)
        assert {tuning_body.TRAIN, tuning_body.EVAL} <= pipeline.inputs.keys()
        schema = pipeline.user_config_schema["worker"]["properties"]
        assert {"model_type", "batch_size", "seed", "reader_config", tuning_body._SECTIONS[kind]} <= schema.keys()
        inside = schema[tuning_body._SECTIONS[kind]]["properties"]
        assert set(tuning_body._RENAMED[kind].values()) <= inside.keys()
