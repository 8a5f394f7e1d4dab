"""The shapes that cross the HTTP API, field for field: what the server answers and the client reads.

Extra fields of a newer server are kept by the client and never refused. Times are RFC 3339 UTC with microseconds and
`Z`. Pure. May import: pydantic, jos.core. Tests: tests/unit/test_wire.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainSerializer,
    StrictInt,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from jos.core.model import ComponentParameters, InputRef, InputStatus, Json, Level, PipelineStatus, Status, utc


def _aware(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


Time = Annotated[
    datetime,
    AfterValidator(_aware),
    PlainSerializer(utc, return_type=str, when_used="always"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Wire(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True)


# --- errors ---


class ErrorItem(Wire):
    code: str
    message: str
    suggestion: str | None = None
    path: str | None = None  # JSON path in the request body, for violations; the parameter's name otherwise
    reason: str | None = None  # of a violation: invalid, locked, unknown or missing
    error_uid: str


class ErrorBody(Wire):
    errors: list[ErrorItem]


# --- jobs ---


class InputCounts(Wire):
    pending: int = 0
    processing: int = 0
    completed: int = 0
    failed: int = 0


class JobError(Wire):
    code: str
    message: str
    details: Json = {}


class WaitingReason(Wire):
    code: str  # see docs/lifecycle.md
    message: str


class Job(Wire):
    id: str
    org_id: str
    name: str
    pipeline_type: Literal["batch", "training"]
    pipeline_key: str
    pipeline_version: str
    status: Status
    parameters: dict[str, Json]
    priority: int
    queue: str
    retry_count: int
    preemption_count: int
    queue_position: int | None = None  # 1 = next; null unless waiting
    queue_depth: int | None = None
    waiting: WaitingReason | None = None  # why it, or the driver of an admitted one, waits; null unless it does
    input_progress: InputCounts = InputCounts()
    created_at: Time
    updated_at: Time
    started_at: Time | None = None
    completed_at: Time | None = None
    failed_at: Time | None = None
    cancelled_at: Time | None = None
    error: JobError | None = None


class JobList(Wire):
    total: int
    offset: int
    limit: int
    jobs: list[Job]


_MOST_NAMES = 100  # ports or components of one request
_MOST_WRONG = 1000  # errors of one list; a body can hold millions of wrong things, and each error is large
_LOOKS_LIKE = 0.8


def _given(value: Any) -> Any:
    """null is as good as left out."""
    if value is None:
        return {}
    if isinstance(value, Mapping) and len(value) > _MOST_NAMES:
        raise ValueError(f"has {len(value)} names; {_MOST_NAMES} are the most")
    return value


def _or_none(value: Any) -> Any:
    """So is empty text."""
    return None if value == "" else value


def _ref(value: Any) -> Any:
    """What other services' clients say of an input besides is passed over."""
    if not isinstance(value, Mapping):
        return value
    return {name: value[name] for name in InputRef.model_fields if value.get(name) is not None}


def _parameters(value: Any) -> Any:
    """A setting that stands beside `config` and not in it is a mistake, so it stays to be told."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return value
    known = ComponentParameters.model_fields
    others = [name for name in value if name not in known][:_MOST_WRONG]
    return {name: value[name] for name in [*known, *others] if value.get(name) is not None}


Ref = Annotated[InputRef, BeforeValidator(_ref)]


def long_list(item: Any) -> WrapValidator:
    """For a list of `item` in a body: all that is wrong from the first mistake on, as far as a person would read it;
    null is as good as an empty one."""
    quick: TypeAdapter[list[Any]] = TypeAdapter(Annotated[list[item], FailFast()])

    def checked(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return quick.validate_python([] if value is None else value)
        except ValidationError as error:
            at = next(iter(error.errors(include_url=False)[0]["loc"]), 0)
            return validate(value[: int(at) + _MOST_WRONG] if isinstance(value, list) else value)

    return WrapValidator(checked)


class Body(BaseModel):
    """Of a creation. Fields that it does not know are passed over, as clients of other services may send some; not so
    one that looks like a misspelt field that is missing."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"additionalProperties": True})

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        missing = [name for name in cls.model_fields if name not in value]
        others = [name for name in value if name not in cls.model_fields][:_MOST_WRONG]
        misspelt = [
            name
            for name in others
            if len(name) < 64 and difflib.get_close_matches(name.lower(), missing, 1, _LOOKS_LIKE)
        ]
        return {name: value[name] for name in [*cls.model_fields, *misspelt] if name in value}


