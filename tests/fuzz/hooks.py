"""What schemathesis is told about JOS: ids that exist, and what must not be done to the run itself.

Loaded by `st run` (SCHEMATHESIS_HOOKS); tests/fuzz/run.py writes JOS_FUZZ_IDS.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import orjson
import schemathesis

IDS: dict[str, list[str]] = orjson.loads(Path(os.environ["JOS_FUZZ_IDS"]).read_bytes())
REAL = 0.7  # of all ids; the others are as they were made up, or found in an answer
JOB = "/batch/jobs/{job_id}"


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Right before the request, in every phase."""
    path, given = case.operation.path, case.path_parameters or {}
    for name in given:
        known = IDS.get(_kind(path, name, case.method))
        if known and (name in _ALWAYS.get(path.removeprefix("/v0.5"), ()) or random.random() < REAL):
            case.path_parameters[name] = random.choice(known)
    if path.endswith("/fine_tuning/jobs") and case.method == "POST" and random.random() < 0.5:
        case.body = _tuning()
    if path.endswith("/batch/jobs") and case.method == "POST" and isinstance(case.body, dict) and random.random() < 0.5:
        case.body.update(_job())


# a stream of a job that is not over has no end, and the run needs its own key
_ALWAYS = {f"{JOB}/stream": ("job_id",), "/keys/{key_id}": ("key_id",)}


def _kind(path: str, name: str, method: str) -> str:
    if path.endswith("/stream"):
        return "finished_job_id"
    return name


def _job() -> dict[str, Any]:
    """The parts of a request that chance does not find."""
    return {
        "pipeline_type": "batch",
        "pipeline_key": "shout",
        "pipeline_version": None,
        "inputs": {"worker.data": [{"file_id": random.choice(IDS["file_id"])}]},
        **random.choice([{}, {"parameters": {}}, {"priority": 1}]),
    }


def _tuning() -> dict[str, Any]:
    files = [{"file_id": random.choice(IDS["file_id"]), "label": label} for label in ("idle", "busy")]
    reader = {"data_columns": ["a"], "window_size": random.choice([0, 3, 64, None])}
    settings = {"hyperparameters": random.choice([{}, {"batch_size": 8}, {"n_epochs": "auto"}]), "reader": reader}
    kind = random.choice(["head", "knn"])
    return {"name": "a tuning", "method": {"type": kind, kind: settings}, "training_files": files}
