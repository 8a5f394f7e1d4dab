"""The fake cluster's behaviours together: KubeRay, Kueue, scheduler and kubelets over one store.

`advance` moves a test's own clock from one due time to the next; `start` lets them run in real time.
Tests: tests/contract/test_fake_kuberay.py.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from kube.jobs import Jobs
from kube.kubelet import START_SECONDS, STOP_SECONDS, Kubelet
from kube.kuberay import RayJobs, Waits
from kube.kueue import Kueue
from kube.kueue_queues import Queues
from kube.loop import Controller, Operator
from kube.objects import Objects
from kube.parts import Made
from kube.rayclusters import RayClusters
from kube.standins import LocalRay, RayClusterStandIn, Scripted

REAL = Waits(poll=0.2)


class Clock:
    """A test's time: stands still until `advance`."""

    def __init__(self, now: datetime = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


class World:
    """`objects.clock` is the time of all. Kueue manages only RayJobs that name a queue."""

    def __init__(
        self,
        objects: Objects,
        standin: RayClusterStandIn,
        waits: Waits | None = None,
        start_seconds: Callable[[Made], float] = lambda pod: START_SECONDS,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        self.objects, self.standin = objects, standin
        self.kubelet = Kubelet(objects, start_seconds, stop_seconds)
        self.rayjobs = RayJobs(objects, standin, self.kubelet, waits or Waits())
        controllers: list[Controller] = [self.rayjobs, RayClusters(objects), self.kubelet, Jobs(objects)]
        controllers += [Kueue(objects), Queues(objects)]
        self.operator = Operator(objects, controllers, objects.clock)
        if isinstance(standin, Scripted):
            standin.changed = self._look_at

    @classmethod
    def on_ray(cls, objects: Objects, dashboard: str, waits: Waits = REAL) -> World:
        """In real time, with nothing to wait for that can be done at once, and jobs that really run on this Ray head
        (the URL of its dashboard). To be closed."""
        standin = LocalRay(dashboard)
        world = cls(objects, standin, waits, start_seconds=lambda pod: 0.0, stop_seconds=0.0)
        world.kubelet.add_node(
            "node-1", {"cpu": 64, "memory": "256Gi", "ephemeral-storage": "1Ti", "nvidia.com/gpu": 8}
        )
        return world.start()

    def close(self) -> None:
        """The operators stop, and nothing that they started runs on."""
        try:
            self.operator.stop()
        finally:
            if isinstance(self.standin, LocalRay):
                self.standin.close()

    def _look_at(self, submission_id: str) -> None:
        if job := self.rayjobs.of_submission.get(submission_id):
            self.operator.look(job)

    def advance(self, seconds: float = 0.0, every_step: Callable[[], bool] = lambda: False) -> None:
        """Lets so much of the test's time pass, and all happen that is due in it; stops early where `every_step` says
        so."""
        clock = self.objects.clock
        assert isinstance(clock, Clock), "only a test's own clock can be moved"
        end = clock.now + timedelta(seconds=seconds)
        self.operator.step(clock.now)
        while not every_step() and (due := self.operator.next_due()) is not None and due <= end:
            clock.now = max(clock.now, due)
            self.operator.step(clock.now)
        else:
            clock.now = clock.now if every_step() else end

    def start(self) -> World:
        self.operator.start()
        return self
