"""A whole service on Kubernetes for one test: API and controller as processes, a Valkey, an S3, and a fake cluster with
its operators at work, whose RayJobs really run on a Ray head of this machine.

The controller has the rights of the Role in k8s/ and no others; drivers are told what k8s/base tells them, by a
ConfigMap and a Secret. What the cluster was asked to make is written down, to be compared with what a test expects.
Tests: tests/e2e/test_kuberay_*.py.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis
from jobs_lab import HERE, Head, until
from kube.fixtures import NAMESPACE
from kube.objects import Objects
from kube.parts import Made
from kube.server import Server
from kube.shelf import Change
from kube.world import World
from manifests_lab import Object, config
from rights_lab import CONTROLLER, install
from service_lab import Process, Service
from services_lab import BUCKET, S3
from wire_lab import Wire

from jos.launch.rayjob import driver_name, kubernetes_name
from jos.store import embedded
from jos.store.lease import key_of

LEADER = key_of("controller")
OWNED = ("rayjobs", "rayclusters", "pods", "services")


class KubeService(Service):
    """`manifests`: of k8s/, from which rights and profile come; `profile`: fields that say otherwise."""

    def __init__(
        self,
        folder: Path,
        head: Head,
        s3: S3,
        manifests: Sequence[Object],
        queues: Mapping[str, Any] | None = None,
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.objects = Objects(namespaces=(NAMESPACE,))
        self.made: list[str] = []  # RayJobs by name, in the order in which they were created
        self.objects.subscribe(self._written_down)
        install(manifests, self.objects)
        self.server = Server(self.objects)
        self.world = World.on_ray(self.objects, head.dashboard)
        self.redis_url = embedded.ensure(folder / "home" / "redis")
        self.wire = Wire(self.redis_url)
        self.crashed = threading.Event()
        storage = f"s3://{BUCKET}/{secrets.token_hex(6)}"
        self._tell_drivers(s3, storage)
        self.profile = self._profile(folder, manifests, profile or {})
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

    def _written_down(self, change: Change) -> None:
        if change.resource == "rayjobs" and change.type == "ADDED":
            self.made.append(change.obj["metadata"]["name"])

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

    def _profile(self, folder: Path, manifests: Sequence[Object], changes: Mapping[str, Any]) -> Mapping[str, Any]:
        mine = {"namespace": NAMESPACE, "kept_seconds": 1, "env": {"JOS_HOME": str(folder / "home")}}
        return {**config(manifests, "kube.yaml"), **mine, **changes}

    def close(self) -> None:
        super().close()
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

        found: Made = until(look, seconds)
        return found

    def left(self) -> list[str]:
        """All that stands in the cluster for jobs."""
        return [f"{what}/{_name(one)}" for what in OWNED for one in self.objects.list(what, NAMESPACE)]

    def wait_for_nothing_left(self, seconds: float = 30) -> None:
        until(lambda: not self.left(), seconds)

    def submitted(self, job_id: str) -> list[str]:
        """The drivers that were handed to Ray for a job, in their order: an attempt twice was driven twice."""
        return [name for name in self.world.standin.submitted if job_id in name]  # type: ignore[attr-defined]

    # --- crashes ---

    def crash(self) -> None:
        """kill -9 of the controller."""
        self.controller.kill()
        self.crashed.set()

    def heal(self, seconds: float = 60) -> None:
        """Waits for the crash that a test has set up, and starts the next controller. The lease of a dead process is
        taken off, or each crash would cost the seconds that it lasts."""
        assert self.crashed.wait(seconds), "the controller did not come to the step at which it was to be killed"
        self.crashed.clear()
        with redis.Redis(unix_socket_path=self.redis_url.removeprefix("unix://")) as store:
            store.delete(LEADER)
        self.controller.start()

    def another_controller(self) -> Process:
        self.controllers.append(self.process("controller", f"-{len(self.controllers) + 1}"))
        return self.controllers[-1]


def _meta(name: str) -> Made:
    return {"name": name, "namespace": NAMESPACE}


def _name(found: Made) -> str:
    return str(found["metadata"]["name"])
