"""From a request to the configuration that really runs: pipeline default < what the user sets.

`resolve` finds everything that is wrong at once, each with its JSON path in the request, so that a user corrects a
job in one go. What a user may set is the pipeline's `user_config_schema`; the rest of `config_schema` is locked.
May import: stdlib, pydantic, jos.core. Tests: tests/unit/test_config.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from jos.core.errors import ConfigInvalid, Violation
from jos.core.model import ComponentParameters, InputPort, InputRef, JobRequest, Json, Pipeline, PortMode
from jos.core.schema import Path, Schema, did_you_mean, is_open, json_path, not_json, properties, violations

MOST = 1000  # violations of one kind that are gathered: a body can hold millions
MOST_VALUES = 20_000  # of one component's configuration; each may be wrong, and an error is a thousand times as large


def resolve(pipeline: Pipeline, request: JobRequest, *, model_files: bool = False) -> dict[str, Json]:
    """The merged parameters of every component: {component: {"parallelism": n, "config": {…}}}.

    Raises ConfigInvalid with every violation of parameters and inputs. Whether the files exist is not looked at.
    `model_files`: a port of checkpoints takes files as well, for an engine that reads paths and URLs.
    """
    found = list(_check_type(pipeline, request))
    merged: dict[str, Json] = {}
    for name in sorted(request.parameters.keys() - pipeline.default_config.keys())[:MOST]:
        message = f"is not a component of this pipeline.{did_you_mean(name, pipeline.default_config)}"
        found.append(Violation(json_path(("parameters", name)), message, "unknown"))
    for component in pipeline.default_config:
        asked = request.parameters.get(component, ComponentParameters())
        parallelism, wrong = _parallelism(pipeline, component, asked)
        found += wrong
        config, wrong = _config(pipeline, component, asked.config)
        # a checkpoint brings the configuration it was trained with
        found += [one for one in wrong if one.code != "missing"] if _has_checkpoint(pipeline, request) else wrong
        merged[component] = {"parallelism": parallelism, "config": config}
    found += islice(_check_inputs(pipeline, request, model_files), MOST)
    if found:
        fits = "1 thing in the request does" if len(found) == 1 else f"{len(found)} things in the request do"
        which = f"pipeline {pipeline.pipeline_key} {pipeline.pipeline_version}"
        raise ConfigInvalid(f"{fits} not fit {which}.", found)
    return merged


def merge(below: Json, above: Json) -> Json:
    """`above` laid over `below`: objects are merged field by field, everything else is replaced."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        merged[name] = merge(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def _check_type(pipeline: Pipeline, request: JobRequest) -> Iterator[Violation]:
    if request.pipeline_type not in (None, pipeline.pipeline_type):
        yield Violation(
            "$.pipeline_type",
            f'is "{request.pipeline_type}", but {pipeline.pipeline_key} is a "{pipeline.pipeline_type}" pipeline.',
        )


# --- parameters ---------------------------------------------------------------------------------------


def _parallelism(pipeline: Pipeline, component: str, asked: ComponentParameters) -> tuple[int, list[Violation]]:
    value = asked.parallelism
    if value is None:
        value = int(pipeline.default_config[component].get("parallelism", 1))
    path = json_path(("parameters", component, "parallelism"))
    if value < 1:
        return value, [Violation(path, f"{value} is less than 1.")]
    if value > pipeline.max_parallelism:
        return value, [Violation(path, f"{value} is more than {pipeline.max_parallelism}, the most of this pipeline.")]
    return value, []


def _config(pipeline: Pipeline, component: str, asked: Json) -> tuple[Json, list[Violation]]:
    at = ("parameters", component, "config")
    default = pipeline.default_config[component].get("config", {})
    schema = pipeline.config_schema.get(component, {})
    user_schema = pipeline.user_config_schema.get(component, {"properties": {}})
    if _many(asked):
        return default, [Violation(json_path(at), f"holds more than {MOST_VALUES:,} values.")]
    found = list(islice(not_json(asked, at), MOST))
    if found:
        return default, found
    settable, found = _settable(asked, (user_schema, user_schema), (schema, schema), at)
    refused = {violation.path for violation in islice(violations(user_schema, settable, at), MOST)}
    settable = _given(settable, refused, at)
    paths = {violation.path for violation in found}
    for rules, value in ((user_schema, settable), (schema, merge(default, settable))):
        new = [v for v in islice(violations(rules, value, at), MOST) if v.path not in paths]
        found += new
        paths |= {violation.path for violation in new}
    return merge(default, settable), found


def _given(asked: Json, refused: set[str], at: Path) -> Json:
    """Without the nulls that the schema does not take: clients write them for what they leave out."""
    return {
        name: _given(value, refused, (*at, name)) if isinstance(value, dict) else value
        for name, value in asked.items()
        if value is not None or json_path((*at, name)) not in refused
    }


