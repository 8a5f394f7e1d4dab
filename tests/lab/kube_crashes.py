"""kill -9 of a controller on Kubernetes at a step that others can see: just before the step takes effect, or when it
has but before the controller hears of it. Then another one leads.

Tests: tests/e2e/test_kuberay_crashes.py, tests/chaos/test_kuberay_kills.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from jobs_lab import until
from kube_service import KubeService

from jos.launch.rayjob import driver_name


class Crashes:
    """Kills the controller at steps of jobs, one at a time, and lets the next one lead."""

    def __init__(self, service: KubeService) -> None:
        self.service = service
        self._lock = threading.Lock()  # one crash at a time
        self._healing: list[Future[None]] = []

    def at(self, step: str, job_id: str, after: bool, attempt: int = 1) -> None:
        """Sets up one crash: before the step takes effect, or after that and before it is answered."""
        wire, server = self.service.wire, self.service.server
        strike = self._striker(f"{'after' if after else 'before'} {step}, attempt {attempt} of {job_id}")
        rayjob = self.service.rayjob(job_id, attempt)
        match step:
            case "made" | "deleted":
                server.trap("patch" if step == "made" else "delete", "rayjobs", rayjob, strike, after=after)
            case "admitted" | "preempted":  # the controller's own writes
                marks = job_id, f'"event_type":"job.{step}"', f'"attempt":{attempt}'
                wire.snare(*marks, spring=strike, after=after, lost=True)
            case "taken":
                wire.snare(f'"driver":"{driver_name(job_id, attempt)}"', spring=strike, after=after, lost=False)
            case _:  # its driver's
                wire.snare(job_id, f'"event_type":"job.{step}"', spring=strike, after=after, lost=False)

    def _striker(self, what: str) -> Callable[[], None]:
        def strike() -> None:
            self._lock.acquire()
            self.service.await_leader()
            self.service.controller.kill()
            print(f"killed {what}")
            self._healing.append(self.service.healer.submit(self._heal))

        return strike

    def _heal(self) -> None:
        try:
            self.service.next_controller()
        finally:
            self._lock.release()

    def over(self, count: int) -> None:
        """Waits until so many have come, and another controller leads."""
        until(lambda: len(self._healing) == count, 60)
        for heal in self._healing:
            heal.result()
