"""A job's inputs: what each is, how far it is, how all of them add up over time.

May import: fastapi, jos below the API. Tests: tests/integration/test_api_jobs.py.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from jos import wire
from jos.api import shapes
from jos.api.auth import TheirJob
from jos.api.context import Parts, Service, base_url
from jos.api.errors import documented
from jos.api.shapes import Limit, Offset, known_already, said
from jos.core.files import File
from jos.core.model import InputState, InputStatus, Job, JobInput
from jos.links import LINK_SECONDS, Links

router = APIRouter(prefix="/batch/jobs", tags=["inputs"])

Port = Annotated[str | None, Query(max_length=255, description='"component.port"')]
Rows = list[tuple[JobInput, InputState | None]]


@router.get("/{job_id}/inputs", response_model=wire.InputList, responses=documented(400, 404), summary="List inputs")
async def list_inputs(
    request: Request,
    job: TheirJob,
    parts: Parts,
    port_name: Port = None,
    status: InputStatus | None = None,
    offset: Offset = 0,
    limit: Limit = 20,
) -> Response:
    """In the order of the request. `reference`: an input of an untracked port, given to workers and never counted.
    `data.ref` of a file is good for an hour; list again for a new one."""
    rows = await _rows(parts, job, port_name, [status] if status else [])
    page = await _shown(parts, job, rows[offset : offset + limit], base_url(request))
    return said(wire.InputList(job_id=job.id, total=len(rows), offset=offset, limit=limit, inputs=page))


@router.get(
    "/{job_id}/inputs/progress",
    response_model=wire.InputProgressList,
    responses=documented(400, 404),
    summary="How far each input is",
)
async def list_input_progress(
    request: Request,
    job: TheirJob,
    parts: Parts,
    port_name: Port = None,
    status: Annotated[list[InputStatus], Query(description="May be given several times.")] = [],  # noqa: B006
    order: Annotated[Literal["asc", "desc"], Query(description="Of the request.")] = "asc",
    offset: Offset = 0,
    limit: Limit = 20,
) -> Response:
    """Of tracked inputs. `step` is the rank in which one was finished, from 1; null until then."""
    rows = [row for row in await _rows(parts, job, port_name, status) if row[0].tracked]
    if order == "desc":
        rows.reverse()
    latest = (await parts.remembered.trace(job)).latest
    page = rows[offset : offset + limit]
    items = [
        wire.InputProgress(
            input=shown,
            latest_progress=shapes.progress(latest[shown.id]) if shown.id in latest else None,
            step=state.step if state else None,
        )
        for shown, (_, state) in zip(await _shown(parts, job, page, base_url(request)), page, strict=True)
    ]
    return said(wire.InputProgressList(job_id=job.id, total=len(rows), offset=offset, limit=limit, items=items))


@router.get(
    "/{job_id}/inputs/progress/counts",
    response_model=wire.InputProgressCounts,
    responses=documented(400, 404),
    summary="How many inputs are in which state",
)
async def count_inputs(job: TheirJob, parts: Parts, port_name: Port = None) -> Response:
    if port_name is None:
        counts = (await parts.remembered.counts([job]))[job.id]
        return said(wire.InputProgressCounts(job_id=job.id, **dict(counts)))
    found = dict.fromkeys(wire.InputCounts.model_fields, 0)
    for source, state in await _rows(parts, job, port_name, []):
        status = shapes.status_of(source, state)
        if status in found:
            found[status] += 1
    return said(wire.InputProgressCounts(job_id=job.id, **found))


@router.get(
    "/{job_id}/inputs/progress/traces",
    response_model=wire.Traces,
    responses={304: {"description": "Nothing has changed."}, **documented(400, 404)},
    summary="The work so far, over time",
)
async def trace_inputs(
    job: TheirJob,
    parts: Parts,
    buckets: Annotated[int, Query(description="How many points; clamped to 10 to 1000.")] = 100,
    if_none_match: Annotated[str | None, Header(description="The ETag of the answer before.")] = None,
) -> Response:
    """Cumulative: each point says how many files and items were done by its time. One point for each bucket."""
    buckets = min(max(buckets, 10), 1000)
    trace = await parts.remembered.trace(job)
    states = await parts.store.inputs(job.id)
    began = job.started_at or job.created_at
    seconds, latest, points = trace.points(began, states.values(), buckets)
    body = wire.Traces(job_id=job.id, bucket_seconds=seconds, latest_event_at=latest, points=points)
    data = body.model_dump_json()
    etag = f'"{hashlib.sha256(data.encode()).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if if_none_match is not None and known_already(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(data, 200, headers, "application/json")


async def _rows(parts: Service, job: Job, port: str | None, statuses: list[InputStatus]) -> Rows:
    spec, states = await parts.remembered.spec(job), await parts.store.inputs(job.id)
    rows = ((source, states.get(source.id)) for source in spec.inputs if port in (None, source.port))
    return [row for row in rows if not statuses or shapes.status_of(*row) in statuses]


async def _shown(parts: Service, job: Job, rows: Rows, base: str) -> list[wire.Input]:
    """With links to the files and what is known of them; what is no file, or gone, has its name in the link's place."""
    files = await parts.files.read_by_job(job.org_id, [source.url for source, _ in rows])

    def page() -> list[wire.Input]:  # signing many takes a while on S3: beside the event loop
        return [_with_link(parts.links, job, source, state, files.get(source.url), base) for source, state in rows]

    return await asyncio.to_thread(page)


def _with_link(
    links: Links, job: Job, source: JobInput, state: InputState | None, file: File | None, base: str
) -> wire.Input:
    ref = links.download(file.key, file.name, base, LINK_SECONDS) if file else source.file_id
    return shapes.input_of(job, source, state, file, ref)
