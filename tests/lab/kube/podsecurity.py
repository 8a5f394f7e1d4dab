"""Pod Security admission: what the standard `restricted` asks of a pod, where its namespace enforces it.

The label pod-security.kubernetes.io/enforce of the namespace says so. Source: the Pod Security Standards of Kubernetes;
`baseline` is not told apart, for JOS claims the stricter one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kube.errors import forbidden
from kube.kinds import KINDS
from kube.policies import Review
from kube.shelf import Obj, Shelf

ENFORCE = "pod-security.kubernetes.io/enforce"
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


class PodSecurity:
    """A validator of `kube.objects.Objects`."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def __call__(self, review: Review) -> None:
        if review.resource != "pods" or review.operation != "CREATE":
            return  # what a pod may be judged by cannot change later
        meta = review.obj["metadata"]
        space = self._shelf.kept("namespaces", None, meta["namespace"]).obj
        if (space["metadata"].get("labels") or {}).get(ENFORCE) != "restricted":
            return
        if found := list(violations(review.obj["spec"])):
            why = f'violates PodSecurity "restricted:latest": {", ".join(found)}'
            raise forbidden(KINDS["pods"], meta["name"], why)


def violations(spec: Obj) -> Iterator[str]:
    """What a pod's spec has that `restricted` forbids, or lacks of what it asks for; nothing where it is right."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"host namespaces ({name}=true)"
    for volume in spec.get("volumes") or ():
        for type_ in sorted(volume.keys() - {"name"} - _VOLUMES):
            yield f'restricted volume types (volume "{volume["name"]}" uses restricted volume type "{type_}")'
    containers = [c for group in ("initContainers", "containers", "ephemeralContainers") for c in spec.get(group) or ()]
    for container in containers:
        yield from _container(container, spec.get("securityContext") or {})


def _container(container: Obj, pod: Obj) -> Iterator[str]:
    own: dict[str, Any] = container.get("securityContext") or {}
    name = f'container "{container["name"]}"'
    capabilities = own.get("capabilities") or {}
    if own.get("privileged"):
        yield f"privileged ({name} must not set securityContext.privileged=true)"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"allowPrivilegeEscalation != false ({name} must set securityContext.allowPrivilegeEscalation=false)"
    if "ALL" not in (capabilities.get("drop") or ()):
        yield f'unrestricted capabilities ({name} must set securityContext.capabilities.drop=["ALL"])'
    if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
        yield f"unrestricted capabilities ({name} must not add more than NET_BIND_SERVICE)"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield f"runAsNonRoot != true (pod or {name} must set securityContext.runAsNonRoot=true)"
    if own.get("runAsUser", pod.get("runAsUser")) == 0:
        yield f"runAsUser=0 (pod or {name} must not set runAsUser=0)"
    profile = own.get("seccompProfile") or pod.get("seccompProfile") or {}
    if profile.get("type") not in ("RuntimeDefault", "Localhost"):
        wanted = 'must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"'
        yield f"seccompProfile (pod or {name} {wanted})"
    if any(port.get("hostPort") for port in container.get("ports") or ()):
        yield f"hostPort ({name} uses a host port)"
