"""What is wrong with a pipeline template, told to its author: all of it at once, each with its path in the file.

Looks only at the template itself; whether the worker can be imported is for jos.registry to find out.
May import: stdlib, jsonschema_rs, jos.core. Tests: tests/unit/test_registry.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs

from jos.core.errors import Violation
from jos.core.model import Distribute, Pipeline, PortMode
from jos.core.schema import DIALECT, Path, did_you_mean, is_open, json_path, not_json, properties, validator, violations

_WORKER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
DEEPEST = 16  # levels of a configuration that are compared
_PORT = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*")


def check_template(pipeline: Pipeline) -> list[Violation]:
    """Everything that would make jobs of this pipeline fail, or not mean what its author thinks."""
    return [
        *_check_worker(pipeline),
        *_check_components(pipeline),
        *_check_ports(pipeline),
        *_check_edges(pipeline),
        *_check_limits(pipeline),
    ]


def _check_worker(pipeline: Pipeline) -> Iterator[Violation]:
    if not _WORKER.fullmatch(pipeline.worker):
        yield Violation("$.worker", f'"{pipeline.worker}" does not look like "package.module:Class".')
    if not pipeline.command:
        yield Violation("$.command", "must hold the words that start the driver.")
    name = (pipeline.image or "").rpartition("/")[2]
    if pipeline.image is not None and not any(mark in name for mark in ":@"):
        yield Violation("$.image", "has no tag: name the exact image, so that a version always runs the same code.")
    elif name.endswith(":latest"):
        yield Violation("$.image", '"latest" changes under a published version: name the exact image.')


def _check_components(pipeline: Pipeline) -> Iterator[Violation]:
    if len(pipeline.default_config) != 1:
        yield Violation(
            "$.default_config",
            f"has {len(pipeline.default_config)} components; a pipeline has one (one worker class runs it).",
        )
    parts = {"config_schema": pipeline.config_schema, "user_config_schema": pipeline.user_config_schema}
    for field, schemas in parts.items():
        for component in pipeline.default_config.keys() - schemas.keys():
            yield Violation(json_path((field, component)), "is missing: each component needs a schema.", "missing")
        for component in schemas.keys() - pipeline.default_config.keys():
            yield Violation(json_path((field, component)), "has no default_config.", "unknown")
    for component in pipeline.default_config:
        sound = True
        for field, schemas in parts.items():
            wrong = list(_check_schema(schemas.get(component, {}), (field, component)))
            sound = sound and not wrong
            yield from wrong
        if sound:
            yield from _check_default(pipeline, component)
            schema, user = (schemas.get(component, {}) for schemas in parts.values())
            yield from _check_subset(user, user, schema, schema, ("user_config_schema", component))


def _check_schema(schema: Any, at: Path) -> Iterator[Violation]:
    path = json_path(at)
    if not isinstance(schema, dict):
        yield Violation(path, "must be a JSON Schema object.")
        return
    wrong = list(not_json(schema, at))
    if wrong:
        yield from wrong
        return
    if str(schema.get("$schema", DIALECT)).rstrip("#") != DIALECT:
        yield Violation(json_path((*at, "$schema")), f"must be {DIALECT}, or left out.")
        return
    try:
        validator(schema)
    except (ValueError, jsonschema_rs.ValidationError) as error:
        where = getattr(error, "instance_path", None) or ()
        message = getattr(error, "message", None) or str(error)
        yield Violation(json_path((*at, *where)), f"is not valid JSON Schema 2020-12: {message}.")
        return
    if schema.get("type", "object") != "object":
        yield Violation(json_path((*at, "type")), 'must be "object": a configuration has named fields.')
    required = schema.get("required", ())
    for name in required:
        if name not in properties(schema, schema) and not is_open(schema, schema, name):
            yield Violation(json_path((*at, "required")), f'names "{name}", which is not among the properties.')


def _check_default(pipeline: Pipeline, component: str) -> Iterator[Violation]:
    default = pipeline.default_config[component]
    at = ("default_config", component)
    for name in default.keys() - {"parallelism", "config"}:
        hint = did_you_mean(name, ("parallelism", "config"))
        yield Violation(json_path((*at, name)), f"is neither parallelism nor config.{hint}", "unknown")
    parallelism = default.get("parallelism", 1)
    if not isinstance(parallelism, int) or not 1 <= parallelism <= pipeline.max_parallelism:
        most = pipeline.max_parallelism
        yield Violation(
            json_path((*at, "parallelism")), f"must be a whole number between 1 and {most} (max_parallelism)."
        )
    config = default.get("config", {})
    wrong = list(not_json(config, (*at, "config")))
    yield from wrong or violations(pipeline.config_schema.get(component, {}), config, (*at, "config"))


def _check_subset(user: Any, user_root: Any, full: Any, full_root: Any, at: Path) -> Iterator[Violation]:
    """A user could never set a field that the merged configuration does not have."""
    if len(at) > 2 * DEEPEST:  # a schema that refers to itself has no end
        return
    existing = properties(full, full_root)
    for name, schema in properties(user, user_root).items():
        path = (*at, "properties", name)
        if name in existing:
            yield from _check_subset(schema, user_root, existing[name], full_root, path)
        elif not is_open(full, full_root, name):
            hint = did_you_mean(name, existing)
            yield Violation(json_path(path), f"is not a field of config_schema.{hint}", "unknown")


def _check_ports(pipeline: Pipeline) -> Iterator[Violation]:
    for field, names in (("inputs", pipeline.inputs), ("outputs", pipeline.outputs)):
        for name in names:
            if not _PORT.fullmatch(name):
                yield Violation(json_path((field, name)), 'must be written as "component.port".')
            elif name.partition(".")[0] not in pipeline.default_config:
                hint = did_you_mean(name.partition(".")[0], pipeline.default_config)
                yield Violation(
                    json_path((field, name)), f"belongs to a component that does not exist.{hint}", "unknown"
                )
    if not pipeline.inputs:
        yield Violation("$.inputs", "has no port, so a job would have nothing to work on.", "missing")
    for name, port in pipeline.inputs.items():
        at = ("inputs", name)
        if port.mode is PortMode.CHECKPOINT and port.tracked:
            yield Violation(json_path((*at, "tracked")), "must be false: a checkpoint is never worked through.")
        # labelled files are shared out where something is learned from them, each at a time
        whole = (
            {PortMode.CHECKPOINT} if pipeline.pipeline_type == "training" else {PortMode.CHECKPOINT, PortMode.N_SHOT}
        )
        if port.mode in whole and port.distribute is Distribute.SCATTER:
            yield Violation(json_path((*at, "distribute")), "must be replicate: every index needs all of it.")
        elif port.distribute is Distribute.SCATTER and not port.tracked:
            yield Violation(json_path((*at, "tracked")), "must be true: what is shared out is counted in progress.")
    if (
        pipeline.pipeline_type == "batch"
        and pipeline.inputs
        and not any(port.distribute is Distribute.SCATTER for port in pipeline.inputs.values())
    ):
        yield Violation(
            "$.inputs", "has no scatter port, so there is nothing to share out over the indexes.", "missing"
        )


def _check_edges(pipeline: Pipeline) -> Iterator[Violation]:
    for index, edge in enumerate(pipeline.edges):
        for field, component in (("from", edge.source), ("to", edge.target)):
            if component not in pipeline.default_config:
                path = json_path(("edges", index, field))
                yield Violation(path, f'"{component}" is not a component.', "unknown")
        ports = (
            ("output", f"{edge.source}.{edge.output}", pipeline.outputs),
            ("input", f"{edge.target}.{edge.input}", pipeline.inputs),
        )
        for field, port, known in ports:
            if port not in known:
                yield Violation(json_path(("edges", index, field)), f'"{port}" is not among the {field}s.', "unknown")


def _check_limits(pipeline: Pipeline) -> Iterator[Violation]:
    times, retries, gpu = pipeline.timeouts, pipeline.retry_policy, pipeline.resources.gpu
    if times.run is not None:
        for field in ("task", "no_progress", "drain"):
            value = getattr(times, field)
            chosen = field in times.model_fields_set  # against a mere default, the run timeout simply comes first
            if chosen and value is not None and value >= times.run:
                yield Violation(
                    f"$.timeouts.{field}", f"{value:g} s is not less than the run timeout, {times.run:g} s."
                )
    if times.task is not None and times.no_progress is not None and times.task > times.no_progress:
        message = f"{times.task:g} s is more than no_progress, {times.no_progress:g} s, which would strike first."
        yield Violation("$.timeouts.task", message)
    if times.drain > 3600:
        yield Violation(
            "$.timeouts.drain", f"{times.drain:g} s would keep a cancelled job's capacity for over an hour."
        )
    if retries.backoff > retries.backoff_max:
        yield Violation("$.retry_policy.backoff", f"is more than backoff_max, {retries.backoff_max:g} s.")
    if gpu.required and gpu.count == 0:
        yield Violation("$.resources.gpu.count", "is 0, but a GPU is required.")
    if gpu.count > 1 and gpu.count != int(gpu.count):
        yield Violation("$.resources.gpu.count", f"{gpu.count:g}: more than one GPU must be a whole number.")
