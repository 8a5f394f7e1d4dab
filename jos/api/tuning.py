"""/v0.6/fine_tuning: training jobs for clients of an OpenAI-like API. There is no second record: `ftj_…` is the job
`job_…` of the same characters, which /v0.5 shows with its inputs and progress.

May import: fastapi, jos below the API. Tests: tests/integration/test_api_finetuning.py. For people: docs/api.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Depends, Header, Query
from starlette.responses import Response

from jos import archive, wire, wire_tuning
from jos.api import creation, tuning_body
from jos.api.auth import Reader, User, job_of
from jos.api.context import Parts, Service
from jos.api.errors import documented
from jos.api.mistakes import CreationRoute
from jos.api.shapes import Offset, said
from jos.core.commands import Cancel
from jos.core.errors import BadRequest, ConfigInvalid, Conflict, InvalidTransition, NotFound, Violation
from jos.core.ids import is_id
from jos.core.model import Checkpoint, Event, Job, Status
from jos.wire_tuning import TuningCreate, TuningJob, TuningStatus

STATUSES: Mapping[Status, TuningStatus] = {
    Status.PENDING: "QUEUED",
    Status.ADMITTED: "QUEUED",
    Status.PREEMPTED: "QUEUED",
    Status.RUNNING: "RUNNING",
    Status.COMPLETED: "SUCCEEDED",
    Status.FAILED: "FAILED",
    Status.CANCELLED: "CANCELLED",
}
_KIND = "training"


class TuningRoute(CreationRoute):
    given: ClassVar[Mapping[str, Any]] = {"name": "?"}

    @staticmethod
    def read(body: Mapping[str, Any]) -> wire.JobCreate:
        return tuning_body.translated(TuningCreate.model_validate(body))

    @staticmethod
    def told(body: Mapping[str, Any], found: list[Violation]) -> list[Violation]:
        return tuning_body.in_their_terms(body["method"]["type"], found)


router = APIRouter(prefix="/fine_tuning", tags=["fine-tuning"], route_class=TuningRoute)

Most = Annotated[int, Query(ge=1, le=1000, description="The most to give.")]
MostJobs = Annotated[int, Query(ge=1, le=100, description="The most to give.")]
Last = Annotated[str | None, Query(max_length=64, description="The id of the last one of the page before.")]


async def their_tuning(fine_tuning_job_id: str, caller: Reader, parts: Parts) -> Job:
    """Raises NotFound for a job of another organisation, and for one that trains nothing."""
    unknown = NotFound(f"There is no fine-tuning job {fine_tuning_job_id[:64]}.")
    if not is_id(fine_tuning_job_id, "ftj"):
        raise unknown
    try:
        job = await job_of(parts, caller, f"job_{fine_tuning_job_id.removeprefix('ftj_')}")
    except NotFound:
        raise unknown from None
    if job.pipeline_type != _KIND:
        raise unknown
    return job


TheirTuning = Annotated[Job, Depends(their_tuning)]


# --- routes ---------------------------------------------------------------------------------------------


@router.post(
    "/jobs",
    response_model=TuningJob,
    status_code=201,
    responses=documented(400, 404, 409, 413, 422),
    summary="Fine-tune a model",
)
async def create_tuning(
    body: TuningCreate,
    caller: User,
    parts: Parts,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="The same key and body give the same job.")
    ] = None,
) -> Response:
    """Labelled files become a model that classifies windows. All that is wrong is told at once, each with its JSON path
    in this body."""
    asked = tuning_body.translated(body)
    try:
        job = await creation.create(parts, caller, asked, idempotency_key)
    except ConfigInvalid as error:
        violations = tuning_body.in_their_terms(body.method.type, error.violations)
        raise ConfigInvalid(error.message, violations, suggestion=error.suggestion) from None
    return said(await _tuning(parts, job), 201)


@router.get(
    "/jobs",
    response_model=wire_tuning.TuningJobList,
    responses=documented(400),
    summary="List fine-tuning jobs, newest first",
)
async def list_tunings(
    caller: Reader, parts: Parts, offset: Offset = 0, limit: MostJobs = 20, after: Last = None
) -> Response:
    if after is not None:
        offset += await _behind(parts, caller.org_id, after)
    total, jobs = await parts.store.jobs(caller.org_id, offset, limit, pipeline_type=_KIND)
    shown = await asyncio.gather(*(_there(parts, job) for job in jobs))
    data = [one for one in shown if one is not None]
    return said(wire_tuning.TuningJobList(data=data, has_more=offset + len(jobs) < total, total=total))


@router.get("/jobs/{fine_tuning_job_id}", response_model=TuningJob, responses=documented(404), summary="Look at one")
async def get_tuning(job: TheirTuning, parts: Parts) -> Response:
    """`fine_tuned_model` is the best checkpoint, once the job has SUCCEEDED; FAILED and CANCELLED are final, too."""
    return said(await _tuning(parts, job))


@router.post(
    "/jobs/{fine_tuning_job_id}/cancel", response_model=TuningJob, responses=documented(404, 409), summary="Cancel one"
)
async def cancel_tuning(_caller: User, job: TheirTuning, parts: Parts) -> Response:
    """It reads CANCELLED at once; checkpoints that it has left stay. 409 when it is over."""
    try:
        changed = await parts.store.transact(job.id, Cancel(), datetime.now(UTC))
    except InvalidTransition:
        raise Conflict(
            f"Fine-tuning job {_tuning_id(job)} is {STATUSES[(await parts.store.get(job.id)).status]}: it is over."
        ) from None
    return said(await _tuning(parts, changed))


@router.get(
    "/jobs/{fine_tuning_job_id}/events",
    response_model=wire_tuning.TuningEventList,
    responses=documented(400, 404),
    summary="What happened, newest first",
)
async def list_tuning_events(
    job: TheirTuning,
    parts: Parts,
    limit: Most = 20,
    after: Annotated[int | None, Query(ge=1, description="The id of the last event of the page before.")] = None,
) -> Response:
    """Loss and scores of each span of steps are in the job's progress: `GET /v0.5/batch/jobs/job_…/progress`."""
    if after is None:
        _, found = await archive.events(parts.store, parts.storage, job, limit=limit, order="desc")
    else:  # ids have no gaps
        first = max(0, min(after, 1 << 53) - 1 - limit)
        _, found = await archive.events(parts.store, parts.storage, job, after=first, limit=limit, order="asc")
        found = [event for event in reversed(found) if event.id < after]
    events = [_event(one) for one in found]
    return said(wire_tuning.TuningEventList(data=events, has_more=bool(found) and found[-1].id > 1))


