"""From a request to what really runs: merging, and every violation at once with its JSON path."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jos.core.config import merge, resolve
from jos.core.errors import ConfigInvalid, Violation
from jos.core.model import JobRequest, Pipeline
from jos.core.schema import did_you_mean, json_path, not_json, violations

FULL = {
    "type": "object",
    "additionalProperties": False,
    "required": ["batch_size", "seed"],
    "properties": {
        "batch_size": {"type": "integer", "minimum": 1},
        "model": {"enum": ["rocket", "hydra"]},
        "seed": {"type": "integer"},
        "reader": {"$ref": "#/$defs/reader"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "allOf": [
        {
            "if": {"properties": {"model": {"const": "hydra"}}, "required": ["model"]},
            "then": {"properties": {"batch_size": {"maximum": 64}}},
        }
    ],
    "$defs": {
        "reader": {
            "type": "object",
            "properties": {
                "columns": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                "window": {"type": "integer", "minimum": 3},
                "buffer": {"type": "integer"},
            },
        }
    },
}
USER = {
    "type": "object",
    "properties": {
        "batch_size": {"type": "integer", "minimum": 1, "maximum": 1000},
        "model": {"enum": ["rocket", "hydra"]},
        "reader": {
            "type": "object",
            "properties": {
                "columns": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                "window": {"type": "integer", "minimum": 3},
            },
            "required": ["columns"],
        },
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
PIPELINE = Pipeline.model_validate(
    {
        "pipeline_key": "states",
        "pipeline_version": "1.0.0",
        "name": "States",
        "worker": "states:States",
        "max_parallelism": 8,
        "default_config": {
            "worker": {
                "parallelism": 2,
                "config": {"batch_size": 32, "seed": 0, "reader": {"window": 16, "buffer": 1}},
            }
        },
        "config_schema": {"worker": FULL},
        "user_config_schema": {"worker": USER},
        "inputs": {
            "worker.inference": {"name": "Inference"},
            "worker.n_shots": {
                "name": "Examples",
                "mode": "n_shot_file_list",
                "distribute": "replicate",
                "tracked": False,
            },
            "worker.checkpoint": {
                "name": "Checkpoint",
                "mode": "checkpoint",
                "distribute": "replicate",
                "required": False,
                "tracked": False,
            },
        },
        "outputs": {"worker.results": {"name": "Results"}},
    }
)
SHOTS = [
    {"file_id": "idle.csv", "metadata": {"class": "idle"}},
    {"file_id": "running.csv", "metadata": {"class": "running"}},
]
GOOD: dict[str, Any] = {"worker.inference": [{"file_id": "a.csv"}], "worker.n_shots": SHOTS}
CHECKPOINT = {"worker.checkpoint": [{"kind": "checkpoint", "checkpoint_id": "ckp_1"}]}


def request(
    config: Any = None, inputs: dict[str, Any] | None = None, parallelism: int | None = None, **more: Any
) -> JobRequest:
    body = {
        "name": "a job",
        "pipeline_key": "states",
        "inputs": GOOD if inputs is None else inputs,
        "parameters": {"worker": {"parallelism": parallelism, "config": config or {}}},
    }
    return JobRequest.model_validate(body | more)


def wrong(asked: JobRequest, pipeline: Pipeline = PIPELINE) -> list[Violation]:
    with pytest.raises(ConfigInvalid) as caught:
        resolve(pipeline, asked)
    return caught.value.violations


# --- merging ------------------------------------------------------------------------------------------


def test_what_the_user_leaves_out_is_the_pipelines() -> None:
    config = {"batch_size": 8, "reader": {"columns": ["x"], "window": 64}}
    assert resolve(PIPELINE, request(config)) == {
        "worker": {
            "parallelism": 2,
            "config": {"batch_size": 8, "seed": 0, "reader": {"columns": ["x"], "window": 64, "buffer": 1}},
        }
    }


def test_a_request_without_parameters_runs_on_defaults() -> None:
    merged = resolve(PIPELINE, request(parameters={}))
    assert merged == {"worker": PIPELINE.default_config["worker"]}


def test_parallelism_is_the_users() -> None:
    assert resolve(PIPELINE, request(parallelism=8))["worker"]["parallelism"] == 8


def test_resolving_changes_neither_pipeline_nor_request() -> None:
    asked = request({"reader": {"columns": ["x"]}})
    before = PIPELINE.model_dump_json(), asked.model_dump_json()
    resolve(PIPELINE, asked)
    assert (PIPELINE.model_dump_json(), asked.model_dump_json()) == before


def test_lists_are_replaced_and_objects_merged() -> None:
    below = {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert merge(below, {"a": {"y": [3]}, "c": None}) == {"a": {"x": 1, "y": [3]}, "b": 1, "c": None}


# --- one wrong thing at a time: config, path, code, part of the message -------------------------------

CONFIGS: dict[str, tuple[Any, str, str, str]] = {
    "a locked field": ({"seed": 1}, "$.parameters.worker.config.seed", "locked", "locked by the pipeline"),
    "a locked field even at its default": ({"seed": 0}, "$.parameters.worker.config.seed", "locked", "locked"),
    "a locked field behind a reference": (
        *({"reader": {"columns": ["x"], "buffer": 2}}, "$.parameters.worker.config.reader.buffer"),
        *("locked", "locked by the pipeline"),
    ),
    "a misspelt field": (
        *({"batchsize": 8}, "$.parameters.worker.config.batchsize"),
        *("unknown", 'Did you mean "batch_size"?'),
    ),
    "a misspelt field of an object": (
        *({"reader": {"columns": ["x"], "windw": 9}}, "$.parameters.worker.config.reader.windw"),
        *("unknown", 'Did you mean "window"?'),
    ),
    "a field far from any other": ({"zzz": 8}, "$.parameters.worker.config.zzz", "unknown", "Known: batch_size,"),
    "too small for both schemas, told once": (
        *({"batch_size": 0}, "$.parameters.worker.config.batch_size"),
        *("invalid", "0 is less than the minimum of 1"),
    ),
    "too large for a user": ({"batch_size": 1001}, "$.parameters.worker.config.batch_size", "invalid", "1000"),
    "wrong only together with a default": (
        *({"model": "hydra", "batch_size": 65}, "$.parameters.worker.config.batch_size"),
        *("invalid", "maximum of 64"),
    ),
    "a choice that does not exist": (
        *({"model": "rockt"}, "$.parameters.worker.config.model"),
        *("invalid", '"rockt" is not one of "rocket", "hydra". Did you mean "rocket"?'),
    ),
    "a wrong type in a list": (
        *({"reader": {"columns": ["x", 3]}}, "$.parameters.worker.config.reader.columns[1]"),
        *("invalid", '3 is not of type "string"'),
    ),
    "an object where a number belongs": (
        {"batch_size": {}},
        "$.parameters.worker.config.batch_size",
        "invalid",
        "type",
    ),
    "a number where an object belongs": ({"reader": 3}, "$.parameters.worker.config.reader", "invalid", "type"),
    "what the user must give is missing": (
        *({"reader": {}}, "$.parameters.worker.config.reader.columns"),
        *("missing", "is required"),
    ),
    "a value that is not JSON": (
        *({"batch_size": float("nan")}, "$.parameters.worker.config.batch_size"),
        *("invalid", "nan is not a JSON number"),
    ),
    "a value of an open object": (
        *({"labels": {"a key": 3}}, '$.parameters.worker.config.labels["a key"]'),
        *("invalid", '3 is not of type "string"'),
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config(case: str) -> None:
    config, path, code, message = CONFIGS[case]
    (violation,) = wrong(request(config))
    assert (violation.path, violation.code) == (path, code)
    assert message in violation.message


def test_an_open_object_takes_any_key() -> None:
    assert resolve(PIPELINE, request({"labels": {"any key": "x"}}))


@pytest.mark.parametrize(("parallelism", "fits"), [(0, False), (-3, False), (1, True), (8, True), (9, False)])
def test_parallelism_bounds(parallelism: int, fits: bool) -> None:
    asked = request(parallelism=parallelism)
    if fits:
        assert resolve(PIPELINE, asked)["worker"]["parallelism"] == parallelism
    else:
        assert [v.path for v in wrong(asked)] == ["$.parameters.worker.parallelism"]


def file(**fields: Any) -> dict[str, Any]:
    return {"worker.inference": [{"file_id": "a.csv"}, fields], "worker.n_shots": SHOTS}


def shots(*refs: Any) -> dict[str, Any]:
    return {"worker.inference": [{"file_id": "a.csv"}], "worker.n_shots": list(refs)}


INPUTS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "an unknown port": (
        *(GOOD | {"worker.inferense": []}, '$.inputs["worker.inferense"]'),
        *("unknown", 'Did you mean "worker.inference"?'),
    ),
    "a required port is missing": (
        *({"worker.n_shots": SHOTS}, '$.inputs["worker.inference"]'),
        *("missing", "at least one file"),
    ),
    "a required port is empty": (GOOD | {"worker.n_shots": []}, '$.inputs["worker.n_shots"]', "missing", "required"),
    "a file without a name": (file(), '$.inputs["worker.inference"][1].file_id', "missing", "required"),
    "a checkpoint on a port of files": (
        *(file(kind="checkpoint", checkpoint_id="ckp_1"), '$.inputs["worker.inference"][1]'),
        *("invalid", "takes files"),
    ),
    "an example without a class": (
        *(shots(*SHOTS, SHOTS[0], {"file_id": "b.csv"}), '$.inputs["worker.n_shots"][3].metadata.class'),
        *("missing", "example of a class"),
    ),
    "an example with an empty class": (
        *(shots(*SHOTS, {"file_id": "b.csv", "metadata": {"class": " "}}),),
        *('$.inputs["worker.n_shots"][2].metadata.class', "invalid", "not empty"),
    ),
    "examples of one class only": (
        *(shots(SHOTS[0], SHOTS[0]), '$.inputs["worker.n_shots"]'),
        *("invalid", 'only the class "idle"'),
    ),
    "a file on a checkpoint port": (
        *(GOOD | {"worker.checkpoint": [{"file_id": "a.csv"}]}, '$.inputs["worker.checkpoint"][0]'),
        *("invalid", "is a file"),
    ),
    "a checkpoint without an id": (
        *(GOOD | {"worker.checkpoint": [{"kind": "checkpoint"}]},),
        *('$.inputs["worker.checkpoint"][0].checkpoint_id', "missing", "required"),
    ),
    "two checkpoints": (
        *(GOOD | {"worker.checkpoint": CHECKPOINT["worker.checkpoint"] * 2}, '$.inputs["worker.checkpoint"]'),
        *("invalid", "one checkpoint, not 2"),
    ),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs(case: str) -> None:
    inputs, path, code, message = INPUTS[case]
    (violation,) = wrong(request(inputs=inputs))
    assert (violation.path, violation.code) == (path, code)
    assert message in violation.message


def test_a_checkpoint_stands_in_for_examples_and_required_fields() -> None:
    inputs = {"worker.inference": [{"file_id": "a.csv"}], **CHECKPOINT}
    assert resolve(PIPELINE, request({"reader": {}}, inputs=inputs))
    assert resolve(PIPELINE, request(inputs=inputs | {"worker.n_shots": [{"file_id": "unlabelled.csv"}]}))
    assert [v.code for v in wrong(request({"seed": 1}, inputs=inputs))] == ["locked"]


def test_several_files_of_a_class_are_welcome() -> None:
    assert resolve(PIPELINE, request(inputs=shots(*SHOTS, *SHOTS, {"file_id": "2.csv", "metadata": {"class": 2}})))


def test_everything_wrong_is_told_at_once() -> None:
    asked = request(
        {"seed": 1, "batchsize": 3, "model": "none", "reader": {"window": 1}},
        inputs={"worker.n_shots": [SHOTS[0], {"file_id": "b.csv"}], "other": []},
        parallelism=99,
        pipeline_type="training",
    )
    extra = JobRequest.model_validate(
        asked.model_dump() | {"parameters": asked.model_dump()["parameters"] | {"wroker": {}}}
    )
    assert sorted(v.path for v in wrong(extra)) == sorted(
        [
            "$.pipeline_type",
            "$.parameters.wroker",
            "$.parameters.worker.parallelism",
            "$.parameters.worker.config.seed",
            "$.parameters.worker.config.batchsize",
            "$.parameters.worker.config.model",
            "$.parameters.worker.config.reader.window",
            "$.parameters.worker.config.reader.columns",
            "$.inputs.other",
            '$.inputs["worker.inference"]',
            '$.inputs["worker.n_shots"][1].metadata.class',
            '$.inputs["worker.n_shots"]',
        ]
    )
    with pytest.raises(ConfigInvalid, match=r"12 things in the request do not fit pipeline states 1\.0\.0") as caught:
        resolve(PIPELINE, extra)
    assert "$.parameters.worker.config.seed: is locked" in str(caught.value)
    assert caught.value.http_status == 422


def test_a_component_that_is_not_there() -> None:
    (violation,) = wrong(request(parameters={"wroker": {}}))
    assert violation == Violation(
        "$.parameters.wroker", 'is not a component of this pipeline. Did you mean "worker"?', "unknown"
    )


def test_a_schema_never_reaches_for_the_network() -> None:
    with pytest.raises(Exception, match="may refer only to itself"):
        list(violations({"$ref": "https://example.com/schema.json"}, {}, ()))


# --- JSON paths and values ----------------------------------------------------------------------------

PATHS = [
    ((), "$"),
    (("inputs", "worker.n_shots", 3, "metadata", "class"), '$.inputs["worker.n_shots"][3].metadata.class'),
    (("a b", 'say "hi"', "", "ümlaut", "_x1"), r'$["a b"]["say \"hi\""][""]["\u00fcmlaut"]._x1'),
]


@pytest.mark.parametrize(("parts", "path"), PATHS)
def test_json_path(parts: tuple[str | int, ...], path: str) -> None:
    assert json_path(parts) == path


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("Batch_Size", ' Did you mean "batch_size"?'),
        ("dataColumn", ' Did you mean "dataColumns"?'),
        ("qqq", " Known: batch_size, dataColumns."),
    ],
)
def test_did_you_mean(word: str, hint: str) -> None:
    assert did_you_mean(word, ["dataColumns", "batch_size"]) == hint
    assert did_you_mean(word, []) == ""


def test_what_is_not_json() -> None:
    value = {"a": [1, 2.5, None, True, "x"], "b": {1: 2}, "c": [float("inf")], "d": {3}, "e": (1,)}
    assert [v.path for v in not_json(value, ("config",))] == ["$.config.b", "$.config.c[0]", "$.config.d", "$.config.e"]


# --- against the reference library --------------------------------------------------------------------

LEAF = st.none() | st.booleans() | st.integers(-5, 70) | st.sampled_from(["rocket", "hydra", "x", ""])
VALUE = st.recursive(LEAF, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from("abx"), v, max_size=2))
NAMES = ["batch_size", "model", "seed", "reader", "labels", "columns", "window", "buffer", "other"]
NESTED = st.dictionaries(st.sampled_from(NAMES), VALUE | st.lists(st.just("x")) | st.integers(1, 40), max_size=4)
CONFIG = st.dictionaries(st.sampled_from(NAMES), VALUE | NESTED | st.integers(1, 40), max_size=5)
SCHEMA_KEYS = {"minimum": 3, "maximum": 40, "minItems": 1, "maxItems": 2, "minLength": 1, "uniqueItems": True}
SCHEMA = st.recursive(
    st.sampled_from([{"type": t} for t in ("string", "integer", "number", "array", "object", "null")])
    | st.sampled_from([{name: value} for name, value in SCHEMA_KEYS.items()])
    | st.sampled_from([True, {}, {"enum": ["x", 3]}, {"const": None}, {"required": ["model"]}]),
    lambda s: (
        st.dictionaries(st.sampled_from(NAMES), s, max_size=3).map(lambda p: {"properties": p})
        | st.lists(s, min_size=1, max_size=2).map(lambda p: {"allOf": p})
        | st.lists(s, min_size=1, max_size=2).map(lambda p: {"anyOf": p})
        | s.map(lambda one: {"items": one})
        | s.map(lambda one: {"not": one})
        | s.map(lambda one: {"additionalProperties": one})
    ),
    max_leaves=6,
)


def reference_paths(schema: Any, value: Any) -> set[str]:
    """As `violations` reports: a missing or superfluous field is at its own path."""
    found = set()
    for error in jsonschema.Draft202012Validator(schema).iter_errors(value):
        at = list(error.absolute_path)
        if error.validator == "required":
            (name,) = re.findall(r"^'(.*)' is a required", error.message)
            found.add(json_path([*at, name]))
        elif error.validator == "additionalProperties" and error.validator_value is False:
            declared = error.schema.get("properties", {})
            found |= {json_path([*at, name]) for name in error.instance if name not in declared}
        else:
            found.add(json_path(at))
    return found


@settings(max_examples=200, deadline=None)
@given(schema=SCHEMA | st.just(FULL) | st.just(USER), value=CONFIG)
def test_violations_agree_with_the_reference_library(schema: Any, value: dict[str, Any]) -> None:
    assert {v.path for v in violations(schema, value, ())} == reference_paths(schema, value)


def without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: without_nulls(one) for name, one in value.items() if one is not None}


def test_a_null_that_the_schema_does_not_take_is_as_good_as_left_out() -> None:
    nulls = {"batch_size": None, "reader": {"columns": ["a"], "window": None}}
    merged = resolve(PIPELINE, request(nulls))["worker"]["config"]
    assert merged == resolve(PIPELINE, request({"reader": {"columns": ["a"]}}))["worker"]["config"]
    with pytest.raises(ConfigInvalid, match="1 thing") as raised:
        resolve(PIPELINE, request({"reader": {"columns": None}}))
    assert [v.code for v in raised.value.violations] == ["missing"]


@settings(max_examples=200, deadline=None)
@given(config=CONFIG)
def test_what_resolve_lets_through_fits_the_schema_and_leaves_locked_fields_alone(config: dict[str, Any]) -> None:
    try:
        merged = resolve(PIPELINE, request(config))["worker"]["config"]
    except ConfigInvalid as error:
        paths = [violation.path for violation in error.violations]
        assert paths
        assert all(path.startswith("$.parameters.worker.config") for path in paths)
        return
    jsonschema.Draft202012Validator(FULL).validate(merged)
    jsonschema.Draft202012Validator(USER).validate(without_nulls(config))
    assert merged["seed"] == 0
    assert merged.get("reader", {}).get("buffer") == 1
    assert json.loads(json.dumps(merged)) == merged


def test_an_engine_that_reads_files_takes_a_checkpoint_as_one() -> None:
    files = {"worker.checkpoint": [{"file_id": "model.ckpt"}]}
    asked = request(inputs={**GOOD, **files})
    assert resolve(PIPELINE, asked, model_files=True)
    with pytest.raises(ConfigInvalid):
        resolve(PIPELINE, asked)
