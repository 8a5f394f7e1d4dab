"""What is true of one attempt's driver, from the Kubernetes objects of its RayJob.

KubeRay's `jobStatus` alone is not believed: it stays RUNNING when the head dies, at a deadline, and when the cluster is
suspended. `jobDeploymentStatus` and `reason` come first, then the head pod, then the rest.
Pure: objects and the time go in, a DriverSeen comes out. May import: stdlib, jos.core.commands, jos.launch.
Tests: tests/unit/test_rayjob_truth.py, with recordings of a real KubeRay and Kueue.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from jos.core.commands import Reason
from jos.launch import pods
from jos.launch.base import DriverSeen, Waits
from jos.launch.kueue_says import eviction, kueue_says, kueue_words, overlooked
from jos.launch.pods import Object
from jos.launch.rayjob import TOKEN, kubernetes_name

HEADLESS = timedelta(seconds=10)  # so long a running job may have no head pod that we know of: watches differ in pace

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

_SUSPENDED = "Somebody suspended its RayJob (spec.suspend)."
_ENDED = {
    "SubmissionFailed": "KubeRay could not hand the driver to Ray.",
    "DeadlineExceeded": "Its RayJob ran for longer than its activeDeadlineSeconds.",
    "JobDeploymentStatusTransitionGracePeriodExceeded": "Ray says that the driver ended, and KubeRay missed it.",
    "JobStatusCheckTimeoutExceeded": "The head of its Ray cluster did not answer KubeRay for minutes.",
    "ValidationFailed": "KubeRay refuses its RayJob: it is older than 1.7, or something changed what JOS wrote.",
}


@dataclass(frozen=True)
class Evidence:
    """The objects of one attempt at one moment."""

    rayjob: Object
    cluster: Object | None = None
    pods: Sequence[Object] = ()  # of that cluster
    dead_head: Object | None = None  # the last head pod of that cluster that was deleted, as it was last seen
    workload: Object | None = None  # Kueue's
    headless_since: datetime | None = None  # it runs, but no head pod is known
    waited: Waits | None = None  # what it was last known to wait for


def driver_name(rayjob: Object) -> str:
    """What JOS calls the driver: Ray's submission id. A copy that somebody made of a RayJob is not its driver."""
    submission, name = str(rayjob["spec"].get("jobId") or ""), str(rayjob["metadata"]["name"])
    return submission if kubernetes_name(submission) == name else name


def token(rayjob: Object) -> str:
    """Of the attempt that it was made for; empty: nobody knows."""
    return str((rayjob["metadata"].get("annotations") or {}).get(TOKEN, ""))


def truth(evidence: Evidence, now: datetime) -> DriverSeen:
    return replace(_truth(evidence, now), evicted=eviction(evidence.workload), token=token(evidence.rayjob))


def _truth(evidence: Evidence, now: datetime) -> DriverSeen:
    status = _status(evidence.rayjob)
    name = driver_name(evidence.rayjob)
    started = pods.time((status.get("rayJobInfo") or {}).get("startTime"))
    if (message := _end(evidence, now)) is not None:
        return DriverSeen(name, "ended", message, _exit_code(status), started)
    if suspended(evidence.rayjob):
        words = _SUSPENDED if _by_somebody(evidence) else ""
        return DriverSeen(name, "starting", words, waits=_waits_suspended(evidence, now), suspended=True)
    if runs(evidence.rayjob):
        return DriverSeen(name, "running", started_at=started)
    return DriverSeen(name, "starting", waits=_waits(evidence, now))


def steady(evidence: Evidence, seen: DriverSeen) -> bool:
    """Whether this stays true until something changes, however long that takes."""
    if seen.suspended:
        return kueue_words(evidence.workload) is not None
    head = _head(evidence)
    alive = head is not None and "deletionTimestamp" not in head["metadata"]
    return seen.state == "ended" or (seen.state == "running" and alive)


def suspended(rayjob: Object) -> bool:
    """Its place was taken away, or it was not given one yet. Kueue's order counts before KubeRay has obeyed it."""
    return bool(rayjob["spec"].get("suspend")) or _deployment(rayjob) in ("Suspending", "Suspended")


