"""What is known of a cluster: RayJobs, Ray clusters, pods and Kueue's Workloads, as watches tell it.

Of each object only what jos.launch.rayjob_truth reads is kept, so that a thousand RayJobs take some megabytes.
Pure: no clock, no network. May import: jos.launch. Tests: tests/unit/test_kube_cache.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jos.launch.pods import Object, is_head, labels, name
from jos.launch.rayjob_truth import Evidence

RAYJOBS, CLUSTERS, PODS, WORKLOADS = "rayjobs", "rayclusters", "pods", "workloads"

HEAD_OF_MESSAGE, END_OF_MESSAGE = 600, 3000  # characters; Ray puts up to 20,000 of a driver's log behind its words

_CONDITIONS = {
    CLUSTERS: ("ReplicaFailure",),
    PODS: ("PodScheduled", "Ready", "DisruptionTarget"),
    WORKLOADS: ("QuotaReserved", "Admitted", "Evicted", "Finished"),
}
_SPEC = {
    RAYJOBS: ("jobId", "suspend", "preRunningDeadlineSeconds"),
    CLUSTERS: (),
    PODS: ("nodeName",),
    WORKLOADS: ("active", "queueName"),
}
_STATUS = {
    RAYJOBS: (
        *("jobDeploymentStatus", "jobStatus", "reason", "message", "jobId", "failed", "endTime"),
        *("rayClusterName", "dashboardURL", "rayJobInfo"),
    ),
    CLUSTERS: ("desiredWorkerReplicas",),
    PODS: ("phase", "reason", "message"),
    WORKLOADS: (),
}
_LABELS = ("ray.io/cluster", "ray.io/node-type", "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")
_ANNOTATIONS = ("jos.dev/token",)
_METADATA = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "finalizers")


class Cache:
    """`on_gone` is called with all that was known of a RayJob when it is no more; `on_change` with the name of one of
    which something is different, be it itself, its cluster, a pod or its Workload."""

    def __init__(
        self,
        on_gone: Callable[[Evidence], None] = lambda evidence: None,
        on_change: Callable[[str], None] = lambda rayjob: None,
    ) -> None:
        self.rayjobs: dict[str, Object] = {}  # by name
        self.clusters: dict[str, Object] = {}
        self._pods: dict[str, dict[str, Object]] = {}  # cluster -> name -> pod
        self._workloads: dict[str, Object] = {}  # uid of a RayJob -> its Workload
        self._dead_heads: dict[str, Object] = {}  # cluster -> its head that was deleted last
        self._rayjob_of: dict[str, str] = {}  # cluster -> RayJob
        self._of_job: dict[str, set[str]] = {}  # JOS's job -> its RayJobs
        self._on_gone, self._on_change = on_gone, on_change

    def evidence(self, rayjob: str) -> Evidence:
        """Raises KeyError for a RayJob that is not known."""
        found = self.rayjobs[rayjob]
        cluster = _cluster_of(found)
        return Evidence(
            rayjob=found,
            cluster=self.clusters.get(cluster),
            pods=tuple(self._pods.get(cluster, {}).values()),
            dead_head=self._dead_heads.get(cluster),
            workload=self._workloads.get(found["metadata"]["uid"]),
        )

    def of_job(self, job_id: str) -> list[str]:
        """The names of a job's RayJobs, one for each of its attempts that is still known."""
        return sorted(self._of_job.get(job_id, ()))

    def size(self) -> dict[str, int]:
        """How many of each are known."""
        pods = sum(map(len, self._pods.values()))
        counted = {RAYJOBS: self.rayjobs, CLUSTERS: self.clusters, WORKLOADS: self._workloads}
        return {**{kind: len(known) for kind, known in counted.items()}, PODS: pods}

    # --- what watches tell ---

    def put(self, kind: str, thing: Object) -> None:
        """It was added or changed."""
        kept = slim(kind, thing)
        if kind == RAYJOBS:
            self._put_rayjob(kept)
        elif kind == CLUSTERS:
            self.clusters[name(kept)] = kept
        elif kind == PODS:
            self._pods.setdefault(labels(kept).get("ray.io/cluster", ""), {})[name(kept)] = kept
        elif kept["owner"]:
            self._workloads[kept["owner_uid"]] = kept
        self._changed(kind, kept)

    def drop(self, kind: str, thing: Object) -> None:
        """It is no more."""
        if kind == RAYJOBS:
            self._drop_rayjob(name(thing))
        elif kind == CLUSTERS:
            self.clusters.pop(name(thing), None)
        elif kind == PODS:
            self._drop_pod(slim(kind, thing))
        elif name(self._workloads.get(uid := _owner_uid(thing), thing)) == name(thing):
            self._workloads.pop(uid, None)
        if kind != RAYJOBS:  # of which `on_gone` tells
            self._changed(kind, thing)

    def replace(self, kind: str, things: Iterable[Object]) -> None:
        """These are all that there are: what was known besides went while nobody watched."""
        kept = [slim(kind, thing) for thing in things]
        there = {name(thing) for thing in kept}
        for thing in [thing for thing in self._all(kind) if name(thing) not in there]:
            self.drop(kind, thing)
        for thing in kept:
            self.put(kind, thing)

    def _changed(self, kind: str, thing: Object) -> None:
        if kind == RAYJOBS:
            rayjob = name(thing)
        elif kind == WORKLOADS:
            rayjob = _owner(thing)
        else:
            rayjob = self._rayjob_of.get(
                name(thing) if kind == CLUSTERS else labels(thing).get("ray.io/cluster", ""), ""
            )
        if rayjob in self.rayjobs:
            self._on_change(rayjob)

    def _all(self, kind: str) -> list[Object]:
        if kind == PODS:
            return [pod for found in self._pods.values() for pod in found.values()]
        return list({RAYJOBS: self.rayjobs, CLUSTERS: self.clusters, WORKLOADS: self._workloads}[kind].values())

    def _put_rayjob(self, rayjob: Object) -> None:
        before = self.rayjobs.get(name(rayjob))
        if before is not None and before["metadata"]["uid"] != rayjob["metadata"]["uid"]:
            self._drop_rayjob(name(rayjob))  # deleted and made again while nobody watched
            before = None
        if before is not None and _cluster_of(before) != _cluster_of(rayjob):
            self._forget_cluster(_cluster_of(before))
        self.rayjobs[name(rayjob)] = rayjob
        self._of_job.setdefault(_job_of(rayjob), set()).add(name(rayjob))
        if cluster := _cluster_of(rayjob):
            self._rayjob_of[cluster] = name(rayjob)

    def _drop_rayjob(self, rayjob: str) -> None:
        if rayjob in self.rayjobs:
            evidence = self.evidence(rayjob)
            found = self.rayjobs.pop(rayjob)
            self._forget_cluster(_cluster_of(found))
            known = self._of_job[_job_of(found)]
            known.discard(rayjob)
            if not known:
                del self._of_job[_job_of(found)]
            self._on_gone(evidence)

    def _forget_cluster(self, cluster: str) -> None:
        self._dead_heads.pop(cluster, None)
        self._rayjob_of.pop(cluster, None)

    def _drop_pod(self, pod: Object) -> None:
        cluster = labels(pod).get("ray.io/cluster", "")
        known = self._pods.get(cluster, {})
        known.pop(name(pod), None)
        if not known:
            self._pods.pop(cluster, None)
        if is_head(pod) and cluster in self._rayjob_of:  # heads of clusters that are over by plan interest nobody
            self._dead_heads[cluster] = pod


