"""JOS stands the ten pains of KubeRay, one test for each, on a fake cluster that has them (tests/contract/
test_fake_kuberay_pains.py and tests/contract/test_fake_kuberay.py prove that against recordings of the real one).

What stands them elsewhere, closer to its cause:

| pain | told by |
| --- | --- |
| 1 | tests/unit/test_attempts.py::test_what_becomes_of_a_driver |
| 2 | tests/unit/test_rayjob_truth.py::test_the_end_of_a_driver_is_told_with_its_cause |
| 2 | tests/unit/test_kube_replays.py::test_of_each_recording_a_user_sees |
| 3 | tests/integration/test_kuberay_launcher.py::test_a_driver_whose_head_is_deleted_ends_at_once_and_its_rayjob_goes |
| 3 | tests/unit/test_rayjob_truth.py::test_a_driver_ends_with_its_head_whatever_kuberay_says |
| 4 | tests/integration/test_kuberay_launcher.py::test_a_driver_is_stopped_by_ray_and_its_rayjob_stays_to_tell_of_it |
| 5 | tests/integration/test_kuberay_launcher.py::test_what_kuberay_wipes_is_remembered |
| 6 | tests/unit/test_rayjob.py::test_the_driver_s_command_is_one_argv_whatever_the_pipeline_s_holds |
| 7 | tests/integration/test_kuberay_launcher.py::test_a_rayjob_that_its_operator_does_not_let_go_goes_all_the_same |
| 8 | tests/unit/test_rayjob_truth.py::test_what_keeps_a_driver_from_coming_up_is_told |
| 8 | tests/unit/test_rayjob_truth.py::test_pods_that_did_not_come_up_in_time_are_told_with_what_they_waited_for |
| 9 | tests/integration/test_kuberay_calls.py::test_fifty_jobs_cost_two_calls_each_and_a_dead_head_two_more |
| 10 | tests/unit/test_kube_replays.py::test_under_kueue_a_preemption_after_running_is_counted_once |
"""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from controller_lab import until
from kube.fixtures import NAMESPACE, Cluster
from kube.samples import queue
from kube_town import Town, in_town, keep_nothing

from jos.core.model import Status
from jos.launch.kube_profile import KubeProfile, profile_of

ROOT = Path(__file__).parents[2]
KUEUE = profile_of(
    {
        "admission": "kueue",
        "kueue": {
            "local_queues": {"default": "lq"},
            "priority_classes": [{"at_least": 0, "name": "low"}, {"at_least": 100, "name": "high"}],
        },
    },
    "test",
)
Run = Callable[..., None]


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a test in a town with one controller, and looks whether all was sound."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))

    def work(test: Callable[[Town], Awaitable[None]], profile: KubeProfile = KubeProfile()) -> None:
        async def led(town: Town) -> None:
            town.controller()
            await test(town)
            town.sound()

        in_town(cluster, tmp_path, led, profile)

    return work


def test_a_job_that_kuberay_submits_twice_is_driven_once(run: Run) -> None:
    """Pain 1: a head that lost its job table is given the same job again, with backoffLimit 0."""

    async def test(town: Town) -> None:
        job = await town.submit(work=None)
        await town.reaches(job, Status.RUNNING)
        town.drivers.lose_table()

        async def refused() -> bool:
            return town.drivers.refused == 1

        await until(refused, 20, "the second process was refused")
        assert len(town.drivers.submitted) == 2
        assert len(set(town.drivers.submitted)) == 1
        assert (await town.store.get(job.id)).status is not Status.FAILED
        town.drivers.work[job.id] = 1
        ended = await town.reaches(job, Status.COMPLETED)
        assert sum(town.drivers.taken.values()) == ended.attempt.number  # type: ignore[union-attr]

    run(test)


