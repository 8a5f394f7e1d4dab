"""Field managers of one object: what each of them owns after a write, and what an apply changes, keeps and takes away.

Kept beside the object rather than in it; `rendered` gives metadata.managedFields as the server shows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from kube.errors import applied_by_others
from kube.fields import Path, Shape, fields_v1, leaves, merged, parse_v1, shown, without

_NOBODYS = {
    ("f:apiVersion",),
    ("f:kind",),
    *(("f:metadata", f"f:{name}") for name in ("name", "namespace", "uid", "generation", "generateName", "selfLink")),
    *(("f:metadata", f"f:{name}") for name in ("creationTimestamp", "resourceVersion", "deletionTimestamp")),
    ("f:metadata", "f:deletionGracePeriodSeconds"),
    ("f:metadata",),
}


@dataclass(frozen=True)
class Manager:
    """`operation` is Apply or Update; an applier's fields are those of its last apply, no more and no less."""

    name: str
    operation: str
    api_version: str
    subresource: str
    time: str
    fields: frozenset[Path]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.name, self.operation, self.subresource


def _owned(obj: Any, shape: Shape) -> dict[Path, Any]:
    found = leaves(obj, shape)
    return {path: value for path, value in found.items() if path[:2] not in _NOBODYS and path not in _NOBODYS}


def rendered(managers: Iterable[Manager]) -> list[dict[str, Any]]:
    return [
        {"manager": m.name, "operation": m.operation, "apiVersion": m.api_version, "time": m.time}
        | {"fieldsType": "FieldsV1", "fieldsV1": fields_v1(m.fields)}
        | ({"subresource": m.subresource} if m.subresource else {})
        for m in managers
        if m.fields
    ]


def parsed(entries: Iterable[dict[str, Any]]) -> tuple[Manager, ...]:
    """Managers from a metadata.managedFields that a client wrote, as kubectl does when it takes over from itself."""
    return tuple(
        Manager(
            e.get("manager", ""),
            e["operation"],
            e.get("apiVersion", ""),
            e.get("subresource", ""),
            e.get("time", ""),
            parse_v1(e.get("fieldsV1") or {}),
        )
        for e in entries
        if e.get("operation")
    )


def updated(managers: tuple[Manager, ...], me: Manager, old: Any, new: Any, shape: Shape) -> tuple[Manager, ...]:
    """After a write that was no apply: the writer owns what it changed, and nobody owns what is gone."""
    before, after = _owned(old, shape) if old else {}, _owned(new, shape)
    changed = {path for path, value in after.items() if path not in before or before[path] != value}
    gone = before.keys() - after.keys()
    mine = next((m.fields for m in managers if m.key == me.key), frozenset())
    others = tuple(replace(m, fields=m.fields - changed - gone) for m in managers if m.key != me.key)
    if not changed and mine == mine - gone:
        return tuple(m if m.key != me.key else replace(m, fields=m.fields - gone) for m in managers)
    return (*(m for m in others if m.fields), replace(me, fields=(mine - gone) | changed))


def applied(
    managers: tuple[Manager, ...], me: Manager, live: Any, wanted: Any, shape: Shape, force: bool
) -> tuple[Any, tuple[Manager, ...]]:
    """The object after `me` applied `wanted` to `live`, and who owns what then.

    Raises 409 naming each field that another manager owns and that the apply would change, unless `force`.
    """
    mine = frozenset(_owned(wanted, shape))
    others = [m for m in managers if m.key != me.key]
    before = next((m.fields for m in managers if m.key == me.key), frozenset())
    result = merged(live, wanted, shape)
    dropped = _dropped(before - mine, mine, others)
    if dropped:
        result = merged(without(result, dropped, shape), wanted, shape)  # an empty list that is wanted stays
    had, has = _owned(live, shape), _owned(result, shape)
    changed = {path for path, value in has.items() if had.get(path, None) != value} & mine
    taken = [(m, path) for m in others for path in sorted(m.fields & changed)]
    if taken and not force:
        raise applied_by_others([(_called(m), shown(path)) for m, path in taken])
    gone = had.keys() - has.keys()
    others = [replace(m, fields=m.fields - changed - gone) for m in others]
    return result, (*(m for m in others if m.fields), replace(me, fields=mine))


def _dropped(candidates: Iterable[Path], mine: frozenset[Path], others: list[Manager]) -> set[Path]:
    """What I applied before and now do not; not where anybody still owns it or something below it."""
    kept = {path[:size] for path in mine for size in range(1, len(path) + 1)}
    for manager in others:
        kept |= {path[:size] for path in manager.fields for size in range(1, len(path) + 1)}
    return {path for path in candidates if path not in kept}


def _called(manager: Manager) -> str:
    if manager.operation == "Apply" and not manager.subresource:
        return f'"{manager.name}"'
    with_what = f" with subresource {manager.subresource!r}".replace("'", '"') if manager.subresource else ""
    return f'"{manager.name}"{with_what} using {manager.api_version}'
