"""The launcher for Kubernetes against an API server with Kubernetes' rules: one RayJob an attempt, all from watches."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kube.errors import invalid
from kube.fixtures import NAMESPACE, Cluster
from kube.shelf import kind_of

from jos.core.errors import ComputeFailed
from jos.core.model import Attempt, Gpu, Job, Pipeline, Resources, Status
from jos.launch import kuberay
from jos.launch.base import DriverSeen, Offer, Waits
from jos.launch.kube_api import Kind, KubeApi
from jos.launch.kube_profile import KubeProfile, profile_of
from jos.launch.kube_stop import Deadlines
from jos.launch.kuberay import KubeRay, rights
from jos.launch.rayjob import rayjob

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


@pytest.fixture
def site(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    return Site(cluster)


async def until(what: Callable[[], Awaitable[T]], seconds: float = 10.0) -> T:
    deadline = time.monotonic() + seconds
    while True:
        if found := await what():
            return found
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


async def state(launcher: KubeRay, name: str, wanted: str, seconds: float = 10.0) -> DriverSeen:
    async def there() -> DriverSeen | None:
        found = (await launcher.seen()).get(name)
        return found if found is not None and found.state == wanted else None

    return await until(there, seconds)


NAME, DRIVER = f"jos-job-{1:026d}-1", f"jos-job_{1:026d}-1"


def test_an_attempt_becomes_one_rayjob_however_often_and_by_whomever_it_is_ordered(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher, site.launcher() as other:
            await asyncio.gather(launcher.start(job()), other.start(job()))
            await state(launcher, DRIVER, "starting")
            first = site.rayjobs[NAME]["metadata"]["resourceVersion"]
            for _ in range(3):
                await launcher.start(job())
                await other.start(job())
            [made] = site.rayjobs.values()
            assert made["metadata"]["resourceVersion"] == first
            assert made["spec"]["jobId"] == DRIVER
            assert made["metadata"]["annotations"]["jos.dev/token"] == "t1"
            assert f"attempt job_{1:026d} t1 --name {DRIVER}" in made["spec"]["entrypoint"]
            seen = (await launcher.seen())[DRIVER]
            assert (seen.state, seen.waits and seen.waits.reason) == ("starting", "WaitingForOperator")
        assert site.read == 2  # once for each of them

    asyncio.run(work())


def test_an_attempt_that_ended_or_was_taken_is_not_made_again(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            site.runs(NAME)
            site.status(
                NAME, "Failed", "FAILED", reason="AppFailed", message="Job entrypoint command failed with exit code 3"
            )
            ended = await state(launcher, DRIVER, "ended")
            assert (ended.exit_code, ended.message) == (3, "Job entrypoint command failed with exit code 3")
            site.delete("rayjobs", NAME)
            await until(lambda: _false(NAME in launcher.cache.rayjobs))
            await launcher.start(job())
            assert (await launcher.seen())[DRIVER] == ended  # remembered
            taken = job(2)
            assert taken.attempt is not None
            await launcher.start(taken.model_copy(update={"attempt": taken.attempt.model_copy(update={"driver": "d"})}))
            assert site.rayjobs == {}

    asyncio.run(work())


async def _false(value: bool) -> bool:
    return not value


def test_a_driver_whose_head_is_deleted_ends_at_once_and_its_rayjob_goes(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            site.runs(NAME)
            await state(launcher, DRIVER, "running")
            site.delete("pods", f"{NAME}-head")
            ended = await state(launcher, DRIVER, "ended", 2.0)
            assert "was deleted on node n1: its driver is lost" in ended.message
            await until(lambda: _looked(launcher, site.rayjobs == {}))
            assert (await launcher.seen())[DRIVER] == ended

    asyncio.run(work())


async def _looked(launcher: KubeRay, value: bool) -> bool:
    await launcher.seen()
    return value


def test_a_head_that_died_while_no_controller_looked_is_missed_soon(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jos.launch.rayjob_truth.HEADLESS", timedelta(seconds=0.3))

    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
        site.runs(NAME)
        site.delete("pods", f"{NAME}-head")
        async with site.launcher() as launcher:
            ended = await state(launcher, DRIVER, "ended", 2.0)
            assert ended.message == "The head pod of its Ray cluster is gone: its driver is lost."
            await until(lambda: _looked(launcher, site.rayjobs == {}))

    asyncio.run(work())


def test_what_kuberay_wipes_is_remembered(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            site.runs(NAME)
            await state(launcher, DRIVER, "running")
            site.status(NAME, "Retrying", "FAILED", failed=1, reason="AppFailed", message="boom 1")
            assert (await state(launcher, DRIVER, "ended")).message == "boom 1"
            site.status(NAME, "Running", "RUNNING", failed=1, message="fine")
            await until(lambda: _looked(launcher, site.rayjobs == {}))  # a second try is none of ours
            assert (await launcher.seen())[DRIVER].message == "boom 1"

    asyncio.run(work())


def test_a_rayjob_that_somebody_deletes_is_a_driver_that_ended(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            site.runs(NAME)
            await state(launcher, DRIVER, "running")
            site.delete("rayjobs", NAME)
            ended = await state(launcher, DRIVER, "ended")
            assert ended.message == f"Its RayJob {NAME} was deleted, and not by JOS."

    asyncio.run(work())


def test_a_rayjob_that_ended_long_ago_is_deleted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            site.runs(NAME)
            site.status(NAME, "Complete", "SUCCEEDED", endTime=datetime.now(UTC).isoformat())
            await state(launcher, DRIVER, "ended")
            await launcher.seen()
            assert launcher._tidying is None  # it stays for people to look at
            monkeypatch.setattr(kuberay, "KEPT", timedelta())
            await until(lambda: _looked(launcher, site.rayjobs == {}))
            assert (await launcher.seen())[DRIVER].exit_code == 0

    asyncio.run(work())


# --- stopping -----------------------------------------------------------------------------------------


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


@pytest.fixture
def head() -> Iterator[Head]:
    found = Head()
    yield found
    found.close()


def test_a_driver_is_stopped_by_ray_and_its_rayjob_stays_to_tell_of_it(site: Site, head: Head) -> None:
    async def work() -> None:
        async with site.launcher(deadlines=Deadlines(drain=30.0)) as launcher:
            await launcher.start(job())
            site.runs(NAME, head.address)
            await state(launcher, DRIVER, "running")
            for _ in range(3):
                await launcher.stop(DRIVER)
            assert head.stopped == [f"/api/jobs/{DRIVER}/stop"]
            site.status(NAME, "Complete", "STOPPED", message="Job was intentionally stopped.")
            ended = await state(launcher, DRIVER, "ended")
            assert ended.message == "Job was intentionally stopped."
            await launcher.stop(DRIVER)  # one that ended is no error
            assert NAME in site.rayjobs
            assert launcher.api.calls["delete rayjobs"] == 0

    asyncio.run(work())


def test_a_driver_that_does_not_end_in_time_is_deleted_with_its_rayjob(site: Site, head: Head) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            site.runs(NAME, head.address)
            await state(launcher, DRIVER, "running")
            asked = time.monotonic()
            await launcher.stop(DRIVER)
            assert (await state(launcher, DRIVER, "ended")).message == "The driver was stopped."
            assert QUICK.drain <= time.monotonic() - asked < QUICK.drain + 3
            assert site.rayjobs == {}

    asyncio.run(work())


@pytest.mark.parametrize("dashboard", ["127.0.0.1:1", "no-such-head.invalid:8265"])
def test_a_driver_whose_head_does_not_answer_is_deleted_without_waiting(site: Site, dashboard: str) -> None:
    async def work() -> None:
        async with site.launcher(deadlines=Deadlines(drain=60.0)) as launcher:
            await launcher.start(job())
            site.runs(NAME, dashboard)
            await state(launcher, DRIVER, "running")
            await launcher.stop(DRIVER)
            await state(launcher, DRIVER, "ended")
            assert site.rayjobs == {}

    asyncio.run(work())


def test_a_rayjob_that_its_operator_does_not_let_go_goes_all_the_same(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            site.runs(NAME)
            site.finalizer(NAME)
            await state(launcher, DRIVER, "running")
            asked = time.monotonic()
            await launcher.stop(DRIVER)
            await state(launcher, DRIVER, "ended")
            assert time.monotonic() - asked >= QUICK.deletion
            assert site.rayjobs == {}

    asyncio.run(work())


def test_a_driver_that_is_not_up_yet_is_stopped_by_deleting_it(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            await launcher.stop(DRIVER)  # the watch may not have told of it yet
            await until(lambda: _looked(launcher, site.rayjobs == {}))
            await launcher.stop(DRIVER)
            await launcher.stop("jos-job_nobody-1")
            await launcher.start(job(2))
            other = f"jos-job_{2:026d}-1"
            await state(launcher, other, "starting")
            await launcher.stop(other)
            assert (await state(launcher, other, "ended")).message == "The driver was stopped before it was up."

    asyncio.run(work())


# --- an API server that is away -----------------------------------------------------------------------


def test_a_server_that_comes_back_is_heard_where_it_stopped(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            await state(launcher, DRIVER, "starting")
            lists = {call: count for call, count in launcher.api.calls.items() if call.startswith("list")}
            await asyncio.to_thread(site.cluster.server.down)
            site.runs(NAME)
            await asyncio.to_thread(site.cluster.server.up)
            await state(launcher, DRIVER, "running")
            await asyncio.to_thread(site.cluster.server.drop)
            site.status(NAME, "Complete", "SUCCEEDED")
            await state(launcher, DRIVER, "ended")
            assert {call: launcher.api.calls[call] for call in lists} == lists

    asyncio.run(work())


def test_a_server_that_has_forgotten_where_it_was_is_listed_again(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            for number in (1, 2):
                await launcher.start(job(number))
            site.runs(NAME)
            await state(launcher, DRIVER, "running")
            await asyncio.to_thread(site.cluster.server.down)
            site.delete("rayjobs", f"jos-job-{2:026d}-1")
            site.delete("pods", f"{NAME}-head")
            site.cluster.server.expire()
            await asyncio.to_thread(site.cluster.server.up)
            gone = await state(launcher, f"jos-job_{2:026d}-1", "ended")
            assert "was deleted, and not by JOS" in gone.message
            assert "The head pod" in (await state(launcher, DRIVER, "ended")).message
            assert launcher.api.calls["list rayjobs"] == 2

    asyncio.run(work())


def test_a_server_that_stays_away_is_no_cluster_without_drivers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jos.launch.kube_watch.STALE", 0.5)
    monkeypatch.setattr("jos.launch.kube_watch.PATIENCE", 1.0)

    async def answers(launcher: KubeRay) -> bool:
        try:
            await launcher.seen()
        except ComputeFailed:
            return False
        return True

    async def silent(launcher: KubeRay) -> bool:
        return not await answers(launcher)

    async def work() -> None:
        async with site.launcher() as launcher, site.launcher() as late:
            await launcher.start(job())
            await state(launcher, DRIVER, "starting")
            await asyncio.to_thread(site.cluster.server.down)
            await until(lambda: silent(launcher))
            for call in (late.seen(), late.start(job(2)), late.stop(DRIVER), launcher.seen(), launcher.start(job(2))):
                with pytest.raises(ComputeFailed, match="cannot be reached") as told:
                    await call
                assert told.value.retryable
            await asyncio.to_thread(site.cluster.server.up)
            for one in (late, launcher):
                await until(lambda one=one: answers(one), 20.0)  # type: ignore[misc]
                await state(one, DRIVER, "starting")

    asyncio.run(work())


def test_a_busy_server_is_asked_again(site: Site) -> None:
    async def work() -> None:
        site.cluster.server.fail(2, 503, verb="list", resource="pods")
        site.cluster.server.fail(2, 429, verb="watch", resource="rayjobs")
        async with site.launcher() as launcher:
            await launcher.start(job())
            await state(launcher, DRIVER, "starting")

    asyncio.run(work())


# --- what goes wrong is told --------------------------------------------------------------------------


def test_what_the_cluster_refuses_ends_the_attempt_with_the_field_that_is_wrong(site: Site) -> None:
    def no(review: Any) -> None:
        if review.resource == "rayjobs":
            raise invalid(kind_of("rayjobs"), NAME, ["spec.entrypoint: Invalid value: must not be so"])

    async def work() -> None:
        site.cluster.objects.validators.append(no)
        async with site.launcher() as launcher:
            await launcher.start(job())
            ended = (await launcher.seen())[DRIVER]
            assert ended.state == "ended"
            assert "spec.entrypoint: Invalid value: must not be so" in ended.message
            assert "Check the profile (JOS_KUBE)" in ended.message

    asyncio.run(work())


def test_a_profile_that_does_not_know_the_gpu_ends_the_attempt_with_what_to_do(site: Site) -> None:
    wanted = Resources(gpu=Gpu(count=1, type="H100", required=True))

    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job(resources=wanted))
            assert "needs a GPU of type H100" in (await launcher.seen())[DRIVER].message

    asyncio.run(work())


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


@pytest.mark.parametrize("lacking", ["list", "watch", "create", "patch", "delete"])
def test_a_right_that_is_missing_is_named(site: Site, lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jos.launch.kube_watch.PATIENCE", 1.0)
    monkeypatch.setattr("jos.launch.kube_watch.STALE", 0.1)
    given = {kind: verbs - {lacking} if kind.plural == "rayjobs" else verbs for kind, verbs in RIGHTS.items()}
    monkeypatch.setenv("KUBECONFIG", str(grant(site, given)))

    async def all_of_it(launcher: KubeRay) -> bool:
        await launcher.start(job())
        await launcher.stop(DRIVER)
        await launcher.seen()
        return False

    async def work() -> None:
        async with site.launcher() as launcher:
            with pytest.raises(ComputeFailed) as told:
                await until(lambda: all_of_it(launcher))
            assert f"the verb `{lacking}` on `rayjobs` of API group `ray.io` in namespace jos" in str(told.value)

    asyncio.run(work())


RIGHTS = rights(KubeProfile())


def test_all_rights_that_are_asked_for_are_used_and_no_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    given = rights(KUEUE)
    monkeypatch.setenv("KUBECONFIG", str(grant(site, given)))

    async def work() -> None:
        async with site.launcher(KUEUE) as launcher:
            await launcher.offer(job(attempt=None), "t1")
            await until(lambda: _looked(launcher, NAME in launcher.cache.rayjobs))
            await launcher.offer(job(attempt=None, priority=100), "t1")
            await launcher.withdraw(job().id)
            await until(lambda: _looked(launcher, site.rayjobs == {}))

    asyncio.run(work())
    used = site.cluster.server.guard.used[f"system:serviceaccount:{NAMESPACE}:jos-controller"]
    asked = {(verb, kind.group, kind.plural, "") for kind, verbs in given.items() for verb in verbs}
    assert used - {("create", "ray.io", "rayjobs", "")} == asked - {("create", "ray.io", "rayjobs", "")}


def test_a_namespace_that_is_not_there_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        launcher = KubeRay(KubeApi.connect("elsewhere"), KubeProfile(namespace="elsewhere"), "0123abcd", _no_pipeline)
        try:
            with pytest.raises(ComputeFailed) as told:
                await launcher.start(job())
            assert "kubectl create namespace elsewhere" in str(told.value)
        finally:
            await launcher.close()

    asyncio.run(work())


async def _no_pipeline(_job: Job) -> Pipeline:
    return PIPELINE


# --- Kueue --------------------------------------------------------------------------------------------


def kueue(site: Site, name: str, *conditions: tuple[str, str, str, str]) -> None:
    """What Kueue says in the Workload of a RayJob."""
    owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": name, "uid": site.rayjobs[name]["metadata"]["uid"]}
    found = [w for w in site.cluster.objects.list("workloads", NAMESPACE) if w["metadata"]["name"] == f"w-{name}"]
    spec = {"queueName": "default", "podSets": [{"name": "head", "count": 1, "template": _POD}]}
    metadata = {"name": f"w-{name}", "namespace": NAMESPACE, "ownerReferences": [owner]}
    made = found[0] if found else site.cluster.objects.create("workloads", {"metadata": metadata, "spec": spec})
    at = "2026-11-25T00:00:00Z"
    told = [
        {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at}
        for kind, status, reason, message in conditions
    ]
    site.cluster.objects.replace_status("workloads", made | {"status": {"conditions": told}})


_POD = {"spec": {"containers": [{"name": "ray-head", "image": "jos:1"}]}}
ADMITTED = (("QuotaReserved", "True", "QuotaReserved", ""), ("Admitted", "True", "Admitted", ""))


def suspend(site: Site, name: str, suspended: bool) -> None:
    site.cluster.objects.patch("rayjobs", NAMESPACE, name, {"spec": {"suspend": suspended}})


async def offered(launcher: KubeRay, admitted: bool) -> Offer:
    async def there() -> Offer | None:
        found = (await launcher.offered()).get(job().id)
        return found if found is not None and found.admitted is admitted else None

    return await until(there)


def webhook(review: Any) -> None:
    """Kueue's: what has a queue begins suspended."""
    if review.resource == "rayjobs" and review.operation == "CREATE":
        review.obj["spec"]["suspend"] = True


