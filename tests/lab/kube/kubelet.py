"""Scheduler and kubelet of the fake cluster: pods find a node, pull their image, run, end and leave, or tell why not.

Containers run nothing: what a Ray job does is `kube.standins`' affair. Tests reach in with `missing_images`, `kill`,
`crash`, `finish` and `lose_node`.
May import: kube.objects, kube.parts. Tests: tests/contract/test_fake_kuberay.py, …_pains.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal

from kube.environment import environment
from kube.objects import Objects
from kube.parts import (
    Amounts,
    Made,
    amount,
    found,
    leaving,
    plus,
    put_condition,
    requests,
    stamp,
    tell,
)
from kube.shelf import Change, Key, copied

START_SECONDS, STOP_SECONDS, PULL_RETRY_SECONDS = 1.0, 0.5, 5.0
IP = "10.0.0.2"


class Kubelet:
    """Every node's at once, and the scheduler. `start_seconds` says how long a pod takes from its node to running."""

    resources = ("pods",)

    def __init__(
        self,
        objects: Objects,
        start_seconds: Callable[[Made], float] = lambda pod: START_SECONDS,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        self.objects, self.start_seconds, self.stop_seconds = objects, start_seconds, stop_seconds
        self.missing_images: set[str] = set()
        self.gone: list[Callable[[Made], None]] = []  # told of each pod whose containers have ended, however
        self._used: dict[str, dict[Key, Amounts]] = {}  # node -> pod -> what it holds there
        self._waiting: dict[Key, None] = {}  # pods without a node, in the order in which they came
        self._starts: dict[Key, datetime] = {}  # when it runs at the soonest
        self._ends: dict[str, datetime] = {}  # uid -> when it has ended
        self._running: dict[Key, Made] = {}  # pods with containers
        self._addresses = 0

    def concerned(self, change: Change) -> Iterable[Key]:
        if change.resource in ("secrets", "configmaps"):
            return self._pending()
        if change.resource == "nodes":
            return list(self._waiting)
        if change.resource != "pods":
            return ()
        key = _key(change.obj)
        self._count(key, change)
        return [key, *self._waiting] if change.type == "DELETED" or _over(change.obj) else [key]

    def reconcile(self, key: Key, now: datetime) -> float | None:
        pod = found(self.objects, *key)
        if pod is None:
            self._containers_ended(key)  # removed by force
            return None
        if leaving(pod):
            return self._end(pod, now)
        if _over(pod):
            return None
        if "nodeName" not in pod["spec"]:
            self._schedule(key, pod, now)
            return None
        restarts = any("waiting" in container["state"] for container in pod["status"].get("containerStatuses", []))
        return self._start(key, pod, now) if pod["status"]["phase"] == "Pending" or restarts else None

    # --- nodes ---

    def add_node(
        self,
        name: str,
        capacity: Mapping[str, object],
        labels: Mapping[str, str] | None = None,
        taints: Iterable[Mapping[str, str]] = (),
    ) -> None:
        """`capacity` like {"cpu": 8, "memory": "32Gi", "nvidia.com/gpu": 1}; `taints` as in a Node's spec."""
        amounts = {resource: str(value) for resource, value in {"pods": 110, **capacity}.items()}
        meta = {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}}
        spec = {"taints": [dict(taint) for taint in taints]}
        node = self.objects.create("nodes", {"metadata": meta, "spec": spec})
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
        }
        node["status"] = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
        self.objects.replace_status("nodes", node)

    def lose_node(self, name: str) -> None:
        """A node is gone, as a spot machine goes: so are its pods, without a farewell."""
        self.objects.delete("nodes", None, name)
        for key in list(self._used.get(name, ())):
            self.kill(key[1], key[2])

    # --- what tests do to pods ---

    def kill(self, namespace: str, name: str) -> None:
        """The pod is gone at once, as by a forced deletion."""
        self.objects.delete("pods", namespace, name, grace=0)
        self._containers_ended(("pods", namespace, name))

    def kill_head(self, namespace: str, cluster: str) -> str:
        """Kills the head pod of a RayCluster; its name."""
        labels = {"ray.io/cluster": cluster, "ray.io/node-type": "head"}
        (pod,) = self.objects.list("pods", namespace, labels)
        self.kill(namespace, pod["metadata"]["name"])
        return str(pod["metadata"]["name"])

    def crash(self, namespace: str, name: str, exit_code: int = 137, reason: str = "OOMKilled") -> None:
        """Its main container dies. Restarted in place under restartPolicy Always, else the pod has failed."""
        pod, now = self.objects.get("pods", namespace, name), self.objects.clock()
        ended = {
            "exitCode": exit_code,
            "reason": reason,
            "startedAt": pod["status"]["startTime"],
            "finishedAt": stamp(now),
        }
        main = pod["status"]["containerStatuses"][0]
        if pod["spec"].get("restartPolicy", "Always") == "Always":
            self._starts[_key(pod)] = now + timedelta(seconds=self.start_seconds(pod))
            waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": f"back-off restarting {main['name']}"}}
            main |= {"state": waiting, "lastState": {"terminated": ended}, "ready": False, "started": False}
            main["restartCount"] += 1
        else:
            pod["status"]["phase"] = "Failed"
            main |= {"state": {"terminated": ended}, "ready": False, "started": False}
        self._not_ready(pod, now, "ContainersNotReady", f"containers with unready status: [{main['name']}]")
        self.objects.replace_status("pods", pod)
        self._containers_ended(_key(pod))

    def finish(self, namespace: str, name: str, exit_code: int = 0) -> None:
        """Its containers end by themselves."""
        pod, now = self.objects.get("pods", namespace, name), self.objects.clock()
        pod["status"]["phase"] = "Failed" if exit_code else "Succeeded"
        ended = {"exitCode": exit_code, "reason": "Error" if exit_code else "Completed", "finishedAt": stamp(now)}
        for container in pod["status"]["containerStatuses"]:
            container |= {"state": {"terminated": ended}, "ready": False, "started": False}
        self._not_ready(pod, now, "PodCompleted", "")
        self.objects.replace_status("pods", pod)
        self._containers_ended(_key(pod))

    # --- scheduling ---

    def _count(self, key: Key, change: Change) -> None:
        """Keeps what is free on the nodes, and who waits for a node."""
        pod = change.obj
        node = pod["spec"].get("nodeName")
        over = change.type == "DELETED" or _over(pod)
        if over or node:
            self._waiting.pop(key, None)
        elif not leaving(pod):
            self._waiting[key] = None
        if node and over:
            self._used.get(node, {}).pop(key, None)
        elif node:
            self._used.setdefault(node, {})[key] = requests(pod["spec"])

    def _schedule(self, key: Key, pod: Made, now: datetime) -> None:
        refusals: dict[str, int] = {}
        nodes = [kept.obj for kept in self.objects.listing("nodes")[0]]
        for node in nodes:
            reasons = self._refused(pod, node)
            if not reasons:
                return self._bind(key, copied(pod), node["metadata"]["name"], now)
            for reason in reasons:
                refusals[reason] = refusals.get(reason, 0) + 1
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(refusals.items()))
        message = f"0/{len(nodes)} nodes are available" + (f": {told}." if told else ".")
        changed = copied(pod)
        put_condition(changed["status"], now, "PodScheduled", False, "Unschedulable", message)
        if changed["status"] != pod["status"]:
            self.objects.replace_status("pods", changed)
            tell(self.objects, pod, now, "default-scheduler", "FailedScheduling", message, "Warning")
        return None

    def _refused(self, pod: Made, node: Made) -> list[str]:
        """Why the scheduler does not take this node, in its words."""
        spec, labels = pod["spec"], node["metadata"].get("labels", {})
        if any(labels.get(name) != value for name, value in spec.get("nodeSelector", {}).items()):
            return ["node(s) didn't match Pod's node affinity/selector"]
        for taint in node.get("spec", {}).get("taints", []):
            if taint["effect"] != "PreferNoSchedule" and not _tolerates(spec.get("tolerations", []), taint):
                return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"]
        used = plus(self._used.get(node["metadata"]["name"], {}).values())
        allocatable = node.get("status", {}).get("allocatable", {})
        return [
            f"Insufficient {name}"
            for name, asked in requests(spec).items()
            if used.get(name, Decimal(0)) + asked > amount(allocatable.get(name, 0))
        ]

    def _bind(self, key: Key, pod: Made, node: str, now: datetime) -> None:
        pod["spec"]["nodeName"] = node
        self._used.setdefault(node, {})[key] = requests(pod["spec"])
        self._waiting.pop(key, None)
        bound = self.objects.replace("pods", pod)
        bound["status"]["conditions"] = [
            c for c in bound["status"].get("conditions", []) if c["type"] != "PodScheduled"
        ]
        bound["status"]["conditions"].append(_plain("PodScheduled", now))
        self.objects.replace_status("pods", bound)
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        tell(
            self.objects,
            bound,
            now,
            "default-scheduler",
            "Scheduled",
            f"Successfully assigned {namespace}/{name} to {node}",
        )

    # --- running ---

    def _start(self, key: Key, pod: Made, now: datetime) -> float | None:
        at = self._starts.setdefault(key, now + timedelta(seconds=self.start_seconds(pod)))
        if now < at:
            return (at - now).total_seconds()
        for other in [key for key, at in self._starts.items() if at <= now]:  # at the same moment: nobody sees between
            self._start_now(other, now)
        return PULL_RETRY_SECONDS if key in self._starts else None

    def _start_now(self, key: Key, now: datetime) -> None:
        pod = found(self.objects, *key)
        trouble = [] if pod is None else [self._trouble(pod, container) for container in pod["spec"]["containers"]]
        if pod is not None and any(trouble):
            return self._wait(pod, now, trouble)
        del self._starts[key]
        if pod is not None and not leaving(pod):
            self._run(copied(pod), now)
        return None

    def _trouble(self, pod: Made, container: Made) -> tuple[str, str] | None:
        """Why a container cannot be made: (reason, message)."""
        if container["image"] in self.missing_images:
            return "ImagePullBackOff", f'Back-off pulling image "{container["image"]}": ErrImagePull: not found'
        try:
            environment(self.objects, pod, container)
        except LookupError as error:
            return "CreateContainerConfigError", str(error.args[0])
        return None

    def _wait(self, pod: Made, now: datetime, trouble: list[tuple[str, str] | None]) -> None:
        changed = copied(pod)
        statuses = []
        for container, why in zip(pod["spec"]["containers"], trouble, strict=True):
            reason, message = why or ("ContainerCreating", "")
            waiting = {"reason": reason} | ({"message": message} if message else {})
            statuses.append(_container(container) | {"state": {"waiting": waiting}, "ready": False, "started": False})
        changed["status"]["containerStatuses"] = statuses
        unready = " ".join(c["name"] for c in pod["spec"]["containers"])
        self._not_ready(changed, now, "ContainersNotReady", f"containers with unready status: [{unready}]")
        if changed["status"] != pod["status"]:
            self.objects.replace_status("pods", changed)
            for reason, message in filter(None, trouble):
                tell(
                    self.objects, pod, now, "kubelet", "Failed" if "Config" in reason else "BackOff", message, "Warning"
                )

    def _run(self, pod: Made, now: datetime) -> None:
        self._addresses += 1
        address = f"10.244.{self._addresses // 250}.{self._addresses % 250 + 1}"
        restarts = [c["restartCount"] for c in pod["status"].get("containerStatuses", [])]
        last = [c["lastState"] for c in pod["status"].get("containerStatuses", [])]
        statuses = [
            _container(container)
            | {"state": {"running": {"startedAt": stamp(now)}}, "ready": True, "started": True}
            | ({"restartCount": restarts[i], "lastState": last[i]} if i < len(restarts) else {})
            for i, container in enumerate(pod["spec"]["containers"])
        ]
        conditions = [_plain(name, now) for name in ("Initialized", "Ready", "ContainersReady", "PodScheduled")]
        pod["status"] |= {"phase": "Running", "conditions": conditions, "hostIP": IP, "podIP": address}
        pod["status"] |= {"podIPs": [{"ip": address}], "startTime": stamp(now), "containerStatuses": statuses}
        self._running[_key(pod)] = pod
        self.objects.replace_status("pods", pod)

    def _not_ready(self, pod: Made, now: datetime, reason: str, message: str) -> None:
        for name in ("Ready", "ContainersReady"):
            put_condition(pod["status"], now, name, False, reason, message)

    def _end(self, pod: Made, now: datetime) -> float | None:
        meta = pod["metadata"]
        if meta.get("deletionGracePeriodSeconds") == 0:
            return None  # finalizers hold it
        at = self._ends.setdefault(meta["uid"], now + timedelta(seconds=self.stop_seconds))
        if now < at:
            return (at - now).total_seconds()
        self._ends.pop(meta["uid"], None)
        self._starts.pop(_key(pod), None)
        self.objects.delete("pods", meta["namespace"], meta["name"], grace=0)
        self._containers_ended(_key(pod))
        return None

    def _containers_ended(self, key: Key) -> None:
        """Tells it once. After the store knows: whoever looks in between sees a pod that is not up."""
        if (pod := self._running.pop(key, None)) is not None:
            for callback in self.gone:
                callback(pod)

    def _pending(self) -> list[Key]:
        pods = [kept.obj for kept in self.objects.listing("pods")[0]]
        return [_key(pod) for pod in pods if pod["status"]["phase"] == "Pending" and "nodeName" in pod["spec"]]


def _key(pod: Made) -> Key:
    return "pods", pod["metadata"]["namespace"], pod["metadata"]["name"]


def _over(pod: Made) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _plain(name: str, now: datetime) -> Made:
    return {"type": name, "status": "True", "lastProbeTime": None, "lastTransitionTime": stamp(now)}


def _container(container: Made) -> Made:
    return {"name": container["name"], "image": container["image"], "imageID": "x", "lastState": {}, "restartCount": 0}


def _tolerates(tolerations: list[Made], taint: Mapping[str, str]) -> bool:
    for one in tolerations:
        if one.get("effect") not in (None, "", taint["effect"]):
            continue
        if one.get("operator", "Equal") == "Exists" and one.get("key") in (None, "", taint["key"]):
            return True
        if one.get("key") == taint["key"] and one.get("value", "") == taint.get("value", ""):
            return True
    return False
