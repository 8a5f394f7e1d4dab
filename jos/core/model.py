"""The nouns of JOS. Each field says when it is set and by whom.

May import: stdlib and pydantic. Tests: tests/unit/test_model.py and nearly all others.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def stored(cls, data: bytes | str) -> Self:
        """From JSON that JOS itself wrote. A newer JOS may have written fields that this one does not know: what
        people write is held to the letter, what a replica of the next version writes is not."""
        return cls.model_validate_json(data, extra="ignore")


class Status(StrEnum):
    PENDING = "PENDING"  # waits for capacity, or for its back-off to pass
    ADMITTED = "ADMITTED"  # capacity granted; the driver is on its way
    RUNNING = "RUNNING"  # the driver has an index up
    COMPLETED = "COMPLETED"  # all work committed; single inputs may have failed
    FAILED = "FAILED"  # given up; what was committed stays, a retry continues from there
    PREEMPTED = "PREEMPTED"  # told to leave its capacity; requeued once the driver is gone
    CANCELLED = "CANCELLED"  # a user stopped it; a retry continues from what was committed

    @property
    def terminal(self) -> bool:
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class Level(StrEnum):
    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


class InputStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    REFERENCE = "reference"  # an input of an untracked port: given to workers, never counted


# --- pipeline templates -------------------------------------------------------------------------------


class PortMode(StrEnum):
    FILES = "plain_file_list"
    N_SHOT = "n_shot_file_list"  # each file needs metadata.class
    CHECKPOINT = "checkpoint"


class Distribute(StrEnum):
    SCATTER = "scatter"  # shared out over the indexes
    REPLICATE = "replicate"  # every index gets all


class InputPort(Model):
    name: str
    description: str = ""
    mode: PortMode = PortMode.FILES
    distribute: Distribute = Distribute.SCATTER
    required: bool = True
    tracked: bool = True  # counted in progress


class OutputPort(Model):
    name: str
    description: str = ""


class Gpu(Model):
    count: float = Field(default=0, ge=0)  # per index; used when the cluster has GPUs at all
    type: str | None = None  # Ray's accelerator type, e.g. "H100"; None = any
    required: bool = False  # False: falls back to the CPU on a cluster without GPUs


class Resources(Model):
    """What ONE index holds."""

    cpu: float = Field(default=1, gt=0)
    memory_bytes: int | None = Field(default=None, gt=0)
    gpu: Gpu = Gpu()


class Timeouts(Model):
    """Seconds; None = no limit."""

    queue: float | None = Field(default=None, gt=0)  # PENDING for longer: FAILED
    run: float | None = Field(default=None, gt=0)  # one attempt for longer: FAILED
    task: float | None = Field(default=None, gt=0)  # one task for longer: its index is replaced
    no_progress: float | None = Field(default=1800, gt=0)  # nothing committed for longer: the attempt fails
    drain: float = Field(default=30, gt=0)  # grace to commit what is in hand


class RetryPolicy(Model):
    max_retries: int = Field(default=3, ge=0)  # attempts of the job after the first, made by JOS itself
    backoff: float = Field(default=5, gt=0)  # seconds before the first retry; doubles each time
    backoff_max: float = Field(default=300, gt=0)
    task_attempts: int = Field(default=3, ge=1)  # tries of a span before it is cut in half


class Edge(Model):
    source: str = Field(alias="from")
    output: str
    target: str = Field(alias="to")
    input: str


class PipelineStatus(StrEnum):
    DRAFT = "draft"
    PUBLISHED = "published"
    DEACTIVATED = "deactivated"
    DELETED = "deleted"


class Pipeline(Model):
    """One version of a template: everything JOS knows about a pipeline. Written by its author; never changes
    once published. Read from `pipelines/KEY/VERSION.yaml` by `jos.registry`."""

    pipeline_key: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    pipeline_version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    name: str
    description: str = ""
    pipeline_type: Literal["batch", "training"] = "batch"
    status: PipelineStatus = PipelineStatus.DRAFT
    visibility: Literal["platform", "org"] = "platform"
    worker: str  # "package.module:Class", imported inside the index and nowhere else
    image: str | None = None  # container image of head and workers on Kubernetes
    command: list[str] = ["python", "-m", "jos.driver"]  # how the driver is started in that image
    resources: Resources = Resources()
    queue: str = "default"
    priority: int = 0
    max_parallelism: int = Field(default=1024, ge=1)
    timeouts: Timeouts = Timeouts()
    retry_policy: RetryPolicy = RetryPolicy()
    default_config: dict[str, Json]  # component -> {parallelism, config}
    config_schema: dict[str, Json]  # component -> JSON Schema 2020-12 of the merged config
    user_config_schema: dict[str, Json]  # component -> JSON Schema of what a user may set; the rest is locked
    inputs: dict[str, InputPort]  # "component.port" -> port
    outputs: dict[str, OutputPort]
    edges: list[Edge] = []


# --- requests and jobs --------------------------------------------------------------------------------


class InputRef(Model):
    """One input as a user names it: `file_id` is an uploaded file, or for the engine a path or fsspec URL."""

    kind: Literal["file", "checkpoint"] = "file"
    file_id: str | None = None
    checkpoint_id: str | None = None
    metadata: dict[str, Any] = {}


class ComponentParameters(Model):
    # at least 1: checked by jos.core.config with everything else, so that all mistakes are told at once
    parallelism: int | None = Field(default=None, strict=True, json_schema_extra={"minimum": 1})
    config: Json = {}


class JobRequest(Model):
    """The body of a job creation, and the content of `job.yaml`."""

    name: str = Field(min_length=1, max_length=255)
    pipeline_type: Literal["batch", "training"] | None = None  # if given, it must be the pipeline's
    pipeline_key: str
    pipeline_version: str | None = None
    inputs: dict[str, list[InputRef]] = {}
    parameters: dict[str, ComponentParameters] = {}
    priority: int | None = None


class JobInput(Model):
    """One input of a job. Set once, when the job is created."""

    id: str  # inp_…
    port: str  # "worker.inference"
    url: str  # fsspec URL or absolute path that every index can read
    filename: str  # basename, for people and for output names
    file_id: str
    file_uid: str | None = None  # fil_… of an uploaded file; the service knows it
    num_bytes: int
    fingerprint: str  # changes when the content may have changed (mtime or ETag); checked at each opening
    sha256: str | None = None  # of the whole content, where it is known: of a checkpoint; checked at each opening
    metadata: dict[str, Any] = {}
    tracked: bool = True


class JobSpec(Model):
    """The resolved request: `job.json`, written once before the job can run; every attempt reads only this."""

    id: str
    org_id: str
    name: str
    pipeline: Pipeline  # a copy: a later change of the registry cannot change a job
    parameters: dict[str, Json]  # merged: component -> {parallelism, config}
    inputs: list[JobInput]
    priority: int = 0
    queue: str | None = None  # where it waits; "": a driver admits itself; None: the pipeline's own
    created_at: datetime

    @property
    def component(self) -> str:
        return next(iter(self.pipeline.default_config))

    @property
    def parallelism(self) -> int:
        return int(self.parameters[self.component]["parallelism"])

    @property
    def config(self) -> Json:
        config: Json = self.parameters[self.component]["config"]
        return config


class Attempt(Model):
    """One life of a job's driver."""

    number: int  # 1, 2, …
    token: str  # random; every command and commit of this attempt carries it
    admitted_at: datetime
    started_at: datetime | None = None  # set by Started
    host: str = ""  # where the driver runs, set by Started, or by Admit where a driver admits itself
    pid: int = 0
    indexes: int | None = (
        None  # how many indexes the grant allows, set by Admit, Grow and Shrink; None: no controller, no limit
    )
    shrunk: bool = False  # set by Shrink: nothing is left for more indexes
    driver: str = ""  # the launcher's name of the process that drives it, set once by Taken
    process: str = ""  # random, of that very process: another one may come under the same name; set once by Taken
    asked_to_leave_at: datetime | None = None  # set once: the job went on without it (cancelled, preempted, timed out)
    ended_at: datetime | None = None  # when its driver was known to be gone; until then the capacity is held
    ended_by: str | None = None  # the command that said so: Completed, Exited, Drained or DriverGone; or Recall, after
    # which an Admit with the same token takes it up again


