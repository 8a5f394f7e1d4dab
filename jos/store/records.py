"""What the store keeps: the names of its keys, the shapes that cross its door, and their JSON.

One server holds all keys: a script may write a job's own keys and the indexes that all jobs share. (A Redis Cluster
is not supported; a fail-over pair is.)
May import: stdlib, pydantic, jos.core, jos.store.connection. Tests: tests/integration/test_store.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import orjson
from pydantic import BaseModel

from jos.core.model import (
    Checkpoint,
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
from jos.store.connection import Argument


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
    checkpoints: str
    readers: str

    @classmethod
    def of(cls, job_id: str) -> JobKeys:
        return cls(**{name: f"{_base(job_id)}:{name}" for name in cls.__dataclass_fields__})

    def all(self) -> list[str]:
        return [getattr(self, name) for name in self.__dataclass_fields__]


def job_key(job_id: str) -> str:
    """`JobKeys.of(job_id).job` alone: lists need many."""
    return f"{_base(job_id)}:job"


def _base(job_id: str) -> str:
    return f"jos:{{{job_id}}}"


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
    checkpoints: Sequence[Checkpoint] = ()
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
    return Job.stored(record)


def load_event(number: int, draft: bytes) -> Event:
    return Event.stored(_numbered(number, draft))


def load_progress(number: int, draft: bytes) -> Progress:
    return Progress.stored(_numbered(number, draft))


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
    """record, status, token, search text, id and organisation, as write.lua and restore.lua take them."""
    token = job.attempt.token if job.attempt else ""
    return [
        dump(job),
        job.status.value,
        token,
        f"{job.name}\n{job.pipeline_key}\n{job.id}".casefold(),
        job.id,
        job.org_id,
    ]


def mirror_arguments(job_id: str, batch: Mirror, keep_events: int, keep_progress: int) -> list[Argument]:
    """As scripts/mirror.lua takes them."""
    live = b"" if batch.live is None else orjson.dumps(batch.live)
    told = content(batch.events, batch.progress, batch.inputs, batch.outputs, batch.checkpoints, job_id)
    return [batch.token, batch.seq, batch.at.isoformat(), live, keep_events, keep_progress, *told]


def content(
    events: Sequence[EventDraft],
    progress: Sequence[ProgressDraft],
    inputs: Sequence[InputState],
    outputs: Sequence[Output],
    checkpoints: Sequence[Checkpoint],
    *before: Argument,
) -> list[Argument]:
    """How many there are of each, `before`, then they themselves: as mirror.lua and restore.lua take them."""
    arguments: list[Argument] = [len(events), len(progress), len(inputs), len(outputs), len(checkpoints), *before]
    arguments += [dump(event) for event in events]
    arguments += [dump(entry) for entry in progress]
    for state in inputs:
        arguments += [state.input_id, dump(state)]
    for output in outputs:
        arguments += [output.id, dump(output)]
    for checkpoint in checkpoints:
        arguments += [checkpoint.id, dump(checkpoint)]
    return arguments


def _numbered(number: int, draft: bytes) -> bytes:
    """`{"id":7,` in place of the draft's opening brace."""
    return b'{"id":%d,%b' % (number, draft[1:])
