"""The RayJob of one attempt: KubeRay starts a Ray cluster from it, and the driver on the cluster's head.

One index stands in one pod of just its size, so that Kubernetes packs nodes, counts quotas and scales node pools by
what is really used. Only indexes that need a part of a GPU or CPU share a pod, for Kubernetes has no parts of a GPU
and Ray none of a node's CPU. All indexes of a job need the same, so there is one worker group.
May import: stdlib, yaml, jos.core, jos.launch.{kube_profile,quantities}. Tests: tests/unit/test_rayjob.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from jos.core.errors import ConfigInvalid, Violation
from jos.core.model import Job, Json, Pipeline, Resources
from jos.launch.kube_profile import PAGE, GpuNodes, KubeProfile
from jos.launch.quantities import in_bytes, of_bytes, of_cpus
from jos.launch.rayjob_pods import NodesWanted, Pod, autoscaler_options, pod_template

PREFIX = "jos-"
MANAGED_BY = "app.kubernetes.io/managed-by"
JOB, ATTEMPT, ORG = "jos.dev/job", "jos.dev/attempt", "jos.dev/org"
QUEUE, INSTALLATION, TOKEN = "jos.dev/queue", "jos.dev/installation", "jos.dev/token"
KUEUE_QUEUE, KUEUE_PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
NO_HEAD_RESTART = "ray.io/disable-provisioned-head-restart"
MOST_NAME = 47  # KubeRay's limit: it adds to a RayJob's name to make others
MOST_LABEL = 63
OBJECT_STORE_BYTES = "100000000"  # JOS sends no data through Ray; it lies in /dev/shm
STOP_SECONDS = 5  # that Ray gives a driver beyond its drain

_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?0[xob][0-9a-fA-F_]+")
_RAYJOB_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUEUE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a RayJob is made from, besides the profile."""

    name: str  # of the driver: Ray's submission id, and with - for _ the name in Kubernetes
    entrypoint: str
    pipeline_key: str
    image: str | None
    resources: Resources  # of one index
    indexes: int  # the most there may be at a time
    drain: float  # seconds
    queue: str
    priority: int
    labels: Mapping[str, str]
    annotations: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)  # shown in Ray's dashboard
    job_file: str | None = None  # the ConfigMap that the head finds in /etc/jos


def driver_name(job_id: str, number: int) -> str:
    return f"{PREFIX}{job_id}-{number}"


def kubernetes_name(driver: str) -> str:
    return driver.replace("_", "-")


def installation(storage_url: str) -> str:
    """Several installations of JOS may share a namespace; what lies in one storage root is one installation."""
    return hashlib.sha256(storage_url.encode()).hexdigest()[:8]


def label_value(text: str) -> str:
    """The text itself where it can be a label's value, else what is readable of it and a part of its hash."""
    if len(text) <= MOST_LABEL and _LABEL.fullmatch(text):
        return text
    readable = re.sub(r"[^-A-Za-z0-9_.]+", "-", text)[: MOST_LABEL - 9].strip("-_.")
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("-")


def rayjob(job: Job, pipeline: Pipeline, profile: KubeProfile, *, token: str, number: int, installation: str) -> Json:
    """The RayJob of a job's attempt, the present one or (for another system's queue) the next. Pods stand for the
    indexes that the attempt was granted, and where workers are elastic for all that it may be granted later.
    Raises ConfigInvalid where the profile has no answer to what the pipeline asks for."""
    name = driver_name(job.id, number)
    granted = job.attempt.indexes if job.attempt and job.attempt.token == token else None
    most = job.parallelism if profile.elastic else granted or job.parallelism
    labels = {JOB: job.id, ATTEMPT: str(number), ORG: label_value(job.org_id), QUEUE: label_value(job.queue)}
    launch = Launch(
        name=name,
        entrypoint=shlex.join([*pipeline.command, "attempt", job.id, token, "--name", name]),
        pipeline_key=job.pipeline_key,
        image=pipeline.image,
        resources=job.resources,
        indexes=most,
        drain=job.timeouts.drain,
        queue=job.queue,
        priority=job.priority,
        labels=labels | {MANAGED_BY: "jos", INSTALLATION: installation},
        annotations={TOKEN: token},
        metadata={"job": job.id, "attempt": str(number), "org": job.org_id},
    )
    return manifest(launch, profile)


