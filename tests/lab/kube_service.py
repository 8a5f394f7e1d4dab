"""A whole service on Kubernetes for one test: API and controller as processes, a Valkey, an S3, and a fake cluster with
its operators at work, whose RayJobs really run on a Ray head of this machine.

The controller has the rights of the Role in k8s/ and no others; drivers are told what k8s/base tells them, by a
ConfigMap and a Secret. What the cluster was asked to make is written down, to be compared with what a test expects.
Tests: tests/e2e/test_kuberay_*.py.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis
from jobs_lab import HERE, Head, until
from kube.fixtures import NAMESPACE
from kube.objects import Objects
from kube.parts import Made
from kube.server import Server
from kube.shelf import Change
from kube.world import World
from manifests_lab import Object, config, of_kind
from rights_lab import CONTROLLER, install
from service_lab import Service
from services_lab import BUCKET, S3
from wire_lab import Wire

from jos.driver.__main__ import EXIT
from jos.driver.driver import Ending
from jos.launch.rayjob import driver_name, kubernetes_name
from jos.storage import open_storage
from jos.store import embedded
from jos.store.lease import key_of
from jos.store.redis import Store
from jos.verify import Report, verify_with_store

LEADER = key_of("controller")
OWNED = ("rayjobs", "rayclusters", "pods", "services", "workloads")
QUEUES = {
    "ResourceFlavor": "resourceflavors",
    "ClusterQueue": "clusterqueues",
    "LocalQueue": "localqueues",
    "WorkloadPriorityClass": "workloadpriorityclasses",
}


class KubeService(Service):
    """`manifests`: of k8s/, from which rights, profile and Kueue's queues come; `queues`: JOS's own; `kueue_cpus`: the
    quota of each of Kueue's queues."""

    def __init__(
        self,
        folder: Path,
        head: Head,
        s3: S3,
        manifests: Sequence[Object],
        queues: Mapping[str, Any] | None = None,
        kueue_cpus: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.s3, self.manifests = s3, manifests
        self.objects = Objects(namespaces=(NAMESPACE,))
        self.made: list[str] = []  # RayJobs by name, in the order in which they were created
        self.objects.subscribe(self._written_down)
        install(manifests, self.objects)
        self._make_queues(manifests, kueue_cpus)
        self.server = Server(self.objects)
        self.world = World.on_ray(self.objects, head.dashboard)
        self.redis_url = embedded.ensure(folder / "home" / "redis")
        self.wire = Wire(self.redis_url)
        storage = f"s3://{BUCKET}/{secrets.token_hex(6)}"
        self._tell_drivers(s3, storage)
        self.profile = self._profile(folder, manifests)
        (folder / "kube.yaml").write_text(json.dumps(self.profile))
        token = self.server.guard.token(NAMESPACE, CONTROLLER)
        own = {
            **s3.environment,
            "JOS_LAUNCHER": "kuberay",
            "JOS_KUBE": str(folder / "kube.yaml"),
            "JOS_REDIS_URL": self.wire.url,
            "KUBECONFIG": str(self.server.kubeconfig(folder / "kubeconfig", token=token, namespace=NAMESPACE)),
        }
        if queues is not None:
            (folder / "queues.yaml").write_text(json.dumps(queues))
            own["JOS_QUEUES"] = str(folder / "queues.yaml")
        super().__init__(folder, head, storage, own)
        # one thread, to the end: Linux ends the processes that a thread has started with that thread
        self.healer = ThreadPoolExecutor(1, "healer")

    def _written_down(self, change: Change) -> None:
        if change.resource == "rayjobs" and change.type == "ADDED":
            self.made.append(change.obj["metadata"]["name"])

    def _make_queues(self, manifests: Sequence[Object], cpus: int | None) -> None:
        for one in of_kind(manifests, *QUEUES):
            made = copy.deepcopy(one)
            if made["kind"] == "LocalQueue":
                made["metadata"]["namespace"] = NAMESPACE
            if made["kind"] == "ClusterQueue" and cpus is not None:
                (quota,) = (r for g in made["spec"]["resourceGroups"] for r in _quotas(g) if r["name"] == "cpu")
                quota["nominalQuota"] = cpus
            self.objects.create(QUEUES[made["kind"]], made)

    def _tell_drivers(self, s3: S3, storage: str) -> None:
        """What k8s/base/kube.yaml has pods take their variables from."""
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        data = {
            "JOS_STORAGE": storage,
            "JOS_PIPELINES": str(HERE / "pipelines"),
            "PYTHONPATH": path,
            "AWS_REGION": s3.environment["AWS_REGION"],
            "AWS_ENDPOINT_URL": s3.endpoint,
        }
        hidden = {
            "JOS_REDIS_URL": self.wire.url,
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        }
        coded = {name: base64.b64encode(value.encode()).decode() for name, value in hidden.items()}
        self.objects.create("configmaps", {"metadata": _meta("jos-data"), "data": data})
        self.objects.create("secrets", {"metadata": _meta("jos-secrets"), "data": coded})

    def _profile(self, folder: Path, manifests: Sequence[Object]) -> Made:
        """That of k8s/base; but a RayJob need not stay for people, and drivers are known by their home."""
        mine = {"namespace": NAMESPACE, "kept_seconds": 1, "env": {"JOS_HOME": str(folder / "home")}}
        return {**config(manifests, "kube.yaml"), **mine}

    def close(self) -> None:
        super().close()
        self.healer.shutdown()
        self.wire.close()
        self.world.close()
        self.server.close()

    # --- what is in the cluster ---

    def rayjob(self, job_id: str, number: int = 1) -> str:
        """What the RayJob of an attempt is called."""
        return kubernetes_name(driver_name(job_id, number))

    def there(self, job_id: str, number: int = 1) -> Made | None:
        """The RayJob of an attempt."""
        name = self.rayjob(job_id, number)
        return next((found for found in self.objects.list("rayjobs", NAMESPACE) if _name(found) == name), None)

    @property
    def image(self) -> str:
        """Of all pods."""
        return str(self.profile["image"])

    def lose_head(self, job_id: str, number: int = 1) -> None:
        """The head pod of an attempt is gone at once, and all that ran in it."""
        rayjob = self.there(job_id, number)
        assert rayjob is not None
        self.world.kubelet.kill_head(NAMESPACE, rayjob["status"]["rayClusterName"])

    def wait_for_reason(self, job_id: str, reason: str, seconds: float = 60) -> Made:
        """Until the job has been told that it waits for this; the event."""

        def look() -> Made | None:
            told = self.events(job_id, "job.waiting")
            return next((event for event in told if event["payload"]["reason"] == reason), None)

        found: Made = until(look, seconds, 0.1)
        return found

    def left(self) -> list[str]:
        """All that stands in the cluster for jobs."""
        return [f"{what}/{_name(one)}" for what in OWNED for one in self.objects.list(what, NAMESPACE)]

    def wait_for_nothing_left(self, seconds: float = 30) -> None:
        until(lambda: not self.left(), seconds, 0.1)

    def submitted(self, job_id: str) -> list[str]:
        """The drivers that were handed to Ray for a job, in their order: an attempt twice was driven twice."""
        return [name for name in self.world.standin.submitted if job_id in name]  # type: ignore[attr-defined]

    # --- what became of jobs ---

    def verify(self, job_id: str) -> None:
        """Fails unless each record is in exactly one commit, and all that is told of the job is as committed."""

        async def work() -> Report:
            async with await Store.open(self.redis_url) as store:
                return await verify_with_store(store, open_storage(str(self.storage)), "org_first", job_id)

        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.s3.environment.items():
                patch.setenv(name, value)
            report = asyncio.run(work())
        assert report.ok, str(report)

    def driven_once_each(self, job_id: str, attempts: int, let_in_again: bool = False) -> None:
        """Fails unless each attempt had one RayJob and one driver, and there were no others. `let_in_again`: Kueue may
        have found room for what it had evicted in attempt 1 before a controller could delete it; the driver that then
        comes up must have left without driving."""
        wanted = [self.rayjob(job_id, number + 1) for number in range(attempts)]
        assert [name for name in self.made if name.startswith(self.rayjob(job_id, 0)[:-1])] == wanted
        submitted = [kubernetes_name(name) for name in self.submitted(job_id)]
        if let_in_again:
            first = driver_name(job_id, 1)
            exits = self.world.standin.exits(first)  # type: ignore[attr-defined]
            assert not {EXIT[Ending.COMPLETED], EXIT[Ending.DRAINED]} & set(exits[1:]), exits
            submitted = wanted[:1] + submitted[len(exits) :]
        assert submitted == wanted
        assert len(self.events(job_id, "job.started")) == attempts

    # --- the controller ---

    def await_leader(self, seconds: float = 60) -> None:
        until(lambda: self._ask_store(lambda store: store.exists(LEADER)), seconds, 0.1)

    def next_controller(self) -> None:
        """After the one before was killed; it leads when this returns. The lease of the dead one is taken off, or each
        crash would cost the seconds that it lasts."""
        self._ask_store(lambda store: store.delete(LEADER))
        self.controller.start()
        self.await_leader()

    def _ask_store(self, ask: Callable[[redis.Redis], Any]) -> Any:
        with redis.Redis(unix_socket_path=self.redis_url.removeprefix("unix://")) as store:
            return ask(store)


def shouted(name: str, records: int) -> bytes:
    """What the pipeline `shout` makes of records `NAME 0`, `NAME 1`, …"""
    lines = [orjson.dumps({"line_index": n, "text": f"{name} {n}".upper()}) for n in range(records)]
    return b"".join(line + b"\n" for line in lines)


def _quotas(group: Made) -> list[Made]:
    return [resource for flavor in group["flavors"] for resource in flavor["resources"]]


def _meta(name: str) -> Made:
    return {"name": name, "namespace": NAMESPACE}


def _name(found: Made) -> str:
    return str(found["metadata"]["name"])
