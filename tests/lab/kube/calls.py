"""One HTTP request on stored objects, from its body to the answer: what the API server does between URL and store.

Runs in a thread of the server's pool, since the store calls back whoever watches it in process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import yaml
from starlette.requests import Request
from starlette.responses import Response

from kube import protobuf
from kube.errors import ApiError, bad_request
from kube.objects import Objects
from kube.paths import Target
from kube.rbac import Guard
from kube.watching import Pages, seen

Body = dict[str, Any]
_PATCHES = {
    "application/merge-patch+json": "merge",
    "application/json-patch+json": "json",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
}


@dataclass(frozen=True)
class Call:
    objects: Objects
    guard: Guard
    pages: Pages
    request: Request
    user: str
    asked: Target
    raw: bytes

    def answer(self) -> Response:
        handlers: dict[str, Callable[[], Response]] = {
            "get": self._shown,
            "list": lambda: as_json(self.pages.listed(self.asked, self.request.query_params)),
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_all,
        }
        return handlers[self.asked.verb]()

    @property
    def _dry(self) -> bool:
        return "dryRun" in self.request.query_params

    @property
    def _manager(self) -> str:
        agent = self.request.headers.get("user-agent", "unknown").partition("/")[0]
        return self.request.query_params.get("fieldManager") or agent

    def _body(self) -> Any:
        return read(self.raw)

    def _object(self) -> Body:
        """A whole object from the body, checked against the URL."""
        found = self._body()
        if not isinstance(found, dict):
            raise bad_request("the body is not an object")
        kind, meta = self.asked.kind, found.get("metadata") or {}
        if found.get("kind") != kind.kind or found.get("apiVersion") != kind.api_version:
            wanted = f"{kind.kind} ({kind.api_version})"
            raise bad_request(f"the object is {found.get('kind')} ({found.get('apiVersion')}), the URL wants {wanted}")
        if self.asked.namespace and meta.setdefault("namespace", self.asked.namespace) != self.asked.namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        if self.asked.name and meta.setdefault("name", self.asked.name) != self.asked.name:
            told = f"the name of the object ({meta['name']}) does not match the name on the URL ({self.asked.name})"
            raise bad_request(told)
        whole: Body = found | {"metadata": meta}
        return whole

    def _strict(self, obj: Body) -> dict[str, str]:
        """Refuses unknown fields or warns of them, as the client wishes: the headers with the warnings."""
        unknown = self.objects.rules.unknown(self.asked.kind, obj)
        how = self.request.query_params.get("fieldValidation", "Warn")
        if not unknown or how == "Ignore":
            return {}
        told = [f'unknown field "{path}"' for path in unknown]
        if how == "Strict":
            kind = self.asked.kind
            what = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}'
            raise bad_request(f"{what}: strict decoding error: {', '.join(told)}")
        return {"Warning": ", ".join('299 - "{}"'.format(text.replace('"', '\\"')) for text in told)}

    def _shown(self) -> Response:
        kept = self.objects.kept(self.asked.kind.plural, self.asked.namespace, self.asked.name or "")
        return as_json(seen(kept.obj, kept.managers))

    def _done(self, obj: Body, status: int, headers: dict[str, str]) -> Response:
        """The written object as it is stored, with its managers; a dry run's as it would be."""
        try:
            kept = self.objects.kept(self.asked.kind.plural, self.asked.namespace, obj["metadata"]["name"])
        except ApiError:
            return as_json(obj, status, headers)
        same = not self._dry and kept.obj == obj
        return as_json(seen(kept.obj, kept.managers) if same else obj, status, headers)

    def _create(self) -> Response:
        obj = self._object()
        headers = self._strict(obj)
        made = self.objects.create(self.asked.kind.plural, obj, field_manager=self._manager, dry_run=self._dry)
        return self._done(made, 201, headers)

    def _update(self) -> Response:
        obj = self._object()
        headers = self._strict(obj)
        made = self.objects.replace(
            self.asked.kind.plural,
            obj,
            subresource=self.asked.subresource,
            field_manager=self._manager,
            dry_run=self._dry,
        )
        return self._done(made, 200, headers)

    def _patch(self) -> Response:
        query, asked = self.request.query_params, self.asked
        how = _PATCHES.get(self.request.headers.get("content-type", "").partition(";")[0], "unknown")
        body = self._body()
        new = how == "apply" and not self._exists()
        if new:
            self.guard.check(self.user, asked.as_("create"))
        headers = self._strict(body) if how in ("apply", "merge") else {}
        made = self.objects.patch(
            asked.kind.plural,
            asked.namespace,
            asked.name or "",
            body,
            kind=how,
            subresource=asked.subresource,
            field_manager=query.get("fieldManager", "") if how == "apply" else self._manager,
            force=query.get("force") in ("true", "1"),
            dry_run=self._dry,
        )
        return self._done(made, 201 if new else 200, headers)

    def _exists(self) -> bool:
        try:
            self.objects.kept(self.asked.kind.plural, self.asked.namespace, self.asked.name or "")
        except ApiError:
            return False
        return True

    def _delete(self) -> Response:
        asked, objects = self.asked, self.objects
        gone = self._end(asked.namespace, asked.name or "")
        try:
            kept = objects.kept(asked.kind.plural, asked.namespace, asked.name or "")
        except ApiError:
            return as_json(_success(asked, gone))
        return as_json(seen(kept.obj, kept.managers))

    def _delete_all(self) -> Response:
        query, asked = self.request.query_params, self.asked
        listed = self.pages.listed(asked, {k: v for k, v in query.items() if k != "limit"})
        for obj in listed["items"]:
            self._end(obj["metadata"].get("namespace"), obj["metadata"]["name"])
        return as_json(listed)

    def _end(self, namespace: str | None, name: str) -> Body:
        query, options = self.request.query_params, (self._body() if self.raw else {}) or {}
        grace = query.get("gracePeriodSeconds", options.get("gracePeriodSeconds"))
        conditions = options.get("preconditions") or {}
        return self.objects.delete(
            self.asked.kind.plural,
            namespace,
            name,
            propagation=query.get("propagationPolicy") or options.get("propagationPolicy") or "Background",
            grace=None if grace is None else int(grace),
            uid=conditions.get("uid"),
            resource_version=conditions.get("resourceVersion"),
            dry_run=self._dry or bool(options.get("dryRun")),
        )


def read(raw: bytes) -> Any:
    """A request's body: JSON, YAML or protobuf, whatever its header calls it."""
    if raw.startswith(protobuf.MAGIC):
        return protobuf.decoded(raw)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise bad_request(f"the body cannot be read: {error}") from None


def _success(asked: Target, gone: Body) -> Body:
    details = {"name": asked.name, "kind": asked.kind.plural, "uid": gone["metadata"]["uid"]}
    details |= {"group": asked.kind.group} if asked.kind.group else {}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def as_json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, {"Content-Type": "application/json"} | (headers or {}))
