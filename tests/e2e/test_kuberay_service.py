"""A whole service on Kubernetes: what users see while RayJobs come, wait, lose their heads and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jobs_lab import Head, alive, until
from kube_service import KubeService, shouted
from manifests_lab import combined
from rights_lab import CONTROLLER, granted, used
from services_lab import S3

ONE_AT_A_TIME = {"queues": {"default": {"quota": {"cpu": 1}, "preemption": {"within_queue": "lower_priority"}}}}
Started = Callable[..., KubeService]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, ray_jobs: Head, seaweedfs: S3) -> Iterator[Started]:
    """Starts services of their own; all end with the module."""
    services: list[KubeService] = []

    def start(*components: str, **options: Any) -> KubeService:
        """With these components of k8s/."""
        folder = tmp_path_factory.mktemp("service")
        one = KubeService(folder, ray_jobs, seaweedfs, combined(folder / "k8s", components), **options)
        services.append(one)
        one.start()
        return one

    try:
        yield start
    finally:
        for one in services:
            one.close()


@pytest.fixture(scope="module")
def service(started: Started) -> KubeService:
    """One for all tests that need no special one: its queue has no quota."""
    return started()


@pytest.fixture(scope="module")
def kueue(started: Started) -> KubeService:
    """Where Kueue admits, by the queues of k8s/components/kueue, but for a quota that one small job fills."""
    return started("kueue", kueue_cpus=3)


def slow(service: KubeService, name: str, records: int, seconds: float = 0.05, **options: Any) -> str:
    file = service.records(f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(records)])
    return service.create("shout", [file], name=name, seconds=seconds, span_records=2, **options)


def content(service: KubeService, job_id: str) -> bytes:
    (found,) = service.outputs(job_id).values()
    return found


def working(service: KubeService, job_id: str) -> None:
    until(lambda: service.get(f"/batch/jobs/{job_id}/progress")["total"] > 1, every=0.1)


def test_a_job_completes_and_leaves_nothing_in_the_cluster(service: KubeService) -> None:
    job_id = slow(service, "calm", 10, seconds=0)
    done = service.wait(job_id)
    assert (done["status"], done["retry_count"]) == ("COMPLETED", 0), service.events(job_id)
    kinds = [event["event_type"] for event in service.events(job_id)]
    order = ["job.created", "job.admitted", "job.started", "job.completed"]
    assert [kind for kind in kinds if kind in order] == order
    assert content(service, job_id) == shouted("calm", 10)
    service.verify(job_id)
    service.driven_once_each(job_id, 1)
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
    service.verify(job_id)
    service.driven_once_each(job_id, 2)
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
        service.server.expire()  # it has forgotten what it told before
        service.server.up()
    names = {job_id: ("steady", 120), meanwhile[0]: ("early", 4), meanwhile[1]: ("late", 4)}
    for one, (name, records) in names.items():
        assert service.wait(one)["status"] == "COMPLETED"
        assert content(service, one) == shouted(name, records)
        service.verify(one)
        service.driven_once_each(one, 1)
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
    service.driven_once_each(job_id, 1)


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
    service.driven_once_each(patient, 1)
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
    service.verify(low)
    service.driven_once_each(low, 2)
    service.driven_once_each(high, 1)
    service.wait_for_nothing_left()


def test_kueue_admits_a_job_takes_its_place_for_one_of_a_higher_class_and_gives_it_back(kueue: KubeService) -> None:
    file = kueue.records("low.jsonl", [{"text": f"low {n}"} for n in range(120)])
    low = kueue.create("shout", [file], seconds=0.05, span_records=2)
    working(kueue, low)
    high = slow(kueue, "high", 40, priority=100)
    told = kueue.wait_for_reason(low, "WaitingInKueue")  # its next attempt stands there, behind the other
    assert kueue.wait(high)["status"] == "COMPLETED"
    ended = kueue.wait(low)
    assert (ended["status"], ended["preemption_count"], ended["retry_count"]) == ("COMPLETED", 1, 0)
    events = kueue.events(low)
    order = ["job.admitted", "job.started", "job.preempted", "job.requeued", "job.admitted", "job.started"]
    assert [e["event_type"] for e in events if e["event_type"] in order] == order
    (preempted,) = (e for e in events if e["event_type"] == "job.preempted")
    assert "Preempted to accommodate a workload" in preempted["message"]  # in Kueue's own words
    assert "Kueue" in told["message"]
    assert content(kueue, low) == shouted("low", 120)
    for job_id, attempts in ((low, 2), (high, 1)):
        kueue.verify(job_id)
        kueue.driven_once_each(job_id, attempts)
    kueue.wait_for_nothing_left()


def test_a_job_that_waits_in_kueue_is_told_why_and_is_gone_from_its_queue_when_cancelled(kueue: KubeService) -> None:
    first = slow(kueue, "first", 200)
    working(kueue, first)
    waits = slow(kueue, "waits", 4)
    kueue.wait_for_reason(waits, "WaitingInKueue")
    assert "insufficient unused quota for cpu" in until(lambda: kueue_says(kueue, waits), 30)
    assert kueue.job(waits)["status"] == "PENDING"
    kueue.call("POST", f"/batch/jobs/{waits}/cancel")
    until(lambda: kueue.there(waits) is None, 30)
    assert kueue.submitted(waits) == []
    kueue.call("POST", f"/batch/jobs/{first}/cancel")
    kueue.wait_for_nothing_left()


def kueue_says(service: KubeService, job_id: str) -> str:
    """Once it is more than that it stands in a queue."""
    words = service.job(job_id)["waiting"]["message"]
    return words if "quota" in words else ""


def test_the_controllers_asked_for_all_that_their_roles_grant_and_for_nothing_else(
    service: KubeService, kueue: KubeService
) -> None:
    """After the tests above: together they do all that a controller does."""
    for one in (service, kueue):
        assert used(one.server, CONTROLLER) == granted(one.manifests, CONTROLLER)
