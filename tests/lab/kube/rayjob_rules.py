"""What KubeRay's RayJob controller decides, as functions over plain data: refusals, deadlines, counts, blank statuses.

May import: kube.parts. Tests: tests/contract/test_fake_kuberay.py, …_pains.py.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import yaml

from kube.parts import Made, moment, stamp

LONGEST_NAME = 47
NO_RETRY = ("DeadlineExceeded", "JobStatusCheckTimeoutExceeded")


def invalid(job: Made) -> str | None:
    """Why the operator refuses the spec, in its words."""
    spec, name = job["spec"], job["metadata"]["name"]
    start = "The RayJob spec is invalid: "
    if len(name) > LONGEST_NAME:
        return f"The RayJob metadata is invalid: RayJob name should be no more than {LONGEST_NAME} characters"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        return f"{start}a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        return f"{start}TTLSecondsAfterFinished must be a non-negative integer"
    if not spec.get("rayClusterSpec"):
        return f"{start}one of RayClusterSpec or ClusterSelector must be set"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            return f"{start}{field} must be a positive integer"
    if spec.get("backoffLimit", 0) < 0:
        return f"{start}backoffLimit must be a positive integer"
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML") or "")
    except yaml.YAMLError as error:
        return f"error unmarshaling RuntimeEnvYAML: {error}"
    return None


def blank() -> Made:
    """The status of a job of which nothing is known."""
    zeroes = dict.fromkeys(("desiredCPU", "desiredGPU", "desiredMemory", "desiredTPU"), "0")
    return {"failed": 0, "succeeded": 0, "rayJobInfo": {}, "rayClusterStatus": {**zeroes, "head": {}}}


def suspends(job: Made, new: Made) -> bool:
    if job["spec"].get("suspend"):
        new["jobDeploymentStatus"] = "Suspending"
    return bool(job["spec"].get("suspend"))


def overdue(job: Made, new: Made, now: datetime) -> bool:
    return _passed("activeDeadlineSeconds", "DeadlineExceeded", job, new, now)


def slow_to_run(job: Made, new: Made, now: datetime) -> bool:
    return _passed("preRunningDeadlineSeconds", "PreRunningDeadlineExceeded", job, new, now)


def _passed(field: str, reason: str, job: Made, new: Made, now: datetime) -> bool:
    seconds = job["spec"].get(field)
    if seconds is None or now < moment(new["startTime"]) + timedelta(seconds=seconds):
        return False
    started = moment(new["startTime"]).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
    message = f"The RayJob has passed the {field}. StartTime: {started}. {field[0].upper()}{field[1:]}: {seconds}"
    new |= {"jobDeploymentStatus": "Failed", "reason": reason, "message": message}
    return True


def deadlines(job: Made, new: Made) -> list[datetime]:
    fields = ["activeDeadlineSeconds"]
    fields += ["preRunningDeadlineSeconds"] if new["jobDeploymentStatus"] == "Initializing" else []
    start = moment(new["startTime"])
    return [start + timedelta(seconds=job["spec"][field]) for field in fields if field in job["spec"]]


def until(times: list[datetime], now: datetime) -> float | None:
    return min((max((at - now).total_seconds(), 0.0) for at in times), default=None)


def sooner(one: float, other: float | None) -> float:
    return one if other is None else min(one, other)


def counted(job: Made, new: Made, now: datetime) -> None:
    """Counts an end; a failure that may be retried becomes Retrying."""
    status = new.get("jobDeploymentStatus")
    if "endTime" in new or status not in ("Complete", "Failed"):
        return
    if status == "Complete":
        new["succeeded"] += new.get("jobStatus") == "SUCCEEDED"
    else:
        new["failed"] += 1
        if new["reason"] not in NO_RETRY and new["failed"] <= job["spec"].get("backoffLimit", 0):
            new["jobDeploymentStatus"] = "Retrying"
            return
    new["endTime"] = stamp(now)


def unstamped(status: Made) -> Made:
    return {name: value for name, value in status.items() if name not in ("lastUpdateTime", "observedGeneration")}


def as_go_writes(spec: Made) -> None:
    """The empty objects that the operator's own types add whenever it writes a whole RayJob."""
    cluster = spec.get("rayClusterSpec", {})
    cluster["headGroupSpec"]["template"].setdefault("metadata", {})
    for group in cluster.get("workerGroupSpecs", []):
        group.setdefault("scaleStrategy", {})
        group["template"].setdefault("metadata", {})


def submitter_template(job: Made) -> Made:
    image = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    resources = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "200Mi"}}
    container = {"name": "ray-job-submitter", "image": image, "resources": resources}
    return {"spec": {"restartPolicy": "Never", "containers": [container]}}
