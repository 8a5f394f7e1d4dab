"""Every error that leaves the API, in one shape: {"errors": [{code, message, suggestion?, path?, error_uid}]}.

May import: fastapi, jos.core, jos.wire. Tests: tests/integration/test_api_errors.py.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from jos import wire
from jos.core.errors import (
    BadRequest,
    ConfigInvalid,
    JosError,
    ObjectMissing,
    StorageUnavailable,
    TooManyRequests,
    Violation,
)
from jos.core.schema import json_path

log = structlog.get_logger("jos.api")

_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    422: "validation_error",
    429: "too_many_requests",
    431: "headers_too_large",
    500: "internal_error",
    503: "unavailable",
}
_RETRY_SECONDS = 2  # what a client is told when the store or the storage is away
MOST_VIOLATIONS = 200  # of one answer


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: which errors it gives, besides those that every route gives."""
    return {
        status: {"model": wire.ErrorBody, "description": HTTPStatus(status).phrase}
        for status in sorted({401, 403, 429, 431, 500, 503, *statuses})
    }


def answer(error: JosError) -> Response:
    """The response that tells of an error."""
    headers: dict[str, str] = {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    elif error.http_status == 503:
        headers["Retry-After"] = str(_RETRY_SECONDS)
    elif error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, ConfigInvalid) and error.violations:
        items = _violations(error)
    elif isinstance(error, ObjectMissing | StorageUnavailable):
        items = [_about_storage(error)]
    else:
        items = [_item(error.code, error.message, error.suggestion)]
    return _response(error.http_status, items, headers)


def unexpected(error: BaseException) -> Response:
    """500: what happened is in the log under the answer's error_uid, and nowhere else."""
    item = _item("internal_error", "Something went wrong inside JOS.", "Give error_uid to whoever runs this service.")
    log.error("unexpected error", error_uid=item.error_uid, exc_info=error)
    return _response(500, [item], {})


def _about_storage(error: ObjectMissing | StorageUnavailable) -> wire.ErrorItem:
    """Without the place: what the server's folders and buckets are called is in the log, for whoever runs it."""
    missing = isinstance(error, ObjectMissing)
    message = "It is not in the storage any more." if missing else "The storage cannot do this now."
    item = _item(error.code, message, error.suggestion)
    log.warning("storage", code=error.code, error_uid=item.error_uid, error=error.message)
    return item


def install(app: FastAPI) -> None:
    app.add_exception_handler(JosError, _jos_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)


async def _jos_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, JosError)
    if error.http_status == 500:  # a failure that has a name all the same, e.g. of a damaged record
        return unexpected(error)
    return answer(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: unknown route, wrong method, a broken body."""
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() != "content-length"}
    if error.status_code == 404:
        message = "There is no such route."
    elif error.status_code == 405:
        message = "This route does not take that method."
        headers["Allow"] = _allowed(request)
    code = _CODES.get(error.status_code, "error")
    return _response(error.status_code, [_item(code, message, None)], headers)


def _allowed(request: Request) -> str:
    """Of all routes with the template that this path fits; Starlette names those of the first route only."""
    path, methods = request.url.path, dict[str, set[str]]()
    for context in iter_route_contexts(request.app.routes):
        if context.path and compile_path(context.path)[0].match(path):
            methods.setdefault(context.path, set()).update(context.methods or ())
    return ", ".join(sorted(next(iter(methods.values()), set())))


async def _invalid(_request: Request, error: Exception) -> Response:
    """What FastAPI finds: a body that is no JSON or a bad parameter is 400, a body that breaks its schema 422."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    broken = next((one for one in found if one["type"] == "json_invalid"), None)
    if broken is not None:
        reason = broken.get("ctx", {}).get("error", broken["msg"])
        return answer(BadRequest(f"The body is not JSON: {reason}."))
    asked = [one for one in found if one["loc"][0] != "body"]
    if asked:
        items = []
        for one in asked[:MOST_VIOLATIONS]:
            where, *steps = one["loc"]
            name = ".".join(step for step in steps if isinstance(step, str))  # without the place in a repeated one
            items.append(_item("bad_request", f"{where} parameter {name}: {_sentence(one)}", None, path=name))
        return _response(400, items, {})
    violations = list(in_body(found))
    return answer(ConfigInvalid("The body is not valid.", violations))


def steps_of(one: Any) -> list[str | int]:
    """Where in the body an error of pydantic's is."""
    return [step for step in one["loc"][1:] if step != "[key]"]


def in_body(found: Sequence[Any]) -> Iterable[Violation]:
    for one in found:
        steps = steps_of(one)
        path = json_path(steps)
        if one["type"] == "missing":
            yield Violation(path, "is required.", "missing")
        elif one["type"] == "extra_forbidden":
            yield Violation(path, "is not a known field.", "unknown")
        elif one["type"] in ("model_attributes_type", "dict_type", "model_type") and not steps:
            yield Violation(path, "must be a JSON object, sent as application/json.")
        else:
            yield Violation(path, _sentence(one))


def _sentence(one: Any) -> str:
    text = str(one["msg"]).strip()
    return text if text.endswith(".") else f"{text}."


def _violations(error: ConfigInvalid) -> list[wire.ErrorItem]:
    items = [
        _item(error.code, f"{one.path}: {one.message}", error.suggestion, path=one.path, reason=one.code)
        for one in error.violations[:MOST_VIOLATIONS]
    ]
    left = len(error.violations) - len(items)
    return [*items, _item(error.code, f"{left} more are not shown.", None)] if left else items


def _item(code: str, message: str, suggestion: str | None, **more: str) -> wire.ErrorItem:
    return wire.ErrorItem(
        code=code,
        message=message,
        suggestion=suggestion,
        error_uid=f"err-{uuid.uuid4()}",
        **more,
    )


def _response(status: int, items: list[wire.ErrorItem], headers: dict[str, str]) -> Response:
    body = wire.ErrorBody(errors=items).model_dump_json(exclude_none=True)
    return Response(body, status, headers, "application/json")
