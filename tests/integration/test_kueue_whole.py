"""Controller, launcher, and a fake cluster with KubeRay and Kueue in it: jobs go through all of them, with drivers that
tell the store what real ones do."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from controller_lab import LIMITS, House, at_home, until
from fake_kueue import FakeKueue
from fake_launcher import FakeDriver, Script
from kube.fixtures import NAMESPACE, Cluster
from kube.kueue import webhook
from kube.samples import queue
from kube.standins import Scripted
from kube.world import World
from kuberay_lab import PIPELINE, QUICK
from valkey_lab import Valkey

from jos.controller.controller import Controller
from jos.core.model import Job, Pipeline, Status
from jos.launch.kube_api import KubeApi
from jos.launch.kube_profile import profile_of
from jos.launch.kuberay import KubeRay

PATIENT = replace(LIMITS, start=30, silence=5, evicted=1)
CLASSES = [{"at_least": 0, "name": "low"}, {"at_least": 100, "name": "high"}]
PROFILE = profile_of(
    {"admission": "kueue", "kueue": {"local_queues": {"default": "lq"}, "priority_classes": CLASSES}}, "test"
)


class Driving(Scripted):
    """Ray heads whose jobs are drivers in this process."""

    def __init__(self, house: House) -> None:
        super().__init__(lambda: datetime.now(UTC))
        self.loop = asyncio.get_running_loop()
        self.drivers = FakeKueue(house.store)
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def submit(
        self,
        submission_id: str,
        entrypoint: str,
        env: Mapping[str, str],
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> None:
        super().submit(submission_id, entrypoint, env, runtime_env, metadata)
        words = shlex.split(entrypoint)
        job_id, token = words[words.index("attempt") + 1 : words.index("attempt") + 3]
        name = words[words.index("--name") + 1]
        driver = FakeDriver(name, job_id, int(name.rpartition("-")[2]), token, Script())
        self.loop.call_soon_threadsafe(self._begin, submission_id, driver)

    def _begin(self, submission_id: str, driver: FakeDriver) -> None:
        driver.script = self.drivers.scripts(Job.model_construct(id=driver.job_id), driver.number)
        self.tasks[submission_id] = asyncio.create_task(self._drive(submission_id, driver))

    async def _drive(self, submission_id: str, driver: FakeDriver) -> None:
        await self.drivers._live(driver)
        if submission_id in self.jobs:  # its head may be gone
            self.say(submission_id, "FAILED" if driver.exit_code else "SUCCEEDED", f"exit code {driver.exit_code}")

    def head_gone(self, submission_id: str) -> None:
        super().head_gone(submission_id)
        self._kill(submission_id)

    def stop(self, submission_id: str) -> None:
        self._kill(submission_id)
        super().stop(submission_id)

    def _kill(self, submission_id: str) -> None:
        if (task := self.tasks.get(submission_id)) is not None:
            self.loop.call_soon_threadsafe(task.cancel)


Test = Callable[[House, Driving], Awaitable[None]]


def in_a_cluster(valkey: Valkey, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, test: Test, cpu: int) -> None:
    """With so many CPUs in Kueue's queue: a job of one index holds 2."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    cluster.objects.mutators.append(webhook)

    async def run(house: House) -> None:
        heads = Driving(house)
        world = World(cluster.objects, heads, start_seconds=lambda pod: 0.0, stop_seconds=0.0)
        world.kubelet.add_node("node-1", {"cpu": 64, "memory": "256Gi", "ephemeral-storage": "1Ti"})
        queue(cluster.objects, cpu=str(cpu), memory="256Gi", **{"ephemeral-storage": "1Ti"})
        world.start()

        async def pipeline_of(_job: Job) -> Pipeline:
            return PIPELINE

        house.launcher = KubeRay(KubeApi.connect(NAMESPACE), PROFILE, "0123abcd", pipeline_of, QUICK)  # type: ignore[assignment]
        try:
            await test(house, heads)
        finally:
            for one, task in house.running:
                if not task.done():
                    await house.kill(one)
            world.close()
            await heads.drivers.close()

    at_home(valkey.data_dir.parent, run)


def controller(house: House) -> Controller:
    return house.controller(offers=house.launcher, limits=PATIENT)


async def settled(house: House, cluster: Cluster, jobs: list[Job]) -> list[Job]:
    """Waits until all are over, and nothing of them is left in the cluster that could run; the jobs."""
    for job in jobs:
        await house.reaches(job, Status.COMPLETED, Status.CANCELLED, seconds=60)

    async def over() -> bool:
        deployments = [(o.get("status") or {}).get("jobDeploymentStatus") for o in cluster.objects.list("rayjobs")]
        held = any(job.holds_capacity for job in (await house.store.get_many([j.id for j in jobs])).values())
        return not held and all(deployment in ("Complete", "Failed") for deployment in deployments)

    await until(over, 30, "nothing is left in the cluster that could run")
    return list((await house.store.get_many([job.id for job in jobs])).values())


