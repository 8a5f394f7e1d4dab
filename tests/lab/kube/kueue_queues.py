"""Kueue's scheduler: ClusterQueues admit Workloads by priority, then age, and make room for them.

Into the first flavor that has room; `withinClusterQueue: LowerPriority` takes the place of lower ones. No cohorts, no
admission checks, no topology: JOS looks at none of them.
May import: kube.objects, kube.parts. Tests: tests/contract/test_fake_kuberay.py, …_pains.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any

from kube.objects import Objects
from kube.parts import (
    Amounts,
    Made,
    amount,
    condition,
    found,
    is_true,
    leaving,
    plus,
    put_condition,
    quantity,
    requests,
    tell,
    times,
)
from kube.shelf import Change, Key, copied

BY = "kueue-admission"


class Queues:
    """One look goes over a whole queue. To stand after `Kueue` among the controllers."""

    resources = ("clusterqueues",)

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def concerned(self, change: Change) -> Iterable[Key]:
        if change.resource in ("workloads", "clusterqueues", "localqueues", "resourceflavors"):
            return [
                ("clusterqueues", "", kept.obj["metadata"]["name"]) for kept in self.objects.listing("clusterqueues")[0]
            ]
        return ()

    def reconcile(self, key: Key, now: datetime) -> None:
        """Goes over the queue once: evicts, admits, or tells why not."""
        queue = found(self.objects, "clusterqueues", None, key[2])
        if queue is None:
            return
        mine = self._workloads(key[2])
        held = [w for w in mine if is_true(w, "QuotaReserved")]
        waiting = [w for w in mine if not is_true(w, "QuotaReserved") and w["spec"].get("active", True)]
        stopped = queue["spec"].get("stopPolicy", "None")
        for workload in [w for w in held if not is_true(w, "Evicted")]:
            if not workload["spec"].get("active", True):
                self._mark_evicted(workload, "Deactivated", "The workload is deactivated", now)
            elif stopped == "HoldAndDrain":
                self._mark_evicted(workload, "ClusterQueueStopped", "The ClusterQueue is stopped", now)
        if stopped == "None":
            self._admit(queue, held, sorted(waiting, key=_rank), now)
        else:
            for workload in waiting:
                self._pend(workload, "Inadmissible", f"ClusterQueue {key[2]} is inactive", now)

    def _admit(self, queue: Made, held: list[Made], waiting: list[Made], now: datetime) -> None:
        name = queue["metadata"]["name"]
        used = plus(demand(w) for w in held)
        going = sum(is_true(w, "Evicted") for w in held)
        for workload in waiting:
            asked = demand(workload)
            if (flavor := self._fits(queue, asked, used)) is not None:
                self._reserve(workload, name, flavor, now)
                used = plus([used, asked])
                continue
            victims = self._victims(queue, workload, asked, used, held)
            why = self._why(queue, workload, used)
            if victims is not None:
                why += f". Pending the preemption of {len(victims) + going} workload(s)"
            self._pend(workload, "Pending", why, now)
            for victim in victims or ():
                self._preempt(victim, workload, name, now)
            strict = queue["spec"].get("queueingStrategy", "BestEffortFIFO") == "StrictFIFO"
            if victims is not None or strict:
                return  # what becomes free is for this one

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

    def _victims(
        self, queue: Made, workload: Made, asked: Amounts, used: Amounts, held: list[Made]
    ) -> list[Made] | None:
        """The lowest, youngest ones that must go: nobody, where enough are going already. None: that would not help."""
        if queue["spec"].get("preemption", {}).get("withinClusterQueue", "Never") == "Never":
            return None
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
        return None

    def _reserve(self, workload: Made, queue: str, flavor: str, now: datetime) -> None:
        changed = copied(workload)
        status, seen = changed.setdefault("status", {}), observed(workload)
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
        tell(self.objects, workload, now, BY, "QuotaReserved", f"Quota reserved in ClusterQueue {queue}")
        tell(self.objects, workload, now, BY, "Admitted", f"Admitted by ClusterQueue {queue}")

    def _preempt(self, victim: Made, by: Made, queue: str, now: datetime) -> None:
        job_uid = by["metadata"]["labels"]["kueue.x-k8s.io/job-uid"]
        message = f"Preempted to accommodate a workload (UID: {by['metadata']['uid']}, JobUID: {job_uid}) due to "
        message += f"prioritization in the ClusterQueue; preemptor path: /{queue}; preemptee path: /{queue}"
        self._mark_evicted(victim, "Preempted", message, now, preempted="InClusterQueue")
        tell(self.objects, victim, now, BY, "Preempted", message)
        told = (
            f"Preempted workload {victim['metadata']['namespace']}/{victim['metadata']['name']} in ClusterQueue {queue}"
        )
        tell(self.objects, by, now, BY, "PreemptedWorkload", told)

    def _mark_evicted(self, workload: Made, reason: str, message: str, now: datetime, preempted: str = "") -> None:
        changed = copied(workload)
        status = changed["status"]
        put_condition(status, now, "Evicted", True, reason, message, **observed(workload))
        if preempted:
            put_condition(status, now, "Preempted", True, preempted, message)
        evictions: list[Any] = status.setdefault("schedulingStats", {}).setdefault("evictions", [])
        counted = next((e for e in evictions if e["reason"] == reason), None)
        if counted is None:
            evictions.append({"reason": reason, "underlyingCause": "", "count": 1})
        else:
            counted["count"] += 1
        self.objects.replace_status("workloads", changed)
        tell(self.objects, workload, now, BY, f"EvictedDueTo{reason}", message)

    def _pend(self, workload: Made, reason: str, message: str, now: datetime) -> None:
        changed = copied(workload)
        status = changed.setdefault("status", {})
        put_condition(status, now, "QuotaReserved", False, reason, message, **observed(workload))
        status["resourceRequests"] = [
            {"name": p["name"], "resources": _texts(times(requests(p["template"]["spec"]), p["count"]))}
            for p in workload["spec"]["podSets"]
        ]
        if changed["status"] != workload.get("status"):
            self.objects.replace_status("workloads", changed)
            tell(self.objects, workload, now, BY, "Pending", message, "Warning")


# --- rules over plain data ---


def demand(workload: Made) -> Amounts:
    return plus(times(requests(p["template"]["spec"]), p["count"]) for p in workload["spec"]["podSets"])


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


def observed(workload: Made) -> Made:
    return {"observedGeneration": workload["metadata"]["generation"]}
