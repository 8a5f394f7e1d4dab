"""API keys, for administrators: an organisation's own; the operator's administrators also those of others.

May import: fastapi, jos below the API. Tests: tests/integration/test_api_security.py.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from jos import wire
from jos.api.auth import Admin
from jos.api.bodies import JsonRoute
from jos.api.context import Caller, Parts, Service
from jos.api.errors import documented
from jos.api.shapes import Limit, Offset, said
from jos.core.errors import Forbidden, NotFound
from jos.recovery import drop_key, save_key
from jos.store.keys import ApiKey

router = APIRouter(prefix="/keys", tags=["keys"], route_class=JsonRoute)

Org = Annotated[str | None, Query(max_length=64, description="Another organisation, for the operator.")]


@router.post(
    "", response_model=wire.Key, status_code=201, responses=documented(400, 413, 422), summary="Create an API key"
)
async def create_key(body: wire.KeyCreate, caller: Admin, parts: Parts) -> Response:
    """The answer holds the key itself, in `key`: it is not kept and cannot be shown again."""
    org_id = _org(parts, caller, body.org_id)
    made, secret = await parts.keys.create(org_id, body.role, body.name, datetime.now(UTC))
    await save_key(parts.storage, made)  # so that it outlives Redis
    return said(_shown(made, secret), 201)


@router.get("", response_model=wire.KeyList, responses=documented(400), summary="List API keys")
async def list_keys(caller: Admin, parts: Parts, org_id: Org = None, offset: Offset = 0, limit: Limit = 20) -> Response:
    """Oldest first, without the keys themselves."""
    found = await parts.keys.list(_org(parts, caller, org_id))
    page = [_shown(key) for key in found[offset : offset + limit]]
    return said(wire.KeyList(total=len(found), offset=offset, limit=limit, keys=page))


@router.delete("/{key_id}", response_model=wire.Deleted, responses=documented(404), summary="Revoke an API key")
async def revoke_key(key_id: str, caller: Admin, parts: Parts) -> Response:
    """Nobody gets in with it any more, from the next request on."""
    key = await parts.keys.get(key_id)
    if key is None or (key.org_id != caller.org_id and not _operates(parts, caller)):
        raise NotFound(f"There is no key {key_id}.")
    await drop_key(parts.storage, key.id)
    await parts.keys.revoke(key.id)
    return said(wire.Deleted(id=key.id, deleted=True))


def _operates(parts: Service, caller: Caller) -> bool:
    return caller.org_id == parts.settings.org


def _org(parts: Service, caller: Caller, wanted: str | None) -> str:
    if wanted is None or wanted == caller.org_id:
        return caller.org_id
    if not _operates(parts, caller):
        raise Forbidden("Only the operator's organisation names another one.")
    return wanted


def _shown(key: ApiKey, secret: str | None = None) -> wire.Key:
    return wire.Key(
        id=key.id,
        org_id=key.org_id,
        role=key.role,
        name=key.name,
        created_at=key.created_at,
        last4=key.last4,
        key=secret,
    )
