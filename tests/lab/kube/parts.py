"""What all behaviours write alike: times, generated names, owners, conditions, quantities, events.

May import: kube.objects. Tests: tests/contract/test_fake_kuberay.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from lightkube.utils.quantity import parse_quantity

from kube.errors import ApiError
from kube.objects import Objects

Made = dict[str, Any]  # a Kubernetes object, as JSON

# Kubernetes leaves out vowels and digits that look like letters, so that no word comes out
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def stamp(now: datetime) -> str:
    """As metav1.Time is written: whole seconds, UTC."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def suffix() -> str:
    """The five letters at the end of generated names."""
    return "".join(secrets.choice(_LETTERS) for _ in range(5))


def owned(owner: Made) -> list[Made]:
    """ownerReferences of what `owner` controls."""
    meta = owner["metadata"]
    found = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"]}
    return [found | {"controller": True, "blockOwnerDeletion": True}]


def controller_of(thing: Made, kind: str) -> str | None:
    """The name of its controlling owner, if that is of this kind."""
    for owner in thing["metadata"].get("ownerReferences", []):
        if owner["kind"] == kind and owner.get("controller"):
            return str(owner["name"])
    return None


def leaving(thing: Made) -> bool:
    return "deletionTimestamp" in thing["metadata"]


def found(objects: Objects, resource: str, namespace: str | None, name: str) -> Made | None:
    """The stored object, not to be changed; None if there is none."""
    try:
        return objects.kept(resource, namespace, name).obj
    except ApiError as error:
        if error.reason != "NotFound":
            raise
        return None


def condition(thing: Made, name: str) -> Made | None:
    conditions: list[Made] = thing.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == name), None)


def is_true(thing: Made, name: str) -> bool:
    one = condition(thing, name)
    return one is not None and one["status"] == "True"


def put_condition(status: Made, now: datetime, name: str, value: bool, reason: str, message: str, **more: Any) -> None:
    """Sets one condition; its transition time moves only when its status does."""
    conditions: list[Made] = status.setdefault("conditions", [])
    old = next((c for c in conditions if c["type"] == name), None)
    new = {"type": name, "status": str(value), "reason": reason, "message": message, **more}
    same = old is not None and old["status"] == new["status"]
    new["lastTransitionTime"] = old["lastTransitionTime"] if same and old is not None else stamp(now)
    if old is None:
        conditions.append(new)
    else:
        conditions[conditions.index(old)] = new


# --- quantities ---------------------------------------------------------------------------------------

Amounts = dict[str, Decimal]  # resource name -> amount; CPUs, bytes, pieces


def amount(text: object) -> Decimal:
    value = parse_quantity(str(text))
    assert value is not None
    return value


def requests(pod_spec: Mapping[str, Any]) -> Amounts:
    """What a pod asks for: the sum of its containers' requests; a limit without a request is one."""
    total: Amounts = {}
    for container in pod_spec.get("containers", []):
        resources = container.get("resources", {})
        asked = {**resources.get("limits", {}), **resources.get("requests", {})}
        for name, text in asked.items():
            total[name] = total.get(name, Decimal(0)) + amount(text)
    return total


def plus(parts: Iterable[Mapping[str, Decimal]]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, Decimal(0)) + value
    return total


def times(part: Mapping[str, Decimal], count: int) -> Amounts:
    return {name: value * count for name, value in part.items()}


def quantity(value: Decimal, name: str = "") -> str:
    """The canonical text: `2`, `1500m`, `2Gi`."""
    if name in ("memory", "ephemeral-storage", "hugepages"):
        for power, unit in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
            if value and value % 1024**power == 0:
                return f"{int(value) // 1024**power}{unit}"
        return str(int(value))
    return str(int(value)) if value == int(value) else f"{int(value * 1000)}m"


# --- events -------------------------------------------------------------------------------------------


def tell(
    objects: Objects, about: Made, now: datetime, by: str, reason: str, message: str, kind: str = "Normal"
) -> None:
    """Records an Event, as operators do; nothing depends on it, so that a refusal is no error."""
    meta = about["metadata"]
    namespace = meta.get("namespace", "default")
    involved = {"kind": about["kind"], "apiVersion": about["apiVersion"], "namespace": namespace, "name": meta["name"]}
    involved |= {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
    name = f"{meta['name']}.{secrets.token_hex(8)}"
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace}}
    event |= {"involvedObject": involved, "reason": reason, "message": message, "type": kind, "source": {}}
    event |= {"eventTime": now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")}
    event |= {"action": reason, "reportingComponent": by, "reportingInstance": by}
    with suppress(ApiError):
        objects.create("events", event)
