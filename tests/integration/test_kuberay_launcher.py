"""The launcher for Kubernetes against an API server with Kubernetes' rules: one RayJob an attempt, from its making to
its end, by whatever it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from kube.errors import ApiError
from kube.fixtures import NAMESPACE
from kube.policies import Review
from kuberay_lab import DRIVER, NAME, QUICK, Head, Site, job, looked, state, until

from jos.core.model import Job
from jos.launch.kube_api import Taken
from jos.launch.kube_profile import KubeProfile
from jos.launch.kube_stop import Deadlines


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
        assert site.read <= 2  # once for each of them, unless it saw what the other had made

    asyncio.run(work())


def again(token: str = "new") -> Job:
    """The same attempt number, given again after the store was lost."""
    found = job()
    assert found.attempt is not None
    return found.model_copy(update={"attempt": found.attempt.model_copy(update={"token": token})})


def test_a_rayjob_of_another_token_is_no_driver_of_this_attempt_and_makes_way_for_its_own(site: Site) -> None:
    async def work() -> None:
        async with site.launcher(deadlines=Deadlines(deletion=60.0)) as launcher:
            await launcher.start(job())
            site.runs(NAME)
            site.finalizer(NAME)
            assert (await state(launcher, DRIVER, "running")).token == "t1"
            old = site.rayjobs[NAME]["metadata"]["uid"]
            for _ in range(2):
                await launcher.start(again())
            await until(lambda: looked(launcher, "deletionTimestamp" in launcher.cache.rayjobs[NAME]["metadata"]))
            await launcher.start(again())
            assert site.rayjobs[NAME]["metadata"]["uid"] == old  # its operator has not let it go yet
            site.cluster.objects.patch("rayjobs", NAMESPACE, NAME, {"metadata": {"finalizers": []}})
            await until(lambda: looked(launcher, NAME not in launcher.cache.rayjobs))
            await launcher.start(again())
            made = await state(launcher, DRIVER, "starting")
            assert (made.token, len(site.rayjobs)) == ("new", 1)
            assert f" new --name {DRIVER}" in site.rayjobs[NAME]["spec"]["entrypoint"]
            await launcher.start(again())
            assert launcher.api.calls["patch rayjobs"] == 2

    asyncio.run(work())


def test_one_of_another_token_that_no_watch_told_of_is_not_written_over(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher, site.launcher() as blind:
            await blind.seen()
            await launcher.start(job())
            before = site.rayjobs[NAME]
            blind.cache.rayjobs.clear()
            with pytest.raises(Taken, match="conflict"):
                await blind._make(again(), "new", 1)
            assert site.rayjobs[NAME] == before

    asyncio.run(work())


def test_what_ended_with_another_token_says_nothing_of_this_attempt(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            site.runs(NAME)
            await state(launcher, DRIVER, "running")
            site.delete("rayjobs", NAME)
            assert (await state(launcher, DRIVER, "ended")).token == "t1"
            await launcher.start(again())
            assert (await state(launcher, DRIVER, "starting")).token == "new"

    asyncio.run(work())


def test_a_rayjob_that_was_made_again_since_is_not_deleted_in_place_of_the_one_that_is_known(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            await state(launcher, DRIVER, "starting")
            known = launcher.cache.rayjobs[NAME]
            launcher.cache.rayjobs[NAME] = known | {"metadata": known["metadata"] | {"uid": "one-before"}}
            await launcher._stopper.delete(NAME)
            assert "deletionTimestamp" not in site.rayjobs[NAME]["metadata"]

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
            await until(lambda: looked(launcher, NAME not in launcher.cache.rayjobs))
            await launcher.start(job())
            assert (await launcher.seen())[DRIVER] == ended  # remembered
            taken = job(2)
            assert taken.attempt is not None
            await launcher.start(taken.model_copy(update={"attempt": taken.attempt.model_copy(update={"driver": "d"})}))
            assert site.rayjobs == {}

    asyncio.run(work())


def test_a_driver_whose_head_is_deleted_ends_at_once_and_its_rayjob_goes(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            site.runs(NAME)
            await state(launcher, DRIVER, "running")
            site.delete("pods", f"{NAME}-head")
            ended = await state(launcher, DRIVER, "ended", 2.0)
            assert "was deleted on node n1: its driver is lost" in ended.message
            await until(lambda: looked(launcher, site.rayjobs == {}))
            assert (await launcher.seen())[DRIVER] == ended

    asyncio.run(work())


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
            await until(lambda: looked(launcher, site.rayjobs == {}))

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
            await until(lambda: looked(launcher, site.rayjobs == {}))  # a second try is none of ours
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


def test_a_rayjob_that_ended_long_ago_is_deleted(site: Site) -> None:
    async def work() -> None:
        async with site.launcher() as launcher:
            await launcher.start(job())
            site.runs(NAME)
            site.status(NAME, "Complete", "SUCCEEDED", endTime=datetime.now(UTC).isoformat())
            await state(launcher, DRIVER, "ended")
            await launcher.seen()
            assert launcher._tidying is None  # it stays for people to look at
            launcher._kept = timedelta()
            await until(lambda: looked(launcher, site.rayjobs == {}))
            assert (await launcher.seen())[DRIVER].exit_code == 0

    asyncio.run(work())


# --- stopping -----------------------------------------------------------------------------------------


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
            await until(lambda: looked(launcher, site.rayjobs == {}))
            await launcher.stop(DRIVER)
            await launcher.stop("jos-job_nobody-1")
            await launcher.start(job(2))
            other = f"jos-job_{2:026d}-1"
            await state(launcher, other, "starting")
            await launcher.stop(other)
            assert (await state(launcher, other, "ended")).message == "The driver was stopped before it was up."

    asyncio.run(work())


def test_a_rayjob_that_was_to_go_when_the_controller_died_goes_all_the_same(site: Site) -> None:
    async def work() -> None:
        async with site.launcher(deadlines=Deadlines(deletion=60.0)) as launcher:
            await launcher.start(job())
            site.runs(NAME)
            site.finalizer(NAME)
            await state(launcher, DRIVER, "running")
            site.delete("pods", f"{NAME}-head")
            await until(lambda: looked(launcher, "deletionTimestamp" in site.rayjobs[NAME]["metadata"]))
        site.status(NAME, "Failed", "FAILED", reason="AppFailed")
        async with site.launcher() as launcher:
            await until(lambda: looked(launcher, site.rayjobs == {}), 10.0)
            assert launcher.api.calls["delete rayjobs"] == 0  # it was asked for before

    asyncio.run(work())


def test_a_rayjob_that_may_not_be_deleted_keeps_no_other_one(site: Site) -> None:
    def policy(review: Review) -> None:
        if review.operation == "DELETE" and (review.old or review.obj)["metadata"]["name"] == NAME:
            raise ApiError(403, "Forbidden", "admission webhook denied the request: it is held")

    site.cluster.objects.validators.append(policy)

    async def work() -> None:
        async with site.launcher(KubeProfile(kept_seconds=0)) as launcher:
            for number in (1, 2):
                await launcher.start(job(number))
                site.status(f"jos-job-{number:026d}-1", "Complete", "SUCCEEDED", endTime="2026-11-25T00:00:00Z")
            await until(lambda: looked(launcher, list(site.rayjobs) == [NAME]), 10.0)

    asyncio.run(work())