def test_a_deadline_that_leaves_the_ray_job_running_ends_the_attempt(run: Run) -> None:
    """Pain 2: jobDeploymentStatus is Failed, while jobStatus stays RUNNING for ever."""

    async def test(town: Town) -> None:
        job = await town.submit(work=None)
        name = await town.running_rayjob(job)

        async def said() -> bool:
            status = town.cluster.objects.get("rayjobs", NAMESPACE, name).get("status", {})
            return status.get("jobStatus") == "RUNNING"

        await until(said, 20, "KubeRay says that it runs")
        town.cluster.objects.patch("rayjobs", NAMESPACE, name, {"spec": {"activeDeadlineSeconds": 1}})
        await town.running_rayjob(job, 2)
        frozen = town.cluster.objects.get("rayjobs", NAMESPACE, name)["status"]
        assert (frozen["jobDeploymentStatus"], frozen["jobStatus"]) == ("Failed", "RUNNING")
        town.drivers.work[job.id] = 1
        ended = await town.reaches(job, Status.COMPLETED)
        assert ended.attempt is not None
        assert ended.attempt.number == 2
        words = [e.message for e in (await town.store.events(job.id))[1] if e.event_type == "attempt.failed"]
        assert "ran for longer than its activeDeadlineSeconds" in words[0]

    run(test)


def test_a_dead_head_ends_its_attempt_within_seconds_and_leaves_nothing(run: Run) -> None:
    """Pain 3: KubeRay notices after 300 s, and then does not retry."""

    async def test(town: Town) -> None:
        job = await town.submit(work=None)
        name = await town.running_rayjob(job)
        died = time.monotonic()
        assert town.kill_head(name)

        async def second() -> bool:
            attempt = (await town.store.get(job.id)).attempt
            return attempt is not None and attempt.number == 2

        await until(second, 15, "the next attempt began")
        assert time.monotonic() - died < 15
        town.drivers.work[job.id] = 1
        await town.reaches(job, Status.COMPLETED)

        async def gone() -> bool:
            return name not in {one["metadata"]["name"] for one in town.rayjobs()}

        await until(gone, 15, "its RayJob went")

    run(test)


def test_a_job_that_is_to_leave_is_asked_first_and_drains(run: Run) -> None:
    """Pain 4: a suspension or deletion stops nothing gracefully, and progress is thrown away."""

    async def test(town: Town) -> None:
        job = await town.submit(work=None)
        await town.reaches(job, Status.RUNNING)
        assert await town.cancel(job)
        await town.reaches(job, Status.CANCELLED)

        async def left() -> bool:
            return not (await town.store.get(job.id)).holds_capacity

        await until(left, 15, "its driver left")
        ended = await town.store.get(job.id)
        assert ended.attempt is not None
        assert ended.attempt.ended_by == "Drained"  # its last word, and no kill
        assert town.launcher.api.calls["delete rayjobs"] == 0

    run(test)


def test_what_each_attempt_ended_of_is_kept_though_kuberay_wipes_it(run: Run) -> None:
    """Pain 5: suspension and retry wipe jobId, cluster, message and start."""

    async def test(town: Town) -> None:
        job = await town.submit(work=None)
        first = await town.running_rayjob(job)
        town.cluster.objects.patch("rayjobs", NAMESPACE, first, {"spec": {"suspend": True}})
        assert town.kill_head(await town.running_rayjob(job, 2))
        town.drivers.work[job.id] = 1
        ended = await town.reaches(job, Status.COMPLETED)
        assert ended.preemption_count == 1
        events = [(e.event_type, e.message) for e in (await town.store.events(job.id, limit=100))[1]]
        assert ("job.preempted", "Somebody suspended its RayJob (spec.suspend).") in events
        [lost] = [message for kind, message in events if kind == "attempt.failed"]
        assert "its driver is lost" in lost or "was not heard" in lost  # whichever was noticed first
        assert set(town.made.values()) == {1}  # one RayJob for each

    run(test)


def test_an_entrypoint_is_one_argv_and_needs_no_submitter(run: Run) -> None:
    """Pain 6: submitter pods retry, hang, and paste the entrypoint into a shell."""

    async def test(town: Town) -> None:
        job = await town.submit(work=None)
        name = await town.running_rayjob(job)
        spec = town.cluster.objects.get("rayjobs", NAMESPACE, name)["spec"]
        assert spec["submissionMode"] == "HTTPMode"
        assert spec["backoffLimit"] == 0
        assert shlex.join(shlex.split(spec["entrypoint"])) == spec["entrypoint"]
        assert town.cluster.objects.list("jobs", NAMESPACE) == []
        town.drivers.work[job.id] = 1
        await town.reaches(job, Status.COMPLETED)

    run(test)


