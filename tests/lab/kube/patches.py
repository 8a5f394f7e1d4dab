"""The patches that clients send: JSON merge patch (RFC 7386), JSON patch (RFC 6902) and Kubernetes' strategic merge."""

from __future__ import annotations

import copy
from typing import Any

from kube.errors import ApiError, bad_request
from kube.fields import Shape


def merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merge(found.get(key), value)
    return found


def json_patch(target: Any, operations: list[dict[str, Any]]) -> Any:
    """Raises 422 when an operation does not fit what is there, as a failed `test`."""
    holder = {"": copy.deepcopy(target)}
    for operation in operations:
        try:
            _operate(holder, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            message = f"the server rejected our request due to an error in our request: {operation}: {error}"
            raise ApiError(422, "Invalid", message) from None
    return holder[""]


def _operate(holder: dict[str, Any], operation: dict[str, Any]) -> None:
    steps = _steps(operation["path"])
    match operation["op"]:
        case "add":
            _add(holder, steps, operation["value"])
        case "replace":
            _take(holder, steps, put=operation["value"])
        case "remove":
            _take(holder, steps)
        case "test":
            if _get(holder, steps) != operation["value"]:
                raise ValueError("testing value failed")
        case "copy":
            _add(holder, steps, copy.deepcopy(_get(holder, _steps(operation["from"]))))
        case "move":
            value = _get(holder, _steps(operation["from"]))
            _take(holder, _steps(operation["from"]))
            _add(holder, steps, value)
        case other:
            raise ValueError(f"no operation {other!r}")


def _steps(pointer: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")]


def _get(node: Any, steps: list[str]) -> Any:
    for step in steps:
        node = node[int(step)] if isinstance(node, list) else node[step]
    return node


def _add(holder: Any, steps: list[str], value: Any) -> None:
    node, last = _get(holder, steps[:-1]), steps[-1]
    if isinstance(node, list):
        node.insert(len(node) if last == "-" else int(last), value)
    else:
        node[last] = value


def _take(holder: Any, steps: list[str], **put: Any) -> None:
    node, last = _get(holder, steps[:-1]), steps[-1]
    place: Any = int(last) if isinstance(node, list) else last
    node[place]  # has to be there
    if put:
        node[place] = put["put"]
    else:
        del node[place]


def strategic(target: Any, patch: Any, shape: Shape) -> Any:
    """Merges lists of the core kinds by their keys, with the directives that kubectl writes."""
    if not isinstance(patch, dict):
        return patch
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return None
    found = dict(target) if isinstance(target, dict) else {}
    if "$retainKeys" in patch:
        found = {key: value for key, value in found.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            found[name] = [item for item in found.get(name, []) if item not in value]
        elif key.startswith("$"):
            continue  # the order of a list's elements: what is there keeps its place
        elif value is None:
            found.pop(key, None)
        elif isinstance(value, list):
            found[key] = _strategic_list(found.get(key) or [], value, shape.child(key))
        else:
            found[key] = strategic(found.get(key), value, shape.child(key))
    return found


def _strategic_list(have: list[Any], patch: list[Any], shape: Shape) -> list[Any]:
    if shape.is_set():
        return have + [item for item in patch if item not in have]
    keys = [key for key, _ in shape.keys(have or patch)][:1]  # strategic merge knows one key a list
    if not keys:
        return patch
    (key,) = keys
    found = list(have)
    for item in patch:
        if item.get("$patch") == "replace" and key not in item:
            return [other for other in patch if "$patch" not in other]
        if key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        place = next((i for i, old in enumerate(found) if old.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            found = [old for old in found if old.get(key) != item[key]]
        elif place is None:
            found.append(item)
        else:
            found[place] = strategic(found[place], item, shape.item())
    return found
