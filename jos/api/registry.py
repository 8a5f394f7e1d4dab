"""The registry of pipelines: what can be run, and, for administrators, what an organisation adds to it.

May import: fastapi, jos below the API. Tests: tests/integration/test_api_registry.py.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter
from starlette.responses import Response

from jos import wire
from jos.api.auth import Admin, Reader
from jos.api.bodies import JsonRoute
from jos.api.catalogue import shown, shown_schema
from jos.api.context import Caller, Parts, Service
from jos.api.errors import documented
from jos.api.jobs import PipelineType
from jos.api.shapes import Limit, Offset, said
from jos.core.errors import Forbidden
from jos.core.model import Pipeline, PipelineStatus

router = APIRouter(prefix="/batch/registry/pipelines", tags=["registry"], route_class=JsonRoute)


@router.get("", response_model=wire.PipelineList, responses=documented(400), summary="List pipelines")
async def list_pipelines(
    caller: Reader,
    parts: Parts,
    pipeline_type: PipelineType | None = None,
    visibility: Literal["platform", "org"] | None = None,
    status: PipelineStatus | None = None,
    offset: Offset = 0,
    limit: Limit = 20,
) -> Response:
    """By key, the newest version first. Deleted ones are shown only when they are asked for."""
    found = [
        entry
        for entry in await parts.catalogue.seen(caller.org_id)
        if pipeline_type in (None, entry.pipeline.pipeline_type)
        and visibility in (None, entry.pipeline.visibility)
        and (entry.pipeline.status is not PipelineStatus.DELETED if status is None else entry.pipeline.status is status)
    ]
    page = [shown(entry) for entry in found[offset : offset + limit]]
    return said(wire.PipelineList(total=len(found), offset=offset, limit=limit, pipelines=page))


@router.post(
    "",
    response_model=wire.Pipeline,
    status_code=201,
    responses=documented(400, 409, 413, 422),
    summary="Create a pipeline",
)
async def create_pipeline(body: Pipeline, caller: Admin, parts: Parts) -> Response:
    """A draft, new or in place of one; it runs only where its version is named, until it is published. An
    organisation's own pipeline runs a worker that the platform offers, with other defaults, locks and resources; new
    code is the operator's to install."""
    ceiling = parts.queues.ceiling(caller.role)
    if body.priority > ceiling:  # else a pipeline would lift its jobs above what a request may ask for
        raise Forbidden(f"A pipeline made here may have a priority up to {ceiling}, not {body.priority}.")
    return said(shown(await parts.catalogue.create(caller.org_id, body, datetime.now(UTC))), 201)


@router.get("/{pipeline_id}", response_model=wire.Pipeline, responses=documented(404), summary="Look at a pipeline")
async def get_pipeline(pipeline_id: str, caller: Reader, parts: Parts) -> Response:
    return said(shown(await parts.catalogue.by_id(caller.org_id, pipeline_id)))


@router.get(
    "/{pipeline_id}/schema", response_model=wire.PipelineSchema, responses=documented(404), summary="What it takes"
)
async def get_pipeline_schema(pipeline_id: str, caller: Reader, parts: Parts) -> Response:
    """JSON Schema 2020-12 of each component: of what a user may set, and of the whole configuration."""
    return said(shown_schema(await parts.catalogue.by_id(caller.org_id, pipeline_id)))


@router.post(
    "/{pipeline_id}/publish", response_model=wire.Pipeline, responses=documented(404, 409), summary="Publish a pipeline"
)
async def publish_pipeline(pipeline_id: str, caller: Admin, parts: Parts) -> Response:
    """From now on it never changes, and is what runs where no version is named, if it is the newest."""
    return await _moved(parts, caller, pipeline_id, PipelineStatus.PUBLISHED)


@router.post(
    "/{pipeline_id}/deactivate",
    response_model=wire.Pipeline,
    responses=documented(404, 409),
    summary="Take no new jobs of a pipeline",
)
async def deactivate_pipeline(pipeline_id: str, caller: Admin, parts: Parts) -> Response:
    """Jobs that exist go on: each has a copy of its pipeline."""
    return await _moved(parts, caller, pipeline_id, PipelineStatus.DEACTIVATED)


@router.delete(
    "/{pipeline_id}", response_model=wire.Deleted, responses=documented(404, 409), summary="Delete a pipeline"
)
async def delete_pipeline(pipeline_id: str, caller: Admin, parts: Parts) -> Response:
    """A version that was published stays taken: nothing else is ever created under it."""
    await _moved(parts, caller, pipeline_id, PipelineStatus.DELETED)
    return said(wire.Deleted(id=pipeline_id, deleted=True))


async def _moved(parts: Service, caller: Caller, pipeline_id: str, status: PipelineStatus) -> Response:
    entry = await parts.catalogue.by_id(caller.org_id, pipeline_id)
    return said(shown(await parts.catalogue.move(entry, caller.org_id, status, datetime.now(UTC))))
