"""KubeRay 1.7's RayCluster controller: head service, head pod, worker pods, and the conditions that tell of them.

Seen in the recordings: the state becomes `ready` once and stays so; a head pod that goes is made anew, unless the
annotation forbids it once the cluster has been up; the operator's cache lags by the pod that it made last.
May import: kube.objects, kube.parts. Tests: tests/contract/test_fake_kuberay.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from kube.objects import Objects
from kube.parts import (
    Amounts,
    Made,
    condition,
    controller_of,
    found,
    is_true,
    leaving,
    owned,
    plus,
    put_condition,
    quantity,
    requests,
    stamp,
    suffix,
    tell,
    times,
)
from kube.shelf import Change, Key, copied

BY = "raycluster-controller"
NO_HEAD_RESTART = "ray.io/disable-provisioned-head-restart"
PORTS = {"client": 10001, "dashboard": 8265, "gcs-server": 6379, "metrics": 8080, "serve": 8000}
LONGEST_POD_PREFIX = 50
LEFT_OUT_AT_ZERO = {f"{which}WorkerReplicas" for which in ("desired", "min", "max", "ready", "available")}


class RayClusters:
    resources = ("rayclusters",)

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._pods: dict[Key, set[str]] = defaultdict(set)  # cluster -> names of its pods

    def concerned(self, change: Change) -> Iterable[Key]:
        meta = change.obj["metadata"]
        if change.resource == "rayclusters":
            key = ("rayclusters", meta["namespace"], meta["name"])
            if change.type == "DELETED":
                self._pods.pop(key, None)
            return [key]
        owner = controller_of(change.obj, "RayCluster") if change.resource == "pods" else None
        if owner is None:
            return ()
        key = ("rayclusters", meta["namespace"], owner)
        if change.type == "DELETED":
            self._pods[key].discard(meta["name"])
        else:
            self._pods[key].add(meta["name"])
        return [key]

    def reconcile(self, key: Key, now: datetime) -> None:
        cluster = found(self.objects, *key)
        if cluster is None or leaving(cluster):
            return
        self._serve(cluster, now)
        pods = [pod for name in sorted(self._pods[key]) if (pod := found(self.objects, "pods", key[1], name))]
        pods = self._without_failed(cluster, pods, now)
        made = self._make_head(cluster, pods, now) + self._make_workers(cluster, pods, now)
        self._pods[key] |= {pod["metadata"]["name"] for pod in made}
        self._tell_status(cluster, pods + made[:-1], now)

    # --- what it makes ---

    def _serve(self, cluster: Made, now: datetime) -> None:
        meta = cluster["metadata"]
        name = f"{meta['name']}-head-svc"
        if found(self.objects, "services", meta["namespace"], name) is not None:
            return
        labels = _labels(cluster, "head") | {"ray.io/node-type": "head"}
        service = {"metadata": {"name": name, "namespace": meta["namespace"], "labels": labels}}
        service["metadata"]["ownerReferences"] = owned(cluster)
        service["spec"] = head_service(labels)
        self.objects.create("services", service)
        tell(self.objects, cluster, now, BY, "CreatedService", f"Created service {meta['namespace']}/{name}")

    def _without_failed(self, cluster: Made, pods: list[Made], now: datetime) -> list[Made]:
        """Deletes pods that have ended for good; others take their places."""
        for pod in [pod for pod in pods if pod["status"]["phase"] in ("Failed", "Succeeded") and not leaving(pod)]:
            meta = pod["metadata"]
            self.objects.delete("pods", meta["namespace"], meta["name"])
            role = meta["labels"]["ray.io/node-type"].capitalize()
            tell(self.objects, cluster, now, BY, f"Deleted{role}Pod", f"Deleted {role.lower()} Pod {meta['name']}")
            pods = [other for other in pods if other is not pod]
        return pods

    def _make_head(self, cluster: Made, pods: list[Made], now: datetime) -> list[Made]:
        if any(_is_head(pod) for pod in pods):
            return []
        kept_down = cluster["metadata"].get("annotations", {}).get(NO_HEAD_RESTART) == "true"
        if kept_down and is_true(cluster, "RayClusterProvisioned"):
            return []
        pod = head_pod(cluster)
        made = self.objects.create("pods", pod)
        self._told_made(cluster, made, "Head", now)
        return [made]

    def _make_workers(self, cluster: Made, pods: list[Made], now: datetime) -> list[Made]:
        made = []
        for group in cluster["spec"].get("workerGroupSpecs", []):
            mine = [pod for pod in pods if pod["metadata"]["labels"]["ray.io/group"] == group["groupName"]]
            wanted = _replicas(group)
            for pod in [pod for pod in mine if not leaving(pod)][wanted:]:
                self.objects.delete("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
            taken = {pod["metadata"]["labels"]["ray.io/worker-group-replica-index"] for pod in mine}
            free = [str(i) for i in range(wanted) if str(i) not in taken]
            for index in free[: max(wanted - len(mine), 0)]:
                made.append(self.objects.create("pods", worker_pod(cluster, group, index)))
                self._told_made(cluster, made[-1], "Worker", now)
        return made

    def _told_made(self, cluster: Made, pod: Made, role: str, now: datetime) -> None:
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        tell(self.objects, cluster, now, BY, f"Created{role}Pod", f"Created {role.lower()} Pod {name}")

    # --- what it tells ---

    def _tell_status(self, cluster: Made, pods: list[Made], now: datetime) -> None:
        old = cluster.get("status", {})
        status = cluster_status(cluster, pods, now)
        unstamped = {k: v for k, v in status.items() if k != "lastUpdateTime"}
        if unstamped != {k: v for k, v in old.items() if k != "lastUpdateTime"}:
            changed = copied(
                self.objects.get("rayclusters", cluster["metadata"]["namespace"], cluster["metadata"]["name"])
            )
            self.objects.replace_status("rayclusters", changed | {"status": status})


def cluster_status(cluster: Made, pods: list[Made], now: datetime) -> Made:
    """The status that follows from the pods that the operator sees."""
    status: Made = copied(cluster.get("status", {}))
    groups = cluster["spec"].get("workerGroupSpecs", [])
    workers = [pod for pod in pods if not _is_head(pod)]
    head = next((pod for pod in pods if _is_head(pod)), None)
    ready = sum(_ready(pod) for pod in workers)
    desired = sum(_replicas(group) for group in groups)
    status |= {"observedGeneration": cluster["metadata"]["generation"], "lastUpdateTime": stamp(now)}
    status |= {
        "desiredWorkerReplicas": desired,
        "minWorkerReplicas": sum(group.get("minReplicas", 0) * group.get("numOfHosts", 1) for group in groups),
        "maxWorkerReplicas": sum(group.get("maxReplicas", 0) * group.get("numOfHosts", 1) for group in groups),
        "readyWorkerReplicas": ready,
        "availableWorkerReplicas": sum(pod["status"]["phase"] == "Running" for pod in workers),
    }
    status = {name: value for name, value in status.items() if value != 0 or name not in LEFT_OUT_AT_ZERO}
    status |= _desired(cluster) | {"endpoints": {name: str(port) for name, port in PORTS.items()}}
    status["head"] = _head_status(cluster, head)
    _put_head_ready(status, head, now)
    if condition({"status": status}, "RayClusterProvisioned") is None:
        message = "RayCluster Pods are being provisioned for first time"
        put_condition(status, now, "RayClusterProvisioned", False, "RayClusterPodsProvisioning", message)
    if head is not None and _ready(head) and ready >= desired:
        message, reason = "All Ray Pods are ready for the first time", "AllPodRunningAndReadyFirstTime"
        put_condition(status, now, "RayClusterProvisioned", True, reason, message)
        if status.get("state") != "ready":
            status |= {"state": "ready", "stateTransitionTimes": {"ready": stamp(now)}}
    for name in ("RayClusterSuspended", "RayClusterSuspending"):
        put_condition(status, now, name, False, name, "")
    return status


def _head_status(cluster: Made, head: Made | None) -> Made:
    found_head = {"serviceName": f"{cluster['metadata']['name']}-head-svc"}
    if head is not None:
        found_head["podName"] = head["metadata"]["name"]
        if address := head["status"].get("podIP"):
            found_head |= {"podIP": address, "serviceIP": address}
    return found_head


def _put_head_ready(status: Made, head: Made | None, now: datetime) -> None:
    if head is None:
        return put_condition(status, now, "HeadPodReady", False, "HeadPodNotFound", "Head Pod not found")
    seen = condition(head, "Ready") or {"status": "False"}
    if seen["status"] == "True":
        return put_condition(status, now, "HeadPodReady", True, "HeadPodRunningAndReady", "")
    message = seen.get("message", "")
    for container in head["status"].get("containerStatuses", []):
        why = container["state"].get("waiting") or container["state"].get("terminated")
        if why and not container["ready"]:
            message = f"{container['name']}: {why['reason']}: {why.get('message', '')}".removesuffix(": ")
    put_condition(status, now, "HeadPodReady", False, seen.get("reason") or "Unknown", message)


def _desired(cluster: Made) -> Made:
    spec = cluster["spec"]
    parts: list[Amounts] = [requests(spec["headGroupSpec"]["template"]["spec"])]
    parts += [times(requests(g["template"]["spec"]), _replicas(g)) for g in spec.get("workerGroupSpecs", [])]
    total = plus(parts)
    names = {
        "desiredCPU": "cpu",
        "desiredMemory": "memory",
        "desiredGPU": "nvidia.com/gpu",
        "desiredTPU": "google.com/tpu",
    }
    return {field: quantity(total[name], name) if name in total else "0" for field, name in names.items()}


# --- manifests ----------------------------------------------------------------------------------------


def head_service(selector: dict[str, str]) -> Made:
    ports = [
        {"name": name, "protocol": "TCP", "appProtocol": "tcp", "port": port, "targetPort": port}
        for name, port in PORTS.items()
    ]
    spec: Made = {"ports": ports, "selector": selector, "clusterIP": "None", "clusterIPs": ["None"]}
    return spec | {"type": "ClusterIP", "sessionAffinity": "None", "publishNotReadyAddresses": True}


def head_pod(cluster: Made) -> Made:
    group = cluster["spec"]["headGroupSpec"]
    pod = _pod(cluster, group, "head", "headgroup", cluster["metadata"]["name"])
    digest = hashlib.sha1(json.dumps(cluster["spec"], sort_keys=True).encode(), usedforsecurity=False).digest()
    annotations = {"ray.io/ft-enabled": "false", "ray.io/kuberay-version": "v1.7.0"}
    annotations["ray.io/upgrade-strategy-recreate-hash"] = base64.b32hexencode(digest).decode()
    pod["metadata"]["annotations"] = {**pod["metadata"].get("annotations", {}), **annotations}
    if cluster["spec"].get("enableInTreeAutoscaling"):
        pod["spec"]["containers"].append(_autoscaler(cluster, pod["spec"]["containers"][0]["image"]))
    return pod


def worker_pod(cluster: Made, group: Made, index: str) -> Made:
    pod = _pod(cluster, group, "worker", group["groupName"], f"{cluster['metadata']['name']}-{group['groupName']}")
    pod["metadata"]["labels"]["ray.io/worker-group-replica-index"] = index
    return pod


def _pod(cluster: Made, group: Made, role: str, group_name: str, prefix: str) -> Made:
    template = copied(group["template"])
    labels = template.get("metadata", {}).get("labels", {}) | _labels(cluster, role)
    labels |= {"ray.io/group": group_name, "ray.io/is-ray-node": "yes", "ray.io/node-type": role}
    meta: Made = {"generateName": f"{prefix[:LONGEST_POD_PREFIX]}-{role}-", "labels": labels}
    meta |= {"namespace": cluster["metadata"]["namespace"], "ownerReferences": owned(cluster)}
    if annotations := template.get("metadata", {}).get("annotations"):
        meta["annotations"] = annotations
    meta["name"] = meta["generateName"] + suffix()
    main = template["spec"]["containers"][0]
    main.setdefault("ports", []).append({"name": "metrics", "containerPort": PORTS["metrics"], "protocol": "TCP"})
    main.setdefault("env", []).append({"name": "RAY_CLUSTER_NAME", "value": cluster["metadata"]["name"]})
    if cluster["spec"].get("enableInTreeAutoscaling"):
        template["spec"].setdefault("restartPolicy", "Never")  # the autoscaler, v2, replaces pods itself
    return {"metadata": meta, "spec": template["spec"]}


def _autoscaler(cluster: Made, image: str) -> Made:
    options = cluster["spec"].get("autoscalerOptions", {})
    found_container: Made = {"name": "autoscaler", "image": options.get("image", image)}
    small = {"cpu": "500m", "memory": "512Mi"}
    found_container["resources"] = options.get("resources", {"limits": small, "requests": small})
    for field in ("env", "envFrom", "securityContext"):
        if field in options:
            found_container[field] = options[field]
    return found_container


def _labels(cluster: Made, role: str) -> dict[str, str]:
    name = cluster["metadata"]["name"]
    labels = {"app.kubernetes.io/created-by": "kuberay-operator", "app.kubernetes.io/name": "kuberay"}
    return labels | {"ray.io/cluster": name, "ray.io/identifier": f"{name}-{role}"[-63:]}


def _replicas(group: Made) -> int:
    """Pods of a worker group: within its bounds, times hosts."""
    wanted: Any = max(group.get("replicas", 0), group.get("minReplicas", 0))
    return int(min(wanted, group.get("maxReplicas", wanted)) * group.get("numOfHosts", 1))


def _is_head(pod: Made) -> bool:
    return bool(pod["metadata"]["labels"]["ray.io/node-type"] == "head")


def _ready(pod: Made) -> bool:
    return pod["status"]["phase"] == "Running" and is_true(pod, "Ready")
