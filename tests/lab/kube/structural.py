"""Structural schemas of CRDs on objects: unknown fields pruned, nulls dropped, defaults put in, the rest checked.

Pure functions over JSON. Problems are worded as the API server words them. CEL rules are in `kube.validation`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Any

Schema = Mapping[str, Any]
NOTHING: Schema = {}


def children(schema: Schema, value: Any, path: str) -> Iterator[tuple[Any, str, Schema | None, Any]]:
    """Each child of a map or list as (key, path, schema, value); the schema is None where the field is unknown."""
    if isinstance(value, dict):
        properties, more = schema.get("properties", NOTHING), schema.get("additionalProperties")
        for key, child in value.items():
            below = properties.get(key)
            if below is None:
                below = NOTHING if more is True else more or None
            yield key, f"{path}.{key}" if path else key, below, child
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield index, f"{path}[{index}]", schema.get("items", NOTHING), child


def pruned(schema: Schema, value: Any, path: str = "", unknown: list[str] | None = None) -> Any:
    """`value` without fields that the schema does not know; their paths are added to `unknown`."""
    if not isinstance(value, dict | list):
        return value
    keeps = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    pairs = []
    for key, where, below, child in children(schema, value, path):
        whole = not path or schema.get("x-kubernetes-embedded-resource")
        typed = whole and key in ("apiVersion", "kind", "metadata")
        if typed or (below is None and keeps):
            pairs.append((key, child))
        elif below is not None:
            pairs.append((key, pruned(below, child, where, unknown)))
        elif unknown is not None:
            unknown.append(where)
    return dict(pairs) if isinstance(value, dict) else [child for _, child in pairs]


def defaulted(schema: Schema, value: Any) -> Any:
    """`value` without nulls where none may stand, and with the schema's defaults where nothing stands."""
    if isinstance(value, list):
        return [defaulted(schema.get("items", NOTHING), child) for child in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, _, below, child in children(schema, value, ""):
        below = NOTHING if below is None else below
        if child is not None or below.get("nullable"):
            found[key] = defaulted(below, child)
    for key, below in schema.get("properties", NOTHING).items():
        if "default" in below and key not in found:
            found[key] = defaulted(below, below["default"])
    return found


def problems(schema: Schema, value: Any, path: str = "") -> list[str]:
    """What is wrong with `value`, as `path: kind of problem: what`."""
    if value is None:
        wanted = _wanted(schema)
        if schema.get("nullable") or not wanted:
            return []
        return [f'{path}: Invalid value: "null": {path} in body must be of type {wanted}: "null"']
    if told := _wrong_type(schema, value, path):
        return [told]
    found = [problem for check in _CHECKS for problem in check(schema, value, path)]
    for key, where, below, child in children(schema, value, path):
        if below and not (not path and key in ("apiVersion", "kind", "metadata")):
            found += problems(below, child, where)
    return found


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == int(value),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}


def _wanted(schema: Schema) -> str:
    if schema.get("x-kubernetes-int-or-string"):
        return "integer,string"
    return str(schema.get("type", ""))


def _wrong_type(schema: Schema, value: Any, path: str) -> str | None:
    wanted = _wanted(schema)
    if not wanted or any(_TYPES[name](value) for name in wanted.split(",")):
        return None
    name = next(name for name in ("object", "array", "string", "boolean", "integer", "number") if _TYPES[name](value))
    return f'{path}: Invalid value: "{name}": {path} in body must be of type {wanted}: "{name}"'


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _enum(schema: Schema, value: Any, path: str) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: Unsupported value: {_shown(value)}: supported values: {', '.join(map(_shown, schema['enum']))}"


def _numbers(schema: Schema, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    told = f"{path}: Invalid value: {_shown(value)}: {path} in body"
    if "minimum" in schema and value < schema["minimum"]:
        yield f"{told} should be greater than or equal to {schema['minimum']}"
    if "maximum" in schema and value > schema["maximum"]:
        yield f"{told} should be less than or equal to {schema['maximum']}"
    bits = {"int32": 31, "int64": 63}.get(schema.get("format", ""))
    if bits and not -(2**bits) <= value < 2**bits:
        yield f"{told} must be of type {schema['format']}: {_shown(str(value))}"


def _strings(schema: Schema, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, str):
        return
    told = f"{path}: Invalid value: {_shown(value)}: {path} in body"
    if len(value) < schema.get("minLength", 0):
        yield f"{told} should be at least {schema['minLength']} chars long"
    if len(value) > schema.get("maxLength", len(value)):
        yield f"{path}: Too long: may not be more than {schema['maxLength']} bytes"
    if "pattern" in schema and not _pattern(schema["pattern"]).search(value):
        yield f"{told} should match '{schema['pattern']}'"
    if schema.get("format") == "date-time" and not _is_date_time(value):
        yield f"{told} must be of type date-time: {_shown(value)}"


@cache
def _pattern(text: str) -> re.Pattern[str]:
    """Go has flags after `^` and a `$` that is the very end."""
    if text.startswith("^(?i)"):
        text = "(?i)^" + text[5:]
    return re.compile(text[:-1] + r"\Z" if text.endswith("$") else text)


def _is_date_time(value: str) -> bool:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return "T" in value and (value.endswith("Z") or value[-6] in "+-")


def _lists(schema: Schema, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, list):
        return
    if len(value) < schema.get("minItems", 0):
        least = schema["minItems"]
        yield f"{path}: Invalid value: {len(value)}: {path} in body should have at least {least} items"
    if len(value) > schema.get("maxItems", len(value)):
        yield f"{path}: Too many: {len(value)}: must have at most {schema['maxItems']} items"
    kind = schema.get("x-kubernetes-list-type")
    if kind not in ("map", "set"):
        return
    seen = []
    for index, item in enumerate(value):
        shown = {key: item.get(key) for key in schema["x-kubernetes-list-map-keys"]} if kind == "map" else item
        if shown in seen:
            yield f"{path}[{index}]: Duplicate value: {json.dumps(shown, separators=(',', ':'))}"
        seen.append(shown)


def _maps(schema: Schema, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name}: Required value".removeprefix(".")
    if len(value) > schema.get("maxProperties", len(value)):
        yield f"{path}: Too many: {len(value)}: must have at most {schema['maxProperties']} items"


_CHECKS = (_enum, _numbers, _strings, _lists, _maps)
