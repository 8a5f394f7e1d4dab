"""kill -9 of the controller at each step of a job's life on Kubernetes that others can see: just before the step takes
effect, and when it has but before the controller hears of it. Another controller heals what was left: one RayJob and
one driver for each attempt, the right end, and nothing left over.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jobs_lab import Head
from kube_crashes import Crashes
from kube_service import KubeService, shouted
from manifests_lab import combined
from services_lab import S3

STEPS = ("admitted", "made", "taken", "started", "completed", "deleted")


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory, ray_jobs: Head, seaweedfs: S3) -> Iterator[KubeService]:
    manifests = combined(tmp_path_factory.mktemp("k8s") / "own", ())
    one = KubeService(tmp_path_factory.mktemp("service"), ray_jobs, seaweedfs, manifests)
    try:
        one.start(controller=False)
        yield one
    finally:
        one.close()


def test_killed_at_any_step_of_a_job_the_next_controller_brings_it_to_the_right_end(service: KubeService) -> None:
    crashes, jobs = Crashes(service), {}
    for step in STEPS:
        for after in (False, True):
            name = f"{step}-{after}"
            file = service.records(f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(8)])
            jobs[service.create("shout", [file], name=name, span_records=2)] = name
            crashes.at(step, list(jobs)[-1], after)
    service.controller.start()
    for job_id, name in jobs.items():
        done = service.wait(job_id)
        assert (done["status"], done["retry_count"]) == ("COMPLETED", 0), (name, service.events(job_id))
    crashes.over(len(jobs))
    service.wait_for_nothing_left(60)
    for job_id, name in jobs.items():
        assert list(service.outputs(job_id).values()) == [shouted(name, 8)]
        service.driven_once_each(job_id, 1)
        service.verify(job_id)
