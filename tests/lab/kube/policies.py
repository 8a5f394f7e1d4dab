"""Admission: what it is shown, and the ValidatingAdmissionPolicies in the store, enforced as on a real server.

CEL over `object`, `oldObject`, `request`, `namespaceObject` and `variables`; parameters are not read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import cel

from kube.errors import ApiError, forbidden
from kube.kinds import KINDS, Kind
from kube.shelf import Obj, Shelf

_CODES = {"Unauthorized": 401, "Forbidden": 403, "Invalid": 422, "RequestEntityTooLarge": 413}


@dataclass
class Review:
    """What admission sees: `operation` is CREATE, UPDATE or DELETE. A mutator changes `obj` in place."""

    operation: str
    resource: str
    obj: Obj
    old: Obj | None = None
    subresource: str | None = None


class Policies:
    """A validator of `kube.objects.Objects`."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def __call__(self, review: Review) -> None:
        for kept in self._shelf.listing("validatingadmissionpolicybindings")[0]:
            binding = kept.obj
            try:
                policy = self._shelf.kept("validatingadmissionpolicies", None, binding["spec"]["policyName"]).obj
            except ApiError:
                continue  # a binding without its policy binds nothing
            if "Deny" in binding["spec"].get("validationActions", ()) and self._concerns(policy, binding, review):
                _enforce(policy, binding, review, self._space(review))

    def _space(self, review: Review) -> Obj | None:
        name = review.obj["metadata"].get("namespace")
        return self._shelf.kept("namespaces", None, name).obj if name else None

    def _concerns(self, policy: Obj, binding: Obj, review: Review) -> bool:
        constraints = policy["spec"].get("matchConstraints") or {}
        if not any(_covers(rule, review) for rule in constraints.get("resourceRules", ())):
            return False
        if any(_covers(rule, review) for rule in constraints.get("excludeResourceRules", ())):
            return False
        narrower = binding["spec"].get("matchResources") or {}
        rules = narrower.get("resourceRules")
        if rules and not any(_covers(rule, review) for rule in rules):
            return False
        space = self._space(review)
        return all(
            (space is None or _selects(part.get("namespaceSelector"), space))
            and _selects(part.get("objectSelector"), review.obj)
            for part in (constraints, narrower)
        )


def _covers(rule: Obj, review: Review) -> bool:
    kind = KINDS[review.resource]
    wanted = review.resource + (f"/{review.subresource}" if review.subresource else "")
    return (
        bool({"*", kind.group} & set(rule["apiGroups"]))
        and bool({"*", kind.version} & set(rule["apiVersions"]))
        and bool({"*", review.operation} & set(rule["operations"]))
        and bool({wanted, "*/*", *(() if review.subresource else ("*",))} & set(rule["resources"]))
    )


def _selects(selector: Obj | None, obj: Obj) -> bool:
    labels = obj["metadata"].get("labels") or {}
    selector = selector or {}
    return (selector.get("matchLabels") or {}).items() <= labels.items() and all(
        _fits(expression, labels) for expression in selector.get("matchExpressions") or ()
    )


def _fits(expression: Obj, labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", ())
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
    return key not in labels


def _enforce(policy: Obj, binding: Obj, review: Review, space: Obj | None) -> None:
    spec, kind = policy["spec"], KINDS[review.resource]
    known = _known(review, kind, space)
    strict = spec.get("failurePolicy", "Fail") == "Fail"
    for condition in spec.get("matchConditions") or ():
        if _value(condition["expression"], known) is False:
            return
    for variable in spec.get("variables") or ():
        found = _value(variable["expression"], known)
        if not isinstance(found, Broken):  # one that cannot be told fails only who asks for it
            known["variables"][variable["name"]] = found
    for validation in spec["validations"]:
        held = _value(validation["expression"], known)
        if held is True or (isinstance(held, Broken) and not strict):
            continue
        why = held.why if isinstance(held, Broken) else _message(validation, known)
        raise _denied(
            kind, review, f"'{_name(policy)}' with binding '{_name(binding)}' denied request: {why}", validation
        )


def _name(obj: Obj) -> str:
    return str(obj["metadata"]["name"])


def _denied(kind: Kind, review: Review, why: str, validation: Obj) -> ApiError:
    why, reason = f"ValidatingAdmissionPolicy {why}", validation.get("reason", "Invalid")
    error = forbidden(kind, review.obj["metadata"].get("name", ""), why)
    return ApiError(_CODES[reason], reason, error.message, (error.details or {}) | {"causes": [{"message": why}]})


def _known(review: Review, kind: Kind, space: Obj | None) -> dict[str, Any]:
    meta = review.obj["metadata"]
    gvk = {"group": kind.group, "version": kind.version}
    request = {"operation": review.operation, "name": meta.get("name", ""), "namespace": meta.get("namespace", "")}
    request |= {"kind": gvk | {"kind": kind.kind}, "resource": gvk | {"resource": kind.plural}}
    request |= {"subResource": review.subresource or ""}
    new = None if review.operation == "DELETE" else review.obj
    known = {"object": new, "oldObject": review.old, "request": request, "namespaceObject": space}
    return known | {"variables": {}}


@dataclass(frozen=True)
class Broken:
    """An expression that could not be evaluated, and why."""

    why: str


@cache
def _program(expression: str) -> cel.Program:
    return cel.compile(expression)


def _value(expression: str, known: dict[str, Any]) -> Any:
    try:
        return _program(expression).execute(known)
    except KeyError as error:
        return Broken(f"expression '{expression.strip()}' resulted in error: no such key: {error.args[0]}")
    except (ValueError, RuntimeError, TypeError) as error:
        return Broken(f"expression '{expression.strip()}' resulted in error: {error}")


def _message(validation: Obj, known: dict[str, Any]) -> str:
    if "messageExpression" in validation:
        found = _value(validation["messageExpression"], known)
        if isinstance(found, str) and found:
            return found
    return str(validation.get("message") or f"failed expression: {validation['expression'].strip()}")
