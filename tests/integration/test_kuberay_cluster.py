"""The launcher for Kubernetes and its API server: away and back, forgetful, full of RayJobs, and unwilling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from kube.errors import invalid
from kube.fixtures import NAMESPACE
from kube.shelf import kind_of
from kuberay_lab import DRIVER, KUEUE, NAME, PIPELINE, Site, grant, job, looked, state, until

from jos.core.errors import ComputeFailed
from jos.core.model import Gpu, Job, Pipeline, Resources
from jos.launch.kube_api import Change, Kind, KubeApi
from jos.launch.kube_profile import KubeProfile
from jos.launch.kuberay import KubeRay, rights
from jos.launch.rayjob import rayjob

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
            assert launcher.api.calls["list rayjobs"] in (2, 3)  # once more where the dead head is known by now
            assert "The head pod" in (await state(launcher, DRIVER, "ended")).message

    asyncio.run(work())


def test_a_server_that_stays_away_is_no_cluster_without_drivers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("STALE", 0.5), ("PATIENCE", 1.0), ("LONGEST_PAUSE", 0.5)):
        monkeypatch.setattr(f"jos.launch.kube_watch.{name}", seconds)

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


def test_a_quiet_watch_does_not_fall_behind(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bookmark tells it how far the cluster is, though nothing of ours has changed for long."""
    monkeypatch.setattr("jos.launch.kube_watch.LIFE", 1)
    cluster = site.cluster

    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.seen()
            before = launcher.api.calls["watch rayjobs"]
            for number in range(5):
                metadata = {"name": f"other-{number}", "namespace": NAMESPACE}
                cluster.objects.create("configmaps", {"metadata": metadata})
            await until(lambda: looked(launcher, launcher.api.calls["watch rayjobs"] >= before + 2))
            cluster.server.expire()
            await asyncio.to_thread(cluster.server.drop)
            await launcher.start(job())
            await state(launcher, DRIVER, "starting")
            assert launcher.api.calls["list rayjobs"] == 1

    asyncio.run(work())


def cut(launcher: KubeRay, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Kinds whose streams bring nothing any more, as where something between here and there was lost without a word."""
    deaf: set[str] = set()
    hear = launcher.api.watch

    @asynccontextmanager
    async def watch(kind: Kind, *more: Any) -> AsyncIterator[AsyncIterator[Change]]:
        async with hear(kind, *more) as changes:
            yield (change async for change in changes if kind.plural not in deaf)

    monkeypatch.setattr(launcher.api, "watch", watch)
    return deaf


def test_pods_that_a_silent_watch_does_not_tell_of_are_looked_for_before_a_driver_counts_as_lost(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jos.launch.rayjob_truth.HEADLESS", timedelta(seconds=0.2))

    async def work() -> None:
        async with site.launcher() as launcher:
            deaf = cut(launcher, monkeypatch)
            await launcher.start(job())
            await state(launcher, DRIVER, "starting")
            deaf.add("pods")
            site.runs(NAME)
            await state(launcher, DRIVER, "running")
            await until(lambda: looked(launcher, NAME in launcher.known.doubts._found))
            assert (await launcher.seen())[DRIVER].state == "running"
            assert NAME in site.rayjobs
            site.delete("pods", f"{NAME}-head")
            site.status(NAME, "Running", "RUNNING", rayClusterName="another")  # of which there is no head indeed
            await state(launcher, DRIVER, "ended")

    asyncio.run(work())


def test_a_head_that_was_deleted_for_a_suspension_is_no_loss_though_the_watch_of_rayjobs_is_silent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            deaf = cut(launcher, monkeypatch)
            await launcher.start(job())
            site.runs(NAME)
            await state(launcher, DRIVER, "running")
            deaf.add("rayjobs")
            site.cluster.objects.patch("rayjobs", NAMESPACE, NAME, {"spec": {"suspend": True}})
            site.delete("pods", f"{NAME}-head")
            assert (await state(launcher, DRIVER, "starting")).suspended

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
            await until(lambda: looked(launcher, NAME in launcher.cache.rayjobs))
            await launcher.offer(job(attempt=None, priority=100), "t1")
            await launcher.withdraw(job().id)
            await until(lambda: looked(launcher, site.rayjobs == {}))

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
            await until(lambda: looked(launcher, len(launcher.cache.rayjobs) == many), 60)
            began = time.thread_time()  # of the processor: others may use it, too
            for _ in range(10):
                await launcher.seen()
            look = (time.thread_time() - began) / 10
            name = f"jos-job-{last:026d}-1"
            site.status(name, "Complete", "SUCCEEDED")
            changed = time.perf_counter()
            await state(launcher, f"jos-job_{last:026d}-1", "ended")
            heard = time.perf_counter() - changed
            print(f"{look * 1000:.1f} ms a look at {many} RayJobs, {heard * 1000:.0f} ms from a change to its effect")
            print(dict(launcher.api.calls))
            assert look < 0.1
            assert launcher.api.calls["patch rayjobs"] == 1
            assert launcher.api.calls.total() < 20  # lists and watches, however many jobs there are

    asyncio.run(work())