@router.get(
    "/jobs/{fine_tuning_job_id}/checkpoints",
    response_model=wire_tuning.TuningCheckpointList,
    responses=documented(400, 404),
    summary="List checkpoints, the best first",
)
async def list_tuning_checkpoints(job: TheirTuning, parts: Parts, limit: Most = 20, after: Last = None) -> Response:
    """Each is better than those of fewer steps. The id is an input of another job: `{"kind": "checkpoint", …}`."""
    found = (await parts.store.checkpoints(job.id))[::-1]
    if after is not None:
        at = next((n for n, one in enumerate(found, 1) if one.id == after), None)
        if at is None:
            raise BadRequest(f"There is no checkpoint {after} of this job to list after.")
        found = found[at:]
    page = [_checkpoint(job, one) for one in found[:limit]]
    return said(wire_tuning.TuningCheckpointList(data=page, has_more=len(found) > limit))


# --- shapes ---------------------------------------------------------------------------------------------


async def _behind(parts: Service, org_id: str, tuning_id: str) -> int:
    """How many jobs come up to this one in the list."""
    job_id = f"job_{tuning_id.removeprefix('ftj_')}" if is_id(tuning_id, "ftj") else ""
    place = await parts.store.place_in_list(org_id, job_id, _KIND)
    if place is None:
        raise BadRequest(f"There is no fine-tuning job {tuning_id} to list after.")
    return place


async def _there(parts: Service, job: Job) -> TuningJob | None:
    """None for one that was deleted since it was listed."""
    try:
        return await _tuning(parts, job)
    except NotFound:
        return None


async def _tuning(parts: Service, job: Job) -> TuningJob:
    spec = await parts.remembered.spec(job)
    models = await parts.store.checkpoints(job.id) if job.status is Status.COMPLETED else []
    failure = job.error if job.status is Status.FAILED else None
    return TuningJob(
        id=_tuning_id(job),
        job_id=job.id,
        organization_id=job.org_id,
        name=job.name,
        status=STATUSES[job.status],
        **tuning_body.described(spec),
        fine_tuned_model=models[-1].id if models else None,
        error=wire_tuning.TuningError(code=failure.code, message=failure.message) if failure else None,
        created_at=job.created_at,
        updated_at=job.updated_at,
        started_at=job.started_at,
        finished_at=_finished(job),
    )


def _finished(job: Job) -> datetime | None:
    ends = {Status.COMPLETED: job.completed_at, Status.FAILED: job.failed_at, Status.CANCELLED: job.cancelled_at}
    return ends.get(job.status)


def _tuning_id(job: Job) -> str:
    return f"ftj_{job.id.removeprefix('job_')}"


def _event(event: Event) -> wire_tuning.TuningEvent:
    return wire_tuning.TuningEvent(
        id=event.id,
        level=event.level,
        type=event.event_type,
        event_type=event.event_type,
        message=event.message,
        data=event.payload,
        created_at=event.created_at,
    )


def _checkpoint(job: Job, one: Checkpoint) -> wire_tuning.TuningCheckpoint:
    return wire_tuning.TuningCheckpoint(
        id=one.id,
        fine_tuning_job_id=_tuning_id(job),
        name=one.name,
        step=one.step,
        metrics=one.metrics,
        created_at=one.created_at,
    )