def test_a_job_stands_in_kueue_s_queue_until_it_is_admitted_there(site: Site) -> None:
    site.cluster.objects.mutators.append(webhook)
    waits = job(attempt=None, priority=5)

    async def work() -> None:
        async with site.launcher(KUEUE) as launcher:
            for token in ("t1", "another", "and another"):
                await launcher.offer(waits, token)
            [made] = site.rayjobs.values()
            labels = made["metadata"]["labels"]
            assert labels["kueue.x-k8s.io/queue-name"] == "default"
            assert labels["kueue.x-k8s.io/priority-class"] == "low"
            assert await offered(launcher, False) == Offer(waits.id, "t1", False, "Kueue is about to look at it.")
            kueue(site, NAME, ("QuotaReserved", "False", "Pending", "insufficient unused quota for cpu"))
            told = "Kueue: insufficient unused quota for cpu"
            await until(lambda: _told(launcher, told))
            seen = (await launcher.seen())[DRIVER]
            assert (seen.suspended, seen.waits) == (True, Waits("WaitingInKueue", told))
            kueue(site, NAME, *ADMITTED)
            suspend(site, NAME, False)
            assert (await offered(launcher, True)).token == "t1"
            await launcher.start(job())  # the same RayJob drives it
            assert len(site.rayjobs) == 1
            site.runs(NAME)
            await state(launcher, DRIVER, "running")
            suspend(site, NAME, True)  # preempted
            kueue(site, NAME, *ADMITTED, ("Evicted", "True", "Preempted", "Preempted to accommodate a workload"))
            assert (await offered(launcher, False)).message == "Kueue: Preempted to accommodate a workload"
            assert (await launcher.seen())[DRIVER].suspended
            assert "suspend" not in _applied_fields(site, NAME)

    asyncio.run(work())


