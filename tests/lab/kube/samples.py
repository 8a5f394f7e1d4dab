"""Small objects for tests of the fake cluster: a RayJob as a user may write one, and a Kueue queue.

Tests: tests/contract/test_fake_kuberay.py and its neighbours.
"""

from __future__ import annotations

from typing import Any

from kube.objects import Objects
from kube.parts import Made

NAMESPACE = "jos"


def rayjob(name: str, entrypoint: str = "python x.py", *, workers: int = 1, queue: str = "", **spec: Any) -> Made:
    """HTTPMode, one CPU and 1Gi for each pod. `spec`: more fields of the RayJob; `queue`: `lq/high` for Kueue."""
    group = {
        "groupName": "w",
        "rayStartParams": {},
        "replicas": workers,
        "minReplicas": workers,
        "maxReplicas": workers,
    }
    cluster = {
        "rayVersion": "2.60.0",
        "headGroupSpec": {"rayStartParams": {}, "template": _template("ray-head")},
        "workerGroupSpecs": [group | {"template": _template("ray-worker")}] if workers else [],
    }
    own = {"entrypoint": entrypoint, "submissionMode": "HTTPMode", "backoffLimit": 0, "shutdownAfterJobFinishes": True}
    meta: Made = {"name": name, "namespace": NAMESPACE}
    if queue:
        local, _, priority = queue.partition("/")
        meta["labels"] = {"kueue.x-k8s.io/queue-name": local}
        meta["labels"] |= {"kueue.x-k8s.io/priority-class": priority} if priority else {}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": meta,
        "spec": {**own, "rayClusterSpec": cluster, **spec},
    }


def head(job: Made) -> Made:
    """The head's pod spec, to be changed before the job is created."""
    spec: Made = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return spec


def queue(objects: Objects, node_labels: dict[str, str] | None = None, **nominal: object) -> None:
    """What an operator of a cluster with Kueue makes: ClusterQueue `cq` with LocalQueue `lq`, one flavor, priorities
    `low` (10) and `high` (1000), which preempt. `nominal`: quota by resource."""
    labels = {"nodeLabels": node_labels} if node_labels else {}
    objects.create("resourceflavors", {"metadata": {"name": "default"}, "spec": labels})
    quotas = [{"name": name, "nominalQuota": value} for name, value in nominal.items()]
    group = {"coveredResources": list(nominal), "flavors": [{"name": "default", "resources": quotas}]}
    spec: Made = {"resourceGroups": [group], "preemption": {"withinClusterQueue": "LowerPriority"}}
    objects.create("clusterqueues", {"metadata": {"name": "cq"}, "spec": spec})
    local = {"metadata": {"name": "lq", "namespace": NAMESPACE}, "spec": {"clusterQueue": "cq"}}
    objects.create("localqueues", local)
    for name, value in (("low", 10), ("high", 1000)):
        objects.create("workloadpriorityclasses", {"metadata": {"name": name}, "value": value})


def _template(container: str) -> Made:
    one = {"cpu": "1", "memory": "1Gi"}
    resources = {"limits": dict(one), "requests": dict(one)}
    return {"spec": {"containers": [{"name": container, "image": "rayproject/ray:2.60.0", "resources": resources}]}}
