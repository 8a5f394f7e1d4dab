"""The description of the API: what FastAPI makes of the routes, without what it adds on its own.

`python -m jos.api.openapi > openapi.json` writes the committed file; a unit test compares them.
May import: fastapi, jos.api. Tests: tests/unit/test_openapi.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

DESCRIPTION = """\
JOS runs batch jobs over many files. Upload files, create a job that names a pipeline and its inputs, listen to its
events, and fetch its outputs while it runs.

Every call needs an API key, `Authorization: Bearer sk_…`; everything belongs to the key's organisation, and what is
another's does not exist. Lists take `offset` and `limit`. Errors have one shape, `{"errors": [{code, message, …}]}`.
"""
_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
_GUESSED = ("HTTPValidationError", "ValidationError")  # FastAPI's own error body, which JOS never gives

EXAMPLE_JOB = {
    "name": "pump 7, Monday",
    "pipeline_type": "batch",
    "pipeline_key": "machine-state-classification",
    "inputs": {
        "worker.inference": [{"file_id": "pump_monday.csv"}],
        "worker.n_shots": [
            {"file_id": "idle.csv", "metadata": {"class": "idle"}},
            {"file_id": "running.csv", "metadata": {"class": "running"}},
        ],
    },
    "parameters": {
        "worker": {
            "parallelism": 4,
            "config": {
                "reader_config": {"data_columns": ["pressure", "flow"], "timestamp_column": "time", "window_size": 64}
            },
        }
    },
}

EXAMPLE_TUNING = {
    "name": "pump 7",
    "model": "omega",
    "method": {
        "type": "head",
        "head": {
            "hyperparameters": {"batch_size": 64, "n_epochs": 60},
            "reader": {"data_columns": ["pressure", "flow"], "window_size": 64, "step_size": 8},
        },
    },
    "training_files": [
        {"type": "n_shot", "file_id": "idle.csv", "label": "idle", "format": "csv"},
        {"type": "n_shot", "file_id": "running.csv", "label": "running", "format": "csv"},
    ],
    "seed": 7,
}


def install(app: FastAPI) -> None:
    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def describe(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for operation in _operations(found):
        for status, answer in list(operation["responses"].items()):
            schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
            if status == "422" and str(schema.get("$ref", "")).endswith("/HTTPValidationError"):
                del operation["responses"][status]
        if "ApiKey" not in str(operation.get("security", "")):
            for status in ("401", "403"):
                operation["responses"].pop(status, None)
        for status in ("429", "503"):
            if status in operation["responses"] and operation.get("security"):
                operation["responses"][status]["headers"] = {
                    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}
                }
    schemas = found["components"]["schemas"]
    for name in _GUESSED:
        schemas.pop(name, None)
    schemas["JobCreate"]["examples"] = [EXAMPLE_JOB]
    schemas["TuningCreate"]["examples"] = [EXAMPLE_TUNING]
    return found


def _operations(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in found["paths"].values():
        for method in _METHODS:
            if method in path:
                yield path[method]


def text() -> str:
    from jos.api.app import create_app

    return json.dumps(create_app().openapi(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
