"""kill -9 of the controller at each step of a job's life on Kubernetes that others can see: just before the step takes
effect, and when it has but before the controller hears of it. Another controller heals what was left: one RayJob and
one driver for each attempt, the right end, and nothing left over.

JOS_CHAOS_STEPS says at how many steps (2 in a test run, all twelve in `make chaos`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from jobs_lab import Head, until
from kube.fixtures import NAMESPACE
from kube_crashes import Crashes
from kube_service import KubeService, shouted
from manifests_lab import combined
from services_lab import S3

STEPS = int(os.environ.get("JOS_CHAOS_STEPS", "2"))
KILLS = [
    (step, after)
    for after in (True, False)
    for step in ("made", "completed", "admitted", "taken", "started", "deleted")
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ray_jobs: Head, seaweedfs: S3) -> Iterator[KubeService]:
    manifests = combined(tmp_path_factory.mktemp("k8s") / "own", ())
    one = KubeService(tmp_path_factory.mktemp("service"), ray_jobs, seaweedfs, manifests)
    try:
        one.start()
        yield one
    finally:
        one.close()


def test_killed_at_any_step_of_a_job_the_next_controller_brings_it_to_the_right_end(service: KubeService) -> None:
    crashes, jobs = Crashes(service), {}
    service.controller.pause()  # until it is known what the jobs are called
    for step, after in KILLS[:STEPS]:
        name = f"{step}-{after}"
        file = service.records(f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(8)])
        jobs[service.create("shout", [file], name=name, span_records=2)] = name
        crashes.at(step, list(jobs)[-1], after)
    service.controller.go_on()
    for job_id, name in jobs.items():
        done = service.wait(job_id)
        assert (done["status"], done["retry_count"]) == ("COMPLETED", 0), (name, service.events(job_id))
    crashes.over(len(jobs))
    service.wait_for_nothing_left(60)
    for job_id, name in jobs.items():
        assert list(service.outputs(job_id).values()) == [shouted(name, 8)]
        service.driven_once_each(job_id, 1)
        service.verify(job_id)


def test_jobs_that_are_cancelled_while_no_controller_lives_leave_nothing_once_one_does(service: KubeService) -> None:
    runs = slow(service, "runs")
    until(lambda: service.get(f"/batch/jobs/{runs}/progress")["total"] > 1, every=0.1)
    service.world.kubelet.missing_images.add(service.image)
    try:
        waits = slow(service, "waits")
        service.wait_for_reason(waits, "PullingImage")
        service.controller.kill()
        for job_id in (runs, waits):
            service.call("POST", f"/batch/jobs/{job_id}/cancel")
        assert service.there(waits) is not None  # nobody is there to delete it
        service.next_controller()
        service.wait_for_nothing_left(60)
    finally:
        service.world.kubelet.missing_images.clear()
    for job_id, driven in ((runs, 1), (waits, 0)):
        assert service.job(job_id)["status"] == "CANCELLED"
        assert len(service.submitted(job_id)) == driven


def test_a_rayjob_that_somebody_deletes_costs_an_attempt_and_no_record(service: KubeService) -> None:
    job_id = slow(service, "deleted", 80)
    until(lambda: service.get(f"/batch/jobs/{job_id}/progress")["total"] > 1, every=0.1)
    service.objects.delete("rayjobs", NAMESPACE, service.rayjob(job_id))
    assert service.wait(job_id)["status"] == "COMPLETED"
    assert list(service.outputs(job_id).values()) == [shouted("deleted", 80)]
    service.driven_once_each(job_id, 2)
    service.verify(job_id)
    service.wait_for_nothing_left(60)


def slow(service: KubeService, name: str, records: int = 2000) -> str:
    file = service.records(f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(records)])
    return service.create("shout", [file], name=name, seconds=0.05, span_records=2)
