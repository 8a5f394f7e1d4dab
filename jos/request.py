"""Requests as people write them: a job.yaml, command-line options, keyword arguments.

Pure but for reading the file. May import: jos.core, yaml. Tests: tests/unit/test_request.py.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jos.core.errors import BadRequest, ConfigInvalid, Violation
from jos.core.ids import is_id
from jos.core.model import InputRef, JobRequest


def read_request(
    path: Path,
    *,
    inputs: Iterable[str] = (),
    sets: Iterable[str] = (),
    name: str | None = None,
    version: str | None = None,
    priority: int | None = None,
) -> JobRequest:
    """A `job.yaml` (or JSON), with what the command line adds or overrides. Its own relative input paths are
    relative to its folder, those of the command line to the working directory. Raises BadRequest or ConfigInvalid
    with every violation."""
    request = with_base(parse_request(read_yaml(path), str(path)), path.parent)
    parameters = {c: p.model_dump(exclude_unset=True) for c, p in request.parameters.items()}
    for text in sets:
        set_option(parameters, text)
    gathered = {p: [r.model_dump(exclude_unset=True) for r in refs] for p, refs in request.inputs.items()}
    for text in inputs:
        port, refs = input_option(text)
        gathered.setdefault(port, []).extend(refs)
    changed = {"name": name, "pipeline_version": version, "priority": priority}
    data = {**request.model_dump(exclude_unset=True), "inputs": gathered, "parameters": parameters}
    data |= {k: v for k, v in changed.items() if v is not None}
    return with_base(parse_request(data, str(path)), Path.cwd())


def read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path} is not YAML: {error}") from error


def parse_request(data: Any, name: str = "the request") -> JobRequest:
    if not isinstance(data, dict):
        raise BadRequest(
            f"{name} must be a mapping with at least `name`, `pipeline_key` and `inputs`.",
            suggestion="`jos pipelines` lists what can be run, pipelines/*/examples hold whole requests.",
        )
    try:
        return JobRequest.model_validate(data)
    except ValidationError as error:
        violations = [Violation(_path(e["loc"]), e["msg"]) for e in error.errors()]
        raise ConfigInvalid(f"{name} is not a valid job request.", violations) from error


def _path(loc: tuple[int | str, ...]) -> str:
    """A JSON path; names that are no plain identifiers are quoted, as in `$.inputs["worker.inference"][0]`."""
    steps = [f"[{x}]" if isinstance(x, int) else f".{x}" if x.isidentifier() else f'["{x}"]' for x in loc]
    return "$" + "".join(steps)


def with_base(request: JobRequest, folder: Path) -> JobRequest:
    """The request with its relative paths made absolute."""

    def absolute(ref: InputRef) -> InputRef:
        if ref.file_id is None or "://" in ref.file_id:
            return ref
        path = str((folder / Path(ref.file_id).expanduser()).absolute())
        return ref.model_copy(update={"file_id": path})

    return request.model_copy(update={"inputs": {p: [absolute(r) for r in refs] for p, refs in request.inputs.items()}})


def input_option(text: str) -> tuple[str, list[dict[str, Any]]]:
    """`PORT=FILE[,key=value…]`: FILE may be a glob, or the id of a checkpoint; the pairs become metadata:
    `worker.n_shots=a.csv,class=idle`."""
    port, equals, rest = text.partition("=")
    path, *pairs = rest.split(",")
    if not equals or not path:
        raise BadRequest(
            f"--input {text!r} has no port or no file.",
            suggestion="Write --input worker.inference=FILE, or worker.n_shots=FILE,class=NAME.",
        )
    metadata = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise BadRequest(f"--input {text!r}: {pair!r} is not key=value.")
        metadata[key] = value
    paths = sorted(glob.glob(path)) if any(c in path for c in "*?[") and "://" not in path else [path]
    if not paths:
        raise BadRequest(f"--input {text!r}: no file matches {path}.")
    return port_name(port), [{**named(p), "metadata": metadata} for p in paths]


def named(text: str) -> dict[str, Any]:
    """What a person means by one word: a checkpoint by its id (`./ckp_…` is a file of that name), else a file."""
    return {"kind": "checkpoint", "checkpoint_id": text} if is_id(text, "ckp") else {"file_id": text}


def set_option(parameters: dict[str, Any], text: str) -> None:
    """`worker.config.batch_size=64` into `parameters`; the value is YAML, so a number is a number."""
    path, equals, value = text.partition("=")
    keys = path.split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise BadRequest(
            f"--set {text!r} is not component.path=value.", suggestion="For example --set worker.config.batch_size=64."
        )
    at = parameters
    for key in keys[:-1]:
        at = at.setdefault(key, {})
        if not isinstance(at, dict):
            raise BadRequest(f"--set {text!r}: {key} was set to a value before, it cannot hold fields.")
    at[keys[-1]] = yaml.safe_load(value)


def from_options(
    pipeline: str,
    version: str | None,
    name: str | None,
    inputs: Iterable[str],
    sets: Iterable[str],
    priority: int | None,
) -> JobRequest:
    """The request of `jos run --pipeline … --input … --set …`; files are relative to the working directory."""
    gathered: dict[str, list[dict[str, Any]]] = {}
    for text in inputs:
        port, refs = input_option(text)
        gathered.setdefault(port, []).extend(refs)
    parameters: dict[str, Any] = {}
    for text in sets:
        set_option(parameters, text)
    return build(pipeline, gathered, parameters, name=name, version=version, priority=priority)


def build(
    pipeline: str,
    inputs: Mapping[str, Any],
    parameters: Mapping[str, Any] | None = None,
    *,
    parallelism: int | None = None,
    name: str | None = None,
    version: str | None = None,
    priority: int | None = None,
) -> JobRequest:
    """The request of `jos.run(...)`. An input is a path, `(path, class)`, the id of a checkpoint, or
    `{"file_id": …, "metadata": {…}}`; a port takes one or a list; without a dot in its name it is a port of the
    component `worker`."""
    merged: dict[str, Any] = {c: dict(p) for c, p in (parameters or {}).items()}
    if parallelism is not None:
        merged.setdefault("worker", {})["parallelism"] = parallelism
    data: dict[str, Any] = {
        "name": name or pipeline,
        "pipeline_key": pipeline,
        "pipeline_version": version,
        "inputs": {port_name(p): [reference(r) for r in listed(refs)] for p, refs in inputs.items()},
        "parameters": merged,
        "priority": priority,
    }
    return with_base(parse_request(data), Path.cwd())


def port_name(name: str) -> str:
    return name if "." in name else f"worker.{name}"


def listed(given: Any) -> list[Any]:
    """One input of a port, or many, as a list."""
    pair = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str)
    return [given] if pair or isinstance(given, str | Path | Mapping | InputRef) else list(given)


def reference(given: Any) -> Any:
    """The InputRef, or what becomes one, of an input as `build` takes it; anything else is handed on to be refused."""
    match given:
        case str() as text:
            return named(text)
        case Path():
            return {"file_id": str(given)}
        case (str() | Path() as path, str() as label):
            return {"file_id": str(path), "metadata": {"class": label}}
        case _:
            return given
