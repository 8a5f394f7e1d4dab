"""The behaviours in real time, behind the HTTP API: clients write while the operators do."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from jobs_lab import until
from kube.fixtures import Cluster
from kube.kuberay import Waits
from kube.parts import found
from kube.samples import NAMESPACE, queue, rayjob
from kube.standins import Scripted
from kube.world import World

JOBS = 24


@pytest.fixture
def world(cluster: Cluster) -> Iterator[World]:
    standin = Scripted(cluster.objects.clock)
    live = World(cluster.objects, standin, Waits(poll=0.2), start_seconds=lambda pod: 0.05, stop_seconds=0.05)
    live.kubelet.add_node("node-1", {"cpu": 1000, "memory": "1Ti"})
    yield live.start()
    live.close()


@pytest.mark.parametrize("queued", [False, True])
def test_every_job_is_submitted_once_however_many_write_at_once(world: World, queued: bool) -> None:
    objects, standin = world.objects, world.standin
    assert isinstance(standin, Scripted)
    if queued:
        queue(objects, cpu=2 * JOBS, memory="1Ti")

    def submit(first: int) -> None:
        for number in range(first, JOBS, 4):
            objects.create("rayjobs", rayjob(f"j{number}", queue="lq/low" if queued else ""))
            objects.patch("rayjobs", NAMESPACE, f"j{number}", {"metadata": {"annotations": {"a": "b"}}})

    threads = [threading.Thread(target=submit, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: sum(info.status == "RUNNING" for info in list(standin.jobs.values())) == JOBS)
    assert len(standin.submitted) == len(set(standin.submitted)) == JOBS
    assert len(objects.list("pods")) == 2 * JOBS  # no head was made twice
    for submission_id in list(standin.jobs):
        standin.say(submission_id, "SUCCEEDED")
    until(lambda: not objects.list("pods"))
    for number in range(JOBS):
        objects.delete("rayjobs", NAMESPACE, f"j{number}")
    until(lambda: not objects.list("rayjobs") and not objects.list("workloads"))


def test_a_kill_and_a_restart_are_noticed_at_once(world: World) -> None:
    assert isinstance(world.standin, Scripted)
    world.objects.create("rayjobs", rayjob("a"))
    until(lambda: len(world.standin.submitted) == 1)
    cluster = world.objects.list("rayclusters")[0]["metadata"]["name"]
    name = world.kubelet.kill_head(NAMESPACE, cluster)
    assert found(world.objects, "pods", NAMESPACE, name) is None
    until(lambda: len(world.standin.submitted) == 2)
