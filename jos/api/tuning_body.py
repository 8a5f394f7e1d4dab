"""Between fine-tuning as its clients speak of it and a job of a training pipeline: the body of a creation there, what
is wrong with it back at its own places, and a job's configuration back as method and files.

Pure. May import: jos.core, jos.wire, jos.wire_tuning, jos.finetune. Tests: tests/unit/test_tuning_body.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jos import wire
from jos.core.errors import ConfigInvalid, Violation
from jos.core.model import ComponentParameters, InputRef, JobInput, JobSpec, Json
from jos.finetune import EVAL, PIPELINES, TRAIN
from jos.wire_tuning import MethodSettings, TuningCreate, TuningFile

DEFAULT_MODEL = "omega"
_CONFIG = "$.parameters.worker.config"
# where the settings of a method are that the pipeline has no place of its own for
_SECTIONS = {"head": "train_config", "knn": "classifier_config"}
_RENAMED = {"head": {"n_epochs": "epochs"}, "knn": dict[str, str]()}


def translated(body: TuningCreate) -> wire.JobCreate:
    """Raises ConfigInvalid for settings of another method than the one that is asked for."""
    kind = body.method.type
    other = "knn" if kind == "head" else "head"
    if getattr(body.method, other) is not None:
        message = f'is for the method "{other}"; the type is "{kind}".'
        raise ConfigInvalid("The body is not valid.", [Violation(f"$.method.{other}", message)])
    return wire.JobCreate(
        name=body.name,
        pipeline_type="training",
        pipeline_key=PIPELINES[kind],
        inputs={
            port: [_ref(file) for file in files]
            for port, files in ((TRAIN, body.training_files), (EVAL, body.validation_files))
            if files
        },
        parameters={"worker": ComponentParameters(config=_config(body))},
    )


def _ref(file: TuningFile) -> InputRef:
    return InputRef(file_id=file.file_id, metadata={"class": file.label})


def _config(body: TuningCreate) -> Json:
    kind = body.method.type
    given: MethodSettings = getattr(body.method, kind) or MethodSettings()
    section = {_RENAMED[kind].get(name, name): value for name, value in given.hyperparameters.items()}
    config: Json = {"reader_config": given.reader}
    if "batch_size" in section:
        config["batch_size"] = section.pop("batch_size")
    if section:
        config[_SECTIONS[kind]] = section
    if body.model != DEFAULT_MODEL:
        config["model_type"] = body.model
    if body.seed is not None:
        config["seed"] = body.seed
    return config


# --- what is wrong, at its place ------------------------------------------------------------------------


def in_their_terms(kind: str, found: Sequence[Violation]) -> list[Violation]:
    """What a pipeline refuses in the translation, told of the body that was translated. `kind`: the method's type."""
    return [replace(one, path=_place(kind, one.path)) for one in found]


def _place(kind: str, path: str) -> str:
    method = f"$.method.{kind}"
    section = f"{_CONFIG}.{_SECTIONS[kind]}"
    places = {f"{section}.{inside}": f"{method}.hyperparameters.{told}" for told, inside in _RENAMED[kind].items()} | {
        section: f"{method}.hyperparameters",
        f"{_CONFIG}.batch_size": f"{method}.hyperparameters.batch_size",
        f"{_CONFIG}.reader_config": f"{method}.reader",
        f"{_CONFIG}.model_type": "$.model",
        f"{_CONFIG}.seed": "$.seed",
        _CONFIG: method,
        f'$.inputs["{TRAIN}"]': "$.training_files",
        f'$.inputs["{EVAL}"]': "$.validation_files",
        "$.name": "$.name",
    }
    for inside, told in places.items():
        rest = path.removeprefix(inside)
        if path.startswith(inside) and rest[:1] in ("", ".", "["):
            return told + (rest.replace(".metadata.class", ".label") if told.endswith("_files") else rest)
    return "$"


# --- and back -------------------------------------------------------------------------------------------


def described(spec: JobSpec) -> dict[str, Any]:
    """model, method, seed and files of a training job, as a creation would have named them."""
    kind = next((kind for kind, key in PIPELINES.items() if key == spec.pipeline.pipeline_key), None)
    config = spec.config
    default = spec.pipeline.default_config[spec.component].get("config", {})
    model = config.get("model_type")
    seed = config.get("seed")
    return {
        "model": DEFAULT_MODEL if model is None or model == default.get("model_type") else str(model),
        "method": None if kind is None else _method(kind, config),
        "seed": seed if isinstance(seed, int) else None,
        "training_files": [_file(one) for one in spec.inputs if one.port == TRAIN],
        "validation_files": [_file(one) for one in spec.inputs if one.port == EVAL],
    }


def _method(kind: str, config: Json) -> Json:
    names = {inside: told for told, inside in _RENAMED[kind].items()}
    section = {names.get(name, name): value for name, value in config.get(_SECTIONS[kind], {}).items()}
    if "batch_size" in config:
        section = {"batch_size": config["batch_size"], **section}
    return {"type": kind, kind: {"hyperparameters": section, "reader": config.get("reader_config", {})}}


def _file(source: JobInput) -> Json:
    label = source.metadata.get("class")
    return {
        "type": "n_shot",
        "file_id": source.file_id,
        "label": None if label is None else str(label),
        "format": "csv",
    }
