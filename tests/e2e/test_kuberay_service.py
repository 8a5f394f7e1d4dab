"""A whole service on Kubernetes: what users see while RayJobs come, wait, lose their heads and go."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from jobs_lab import BIN, Head, alive, until
from kube_service import KubeService
from manifests_lab import Object, combined
from rights_lab import CONTROLLER, Right, granted, used
from services_lab import S3

ONE_AT_A_TIME = {"queues": {"default": {"quota": {"cpu": 1}, "preemption": {"within_queue": "lower_priority"}}}}
Started = Callable[..., KubeService]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return combined(tmp_path_factory.mktemp("k8s") / "own", ())


@pytest.fixture(scope="module")
def asked() -> set[Right]:
    """What all controllers of this module asked the cluster for."""
    return set()


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory,
    ray_jobs: Head,
    seaweedfs: S3,
    manifests: list[Object],
    asked: set[Right],
) -> Iterator[Started]:
    """Starts services of their own; all end with the module."""
    services: list[KubeService] = []

    def start(**options: Any) -> KubeService:
        one = KubeService(tmp_path_factory.mktemp("service"), ray_jobs, seaweedfs, manifests, **options)
        services.append(one)
        one.start()
        return one

    try:
        yield start
    finally:
        for one in services:
            asked |= used(one.server, CONTROLLER)
            one.close()


@pytest.fixture(scope="module")
def service(started: Started) -> KubeService:
    """One for all tests that need no special one: its queue has no quota."""
    return started()


def slow(service: KubeService, name: str, records: int, seconds: float = 0.05, **options: Any) -> str:
    file = service.records(f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(records)])
    return service.create("shout", [file], name=name, seconds=seconds, span_records=2, **options)


def shouted(name: str, records: int) -> bytes:
    lines = [orjson.dumps({"line_index": n, "text": f"{name} {n}".upper()}) for n in range(records)]
    return b"".join(line + b"\n" for line in lines)


def content(service: KubeService, job_id: str) -> bytes:
    (found,) = service.outputs(job_id).values()
    return found


def verified(service: KubeService, job_id: str) -> None:
    """Each record is in exactly one commit, and the outputs are as committed."""
    command = [str(BIN / "jos"), "verify", job_id, "--json"]
    done = subprocess.run(command, capture_output=True, env=service.environment, check=False)
    assert done.returncode == 0, f"{done.stdout.decode()}\n{done.stderr.decode()}"
    assert orjson.loads(done.stdout)["problems"] == []


def driven_once_each(service: KubeService, job_id: str, attempts: int) -> None:
    """One RayJob and one driver for each attempt, and no others."""
    wanted = [service.rayjob(job_id, number + 1) for number in range(attempts)]
    assert [name for name in service.made if name.startswith(service.rayjob(job_id, 0)[:-1])] == wanted
    assert [name.replace("_", "-") for name in service.submitted(job_id)] == wanted
    assert len(service.events(job_id, "job.started")) == attempts


def working(service: KubeService, job_id: str) -> None:
    until(lambda: service.get(f"/batch/jobs/{job_id}/progress")["total"] > 1)


def test_a_job_completes_and_leaves_nothing_in_the_cluster(service: KubeService) -> None:
    job_id = slow(service, "calm", 10, seconds=0)
    done = service.wait(job_id)
    assert (done["status"], done["retry_count"]) == ("COMPLETED", 0), service.events(job_id)
    kinds = [event["event_type"] for event in service.events(job_id)]
    order = ["job.created", "job.admitted", "job.started", "job.completed"]
    assert [kind for kind in kinds if kind in order] == order
    assert content(service, job_id) == shouted("calm", 10)
    verified(service, job_id)
    driven_once_each(service, job_id, 1)
    service.wait_for_nothing_left()


def test_a_deleted_head_is_noticed_at_once_and_the_job_goes_on_in_a_new_cluster(service: KubeService) -> None:
    job_id = slow(service, "beheaded", 60)
    working(service, job_id)
    began = time.monotonic()
    service.lose_head(job_id)
    (told,) = service.wait_for(job_id, "attempt.failed")
    noticed = time.monotonic() - began
    print(f"the lost head was noticed after {noticed:.1f} s")
    assert noticed < 15
    assert "The head pod" in told["message"], told
    done = service.wait(job_id)
    assert (done["status"], done["retry_count"], done["preemption_count"]) == ("COMPLETED", 1, 0)
    assert content(service, job_id) == shouted("beheaded", 60)
    verified(service, job_id)
    driven_once_each(service, job_id, 2)
    service.wait_for_nothing_left()


def test_an_api_server_that_is_away_ends_no_job_and_starts_those_that_came_meanwhile_afterwards(
    service: KubeService,
) -> None:
    job_id = slow(service, "steady", 120)
    working(service, job_id)
    service.server.down()
    try:
        meanwhile = [slow(service, "early", 4)]  # so early that it is not known yet: it may be admitted
        service.wait_for_reason(meanwhile[0], "ClusterUnavailable")
        meanwhile.append(slow(service, "late", 4))
        service.wait_for_reason(meanwhile[1], "ClusterUnavailable")
        for one in meanwhile:
            waits = service.job(one)
            assert waits["waiting"]["code"] == "ClusterUnavailable"
            assert "does not answer" in waits["waiting"]["message"]
        assert service.wait(job_id)["status"] == "COMPLETED"  # while nobody can ask the cluster
        assert {service.job(one)["status"] for one in meanwhile} <= {"PENDING", "ADMITTED"}
    finally:
        service.server.up()
    names = {job_id: ("steady", 120), meanwhile[0]: ("early", 4), meanwhile[1]: ("late", 4)}
    for one, (name, records) in names.items():
        assert service.wait(one)["status"] == "COMPLETED"
        assert content(service, one) == shouted(name, records)
        verified(service, one)
        driven_once_each(service, one, 1)
    service.wait_for_nothing_left()


def test_a_cancelled_job_leaves_the_cluster_within_seconds(service: KubeService) -> None:
    job_id = slow(service, "cancelled", 2000, parallelism=2)
    pids = [event["payload"]["pid"] for event in service.wait_for(job_id, "index.started", 2)]
    began = time.monotonic()
    service.call("POST", f"/batch/jobs/{job_id}/cancel")
    assert service.job(job_id)["status"] == "CANCELLED"
    until(lambda: not any(alive(pid) for pid in pids), 15)
    print(f"workers gone after {time.monotonic() - began:.1f} s")
    service.wait_for_nothing_left()
    print(f"pods gone after {time.monotonic() - began:.1f} s")
    driven_once_each(service, job_id, 1)


def test_pods_that_wait_for_their_image_are_told_of_and_go_when_the_job_is_cancelled(service: KubeService) -> None:
    service.world.kubelet.missing_images.add(service.image)
    try:
        cancelled, patient = slow(service, "cancelled", 10), slow(service, "patient", 10)
        for job_id in (cancelled, patient):
            told = service.wait_for_reason(job_id, "PullingImage")
            assert service.image in told["message"]
            waits = service.job(job_id)
            assert waits["status"] == "ADMITTED"
            assert waits["waiting"]["code"] == "PullingImage"
            assert service.image in waits["waiting"]["message"]
        service.call("POST", f"/batch/jobs/{cancelled}/cancel")
        assert service.job(cancelled)["status"] == "CANCELLED"
        until(lambda: service.there(cancelled) is None, 30)
        assert service.submitted(cancelled) == []
    finally:
        service.world.kubelet.missing_images.clear()
    assert service.wait(patient)["status"] == "COMPLETED"
    driven_once_each(service, patient, 1)
    service.wait_for_nothing_left()


def test_a_preempted_job_goes_on_where_it_was_and_writes_the_same_bytes(started: Started) -> None:
    service = started(queues=ONE_AT_A_TIME)
    file = service.records("low.jsonl", [{"text": f"low {n}"} for n in range(120)])
    low = service.create("shout", [file], seconds=0.05, span_records=2)
    working(service, low)
    high = slow(service, "high", 40, priority=50)
    service.wait_for(high, "input_started")
    assert service.job(low)["status"] in ("PREEMPTED", "PENDING")
    assert service.wait(high)["status"] == "COMPLETED"
    ended = service.wait(low)
    assert (ended["status"], ended["preemption_count"], ended["retry_count"]) == ("COMPLETED", 1, 0)
    kinds = [event["event_type"] for event in service.events(low)]
    order = ["job.admitted", "job.started", "job.preempted", "job.requeued", "job.admitted", "job.started"]
    assert [kind for kind in kinds if kind in order] == order
    undisturbed = service.create("shout", [file], seconds=0, span_records=2)
    assert service.wait(undisturbed)["status"] == "COMPLETED"
    assert content(service, low) == content(service, undisturbed) == shouted("low", 120)
    verified(service, low)
    driven_once_each(service, low, 2)
    driven_once_each(service, high, 1)
    service.wait_for_nothing_left()
