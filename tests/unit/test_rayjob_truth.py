"""What is true of a driver, by eight recordings of a real KubeRay 1.7 and Kueue 0.19, and by objects made here."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jos.launch.kube_cache import CLUSTERS, PODS, RAYJOBS, WORKLOADS, Cache
from jos.launch.rayjob_truth import Evidence, admitted, headless, truth

RECORDINGS = Path(__file__).parents[1] / "data" / "kube-transcripts"
NOW = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)

# (state, what it waits for, suspended)
UNSEEN, HEAD = ("starting", "WaitingForOperator", False), ("starting", "WaitingForHead", False)
WORKERS, RAY = ("starting", "WaitingForWorkers", False), ("starting", "WaitingForRay", False)
RUNS, ENDED = ("running", None, False), ("ended", None, False)
IN_KUEUE, BY_SOMEBODY = ("starting", "WaitingInKueue", True), ("starting", "WaitingForOperator", True)
PLACED = BY_SOMEBODY  # admitted, and about to be taken out of its suspension
UP = [UNSEEN, HEAD, WORKERS, RAY, RUNS]

SEQUENCES: dict[str, dict[str, list[tuple[str, str | None, bool]]]] = {
    "s1-httpmode-success": {"s1": [*UP, ENDED]},
    "s2-suspend-resume": {"s2": [*UP, BY_SOMEBODY, *UP, ENDED]},
    "s3-kueue-preemption": {
        "s3-low": [IN_KUEUE, PLACED, *UP, IN_KUEUE, PLACED, *UP, ENDED],
        "s3-high": [IN_KUEUE, PLACED, *UP, ENDED],
    },
    "s4-backofflimit": {"s4": [*UP, ENDED]},  # KubeRay's second try is none of ours
    "s5-deadline": {"s5": [UNSEEN, HEAD, RAY, RUNS, ENDED]},  # jobStatus stays RUNNING
    "s6-head-pod-deleted": {"s6": [*UP, ENDED]},  # KubeRay says Running to the end, and makes another head
    "s7-validation-failed": {"s7": [UNSEEN, ENDED]},
    "s8-k8sjobmode": {"s8": [*UP, ENDED]},
}
LAST_WORDS = {
    "s4": "boom 2",
    "s5": "ActiveDeadlineSeconds: 6",
    "s6": "The head pod s6-4k8s8-head-7hw78 was deleted on node fake-0",
    "s7": "TTLSecondsAfterFinished must be a non-negative integer",
}


def changes(name: str) -> Iterator[tuple[datetime, str, str, dict[str, Any]]]:
    with gzip.open(RECORDINGS / f"{name}.jsonl.gz", "rt") as lines:
        for line in map(json.loads, lines):
            if line["resource"] in (RAYJOBS, CLUSTERS, PODS, WORKLOADS):
                yield NOW + timedelta(seconds=line["t"]), line["resource"], line["type"], line["object"]


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_recording_is_told_as_these_states_in_this_order(name: str) -> None:
    cache = Cache()
    told: dict[str, list[tuple[str, str | None, bool]]] = {}
    words: dict[str, str] = {}
    for now, kind, change, thing in changes(name):
        (cache.drop if change == "DELETED" else cache.put)(kind, thing)
        for rayjob in cache.rayjobs:
            seen = truth(cache.evidence(rayjob), now)
            state = (seen.state, seen.waits and seen.waits.reason, seen.suspended)
            if told.setdefault(rayjob, []) == [] or told[rayjob][-1] != state:
                told[rayjob].append(state)
            words[rayjob] = seen.message
            assert seen.waits is None or seen.waits.message
    assert told == SEQUENCES[name]
    for rayjob, said in words.items():
        assert LAST_WORDS.get(rayjob, "ok") in said
    assert set(cache.size().values()) == {0}


def test_why_a_job_waits_in_kueue_is_told_in_kueue_s_words() -> None:
    cache, said = Cache(), set()
    for now, kind, change, thing in changes("s3-kueue-preemption"):
        (cache.drop if change == "DELETED" else cache.put)(kind, thing)
        for rayjob in cache.rayjobs:
            waits = truth(cache.evidence(rayjob), now).waits
            if waits is not None and waits.reason == "WaitingInKueue":
                said.add((rayjob, waits.message.partition(" (UID")[0]))
    assert ("s3-low", "Kueue: Preempted to accommodate a workload") in said
    quota = "Kueue: couldn't assign flavors to pod set w: insufficient unused quota for cpu in flavor default"
    assert ("s3-high", f"{quota}, 1 more needed. Pending the preemption of 1 workload(s)") in said


def test_a_copy_that_somebody_made_of_a_rayjob_is_not_taken_for_its_driver() -> None:
    copy = rayjob("Running", "RUNNING")
    copy["metadata"]["name"] = "jos-job-1-1-copy"
    assert truth(Evidence(copy), NOW).name == "jos-job-1-1-copy"
    assert truth(Evidence(rayjob("Running", "RUNNING")), NOW).name == "jos-job_1-1"


def test_kueue_holds_capacity_from_its_admission_to_its_eviction() -> None:
    cache, told = Cache(), list[bool]()
    for _, kind, change, thing in changes("s3-kueue-preemption"):
        (cache.drop if change == "DELETED" else cache.put)(kind, thing)
        if "s3-low" in cache.rayjobs:
            now = admitted(cache.evidence("s3-low"))
            if told[-1:] != [now]:
                told.append(now)
    assert told == [False, True, False, True]


# --- made here ----------------------------------------------------------------------------------------


def rayjob(deployment: str = "", job: str = "", /, suspend: bool = False, **status: Any) -> dict[str, Any]:
    made = {"name": "jos-job-1-1", "namespace": "jos", "uid": "u", "creationTimestamp": "2026-11-23T12:59:50Z"}
    told = {"jobDeploymentStatus": deployment, "jobStatus": job, "rayClusterName": "c", **status} if deployment else {}
    return {"metadata": made, "spec": {"jobId": "jos-job_1-1", "suspend": suspend}, "status": told}


def head(**status: Any) -> dict[str, Any]:
    labels = {"ray.io/cluster": "c", "ray.io/node-type": "head"}
    spec = {"nodeName": "n1", "containers": [{"name": "ray-head"}, {"name": "autoscaler"}]}
    return {"metadata": {"name": "c-head", "labels": labels}, "spec": spec, "status": {"phase": "Running", **status}}


def worker(name: str = "c-w-1", **status: Any) -> dict[str, Any]:
    labels = {"ray.io/cluster": "c", "ray.io/node-type": "worker"}
    return {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {"phase": "Pending", **status}}


READY = {"conditions": [{"type": "Ready", "status": "True"}]}
RUNNING = rayjob("Running", "RUNNING", rayJobInfo={"startTime": "2026-11-23T12:59:58Z"})


def waiting(reason: str, message: str = "", image: str = "registry.example/jos:1") -> dict[str, Any]:
    container = {"name": "ray-head", "image": image, "state": {"waiting": {"reason": reason, "message": message}}}
    return {"phase": "Pending", "containerStatuses": [container]}


def refused(message: str) -> dict[str, Any]:
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateHeadPod", "message": message}
    return {"metadata": {"name": "c"}, "status": {"conditions": [failure]}}


def unschedulable(message: str) -> dict[str, Any]:
    return {
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}],
        "phase": "Pending",
    }


INITIALIZING = rayjob("Initializing")
QUOTA = 'pods "c-head" is forbidden: exceeded quota: team, requested: cpu=4, used: cpu=8, limited: cpu=10'
SECURITY = 'pods "c-head" is forbidden: violates PodSecurity "restricted:latest"'
TROUBLES: dict[str, tuple[Evidence, str, str]] = {
    "an image that cannot be pulled": (
        Evidence(INITIALIZING, pods=[head(**waiting("ImagePullBackOff", 'Back-off pulling image "x"'))]),
        "PullingImage",
        'cannot pull its image registry.example/jos:1 (ImagePullBackOff). Back-off pulling image "x". Check the name',
    ),
    "a registry that refuses": (
        Evidence(INITIALIZING, pods=[head(**waiting("ErrImagePull", "401 Unauthorized"))]),
        "PullingImage",
        "401 Unauthorized. Check the name of the image, and that the profile names the pull secret",
    ),
    "an image that is being pulled": (
        Evidence(INITIALIZING, pods=[head(**waiting("ContainerCreating"))]),
        "PullingImage",
        "is being made on node n1, which pulls registry.example/jos:1",
    ),
    "no node": (
        Evidence(
            INITIALIZING, pods=[head(**READY), worker(**unschedulable("0/3 nodes: 3 Insufficient nvidia.com/gpu"))]
        ),
        "NoNodeForPods",
        "No node for pod c-w-1. 0/3 nodes: 3 Insufficient nvidia.com/gpu. It starts once a node fits",
    ),
    "a quota": (Evidence(INITIALIZING, refused(QUOTA)), "ClusterQuota", "exceeded quota: team"),
    "a policy": (Evidence(INITIALIZING, refused(SECURITY)), "PodsRefused", 'violates PodSecurity "restricted:latest"'),
    "a secret that is missing": (
        Evidence(INITIALIZING, pods=[head(**waiting("CreateContainerConfigError", 'secret "jos" not found'))]),
        "PodCannotStart",
        'cannot start (CreateContainerConfigError). secret "jos" not found. Check the secrets',
    ),
    "a head that crashes": (
        Evidence(INITIALIZING, pods=[head(**waiting("CrashLoopBackOff"))]),
        "PodCannotStart",
        "Container ray-head of pod c-head ends again and again. Its log: kubectl logs c-head --previous",
    ),
    "a scheduling gate": (
        Evidence(
            INITIALIZING,
            pods=[head(conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}])],
        ),
        "WaitingInKueue",
        "held back by a scheduling gate",
    ),
    "the head's trouble comes before a worker's": (
        Evidence(INITIALIZING, pods=[worker("a-w", **unschedulable("no GPU")), head(**waiting("ErrImagePull"))]),
        "PullingImage",
        "c-head",
    ),
    "an operator that does not look": (
        Evidence(rayjob()),
        "WaitingForOperator",
        "has not looked at RayJob jos-job-1-1 for 70 s. Check that its operator runs and watches namespace jos.",
    ),
    "workers that are still to be made": (
        Evidence(INITIALIZING, {"metadata": {"name": "c"}, "status": {"desiredWorkerReplicas": 2}}, [head(**READY)]),
        "WaitingForWorkers",
        "KubeRay is making the pods of its indexes",
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_keeps_a_driver_from_coming_up_is_told(trouble: str) -> None:
    evidence, reason, words = TROUBLES[trouble]
    seen = truth(evidence, NOW + timedelta(seconds=60))
    assert (seen.name, seen.state, seen.suspended) == ("jos-job_1-1", "starting", False)
    assert seen.waits is not None
    assert seen.waits.reason == reason
    assert words in seen.waits.message


def terminated(reason: str, code: int, **more: str) -> dict[str, Any]:
    return {"terminated": {"reason": reason, "exitCode": code, **more}}


def container(**status: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "autoscaler", "state": {}}, {"name": "ray-head", **status}]}


EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}
AGAIN = {"lastState": terminated("OOMKilled", 137), "state": {"running": {"startedAt": "2026-11-23T13:00:05Z"}}}
OUT_OF_MEMORY = container(state=terminated("OOMKilled", 137))
STUCK = {"name": "c-head", "labels": head()["metadata"]["labels"], "deletionTimestamp": "2026-11-23T12:59:59Z"}

DEATHS: dict[str, tuple[Evidence, str]] = {
    "evicted": (
        Evidence(RUNNING, pods=[head(**EVICTED)]),
        "The head pod was evicted on node n1. The node was low on resource: memory.",
    ),
    "out of memory": (
        Evidence(RUNNING, pods=[head(phase="Failed", **OUT_OF_MEMORY)]),
        "The head pod ended on node n1 because it was out of memory (OOMKilled); give the head more in the profile.",
    ),
    "out of memory and started again in its pod": (
        Evidence(RUNNING, pods=[head(**READY, **container(**AGAIN))]),
        "Ray's head ended and was started again on node n1 because it was out of memory (OOMKilled)",
    ),
    "deleted": (Evidence(RUNNING, dead_head=head()), "The head pod c-head was deleted on node n1: its driver is lost."),
    "deleted by a drain of its node": (
        Evidence(RUNNING, dead_head=head(conditions=[DISRUPTED])),
        "was deleted on node n1 (EvictionByEvictionAPI: drained.): its driver is lost.",
    ),
    "deleted, and KubeRay made another": (Evidence(RUNNING, pods=[head(**READY)], dead_head=head()), "was deleted"),
    "on a node that does not answer": (
        Evidence(RUNNING, pods=[head() | {"metadata": STUCK}]),
        "told to leave on node n1, and the node does not say that it did.",
    ),
    "gone while nobody looked": (
        Evidence(RUNNING, headless_since=NOW - timedelta(seconds=11)),
        "The head pod of its Ray cluster is gone: its driver is lost.",
    ),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_driver_ends_with_its_head_whatever_kuberay_says(death: str) -> None:
    evidence, words = DEATHS[death]
    seen = truth(evidence, NOW)
    assert seen.state == "ended"
    assert words in seen.message


def test_a_driver_whose_head_lives_runs() -> None:
    since = {"running": {"startedAt": "2026-11-23T12:59:30Z"}}
    seen = truth(Evidence(RUNNING, pods=[head(**READY, **container(state=since))]), NOW)
    assert (seen.state, seen.waits) == ("running", None)
    assert seen.started_at == datetime(2026, 11, 23, 12, 59, 58, tzinfo=UTC)
    leaving = STUCK | {"deletionTimestamp": "2026-11-23T13:00:30Z"}
    assert truth(Evidence(RUNNING, pods=[head(**READY) | {"metadata": leaving}]), NOW).state == "running"


def test_a_head_that_the_watch_has_not_told_of_yet_is_waited_for() -> None:
    assert headless(Evidence(RUNNING))
    assert not headless(Evidence(RUNNING, pods=[head()]))
    assert truth(Evidence(RUNNING, headless_since=NOW - timedelta(seconds=5)), NOW).state == "running"


ENDINGS: dict[str, tuple[Evidence, str, int | None]] = {
    "done": (Evidence(rayjob("Complete", "SUCCEEDED", message="Job finished successfully.")), "Job finished", 0),
    "stopped": (Evidence(rayjob("Complete", "STOPPED")), "The driver was stopped.", None),
    "failed": (
        Evidence(
            rayjob("Failed", "FAILED", reason="AppFailed", message="Job entrypoint command failed with exit code 3")
        ),
        "Job entrypoint command failed with exit code 3",
        3,
    ),
    "not submitted": (
        Evidence(rayjob("Failed", "", reason="SubmissionFailed", message="head answers 500")),
        "KubeRay could not hand the driver to Ray. head answers 500",
        None,
    ),
    "its status was not to be had": (
        Evidence(
            rayjob("Failed", "RUNNING", reason="JobStatusCheckTimeoutExceeded"),
            pods=[head(phase="Failed", **OUT_OF_MEMORY)],
        ),
        "did not answer KubeRay for minutes. The head pod ended on node n1 because it was out of memory",
        None,
    ),
    "its end was missed": (
        Evidence(rayjob("Failed", "FAILED", reason="JobDeploymentStatusTransitionGracePeriodExceeded")),
        "KubeRay missed it",
        None,
    ),
    "a reason of a KubeRay to come": (
        Evidence(rayjob("Failed", "RUNNING", reason="SomethingNew", message="because")),
        "KubeRay gave it up (SomethingNew). because",
        None,
    ),
    "tried again by KubeRay": (Evidence(rayjob("Retrying", "FAILED", message="boom", failed=1)), "boom", None),
    "tried again, and its words are wiped": (
        Evidence(rayjob("Running", "RUNNING", message="ok", failed=1), pods=[head(**READY)]),
        "which JOS did not ask for (backoffLimit)",
        None,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_end_of_a_driver_is_told_with_its_cause(ending: str) -> None:
    evidence, words, code = ENDINGS[ending]
    seen = truth(evidence, NOW)
    assert (seen.state, seen.exit_code) == ("ended", code)
    assert words in seen.message


def test_pods_that_did_not_come_up_in_time_are_told_with_what_they_waited_for() -> None:
    late = rayjob("Failed", "", reason="PreRunningDeadlineExceeded")
    late["spec"]["preRunningDeadlineSeconds"] = 1800
    before = truth(Evidence(INITIALIZING, pods=[head(**waiting("ImagePullBackOff"))]), NOW).waits
    seen = truth(Evidence(late, waited=before), NOW)
    assert seen.message.startswith("Its pods were not up within 1800 s (preRunningDeadlineSeconds). The last that was")
    assert "cannot pull its image registry.example/jos:1" in seen.message


def test_kueue_s_order_to_suspend_counts_before_kuberay_has_obeyed_it() -> None:
    evicted = rayjob("Running", "RUNNING", suspend=True)
    evicted["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "q"}
    seen = truth(Evidence(evicted, pods=[head(**READY)]), NOW)
    assert (seen.state, seen.suspended) == ("starting", True)
    assert seen.waits is not None
    assert seen.waits.reason == "WaitingInKueue"
    gone = truth(Evidence(rayjob("Suspended", suspend=True), dead_head=head()), NOW)
    assert (gone.state, gone.suspended) == ("starting", True)


def test_a_workload_that_nobody_looks_at_is_told_with_what_to_check() -> None:
    waits = rayjob(suspend=True)
    waits["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "q"}
    later = NOW + timedelta(seconds=60)
    idle = truth(Evidence(waits), later).waits
    assert idle is not None
    assert "Check that it runs and manages RayJobs (kubectl" in idle.message
    workload: dict[str, Any] = {"metadata": {"name": "w"}, "spec": {"queueName": "q"}, "status": {}}
    no_queue = truth(Evidence(waits, workload=workload), later).waits
    assert no_queue is not None
    assert "Check that LocalQueue q exists" in no_queue.message
    workload["spec"]["active"] = False
    off = truth(Evidence(waits, workload=workload), later).waits
    assert off is not None
    assert "was deactivated" in off.message