def runs(rayjob: Object) -> bool:
    """Ray has started the driver, and KubeRay does not say that it ended; it may be dead with its head all the same."""
    return _deployment(rayjob) == "Running" and _status(rayjob).get("jobStatus") not in (None, "", "PENDING")


def headless(evidence: Evidence) -> bool:
    """It runs, and no head pod of its cluster is known."""
    return runs(evidence.rayjob) and not suspended(evidence.rayjob) and _head(evidence) is None


def is_over(rayjob: Object) -> bool:
    """As KubeRay sees it, which then has ended its cluster, too."""
    return _deployment(rayjob) in ("Complete", "Failed", "ValidationFailed")


def ended_at(rayjob: Object) -> datetime | None:
    return pods.time(_status(rayjob).get("endTime"))


def admitted(evidence: Evidence) -> bool:
    """Kueue holds capacity for it."""
    workload = evidence.workload
    return workload is not None and pods.holds(workload, "Admitted") and not pods.holds(workload, "Evicted")


def _status(rayjob: Object) -> Object:
    return rayjob.get("status") or {}


def _deployment(rayjob: Object) -> str:
    return str(_status(rayjob).get("jobDeploymentStatus") or "")


def _head(evidence: Evidence) -> Object | None:
    return next((pod for pod in evidence.pods if pods.is_head(pod)), None)


# --- ended --------------------------------------------------------------------------------------------


def _end(evidence: Evidence, now: datetime) -> str | None:
    """Why it ended; None: it did not."""
    status, deployment = _status(evidence.rayjob), _deployment(evidence.rayjob)
    said = str(status.get("message") or "")
    if deployment == "Complete":
        return _complete(str(status.get("jobStatus") or ""), said)
    if deployment in ("Failed", "ValidationFailed"):
        return _failed(evidence, str(status.get("reason") or ""), said, now)
    if deployment == "Retrying" or (status.get("failed") or 0) > 0:  # its words are wiped when the next one starts
        again = "The driver failed, and KubeRay starts another one, which JOS did not ask for (backoffLimit)."
        return (said if deployment == "Retrying" else "") or again
    if runs(evidence.rayjob) and not suspended(evidence.rayjob):
        return _beheaded(evidence, now)
    return None


def _complete(job_status: str, said: str) -> str:
    if job_status == "STOPPED":
        return said or "The driver was stopped."
    return said or "The driver ended."


def _failed(evidence: Evidence, reason: str, said: str, now: datetime) -> str:
    if reason == "AppFailed":
        return said or "The driver failed."
    if reason == "PreRunningDeadlineExceeded":
        seconds = evidence.rayjob["spec"].get("preRunningDeadlineSeconds")
        waits = _trouble(evidence) or evidence.waited
        last = f" The last that was seen: {waits.message}" if waits is not None else ""
        return f"Its pods were not up within {seconds or '?'} s (preRunningDeadlineSeconds).{last}"
    words = _ENDED.get(reason, f"KubeRay gave it up ({reason or 'for no reason'}).")
    head = _head(evidence) or evidence.dead_head
    died = None if head is None else pods.death(head, now)
    return " ".join(filter(None, (words, said, died)))


def _beheaded(evidence: Evidence, now: datetime) -> str | None:
    """How its head died, and its driver with it, whatever KubeRay still says; None: the head lives."""
    head, dead = _head(evidence), evidence.dead_head
    since = pods.time((_status(evidence.rayjob).get("rayJobInfo") or {}).get("startTime"))
    if dead is not None:
        why = pods.killed_at(dead)
        where = f" on node {pods.node(dead)}" if pods.node(dead) else ""
        return f"The head pod {pods.name(dead)} was deleted{where}{f' ({why})' if why else ''}: its driver is lost."
    if head is None:
        long_ago = evidence.headless_since is not None and now - evidence.headless_since >= HEADLESS
        return "The head pod of its Ray cluster is gone: its driver is lost." if long_ago else None
    if (died := pods.death(head, now)) is not None:
        return died
    return pods.restarted(head, since) if since is not None else None


def _exit_code(status: Object) -> int | None:
    if status.get("jobDeploymentStatus") == "Complete" and status.get("jobStatus") == "SUCCEEDED":
        return 0
    found = re.search(r"failed with exit code (-?\d+)", str(status.get("message") or "")[:500])
    return int(found[1]) if found else None