def manifest(launch: Launch, profile: KubeProfile) -> Json:
    name = kubernetes_name(launch.name)
    if len(name) > MOST_NAME or not _RAYJOB_NAME.fullmatch(name):
        raise ConfigInvalid(
            f"A RayJob cannot be called {name}.",
            [Violation("$.metadata.name", f"use a-z, 0-9 and -, at most {MOST_NAME} characters")],
        )
    labels = {**profile.labels, **launch.labels}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "namespace": profile.namespace,
            "labels": labels | kueue_labels(launch.queue, launch.priority, profile),
            "annotations": {**profile.annotations, **launch.annotations, NO_HEAD_RESTART: "true"},
        },
        "spec": {
            "submissionMode": "HTTPMode",
            "jobId": launch.name,
            "entrypoint": launch.entrypoint,
            **({"metadata": dict(launch.metadata)} if launch.metadata else {}),
            "backoffLimit": 0,
            "preRunningDeadlineSeconds": profile.pre_running_deadline_seconds,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": profile.ttl_seconds_after_finished,
            "rayClusterSpec": _cluster(launch, profile, labels),
        },
    }


def _cluster(launch: Launch, profile: KubeProfile, labels: Mapping[str, str]) -> Json:
    elastic = {"enableInTreeAutoscaling": True, "autoscalerOptions": autoscaler_options(profile)}
    return {
        "rayVersion": profile.ray_version,
        **(elastic if profile.elastic else {}),
        "headGroupSpec": _head(launch, profile, labels),
        "workerGroupSpecs": [_workers(launch, profile, labels)],
    }


