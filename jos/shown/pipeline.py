"""`Pipeline`: one version of a pipeline, which shows its ports, its versions, and its settings with their defaults and
which of them are locked.

May import: jos.wire, jos.shown. Tests: tests/unit/test_shown.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import PrivateAttr

from jos import wire
from jos.shown.page import FAINT, folded, framed, said, table
from jos.shown.text import plain

_LIMITS = (("minimum", "≥ "), ("exclusiveMinimum", "> "), ("maximum", "≤ "), ("exclusiveMaximum", "< "))
_MISSING = object()


@dataclass(frozen=True)
class Setting:
    path: str  # within the component's config: reader_config.window_size
    takes: str  # its type, choices and limits
    default: str  # as JSON; empty: there is none
    locked: bool  # a job cannot set it
    description: str


class Pipeline(wire.Pipeline):
    """`client.pipelines.find(key)` or `jos.pipeline(key)`."""

    _versions: list[str] = PrivateAttr(default_factory=list)

    @property
    def versions(self) -> list[str]:
        """All versions of this key, `1.1.0 published`, the newest first."""
        return self._versions or [f"{self.pipeline_version} {self.status}"]

    def settings(self) -> dict[str, list[Setting]]:
        """By component."""
        return {
            component: list(
                settings_of(schema, self.user_config_schema.get(component), self._defaults(component).get("config"))
            )
            for component, schema in self.config_schema.items()
        }

    def _defaults(self, component: str) -> Mapping[str, Any]:
        return self.default_config.get(component) or {}

    def __repr__(self) -> str:
        return f"<Pipeline {self.pipeline_key} {self.pipeline_version} {self.status}>"

    def __str__(self) -> str:
        return repr(self)

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, str]:
        return {"text/plain": self._text(), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        head = (
            f'<div><b>{said(self.name)}</b> <span style="{FAINT}">{said(self.pipeline_type)} · <code>'
            f"{said(self.pipeline_key)}</code> {said(self.pipeline_version)} {said(self.status)}</span></div>"
            f"<div>{said(self.description)}</div>"
            f'<div style="{FAINT}">versions: {said(", ".join(self.versions))}</div>'
        )
        ports = table(("port", "kind", "takes", "about"), ([said(cell) for cell in row] for row in self._ports()))
        settings = (
            folded(
                f"settings of {component} (parallelism {self._defaults(component).get('parallelism', 1)})",
                table(("setting", "takes", "default", "lock", "about"), map(_row, found)),
            )
            for component, found in self.settings().items()
        )
        return framed([head, ports, *settings])

    def _text(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.pipeline_key} {self.pipeline_version} ({self.pipeline_type}, {self.status}): {plain(self.name)}"
        yield f"  {plain(self.description)}"
        yield f"  versions: {', '.join(self.versions)}"
        for row in self._ports():
            yield f"  {row[1]:<6} {row[0]:<30} {plain(row[2])}"
        for component, found in self.settings().items():
            yield f"  settings of {component}:"
            for one in found:
                default = f" = {one.default}" if one.default else ""
                yield f"    {one.path}: {plain(one.takes)}{plain(default)}{' (locked)' if one.locked else ''}"

    def _ports(self) -> Iterator[tuple[str, str, str, str]]:
        for name, port in self.inputs.items():
            mode = str(port.get("mode", "")).replace("_", " ")
            takes = f"{mode}, {'required' if port.get('required') else 'optional'}"
            yield name, "input", takes, str(port.get("description", ""))
        for name, port in self.outputs.items():
            yield name, "output", "", str(port.get("description", ""))


def together(found: Sequence[wire.Pipeline]) -> list[Pipeline]:
    """Each knows of the other versions of its key."""
    handles = [Pipeline.model_validate(one.model_dump()) for one in found]
    by_key: dict[str, list[Pipeline]] = {}
    for one in handles:
        by_key.setdefault(one.pipeline_key, []).append(one)
    for same in by_key.values():
        versions = [f"{one.pipeline_version} {one.status}" for one in sorted(same, key=order, reverse=True)]
        for one in same:
            one._versions = versions
    return handles


def order(pipeline: wire.Pipeline) -> tuple[int, ...]:
    return tuple(int(number) for number in pipeline.pipeline_version.split("."))


def chosen(found: Iterable[Pipeline], key: str, version: str | None) -> Pipeline | None:
    """The version that is named, else the latest published one."""
    same = [p for p in found if p.pipeline_key == key and version in (None, p.pipeline_version)]
    if version is None:
        same = [p for p in same if p.status == "published"]
    return max(same, key=order, default=None)


def settings_of(schema: Mapping[str, Any], user: Any, default: Any, before: str = "") -> Iterator[Setting]:
    """Every leaf of a component's schema. What the user schema does not know is locked."""
    free = user.get("properties", {}) if isinstance(user, Mapping) else {}
    given = default if isinstance(default, Mapping) else {}
    for name, one in schema.get("properties", {}).items():
        path = f"{before}{name}"
        if one.get("properties"):
            yield from settings_of(one, free.get(name), given.get(name), f"{path}.")
            continue
        value = given.get(name, one.get("default", _MISSING))
        yield Setting(
            path,
            takes(one),
            "" if value is _MISSING else json.dumps(value, ensure_ascii=False),
            name not in free,
            str(one.get("description", "")),
        )


def takes(schema: Mapping[str, Any]) -> str:
    """`integer ≥ 1 ≤ 64`, or its choices."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    kind = schema.get("type", "any")
    kinds = " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        kinds = f"list of {takes(schema['items'])}"
    return " ".join([kinds, *(f"{sign}{schema[word]}" for word, sign in _LIMITS if word in schema)])


def _row(one: Setting) -> tuple[str, ...]:
    lock = "<b>locked</b>" if one.locked else ""
    default = f"<code>{said(one.default)}</code>" if one.default else ""
    return f"<code>{said(one.path)}</code>", said(one.takes), default, lock, said(one.description)
