"""What a job made: output files by links that need no key, and checkpoints.

May import: fastapi, jos below the API. Tests: tests/integration/test_api_jobs.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from jos import wire
from jos.api import shapes
from jos.api.auth import TheirJob
from jos.api.context import Parts, base_url
from jos.api.errors import documented
from jos.api.inputs import Port
from jos.api.shapes import Limit, Offset, said
from jos.api.signed import BYTES, served
from jos.core.errors import NotFound
from jos.core.model import Checkpoint, Job, JobInput, Output, job_folder
from jos.links import LINK_SECONDS, Links

router = APIRouter(prefix="/batch/jobs", tags=["outputs"])
Through = Annotated[
    Literal["storage", "api"],
    Query(description="Where `data.ref` leads: to the object store where there is one, or to this API in any case."),
]
Sign = Callable[[str, str], str]  # key and file name of an object -> where it can be read


@router.get("/{job_id}/outputs", response_model=wire.OutputList, responses=documented(400, 404), summary="List outputs")
async def list_outputs(
    request: Request,
    job: TheirJob,
    parts: Parts,
    port_name: Port = None,
    input_id: Port = None,
    offset: Offset = 0,
    limit: Limit = 20,
    links: Through = "storage",
) -> Response:
    """In the order of their arrival, also while the job runs. `data.ref` is good for an hour; list again for a new
    one."""
    found = [
        output
        for output in await parts.store.outputs(job.id)
        if port_name in (None, output.port) and input_id in (None, output.input_id)
    ]
    sources = {source.id: source for source in (await parts.remembered.spec(job)).inputs}
    sign, now = _signing(parts.links, links, base_url(request)), datetime.now(UTC)

    def page() -> list[wire.Output]:  # signing many takes a while on S3: beside the event loop
        return [
            _shown(sign, job, output, sources.get(output.input_id or ""), now)
            for output in found[offset : offset + limit]
        ]

    outputs = await asyncio.to_thread(page)
    return said(wire.OutputList(job_id=job.id, total=len(found), offset=offset, limit=limit, outputs=outputs))


@router.get(
    "/{job_id}/outputs/{output_id}/content",
    responses={**documented(404, 416), **BYTES},
    response_class=Response,
    summary="Read an output",
)
async def output_content(output_id: str, request: Request, job: TheirJob, parts: Parts) -> Response:
    """The bytes, through the API; `Range` is supported."""
    for output in await parts.store.outputs(job.id):
        if output.id == output_id:
            return await served(request, parts.storage, job_folder(job.org_id, job.id) + output.key, output.filename)
    raise NotFound(f"Job {job.id} has no output {output_id}.")


@router.get(
    "/{job_id}/checkpoints",
    response_model=wire.CheckpointList,
    responses=documented(400, 404),
    summary="List checkpoints",
)
async def list_checkpoints(
    request: Request,
    job: TheirJob,
    parts: Parts,
    offset: Offset = 0,
    limit: Limit = 20,
    links: Through = "storage",
) -> Response:
    """Of a training job, by step. The id of one is an input of another job: `{"kind": "checkpoint", …}`. `data.ref` is
    good for an hour; list again for a new one."""
    found = await parts.store.checkpoints(job.id)
    sign, now = _signing(parts.links, links, base_url(request)), datetime.now(UTC)

    def page() -> list[wire.Checkpoint]:
        return [_model(sign, job, one, now) for one in found[offset : offset + limit]]

    shown = await asyncio.to_thread(page)
    return said(wire.CheckpointList(job_id=job.id, total=len(found), offset=offset, limit=limit, checkpoints=shown))


def _signing(links: Links, through: str, base: str) -> Sign:
    make = links.through_api if through == "api" else links.download
    return lambda key, filename: make(key, filename, base, LINK_SECONDS)


def _shown(sign: Sign, job: Job, output: Output, source: JobInput | None, now: datetime) -> wire.Output:
    key = job_folder(job.org_id, job.id) + output.key
    return wire.Output(
        id=output.id,
        job_id=job.id,
        port_name=output.port,
        input_id=output.input_id,
        input_file_id=source.file_id if source else None,
        data=shapes.data_ref(sign(key, output.filename), output.filename, output.num_bytes),
        expires_at=now + timedelta(seconds=LINK_SECONDS),
        created_at=output.created_at,
    )


def _model(sign: Sign, job: Job, one: Checkpoint, now: datetime) -> wire.Checkpoint:
    key = job_folder(job.org_id, job.id) + one.key
    return wire.Checkpoint(
        id=one.id,
        name=one.name,
        step=one.step,
        metrics=one.metrics,
        data=shapes.data_ref(sign(key, one.filename), one.filename, one.num_bytes),
        expires_at=now + timedelta(seconds=LINK_SECONDS),
        created_at=one.created_at,
    )