def test_a_job_that_kueue_preempts_for_a_higher_priority_goes_on_when_that_is_done(
    valkey: Valkey, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(house: House, heads: Driving) -> None:
        controller(house)
        low = await house.submit(priority=0)
        heads.drivers.scripts = lambda job, number: Script(work=None if (job.id, number) == (low.id, 1) else 5)
        await house.reaches(low, Status.RUNNING)
        high = await house.submit(priority=100)
        low, high = await settled(house, cluster, [low, high])
        assert low.attempt is not None
        assert (low.status, low.attempt.number, low.preemption_count, low.retry_count) == (Status.COMPLETED, 2, 1, 0)
        assert (high.status, high.preemption_count) == (Status.COMPLETED, 0)
        _, [told] = await house.store.events(low.id, event_type="job.preempted")
        assert told.message.startswith("Kueue: Preempted to accommodate a workload")
        assert len(set(heads.drivers.taken)) == len(heads.drivers.taken) == 3

    in_a_cluster(valkey, cluster, monkeypatch, test, cpu=3)


def test_a_preemption_that_was_over_before_any_controller_looked_costs_no_retry(
    valkey: Valkey, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(house: House, heads: Driving) -> None:
        one = controller(house)
        job = await house.submit(priority=0)
        heads.drivers.scripts = lambda job, number: Script(work=None if number == 1 else 5)
        await house.reaches(job, Status.RUNNING)
        await house.kill(one)
        await asyncio.sleep(1.1)  # Kueue's times have no fractions
        cluster.objects.patch("clusterqueues", None, "cq", {"spec": {"stopPolicy": "HoldAndDrain"}})
        await until(lambda: _deployment_is(cluster, "Suspended"))
        cluster.objects.patch("clusterqueues", None, "cq", {"spec": {"stopPolicy": "None"}})
        await until(lambda: _deployment_is(cluster, "Failed"), what="the driver that came up anew was not let in")
        controller(house)
        [done] = await settled(house, cluster, [job])
        assert done.attempt is not None
        assert (done.status, done.attempt.number, done.preemption_count, done.retry_count) == ("COMPLETED", 2, 1, 0)
        _, [told] = await house.store.events(job.id, event_type="job.preempted")
        assert told.message == "Kueue: The ClusterQueue is stopped"

    in_a_cluster(valkey, cluster, monkeypatch, test, cpu=3)


async def _deployment_is(cluster: Cluster, wanted: str) -> bool:
    return [(o.get("status") or {}).get("jobDeploymentStatus") for o in cluster.objects.list("rayjobs")] == [wanted]


def test_controllers_die_while_jobs_are_preempted_and_cancelled_and_each_job_ends_right(
    valkey: Valkey, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(house: House, heads: Driving) -> None:
        one, long = controller(house), Script(work=None)
        jobs = [await house.submit(priority=0) for _ in range(4)]
        low = {job.id for job in jobs}
        heads.drivers.scripts = lambda job, number: long if job.id in low else Script(work=30)
        running = await until(lambda: _running(house, jobs), what="two run")
        leave = [running[0], next(job.id for job in jobs if job.id not in running)]
        for cancelled in leave:
            jobs.append(await house.submit(priority=100))
            await house.kill(one)
            one = controller(house)
            await house.cancel(await house.store.get(cancelled))
            await house.reaches(jobs[-1], Status.RUNNING, Status.COMPLETED, seconds=30)
            await house.kill(one)
            one = controller(house)
        long.work = 0
        ended = {job.id: job for job in await settled(house, cluster, jobs)}
        for job in jobs:
            wanted = Status.CANCELLED if job.id in leave else Status.COMPLETED
            assert ended[job.id].status is wanted, ended[job.id]
        assert len(set(heads.drivers.taken)) == len(heads.drivers.taken), "two drivers of one attempt"

    in_a_cluster(valkey, cluster, monkeypatch, test, cpu=5)


async def _running(house: House, jobs: list[Job]) -> list[str] | None:
    """Two of them, once they run: Kueue's times have no fractions, so it takes jobs of one second in any order."""
    found = await house.store.get_many([job.id for job in jobs])
    running = [job.id for job in found.values() if job.status is Status.RUNNING]
    return running if len(running) == 2 else None
