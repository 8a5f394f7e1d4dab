"""KubeRay 1.7's RayJob controller, with the pains that JOS has to live with.

A status is written only when the job's status, the deployment's or the cluster's changed; a job that the head does not
know is submitted, the second time too; a suspended, failed or overdue job is not stopped, its cluster is deleted.
HTTPMode and K8sJobMode; any other word is taken and leads nowhere, as in the real one.
May import: kube.objects, kube.parts, kube.rayclusters, kube.standins. Tests: tests/contract/test_fake_kuberay.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

import yaml

from kube.environment import environment
from kube.kubelet import Kubelet
from kube.objects import Objects
from kube.parts import Made, controller_of, found, is_true, leaving, moment, owned, stamp, suffix, tell
from kube.rayclusters import head_service
from kube.rayjob_rules import (
    as_go_writes,
    blank,
    counted,
    deadlines,
    invalid,
    overdue,
    slow_to_run,
    sooner,
    submitter_template,
    suspends,
    unstamped,
    until,
)
from kube.shelf import Change, Key, copied
from kube.standins import JobNotFound, RayClusterStandIn, Unreachable

BY = "rayjob-controller"
FINALIZER = "ray.io/rayjob-finalizer"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
MULTIKUEUE = "kueue.x-k8s.io/multikueue"
ORIGIN = {"ray.io/originated-from-crd": "RayJob"}


@dataclass(frozen=True)
class Waits:
    """How long the operator waits, seconds: its environment and its code say so."""

    poll: float = 3.0  # between looks at a running job
    status_check_timeout: float = 300.0  # a head that does not answer; RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS


class RayJobs:
    """`standin` is what the jobs are submitted to; `kubelet` knows the head pods' variables and when they die."""

    resources = ("rayjobs",)

    def __init__(self, objects: Objects, standin: RayClusterStandIn, kubelet: Kubelet, waits: Waits) -> None:
        self.objects, self.standin, self.kubelet, self.waits = objects, standin, kubelet, waits
        self.of_submission: dict[str, Key] = {}  # submission id -> RayJob
        self._submitted: dict[tuple[str, str], str] = {}  # namespace, cluster -> submission id
        kubelet.gone.append(self._head_gone)

    def concerned(self, change: Change) -> Iterable[Key]:
        meta = change.obj["metadata"]
        if change.resource == "rayjobs":
            return [("rayjobs", meta["namespace"], meta["name"])]
        if change.resource not in ("rayclusters", "jobs"):
            return ()
        owner = controller_of(change.obj, "RayJob")
        return [("rayjobs", meta["namespace"], owner)] if owner else ()

    def reconcile(self, key: Key, now: datetime) -> float | None:
        job = found(self.objects, *key)
        if job is None or job["spec"].get("managedBy") == MULTIKUEUE:
            return None
        if leaving(job):
            self._let_go(job)
            return None
        old = job.get("status", {})
        if why := invalid(job):
            self._refuse(job, why, now)
            return None
        job, new = copied(job), copied(old)
        again = self._states[old.get("jobDeploymentStatus", "")](self, job, new, now)
        counted(job, new, now)
        self._write(job, old, new)
        return again

    def _write(self, job: Made, old: Made, new: Made) -> None:
        told = ("jobStatus", "jobDeploymentStatus", "jobStatusCheckFailureStartTime")
        clusters = [unstamped(status.get("rayClusterStatus", {})) for status in (old, new)]
        if any(old.get(name) != new.get(name) for name in told) or clusters[0] != clusters[1]:
            self.objects.replace_status("rayjobs", job | {"status": new})

    # --- its end ---

    def _let_go(self, job: Made) -> None:
        """A RayJob that is deleted is stopped in Ray first, if its head still answers."""
        if FINALIZER not in job["metadata"].get("finalizers", []):
            return
        status = job.get("status", {})
        if status.get("jobStatus") not in ENDED and status.get("jobId") and self._answers(job):
            self.standin.stop(status["jobId"])
        changed = copied(job)
        changed["metadata"]["finalizers"].remove(FINALIZER)
        self.objects.replace("rayjobs", changed)

    def _refuse(self, job: Made, why: str, now: datetime) -> None:
        if job.get("status", {}).get("jobDeploymentStatus") == "ValidationFailed":
            return
        told = f"{job['metadata']['namespace']}/{job['metadata']['name']}: {why}"
        tell(self.objects, job, now, BY, "InvalidRayJobSpec", told, "Warning")
        status = blank() | {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": why}
        self.objects.replace_status("rayjobs", copied(job) | {"status": status})

    # --- its states: each changes `new`, the status to come ---

    def _begin(self, job: Made, new: Made, now: datetime) -> None:
        meta = job["metadata"]
        if FINALIZER not in meta.get("finalizers", []):
            meta.setdefault("finalizers", []).append(FINALIZER)
            as_go_writes(job["spec"])
            job.update(self.objects.replace("rayjobs", job))
        for name, value in blank().items():
            new.setdefault(name, value)
        new.setdefault("jobId", job["spec"].get("jobId") or f"{meta['name']}-{suffix()}")
        new.setdefault("rayClusterName", f"{meta['name']}-{suffix()}")
        new |= {"jobDeploymentStatus": "Initializing", "startTime": stamp(now)}

    def _initialize(self, job: Made, new: Made, now: datetime) -> float | None:
        if suspends(job, new) or overdue(job, new, now) or slow_to_run(job, new, now):
            return None
        cluster = self._cluster(job, new["rayClusterName"], now)
        if cluster.get("status", {}).get("state") != "ready":
            if "status" in cluster:
                new["rayClusterStatus"] = copied(cluster["status"])
            return until(deadlines(job, new), now)
        mode = job["spec"].get("submissionMode", "K8sJobMode")
        if mode == "K8sJobMode":
            self._make_submitter(job, now)
        host = f"{new['rayClusterName']}-head-svc.{job['metadata']['namespace']}.svc.cluster.local:8265"
        new |= {"dashboardURL": self.standin.dashboard or host, "jobDeploymentStatus": "Running"}
        return 0.0

    def _run(self, job: Made, new: Made, now: datetime) -> float | None:
        if suspends(job, new) or overdue(job, new, now):
            return None
        self._serve(job, new["rayClusterName"], now)
        self.of_submission[new["jobId"]] = ("rayjobs", job["metadata"]["namespace"], job["metadata"]["name"])
        mode = job["spec"].get("submissionMode", "K8sJobMode")
        ended = mode != "K8sJobMode" or self._submitter_ended(job, new)
        if new["jobDeploymentStatus"] == "Failed":
            return None
        cluster = self._cluster(job, new["rayClusterName"], now)
        try:
            if not self._answers(job):
                raise Unreachable
            seen = self.standin.status(new["jobId"])
        except JobNotFound:
            if mode == "HTTPMode":
                self._submit(job, new["jobId"], new["rayClusterName"])
                return 0.0
            return self.waits.poll
        except Unreachable:
            self._unanswered(new, now)
            return None if new["jobDeploymentStatus"] == "Failed" else self.waits.poll
        new.pop("jobStatusCheckFailureStartTime", None)
        info = {"startTime": seen.started, "endTime": seen.ended}
        new["rayJobInfo"] = {name: stamp(at) for name, at in info.items() if at is not None}
        new |= {"jobStatus": seen.status, "message": seen.message}
        new["rayClusterStatus"] = copied(cluster.get("status", {}))
        if seen.status in ENDED and ended:
            failed = seen.status == "FAILED"
            new |= {"jobDeploymentStatus": "Failed" if failed else "Complete"} | (
                {"reason": "AppFailed"} if failed else {}
            )
        return sooner(self.waits.poll, until(deadlines(job, new), now))

    def _clear(self, job: Made, new: Made, now: datetime) -> float | None:
        """Suspending and Retrying: the cluster goes, and with it all that is known of this run."""
        if self._delete_cluster(job, new.get("rayClusterName"), now):
            return 0.0
        was = new["jobDeploymentStatus"]
        for name in (
            "jobId",
            "rayClusterName",
            "dashboardURL",
            "message",
            "reason",
            "jobStatus",
            "jobDeploymentStatus",
        ):
            new.pop(name, None)
        new |= {name: value for name, value in blank().items() if name in ("rayJobInfo", "rayClusterStatus")}
        if was == "Suspending":
            new["jobDeploymentStatus"] = "Suspended"
        return None

    def _rest(self, job: Made, new: Made, now: datetime) -> None:
        if not job["spec"].get("suspend"):
            new.pop("jobDeploymentStatus")

    def _finish(self, job: Made, new: Made, now: datetime) -> float | None:
        if not job["spec"].get("shutdownAfterJobFinishes"):
            return None
        over = moment(new["endTime"]) + timedelta(seconds=job["spec"].get("ttlSecondsAfterFinished", 0))
        if now < over:
            return (over - now).total_seconds()
        self._delete_cluster(job, new.get("rayClusterName"), now)
        return None

    def _valid_again(self, job: Made, new: Made, now: datetime) -> None:
        """Its spec was mended."""
        new.clear()
        new |= blank()

    _states: ClassVar[dict[str, Callable[[RayJobs, Made, Made, datetime], float | None]]] = {
        "": _begin,
        "Initializing": _initialize,
        "Running": _run,
        "Suspending": _clear,
        "Retrying": _clear,
        "Suspended": _rest,
        "Complete": _finish,
        "Failed": _finish,
        "ValidationFailed": _valid_again,
    }

    # --- the cluster ---

    def _cluster(self, job: Made, name: str, now: datetime) -> Made:
        meta = job["metadata"]
        cluster = found(self.objects, "rayclusters", meta["namespace"], name)
        if cluster is not None:
            return cluster
        mode = job["spec"].get("submissionMode", "K8sJobMode")
        labels = {**meta.get("labels", {}), **ORIGIN, "ray.io/originated-from-cr-name": meta["name"]}
        labels["ray.io/job-submission-mode"] = mode
        made_meta: Made = {
            "name": name,
            "namespace": meta["namespace"],
            "labels": labels,
            "ownerReferences": owned(job),
        }
        if meta.get("annotations"):
            made_meta["annotations"] = dict(meta["annotations"])
        made = {"metadata": made_meta, "spec": job["spec"]["rayClusterSpec"]}
        cluster = self.objects.create("rayclusters", made)
        tell(self.objects, job, now, BY, "CreatedRayCluster", f"Created RayCluster {meta['namespace']}/{name}")
        return cluster

    def _delete_cluster(self, job: Made, name: str | None, now: datetime) -> bool:
        """Whether it was still there."""
        namespace = job["metadata"]["namespace"]
        if not name or found(self.objects, "rayclusters", namespace, name) is None:
            return False
        self.objects.delete("rayclusters", namespace, name)
        tell(self.objects, job, now, BY, "DeletedRayCluster", f"Deleted cluster {namespace}/{name}")
        return True

    def _serve(self, job: Made, cluster: str, now: datetime) -> None:
        """The job's own service follows its present cluster."""
        meta = job["metadata"]
        name = f"{meta['name']}-head-svc"
        selector = {"app.kubernetes.io/created-by": "kuberay-operator", "app.kubernetes.io/name": "kuberay"}
        selector |= {
            "ray.io/cluster": cluster,
            "ray.io/identifier": f"{cluster}-head"[-63:],
            "ray.io/node-type": "head",
        }
        service = found(self.objects, "services", meta["namespace"], name)
        if service is None:
            labels = {**ORIGIN, "ray.io/originated-from-cr-name": meta["name"], "ray.io/node-type": "head"}
            labels["ray.io/identifier"] = f"{meta['name']}-head"[-63:]
            made: Made = {"metadata": {"name": name, "namespace": meta["namespace"], "labels": labels}}
            made["metadata"]["ownerReferences"] = owned(job)
            self.objects.create("services", made | {"spec": head_service(selector)})
            tell(self.objects, job, now, BY, "CreatedService", f"Created the service {meta['namespace']}/{name}")
        elif service["spec"]["selector"] != selector:
            changed = copied(service)
            changed["spec"]["selector"] = selector
            self.objects.replace("services", changed)
            tell(self.objects, job, now, BY, "UpdatedService", f"Updated the service {meta['namespace']}/{name}")

    # --- the Ray job ---

    def _head(self, job: Made) -> Made | None:
        """The head pod, if it is up."""
        cluster = found(
            self.objects, "rayclusters", job["metadata"]["namespace"], job["status"].get("rayClusterName", "")
        )
        name = (cluster or {}).get("status", {}).get("head", {}).get("podName", "")
        pod = found(self.objects, "pods", job["metadata"]["namespace"], name)
        return pod if pod is not None and is_true(pod, "Ready") else None

    def _answers(self, job: Made) -> bool:
        return not self.standin.follows_pods or self._head(job) is not None

    def _submit(self, job: Made, submission_id: str, cluster: str) -> None:
        pod = self._head(job)
        if pod is None and self.standin.follows_pods:
            return  # it died while it was asked
        env = environment(self.objects, pod, pod["spec"]["containers"][0]) if pod else {}
        runtime_env: dict[str, Any] = yaml.safe_load(job["spec"].get("runtimeEnvYAML") or "{}")
        self._submitted[job["metadata"]["namespace"], cluster] = submission_id
        self.standin.submit(submission_id, job["spec"]["entrypoint"], env, runtime_env, job["spec"].get("metadata", {}))
        if (
            pod is not None
            and found(self.objects, "pods", pod["metadata"]["namespace"], pod["metadata"]["name"]) is None
        ):
            self.standin.head_gone(submission_id)  # it died meanwhile, and took the job along

    def _head_gone(self, pod: Made) -> None:
        labels = pod["metadata"].get("labels", {})
        if labels.get("ray.io/node-type") == "head":
            submission_id = self._submitted.get((pod["metadata"]["namespace"], labels.get("ray.io/cluster", "")))
            if submission_id is not None:
                self.standin.head_gone(submission_id)

    def _unanswered(self, new: Made, now: datetime) -> None:
        since = moment(new.setdefault("jobStatusCheckFailureStartTime", stamp(now)))
        if now - since >= timedelta(seconds=self.waits.status_check_timeout):
            message = f"The Ray job's status could not be checked for {self.waits.status_check_timeout:.0f} seconds"
            new |= {"jobDeploymentStatus": "Failed", "reason": "JobStatusCheckTimeoutExceeded", "message": message}

    # --- the submitter of K8sJobMode ---

    def _make_submitter(self, job: Made, now: datetime) -> None:
        meta = job["metadata"]
        if found(self.objects, "jobs", meta["namespace"], meta["name"]) is not None:
            return
        labels = {**ORIGIN, "ray.io/originated-from-cr-name": meta["name"]}
        labels["app.kubernetes.io/created-by"] = "kuberay-operator"
        template = copied(job["spec"].get("submitterPodTemplate")) or submitter_template(job)
        template.setdefault("metadata", {})["labels"] = {**template.get("metadata", {}).get("labels", {}), **labels}
        spec = {"backoffLimit": job["spec"].get("submitterConfig", {}).get("backoffLimit", 2), "template": template}
        made: Made = {"name": meta["name"], "namespace": meta["namespace"], "labels": labels}
        self.objects.create("jobs", {"metadata": made | {"ownerReferences": owned(job)}, "spec": spec})
        told = f"Created Kubernetes Job {meta['namespace']}/{meta['name']}"
        tell(self.objects, job, now, BY, "CreatedRayJobSubmitter", told)

    def _submitter_ended(self, job: Made, new: Made) -> bool:
        submitter = found(self.objects, "jobs", job["metadata"]["namespace"], job["metadata"]["name"]) or {}
        if is_true(submitter, "Failed"):
            message = "Job submission has failed: the submitter Kubernetes Job reached its backoff limit"
            new |= {"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed", "message": message}
        return is_true(submitter, "Complete")
