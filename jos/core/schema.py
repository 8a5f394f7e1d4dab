"""JSON Schema 2020-12 as JOS uses it: validation that gives violations with JSON paths, and what a schema declares.

An object with `properties` is closed unless it says `additionalProperties`: in a configuration a field that nobody
declared is a typing mistake. References may point inside the schema only; nothing is ever fetched.
May import: stdlib, jsonschema_rs, jos.core.errors. Tests: tests/unit/test_config.py (against `jsonschema`).
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import jsonschema_rs
from jsonschema_rs import ValidationErrorKind as Kind

from jos.core.errors import Violation

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = Mapping[str, Any]
Path = tuple[str | int, ...]

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER, _QUERY = re.compile(r'://[^\s"]*@'), re.compile(r'(://[^\s"?#]*[?#])[^\s"]+')
_APPLICATORS = ("allOf", "anyOf", "oneOf")
_BRANCHES = ("if", "then", "else")


def json_path(parts: Iterable[str | int]) -> str:
    """
    >>> json_path(["inputs", "worker.n_shots", 3, "metadata", "class"])
    '$.inputs["worker.n_shots"][3].metadata.class'
    """
    path = "$"
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if _PLAIN.fullmatch(part) else f"[{json.dumps(part)}]"
    return path


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence to put behind a message, or nothing when no known word is near."""
    known = sorted(known)
    spelling = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower(), spelling, n=1, cutoff=0.6)
    if near:
        return f' Did you mean "{spelling[near[0]]}"?'
    return f" Known: {', '.join(known)}." if 0 < len(known) <= 12 else ""


def _fetch_nothing(uri: str) -> Any:
    raise ValueError(f"a schema may refer only to itself, not to {uri}")


@lru_cache(maxsize=256)
def _compiled(text: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(json.loads(text), retriever=_fetch_nothing)


def validator(schema: Schema | bool) -> jsonschema_rs.Draft202012Validator:
    """Raises ValueError or jsonschema_rs.ValidationError if the schema itself is wrong."""
    return _compiled(json.dumps(schema, sort_keys=True))


def violations(schema: Schema | bool, value: Any, at: Path) -> Iterator[Violation]:
    """Everything in `value` that `schema` forbids. `at` is where the value stands in the whole document."""
    for error in validator(schema).iter_errors(value):
        path = (*at, *error.instance_path)
        match error.kind:
            case Kind.AdditionalProperties(unexpected=names) | Kind.UnevaluatedProperties(unexpected=names):
                for name in names:
                    yield Violation(json_path((*path, name)), "is not a known field.", "unknown")
            case Kind.Required(property=name):
                yield Violation(json_path((*path, str(name))), "is required.", "missing")
            case Kind.Enum(options=options):
                yield Violation(json_path(path), _not_among(error.instance, options))
            case Kind.AnyOf() | Kind.OneOfNotValid() if known := _described(schema, error.schema_path):
                shown = _sentence(json.dumps(error.instance, ensure_ascii=False)).rstrip(".")
                yield Violation(json_path(path), f"{shown} is none of: {'; '.join(known)}.")
            case _:
                yield Violation(json_path(path), f"{_sentence(error.message)}")


def _not_among(value: Any, options: Any) -> str:
    choices = options if isinstance(options, list) else [options]
    words = [choice for choice in choices if isinstance(choice, str)]
    near = difflib.get_close_matches(value.lower(), words, n=1) if isinstance(value, str) else []
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f"{json.dumps(value)} is not one of {', '.join(json.dumps(c) for c in choices)}.{hint}"


def _described(schema: Schema | bool, path: Iterable[str | int]) -> list[str]:
    """The descriptions of the alternatives at `path`; nothing unless all have one."""
    here: Any = schema
    for part in path:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            return []
    found = [one.get("description") for one in here if isinstance(one, Mapping)] if isinstance(here, list) else []
    return [str(one) for one in found] if all(found) else []


def without_secrets(text: str) -> str:
    """Addresses in `text` without what stands before an @ or behind a ? or #: passwords and keys are put there.

    >>> without_secrets("http://me:pw@host/v1?api_key=S is wrong")
    'http://…@host/v1?… is wrong'
    """
    return _QUERY.sub(r"\1…", _USER.sub("://…@", text))


def _sentence(message: str) -> str:
    message = without_secrets(message)
    short = message if len(message) <= 300 else f"{message[:140]} … {message[-140:]}"
    return short if short.endswith(".") else f"{short}."


def not_json(value: Any, at: Path) -> Iterator[Violation]:
    """What could not be written down as JSON and read back the same, e.g. NaN or a numpy number."""
    match value:
        case None | bool() | int() | str():
            if isinstance(value, int) and not isinstance(value, bool) and type(value) is not int:
                yield Violation(json_path(at), f"is a {type(value).__name__}, not a JSON value.")
        case float() if type(value) is float:
            if not math.isfinite(value):
                yield Violation(json_path(at), f"{value} is not a JSON number.")
        case list():
            for index, item in enumerate(value):
                yield from not_json(item, (*at, index))
        case dict():
            for key, item in value.items():
                if isinstance(key, str):
                    yield from not_json(item, (*at, key))
                else:
                    yield Violation(json_path(at), f"has the key {key!r}; keys must be text.")
        case _:
            yield Violation(json_path(at), f"is a {type(value).__name__}, not a JSON value.")


# --- what a schema declares ---------------------------------------------------------------------------


def declared(schema: Any, root: Schema) -> list[Schema]:
    """`schema` and all schemas that apply to the same value: its local references, allOf, if/then/else, …"""
    found: list[Schema] = []
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, Mapping) or any(one is seen for seen in found):
            continue
        found.append(one)
        if isinstance(one.get("$ref"), str):
            waiting.append(_resolve(one["$ref"], root))
        for keyword in _APPLICATORS:
            waiting.extend(one.get(keyword, ()))
        waiting.extend(one[keyword] for keyword in _BRANCHES if keyword in one)
    return found


def _resolve(reference: str, root: Schema) -> Any:
    here: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        here = here.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(here, Mapping) else None
    return here


def properties(schema: Any, root: Schema) -> dict[str, Any]:
    """Name -> schema of every property that `schema` declares."""
    return {name: sub for one in declared(schema, root) for name, sub in one.get("properties", {}).items()}


def is_open(schema: Any, root: Schema, name: str) -> bool:
    """Whether a property that is not declared by name is welcome all the same."""
    schemas = declared(schema, root)
    # by the same engine that validates: it knows all of the standard's patterns, and none makes it run for ever
    if any(validator({"pattern": p}).is_valid(name) for one in schemas for p in one.get("patternProperties", {})):
        return True
    extra = [one["additionalProperties"] for one in schemas if "additionalProperties" in one]
    if extra:
        return all(rule is not False for rule in extra)
    return not any("properties" in one for one in schemas)
