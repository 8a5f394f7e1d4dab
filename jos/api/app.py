"""The API as an ASGI application: opens the parts, puts the routes together, and closes in order.

May import: everything below the command line. Tests: tests/integration/test_api_service.py. For people: docs/api.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute

from jos import __version__
from jos.api import (
    console,
    docs_page,
    errors,
    events,
    files,
    health,
    inputs,
    jobs,
    keys,
    openapi,
    outputs,
    queues,
    registry,
    signed,
    stream,
    tuning,
    uploads,
)
from jos.api.catalogue import Catalogue
from jos.api.context import Service
from jos.api.drain import Drain
from jos.api.frame import Frame
from jos.api.hub import Hub
from jos.api.limits import SEARCH_PATIENCE, SEARCHES, Buckets, Limits, Turns
from jos.api.metrics import Metrics
from jos.api.remembered import Remembered
from jos.files.service import Files
from jos.links import Links
from jos.removal import Removals
from jos.settings import Settings
from jos.store.keys import ApiKeys
from jos.store.pipelines import Pipelines
from jos.wiring import Wired, open_queues, wired

ROOMS = (jobs, events, stream, inputs, outputs, queues, registry, uploads, files, signed, keys)
# the same for all clients; only the first of each is shown in the description
BASES = ("/v0.5", "/api/v0.5", "/api")
TUNING_BASES = ("/v0.6", "/api/v0.6", "/api")


def create_app(settings: Settings | None = None) -> FastAPI:
    """An app whose parts are opened when it starts and closed when it ends."""
    metrics = Metrics()
    app = FastAPI(
        title="JOS",
        version=__version__,
        description=openapi.DESCRIPTION,
        lifespan=_open,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
        redirect_slashes=False,
        strict_content_type=False,  # no cookies, so nothing can be forged; some clients send JSON without a word
    )
    app.state.settings, app.state.metrics = settings or Settings(), metrics
    for base in BASES:
        for room in ROOMS:
            app.include_router(room.router, prefix=base, include_in_schema=base == BASES[0])
    for base in TUNING_BASES:
        app.include_router(tuning.router, prefix=base, include_in_schema=base == TUNING_BASES[0])
    for room in (health, docs_page, console):
        app.include_router(room.router)
    errors.install(app)
    openapi.install(app)
    app.add_middleware(Limits)
    app.add_middleware(Frame, metrics=metrics)
    app.add_middleware(Drain)  # added last, so outermost
    return app


@asynccontextmanager
async def _open(app: FastAPI) -> AsyncIterator[None]:
    async with wired(app.state.settings) as parts:
        service = app.state.service = await _service(parts, app.state.metrics)
        await service.catalogue.warm()
        service.removals.start()
        try:
            yield
        finally:
            await service.hub.stop()
            await service.removals.close()


async def _service(parts: Wired, metrics: Metrics) -> Service:
    settings, store, storage = parts.settings, parts.store, parts.storage
    kept = Files(store, storage, open_uploads=settings.open_uploads)
    return Service(
        settings=settings,
        store=store,
        storage=storage,
        keys=ApiKeys(store.connection),
        files=kept,
        links=await Links.open(store.connection, storage),
        queues=open_queues(settings),
        catalogue=Catalogue(parts.registry, Pipelines(store.connection), storage, settings.org),
        hub=Hub(store, storage, metrics),
        remembered=Remembered(store, storage),
        removals=Removals(store, storage, kept),
        rates=Buckets(settings.rate_limit, max(1, 2 * settings.rate_limit)),
        searches=Turns(SEARCHES, SEARCH_PATIENCE),
        metrics=metrics,
    )


def _operation_id(route: APIRoute) -> str:
    return route.name