def _many(value: Any) -> bool:
    waiting, seen = [value], 0
    while waiting and seen <= MOST_VALUES:
        one = waiting.pop()
        seen += 1
        if isinstance(one, dict | list):
            if len(one) > MOST_VALUES:
                return True
            waiting += one.values() if isinstance(one, dict) else one
    return seen > MOST_VALUES


Declared = tuple[Any, Schema]  # a schema, and the root that its references start from


def _settable(asked: Json, user: Declared, full: Declared, at: Path) -> tuple[Json, list[Violation]]:
    """The part of `asked` that a user may set at all, and a violation for each field that is not in it."""
    kept: Json = {}
    found: list[Violation] = []
    allowed, existing = properties(*user), properties(*full)
    for name, value in asked.items():
        if len(found) >= MOST:
            break
        path = (*at, name)
        if name in allowed:
            if isinstance(value, dict):
                value, wrong = _settable(value, (allowed[name], user[1]), (existing.get(name, {}), full[1]), path)
                found += wrong
            kept[name] = value
        elif is_open(*user, name):
            kept[name] = value
        elif name in existing:
            found.append(Violation(json_path(path), "is locked by the pipeline; leave it out.", "locked"))
        else:
            hint = did_you_mean(name, allowed)
            found.append(Violation(json_path(path), f"is not a field of this pipeline.{hint}", "unknown"))
    return kept, found


# --- inputs -------------------------------------------------------------------------------------------


def _has_checkpoint(pipeline: Pipeline, request: JobRequest) -> bool:
    return any(port.mode is PortMode.CHECKPOINT and request.inputs.get(name) for name, port in pipeline.inputs.items())


def _check_inputs(pipeline: Pipeline, request: JobRequest, model_files: bool) -> Iterator[Violation]:
    for name in sorted(request.inputs.keys() - pipeline.inputs.keys()):
        hint = did_you_mean(name, pipeline.inputs)
        yield Violation(json_path(("inputs", name)), f"is not an input port of this pipeline.{hint}", "unknown")
    checkpoint = _has_checkpoint(pipeline, request)
    for name, port in pipeline.inputs.items():
        refs = request.inputs.get(name, [])
        replaced = checkpoint and port.mode is PortMode.N_SHOT  # the checkpoint brings its own reference windows
        if not refs and port.required and not replaced:
            what = "a checkpoint" if port.mode is PortMode.CHECKPOINT else "at least one file"
            yield Violation(json_path(("inputs", name)), f"is required: give it {what}.", "missing")
        elif port.mode is PortMode.CHECKPOINT:
            yield from _check_checkpoint(name, refs, model_files)
        else:
            yield from _check_files(name, refs)
            if refs and port.mode is PortMode.N_SHOT and not replaced:
                yield from _check_classes(name, port, refs)


def _check_files(port: str, refs: list[InputRef]) -> Iterator[Violation]:
    for index, ref in enumerate(refs):
        at = ("inputs", port, index)
        if ref.kind != "file" or ref.checkpoint_id is not None:
            yield Violation(json_path(at), "is a checkpoint, but this port takes files.")
        elif not ref.file_id:
            yield Violation(json_path((*at, "file_id")), "is required.", "missing")


def _check_checkpoint(port: str, refs: list[InputRef], model_files: bool) -> Iterator[Violation]:
    if len(refs) > 1:
        yield Violation(json_path(("inputs", port)), f"takes one checkpoint, not {len(refs)}.")
    for index, ref in enumerate(refs):
        at = ("inputs", port, index)
        if model_files and ref.kind == "file" and ref.file_id and ref.checkpoint_id is None:
            continue
        if ref.kind != "checkpoint" or ref.file_id is not None:
            yield Violation(json_path(at), 'is a file; this port takes {"kind": "checkpoint", "checkpoint_id": …}.')
        elif not ref.checkpoint_id:
            yield Violation(json_path((*at, "checkpoint_id")), "is required.", "missing")


def _check_classes(port: str, rules: InputPort, refs: list[InputRef]) -> Iterator[Violation]:
    classes = set()
    for index, ref in enumerate(refs):
        label = ref.metadata.get("class")
        if isinstance(label, str) and label.strip():
            classes.add(label)
        elif isinstance(label, int) and not isinstance(label, bool):
            classes.add(str(label))
        else:
            path = json_path(("inputs", port, index, "metadata", "class"))
            message = "is required: each file of this port is an example of a class."
            if label is None:
                yield Violation(path, message, "missing")
            else:
                yield Violation(path, "must be text that is not empty: the name of the file's class.")
    if len(classes) == 1 and rules.required:  # files that only score a classifier may show one
        yield Violation(json_path(("inputs", port)), f'has only the class "{classes.pop()}"; two or more are needed.')
