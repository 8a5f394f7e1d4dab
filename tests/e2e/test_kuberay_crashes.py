"""kill -9 of the controller at each step of a job's life on Kubernetes that others can see: just before the step takes
effect, and when it has but before the controller hears of it. Another controller heals what was left: one RayJob and
one driver for each attempt, the right end, and nothing left over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from jobs_lab import Head, until
from kube_service import KubeService, shouted
from manifests_lab import combined
from services_lab import S3

from jos.launch.rayjob import driver_name

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


class Crashes:
    """Kills the controller at steps of jobs, one at a time, and lets the next one lead."""

    def __init__(self, service: KubeService) -> None:
        self.service = service
        self._lock = threading.Lock()  # one crash at a time
        # one thread for all: Linux ends a process that we start with the thread that started it
        self._healer = ThreadPoolExecutor(1, "healer")
        self._healing: list[Future[None]] = []

    def at(self, step: str, job_id: str, after: bool) -> None:
        """Sets up one crash."""
        wire, server = self.service.wire, self.service.server
        strike = self._striker(f"{'after' if after else 'before'} {step}")
        rayjob = self.service.rayjob(job_id)
        match step:
            case "made" | "deleted":
                server.trap("patch" if step == "made" else "delete", "rayjobs", rayjob, strike, after=after)
            case "taken":  # by its driver, as what follows
                wire.snare(f'"driver":"{driver_name(job_id, 1)}"', spring=strike, after=after, lost=False)
            case _:
                marks = job_id, f'"event_type":"job.{step}"'
                wire.snare(*marks, spring=strike, after=after, lost=step == "admitted")

    def _striker(self, what: str) -> Callable[[], None]:
        def strike() -> None:
            self._lock.acquire()
            self.service.await_leader()
            self.service.controller.kill()
            print(f"killed {what}")
            self._healing.append(self._healer.submit(self._heal))

        return strike

    def _heal(self) -> None:
        try:
            self.service.fell()
        finally:
            self._lock.release()

    def over(self, count: int) -> None:
        """Waits until so many have come, and another controller leads."""
        until(lambda: len(self._healing) == count, 60)
        for heal in self._healing:
            heal.result()


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
