"""What the store keeps: the names of its keys, the shapes that cross its door, and their JSON.

Keys of one job share the hash tag `{job_…}`, so that one script may write them all on a cluster too.
May import: stdlib, pydantic, jos.core. Tests: tests/integration/test_store.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import orjson
from pydantic import BaseModel

from jos.core.model import (
    Event,
    EventDraft,
    InputState,
    Job,
    Json,
    Output,
    Progress,
    ProgressDraft,
    Status,
)

ALL_JOBS = "jos:jobs"  # ZSET job id -> created_at in microseconds
ACTIVE_JOBS = "jos:jobs:active"  # ZSET job id -> when it came in; may still name jobs that are over


def org_jobs(org_id: str) -> str:
    return f"jos:jobs:org:{org_id}"


def indexes(job: Job) -> list[str]:
    return [ALL_JOBS, org_jobs(job.org_id), ACTIVE_JOBS]


@dataclass(frozen=True)
class JobKeys:
    """The keys of one job; scripts/*.lua say what is in them."""

    job: str
    events: str
    writes: str
    mirror: str
    progress: str
    inputs: str
    outputs: str
    arrivals: str

    @classmethod
    def of(cls, job_id: str) -> JobKeys:
        return cls(**{name: f"jos:{{{job_id}}}:{name}" for name in cls.__dataclass_fields__})

    def all(self) -> list[str]:
        return [getattr(self, name) for name in self.__dataclass_fields__]


@dataclass(frozen=True)
class Mirror:
    """What a driver tells the store in one go, after it is in the commit log."""

    token: str  # of the driver's attempt
    seq: int  # grows within the attempt, from 1; a batch keeps its number when it is sent again
    at: datetime  # the heartbeat
    events: Sequence[EventDraft] = ()
    progress: Sequence[ProgressDraft] = ()
    inputs: Sequence[InputState] = ()
    outputs: Sequence[Output] = ()
    live: Json | None = None  # replaces the last one; None leaves it


@dataclass(frozen=True)
class MirrorReply:
    status: Status  # CANCELLED and PREEMPTED tell the driver to drain
    version: int  # of the job's record
    seq: int  # the latest that was applied
    applied: bool  # False: this seq had been applied before, nothing was changed


@dataclass(frozen=True)
class Live:
    """The latest word of a job's driver."""

    token: str
    seq: int
    at: datetime
    data: Json = field(default_factory=dict)


def dump(model: BaseModel) -> str:
    return model.model_dump_json()


def load_job(record: bytes) -> Job:
    return Job.model_validate_json(record)


def load_event(number: int, draft: bytes) -> Event:
    return Event.model_validate_json(_numbered(number, draft))


def load_progress(number: int, draft: bytes) -> Progress:
    return Progress.model_validate_json(_numbered(number, draft))


def load_live(fields: dict[bytes, bytes]) -> Live | None:
    if b"token" not in fields:
        return None
    return Live(
        token=fields[b"token"].decode(),
        seq=int(fields[b"seq"]),
        at=datetime.fromisoformat(fields[b"at"].decode()),
        data=orjson.loads(fields.get(b"live", b"{}")),
    )


def record_fields(job: Job) -> list[str]:
    """record, status, token and search text, as scripts/write.lua takes them."""
    token = job.attempt.token if job.attempt else ""
    return [dump(job), job.status.value, token, f"{job.name}\n{job.pipeline_key}\n{job.id}".casefold()]


def mirror_arguments(batch: Mirror, keep_events: int, keep_progress: int) -> list[str | int | bytes]:
    """As scripts/mirror.lua takes them."""
    arguments: list[str | int | bytes] = [
        batch.token,
        batch.seq,
        batch.at.isoformat(),
        b"" if batch.live is None else orjson.dumps(batch.live),
        keep_events,
        keep_progress,
        len(batch.events),
        len(batch.progress),
        len(batch.inputs),
        len(batch.outputs),
    ]
    arguments += [dump(event) for event in batch.events]
    arguments += [dump(entry) for entry in batch.progress]
    for state in batch.inputs:
        arguments += [state.input_id, dump(state)]
    for output in batch.outputs:
        arguments += [output.id, dump(output)]
    return arguments


def _numbered(number: int, draft: bytes) -> bytes:
    """`{"id":7,` in place of the draft's opening brace."""
    return b'{"id":%d,%b' % (number, draft[1:])
