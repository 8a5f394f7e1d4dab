"""From an answer of the server to the JosError that says the same, with everything that was wrong.

Pure. May import: jos.wire, jos.core. Tests: tests/unit/test_client_http.py.
"""

from __future__ import annotations

from http import HTTPStatus

import orjson
from pydantic import ValidationError

from jos.core.errors import (
    BadRequest,
    ConfigInvalid,
    Conflict,
    Forbidden,
    JosError,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Violation,
)
from jos.wire import ErrorBody, ErrorItem


class ServerFault(JosError):
    """The server answered, and failed at it: 5xx after all tries, or something that is no answer of JOS."""

    code, http_status, retryable = "server_fault", 502, True


class ServerUnreachable(JosError):
    """No answer at all after all tries."""

    code, http_status, retryable = "server_unreachable", 503, True


class JobFailed(JosError):
    """The job ended, and not as COMPLETED; the message says why and what to do."""

    code = "job_failed"


KINDS: dict[int, type[JosError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
}


def error_of(status: int, body: bytes, asked: str, retry_after: float | None = None) -> JosError:
    """The error that an answer of 400 or above stands for; `asked` names the request, for answers without a word.
    `.code` is the server's own code, `.errors` all its entries."""
    items = entries(body)
    first = items[0] if items else None
    message = "\n".join(dict.fromkeys(i.message for i in items)) or f"{asked} was answered {_phrase(status)}."
    suggestion = next((i.suggestion for i in items if i.suggestion), None) or _advice(status)
    error: JosError
    violations = [Violation(i.path, i.message, i.code) for i in items if i.path]
    if status == HTTPStatus.UNPROCESSABLE_ENTITY or violations:
        rest = [i.message for i in items if not i.path]
        error = ConfigInvalid("\n".join(rest) or "the request is not valid.", violations, suggestion=suggestion)
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        error = TooManyRequests(message, retry_after or 1.0, suggestion=suggestion)
    elif status >= 500 or status < 400:
        uid = f" (error_uid {first.error_uid})" if first else ""
        error = ServerFault(message + uid, suggestion=suggestion)
    else:
        error = KINDS.get(status, BadRequest)(message, suggestion=suggestion)
    if first is not None:
        error.code = "validation_error" if violations else first.code
    error.http_status = status
    error.__dict__["errors"] = items
    return error


def entries(body: bytes) -> list[ErrorItem]:
    try:
        return ErrorBody.model_validate(orjson.loads(body)).errors
    except (ValidationError, orjson.JSONDecodeError):
        return []  # a proxy's page, or nothing


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _advice(status: int) -> str | None:
    if status == HTTPStatus.UNAUTHORIZED:
        return "Set JOS_API_KEY, or save a key with `jos login URL`."
    return None
