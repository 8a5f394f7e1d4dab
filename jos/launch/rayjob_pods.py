"""The pods of a RayJob: what every container of jos.launch.rayjob has, whatever it is for.

All hold to Kubernetes' "restricted" Pod Security, and none has a token of the cluster but Ray's autoscaler, which asks
for pods with it. KubeRay adds to these pods: ports, probes, variables of Ray, the autoscaler's container, and one that
waits for the head before a worker starts, with the worker's security context.
May import: stdlib, jos.core, jos.launch.kube_profile. Tests: tests/unit/test_rayjob.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from jos.core.model import Json
from jos.launch.kube_profile import KubeProfile, Nodes

JOB_FILE = PurePosixPath("/etc/jos/job.yaml")  # where the driver finds it; its name is the key in the ConfigMap
TOKEN_VOLUME, TOKEN_FOLDER = "kube-api-access", "/var/run/secrets/kubernetes.io/serviceaccount"
GRACE_SECONDS = 30  # from the end of a driver's drain to a kill

ENVIRONMENT = {
    "HOME": "/tmp",  # all that can be written
    "USER": "jos",  # the user has no entry in /etc/passwd; Python's getpass would fail
    "JOS_HOME": "/tmp/jos",
    "RAY_AUTH_MODE": "disabled",  # its default is about to change; a NetworkPolicy keeps others out
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class NodesWanted:
    """Selectors and tolerations of several sections of a profile together; a later one wins."""

    selector: Mapping[str, str]
    tolerations: tuple[Json, ...]

    @classmethod
    def of(cls, *sections: Nodes) -> NodesWanted:
        selector = {k: v for section in sections for k, v in section.node_selector.items()}
        tolerations: list[Json] = []
        for toleration in (t.model_dump(exclude_none=True) for section in sections for t in section.tolerations):
            if toleration not in tolerations:
                tolerations.append(toleration)
        return cls(selector, tuple(tolerations))


@dataclass(frozen=True, kw_only=True)
class Pod:
    container: str
    image: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    resources: Mapping[str, str]  # requests and limits alike: nothing is promised that is not there
    shared_memory: str
    nodes: NodesWanted
    drain: float
    env: Mapping[str, str] = field(default_factory=dict)
    runtime_class: str | None = None
    spread_over: str | None = None  # a label of nodes
    spread_by: str = ""  # the label of pods that are spread
    job_file: str | None = None  # a ConfigMap
    autoscaler: bool = False  # KubeRay puts Ray's autoscaler beside it


def pod_template(pod: Pod, profile: KubeProfile) -> Json:
    metadata: Json = {"labels": dict(pod.labels)}
    if pod.annotations:
        metadata["annotations"] = dict(pod.annotations)
    return {"metadata": metadata, "spec": _pod_spec(pod, profile)}


def _pod_spec(pod: Pod, profile: KubeProfile) -> Json:
    spec: Json = {
        # a Ray that starts anew knows nothing of its jobs, so KubeRay would submit the driver once more
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(pod.drain) + GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service `jos-api` would set JOS_API_PORT
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": profile.user,
            "runAsGroup": profile.user,
            "fsGroup": profile.user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    optional = {
        "serviceAccountName": profile.service_account,
        "imagePullSecrets": [{"name": name} for name in profile.image_pull_secrets],
        "priorityClassName": profile.pod_priority_class,
        "runtimeClassName": pod.runtime_class,
        "nodeSelector": dict(pod.nodes.selector),
        "tolerations": list(pod.nodes.tolerations),
        "topologySpreadConstraints": _spread(pod),
    }
    spec |= {key: value for key, value in optional.items() if value}
    return spec | {"containers": [_container(pod, profile)], "volumes": _volumes(pod)}


def _spread(pod: Pod) -> list[Json]:
    if pod.spread_over is None:
        return []
    same = {pod.spread_by: pod.labels[pod.spread_by], "ray.io/node-type": "worker"}
    return [
        {
            "maxSkew": 1,
            "topologyKey": pod.spread_over,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": same},
        }
    ]


def _container(pod: Pod, profile: KubeProfile) -> Json:
    mounts: list[Json] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shared-mem", "mountPath": "/dev/shm"},
    ]
    if pod.job_file:
        mounts.append({"name": "job", "mountPath": str(JOB_FILE.parent), "readOnly": True})
    container: Json = {
        "name": pod.container,
        "image": pod.image,
        "env": _env(pod, profile),
        "envFrom": _env_from(profile),
        "resources": {"requests": dict(pod.resources), "limits": dict(pod.resources)},
        "securityContext": _container_security(profile),
        "volumeMounts": mounts,
    }
    return {key: value for key, value in container.items() if value}


def _env(pod: Pod, profile: KubeProfile) -> list[Json]:
    """JOS's own first: an operator's may override them."""
    plain = {**ENVIRONMENT, **pod.env, **profile.env}
    secret = {name: {"secretKeyRef": {"name": ref.secret, "key": ref.key}} for name, ref in profile.secret_env.items()}
    listed: list[Json] = [{"name": name, "value": value} for name, value in plain.items() if name not in secret]
    return [*listed, *({"name": name, "valueFrom": source} for name, source in secret.items())]


def _env_from(profile: KubeProfile) -> list[Json]:
    found = []
    for source in profile.env_from:
        kind = "secretRef" if source.secret else "configMapRef"
        reference: Json = {"name": source.secret or source.config_map}
        found.append({kind: reference | ({"optional": True} if source.optional else {})})
    return found


def _container_security(profile: KubeProfile) -> Json:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": profile.read_only_root,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _volumes(pod: Pod) -> list[Json]:
    volumes: list[Json] = [
        {"name": "tmp", "emptyDir": {"sizeLimit": pod.resources["ephemeral-storage"]}},
        {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": pod.shared_memory}},
    ]
    if pod.job_file:
        volumes.append({"name": "job", "configMap": {"name": pod.job_file}})
    if pod.autoscaler:
        volumes.append({"name": TOKEN_VOLUME, "projected": {"sources": _token_sources()}})
    return volumes


def _token_sources() -> list[Json]:
    """What Kubernetes would mount into every container of the pod, for the one that needs it."""
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]


def autoscaler_options(profile: KubeProfile) -> Json:
    """Of the container that KubeRay puts beside an elastic head; its image is the head's."""
    size = {"cpu": profile.autoscaler.cpu, "memory": profile.autoscaler.memory}
    names = ("HOME", "USER", "RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED")
    return {
        "version": "v2",
        "idleTimeoutSeconds": profile.autoscaler.idle_timeout_seconds,
        "upscalingMode": profile.autoscaler.upscaling_mode,
        "resources": {"requests": dict(size), "limits": dict(size)},
        "securityContext": _container_security(profile),
        "env": [{"name": name, "value": ENVIRONMENT[name]} for name in names],
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": True},
        ],
    }