class JobFailure(Model):
    code: str
    message: str
    details: Json = {}


class Job(Model):
    """The record of a job in Redis. Changed only by `jos.core.lifecycle`, through `store.transact`."""

    id: str
    org_id: str
    name: str
    pipeline_type: str
    pipeline_key: str
    pipeline_version: str
    parameters: dict[str, Json]
    priority: int = 0
    queue: str = "default"  # where it waits for capacity; set at creation; "": a driver admits itself (`jos run`)
    resources: Resources = Resources()  # what one index holds; a copy of the pipeline's
    parallelism: int = 1  # the most indexes it can use
    tracked_inputs: int = 0  # how many inputs are counted in progress; set at creation
    status: Status = Status.PENDING
    reason: str = ""  # why it is where it is, e.g. WaitingForBackoff; set with each status, by Hold and by Waits
    reason_message: str = ""  # the same for people, e.g. "needs 1 GPU; 0 of 8 are free"; set by Hold and by Waits
    attempt: Attempt | None = None  # the latest one; set by Admit
    holds_capacity: bool = False  # from Admit until the driver's last word or DriverGone, whatever the status
    retry_count: int = 0  # raised by Retry (a user's) and by automatic retries
    automatic_retries: int = 0  # how many of them were automatic since a user's Retry
    retries_spent: int = 0  # of the budget in retry_policy; renewed by a user's Retry, and by an attempt that ran well
    preemption_count: int = 0
    not_before: datetime | None = None  # back-off: not admitted earlier
    timeouts: Timeouts = Timeouts()
    retry_policy: RetryPolicy = RetryPolicy()
    created_at: datetime
    updated_at: datetime
    queued_at: datetime  # when it last became PENDING, but for a Recall
    started_at: datetime | None = None  # of the first attempt that ran
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    cancelled_at: datetime | None = None
    error: JobFailure | None = None  # set with FAILED; kept while JOS itself retries, cleared by a user's Retry

    @property
    def granted(self) -> int:
        """Indexes that its capacity is for, as long as it holds any."""
        limited = self.attempt.indexes if self.attempt else None
        return self.parallelism if limited is None else limited


