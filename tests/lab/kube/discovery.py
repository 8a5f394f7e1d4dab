"""What the cluster says of itself: versions, groups and resources, old way and aggregated, and OpenAPI for kubectl.

kubectl asks OpenAPI only whether a kind's PATCH takes `fieldValidation`; that is all that is told here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kube.kinds import KINDS, Kind
from kube.paths import nowhere

Body = dict[str, Any]
VERSION = {"major": "1", "minor": "37", "gitVersion": "v1.37.0", "gitTreeState": "clean", "platform": "linux/amd64"}
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


def _kinds(group: str, version: str | None = None) -> list[Kind]:
    return [kind for kind in KINDS.values() if kind.group == group and version in (None, kind.version)]


def _groups() -> list[str]:
    return sorted({kind.group for kind in KINDS.values()} - {""})


def _versions(group: str) -> list[str]:
    return sorted({kind.version for kind in _kinds(group)})


def api() -> Body:
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def apis() -> Body:
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(group) for group in _groups()]}


def _group(name: str) -> Body:
    versions = [{"groupVersion": f"{name}/{version}", "version": version} for version in _versions(name)]
    return {"name": name, "versions": versions, "preferredVersion": versions[-1]}


def group(name: str) -> Body:
    if name not in _groups():
        raise nowhere()
    return {"kind": "APIGroup", "apiVersion": "v1"} | _group(name)


def resources(group: str, version: str) -> Body:
    found = [entry for kind in _kinds(group, version) for entry in _entries(kind)]
    if not found:
        raise nowhere()
    shown = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": shown, "resources": found}


def _entries(kind: Kind) -> Iterable[Body]:
    entry: Body = {"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced}
    yield entry | {"kind": kind.kind, "verbs": _VERBS} | ({"shortNames": list(kind.short)} if kind.short else {})
    if kind.status:
        verbs = ["get", "patch", "update"]
        yield entry | {"name": f"{kind.plural}/status", "singularName": "", "kind": kind.kind, "verbs": verbs}


def aggregated(groups: list[str]) -> Body:
    items = [{"metadata": {"name": name, "creationTimestamp": None}, "versions": _aggregated(name)} for name in groups]
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _aggregated(group: str) -> list[Body]:
    return [
        {"version": version, "freshness": "Current", "resources": [_full(kind) for kind in _kinds(group, version)]}
        for version in reversed(_versions(group))
    ]


def _full(kind: Kind) -> Body:
    response = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    found: Body = {"resource": kind.plural, "responseKind": response, "singularResource": kind.singular}
    found |= {"scope": "Namespaced" if kind.namespaced else "Cluster", "verbs": _VERBS}
    found |= {"shortNames": list(kind.short)} if kind.short else {}
    if kind.status:
        verbs = ["get", "patch", "update"]
        found["subresources"] = [{"subresource": "status", "responseKind": response, "verbs": verbs}]
    return found


def answer(steps: list[str], aggregate: bool) -> Body | None:
    """The body for a discovery path, None for any other. `steps` are the path's parts."""
    match steps:
        case ["version"]:
            return VERSION
        case ["api"]:
            return aggregated([""]) if aggregate else api()
        case ["apis"]:
            return aggregated(_groups()) if aggregate else apis()
        case ["apis", name]:
            return group(name)
        case ["api", version]:
            return resources("", version)
        case ["apis", name, version]:
            return resources(name, version)
        case ["openapi", "v3"]:
            return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash=1"} for path in _openapi_paths()}}
        case ["openapi", "v3", "api", version]:
            return _openapi(_kinds("", version))
        case ["openapi", "v3", "apis", name, version]:
            return _openapi(_kinds(name, version))
    return None


def _openapi_paths() -> list[str]:
    return ["api/v1", *(f"apis/{group}/{version}" for group in _groups() for version in _versions(group))]


def _openapi(kinds: list[Kind]) -> Body:
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.37.0"}, "paths": dict(map(_path, kinds))}


def _path(kind: Kind) -> tuple[str, Body]:
    base = f"/apis/{kind.api_version}" if kind.group else "/api/v1"
    space = "/namespaces/{namespace}" if kind.namespaced else ""
    names = ("dryRun", "fieldManager", "fieldValidation", "force")
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
    known = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    patch = {"x-kubernetes-group-version-kind": known, "x-kubernetes-action": "patch", "parameters": parameters}
    return f"{base}{space}/{kind.plural}/{{name}}", {"patch": patch | {"responses": {"200": {"description": "OK"}}}}
