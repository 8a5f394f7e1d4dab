"""Kueue 0.19 for RayJobs: the webhook that suspends, Workloads, quota, admission, preemption, requeueing.

One Workload per RayJob with a queue-name label. A ClusterQueue admits by priority, then age, into the first flavor that
fits; `withinClusterQueue: LowerPriority` takes the place of lower ones. No cohorts, no admission checks, no topology.
May import: kube.objects, kube.parts. Tests: tests/contract/test_fake_kuberay.py, tests/contract/test_fake_kueue.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any

from kube.errors import ApiError
from kube.objects import Objects, Review
from kube.parts import (
    Amounts,
    Made,
    amount,
    condition,
    controller_of,
    found,
    is_true,
    leaving,
    moment,
    owned,
    plus,
    put_condition,
    quantity,
    requests,
    tell,
    times,
)
from kube.shelf import Change, Key, copied

QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
FINALIZER = "kueue.x-k8s.io/resource-in-use"
ADMISSION, JOBS = "kueue-admission", "ray.io/rayjob-kueue-controller"
NOT_READY = "Not all pods are ready or succeeded"
READY = "All pods reached readiness and the workload is running"


def webhook(review: Review) -> None:
    """A mutator: what goes into a queue begins suspended. Refuses what Kueue cannot manage."""
    job = review.obj
    if review.operation != "CREATE" or review.resource != "rayjobs" or not _queue(job):
        return
    if not job["spec"].get("shutdownAfterJobFinishes"):
        raise _denied(
            "shutdownAfterJobFinishes", "false", "a kueue managed job should delete the cluster after finishing"
        )
    if job["spec"].get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
        why = "a kueue managed job can use autoscaling only as an elastic job"
        raise _denied("rayClusterSpec.enableInTreeAutoscaling", "true", why)
    job["spec"]["suspend"] = True
    cluster = job["spec"]["rayClusterSpec"]
    cluster["headGroupSpec"]["template"].setdefault("metadata", {})
    for group in cluster.get("workerGroupSpecs", []):
        group.setdefault("scaleStrategy", {})
        group["template"].setdefault("metadata", {})


def _denied(field: str, value: str, why: str) -> ApiError:
    told = f"spec.{field}: Invalid value: {value}: {why}"
    return ApiError(403, "Forbidden", f'admission webhook "vrayjob.kb.io" denied the request: {told}')


class Kueue:
    """The job reconciler (key: a RayJob) and the scheduler (key: a ClusterQueue) in one."""

    resources = ("rayjobs", "clusterqueues")

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
            return [*mine, ("workloads", meta["namespace"], meta["name"]), *self._queues()]
        if change.resource in ("clusterqueues", "localqueues", "resourceflavors"):
            return self._queues()
        return ()

    def reconcile(self, key: Key, now: datetime) -> None:
        if key[0] == "clusterqueues":
            return self._admit(key[2], now)
        if key[0] == "workloads":
            return self._let_go(key)
        job = found(self.objects, *key)
        if job is None or leaving(job) or not _queue(job):
            return None
        workload = found(self.objects, "workloads", key[1], workload_name(job))
        if workload is None:
            return self._make(job, now)
        if leaving(workload) or is_true(workload, "Finished"):
            return None
        self._follow(job, workload, now)
        return None

    def _queues(self) -> list[Key]:
        return [
            ("clusterqueues", "", kept.obj["metadata"]["name"]) for kept in self.objects.listing("clusterqueues")[0]
        ]

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
        tell(self.objects, job, now, JOBS, "CreatedWorkload", f"Created Workload: {meta['namespace']}/{name}")

    def _priority(self, job: Made) -> Made:
        name = job["metadata"]["labels"].get(PRIORITY)
        if name is None:
            return {"priority": 0}
        value = self.objects.get("workloadpriorityclasses", None, name)["value"]
        reference = {"group": "kueue.x-k8s.io", "kind": "WorkloadPriorityClass", "name": name}
        return {"priority": value, "priorityClassRef": reference}

    def _follow(self, job: Made, workload: Made, now: datetime) -> None:
        """One step: the job after its Workload, or the Workload after its job."""
        priority = self._priority(job)
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
        self._tell_ready(job, workload, now)

    def _start(self, job: Made, workload: Made, now: datetime) -> None:
        changed = copied(job)
        changed["spec"].pop("suspend")
        assigned = {a["name"]: a for a in workload["status"]["admission"]["podSetAssignments"]}
        for name, template in _templates(changed["spec"]):
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
        tell(self.objects, job, now, JOBS, "Started", f"Admitted by clusterQueue {queue}")

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
            for (_, template), pod_set in zip(_templates(changed["spec"]), workload["spec"]["podSets"], strict=True):
                template.clear()
                template |= copied(pod_set["template"])
            self.objects.replace("rayjobs", changed)
            tell(self.objects, job, now, JOBS, "Stopped", why["message"])
        elif is_true(workload, "PodsReady") and "state" not in job["status"]["rayClusterStatus"]:
            self._tell_ready(job, workload, now)
        elif job.get("status", {}).get("jobDeploymentStatus") == "Suspended" and is_true(workload, "QuotaReserved"):
            self._requeue(workload, why, now)

    def _requeue(self, workload: Made, why: Made, now: datetime) -> None:
        changed = copied(workload)
        status, seen = changed["status"], _observed(workload)
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
        put_condition(
            changed["status"], now, "Finished", True, reason, status.get("message", ""), **_observed(workload)
        )
        self.objects.replace_status("workloads", changed)
        meta = workload["metadata"]
        told = f"Workload '{meta['namespace']}/{meta['name']}' is declared finished"
        tell(self.objects, job, now, JOBS, "FinishedWorkload", told)

    def _tell_ready(self, job: Made, workload: Made, now: datetime) -> None:
        ready = job.get("status", {}).get("rayClusterStatus", {}).get("state") == "ready"
        changed = copied(workload)
        seen = condition(workload, "PodsReady") or {"status": "False", "reason": "WaitForStart"}
        reason, message = ("Started", READY) if ready else ("WaitForStart", NOT_READY)
        if not ready and (seen["status"] == "True" or seen["reason"] == "WaitForRecovery"):
            reason, message = "WaitForRecovery", "At least one pod has failed, waiting for recovery"
        put_condition(changed.setdefault("status", {}), now, "PodsReady", ready, reason, message, **_observed(workload))
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

    # --- the scheduler ---

    def _admit(self, name: str, now: datetime) -> None:
        """Goes over the queue once: admits, evicts, or tells why not."""
        queue = found(self.objects, "clusterqueues", None, name)
        mine = self._workloads(name) if queue is not None else []
        if queue is None:
            return
        held = [w for w in mine if is_true(w, "QuotaReserved")]
        used = plus(demand(w) for w in held)
        waiting = [w for w in mine if not is_true(w, "QuotaReserved")]
        for workload in held:
            if not workload["spec"].get("active", True) and not is_true(workload, "Evicted"):
                self._mark_evicted(workload, "Deactivated", "The workload is deactivated", now)
        for workload in sorted(waiting, key=_rank):
            if not workload["spec"].get("active", True):
                continue
            asked = demand(workload)
            if (flavor := self._fits(queue, asked, used)) is not None:
                self._reserve(workload, name, flavor, now)
                used = plus([used, asked])
                continue
            victims = self._victims(queue, workload, asked, used, held)
            leaving_now = [w for w in held if is_true(w, "Evicted")]
            for victim in victims:
                self._preempt(victim, workload, name, now)
            self._pend(workload, self._why(queue, workload, used), len(victims) + len(leaving_now), now)
            if victims or queue["spec"].get("queueingStrategy", "BestEffortFIFO") == "StrictFIFO":
                break

    def _workloads(self, queue: str) -> list[Made]:
        locals_ = {
            (kept.obj["metadata"]["namespace"], kept.obj["metadata"]["name"])
            for kept in self.objects.listing("localqueues")[0]
            if kept.obj["spec"]["clusterQueue"] == queue
        }
        every = [kept.obj for kept in self.objects.listing("workloads")[0]]
        return [
            w
            for w in every
            if (w["metadata"]["namespace"], w["spec"]["queueName"]) in locals_
            and not is_true(w, "Finished")
            and not leaving(w)
        ]

    @staticmethod
    def _limits(queue: Made) -> list[tuple[str, Amounts]]:
        return [
            (flavor["name"], {r["name"]: amount(r["nominalQuota"]) for r in flavor["resources"]})
            for group in queue["spec"].get("resourceGroups", [])
            for flavor in group["flavors"]
        ]

    def _fits(self, queue: Made, asked: Amounts, used: Amounts) -> str | None:
        """The first flavor that has room. All in use is counted against each: one flavor is what labs have."""
        for name, limits in self._limits(queue):
            if all(r in limits and used.get(r, Decimal(0)) + value <= limits[r] for r, value in asked.items()):
                return name
        return None

    def _why(self, queue: Made, workload: Made, used: Amounts) -> str:
        """Of the last pod set that does not fit, as Kueue says it."""
        flavor, limits = (self._limits(queue) or [("", {})])[0]
        total = dict(used)
        for pod_set in workload["spec"]["podSets"]:
            total = plus([total, times(requests(pod_set["template"]["spec"]), pod_set["count"])])
            for name, value in total.items():
                if value > limits.get(name, Decimal(0)):
                    more = quantity(value - limits.get(name, Decimal(0)), name)
                    start = f"couldn't assign flavors to pod set {pod_set['name']}: "
                    if name not in limits:
                        return f"{start}resource {name} unavailable in ClusterQueue"
                    return f"{start}insufficient unused quota for {name} in flavor {flavor}, {more} more needed"
        return "no quota"

    def _victims(self, queue: Made, workload: Made, asked: Amounts, used: Amounts, held: list[Made]) -> list[Made]:
        """The lowest, youngest ones that must go; none if that does not help, or enough are going already."""
        if queue["spec"].get("preemption", {}).get("withinClusterQueue", "Never") == "Never":
            return []
        left = used
        for going in [w for w in held if is_true(w, "Evicted")]:
            left = _minus(left, demand(going))
        if self._fits(queue, asked, left) is not None:
            return []
        chosen: list[Made] = []
        lower = [w for w in held if not is_true(w, "Evicted") and w["spec"]["priority"] < workload["spec"]["priority"]]
        for victim in sorted(lower, key=_rank, reverse=True):
            chosen.append(victim)
            left = _minus(left, demand(victim))
            if self._fits(queue, asked, left) is not None:
                return chosen
        return []

    def _reserve(self, workload: Made, queue: str, flavor: str, now: datetime) -> None:
        changed = copied(workload)
        status, seen = changed.setdefault("status", {}), _observed(workload)
        assignments = [_assignment(pod_set, flavor) for pod_set in workload["spec"]["podSets"]]
        status.pop("resourceRequests", None)
        status["admission"] = {"clusterQueue": queue, "podSetAssignments": assignments}
        put_condition(
            status, now, "QuotaReserved", True, "QuotaReserved", f"Quota reserved in ClusterQueue {queue}", **seen
        )
        put_condition(status, now, "Admitted", True, "Admitted", "The workload is admitted", **seen)
        for name in ("Evicted", "Preempted"):
            if is_true(workload, name):
                old = condition(workload, name) or {}
                put_condition(status, now, name, False, "QuotaReserved", f"Previously: {old['message']}", **seen)
        self.objects.replace_status("workloads", changed)
        tell(self.objects, workload, now, ADMISSION, "QuotaReserved", f"Quota reserved in ClusterQueue {queue}")
        tell(self.objects, workload, now, ADMISSION, "Admitted", f"Admitted by ClusterQueue {queue}")

    def _preempt(self, victim: Made, by: Made, queue: str, now: datetime) -> None:
        job_uid = by["metadata"]["labels"]["kueue.x-k8s.io/job-uid"]
        message = f"Preempted to accommodate a workload (UID: {by['metadata']['uid']}, JobUID: {job_uid}) due to "
        message += f"prioritization in the ClusterQueue; preemptor path: /{queue}; preemptee path: /{queue}"
        self._mark_evicted(victim, "Preempted", message, now, preempted="InClusterQueue")

    def _mark_evicted(self, workload: Made, reason: str, message: str, now: datetime, preempted: str = "") -> None:
        changed = copied(workload)
        status = changed["status"]
        put_condition(status, now, "Evicted", True, reason, message, **_observed(workload))
        if preempted:
            put_condition(status, now, "Preempted", True, preempted, message)
        evictions: list[Any] = status.setdefault("schedulingStats", {}).setdefault("evictions", [])
        counted = next((e for e in evictions if e["reason"] == reason), None)
        if counted is None:
            evictions.append({"reason": reason, "underlyingCause": "", "count": 1})
        else:
            counted["count"] += 1
        self.objects.replace_status("workloads", changed)
        tell(self.objects, workload, now, ADMISSION, f"EvictedDueTo{reason}", message)

    def _pend(self, workload: Made, why: str, going: int, now: datetime) -> None:
        changed = copied(workload)
        status = changed.setdefault("status", {})
        message = f"{why}. Pending the preemption of {going} workload(s)" if going else why
        put_condition(status, now, "QuotaReserved", False, "Pending", message, **_observed(workload))
        status["resourceRequests"] = [
            {"name": p["name"], "resources": _texts(times(requests(p["template"]["spec"]), p["count"]))}
            for p in workload["spec"]["podSets"]
        ]
        if changed["status"] != workload.get("status"):
            self.objects.replace_status("workloads", changed)
            tell(self.objects, workload, now, ADMISSION, "Pending", message, "Warning")


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
    return [{"name": name, "count": counts[name], "template": copied(template)} for name, template in _templates(spec)]


def demand(workload: Made) -> Amounts:
    return plus(times(requests(p["template"]["spec"]), p["count"]) for p in workload["spec"]["podSets"])


def _templates(job_spec: Made) -> list[tuple[str, Made]]:
    cluster = job_spec["rayClusterSpec"]
    groups = [(group["groupName"], group["template"]) for group in cluster.get("workerGroupSpecs", [])]
    return [("head", cluster["headGroupSpec"]["template"]), *groups]


def _assignment(pod_set: Made, flavor: str) -> Made:
    usage = times(requests(pod_set["template"]["spec"]), pod_set["count"])
    found_one = {"name": pod_set["name"], "count": pod_set["count"], "flavors": dict.fromkeys(usage, flavor)}
    return found_one | {"resourceUsage": _texts(usage)}


def _texts(amounts: Amounts) -> dict[str, str]:
    return {name: quantity(value, name) for name, value in amounts.items()}


def _minus(one: Amounts, other: Amounts) -> Amounts:
    return plus([one, times(other, -1)])


def _rank(workload: Made) -> tuple[Any, ...]:
    meta = workload["metadata"]
    return -workload["spec"]["priority"], meta["creationTimestamp"], meta["uid"]


def _observed(workload: Made) -> Made:
    return {"observedGeneration": workload["metadata"]["generation"]}


def _queue(job: Made) -> str | None:
    queue: str | None = (job["metadata"].get("labels") or {}).get(QUEUE)
    return queue
