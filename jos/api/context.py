"""What every route works with: the open parts of one API process, and who is asking.

May import: fastapi, jos below the API. Tests: tests/integration/test_api_*.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from jos.core.errors import BadRequest
from jos.settings import Settings
from jos.storage.base import Storage
from jos.store.connection import Connection
from jos.store.keys import ApiKeys, Role
from jos.store.redis import Store

if TYPE_CHECKING:  # these rooms know the Service themselves
    from jos.api.catalogue import Catalogue
    from jos.api.hub import Hub
    from jos.api.limits import Buckets, Turns
    from jos.api.metrics import Metrics
    from jos.api.remembered import Remembered
    from jos.core.queues import QueueConfig
    from jos.files.service import Files
    from jos.links import Links
    from jos.removal import Removals


@dataclass
class Service:
    """Opened once per process by the app's lifespan and kept in `app.state.service`."""

    settings: Settings
    store: Store
    storage: Storage
    keys: ApiKeys
    files: Files
    links: Links
    queues: QueueConfig
    catalogue: Catalogue  # pipelines: those in folders and those that were created over the API
    hub: Hub  # fans a job's events out to whoever listens
    remembered: Remembered  # what the process keeps of jobs so as not to read it again
    removals: Removals  # deletes the folders of deleted jobs
    rates: Buckets
    searches: Turns
    metrics: Metrics = field(repr=False)

    @property
    def connection(self) -> Connection:
        return self.store.connection


@dataclass(frozen=True)
class Caller:
    org_id: str
    role: Role
    key_id: str


def service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


def base_url(connection: HTTPConnection) -> str:
    """Where clients reach this API, without a slash at the end; what links in answers begin with. Who asked below
    `/api` may be behind a proxy that lets nothing else through."""
    settings: Settings = connection.app.state.settings
    if settings.public_url:
        return settings.public_url.rstrip("/")
    try:
        below = "/api" if connection.scope["path"].startswith("/api/") else ""
        return str(connection.base_url).rstrip("/") + below
    except ValueError:
        raise BadRequest("The Host header is no host.") from None


Parts = Annotated[Service, Depends(service)]