# --- not running yet ----------------------------------------------------------------------------------


def _waits_suspended(evidence: Evidence, now: datetime) -> Waits:
    if _by_somebody(evidence):
        return Waits(Reason.WAITING_FOR_OPERATOR, f"{_SUSPENDED} It starts when that is taken back.")
    if admitted(evidence):
        return Waits(Reason.WAITING_FOR_OPERATOR, "Kueue admitted it; KubeRay is about to make its pods.")
    said = kueue_says(evidence.rayjob, evidence.workload, now)
    return Waits(Reason.WAITING_IN_KUEUE, said or "Kueue is about to look at it.")


def _by_somebody(evidence: Evidence) -> bool:
    """Suspended by a person, and not by Kueue."""
    return evidence.workload is None and QUEUE_LABEL not in pods.labels(evidence.rayjob)


def _waits(evidence: Evidence, now: datetime) -> Waits:
    deployment = _deployment(evidence.rayjob)
    if deployment == "":
        return _unseen(evidence, now)
    if deployment != "Initializing":
        return Waits(Reason.WAITING_FOR_RAY, "Its pods are up; Ray starts the driver.")
    return _trouble(evidence) or _coming(evidence)


def _unseen(evidence: Evidence, now: datetime) -> Waits:
    namespace = evidence.rayjob["metadata"].get("namespace", "?")
    late = ""
    if not _status(evidence.rayjob):
        late = overlooked(evidence.rayjob, now, "KubeRay", f"its operator runs and watches namespace {namespace}")
    return Waits(Reason.WAITING_FOR_OPERATOR, late or "KubeRay is about to look at its RayJob.")


def _trouble(evidence: Evidence) -> Waits | None:
    """The first thing that will not mend itself, or not soon: the head's before the workers'."""
    if evidence.cluster is not None and (refused := _refused(evidence.cluster)) is not None:
        return refused
    found = (pods.fault(pod) for pod in _in_order(evidence.pods))
    return next((waits for waits in found if waits is not None), None)


def _refused(cluster: Object) -> Waits | None:
    """Pods that the API server did not let KubeRay make."""
    failure = pods.condition(cluster, "ReplicaFailure")
    if failure.get("status") != "True":
        return None
    said = " ".join(str(failure.get("message") or failure.get("reason") or "").split())[:600]
    if "exceeded quota" in said or "must specify" in said:
        advice = "Raise the namespace's ResourceQuota, or wait until other pods there have ended."
        return Waits(Reason.CLUSTER_QUOTA, f"The quota of the namespace refuses its pods: {said} {advice}")
    return Waits(Reason.PODS_REFUSED, f"The cluster refuses its pods: {said}")


def _coming(evidence: Evidence) -> Waits:
    """How far its pods are, when nothing is wrong with them."""
    known = _in_order(evidence.pods)
    late = [pod for pod in known if not pods.is_ready(pod)]
    head = _head(evidence)
    if head is None:
        return Waits(Reason.WAITING_FOR_HEAD, "KubeRay is making its Ray cluster; there is no head pod yet.")
    if late and (making := pods.progress(late[0])) is not None:
        return making
    if head in late:
        where = f" on node {pods.node(head)}" if pods.node(head) else ""
        return Waits(Reason.WAITING_FOR_HEAD, f"Head pod {pods.name(head)} is starting{where}.")
    if late:
        ready = len(known) - len(late)
        return Waits(
            Reason.WAITING_FOR_WORKERS, f"{ready} of {len(known)} pods are ready; {pods.name(late[0])} is starting."
        )
    if _workers_wanted(evidence) > len(known) - 1:
        return Waits(Reason.WAITING_FOR_WORKERS, "The head is ready; KubeRay is making the pods of its indexes.")
    return Waits(Reason.WAITING_FOR_RAY, "Its pods are ready; KubeRay is about to hand the driver to Ray.")


def _in_order(found: Sequence[Object]) -> list[Object]:
    return sorted(found, key=lambda pod: (not pods.is_head(pod), pods.name(pod)))


def _workers_wanted(evidence: Evidence) -> int:
    status = (evidence.cluster or {}).get("status") or {}
    return int(status.get("desiredWorkerReplicas") or 0)