def _cluster_of(rayjob: Object) -> str:
    return str((rayjob.get("status") or {}).get("rayClusterName") or "")


def _job_of(rayjob: Object) -> str:
    return labels(rayjob).get("jos.dev/job", "")


def _owner(workload: Object) -> str:
    """The RayJob that Kueue made it for."""
    return str(workload["owner"] if "owner" in workload else _reference(workload).get("name", ""))


def _owner_uid(workload: Object) -> str:
    """Which of all that had its name."""
    return str(workload["owner_uid"] if "owner" in workload else _reference(workload).get("uid", ""))


def _reference(workload: Object) -> Mapping[str, str]:
    owners = workload["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("kind") == "RayJob"), {})


# --- what is kept -------------------------------------------------------------------------------------


def slim(kind: str, thing: Object) -> Object:
    """What is kept of an object; the same again of one that was made slim before."""
    spec, status = thing.get("spec") or {}, thing.get("status") or {}
    kept: dict[str, Any] = {
        "metadata": _metadata(thing["metadata"]),
        "spec": {key: spec[key] for key in _SPEC[kind] if key in spec},
        "status": {key: status[key] for key in _STATUS[kind] if key in status},
    }
    if "message" in kept["status"]:
        kept["status"]["message"] = _shorter(kept["status"]["message"])
    if kind in _CONDITIONS:
        kept["status"]["conditions"] = _conditions(kind, status)
    if kind == PODS:
        kept["spec"]["containers"] = [{"name": c["name"]} for c in (spec.get("containers") or ())[:1]]
        for key in ("initContainerStatuses", "containerStatuses"):
            if status.get(key):
                kept["status"][key] = [_container(container) for container in status[key]]
    if kind == WORKLOADS:
        kept["owner"], kept["owner_uid"] = _owner(thing), _owner_uid(thing)
    return kept


def _metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: metadata[key] for key in _METADATA if key in metadata}
    known = (metadata.get("labels") or {}).items()
    kept["labels"] = {key: value for key, value in known if key in _LABELS or key.startswith("jos.dev/")}
    told = metadata.get("annotations") or {}
    kept["annotations"] = {key: told[key] for key in _ANNOTATIONS if key in told}
    return kept


def _conditions(kind: str, status: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = ("type", "status", "reason", "message", *(("lastTransitionTime",) if kind == WORKLOADS else ()))
    found = (c for c in status.get("conditions") or () if c["type"] in _CONDITIONS[kind])
    return [{key: c[key] for key in told if key in c} for c in found]


def _container(status: Mapping[str, Any]) -> dict[str, Any]:
    return {key: status[key] for key in ("name", "image", "state", "lastState") if key in status}


def _shorter(message: str) -> str:
    if len(message) <= HEAD_OF_MESSAGE + END_OF_MESSAGE:
        return message
    return f"{message[:HEAD_OF_MESSAGE]}\n…\n{message[-END_OF_MESSAGE:]}"
