"""Label and field selectors, as `kubectl get -l` and `--field-selector` write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from kube.errors import bad_request
from kube.kinds import Kind

Match = Callable[[Mapping[str, Any]], bool]

_SET = re.compile(r"^(\S+)\s+(in|notin)\s+\(([^)]*)\)$")
_SPLIT = re.compile(r",(?![^(]*\))")
_EXTRA = {
    "pods": ("status.phase", "spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName"),
    "events": ("involvedObject.uid", "involvedObject.name", "involvedObject.kind", "involvedObject.namespace"),
    "secrets": ("type",),
    "namespaces": ("status.phase",),
}
_EXTRA["events"] += ("reason", "type", "involvedObject.apiVersion", "involvedObject.resourceVersion", "source")


def labels(selector: str | Mapping[str, str] | None) -> Match:
    """`a=b,c!=d,e in (f,g),h,!i`, or a mapping of what has to be equal."""
    if not selector:
        return lambda obj: True
    if not isinstance(selector, str):
        wanted = dict(selector).items()
        return lambda obj: wanted <= _labels(obj).items()
    tests = [_label(part.strip()) for part in _SPLIT.split(selector)]
    return lambda obj: all(test(_labels(obj)) for test in tests)


def _labels(obj: Mapping[str, Any]) -> dict[str, str]:
    return obj["metadata"].get("labels") or {}


def _label(part: str) -> Callable[[dict[str, str]], bool]:
    if found := _SET.match(part):
        key, operator, values = found[1], found[2], {value.strip() for value in found[3].split(",")}
        if operator == "in":
            return lambda have: have.get(key) in values
        return lambda have: have.get(key) not in values
    for sign in ("!=", "==", "="):
        if sign in part:
            key, _, value = (piece.strip() for piece in part.partition(sign))
            return _equal(key, value, wanted=sign != "!=")
    if part.startswith("!"):
        return lambda have: part[1:] not in have
    return lambda have: part in have


def _equal(key: str, value: str, wanted: bool) -> Callable[[dict[str, str]], bool]:
    return lambda have: (have.get(key) == value) == wanted


def fields(kind: Kind, selector: str | None) -> Match:
    """metadata.name and metadata.namespace for all kinds, and some more for those that have them; others: 400."""
    if not selector:
        return lambda obj: True
    tests = [_field(kind, part) for part in selector.split(",")]
    return lambda obj: all(test(obj) for test in tests)


def _field(kind: Kind, part: str) -> Match:
    path, sign, value = next(
        ((p, s, v) for s in ("!=", "==", "=") for p, found, v in [part.partition(s)] if found), (part, "", "")
    )
    known = ("metadata.name", "metadata.namespace", *_EXTRA.get(kind.plural, ()))
    if not sign:
        raise bad_request(f"invalid field selector: invalid selector: {part!r}; can't understand '{part}'")
    if path not in known:
        raise bad_request(f"field label not supported: {path}")
    steps = path.split(".")
    return lambda obj: (_at(obj, steps) == value) != (sign == "!=")


def _at(obj: Any, steps: list[str]) -> str:
    for step in steps:
        obj = (obj or {}).get(step)
    return "" if obj is None else str(obj)