class EventDraft(Model):
    """An event before the store has numbered it."""

    event_type: str
    level: Level = Level.INFO
    message: str
    payload: Json = {}
    input_id: str | None = None
    index: int | None = None
    created_at: datetime


class Event(EventDraft):
    id: int  # 1, 2, … within the job, without gaps; given by the store


class ProgressDraft(Model):
    kind: str  # inference | training | …
    step: int | None = None
    message: str = ""
    metrics: Json = {}
    payload: Json = {}
    input_id: str | None = None
    index: int | None = None
    created_at: datetime


class Progress(ProgressDraft):
    id: int


class InputState(Model):
    """How far one tracked input is; mirrored to Redis by the driver."""

    input_id: str
    status: InputStatus
    tasks: int | None = None  # known once planned
    done: int = 0  # committed, failed ones included
    failed: int = 0
    error_message: str | None = None
    completed_at: datetime | None = None
    step: int | None = None  # 1-based rank of completion


class Output(Model):
    """One finished output file. Recorded in the commit log; mirrored to Redis."""

    id: str  # out_…, derived from job and filename
    port: str
    input_id: str | None
    filename: str  # unique within the job
    key: str  # where in the storage root, relative to the job's folder
    num_bytes: int
    sha256: str
    tasks: int
    created_at: datetime


class Checkpoint(Model):
    """A model that a training job left behind, which other jobs can start from. Mirrored to Redis by the driver."""

    id: str  # ckp_…, derived from job and step
    name: str  # e.g. step_200
    step: int
    metrics: dict[str, float | None] = {}  # None: not a finite number, for JSON has none of the others
    key: str  # where in the storage root, relative to the job's folder
    num_bytes: int
    sha256: str
    created_at: datetime

    @property
    def filename(self) -> str:
        """What it is called outside of JOS."""
        return f"{self.id}.ckpt"


def utc(when: datetime) -> str:
    """RFC 3339 with microseconds and `Z`, the shape of every time JOS shows."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def job_folder(org_id: str, job_id: str) -> str:
    """Where everything of a job lies in the storage root."""
    return f"{org_id}/jobs/{job_id}/"
