"""What the API server refuses, in its own words: a status code, a reason and a message, as clients see them."""

from __future__ import annotations

from typing import Any

from kube.kinds import Kind


class ApiError(Exception):
    """`status` is the HTTP code, `reason` Kubernetes' CamelCase word for it; `details` goes into the Status object."""

    def __init__(self, status: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.details = status, reason, message, details

    def body(self) -> dict[str, Any]:
        """The Status object that the server answers with."""
        found: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        found |= {"reason": self.reason, "code": self.status}
        return found | ({"details": self.details} if self.details else {})


def _details(kind: Kind, name: str, **more: Any) -> dict[str, Any]:
    found = {"name": name, "kind": kind.plural} | ({"group": kind.group} if kind.group else {})
    return found | more


def not_found(kind: Kind, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{kind.qualified} "{name}" not found', _details(kind, name))


def already_exists(kind: Kind, name: str) -> ApiError:
    return ApiError(409, "AlreadyExists", f'{kind.qualified} "{name}" already exists', _details(kind, name))


def stale(kind: Kind, name: str) -> ApiError:
    why = "the object has been modified; please apply your changes to the latest version and try again"
    return conflict(kind, name, why)


def conflict(kind: Kind, name: str, why: str) -> ApiError:
    message = f'Operation cannot be fulfilled on {kind.qualified} "{name}": {why}'
    return ApiError(409, "Conflict", message, _details(kind, name))


def invalid(kind: Kind, name: str, problems: list[str]) -> ApiError:
    """`problems` as `path: Kind of problem: what`, the way that field errors are printed."""
    told = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
    causes = [_cause(problem) for problem in problems]
    details = {"name": name, "kind": kind.kind, "causes": causes} | ({"group": kind.group} if kind.group else {})
    shown = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    return ApiError(422, "Invalid", f'{shown} "{name}" is invalid: {told}', details)


_CAUSES = {
    "Required value": "FieldValueRequired",
    "Unsupported value": "FieldValueNotSupported",
    "Duplicate value": "FieldValueDuplicate",
    "Forbidden": "FieldValueForbidden",
}


def _cause(problem: str) -> dict[str, str]:
    field, _, message = problem.partition(": ")
    reason = next((reason for start, reason in _CAUSES.items() if message.startswith(start)), "FieldValueInvalid")
    return {"reason": reason, "message": message, "field": field}


def forbidden(kind: Kind, name: str, why: str) -> ApiError:
    shown = f' "{name}"' if name else ""
    return ApiError(403, "Forbidden", f"{kind.qualified}{shown} is forbidden: {why}", _details(kind, name))


def expired(asked: int, oldest: int) -> ApiError:
    return ApiError(410, "Expired", f"too old resource version: {asked} ({oldest})")


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def applied_by_others(fields: list[tuple[str, str]]) -> ApiError:
    """409 of a server-side apply: `fields` are (manager, field path) that others own."""
    plural = "s" if len(fields) > 1 else ""
    managers = sorted({manager for manager, _ in fields})
    parts = [f"conflict{plural} with {m}: {', '.join(f for owner, f in fields if owner == m)}" for m in managers]
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {manager}", "field": field}
        for manager, field in fields
    ]
    message = f"Apply failed with {len(fields)} conflict{plural}: {'; '.join(parts)}"
    return ApiError(409, "Conflict", message, {"causes": causes})
