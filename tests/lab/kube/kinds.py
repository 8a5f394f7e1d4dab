"""The kinds that the fake cluster serves: names, scope, and which of them have a status of their own.

Core kinds stand here; those of CRDs come from `kube.crds`. A plural name is unique over all groups here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One served resource. `status`: /status is a subresource; `counted`: metadata.generation counts spec changes."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    status: bool = False
    counted: bool = False
    custom: bool = False
    short: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As error messages name it: `rayjobs.ray.io`, `pods`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def singular(self) -> str:
        return self.kind.lower()


_RBAC = "rbac.authorization.k8s.io"
CORE = (
    Kind("", "v1", "Namespace", "namespaces", namespaced=False, status=True, short=("ns",)),
    Kind("", "v1", "Node", "nodes", namespaced=False, status=True, short=("no",)),
    Kind("", "v1", "Pod", "pods", status=True, counted=True, short=("po",), categories=("all",)),
    Kind("", "v1", "Service", "services", status=True, short=("svc",), categories=("all",)),
    Kind("", "v1", "ConfigMap", "configmaps", short=("cm",)),
    Kind("", "v1", "Secret", "secrets"),
    Kind("", "v1", "Event", "events", short=("ev",)),
    Kind("", "v1", "ServiceAccount", "serviceaccounts", short=("sa",)),
    Kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", status=True, short=("pvc",)),
    Kind("batch", "v1", "Job", "jobs", status=True, counted=True, categories=("all",)),
    Kind("apps", "v1", "Deployment", "deployments", status=True, counted=True, short=("deploy",), categories=("all",)),
    Kind("coordination.k8s.io", "v1", "Lease", "leases"),
    Kind("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", namespaced=False, counted=True, short=("pc",)),
    Kind(_RBAC, "v1", "Role", "roles"),
    Kind(_RBAC, "v1", "RoleBinding", "rolebindings"),
    Kind(_RBAC, "v1", "ClusterRole", "clusterroles", namespaced=False),
    Kind(_RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False),
)


def _custom(group: str, version: str, kind: str, plural: str, **more: bool) -> Kind:
    return Kind(group, version, kind, plural, status=more.pop("status", True), counted=True, custom=True, **more)


_KUEUE = ("kueue.x-k8s.io", "v1beta2")
CUSTOM = (
    _custom("ray.io", "v1", "RayJob", "rayjobs"),
    _custom("ray.io", "v1", "RayCluster", "rayclusters"),
    _custom(*_KUEUE, "Workload", "workloads"),
    _custom(*_KUEUE, "LocalQueue", "localqueues"),
    _custom(*_KUEUE, "ClusterQueue", "clusterqueues", namespaced=False),
    _custom(*_KUEUE, "Cohort", "cohorts", namespaced=False),
    _custom(*_KUEUE, "AdmissionCheck", "admissionchecks", namespaced=False),
    _custom(*_KUEUE, "ResourceFlavor", "resourceflavors", namespaced=False, status=False),
    _custom(*_KUEUE, "WorkloadPriorityClass", "workloadpriorityclasses", namespaced=False, status=False),
)

KINDS = {kind.plural: kind for kind in (*CORE, *CUSTOM)}
