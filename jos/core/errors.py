"""Every error that JOS tells a person about: a stable code, what happened, and what to do.

May import: nothing of ours. Tests: tests/unit/test_errors.py.
"""

from __future__ import annotations

from dataclasses import dataclass


class JosError(Exception):
    """An expected error with a stable `code` (lower_snake_case) and, where there is one, a suggestion.

    `retryable` says whether another attempt of the job may succeed without anybody changing anything.
    """

    code = "internal_error"
    http_status = 500
    retryable = False

    def __init__(self, message: str, *, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion

    def __str__(self) -> str:
        return f"{self.message} {self.suggestion}" if self.suggestion else self.message

    def __reduce__(self) -> tuple[object, ...]:  # keeps `suggestion` over a process boundary
        return (_rebuild, (type(self), self.message, self.suggestion, self.__dict__))


def _rebuild(cls: type[JosError], message: str, suggestion: str | None, state: dict[str, object]) -> JosError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.message, error.suggestion = message, suggestion
    error.__dict__.update(state)
    return error


class NotFound(JosError):
    code, http_status = "not_found", 404


class ObjectMissing(NotFound):
    """The storage holds no such object. The message names its place, which is for whoever runs JOS, not for clients."""


class BadRequest(JosError):
    code, http_status = "bad_request", 400


class Unauthorized(JosError):
    """No key, or none that is known."""

    code, http_status = "unauthorized", 401


class Forbidden(JosError):
    """The key is good, but its role or organisation may not do this."""

    code, http_status = "forbidden", 403


class TooLarge(JosError):
    """A body or file over its limit."""

    code, http_status = "too_large", 413


class TooManyRequests(JosError):
    """The caller asks faster than it may; it may go on after `retry_after` seconds."""

    code, http_status, retryable = "too_many_requests", 429, True

    def __init__(self, message: str, retry_after: float = 1.0, *, suggestion: str | None = None) -> None:
        super().__init__(message, suggestion=suggestion)
        self.retry_after = retry_after  # seconds


class Conflict(JosError):
    code, http_status = "conflict", 409


class InvalidTransition(Conflict):
    """The command is not legal in the job's present status."""


class StaleAttempt(Conflict):
    """The command carries the token of an attempt that is over: whoever sent it must stop."""

    code = "stale_attempt"


@dataclass(frozen=True)
class Violation:
    """One thing wrong with a request. `path` is a JSON path such as `$.parameters.worker.config.batch_size`."""

    path: str
    message: str
    code: str = "invalid"  # invalid | locked | unknown | missing

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ConfigInvalid(JosError):
    """The request breaks the pipeline's rules; `violations` lists all of them, not the first."""

    code, http_status = "validation_error", 422

    def __init__(self, message: str, violations: list[Violation], *, suggestion: str | None = None) -> None:
        super().__init__(message, suggestion=suggestion)
        self.violations = violations

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"  {v}" for v in self.violations)])


class InputInvalid(JosError):
    """This one input cannot be processed (the message names file, row and column); the job goes on."""

    code, http_status = "invalid_input", 400


class JobImpossible(JosError):
    """No attempt of this job can succeed as it was asked for, e.g. too few reference windows."""

    code, http_status = "invalid_job", 400


class StoreUnavailable(JosError):
    """Redis cannot be reached."""

    code, http_status, retryable = "store_unavailable", 503, True


class StorageUnavailable(JosError):
    """Object storage cannot be reached or written (network, credentials, full disk)."""

    code, http_status, retryable = "storage_unavailable", 503, True


class StorageUnfit(JosError):
    """The storage root lacks something JOS cannot do without, such as create-if-absent."""

    code, http_status = "storage_unfit", 400


class FenceLost(JosError):
    """Another driver owns this job's commit log now; this one must exit and write nothing more."""

    code, http_status = "fence_lost", 409


class ComputeFailed(JosError):
    """Indexes keep dying or nothing moves; another attempt, perhaps elsewhere, may succeed."""

    code, retryable = "compute_failed", True


class DeadlineExceeded(JosError):
    """A queue, run or no-progress timeout of the pipeline ran out."""

    code = "deadline_exceeded"
