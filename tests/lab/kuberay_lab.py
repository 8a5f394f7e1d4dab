"""A launcher for Kubernetes on a fake cluster, and what KubeRay, Kueue and the kubelet do there, by a test's hand."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kube.fixtures import NAMESPACE, Cluster

from jos.core.model import Attempt, Job, Pipeline, Status
from jos.launch.base import DriverSeen
from jos.launch.kube_api import Kind, KubeApi
from jos.launch.kube_profile import KubeProfile, profile_of
from jos.launch.kube_stop import Deadlines
from jos.launch.kuberay import KubeRay

T = TypeVar("T")
NOW = datetime(2026, 11, 25, tzinfo=UTC)
QUICK = Deadlines(answer=2.0, drain=0.5, deletion=0.5)
PIPELINE = Pipeline(
    pipeline_key="shout",
    pipeline_version="1.0.0",
    name="Shout",
    worker="lab_workers:Shout",
    default_config={"worker": {"parallelism": 2, "config": {}}},
    config_schema={"worker": {}},
    user_config_schema={"worker": {}},
    inputs={},
    outputs={},
)
KUEUE = profile_of(
    {
        "admission": "kueue",
        "kueue": {"priority_classes": [{"at_least": 0, "name": "low"}, {"at_least": 100, "name": "high"}]},
    },
    "test",
)


def job(number: int = 1, attempt: int | None = 1, **more: Any) -> Job:
    name = f"job_{number:026d}"
    going = Attempt(number=attempt, token=f"t{attempt}", admitted_at=NOW, indexes=1) if attempt else None
    return Job(
        id=name,
        org_id="org_local",
        name=name,
        pipeline_type="batch",
        pipeline_key="shout",
        pipeline_version="1.0.0",
        parameters={},
        parallelism=2,
        status=Status.ADMITTED if attempt else Status.PENDING,
        attempt=going,
        created_at=NOW,
        updated_at=NOW,
        queued_at=NOW,
        **more,
    )


@dataclass
class Site:
    """A fake cluster, and what KubeRay, Kueue and the kubelet do there, by the hand of the test."""

    cluster: Cluster
    read: int = 0  # how often a job's pipeline was read

    @asynccontextmanager
    async def launcher(
        self, profile: KubeProfile = KubeProfile(), deadlines: Deadlines = QUICK
    ) -> AsyncIterator[KubeRay]:
        async def pipeline_of(_job: Job) -> Pipeline:
            self.read += 1
            return PIPELINE

        found = KubeRay(KubeApi.connect(NAMESPACE), profile, "0123abcd", pipeline_of, deadlines)
        try:
            yield found
        finally:
            await found.close()

    @property
    def rayjobs(self) -> dict[str, dict[str, Any]]:
        return {found["metadata"]["name"]: found for found in self.cluster.objects.list("rayjobs", NAMESPACE)}

    def status(self, name: str, deployment: str, job_status: str = "", **more: Any) -> None:
        found = self.rayjobs[name]
        told = {"jobDeploymentStatus": deployment, "jobStatus": job_status, "rayClusterName": f"{name}-c", **more}
        self.cluster.objects.replace_status("rayjobs", found | {"status": {**found.get("status", {}), **told}})

    def runs(self, name: str, dashboard: str = "127.0.0.1:1") -> None:
        """KubeRay has made its cluster, and Ray its driver."""
        self.head(name)
        info = {"startTime": datetime.now(UTC).isoformat()}
        submitted = self.rayjobs[name]["spec"]["jobId"]
        self.status(name, "Running", "RUNNING", dashboardURL=dashboard, jobId=submitted, rayJobInfo=info)

    def head(self, name: str) -> None:
        mine = {"ray.io/cluster": f"{name}-c", "ray.io/node-type": "head"}
        metadata = {
            "name": f"{name}-head",
            "namespace": NAMESPACE,
            "labels": self.rayjobs[name]["metadata"]["labels"] | mine,
        }
        containers = [{"name": "ray-head", "image": "jos:1"}]
        pod = {"metadata": metadata, "spec": {"nodeName": "n1", "containers": containers}}
        made = self.cluster.objects.create("pods", pod)
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        self.cluster.objects.replace_status("pods", made | {"status": ready})

    def delete(self, kind: str, name: str) -> None:
        self.cluster.objects.delete(kind, NAMESPACE, name, grace=0)

    def finalizer(self, name: str) -> None:
        patch = {"metadata": {"finalizers": ["ray.io/rayjob-finalizer"]}}
        self.cluster.objects.patch("rayjobs", NAMESPACE, name, patch)


async def until(what: Callable[[], Awaitable[T]], seconds: float = 180.0) -> T:
    deadline = time.monotonic() + seconds
    while True:
        if found := await what():
            return found
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


async def state(launcher: KubeRay, name: str, wanted: str, seconds: float = 60.0) -> DriverSeen:
    async def there() -> DriverSeen | None:
        found = (await launcher.seen()).get(name)
        return found if found is not None and found.state == wanted else None

    return await until(there, seconds)


NAME, DRIVER = f"jos-job-{1:026d}-1", f"jos-job_{1:026d}-1"


async def looked(launcher: KubeRay, value: bool) -> bool:
    await launcher.seen()
    return value


class Head:
    """Ray's dashboard as far as it stops drivers."""

    def __init__(self) -> None:
        self.stopped: list[str] = []
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                head.stopped.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def grant(site: Site, given: Mapping[Kind, frozenset[str]]) -> Path:
    """A kubeconfig of a service account with just these rights."""
    rules = [{"apiGroups": [k.group], "resources": [k.plural], "verbs": sorted(verbs)} for k, verbs in given.items()]
    objects = site.cluster.objects
    named = {"name": "jos", "namespace": NAMESPACE}
    for kind in ("roles", "rolebindings"):
        if any(found["metadata"]["name"] == "jos" for found in objects.list(kind, NAMESPACE)):
            objects.delete(kind, NAMESPACE, "jos")
    objects.create("roles", {"metadata": named, "rules": rules})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "jos"}
    subject = {"kind": "ServiceAccount", "name": "jos-controller", "namespace": NAMESPACE}
    objects.create("rolebindings", {"metadata": named, "roleRef": role, "subjects": [subject]})
    return site.cluster.as_account("jos-controller")


@pytest.fixture
def site(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    return Site(cluster)
