"""The Job controller, as far as KubeRay's submitter in K8sJobMode needs it.

May import: kube.objects, kube.parts. Tests: tests/contract/test_fake_kuberay.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from kube.objects import Objects
from kube.parts import Made, controller_of, found, leaving, owned, put_condition, stamp, tell
from kube.shelf import Change, Key, copied

BY = "job-controller"
TRACKED = "batch.kubernetes.io/job-tracking"


class Jobs:
    """One pod, whose end is the Job's."""

    resources = ("jobs",)

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def concerned(self, change: Change) -> Iterable[Key]:
        if change.resource == "jobs":
            return [("jobs", change.obj["metadata"]["namespace"], change.obj["metadata"]["name"])]
        owner = controller_of(change.obj, "Job") if change.resource == "pods" else None
        return [("jobs", change.obj["metadata"]["namespace"], owner)] if owner else ()

    def reconcile(self, key: Key, now: datetime) -> None:
        job = found(self.objects, *key)
        pods = self.objects.list("pods", key[1], {"batch.kubernetes.io/job-name": key[2]})
        alive = job is not None and not leaving(job)
        if job is not None and alive and not pods:
            self._make(job, now)
        elif job is not None and alive:
            self._count(job, pods[0], now)
        for pod in pods:
            counted = not alive or pod["status"]["phase"] in ("Succeeded", "Failed")
            if counted and TRACKED in pod["metadata"].get("finalizers", []):
                pod["metadata"]["finalizers"].remove(TRACKED)
                self.objects.replace("pods", pod)

    def _make(self, job: Made, now: datetime) -> None:
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        template = copied(job["spec"]["template"])
        labels = {"batch.kubernetes.io/job-name": name, "job-name": name}
        labels |= {"batch.kubernetes.io/controller-uid": uid, "controller-uid": uid}
        meta = {"generateName": f"{name}-", "namespace": job["metadata"]["namespace"], "finalizers": [TRACKED]}
        meta |= {"labels": {**template.get("metadata", {}).get("labels", {}), **labels}, "ownerReferences": owned(job)}
        pod = self.objects.create("pods", {"metadata": meta, "spec": template["spec"]})
        tell(self.objects, job, now, BY, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")

    def _count(self, job: Made, pod: Made, now: datetime) -> None:
        status: dict[str, Any] = {"startTime": job.get("status", {}).get("startTime", stamp(now))}
        phase = pod["status"]["phase"]
        if phase in ("Pending", "Running"):
            status |= {"active": 1, "ready": int(phase == "Running")}
        else:
            good = phase == "Succeeded"
            status |= {"succeeded": 1, "completionTime": stamp(now)} if good else {"failed": 1}
            reason = "CompletionsReached" if good else "BackoffLimitExceeded"
            put_condition(status, now, "Complete" if good else "Failed", True, reason, "")
        old = {name: value for name, value in job.get("status", {}).items() if name != "completionTime"}
        if old != {name: value for name, value in status.items() if name != "completionTime"}:
            self.objects.replace_status("jobs", copied(job) | {"status": status})
            if "completionTime" in status:
                tell(self.objects, job, now, BY, "Completed", "Job completed")
