"""Jobs: create, list, look, cancel, retry, delete; and how many wait.

May import: fastapi, jos below the API. Tests: tests/integration/test_api_jobs.py.
"""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from jos import wire
from jos.api import creation, shapes
from jos.api.auth import Reader, TheirJob, User
from jos.api.context import Parts, Service
from jos.api.errors import documented
from jos.api.mistakes import CreationRoute
from jos.api.shapes import Limit, Offset, said
from jos.core.commands import Cancel, Retry
from jos.core.model import Job, Status
from jos.store.indexes import TYPES

router = APIRouter(prefix="/batch/jobs", tags=["jobs"], route_class=CreationRoute)

PipelineType = Literal["batch", "training"]
_DEEP = 10_000  # behind so many jobs a page of several statuses costs as much as a search


@router.post(
    "",
    response_model=wire.Job,
    status_code=201,
    responses=documented(400, 404, 409, 413, 422),
    summary="Create a job",
)
async def create_job(
    body: wire.JobCreate,
    caller: User,
    parts: Parts,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="The same key and body give the same job.")
    ] = None,
) -> Response:
    """The configuration is checked against the pipeline's schema, every input is looked for, and the job waits:
    `PENDING`. All that is wrong is told at once, each with its JSON path."""
    job = await creation.create(parts, caller, body, idempotency_key)
    return said((await _shown(parts, [job]))[0], 201)


@router.get("", response_model=wire.JobList, responses=documented(400), summary="List jobs, newest first")
async def list_jobs(
    caller: Reader,
    parts: Parts,
    pipeline_type: PipelineType | None = None,
    status: Annotated[list[Status], Query(description="May be given several times: any of them.")] = [],  # noqa: B006
    q: Annotated[
        str | None, Query(max_length=255, description="Looked for in name, pipeline key and id; case does not count.")
    ] = None,
    offset: Offset = 0,
    limit: Limit = 20,
) -> Response:
    costly = q is not None or (len(status) > 1 and offset > _DEEP)
    async with parts.searches.turn() if costly else nullcontext():
        total, jobs = await parts.store.jobs(caller.org_id, offset, limit, status, q, pipeline_type)
    return said(wire.JobList(total=total, offset=offset, limit=limit, jobs=await _shown(parts, jobs)))


@router.get("/queue", response_model=wire.QueueList, responses=documented(), summary="How many jobs wait")
async def queue_depths(_caller: Reader, parts: Parts) -> Response:
    """By pipeline type, over all organisations, since they wait for the same capacity."""
    depths = await parts.store.depths()
    return said(wire.QueueList(queues=[wire.QueueDepth(pipeline_type=t, depth=depths.get(t, 0)) for t in TYPES]))


@router.get("/{job_id}", response_model=wire.Job, responses=documented(404), summary="Look at a job")
async def get_job(job: TheirJob, parts: Parts) -> Response:
    return said((await _shown(parts, [job]))[0])


@router.post("/{job_id}/cancel", response_model=wire.Cancelled, responses=documented(404, 409), summary="Cancel a job")
async def cancel_job(_caller: User, job: TheirJob, parts: Parts) -> Response:
    """It reads CANCELLED at once; its workers stop within seconds and keep what they committed. 409 when it is over."""
    changed = await parts.store.transact(job.id, Cancel(), datetime.now(UTC))
    return said(wire.Cancelled(id=job.id, status="CANCELLED", cancelled_at=changed.cancelled_at or changed.updated_at))


@router.post("/{job_id}/retry", response_model=wire.Retried, responses=documented(404, 409), summary="Retry a job")
async def retry_job(_caller: User, job: TheirJob, parts: Parts) -> Response:
    """A FAILED or CANCELLED job goes on from what was committed; inputs that failed are tried again."""
    # one of `jos run` has no queue: the service takes it over
    queue = None if job.queue else parts.queues.queue_of(job.pipeline_key, "default")
    changed = await parts.store.transact(job.id, Retry(queue), datetime.now(UTC))
    return said(wire.Retried(id=job.id, status="PENDING", retry_count=changed.retry_count))


@router.delete("/{job_id}", response_model=wire.Deleted, responses=documented(404, 409), summary="Delete a job")
async def delete_job(_caller: User, job: TheirJob, parts: Parts) -> Response:
    """With its outputs, events, progress and checkpoints; not the files that it read. 409 until it is over. Right
    after a cancel it waits some seconds for the job's driver to leave."""
    await parts.removals.remove(await parts.removals.left(job))
    parts.remembered.forget(job.id)
    return said(wire.Deleted(id=job.id, deleted=True))


async def _shown(parts: Service, jobs: list[Job]) -> list[wire.Job]:
    waiting = [job for job in jobs if job.status is Status.PENDING]
    places = await parts.store.places(waiting) if waiting else {}
    counts = await parts.remembered.counts(jobs)
    return [shapes.job(job, places.get(job.id), counts[job.id]) for job in jobs]
