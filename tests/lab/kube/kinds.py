"""The kinds that the fake cluster serves: names, scope, and which of them have a status of their own.

Core kinds stand here, and those of the CRDs in `kube.crds`. A plural name is unique over all groups here.
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


def _core(group: str, kind: str, plural: str, *short: str, version: str = "v1", **more: bool) -> Kind:
    namespaced, status, counted = (more.pop(name, name == "namespaced") for name in ("namespaced", "status", "counted"))
    return Kind(group, version, kind, plural, namespaced, status, counted, short=short)


_RBAC, _ADMISSION = "rbac.authorization.k8s.io", "admissionregistration.k8s.io"
CORE = (
    _core("", "Namespace", "namespaces", "ns", namespaced=False, status=True),
    _core("", "Node", "nodes", "no", namespaced=False, status=True),
    _core("", "Pod", "pods", "po", status=True, counted=True),
    _core("", "Service", "services", "svc", status=True),
    _core("", "ConfigMap", "configmaps", "cm"),
    _core("", "Secret", "secrets"),
    _core("", "Event", "events", "ev"),
    _core("", "ServiceAccount", "serviceaccounts", "sa"),
    _core("", "PersistentVolumeClaim", "persistentvolumeclaims", "pvc", status=True),
    _core("batch", "Job", "jobs", status=True, counted=True),
    _core("apps", "Deployment", "deployments", "deploy", status=True, counted=True),
    _core("apps", "StatefulSet", "statefulsets", "sts", status=True, counted=True),
    _core("autoscaling", "HorizontalPodAutoscaler", "horizontalpodautoscalers", "hpa", version="v2", status=True),
    _core("policy", "PodDisruptionBudget", "poddisruptionbudgets", "pdb", status=True, counted=True),
    _core("networking.k8s.io", "NetworkPolicy", "networkpolicies", "netpol", counted=True),
    _core("networking.k8s.io", "Ingress", "ingresses", "ing", status=True, counted=True),
    _core("coordination.k8s.io", "Lease", "leases"),
    _core("scheduling.k8s.io", "PriorityClass", "priorityclasses", "pc", namespaced=False, counted=True),
    _core(_RBAC, "Role", "roles"),
    _core(_RBAC, "RoleBinding", "rolebindings"),
    _core(_RBAC, "ClusterRole", "clusterroles", namespaced=False),
    _core(_RBAC, "ClusterRoleBinding", "clusterrolebindings", namespaced=False),
    _core(_ADMISSION, "ValidatingAdmissionPolicy", "validatingadmissionpolicies", namespaced=False, status=True),
    _core(_ADMISSION, "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", namespaced=False),
    # the Prometheus operator's; taken as they come, for its CRDs are not here
    _core("monitoring.coreos.com", "ServiceMonitor", "servicemonitors", "smon", counted=True),
    _core("monitoring.coreos.com", "PrometheusRule", "prometheusrules", "promrule", counted=True),
)


def _custom(group: str, version: str, kind: str, plural: str, namespaced: bool = True, status: bool = True) -> Kind:
    return Kind(group, version, kind, plural, namespaced, status, counted=True, custom=True)


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
