"""From what the store keeps to what the API answers, and the answer itself.

An answer is written as JSON once, by the model that documents it; FastAPI does not look at it again.
May import: starlette, jos.core, jos.wire. Tests: tests/integration/test_api_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel
from starlette.responses import Response

from jos import wire
from jos.core.commands import Reason
from jos.core.files import File, extension, file_type
from jos.core.model import Event, InputState, InputStatus, Job, JobInput, Json, Progress, Status

Offset = Annotated[int, Query(ge=0, le=1_000_000_000, description="How many to skip.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="The most to give.")]

_WAITING = {
    "WaitingForCapacity": "The controller has not looked at it yet.",
    "WaitingForBackoff": "An attempt failed; the next one waits until its back-off has passed.",
    "WaitingForDriver": "The driver of the attempt before has not left yet.",
}


def said(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, "application/json")


def known_already(if_none_match: str, etag: str) -> bool:
    """Whether the client has this very answer: 304."""
    return if_none_match.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))


def job(job: Job, place: tuple[int, int] | None, counts: wire.InputCounts) -> wire.Job:
    waiting = None
    coming = job.status is Status.ADMITTED and job.reason != Reason.CAPACITY_GRANTED  # its driver waits for something
    if (job.status is Status.PENDING or coming) and job.reason:
        waiting = wire.WaitingReason(code=job.reason, message=job.reason_message or _WAITING.get(job.reason, ""))
    failure = None if job.error is None or job.status is Status.COMPLETED else job.error
    return wire.Job(
        id=job.id,
        org_id=job.org_id,
        name=job.name,
        pipeline_type=job.pipeline_type,  # type: ignore[arg-type]
        pipeline_key=job.pipeline_key,
        pipeline_version=job.pipeline_version,
        status=job.status,
        parameters=job.parameters,
        priority=job.priority,
        queue=job.queue,
        retry_count=job.retry_count,
        preemption_count=job.preemption_count,
        queue_position=place[0] if place else None,
        queue_depth=place[1] if place else None,
        waiting=waiting,
        input_progress=counts,
        created_at=job.created_at,
        updated_at=job.updated_at,
        started_at=job.started_at,
        completed_at=job.completed_at,
        failed_at=job.failed_at,
        cancelled_at=job.cancelled_at,
        error=wire.JobError(**failure.model_dump()) if failure else None,
    )


def event(event: Event) -> wire.Event:
    return wire.Event.model_construct(**vars(event))


def progress(entry: Progress) -> wire.Progress:
    return wire.Progress.model_construct(**vars(entry))


def data_ref(
    ref: str,
    filename: str,
    num_bytes: int,
    metadata: Json | None = None,
    attributes: Json | None = None,
    tags: list[str] | None = None,
) -> wire.DataRef:
    end = extension(filename)
    return wire.DataRef(
        ref=ref,
        filename=filename,
        file_type=file_type(filename),
        file_extension=f".{end}" if end else "",
        num_bytes=num_bytes,
        metadata=metadata or {},
        file_tags=tags or [],
        file_attributes=attributes or {},
    )


def status_of(source: JobInput, state: InputState | None) -> InputStatus:
    if not source.tracked:
        return InputStatus.REFERENCE
    return state.status if state is not None else InputStatus.PENDING


def input_of(job: Job, source: JobInput, state: InputState | None, file: File | None, ref: str) -> wire.Input:
    """`file`: what the Files API knows of it, if it is one of its files and still there."""
    return wire.Input(
        id=source.id,
        job_id=job.id,
        port_name=source.port,
        file_id=source.file_id,
        data=data_ref(
            ref,
            source.filename,
            source.num_bytes,
            source.metadata,
            file.attributes if file else None,
            file.tags if file else None,
        ),
        status=status_of(source, state),
        error_message=state.error_message if state else None,
        created_at=job.created_at,
        completed_at=state.completed_at if state else None,
    )
