"""The launcher for Kubernetes where Kueue admits: jobs stand in its queues as suspended RayJobs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from kube.fixtures import NAMESPACE
from kuberay_lab import DRIVER, KUEUE, NAME, NOW, Site, job, looked, state, until

from jos.core.model import Status
from jos.launch import kube_known, kueue_says
from jos.launch.base import Offer, Waits
from jos.launch.kube_api import Refused
from jos.launch.kuberay import KubeRay

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
            assert await offered(launcher, False) == Offer(waits.id, "t1", False, "", 1)
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
            assert "entrypoint" in _applied_fields(site, NAME)
            assert "suspend" not in _applied_fields(site, NAME)

    asyncio.run(work())


def test_what_keeps_an_offer_from_ever_being_admitted_is_told_with_what_to_do(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kueue_says, "IGNORED", timedelta(seconds=-5))
    site.cluster.objects.mutators.append(webhook)

    async def said(launcher: KubeRay, words: str) -> bool:
        offers = await launcher.offered()
        return job().id in offers and words in offers[job().id].message

    async def work() -> None:
        async with site.launcher(KUEUE) as launcher:
            await launcher.offer(job(attempt=None, priority=5), "t1")
            await until(lambda: said(launcher, "Check that WorkloadPriorityClass low exists"))
            kueue(site, NAME, ("QuotaReserved", "False", "Inadmissible", "LocalQueue default doesn't exist"))
            await until(lambda: said(launcher, f"Create LocalQueue default in namespace {NAMESPACE}"))

    asyncio.run(work())


async def _told(launcher: KubeRay, message: str) -> bool:
    return (await launcher.offered())[job().id].message == message


def _applied_fields(site: Site, name: str) -> str:
    """What JOS owns of it."""
    kept = site.cluster.objects.kept("rayjobs", NAMESPACE, name)
    return str([manager for manager in kept.managers if manager.name.startswith("jos-")])


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
            label = "kueue.x-k8s.io/priority-class"
            await until(lambda: looked(launcher, launcher.cache.rayjobs[NAME]["metadata"]["labels"][label] == "high"))
            await launcher.offer(job(attempt=None, priority=-1), "t3")  # below every band
            assert site.rayjobs == {}  # Kueue would refuse to let the label go
            await until(lambda: looked(launcher, not launcher.cache.rayjobs))
            await launcher.offer(job(attempt=None, priority=-1), "t4")
            assert label not in site.rayjobs[NAME]["metadata"]["labels"]

    asyncio.run(work())


def test_an_offer_is_withdrawn_and_a_driver_that_runs_is_not(site: Site) -> None:
    site.cluster.objects.mutators.append(webhook)

    async def work() -> None:
        async with site.launcher(KUEUE) as launcher:
            await launcher.offer(job(attempt=None), "t1")
            await launcher.withdraw(job().id)  # the watch may not have told of it yet
            assert site.rayjobs == {}
            await until(lambda: looked(launcher, not launcher.cache.rayjobs))
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


def test_an_offer_that_the_cluster_refuses_says_why_and_is_tried_again_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with site.launcher(KUEUE) as launcher:
            for _ in range(3):
                with pytest.raises(Refused, match="cannot be the name of a LocalQueue"):
                    await launcher.offer(job(attempt=None, queue="Team A"), "t1")
            assert site.read == 1
            monkeypatch.setattr(kube_known, "AGAIN", 0.0)
            await launcher.offer(job(attempt=None), "t1")  # its queue was mended
            await offered(launcher, False)

    asyncio.run(work())


def test_an_offer_that_kuberay_refuses_is_made_anew(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with site.launcher(KUEUE) as launcher:
            await launcher.offer(job(attempt=None), "t1")
            await offered(launcher, False)
            site.status(NAME, "ValidationFailed", reason="ValidationFailed", message="no such field")
            await state(launcher, DRIVER, "ended")
            assert await launcher.offered() == {}
            with pytest.raises(Refused, match="no such field"):
                await launcher.offer(job(attempt=None), "t2")
            monkeypatch.setattr(kube_known, "AGAIN", 0.0)
            await until(lambda: looked(launcher, not launcher.cache.rayjobs))
            await launcher.offer(job(attempt=None), "t3")
            assert (await offered(launcher, False)).token == "t3"

    asyncio.run(work())


def test_an_offer_that_was_withdrawn_is_made_again_as_soon_as_it_is_wanted(site: Site) -> None:
    """As when an operator stops a queue and lets it go on: nobody has refused anything."""

    async def work() -> None:
        async with site.launcher(KUEUE) as launcher:
            await launcher.offer(job(attempt=None), "t1")
            await offered(launcher, False)
            await launcher.withdraw(job().id)
            await until(lambda: looked(launcher, not launcher.cache.rayjobs))
            await launcher.offer(job(attempt=None), "t2")
            assert (await offered(launcher, False)).token == "t2"

    asyncio.run(work())


def test_the_offer_of_the_next_attempt_counts_beside_what_is_left_of_the_last(site: Site) -> None:
    async def work() -> None:
        async with site.launcher(KUEUE) as launcher:
            await launcher.offer(job(attempt=None), "t1")
            await launcher.offer(job(attempt=1).model_copy(update={"status": Status.PENDING}), "t2")
            await until(lambda: looked(launcher, len(launcher.cache.rayjobs) == 2))
            offer = await offered(launcher, False)
            assert (offer.token, offer.number) == ("t2", 2)

    asyncio.run(work())


def test_an_attempt_that_was_taken_back_is_offered_again_as_it_stands(site: Site) -> None:
    async def work() -> None:
        async with site.launcher(KUEUE) as launcher:
            await launcher.offer(job(attempt=None), "t1")
            await offered(launcher, False)
            admitted = job()
            assert admitted.attempt is not None
            back = admitted.attempt.model_copy(update={"ended_at": NOW, "ended_by": "Recall"})
            await launcher.offer(admitted.model_copy(update={"attempt": back, "status": Status.PENDING}), "t1")
            assert list(site.rayjobs) == [NAME]

    asyncio.run(work())
