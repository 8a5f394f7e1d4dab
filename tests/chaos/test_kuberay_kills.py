"""kill -9 of the controller at each step of a preemption on Kubernetes, by JOS's own admission and by Kueue. Both jobs
must come to the right end: one RayJob and one driver for each attempt, the bytes of an undisturbed run, nothing left.

JOS_CHAOS_STEPS says at how many steps (1 in a test run, all in `make chaos`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from jobs_lab import Head, until
from kube_crashes import Crashes
from kube_service import KubeService, shouted
from manifests_lab import combined
from services_lab import S3

STEPS = int(os.environ.get("JOS_CHAOS_STEPS", "1"))
ONE_AT_A_TIME = {"queues": {"default": {"quota": {"cpu": 1}, "preemption": {"within_queue": "lower_priority"}}}}

# what happens to whom, in which attempt
WAYS = [
    ("low", "preempted", 1),
    ("high", "admitted", 1),
    ("high", "made", 1),
    ("low", "deleted", 1),
    ("low", "admitted", 2),
    ("low", "made", 2),
]
KILLS = [(admission, *way, after) for way in WAYS for admission in ("kueue", "jos") for after in (True, False)]


@pytest.fixture(scope="module")
def services(
    tmp_path_factory: pytest.TempPathFactory, ray_jobs: Head, seaweedfs: S3
) -> Iterator[dict[str, KubeService]]:
    """By who admits; started by the first test that asks."""
    running: dict[str, KubeService] = {}

    class Services(dict[str, KubeService]):
        def __missing__(self, admission: str) -> KubeService:
            folder = tmp_path_factory.mktemp("service")
            manifests = combined(folder / "k8s", ("kueue",) if admission == "kueue" else ())
            running[admission] = self[admission] = one = KubeService(
                folder,
                ray_jobs,
                seaweedfs,
                manifests,
                queues=None if admission == "kueue" else ONE_AT_A_TIME,
                kueue_cpus=3,
            )
            one.start()
            return one

    try:
        yield Services()
    finally:
        for one in running.values():
            one.close()


def slow(service: KubeService, name: str, records: int, priority: int) -> str:
    file = service.records(f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(records)])
    return service.create("shout", [file], name=name, seconds=0.05, span_records=2, priority=priority)


@pytest.mark.parametrize(("admission", "who", "step", "attempt", "after"), KILLS[:STEPS])
def test_killed_at_any_step_of_a_preemption_the_next_controller_brings_both_jobs_to_the_right_end(
    services: dict[str, KubeService], admission: str, who: str, step: str, attempt: int, after: bool
) -> None:
    service = services[admission]
    crashes = Crashes(service)
    low = slow(service, "low", 200, 0)
    until(lambda: service.get(f"/batch/jobs/{low}/progress")["total"] > 1, every=0.1)
    if who == "low":
        crashes.at(step, low, after, attempt)
        high = slow(service, "high", 20, 100)
    else:
        service.controller.pause()  # until it is known what the other job is called
        high = slow(service, "high", 20, 100)
        crashes.at(step, high, after, attempt)
        service.controller.go_on()
    for job_id, name, records, attempts in ((high, "high", 20, 1), (low, "low", 200, 2)):
        done = service.wait(job_id)
        assert (done["status"], done["retry_count"], done["preemption_count"]) == ("COMPLETED", 0, attempts - 1)
        assert list(service.outputs(job_id).values()) == [shouted(name, records)]
        service.verify(job_id)
        evicted = admission == "kueue" and who == name == "low" and attempt == 1
        service.driven_once_each(job_id, attempts, let_in_again=evicted)
    crashes.over(1)
    service.wait_for_nothing_left(60)
