"""Kueue 0.19 for RayJobs: the webhook that suspends, and one Workload per RayJob with a queue-name label.

The job begins when its Workload is admitted, and is suspended, with its templates as they were, when that is evicted.
May import: kube.objects, kube.parts, kube.kueue_queues.
Tests: tests/contract/test_fake_kuberay.py, …_pains.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime

from kube.errors import ApiError
from kube.kueue_queues import observed
from kube.objects import Objects
from kube.parts import (
    Made,
    condition,
    controller_of,
    found,
    is_true,
    leaving,
    moment,
    owned,
    put_condition,
    tell,
)
from kube.policies import Review
from kube.shelf import Change, Key, copied

QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
AGAIN = 5.0  # seconds until it tries again what failed
FINALIZER = "kueue.x-k8s.io/resource-in-use"
BY = "ray.io/rayjob-kueue-controller"
NOT_READY = "Not all pods are ready or succeeded"
READY = "All pods reached readiness and the workload is running"


def webhook(review: Review) -> None:
    """A mutator: what goes into a queue begins suspended. Refuses what Kueue cannot manage, and changes of labels. A
    class of priority that is not there is no reason to refuse."""
    job = review.obj
    if review.resource != "rayjobs" or review.subresource is not None:
        return
    if review.operation == "UPDATE" and review.old is not None:
        _look_at_labels(review.old, job)
    if review.operation != "CREATE" or not _queue(job):
        return
    if not job["spec"].get("shutdownAfterJobFinishes"):
        raise _denied(
            "spec.shutdownAfterJobFinishes", "false", "a kueue managed job should delete the cluster after finishing"
        )
    if job["spec"].get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
        why = "a kueue managed job can use autoscaling only as an elastic job"
        raise _denied("spec.rayClusterSpec.enableInTreeAutoscaling", "true", why)
    job["spec"]["suspend"] = True
    cluster = job["spec"]["rayClusterSpec"]
    cluster["headGroupSpec"]["template"].setdefault("metadata", {})
    for group in cluster.get("workerGroupSpecs", []):
        group.setdefault("scaleStrategy", {})
        group["template"].setdefault("metadata", {})


def _look_at_labels(old: Made, new: Made) -> None:
    """A class can be changed at any time, added while the job is suspended, and never taken away."""
    before, after = (job["metadata"].get("labels") or {} for job in (old, new))
    if not new["spec"].get("suspend") and before.get(QUEUE) != after.get(QUEUE):
        raise _denied(f"metadata.labels[{QUEUE}]", f'"{after.get(QUEUE, "")}"', "field is immutable")
    had, has = before.get(PRIORITY), after.get(PRIORITY)
    if had and not has:
        why = "WorkloadPriorityClass cannot be removed from a workload"
        raise _denied(f"metadata.labels[{PRIORITY}]", '""', why)
    if has and not had and not new["spec"].get("suspend"):
        why = "WorkloadPriorityClass cannot be added to a non-suspended workload"
        raise _denied(f"metadata.labels[{PRIORITY}]", f'"{has}"', why)


def _denied(field: str, value: str, why: str) -> ApiError:
    told = f"{field}: Invalid value: {value}: {why}"
    return ApiError(403, "Forbidden", f'admission webhook "vrayjob.kb.io" denied the request: {told}')


class Kueue:
    """RayJobs and their Workloads follow each other. `kube.kueue_queues` admits and evicts."""

    resources = ("rayjobs",)

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        objects.mutators.append(webhook)

    def concerned(self, change: Change) -> Iterable[Key]:
        meta = change.obj["metadata"]
        if change.resource == "rayjobs" and _queue(change.obj):
            return [("rayjobs", meta["namespace"], meta["name"])]
        if change.resource == "workloads":
            owner = controller_of(change.obj, "RayJob")
            mine = [("rayjobs", meta["namespace"], owner)] if owner else []
            return [*mine, ("workloads", meta["namespace"], meta["name"])]
        return ()

    def reconcile(self, key: Key, now: datetime) -> float | None:
        if key[0] == "workloads":
            self._let_go(key)
            return None
        job = found(self.objects, *key)
        if job is None or leaving(job) or not _queue(job):
            return None
        workload = found(self.objects, "workloads", key[1], workload_name(job))
        if (missing := self._missing_class(job, workload)) is not None:
            told = f'WorkloadPriorityClass "{missing}" not found'
            tell(self.objects, job, now, BY, "WorkloadPriorityClassNotFound", told, "Warning")
            return AGAIN
        if workload is None:
            self._make(job, now)
            return None
        if leaving(workload) or is_true(workload, "Finished"):
            return None
        self._follow(job, workload, now)
        return None

    # --- the RayJob and its Workload ---

    def _make(self, job: Made, now: datetime) -> None:
        if job.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed"):
            return
        meta = job["metadata"]
        name = workload_name(job)
        made: Made = {"name": name, "namespace": meta["namespace"], "ownerReferences": owned(job)}
        made |= {"labels": {"kueue.x-k8s.io/job-uid": meta["uid"]}, "finalizers": [FINALIZER]}
        spec = {"active": True, "podSets": pod_sets(job), "queueName": _queue(job)} | self._priority(job)
        self.objects.create("workloads", {"metadata": made, "spec": spec})
        tell(self.objects, job, now, BY, "CreatedWorkload", f"Created Workload: {meta['namespace']}/{name}")

    def _missing_class(self, job: Made, workload: Made | None) -> str | None:
        """It keeps Kueue from making a Workload, and from all else where a Workload is to get that class."""
        name: str | None = job["metadata"]["labels"].get(PRIORITY)
        has = (workload or {"spec": {}})["spec"].get("priorityClassRef", {}).get("name")
        there = name in (None, has) or found(self.objects, "workloadpriorityclasses", None, str(name)) is not None
        return None if there else name

    def _priority(self, job: Made) -> Made:
        name = job["metadata"]["labels"].get(PRIORITY)
        if name is None:
            return {"priority": 0}
        value = self.objects.get("workloadpriorityclasses", None, name)["value"]
        reference = {"group": "kueue.x-k8s.io", "kind": "WorkloadPriorityClass", "name": name}
        return {"priority": value, "priorityClassRef": reference}

    def _follow(self, job: Made, workload: Made, now: datetime) -> None:
        """One step: the job after its Workload, or the Workload after its job."""
        priority = self._priority(job) if self._missing_class(job, None) is None else {}
        if any(workload["spec"].get(name) != value for name, value in priority.items()):
            changed = copied(workload)
            changed["spec"] |= priority
            self.objects.replace("workloads", changed)
            return
        state = job.get("status", {}).get("jobDeploymentStatus", "")
        if state in ("Complete", "Failed"):
            return self._finish(job, workload, now)
        if is_true(workload, "Evicted"):
            return self._evict(job, workload, now)
        if is_true(workload, "Admitted") and job["spec"].get("suspend") and state == "Suspended":
            return self._start(job, workload, now)
        if why := self._no_queue(workload):
            changed = copied(workload)
            put_condition(changed.setdefault("status", {}), now, "QuotaReserved", False, "Inadmissible", why)
            if changed["status"] != workload.get("status"):
                self.objects.replace_status("workloads", changed)
            return
        self._tell_ready(job, workload, now)

    def _no_queue(self, workload: Made) -> str | None:
        name = workload["spec"]["queueName"]
        local = found(self.objects, "localqueues", workload["metadata"]["namespace"], name)
        if local is None:
            return f"LocalQueue {name} doesn't exist"
        queue = local["spec"]["clusterQueue"]
        missing = found(self.objects, "clusterqueues", None, queue) is None
        return f"ClusterQueue {queue} doesn't exist" if missing else None

    def _start(self, job: Made, workload: Made, now: datetime) -> None:
        changed = copied(job)
        changed["spec"].pop("suspend")
        assigned = {a["name"]: a for a in workload["status"]["admission"]["podSetAssignments"]}
        for name, template in templates(changed["spec"]):
            meta = template.setdefault("metadata", {})
            labels = {"kueue.x-k8s.io/cluster-queue-name": workload["status"]["admission"]["clusterQueue"]}
            labels |= {"kueue.x-k8s.io/local-queue-name": workload["spec"]["queueName"], "kueue.x-k8s.io/podset": name}
            meta["labels"] = {**meta.get("labels", {}), **labels}
            workload_name_ = workload["metadata"]["name"]
            meta["annotations"] = {**meta.get("annotations", {}), "kueue.x-k8s.io/workload": workload_name_}
            for flavor in set(assigned[name]["flavors"].values()):
                self._place(template["spec"], self.objects.get("resourceflavors", None, flavor)["spec"])
        self.objects.replace("rayjobs", changed)
        queue = workload["status"]["admission"]["clusterQueue"]
        tell(self.objects, job, now, BY, "Started", f"Admitted by clusterQueue {queue}")

    @staticmethod
    def _place(pod_spec: Made, flavor: Made) -> None:
        if labels := flavor.get("nodeLabels"):
            pod_spec["nodeSelector"] = {**pod_spec.get("nodeSelector", {}), **labels}
        if tolerations := flavor.get("tolerations"):
            pod_spec["tolerations"] = [*pod_spec.get("tolerations", []), *tolerations]

    def _evict(self, job: Made, workload: Made, now: datetime) -> None:
        """First the job is suspended, with its templates as they were; once it rests, its quota is free."""
        why = condition(workload, "Evicted")
        assert why is not None
        if not job["spec"].get("suspend"):
            changed = copied(job)
            changed["spec"]["suspend"] = True
            for (_, template), pod_set in zip(templates(changed["spec"]), workload["spec"]["podSets"], strict=True):
                template.clear()
                template |= copied(pod_set["template"])
            self.objects.replace("rayjobs", changed)
            tell(self.objects, job, now, BY, "Stopped", why["message"])
        elif is_true(workload, "PodsReady") and "state" not in job["status"]["rayClusterStatus"]:
            self._tell_ready(job, workload, now)
        elif job.get("status", {}).get("jobDeploymentStatus") == "Suspended" and is_true(workload, "QuotaReserved"):
            self._requeue(workload, why, now)

    def _requeue(self, workload: Made, why: Made, now: datetime) -> None:
        changed = copied(workload)
        status, seen = changed["status"], observed(workload)
        admitted = condition(workload, "Admitted")
        if admitted is not None:
            past = int((now - moment(admitted["lastTransitionTime"])).total_seconds())
            status["accumulatedPastExecutionTimeSeconds"] = status.get("accumulatedPastExecutionTimeSeconds", 0) + past
        status.pop("admission", None)
        put_condition(status, now, "QuotaReserved", False, "Pending", why["message"], **seen)
        put_condition(status, now, "Admitted", False, "NoReservation", "The workload has no reservation", **seen)
        if workload["spec"].get("active", True):
            put_condition(status, now, "Requeued", True, why["reason"], why["message"], **seen)
        put_condition(status, now, "PodsReady", False, "WaitForStart", NOT_READY, **seen)
        self.objects.replace_status("workloads", changed)

    def _finish(self, job: Made, workload: Made, now: datetime) -> None:
        changed, status = copied(workload), job["status"]
        reason = "Succeeded" if status["jobDeploymentStatus"] == "Complete" else "Failed"
        put_condition(changed["status"], now, "Finished", True, reason, status.get("message", ""), **observed(workload))
        self.objects.replace_status("workloads", changed)
        meta = workload["metadata"]
        told = f"Workload '{meta['namespace']}/{meta['name']}' is declared finished"
        tell(self.objects, job, now, BY, "FinishedWorkload", told)

    def _tell_ready(self, job: Made, workload: Made, now: datetime) -> None:
        ready = job.get("status", {}).get("rayClusterStatus", {}).get("state") == "ready"
        changed = copied(workload)
        seen = condition(workload, "PodsReady") or {"status": "False", "reason": "WaitForStart"}
        reason, message = ("Started", READY) if ready else ("WaitForStart", NOT_READY)
        if not ready and (seen["status"] == "True" or seen["reason"] == "WaitForRecovery"):
            reason, message = "WaitForRecovery", "At least one pod has failed, waiting for recovery"
        put_condition(changed.setdefault("status", {}), now, "PodsReady", ready, reason, message, **observed(workload))
        if changed["status"] != workload.get("status"):
            self.objects.replace_status("workloads", changed)

    def _let_go(self, key: Key) -> None:
        """What holds no quota any more need not be held."""
        workload = found(self.objects, *key)
        if workload is None or FINALIZER not in workload["metadata"].get("finalizers", []):
            return
        if leaving(workload) or is_true(workload, "Finished"):
            changed = copied(workload)
            changed["metadata"]["finalizers"].remove(FINALIZER)
            self.objects.replace("workloads", changed)


# --- rules over plain data ----------------------------------------------------------------------------


def workload_name(job: Made) -> str:
    meta = job["metadata"]
    digest = hashlib.sha256(f"{meta['name']}\nRayJob\nray.io\n{meta['uid']}".encode()).hexdigest()
    return f"rayjob-{meta['name']}"[:57] + f"-{digest[:5]}"


def pod_sets(job: Made) -> list[Made]:
    spec = job["spec"]
    counts = {"head": 1}
    for group in spec["rayClusterSpec"].get("workerGroupSpecs", []):
        counts[group["groupName"]] = group.get("replicas", 0) * group.get("numOfHosts", 1)
    return [{"name": name, "count": counts[name], "template": copied(template)} for name, template in templates(spec)]


def templates(job_spec: Made) -> list[tuple[str, Made]]:
    cluster = job_spec["rayClusterSpec"]
    groups = [(group["groupName"], group["template"]) for group in cluster.get("workerGroupSpecs", [])]
    return [("head", cluster["headGroupSpec"]["template"]), *groups]


def _queue(job: Made) -> str | None:
    queue: str | None = (job["metadata"].get("labels") or {}).get(QUEUE)
    return queue
