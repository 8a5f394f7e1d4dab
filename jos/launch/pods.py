"""What the status of a pod says, in words: why it is not up yet, and how it died.

Pure; pods are plain dictionaries as Kubernetes gives them, or what jos.launch.kube_watch keeps of them.
May import: stdlib, jos.core.commands, jos.launch.base. Tests: tests/unit/test_rayjob_truth.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from jos.core.commands import Reason
from jos.launch.base import Waits

Object = Mapping[str, Any]

# the kubelet's words for a container that waits
_PULL_FAILS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_MAKING = ("ContainerCreating", "PodInitializing", "")

_PULL_ADVICE = "Check the name of the image, and that the profile names the pull secret of its registry."


def is_head(pod: Object) -> bool:
    return labels(pod).get("ray.io/node-type") == "head"


def labels(thing: Object) -> Mapping[str, str]:
    return thing["metadata"].get("labels") or {}


def name(thing: Object) -> str:
    return str(thing["metadata"]["name"])


def node(pod: Object) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "")


def condition(thing: Object, kind: str) -> Object:
    """The condition of that type; empty if there is none."""
    found = (c for c in (thing.get("status") or {}).get("conditions") or () if c.get("type") == kind)
    return next(found, {})


def holds(thing: Object, kind: str) -> bool:
    return condition(thing, kind).get("status") == "True"


def is_ready(pod: Object) -> bool:
    return phase(pod) == "Running" and holds(pod, "Ready")


def phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase") or "")


def time(said: object) -> datetime | None:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(said) if isinstance(said, str) else None


# --- not up yet ---------------------------------------------------------------------------------------


def fault(pod: Object) -> Waits | None:
    """What keeps the pod from starting and may well last: somebody has to do something, or a place must become free."""
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return _unscheduled(pod, scheduled)
    for container, waiting in _waiting(pod):
        reason, said = waiting.get("reason") or "", _sentence(waiting.get("message"))
        if reason in _PULL_FAILS:
            words = f"Pod {name(pod)} cannot pull its image {container.get('image', '?')} ({reason}).{said}"
            return Waits(Reason.PULLING_IMAGE, f"{words} {_PULL_ADVICE}")
        if reason == "CrashLoopBackOff":
            words = f"Container {container['name']} of pod {name(pod)} ends again and again{_last_end(container)}."
            return Waits(Reason.POD_CANNOT_START, f"{words} Its log: kubectl logs {name(pod)} --previous")
        if reason not in _MAKING:  # CreateContainerConfigError and the like: a secret or config map is missing
            words = f"Container {container['name']} of pod {name(pod)} cannot start ({reason}).{said}"
            advice = "Check the secrets, config maps and command that the profile and the pipeline name."
            return Waits(Reason.POD_CANNOT_START, f"{words} {advice}")
    return None


def _unscheduled(pod: Object, scheduled: Object) -> Waits:
    if scheduled.get("reason") == "SchedulingGated":
        return Waits(Reason.WAITING_IN_KUEUE, f"Pod {name(pod)} is held back by a scheduling gate.")
    said = _sentence(scheduled.get("message"))
    advice = "It starts once a node fits; if none ever will, ask for less per index, or see the profile's GPU types."
    return Waits(Reason.NO_NODE_FOR_PODS, f"No node for pod {name(pod)}.{said} {advice}")


def progress(pod: Object) -> Waits | None:
    """The same of a pod that is on its way on a node: the kubelet does not say whether it pulls or mounts."""
    for container, waiting in _waiting(pod):
        if waiting.get("reason") in _MAKING and waiting.get("reason"):
            image = container.get("image", "?")
            words = f"Pod {name(pod)} is being made on node {node(pod) or '?'}, which pulls {image} if it has it not."
            return Waits(Reason.PULLING_IMAGE, words)
    return None


def _waiting(pod: Object) -> Iterator[tuple[Object, Object]]:
    """Containers that wait, with how; those that run before the others come first."""
    status = pod.get("status") or {}
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            if (waiting := (container.get("state") or {}).get("waiting")) is not None:
                yield container, waiting


def _last_end(container: Object) -> str:
    ended = (container.get("lastState") or {}).get("terminated") or {}
    return f" ({ended.get('reason', 'it ended')}, exit code {ended.get('exitCode', '?')})" if ended else ""


def _sentence(said: object) -> str:
    """As one that can follow another."""
    text = " ".join(str(said or "").split())[:600].rstrip(".")
    return f" {text}." if text else ""


# --- dead ---------------------------------------------------------------------------------------------


def death(pod: Object, now: datetime) -> str | None:
    """How it died, as far as it says so itself; None: it lives. One that a node should have ended by now, and has not,
    is on a node that does not answer."""
    status = pod.get("status") or {}
    where = f" on node {node(pod)}" if node(pod) else ""
    leaving = time(pod["metadata"].get("deletionTimestamp"))
    if status.get("reason") == "Evicted":
        return f"The head pod was evicted{where}.{_sentence(status.get('message'))}"
    if phase(pod) in ("Failed", "Succeeded"):
        return f"The head pod ended{where}{_exit(main_container(pod), 'state')}.{_sentence(status.get('message'))}"
    if leaving is not None and leaving < now and not is_ready(pod):
        return f"The head pod was told to leave{where}, and the node does not say that it did."
    return None


def killed_at(pod: Object) -> str | None:
    """What of a pod that was deleted says why; None: it does not say."""
    disruption = condition(pod, "DisruptionTarget")
    if disruption.get("status") == "True":
        return f"{disruption.get('reason', '')}:{_sentence(disruption.get('message'))}"
    ended = (main_container(pod).get("state") or {}).get("terminated") or {}
    return str(ended["reason"]) if ended.get("reason") == "OOMKilled" else None


def restarted(pod: Object, since: datetime) -> str | None:
    """How Ray's container ended that ran at `since`, if another one runs in the pod now. Both times are of the clock
    of the pod's node."""
    container = main_container(pod)
    began = time(((container.get("state") or {}).get("running") or {}).get("startedAt"))
    if began is None:
        ended = time(((container.get("lastState") or {}).get("terminated") or {}).get("finishedAt"))
        again = ended is not None and ended > since and "waiting" in (container.get("state") or {})
    else:
        again = began > since
    if not again:
        return None
    where = f" on node {node(pod)}" if node(pod) else ""
    return f"Ray's head ended and was started again{where}{_exit(container, 'lastState')}: its driver is lost."


def main_container(pod: Object) -> Object:
    """Ray's own, which KubeRay has first."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    first = next((c["name"] for c in (pod.get("spec") or {}).get("containers") or ()), None)
    return next((s for s in statuses if s["name"] == first), next(iter(statuses), {}))


def _exit(container: Object, where: str) -> str:
    ended = (container.get(where) or {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        return " because it was out of memory (OOMKilled); give the head more in the profile"
    return f" with exit code {ended['exitCode']}" if "exitCode" in ended else ""
