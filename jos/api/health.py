"""Whether this process lives, whether it can serve, and its numbers. No key is needed; nothing of a job is shown.

May import: fastapi, jos below the API. Tests: tests/integration/test_api_service.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.responses import Response

from jos.api.context import Parts, Service
from jos.core.errors import JosError
from jos.store import lease

router = APIRouter(tags=["service"])
CONTROLLER = "controller"  # the name of the leader's lease
_PATIENCE = 3.0  # seconds for each check


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    """`checks` says of each part `ok` or what is wrong. Without a controller jobs are taken, but none starts: that
    alone does not make this process unready."""

    ready: bool
    checks: dict[str, str]


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    return Health(status="ok")


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}}, summary="Can it serve?")
async def readyz(parts: Parts) -> Response:
    store, storage, controller = await asyncio.gather(
        _checked(parts.store.ping()),
        _checked(asyncio.to_thread(parts.storage.stat, "probe/ready")),
        _checked(_leader(parts)),
    )
    ready = store == storage == "ok"
    found = Readiness(ready=ready, checks={"store": store, "storage": storage, "controller": controller})
    return JSONResponse(found.model_dump(), 200 if ready else 503)


@router.get("/metrics", response_class=Response, summary="Numbers for Prometheus", include_in_schema=False)
async def metrics(request: Request) -> Response:
    text, media_type = request.app.state.metrics.page()
    return Response(text, media_type=media_type)


async def _leader(parts: Service) -> None:
    if await lease.holder(parts.connection, CONTROLLER) is None:
        raise JosError("no controller leads: jobs wait until one does.")


async def _checked(check: Awaitable[object]) -> str:
    try:
        async with asyncio.timeout(_PATIENCE):
            await check
    except JosError as error:
        return error.message
    except TimeoutError:
        return f"no answer within {_PATIENCE:g} s."
    return "ok"
