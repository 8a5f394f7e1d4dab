"""What is kept of a cluster, and how small it is."""

from __future__ import annotations

import tracemalloc
from typing import Any

from test_rayjob_truth import changes

from jos.launch.kube_cache import CLUSTERS, PODS, RAYJOBS, WORKLOADS, Cache, slim
from jos.launch.rayjob_truth import Evidence


def rayjob(number: int, uid: str = "u", cluster: str = "") -> dict[str, Any]:
    labels = {"jos.dev/job": f"job_{number}", "jos.dev/attempt": "1", "team": "x"}
    group = {
        "template": {"spec": {"containers": [{"env": [{"name": f"E{n}", "value": "v" * 200} for n in range(50)]}]}}
    }
    return {
        "metadata": {"name": f"r{number}", "uid": uid, "labels": labels, "managedFields": [{"f": "x" * 5000}]},
        "spec": {
            "jobId": f"jos-job_{number}-1",
            "rayClusterSpec": {"headGroupSpec": group, "workerGroupSpecs": [group]},
        },
        "status": {"jobDeploymentStatus": "Running", "rayClusterName": cluster, "message": "m" * 20000},
    }


def pod(name: str, cluster: str = "c", kind: str = "head") -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"ray.io/cluster": cluster, "ray.io/node-type": kind}}}


def test_a_thousand_rayjobs_take_some_megabytes() -> None:
    cache = Cache()
    tracemalloc.start()
    for number in range(1000):
        cache.put(RAYJOBS, rayjob(number))
        cache.put(PODS, pod(f"p{number}", f"c{number}"))
    held, _ = tracemalloc.get_traced_memory()
    for number in range(1000):
        cache.put(RAYJOBS, rayjob(number))
        cache.drop(PODS, pod(f"p{number}", f"c{number}"))
        cache.drop(RAYJOBS, rayjob(number))
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 15e6
    assert left < 1e6
    assert set(cache.size().values()) == {0}


def test_what_is_kept_of_an_object_is_the_same_when_it_is_taken_from_what_was_kept() -> None:
    for _, kind, _, thing in changes("s3-kueue-preemption"):
        kept = slim(kind, thing)
        assert slim(kind, kept) == kept


def test_of_a_long_message_the_beginning_and_the_end_are_kept() -> None:
    long = rayjob(1) | {"status": {"message": "It failed, last available logs:\n" + "x\n" * 9000 + "ValueError: no"}}
    kept = slim(RAYJOBS, long)["status"]["message"]
    assert kept.startswith("It failed, last available logs")
    assert kept.endswith("ValueError: no")
    assert len(kept) < 4000


def test_what_went_while_nobody_watched_is_found_by_the_next_list() -> None:
    gone: list[Evidence] = []
    cache = Cache(gone.append)
    cache.put(RAYJOBS, rayjob(1, cluster="c"))
    cache.put(RAYJOBS, rayjob(2))
    cache.put(PODS, pod("h"))
    cache.put(PODS, pod("w", kind="worker"))
    cache.put(WORKLOADS, {"metadata": {"name": "wl", "ownerReferences": [{"kind": "RayJob", "name": "r1"}]}})
    cache.replace(PODS, [pod("w", kind="worker")])
    evidence = cache.evidence("r1")
    assert [p["metadata"]["name"] for p in evidence.pods] == ["w"]
    assert evidence.dead_head is not None
    assert evidence.workload is not None
    cache.replace(WORKLOADS, [])
    cache.replace(RAYJOBS, [rayjob(2), rayjob(3)])
    assert [e.rayjob["metadata"]["name"] for e in gone] == ["r1"]
    assert gone[0].dead_head is not None
    assert sorted(cache.rayjobs) == ["r2", "r3"]
    assert (cache.of_job("job_1"), cache.of_job("job_3")) == ([], ["r3"])


def test_a_rayjob_that_was_made_anew_under_its_name_is_another_one() -> None:
    gone: list[Evidence] = []
    cache = Cache(gone.append)
    cache.put(RAYJOBS, rayjob(1, "a"))
    cache.put(RAYJOBS, rayjob(1, "a"))
    assert gone == []
    cache.put(RAYJOBS, rayjob(1, "b"))
    assert [e.rayjob["metadata"]["uid"] for e in gone] == ["a"]
    assert cache.of_job("job_1") == ["r1"]


def test_the_head_of_a_cluster_that_a_rayjob_has_left_is_not_its_dead_head() -> None:
    cache = Cache()
    cache.put(RAYJOBS, rayjob(1, cluster="c"))
    cache.put(PODS, pod("h", "c"))
    cache.put(CLUSTERS, {"metadata": {"name": "c"}})
    cache.put(RAYJOBS, rayjob(1, cluster="d"))
    cache.drop(PODS, pod("h", "c"))
    assert cache.evidence("r1").dead_head is None
    cache.put(PODS, pod("h2", "d"))
    cache.drop(PODS, pod("h2", "d"))
    assert cache.evidence("r1").dead_head is not None
