"""What surrounds every request: its id, the access log, security headers, metrics, and the answer when all else fails.

Neither a secret nor a query string is ever logged: signed URLs carry their proof there.
May import: starlette, structlog, jos.api. Tests: tests/integration/test_api_service.py.
"""

from __future__ import annotations

import re
import uuid
from time import perf_counter
from typing import Any

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jos.api.errors import unexpected
from jos.api.metrics import Metrics

log = structlog.get_logger("jos.api")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_QUIET = ("/healthz", "/readyz", "/metrics")  # asked all the time; logged only when they fail
_NOTHING = "default-src 'none'; frame-ancestors 'none'"
_DOCS = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


class Frame:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": _tidied(scope["path"]), "query_string": _given(scope["query_string"])}
        request_id = _request_id(scope)
        policy = _DOCS if scope["path"] == "/docs" else _NOTHING
        status, streams, began = 0, False, perf_counter()

        async def framed(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", policy)
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Request-Id"] = request_id
                streams = headers.get("content-type", "").startswith("text/event-stream")
            await send(message)

        self._metrics.in_flight.inc()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, framed)
            except Exception as error:
                answer = unexpected(error)
                if status:  # too late for another answer; the broken connection tells the client
                    raise
                await answer(scope, receive, framed)
            finally:
                self._metrics.in_flight.dec()
                self._note(scope, status, streams, perf_counter() - began)

    def _note(self, scope: Scope, status: int, streams: bool, seconds: float) -> None:
        route, method = _template(scope), scope["method"]
        if not streams:
            self._metrics.seconds.labels(method, route, status).observe(seconds)
        if status >= 500:
            self._metrics.errors.labels(route).inc()
        if scope["path"] in _QUIET and status < 400:
            return
        caller: Any = scope.get("jos.caller")
        log.info(
            "request",
            method=method,
            path=scope["path"][:200],
            status=status or "aborted",
            ms=round(seconds * 1000, 1),
            key=caller.key_id if caller else None,
            org=caller.org_id if caller else None,
        )


def _tidied(path: str) -> str:
    """A base URL with a slash at its end makes two of them; some clients end every path with one."""
    if "//" not in path and not path.endswith("/"):
        return path
    return "/" + "/".join(part for part in path.split("/") if part)


def _given(query: bytes) -> bytes:
    """Without the parameters that have no value: some clients send all that they know of, and mean none by that."""
    return b"&".join(pair for pair in query.split(b"&") if pair.partition(b"=")[2]) if query else query


def _template(scope: Scope) -> str:
    """The route as it was declared, so that ids do not become labels. Known once the request was routed."""
    route = scope.get("route")
    return str(getattr(route, "path", "")) if route is not None else "unknown"


def _request_id(scope: Scope) -> str:
    """The client's own, if it looks like one, so that a proxy's log and ours can be laid side by side."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
