"""What a cluster that has KubeRay's and Kueue's CRDs says to an object: schema, defaults, metadata and CEL rules.

`validate` is for manifests, `Schemas` for the store. Objects of kinds without a CRD here are not judged.
Tests: tests/unit/test_crd_validation.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import cel

from kube.crds import crds, schema
from kube.fields import Shape
from kube.kinds import Kind
from kube.structural import NOTHING, Schema, children, defaulted, problems, pruned

Obj = dict[str, Any]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_META = {
    *("name", "generateName", "namespace", "labels", "annotations", "finalizers", "ownerReferences", "uid"),
    *("resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"),
    *("managedFields", "selfLink"),
}


class Schemas:
    """The CRDs as the store uses them; core kinds pass but for their metadata."""

    def prepared(self, kind: Kind, obj: Obj) -> Obj:
        if not kind.custom:
            return obj
        rules = schema(kind.plural, kind.version)
        whole = defaulted(rules, pruned(rules, obj))
        return whole | {"metadata": obj["metadata"]}  # type: ignore[no-any-return]

    def unknown(self, kind: Kind, obj: Obj) -> list[str]:
        """Paths of the fields that `prepared` takes away."""
        found: list[str] = []
        if kind.custom:
            pruned(schema(kind.plural, kind.version), obj, "", found)
        return found

    def problems(self, kind: Kind, obj: Obj, old: Obj | None) -> list[str]:
        found = [f"metadata.{told}" for told in _metadata(obj.get("metadata") or {})]
        return found + (_judged(schema(kind.plural, kind.version), obj, old) if kind.custom else [])

    def shape(self, kind: Kind) -> Shape:
        return Shape(schema(kind.plural, kind.version) if kind.custom else None, root=True)


def covers(obj: Obj) -> bool:
    """Whether a CRD for this apiVersion and kind is here."""
    return _schema_of(obj) is not None


def validate(obj: Obj) -> list[str]:
    """What a server with strict field validation would refuse in a new `obj`; nothing where it is right.

    Raises KeyError for a kind, or a version of it, that no CRD here describes.
    """
    rules = _schema_of(obj)
    if rules is None:
        raise KeyError(f"no CRD for {obj.get('apiVersion')} {obj.get('kind')}")
    unknown: list[str] = []
    whole = defaulted(rules, pruned(rules, obj, "", unknown))
    found = [f'unknown field "{path}"' for path in unknown]
    meta = obj.get("metadata") or {}
    if not meta.get("name") and not meta.get("generateName"):
        found.append("metadata.name: Required value: name or generateName is required")
    found += [f"metadata.{told}" for told in _metadata(meta)]
    return found + _judged(rules, whole, None)


@cache
def _places() -> dict[tuple[str, str], str]:
    return {(crd["spec"]["group"], crd["spec"]["names"]["kind"]): plural for plural, crd in crds().items()}


def _schema_of(obj: Obj) -> Schema | None:
    group, _, version = str(obj.get("apiVersion", "")).partition("/")
    plural = _places().get((group, str(obj.get("kind", ""))))
    if plural is None:
        return None
    try:
        return schema(plural, version)
    except KeyError:
        return None


def _metadata(meta: Obj) -> Iterator[str]:
    name = meta.get("name", "")
    if name and not (len(name) <= 253 and _NAME.fullmatch(name)):
        rule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'"
        yield f'name: Invalid value: "{name}": {rule}, and must start and end with an alphanumeric character'
    for key in sorted(meta.keys() - _META):
        yield f'{key}: Invalid value: unknown field "metadata.{key}"'
    for key, value in (meta.get("labels") or {}).items():
        if not isinstance(value, str) or len(value) > 63 or not _LABEL.fullmatch(value):
            yield f'labels: Invalid value: "{value}": a valid label must be at most 63 alphanumerics, -, _ or . ({key})'
    for key, value in (meta.get("annotations") or {}).items():
        if not isinstance(value, str):
            yield f"annotations.{key}: Invalid value: {value!r}: must be a string"


def _judged(rules: Schema, obj: Obj, old: Obj | None) -> list[str]:
    found = problems(rules, obj)
    if found:
        unchecked = "some validation rules were not checked because the object was invalid"
        more = f"<nil>: Invalid value: null: {unchecked}; correct the existing errors to complete validation"
        return [*found, more] if _has_rules(rules) else found
    return list(_broken_rules(rules, obj, old, ""))


_RULED: dict[int, bool] = {}  # by identity: schemas live as long as the process


def _has_rules(rules: Schema) -> bool:
    found = _RULED.get(id(rules))
    if found is None:
        found = bool(rules.get("x-kubernetes-validations")) or any(_has_rules(below) for below in _below(rules))
        _RULED[id(rules)] = found
    return found


def _below(rules: Schema) -> Iterator[Schema]:
    yield from rules.get("properties", NOTHING).values()
    for key in ("items", "additionalProperties"):
        if isinstance(rules.get(key), dict):
            yield rules[key]


def _broken_rules(rules: Schema, value: Any, old: Any, path: str) -> Iterator[str]:
    """Walks what has rules; `old` is the same place before, None where there was none or it cannot be told."""
    if value is None or not _has_rules(rules):
        return
    for rule in rules.get("x-kubernetes-validations", ()):
        if told := _broken(rule, value, old):
            kind = "array" if isinstance(value, list) else "object"
            shown = f'"{kind}"' if isinstance(value, dict | list) else _quoted(value)
            yield f"{path or '<nil>'}: Invalid value: {shown}: {told}"
    for key, where, below, child in children(rules, value, path):
        if below:
            yield from _broken_rules(below, child, _before(rules, old, key, child), where)


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _before(rules: Schema, old: Any, key: Any, child: Any) -> Any:
    """What stood in the same place: by name in a map, by keys in a keyed list; an atomic list's items have no past."""
    if isinstance(old, dict) and isinstance(key, str):
        return old.get(key)
    keys = rules.get("x-kubernetes-list-map-keys")
    if not isinstance(old, list) or not keys:
        return None
    return next((item for item in old if all(item.get(name) == child.get(name) for name in keys)), None)


@cache
def _program(rule: str) -> tuple[cel.Program, bool]:
    program = cel.compile(rule)
    return program, "oldSelf" in program.variables()


def _broken(rule: Schema, value: Any, old: Any) -> str | None:
    program, looks_back = _program(rule["rule"])
    if looks_back and old is None:
        return None
    known = {"self": value} | ({"oldSelf": old} if looks_back else {})
    message = str(rule.get("message", f"failed rule: {rule['rule']}")).strip()
    try:
        return None if program.execute(known) is True else message
    except KeyError as error:
        return f"no such key: {error.args[0]} evaluating rule: {message}"
    except (ValueError, RuntimeError, TypeError) as error:
        return f"{error} evaluating rule: {message}"
