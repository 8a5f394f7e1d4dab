"""What the API server itself puts into a new object of a core kind, and what it takes out of one of any kind."""

from __future__ import annotations

import base64
from typing import Any

from kube.kinds import Kind

Obj = dict[str, Any]


def born(kind: Kind, obj: Obj) -> Obj:
    """`obj` as it goes into admission: no status but that which its kind begins with."""
    found = {"apiVersion": kind.api_version, "kind": kind.kind} | obj
    found |= {"apiVersion": kind.api_version, "kind": kind.kind}
    if kind.status:
        found.pop("status", None)
    begin = _BEGIN.get(kind.plural)
    return begin(found) if begin else found


def _namespace(obj: Obj) -> Obj:
    meta = dict(obj["metadata"])
    meta["labels"] = (meta.get("labels") or {}) | {"kubernetes.io/metadata.name": meta["name"]}
    return obj | {"metadata": meta, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}


def _pod(obj: Obj) -> Obj:
    defaults = {"restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst"}
    spec = defaults | {"schedulerName": "default-scheduler", "enableServiceLinks": True} | obj.get("spec", {})
    return obj | {"spec": spec, "status": {"phase": "Pending", "qosClass": "Burstable"}}


def _service(obj: Obj) -> Obj:
    spec = {"type": "ClusterIP", "sessionAffinity": "None"} | (obj.get("spec") or {})
    ports = [{"protocol": "TCP", "targetPort": port.get("port")} | port for port in spec.get("ports") or ()]
    return obj | {"spec": spec | ({"ports": ports} if ports else {}), "status": {"loadBalancer": {}}}


def _secret(obj: Obj) -> Obj:
    found: Obj = {"type": "Opaque"} | obj
    plain: dict[str, str] = found.pop("stringData", None) or {}
    coded = {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
    return found | ({"data": (found.get("data") or {}) | coded} if coded else {})


_BEGIN = {"namespaces": _namespace, "pods": _pod, "services": _service, "secrets": _secret}
