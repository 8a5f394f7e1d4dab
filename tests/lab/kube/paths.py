"""The API's URLs and verbs: what a method and a path ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kube.errors import ApiError
from kube.kinds import KINDS, Kind

# those that discovery names and the server answers
SUBRESOURCES = ("status",)


@dataclass(frozen=True)
class Target:
    """One resource request. `namespace` is None for all of them, `name` for the whole collection."""

    verb: str
    kind: Kind
    namespace: str | None
    name: str | None
    subresource: str | None

    def as_(self, verb: str) -> Target:
        return Target(verb, self.kind, self.namespace, self.name, self.subresource)


_ONE = {"GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_MANY = {"GET": "list", "HEAD": "list", "POST": "create", "DELETE": "deletecollection"}


def target(method: str, path: str, query: Mapping[str, str]) -> Target:
    """Raises 404 for what is not served, 405 for a method that it has not."""
    steps = [step for step in path.split("/") if step]
    group, version, rest = ("", steps[1:2], steps[2:]) if steps[0] == "api" else (steps[1], steps[2:3], steps[3:])
    namespace = None
    if len(rest) >= 3 and rest[0] == "namespaces" and not (rest[2] in SUBRESOURCES and len(rest) == 3):
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource = [*rest, None, None, None][:3]
    kind = KINDS.get(plural or "")
    if kind is None or (kind.group, [kind.version]) != (group, version) or len(rest) > 3:
        raise nowhere()
    if subresource is not None and not (subresource == "status" and kind.status):
        raise nowhere()
    if namespace is not None and not kind.namespaced:
        raise nowhere()
    verb = (_MANY if name is None else _ONE).get(method)
    if verb is None or (subresource and verb == "delete"):
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    if verb == "list" and query.get("watch") in ("true", "1"):
        verb = "watch"
    return Target(verb, kind, namespace, name, subresource)


def nowhere() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource")
