"""What keeps a job in Kueue's queue is told with the object's name and what to do about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jos.launch.base import Eviction
from jos.launch.kueue_says import eviction, kueue_says

NOW = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=20)
GO_ON = """--type merge -p '{"spec":{"stopPolicy":"None"}}'"""


def rayjob(**labels: str) -> dict[str, Any]:
    return {"metadata": {"name": "jos-job-1-1", "creationTimestamp": NOW.isoformat(), "labels": labels}, "spec": {}}


def workload(*conditions: tuple[str, str, str]) -> dict[str, Any]:
    told = [{"type": kind, "status": status, "message": message} for kind, status, message in conditions]
    metadata = {"name": "w", "namespace": "jos"}
    return {"metadata": metadata, "spec": {"queueName": "lq"}, "status": {"conditions": told}}


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("LocalQueue lq doesn't exist", "Create LocalQueue lq in namespace jos"),
        ("LocalQueue lq is terminating or missing", "name another one under kueue.local_queues in the profile"),
        ("LocalQueue lq is inactive", f"kubectl patch localqueue lq -n jos {GO_ON}"),
        ("LocalQueue lq is stopped", f"kubectl patch localqueue lq -n jos {GO_ON}"),
        ("ClusterQueue cq doesn't exist", "Create ClusterQueue cq"),
        ("ClusterQueue cq not found", "or make LocalQueue lq in namespace jos anew"),
        ("ClusterQueue cq is inactive", f"kubectl patch clusterqueue cq {GO_ON}"),
        ("Workload namespace doesn't match ClusterQueue selector", "kubectl label namespace jos KEY=VALUE"),
        (
            "couldn't assign flavors to pod set head: resource ephemeral-storage unavailable in ClusterQueue",
            "has no quota of ephemeral-storage at all: add it to its spec.resourceGroups",
        ),
        (
            "couldn't assign flavors to pod set w: insufficient quota for cpu in flavor default, previously considered "
            "podsets requests (0) + current podset request (80) > maximum capacity (64)",
            "raise nominalQuota there",
        ),
        ("The workload has failed admission checks", "kubectl describe workload -n jos"),
    ],
)
def test_what_waiting_alone_does_not_mend_is_told_with_what_to_do(said: str, advice: str) -> None:
    told = kueue_says(rayjob(), workload(("QuotaReserved", "False", said)), LATER)
    assert told.startswith(f"Kueue: {said}. ")
    assert advice in told
    assert "$" not in told


def test_what_waiting_mends_is_told_in_kueue_s_own_words() -> None:
    said = "couldn't assign flavors to pod set w: insufficient unused quota for cpu in flavor default, 1 more needed"
    assert kueue_says(rayjob(), workload(("QuotaReserved", "False", said)), LATER) == f"Kueue: {said}"
    preempted = "Preempted to accommodate a workload (UID: 1)"
    both = workload(("Evicted", "True", preempted), ("QuotaReserved", "False", said))
    assert kueue_says(rayjob(), both, LATER) == f"Kueue: {preempted}"


def test_of_one_that_was_evicted_it_counts_more_why_it_cannot_come_back() -> None:
    stopped = ("Evicted", "True", "The ClusterQueue is stopped")
    assert "kubectl get localqueue lq -n jos names it" in kueue_says(rayjob(), workload(stopped), LATER)
    both = workload(stopped, ("QuotaReserved", "False", "ClusterQueue cq is inactive"))
    assert "kubectl describe clusterqueue cq" in kueue_says(rayjob(), both, LATER)
    preempted = ("Evicted", "True", "Preempted to accommodate a workload")
    gone = workload(preempted, ("QuotaReserved", "False", "LocalQueue lq doesn't exist"))
    assert kueue_says(rayjob(), gone, LATER).startswith("Kueue: LocalQueue lq doesn't exist. Create")


def test_a_class_of_priority_that_may_be_missing_is_named() -> None:
    told = kueue_says(rayjob(**{"kueue.x-k8s.io/priority-class": "jos-high"}), None, LATER)
    assert "for 20 s. Check that WorkloadPriorityClass jos-high exists (kubectl get workloadpriorityclass" in told
    assert "kueue.priority_classes in the profile" in told
    assert kueue_says(rayjob(**{"kueue.x-k8s.io/priority-class": "jos-high"}), None, NOW) == ""
    assert "WorkloadPriorityClass" not in kueue_says(rayjob(), None, LATER)


def test_a_place_that_was_lost_is_known_once_there_is_one_again() -> None:
    def conditions(evicted: str, admitted: str, **more: str) -> dict[str, Any]:
        found = workload(("Evicted", evicted, "Previously: Preempted for w2"), ("Admitted", admitted, ""))
        found["status"]["conditions"][1] |= more
        return found

    back = {"lastTransitionTime": "2026-11-23T13:00:00Z"}
    assert eviction(conditions("False", "True", **back)) == Eviction("Kueue: Preempted for w2", NOW)
    for nothing in (None, workload(), conditions("True", "True", **back), conditions("False", "False", **back)):
        assert eviction(nothing) is None


def test_a_workload_that_somebody_deactivated_is_told_with_how_it_goes_on() -> None:
    off = workload()
    off["spec"]["active"] = False
    assert "kubectl patch workload w -n jos --type merge" in kueue_says(rayjob(), off, LATER)
    evicted = workload(("Evicted", "True", "The workload is deactivated"))
    assert "kubectl patch workload w -n jos --type merge" in kueue_says(rayjob(), evicted, LATER)
