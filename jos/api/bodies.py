"""How a JSON body is read: quickly, and refusing what could not be written down again.

May import: fastapi, orjson, jos.api.auth. Tests: tests/integration/test_api_errors.py.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from jos.api import auth
from jos.api.context import service

DEEPEST = 64  # levels of lists and objects; a configuration has a handful


class _JsonRequest(Request):
    async def json(self) -> Any:
        value = orjson.loads(await self.body())  # takes no NaN and no half of a surrogate pair, unlike the json module
        if _too_deep(value):
            raise HTTPException(400, f"The body is nested more than {DEEPEST} levels deep.")
        return value


class JsonRoute(APIRoute):
    """For routes that take JSON; all of them need a key."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            kind, _, secret = request.headers.get("authorization", "").partition(" ")
            await auth.known(request, service(request), secret.strip() or None if kind.lower() == "bearer" else None)
            return await handle(_JsonRequest(request.scope, request.receive))

        return handled


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True