async def _told(launcher: KubeRay, message: str) -> bool:
    return (await launcher.offered())[job().id].message == message


def _applied_fields(site: Site, name: str) -> str:
    """What JOS owns of it."""
    kept = site.cluster.objects.kept("rayjobs", NAMESPACE, name)
    return str([manager for manager in kept.managers if manager.name == "jos"])


def test_a_job_s_priority_changes_in_kueue_and_nothing_else_does(site: Site) -> None:
    site.cluster.objects.mutators.append(webhook)

    async def work() -> None:
        async with site.launcher(KUEUE) as launcher:
            await launcher.offer(job(attempt=None, priority=5), "t1")
            await offered(launcher, False)
            before = site.rayjobs[NAME]
            await launcher.offer(job(attempt=None, priority=150), "t2")
            after = site.rayjobs[NAME]
            assert after["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
            assert after["spec"] == before["spec"]
            assert after["metadata"]["annotations"] == before["metadata"]["annotations"]

    asyncio.run(work())


def test_an_offer_is_withdrawn_and_a_driver_that_runs_is_not(site: Site) -> None:
    site.cluster.objects.mutators.append(webhook)

    async def work() -> None:
        async with site.launcher(KUEUE) as launcher:
            await launcher.offer(job(attempt=None), "t1")
            await launcher.withdraw(job().id)  # the watch may not have told of it yet
            assert site.rayjobs == {}
            await until(lambda: _looked(launcher, not launcher.cache.rayjobs))
            await launcher.withdraw(job().id)
            await launcher.offer(job(attempt=1).model_copy(update={"status": Status.PENDING}), "t2")
            [name] = site.rayjobs
            assert name == f"jos-job-{1:026d}-2"
            suspend(site, name, False)
            site.runs(name)
            await state(launcher, name.replace("jos-job-", "jos-job_"), "running")
            await launcher.withdraw(job().id)
            assert list(site.rayjobs) == [name]

    asyncio.run(work())


def test_an_offer_that_the_cluster_refuses_says_why(site: Site) -> None:
    profile = profile_of({"admission": "kueue", "kueue": {}}, "test")

    async def work() -> None:
        async with site.launcher(profile) as launcher:
            await launcher.offer(job(attempt=None, queue="Team A"), "t1")
            offer = (await launcher.offered())[job().id]
            assert not offer.admitted
            assert "cannot be the name of a LocalQueue" in offer.message

    asyncio.run(work())


# --- many ---------------------------------------------------------------------------------------------


def test_a_thousand_rayjobs_cost_one_call_each_and_a_look_some_milliseconds(site: Site) -> None:
    many, last = 1000, 999

    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.seen()
            template = rayjob(job(), PIPELINE, KubeProfile(), token="t", number=1, installation="0123abcd")
            for number in range(1, many):
                other = f"jos-job-{number:026d}-1"
                labels = template["metadata"]["labels"] | {"jos.dev/job": f"job_{number:026d}"}
                metadata = template["metadata"] | {"name": other, "labels": labels}
                spec = template["spec"] | {"jobId": f"jos-job_{number:026d}-1"}
                site.cluster.objects.create("rayjobs", template | {"metadata": metadata, "spec": spec})
            await launcher.start(job(many))
            await until(lambda: _looked(launcher, len(launcher.cache.rayjobs) == many), 60)
            began = time.perf_counter()
            for _ in range(10):
                await launcher.seen()
            looked = (time.perf_counter() - began) / 10
            name = f"jos-job-{last:026d}-1"
            site.status(name, "Complete", "SUCCEEDED")
            changed = time.perf_counter()
            await state(launcher, f"jos-job_{last:026d}-1", "ended")
            heard = time.perf_counter() - changed
            print(f"{looked * 1000:.1f} ms a look at {many} RayJobs, {heard * 1000:.0f} ms from a change to its effect")
            print(dict(launcher.api.calls))
            assert looked < 0.1
            assert launcher.api.calls["patch rayjobs"] == 1
            assert launcher.api.calls.total() < 20  # lists and watches, however many jobs there are

    asyncio.run(work())