def test_no_redis_of_a_ray_cluster_can_block_its_deletion(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pain 7: the cleanup of GCS fault tolerance blocks deletion for minutes; JOS uses none."""
    keep_nothing(monkeypatch)

    async def test(town: Town) -> None:
        job = await town.submit(work=None)
        name = await town.running_rayjob(job)
        cluster = town.cluster.objects.get("rayjobs", NAMESPACE, name)["spec"]["rayClusterSpec"]
        assert "gcsFaultToleranceOptions" not in cluster
        assert "ray.io/ft-enabled" not in town.cluster.objects.list("rayclusters", NAMESPACE)[0]["metadata"].get(
            "annotations", {}
        )
        await town.cancel(job)
        await town.settled(30)

    run(test)


def test_a_job_that_cannot_start_says_why_and_does_not_try_for_ever(run: Run) -> None:
    """Pain 8: Initializing for ever, without a word."""

    async def test(town: Town) -> None:
        image = KubeProfile().image
        town.world.kubelet.missing_images.add(image)
        job = await town.submit()

        async def told() -> bool:
            return (await town.store.get(job.id)).reason == "PullingImage"

        await until(told, 20, "it said what it waits for")
        waits = await town.store.get(job.id)
        assert waits.status is Status.ADMITTED
        assert f"cannot pull its image {image}" in waits.reason_message
        [rayjob] = town.rayjobs(job)
        assert rayjob["spec"]["preRunningDeadlineSeconds"] > 0
        await town.cancel(job)

        async def gone() -> bool:
            return not town.rayjobs() and not town.cluster.objects.list("pods", NAMESPACE)

        await until(gone, 20, "its pods went")

    run(test)


def test_nobody_is_asked_about_a_job_however_long_it_runs(run: Run) -> None:
    """Pain 9: an operator with many RayJobs slows down, and polling makes it worse."""

    async def test(town: Town) -> None:
        jobs = [await town.submit(work=None) for _ in range(5)]
        for job in jobs:
            await town.reaches(job, Status.RUNNING)
        before = town.launcher.api.calls.total()
        await asyncio.sleep(1)  # ten looks
        assert town.launcher.api.calls.total() == before
        assert not any(call.startswith("get ") for call in town.launcher.api.calls)

    run(test)


def test_a_job_that_kueue_preempts_goes_on_and_is_counted_once(cluster: Cluster, run: Run) -> None:
    """Pain 10: preempted and never resumed, requeued in a loop, quota kept."""
    one = {"cpu": "3", "memory": "1Ti", "ephemeral-storage": "10Ti"}  # room for one job's pods
    queue(cluster.objects, **one)

    async def test(town: Town) -> None:
        low = await town.submit(work=None, priority=0)
        await town.reaches(low, Status.RUNNING)
        high = await town.submit(work=3, priority=100)
        await town.reaches(high, Status.COMPLETED)
        town.drivers.work[low.id] = 1
        ended = await town.reaches(low, Status.COMPLETED)
        assert ended.preemption_count == 1
        assert (await town.told(low)).count("job.preempted") == 1

    run(test, KUEUE)


# --- the index ----------------------------------------------------------------------------------------


def _told_by() -> list[tuple[int, str, str]]:
    rows = re.findall(r"^\| (\d+) \| (\S+?)::(\S+) \|$", __doc__ or "", re.MULTILINE)
    return [(int(pain), path, name) for pain, path, name in rows]


def test_every_pain_has_a_test_here_and_those_that_the_index_names_exist() -> None:
    mine: dict[str, Any] = {n: t for n, t in globals().items() if n.startswith("test_") and t.__doc__}
    pains = [int(found[1]) for test in mine.values() if (found := re.match(r"Pain (\d+):", test.__doc__))]
    assert pains == list(range(1, 11))
    assert {pain for pain, _, _ in _told_by()} == set(range(1, 11))
    for _, path, name in _told_by():
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"