def _head(launch: Launch, profile: KubeProfile, labels: Mapping[str, str]) -> Json:
    head = profile.head
    pod = Pod(
        container="ray-head",
        image=image_of(launch, profile),
        labels=labels,
        # the attempt ends with its head: nodes are not emptied for the sake of order
        annotations={
            **profile.annotations,
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        },
        resources={"cpu": head.cpu, "memory": head.memory, "ephemeral-storage": head.ephemeral_storage},
        shared_memory=head.shared_memory,
        nodes=NodesWanted.of(head),
        drain=launch.drain,
        env={"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(launch.drain) + STOP_SECONDS)},
        job_file=launch.job_file,
        autoscaler=profile.elastic,
    )
    return {
        "rayStartParams": {
            "dashboard-host": "0.0.0.0",
            "num-cpus": "0",  # no index runs here
            "num-gpus": "0",
            "object-store-memory": OBJECT_STORE_BYTES,
        },
        "template": pod_template(pod, profile),
    }


def _workers(launch: Launch, profile: KubeProfile, labels: Mapping[str, str]) -> Json:
    gpu = gpu_nodes(launch, profile)
    size = worker_size(launch.resources, profile, gpu, launch.indexes)
    pods = math.ceil(launch.indexes / size.indexes)
    # one stands from the start, for each attempt needs one, and the driver looks whether its cluster has GPUs;
    # a cluster is ready only with all that stand from the start
    least = 1 if profile.elastic else pods
    kind = launch.resources.gpu.type if gpu and launch.resources.gpu.type else "gpu" if gpu else "cpu"
    chosen = [profile.workers, *([gpu] if gpu else []), *([profile.spot] if profile.spot else [])]
    pod = Pod(
        container="ray-worker",
        image=image_of(launch, profile),
        labels=labels,
        annotations=profile.annotations,
        resources=size.pod,
        shared_memory=profile.workers.shared_memory,
        nodes=NodesWanted.of(*chosen),
        drain=launch.drain,
        runtime_class=gpu.runtime_class if gpu else None,
        spread_over=profile.workers.spread_over,
        spread_by=JOB,
    )
    return {
        "groupName": re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-") or "gpu",
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": pods,
        "numOfHosts": 1,
        "priority": 0,  # the CRD's default, written out: what compares file and cluster finds no difference
        "rayStartParams": size.ray,
        "template": pod_template(pod, profile),
    }


@dataclass(frozen=True)
class WorkerSize:
    """One worker pod."""

    indexes: int  # that fit in
    pod: dict[str, str]  # its resources in Kubernetes
    ray: dict[str, str]  # the same for `ray start`


def worker_size(resources: Resources, profile: KubeProfile, gpu: GpuNodes | None, most: int) -> WorkerSize:
    """What a pod for an index of these resources holds. Ray is told what the indexes may use, which is less memory
    than the pod has: Ray's own processes and the shared memory need some, too."""
    workers = profile.workers
    scarce = resources.gpu.count if gpu else resources.cpu
    together = min(max(1, math.floor(1 / scarce + 1e-9)), most)
    cpus, gpus = together * resources.cpu, math.ceil(together * resources.gpu.count - 1e-9) if gpu else 0
    memory = together * (resources.memory_bytes or in_bytes(workers.memory))
    pod = {
        "cpu": of_cpus(cpus),
        "memory": of_bytes(memory + in_bytes(workers.memory_overhead)),
        "ephemeral-storage": workers.ephemeral_storage,
    }
    ray = {
        "num-cpus": str(math.ceil(cpus - 1e-9)),
        "num-gpus": str(gpus),
        "memory": str(memory),
        "object-store-memory": OBJECT_STORE_BYTES,
    }
    if gpu:
        pod[gpu.resource] = str(gpus)
        if resources.gpu.type:  # Ray finds it out on the node, but its autoscaler must know before there is one
            ray["resources"] = f"'{json.dumps({f'accelerator_type:{resources.gpu.type}': 1})}'"
    return WorkerSize(together, pod, ray)


def gpu_nodes(launch: Launch, profile: KubeProfile) -> GpuNodes | None:
    """Where its GPUs are; None: its indexes run on CPUs."""
    gpu = launch.resources.gpu
    if not gpu.count or not (gpu.required or profile.optional_gpus):
        return None
    if gpu.type is None:
        return profile.any_gpu
    if gpu.type not in profile.gpus:
        known = ", ".join(profile.gpus) or "none"
        raise ConfigInvalid(
            f"Pipeline {launch.pipeline_key} needs a GPU of type {gpu.type}; the Kubernetes profile knows none.",
            [Violation(f"$.gpus.{gpu.type}", f"is missing; the profile has: {known}", "missing")],
            suggestion=f"Tell there how such nodes are found; see {PAGE}.",
        )
    return profile.gpus[gpu.type]


def image_of(launch: Launch, profile: KubeProfile) -> str:
    named = launch.image or profile.image
    return profile.images.get(launch.pipeline_key) or profile.images.get(named) or named


def kueue_labels(queue: str, priority: int, profile: KubeProfile) -> dict[str, str]:
    """Where a job of this JOS queue and priority stands in Kueue; none where JOS itself admits."""
    if profile.admission != "kueue":
        return {}
    local = profile.kueue.local_queues.get(queue, queue)
    if len(local) > MOST_LABEL or not _QUEUE_NAME.fullmatch(local):
        raise ConfigInvalid(
            f"The queue {queue!r} cannot be the name of a LocalQueue.",
            [Violation("$.kueue.local_queues", f"has no entry for {queue!r}", "missing")],
            suggestion="Name there the LocalQueue that its jobs go to.",
        )
    fitting = [band for band in profile.kueue.priority_classes if band.at_least <= priority]
    highest = max(fitting, key=lambda band: band.at_least, default=None)
    return {KUEUE_QUEUE: local, **({KUEUE_PRIORITY: highest.name} if highest else {})}


class _Dumper(yaml.SafeDumper):
    """The same bytes for the same content, and texts of many lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Quoted where another reader of YAML, kubectl's, would take it for a number, as `12345e67`, a part of a hash."""
    style = "|" if "\n" in text else "'" if _NUMBER.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(documents: Iterable[Json]) -> str:
    """Byte-stable: fields in the order that they were given."""
    return yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000, explicit_start=True
    )
