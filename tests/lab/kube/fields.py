"""Who owns which field, and server-side apply: sets of field paths, their FieldsV1 form, merging and removal by them.

A path is a tuple of FieldsV1 steps: `f:name` (a map's key), `k:{"name":"x"}` (an item of a list that is keyed) and
`v:"x"` (an item of a set). Source: structured merge and diff of Kubernetes, as far as the kinds here need it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str, ...]
PRESENT = "<present>"

# lists of the core kinds that are merged by keys; all other lists of theirs are atomic
_KEYED: dict[str, tuple[tuple[str, Any], ...]] = {
    "containers": (("name", None),),
    "initContainers": (("name", None),),
    "ephemeralContainers": (("name", None),),
    "env": (("name", None),),
    "volumes": (("name", None),),
    "volumeMounts": (("mountPath", None),),
    "imagePullSecrets": (("name", None),),
    "secrets": (("name", None),),
    "conditions": (("type", None),),
    "ownerReferences": (("uid", None),),
    "hostAliases": (("ip", None),),
    "topologySpreadConstraints": (("topologyKey", None), ("whenUnsatisfiable", None)),
}
_PORTS = {"service": (("port", None), ("protocol", "TCP")), "pod": (("containerPort", None), ("protocol", "TCP"))}
_SETS = {"finalizers"}
_ATOMIC = {"selector", "nodeSelector", "configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef", "roleRef"}


@dataclass(frozen=True)
class Shape:
    """How one place of an object is merged: by a CRD's schema, or by its field's name where there is none."""

    schema: Mapping[str, Any] | None = None
    name: str = ""
    root: bool = False

    def child(self, key: str) -> Shape:
        if self.schema is None or (
            key == "metadata" and (self.root or self.schema.get("x-kubernetes-embedded-resource"))
        ):
            return Shape(None, key)
        found = self.schema.get("properties", {}).get(key)
        if found is None:
            more = self.schema.get("additionalProperties")
            found = more if isinstance(more, dict) else {}
        return Shape(found, key)

    def item(self) -> Shape:
        return Shape(None if self.schema is None else self.schema.get("items", {}), "")

    def atomic_map(self) -> bool:
        if self.schema is None:
            return self.name in _ATOMIC
        return self.schema.get("x-kubernetes-map-type") == "atomic"

    def keys(self, value: list[Any]) -> tuple[tuple[str, Any], ...]:
        """The keys of this list's items with their defaults; none for a set or an atomic list."""
        if self.schema is not None:
            if self.schema.get("x-kubernetes-list-type") != "map":
                return ()
            properties = self.schema.get("items", {}).get("properties", {})
            return tuple((k, properties.get(k, {}).get("default")) for k in self.schema["x-kubernetes-list-map-keys"])
        if self.name == "ports":
            return _PORTS["pod" if any(isinstance(v, dict) and "containerPort" in v for v in value) else "service"]
        return _KEYED.get(self.name, ())

    def is_set(self) -> bool:
        if self.schema is None:
            return self.name in _SETS
        return self.schema.get("x-kubernetes-list-type") == "set"


def _step(keys: tuple[tuple[str, Any], ...], item: Mapping[str, Any]) -> str:
    found = {key: item.get(key, default) for key, default in keys if item.get(key, default) is not None}
    return "k:" + json.dumps(found, sort_keys=True, separators=(",", ":"))


def _set_step(item: Any) -> str:
    return "v:" + json.dumps(item, separators=(",", ":"))


def leaves(value: Any, shape: Shape, path: Path = (), found: dict[Path, Any] | None = None) -> dict[Path, Any]:
    """Path → value of all that can be owned: scalars, atomic lists and maps, empty ones, and items of keyed lists."""
    found = {} if found is None else found
    if isinstance(value, dict) and value and not shape.atomic_map():
        for key, child in value.items():
            leaves(child, shape.child(key), (*path, f"f:{key}"), found)
    elif isinstance(value, list) and (keys := shape.keys(value)):
        item_shape = shape.item()
        for item in value:
            step = (*path, _step(keys, item))
            found[step] = PRESENT
            leaves(item, item_shape, step, found)
    elif isinstance(value, list) and shape.is_set():
        found.update({(*path, _set_step(item)): PRESENT for item in value})
    else:
        found[path] = value
    return found


def merged(live: Any, wanted: Any, shape: Shape) -> Any:
    """`live` with all that `wanted` says; items of keyed lists are merged with their like, those of sets added."""
    if isinstance(live, dict) and isinstance(wanted, dict) and not shape.atomic_map():
        return live | {key: merged(live.get(key), value, shape.child(key)) for key, value in wanted.items()}
    if isinstance(live, list) and isinstance(wanted, list):
        if keys := shape.keys(live or wanted):
            found = {_step(keys, item): item for item in live}
            for item in wanted:
                step = _step(keys, item)
                found[step] = merged(found.get(step), item, shape.item())
            return list(found.values())
        if shape.is_set():
            return live + [item for item in wanted if item not in live]
    return wanted


def without(value: Any, paths: Iterable[Path], shape: Shape) -> Any:
    """`value` without what stands at these paths; a map that they emptied goes as well."""
    tree: dict[str, Any] = {}
    for path in paths:
        node = tree
        for step in path:
            node = node.setdefault(step, {})
        node[""] = True
    return _without(value, tree, shape)


def _without(value: Any, tree: dict[str, Any], shape: Shape) -> Any:
    if isinstance(value, dict):
        found = {}
        for key, child in value.items():
            below = tree.get(f"f:{key}")
            if below is not None and "" in below:
                continue
            kept = child if below is None else _without(child, below, shape.child(key))
            if below is None or kept not in ({}, []) or child == kept:
                found[key] = kept
        return found
    if not isinstance(value, list):
        return value
    keys, items = shape.keys(value), []
    for item in value:
        below = tree.get(_step(keys, item) if keys else _set_step(item))
        if below is None or "" not in below:
            items.append(item if below is None else _without(item, below, shape.item()))
    return items


def fields_v1(paths: Iterable[Path]) -> dict[str, Any]:
    """The nested form of a set of paths, as metadata.managedFields shows it."""
    tree: dict[str, Any] = {}
    ordered = sorted(paths)
    inner = {path[:size] for path in ordered for size in range(1, len(path))}
    for path in ordered:
        node = tree
        for step in path:
            node = node.setdefault(step, {})
        if path in inner:
            node["."] = {}
    return tree


def parse_v1(tree: Mapping[str, Any], path: Path = ()) -> frozenset[Path]:
    found: set[Path] = set()
    for step, below in tree.items():
        if step == ".":
            found.add(path)
        elif not below:
            found.add((*path, step))
        else:
            found |= parse_v1(below, (*path, step))
    return frozenset(found)


def shown(path: Path) -> str:
    """A path as conflicts print it: `.spec.template.spec.containers[name="x"].image`."""
    text = ""
    for step in path:
        if step.startswith("f:"):
            text += f".{step[2:]}"
        elif step.startswith("k:"):
            keys = json.loads(step[2:])
            text += "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in keys.items()) + "]"
        else:
            text += f"[={step[2:]}]"
    return text
