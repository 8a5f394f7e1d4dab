"""What the controller relies on, for every launcher: Ray Jobs on a head of JOS's own, with its dashboard; and RayJobs
on a fake cluster, whose drivers really run on that head."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest
from jobs_lab import HERE, Lab, alive, until
from kube.objects import Objects
from kube.server import Server
from kube.world import World

from jos.core.admission import Node
from jos.core.commands import Admit, Command
from jos.core.errors import ComputeFailed
from jos.core.model import Job, Pipeline, Status
from jos.launch import ray_head
from jos.launch.base import DriverSeen, Launcher
from jos.launch.kube_api import KubeApi
from jos.launch.kube_profile import profile_of
from jos.launch.kuberay import KubeRay
from jos.launch.ray_head import RayHead
from jos.launch.ray_jobs import WARM, RayJobs
from jos.store.drivers import Drivers
from jos.store.redis import Store

T = TypeVar("T")
GONE = 5.0  # seconds in which the indexes of a stopped driver are gone


class Site:
    """A home with its own Ray; each call has a launcher of its own, as a controller that just came up."""

    def __init__(self, lab: Lab, head: RayHead) -> None:
        self.lab, self.head = lab, head

    def launcher(self, store: Store) -> Launcher:
        return RayJobs(self.head.dashboard, Drivers(store.connection), self.lab.settings.storage_url)

    def ask(self, what: Callable[[Launcher], Awaitable[T]]) -> T:
        async def work() -> T:
            settings = self.lab.settings
            async with await Store.open(settings.redis_url, settings.redis_dir) as store:
                launcher = self.launcher(store)
                try:
                    return await what(launcher)
                finally:
                    await launcher.close()

        return asyncio.run(work())

    def transact(self, job_id: str, command: Command) -> Job:
        lab = self.lab
        return lab.engine._thread.call(lab.engine.parts.store.transact(job_id, command, datetime.now(UTC)))

    def admitted(self, count: int = 8, seconds: float = 0.0) -> Job:
        file = self.lab.write(f"{secrets.token_hex(4)}.jsonl", [{"text": f"a {n}"} for n in range(count)])
        job_id = self.lab.submit("shout", [file], span_records=4, seconds=seconds)
        return self.transact(job_id, Admit(secrets.token_hex(8), indexes=2))

    def start(self, job: Job) -> None:
        self.ask(lambda launcher: launcher.start(job))

    def seen(self) -> dict[str, DriverSeen]:
        return self.ask(lambda launcher: launcher.seen())

    def done(self, job: Job) -> Job:
        until(lambda: self.lab.get(job.id).status.terminal and not self.lab.get(job.id).holds_capacity, 90)
        return self.lab.get(job.id)

    def idle(self) -> list[str]:
        lab = self.lab
        return lab.engine._thread.call(Drivers(lab.engine.parts.store.connection).idle())


class KubeSite(Site):
    """The same behind Kubernetes: an API server and a KubeRay whose clusters all are that one Ray."""

    def __init__(self, lab: Lab, head: RayHead, folder: Path) -> None:
        super().__init__(lab, head)
        objects = Objects(namespaces=("jos",))
        self.server = Server(objects)
        self.world = World.on_ray(objects, head.dashboard)
        self.kubeconfig = self.server.kubeconfig(folder / "kubeconfig", namespace="jos")
        told = {name: value for name, value in lab.environment.items() if name.startswith(("JOS_", "PYTHONPATH"))}
        self.profile = profile_of({"env": told}, "this test")

    def launcher(self, store: Store) -> Launcher:
        async def pipeline_of(job: Job) -> Pipeline:
            return self.lab.engine.parts.registry.get(job.pipeline_key, job.pipeline_version)

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(self.kubeconfig))
            return KubeRay(KubeApi.connect("jos"), self.profile, "0123abcd", pipeline_of)

    def close(self) -> None:
        self.world.close()
        self.server.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    lab = Lab(tmp_path_factory.mktemp("site"), None, pipelines=(HERE / "pipelines",))
    settings = {k: v for k, v in lab.environment.items() if k.startswith(("JOS_", "PYTHONPATH"))}
    lab.engine  # noqa: B018  # starts the store: it ends with this process, not with a driver
    head = ray_head.start(lab.settings.home_dir, settings, cpus=4)
    try:
        yield Site(lab, head)
    finally:
        ray_head.stop(lab.settings.home_dir)
        lab.close()


@pytest.fixture(scope="module")
def kube_site(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    found = KubeSite(site.lab, site.head, tmp_path_factory.mktemp("kube"))
    yield found
    found.close()


@pytest.fixture(params=["site", "kube_site"], ids=["ray", "kuberay"])
def either(request: pytest.FixtureRequest) -> Site:
    found: Site = request.getfixturevalue(request.param)
    return found


def test_a_started_attempt_is_driven_once_however_often_it_is_asked_for(either: Site) -> None:
    job = either.admitted()
    for _ in range(3):
        either.start(job)
    ended = either.done(job)
    name = either.ask(lambda launcher: _named(launcher, job))
    assert (ended.status, ended.attempt and ended.attempt.driver) == (Status.COMPLETED, name)
    driver = until(lambda: (d := either.seen()[name]).state == "ended" and d)
    assert driver.exit_code == 0
    assert driver.started_at is not None
    either.start(job)  # long after its end: still the same process
    assert list(either.seen()).count(name) == 1
    assert len(either.lab.events(job.id, "job.started")) == 1


async def _named(launcher: Launcher, job: Job) -> str:
    return launcher.name_of(job)


def test_a_stopped_driver_and_its_indexes_are_gone_soon(either: Site) -> None:
    job = either.admitted(600, seconds=0.1)
    either.start(job)
    pids = [e.payload["pid"] for e in either.lab.wait_for(job.id, "index.started", 2)]
    taken = either.lab.get(job.id).attempt
    assert taken is not None
    either.ask(lambda launcher: launcher.stop(taken.driver))
    until(lambda: not any(map(alive, [*pids, taken.pid])), GONE)
    until(lambda: either.seen()[taken.driver].state == "ended")
    either.ask(lambda launcher: launcher.stop(taken.driver))  # again: no error
    assert not either.lab.get(job.id).holds_capacity  # it had time for its last word


def test_stopping_a_driver_that_never_was_is_no_error(either: Site) -> None:
    either.ask(lambda launcher: launcher.stop("jos-job_nobody-1"))


def test_a_driver_that_fails_says_why(either: Site) -> None:
    job = either.admitted()
    gone = job.model_copy(update={"id": "job_" + secrets.token_hex(13)})  # a name is good once on one Ray
    either.start(gone)
    name = either.ask(lambda launcher: _named(launcher, gone))
    driver = until(lambda: (d := either.seen()[name]).state == "ended" and d, 60)
    assert driver.exit_code == 3
    assert driver.message


def test_the_nodes_are_told_as_admission_knows_them(site: Site) -> None:
    [node] = until(lambda: site.ask(lambda launcher: launcher.nodes()))
    assert isinstance(node, Node)
    assert node.resources["cpu"] == 4
    assert node.resources["memory"] > 1e9
    assert "gpu" not in node.resources


def test_warm_drivers_are_kept_and_take_the_next_job(site: Site) -> None:
    for _ in range(3):  # however often it is asked: one
        site.ask(lambda launcher: launcher.keep_warm(1))
    [name] = until(site.idle)
    site.ask(lambda launcher: launcher.keep_warm(1))
    live = [n for n, d in site.seen().items() if n.startswith(WARM) and d.state != "ended"]
    assert live == [name]
    job = site.admitted()
    for _ in range(2):
        site.start(job)
    attempt = site.done(job).attempt
    assert attempt is not None
    assert attempt.driver == name
    assert site.ask(lambda launcher: _named(launcher, job)) not in site.seen()
    until(lambda: site.idle() == [name])


def test_a_killed_warm_driver_is_replaced(site: Site) -> None:
    [name] = until(lambda: site.ask(lambda launcher: launcher.keep_warm(1)) or site.idle())
    site.ask(lambda launcher: launcher.stop(name))
    until(lambda: site.seen()[name].state == "ended")
    until(lambda: site.ask(lambda launcher: launcher.keep_warm(1)) or set(site.idle()) - {name}, every=0.5)


def test_a_cluster_that_cannot_be_reached_is_told_and_worth_another_try(site: Site) -> None:
    job = site.admitted()
    lost = Site(site.lab, RayHead("127.0.0.1:1", "http://127.0.0.1:1", 0, "", ""))

    async def driven(launcher: Launcher) -> None:
        assert isinstance(launcher, RayJobs)
        await launcher._submit("jos-x-1", "attempt", {})

    asked: list[Callable[[Launcher], Awaitable[object]]] = [
        lambda launcher: launcher.seen(),
        lambda launcher: launcher.nodes(),
        lambda launcher: launcher.stop("jos-x-1"),
        lambda launcher: launcher.keep_warm(1),
        driven,
    ]
    for what in asked:
        with pytest.raises(ComputeFailed, match="cannot be reached") as raised:
            lost.ask(what)
        assert raised.value.retryable
    assert site.lab.get(job.id).status is Status.ADMITTED


def test_a_kubernetes_that_cannot_be_reached_is_told_and_worth_another_try(kube_site: Site) -> None:
    assert isinstance(kube_site, KubeSite)
    job = kube_site.admitted()
    kube_site.server.down()
    try:
        asked: list[Callable[[Launcher], Awaitable[object]]] = [
            lambda launcher: launcher.seen(),
            lambda launcher: launcher.stop("jos-x-1"),
            lambda launcher: launcher.start(job),
        ]
        for what in asked:
            with pytest.raises(ComputeFailed, match="cannot be reached") as raised:
                kube_site.ask(what)
            assert raised.value.retryable
    finally:
        kube_site.server.up()


def test_on_kubernetes_only_quotas_limit_and_no_driver_is_kept_warm(kube_site: Site) -> None:
    assert kube_site.ask(lambda launcher: launcher.nodes()) is None
    before = kube_site.seen()
    kube_site.ask(lambda launcher: launcher.keep_warm(2))
    assert kube_site.seen().keys() == before.keys()


def test_no_setting_can_be_seen_in_what_the_dashboard_shows(site: Site) -> None:
    async def shown(launcher: Launcher) -> str:
        assert isinstance(launcher, RayJobs)
        jobs = (await launcher._ask("GET", "/api/jobs/")).json()
        ours = [job for job in jobs if "JOS_LAB_SUBMISSION" not in str(job)]  # the others stand for pods of Kubernetes
        return str([{**job, "message": ""} for job in ours])  # what drivers said last is no setting

    text = site.ask(shown)
    assert "jos.driver attempt" in text
    assert "JOS_" not in text
    assert str(site.lab.settings.home_dir) not in text
