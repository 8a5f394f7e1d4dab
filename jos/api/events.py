"""A job's events and progress entries, page by page, as far back as they go: from the store and from the archive.

May import: fastapi, jos below the API. Tests: tests/integration/test_api_jobs.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from jos import archive, wire
from jos.api import shapes
from jos.api.auth import TheirJob
from jos.api.context import Parts
from jos.api.errors import documented
from jos.api.shapes import Limit, Offset, said
from jos.core.model import Level

router = APIRouter(prefix="/batch/jobs", tags=["events"])

Order = Annotated[Literal["asc", "desc"], Query(description="`desc`: newest first.")]
Word = Annotated[str | None, Query(max_length=255)]


@router.get("/{job_id}/events", response_model=wire.EventList, responses=documented(400, 404), summary="What happened")
async def list_events(
    job: TheirJob,
    parts: Parts,
    level: Level | None = None,
    event_type: Word = None,
    input_id: Word = None,
    order: Order = "desc",
    offset: Offset = 0,
    limit: Limit = 20,
) -> Response:
    """Numbered from 1 without gaps. docs/events.md lists every type."""
    total, found = await archive.events(
        parts.store,
        parts.storage,
        job,
        offset=offset,
        limit=limit,
        order=order,
        level=level,
        event_type=event_type,
        input_id=input_id,
    )
    events = [shapes.event(one) for one in found]
    return said(wire.EventList(job_id=job.id, total=total, offset=offset, limit=limit, events=events))


@router.get(
    "/{job_id}/progress", response_model=wire.ProgressList, responses=documented(400, 404), summary="How far it came"
)
async def list_progress(
    job: TheirJob,
    parts: Parts,
    kind: Word = None,
    input_id: Word = None,
    order: Order = "asc",
    offset: Offset = 0,
    limit: Limit = 20,
) -> Response:
    """Oldest first, so that whoever asks for what lies behind the entries it has reads on at the end."""
    total, found = await archive.progress(
        parts.store, parts.storage, job, offset=offset, limit=limit, order=order, kind=kind, input_id=input_id
    )
    entries = [shapes.progress(one) for one in found]
    return said(wire.ProgressList(job_id=job.id, total=total, offset=offset, limit=limit, entries=entries))
