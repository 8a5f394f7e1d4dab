"""A container's variables, as a kubelet makes them out of its manifest, Secrets and ConfigMaps.

May import: kube.objects, kube.parts. Tests: tests/contract/test_fake_kuberay_pains.py.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from kube.objects import Objects
from kube.parts import Made, found

HOST = "10.0.0.2"
_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")  # a variable may name those before it


def environment(objects: Objects, pod: Made, container: Made) -> dict[str, str]:
    """envFrom, then env. LookupError: what they come from is not there."""
    namespace = pod["metadata"]["namespace"]
    found_env: dict[str, str] = {}
    for source in container.get("envFrom", []):
        for resource, field in (("configmaps", "configMapRef"), ("secrets", "secretRef")):
            if field in source:
                data = _data(objects, resource, namespace, source[field]) or {}
                found_env |= {source.get("prefix", "") + name: value for name, value in data.items()}
    for variable in container.get("env", []):
        value = _value(objects, pod, variable)
        if value is not None:
            found_env[variable["name"]] = _REFERENCE.sub(lambda m: found_env.get(m[1], m[0]), value)
    return found_env


def _value(objects: Objects, pod: Made, variable: Made) -> str | None:
    source = variable.get("valueFrom")
    if source is None:
        return str(variable.get("value", ""))
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"])
    for resource, name in (("secrets", "secretKeyRef"), ("configmaps", "configMapKeyRef")):
        if name in source:
            data = _data(objects, resource, pod["metadata"]["namespace"], source[name])
            key = source[name]["key"]
            if data is not None and key not in data and not source[name].get("optional"):
                raise LookupError(f"couldn't find key {key} in {resource[:-1]} {source[name]['name']}")
            return (data or {}).get(key)
    raise LookupError(f"the fake kubelet knows no variable from {sorted(source)}")


def _data(objects: Objects, resource: str, namespace: str, reference: Made) -> dict[str, str] | None:
    """None: not there, and it need not be."""
    one = found(objects, resource, namespace, reference["name"])
    if one is None:
        if reference.get("optional"):
            return None
        raise LookupError(f'{resource[:-1]} "{reference["name"]}" not found')
    data: dict[str, str] = one.get("data", {})
    return {k: base64.b64decode(v).decode() for k, v in data.items()} if resource == "secrets" else dict(data)


def _field(pod: Made, path: str) -> str:
    at: Any = pod | {"status": {"podIP": "10.244.0.2", "hostIP": HOST, **pod["status"]}}
    for part in path.split("["):
        if part.endswith("]"):
            return str(at.get(part.strip("']\""), ""))
        for name in part.split("."):
            at = at.get(name, {})
    return str(at or "")