class JobCreate(Body):
    """The body of POST /batch/jobs. Fields that it does not know are passed over, as clients of other services may
    send some; not so one that looks like a misspelt field that is missing."""

    name: str = Field(min_length=1, max_length=255)
    pipeline_type: Literal["batch", "training"]
    pipeline_key: str = Field(max_length=255)
    pipeline_version: Annotated[str | None, BeforeValidator(_or_none)] = Field(default=None, max_length=64)
    inputs: Annotated[
        dict[str, Annotated[list[Ref], long_list(Ref)]],
        BeforeValidator(_given),
    ] = {}
    parameters: Annotated[
        dict[str, Annotated[ComponentParameters, BeforeValidator(_parameters)]],
        BeforeValidator(_given),
    ] = {}
    priority: int | None = Field(default=None, strict=True, ge=-1_000_000, le=1_000_000)


class Cancelled(Wire):
    id: str
    status: Literal["CANCELLED"]
    cancelled_at: Time


class Retried(Wire):
    id: str
    status: Literal["PENDING"]
    retry_count: int


class Deleted(Wire):
    id: str
    deleted: Literal[True]


class QueueDepth(Wire):
    pipeline_type: str
    depth: int


class QueueList(Wire):
    queues: list[QueueDepth]


class QueueUse(Wire):
    """One queue, over all organisations. Amounts are of cpu, memory (bytes), gpu and gpu:TYPE."""

    name: str
    quota: dict[str, float]  # a resource that is not named is not limited
    used: dict[str, float]  # granted to jobs at work
    running: int  # jobs with capacity
    waiting: int
    cohort: str | None
    stopped: bool  # nothing new starts


class QueueUseList(Wire):
    total: int
    offset: int
    limit: int
    queues: list[QueueUse]


# --- events and progress ---


class Event(Wire):
    id: int
    event_type: str
    level: Level
    message: str
    payload: Json = {}
    input_id: str | None = None
    index: int | None = None
    created_at: Time


class EventList(Wire):
    job_id: str
    total: int
    offset: int
    limit: int
    events: list[Event]


class Progress(Wire):
    id: int
    kind: str
    step: int | None = None
    message: str = ""
    metrics: Json = {}
    payload: Json = {}
    input_id: str | None = None
    index: int | None = None
    created_at: Time


class ProgressList(Wire):
    job_id: str
    total: int
    offset: int
    limit: int
    entries: list[Progress]


# --- inputs, outputs, checkpoints ---


class DataRef(Wire):
    ref: str
    filename: str
    file_type: str
    file_extension: str
    num_bytes: int
    metadata: Json = {}
    file_tags: list[str] = []
    file_attributes: Json = {}


class Input(Wire):
    id: str
    job_id: str
    port_name: str
    file_id: str | None = None
    data: DataRef | None = None
    status: InputStatus
    error_message: str | None = None
    created_at: Time
    completed_at: Time | None = None


class InputList(Wire):
    job_id: str
    total: int
    offset: int
    limit: int
    inputs: list[Input]


class InputProgress(Wire):
    input: Input
    latest_progress: Progress | None = None
    step: int | None = None


class InputProgressList(Wire):
    job_id: str
    total: int
    offset: int
    limit: int
    items: list[InputProgress]


class InputProgressCounts(InputCounts):
    job_id: str


class TracePoint(Wire):
    t: Time
    step: int
    files: dict[str, int]
    items: dict[str, dict[str, int]]


class Traces(Wire):
    job_id: str
    bucket_seconds: float
    latest_event_at: Time | None = None
    points: list[TracePoint]


class Output(Wire):
    id: str
    job_id: str
    port_name: str
    input_id: str | None = None
    input_file_id: str | None = None
    data: DataRef
    expires_at: Time
    created_at: Time


class OutputList(Wire):
    job_id: str
    total: int
    offset: int
    limit: int
    outputs: list[Output]


class Checkpoint(Wire):
    id: str
    name: str
    step: int
    metrics: Json = {}
    data: DataRef | None = None  # its bytes; None from a server that does not show them
    expires_at: Time | None = None  # of the link in data.ref
    created_at: Time


