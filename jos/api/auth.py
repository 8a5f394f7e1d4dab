"""Who is asking: a key in `Authorization: Bearer sk_…`, looked up at each request, so that a revoked one is out at
once.

`reader`, `user` and `admin` are the dependencies that routes take, each giving the Caller; a role includes those
before it. May import: fastapi, jos below the API. Tests: tests/integration/test_api_security.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from jos.api.context import Caller, Parts, Service
from jos.core.errors import Forbidden, NotFound, Unauthorized
from jos.core.model import Job
from jos.store.keys import ApiKeys, Role

_RANK: dict[Role, int] = {"reader": 0, "user": 1, "admin": 2}
_LONGEST = 200  # characters of a secret worth looking up
_bearer = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="An API key: `Authorization: Bearer sk_…`.")


async def caller(
    request: Request, parts: Parts, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    """Raises Unauthorized without a valid key, and TooManyRequests."""
    return await known(request, parts, credentials.credentials if credentials else None)


async def known(request: Request, parts: Service, secret: str | None) -> Caller:
    """Once for each request: jos.api.bodies asks before it reads a body, so that strangers' bodies are not read."""
    if (before := request.scope.get("jos.caller")) is not None:
        asked: Caller = before
        return asked
    if secret is None:
        parts.rates.take(_stranger(request))
        raise Unauthorized("This call needs an API key.", suggestion="Send it as `Authorization: Bearer sk_…`.")
    key = await parts.keys.find(secret) if len(secret) <= _LONGEST else None
    if key is None:
        parts.rates.take(_stranger(request))
        raise Unauthorized("This API key is not known, or was revoked.")
    found = Caller(key.org_id, key.role, key.id)
    request.scope["jos.caller"] = found  # for the access log
    parts.rates.take(key.id)
    return found


def _stranger(request: Request) -> str:
    return f"address {request.client.host if request.client else ''}"


def _at_least(role: Role) -> Callable[[Caller], Awaitable[Caller]]:
    async def checked(found: Annotated[Caller, Depends(caller)]) -> Caller:
        if _RANK[found.role] < _RANK[role]:
            raise Forbidden(f"This needs a key with the role {role}; yours is {found.role}.")
        return found

    return checked


reader = _at_least("reader")
user = _at_least("user")
admin = _at_least("admin")

Reader = Annotated[Caller, Depends(reader)]
User = Annotated[Caller, Depends(user)]
Admin = Annotated[Caller, Depends(admin)]


async def their_job(job_id: str, caller: Reader, parts: Parts) -> Job:
    return await job_of(parts, caller, job_id)


TheirJob = Annotated[Job, Depends(their_job)]


async def job_of(parts: Service, caller: Caller, job_id: str) -> Job:
    """The one way to a job for whoever asks over HTTP: another organisation's is as unknown as none. NotFound."""
    job = await parts.store.get(job_id)
    if job.org_id != caller.org_id:
        raise NotFound(f"There is no job {job_id}.")
    return job


async def bootstrap(keys: ApiKeys, org_id: str, now: datetime | None = None) -> str | None:
    """The secret of a first admin key for the organisation; None when it has an admin key already."""
    if any(key.role == "admin" for key in await keys.list(org_id)):
        return None
    _, secret = await keys.create(org_id, "admin", "first key", now or datetime.now(UTC))
    return secret
