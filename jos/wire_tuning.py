"""The shapes of /v0.6/fine_tuning: jobs, events and checkpoints of training as clients of an OpenAI-like API know them.

Pure. May import: pydantic, jos.wire, jos.core. Tests: tests/unit/test_tuning_body.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from jos.core.model import Json, Level
from jos.wire import Body, Time, Wire, long_list

TuningStatus = Literal["QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"]


def _settings(value: Any) -> Any:
    """null is as good as left out; so is "auto"."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        return value
    return {name: one for name, one in value.items() if one is not None and one != "auto"}


def _text(value: Any) -> Any:
    """A class may be a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


# --- what clients send ----------------------------------------------------------------------------------


class TuningFile(BaseModel):
    """A CSV file that shows one class."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["n_shot"] = "n_shot"
    file_id: str = Field(min_length=1, max_length=300, description="The name of an uploaded file.")
    label: Annotated[str, BeforeValidator(_text)] = Field(min_length=1, max_length=255, description="Its class.")
    format: Literal["csv"] = "csv"


class MethodSettings(BaseModel):
    """What a method is told. The pipeline says what there is: `GET /v0.5/batch/registry/pipelines/{id}/schema`."""

    model_config = ConfigDict(extra="forbid")
    hyperparameters: Annotated[Json, BeforeValidator(_settings)] = Field(
        default={},
        description="head: batch_size, n_epochs, and what the pipeline's train_config knows besides; knn: batch_size, "
        'n_neighbors, metric, weights, normalize_embeddings. What is left out, null or "auto" keeps its default.',
    )
    reader: Annotated[Json, BeforeValidator(_settings)] = Field(
        default={}, description="data_columns (names of the header), window_size and step_size (rows)."
    )


class Method(BaseModel):
    """The settings stand below the method's own name."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["head", "knn"] = Field(
        description="head: a classifier trained by gradient descent; knn: stored reference windows."
    )
    head: MethodSettings | None = None
    knn: MethodSettings | None = None


class TuningCreate(Body):
    """The body of POST /fine_tuning/jobs. Fields that it does not know are passed over, as clients of other services
    may send some; not so one that looks like a misspelt field that is missing."""

    name: str = Field(min_length=1, max_length=255)
    model: str = Field(default="omega", min_length=1, max_length=255, description="omega: the pipeline's default.")
    method: Method
    seed: int | None = Field(default=None, strict=True)
    training_files: Annotated[list[TuningFile], long_list(TuningFile)] = Field(default=[])
    validation_files: Annotated[list[TuningFile], long_list(TuningFile)] = Field(default=[])


# --- what they are told ---------------------------------------------------------------------------------


class TuningError(Wire):
    code: str
    message: str


class TuningJob(Wire):
    id: str  # ftj_…; the job of /v0.5 is job_ with the same characters behind
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    job_id: str  # job_…
    organization_id: str
    name: str
    status: TuningStatus
    model: str
    method: Json | None = None  # null for training by another pipeline than the two of fine-tuning
    seed: int | None = None
    training_files: list[Json]
    validation_files: list[Json]
    fine_tuned_model: str | None = None  # the best checkpoint, once it has succeeded
    error: TuningError | None = None
    created_at: Time
    updated_at: Time
    started_at: Time | None = None
    finished_at: Time | None = None


class TuningJobList(Wire):
    object: Literal["list"] = "list"
    data: list[TuningJob]
    has_more: bool
    total: int


class TuningEvent(Wire):
    id: int
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    level: Level
    type: str
    event_type: str  # the same
    message: str
    data: Json
    created_at: Time


class TuningEventList(Wire):
    object: Literal["list"] = "list"
    data: list[TuningEvent]
    has_more: bool


class TuningCheckpoint(Wire):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    fine_tuning_job_id: str
    name: str
    step: int
    metrics: Json
    created_at: Time


class TuningCheckpointList(Wire):
    object: Literal["list"] = "list"
    data: list[TuningCheckpoint]
    has_more: bool