class CheckpointList(Wire):
    job_id: str
    total: int
    offset: int
    limit: int
    checkpoints: list[Checkpoint]


# --- registry ---


class Pipeline(Wire):
    id: str
    pipeline_key: str
    pipeline_version: str
    name: str
    description: str
    pipeline_type: str
    components: dict[str, str]
    default_config: dict[str, Json]
    config_schema: dict[str, Json]
    user_config_schema: dict[str, Json]
    edges: list[Json]
    inputs: dict[str, Json]
    outputs: dict[str, Json]
    retry_policy: Json
    visibility: Literal["platform", "org"]
    org_id: str | None
    status: PipelineStatus
    created_at: Time
    updated_at: Time
    worker: str | None = None
    image: str | None = None
    command: list[str] = []
    priority: int = 0
    max_parallelism: int | None = None
    resources: Json = {}
    queue: str = "default"
    timeouts: Json = {}


class PipelineList(Wire):
    total: int
    offset: int
    limit: int
    pipelines: list[Pipeline]


class PipelineSchema(Wire):
    id: str
    pipeline_key: str
    pipeline_version: str
    user_schema: dict[str, Json]
    config_schema: dict[str, Json]
    inputs: dict[str, Json]
    outputs: dict[str, Json]


# --- files ---


class FileAnswer(Wire):
    is_valid: bool
    file_id: str
    file_uid: str


class FileRecord(FileAnswer):
    file_type: str
    num_bytes: int
    file_status: str  # Uploading | Registered | Corrupt
    file_attributes: Json = {}
    ingested: bool = True
    file_index: int = 0
    file_tags: list[str] = []
    created_at: Time | None = None


class FilePage(Wire):
    """Newest first; below `/api` only."""

    data: list[FileRecord]
    has_more: bool  # in the direction that was asked for
    next_cursor: str | None = None  # for `after`: older ones
    prev_cursor: str | None = None  # for `before`: newer ones


class FileInfo(Wire):
    num_files: int
    num_bytes: int
    num_ingested: int
    last_updated: float


class UploadStart(BaseModel):
    filename: str
    file_type: str = "application/octet-stream"
    num_bytes: StrictInt
    resume_if_started: bool = False

    @model_validator(mode="before")
    @classmethod
    def _said(cls, value: Any) -> Any:
        """null is as good as left out."""
        if not isinstance(value, Mapping):
            return value
        return {name: one for name, one in value.items() if one is not None}


class UploadPart(Wire):
    part_number: int
    url: str
    offset: int
    length: int
    expires_at: Time


class Upload(Wire):
    upload_id: str
    file_uid: str
    file_name: str
    total_bytes: int
    num_parts: int
    part_size: int
    strategy: Literal["simple", "multipart"]
    is_resume: bool
    integrity_algorithm: Literal["crc32c", "none"]
    parts: list[UploadPart]
    expires_at: Time


class PartNumbers(BaseModel):
    part_numbers: list[StrictInt] = Field(max_length=10_000)


class UploadParts(Wire):
    parts: list[UploadPart]


class PartToken(BaseModel):
    part_number: StrictInt
    part_token: str


class PartTokens(BaseModel):
    parts: list[PartToken] = Field(default=[], max_length=10_000)


class NumCheckpointed(Wire):
    num_checkpointed: int


class UploadComplete(PartTokens):
    integrity_checksum: str | None = None  # base64 of the big-endian CRC32C of the whole file


class FileComplete(Wire):
    file_uid: str
    file_name: str
    num_bytes: int
    file_status: str
    file_attributes: Json = {}


# --- keys (admin) ---


class KeyCreate(BaseModel):
    name: str = Field(default="", max_length=255)
    role: Literal["reader", "user", "admin"] = "user"
    org_id: str | None = Field(default=None, pattern=r"^org_[A-Za-z0-9_-]{1,60}$")  # default: the caller's


class Key(Wire):
    id: str
    org_id: str
    role: Literal["reader", "user", "admin"]
    name: str
    created_at: Time
    last4: str
    key: str | None = None  # the secret itself, only in the answer to its creation


class KeyList(Wire):
    total: int
    offset: int
    limit: int
    keys: list[Key]
