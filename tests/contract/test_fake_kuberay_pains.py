"""What hurts with the real KubeRay hurts with the fake one too: resubmission, frozen states, silent waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kube.errors import ApiError
from kube.objects import Objects
from kube.parts import Made, condition, found, is_true
from kube.samples import NAMESPACE, head, queue, rayjob
from kube.standins import Scripted
from kube.world import Clock, World

NO_RESTART = {"ray.io/disable-provisioned-head-restart": "true"}


class Cluster:
    """A fake cluster with one node of 8 CPUs, and a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.objects = Objects(self.clock, namespaces=(NAMESPACE,))
        self.standin = Scripted(self.clock)
        self.world = World(self.objects, self.standin)
        self.kubelet, self.advance = self.world.kubelet, self.world.advance
        self.kubelet.add_node("node-1", {"cpu": 8, "memory": "32Gi"})

    def submit(self, job: Made) -> None:
        self.objects.create("rayjobs", job)

    def running(self, name: str, **spec: Any) -> Made:
        """The status of a job that was submitted and runs."""
        annotations = spec.pop("annotations", None)
        job = rayjob(name, **spec)
        if annotations:
            job["metadata"]["annotations"] = annotations
        self.submit(job)
        self.advance(5)
        status = self.status(name)
        assert status["jobStatus"] == "RUNNING"
        return status

    def status(self, name: str) -> Made:
        status: Made = self.objects.get("rayjobs", NAMESPACE, name).get("status", {})
        return status

    def state(self, name: str) -> tuple[Any, ...]:
        status = self.status(name)
        return tuple(status.get(field) for field in ("jobDeploymentStatus", "jobStatus", "reason"))

    def workload(self, name: str) -> Made:
        uid = self.objects.get("rayjobs", NAMESPACE, name)["metadata"]["uid"]
        (one,) = self.objects.list("workloads", NAMESPACE, {"kueue.x-k8s.io/job-uid": uid})
        return one

    def pods(self, name: str) -> list[Made]:
        cluster = self.status(name)["rayClusterName"]
        return self.objects.list("pods", NAMESPACE, {"ray.io/cluster": cluster})

    def head(self, name: str) -> Made:
        (pod,) = [pod for pod in self.pods(name) if pod["metadata"]["labels"]["ray.io/node-type"] == "head"]
        return pod


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


# --- pains of the operator ----------------------------------------------------------------------------


def test_a_head_that_lost_its_job_table_is_given_the_same_job_again(cluster: Cluster) -> None:
    job_id = cluster.running("a", jobId="mine")["jobId"]
    cluster.standin.lose_table()
    cluster.advance(5)
    assert cluster.standin.submitted == ["mine", "mine"]
    assert cluster.state("a") == ("Running", "RUNNING", None)
    assert (cluster.status("a")["failed"], job_id) == (0, "mine")


def test_a_container_that_is_restarted_in_place_runs_the_job_again_whatever_the_annotation_says(
    cluster: Cluster,
) -> None:
    cluster.running("a", annotations=NO_RESTART)
    cluster.kubelet.crash(NAMESPACE, cluster.head("a")["metadata"]["name"])
    cluster.advance(0)
    assert not is_true(cluster.head("a"), "Ready")
    cluster.advance(10)
    assert len(cluster.standin.submitted) == 2
    assert cluster.head("a")["status"]["containerStatuses"][0]["restartCount"] == 1


def test_a_head_that_may_not_be_made_anew_leaves_its_job_running_until_the_check_times_out(cluster: Cluster) -> None:
    status = cluster.running("a", annotations=NO_RESTART, backoffLimit=2)
    cluster.kubelet.kill_head(NAMESPACE, status["rayClusterName"])
    cluster.advance(290)
    assert cluster.state("a") == ("Running", "RUNNING", None)
    ready = condition({"status": cluster.status("a")["rayClusterStatus"]}, "HeadPodReady")
    raycluster = cluster.objects.get("rayclusters", NAMESPACE, status["rayClusterName"])
    assert (condition(raycluster, "HeadPodReady") or {})["reason"] == "HeadPodNotFound"
    assert ready is not None
    cluster.advance(20)
    assert cluster.state("a") == ("Failed", "RUNNING", "JobStatusCheckTimeoutExceeded")  # not retried
    assert len(cluster.standin.submitted) == 1


def test_a_head_pod_that_is_removed_by_force_takes_its_job_along(cluster: Cluster) -> None:
    cluster.running("a", annotations=NO_RESTART)
    cluster.objects.delete("pods", NAMESPACE, cluster.head("a")["metadata"]["name"], grace=0)
    cluster.advance(5)
    assert not cluster.standin.jobs


def test_a_failed_head_pod_that_is_never_restarted_is_replaced_by_another(cluster: Cluster) -> None:
    job = rayjob("a")
    head(job)["restartPolicy"] = "Never"
    cluster.submit(job)
    cluster.advance(5)
    first = cluster.head("a")["metadata"]["name"]
    cluster.kubelet.crash(NAMESPACE, first)
    cluster.advance(10)
    assert cluster.head("a")["metadata"]["name"] != first
    assert len(cluster.standin.submitted) == 2


def test_a_deadline_fails_the_job_without_telling_ray(cluster: Cluster) -> None:
    cluster.running("a", activeDeadlineSeconds=60)
    cluster.advance(60)
    assert cluster.state("a") == ("Failed", "RUNNING", "DeadlineExceeded")
    assert not cluster.standin.stopped


def test_a_suspended_job_is_not_stopped_and_a_deleted_one_is(cluster: Cluster) -> None:
    cluster.running("a")
    cluster.running("b")
    cluster.objects.patch("rayjobs", NAMESPACE, "a", {"spec": {"suspend": True}})
    cluster.advance(5)
    assert cluster.state("a") == ("Suspended", None, None)
    assert not cluster.standin.stopped
    job_id = cluster.status("b")["jobId"]
    cluster.objects.delete("rayjobs", NAMESPACE, "b")
    cluster.advance(5)
    assert cluster.standin.stopped == [job_id]


def test_a_stopped_job_is_complete(cluster: Cluster) -> None:
    cluster.standin.stop(cluster.running("a")["jobId"])
    cluster.advance(5)
    assert cluster.state("a") == ("Complete", "STOPPED", None)
    assert cluster.status("a")["succeeded"] == 0


def test_a_misspelt_submission_mode_runs_for_ever_and_does_nothing(cluster: Cluster) -> None:
    cluster.submit(rayjob("a") | {"spec": rayjob("a")["spec"] | {"submissionMode": "HttpMode"}})
    cluster.advance(3600)
    assert cluster.state("a") == ("Running", None, None)
    assert not cluster.standin.submitted


def test_a_finished_job_keeps_its_cluster_for_its_time_to_live(cluster: Cluster) -> None:
    status = cluster.running("a", ttlSecondsAfterFinished=30)
    cluster.standin.say(status["jobId"], "SUCCEEDED")
    cluster.advance(29)
    assert found(cluster.objects, "rayclusters", NAMESPACE, status["rayClusterName"]) is not None
    cluster.advance(5)
    assert cluster.objects.list("rayclusters") == []
    assert cluster.objects.list("pods") == []
    assert cluster.state("a") == ("Complete", "SUCCEEDED", None)


# --- what keeps a job from starting -------------------------------------------------------------------


def without_image(cluster: Cluster) -> None:
    cluster.kubelet.missing_images.add("rayproject/ray:2.60.0")


def without_room(cluster: Cluster) -> None:
    cluster.objects.delete("nodes", None, "node-1")
    cluster.kubelet.add_node("node-2", {"cpu": "500m", "memory": "32Gi"})


def without_secret(cluster: Cluster) -> None:
    """The pods name one that is not there; see below."""


WAITS = [
    (without_image, "waiting", "ImagePullBackOff", 'Back-off pulling image "rayproject/ray:2.60.0"'),
    (without_room, "PodScheduled", "Unschedulable", "0/1 nodes are available: 1 Insufficient cpu"),
    (without_secret, "waiting", "CreateContainerConfigError", 'secret "keys" not found'),
]


@pytest.mark.parametrize(("lack", "where", "reason", "message"), WAITS)
def test_a_pod_tells_what_it_waits_for_and_the_job_fails_at_its_deadline(
    cluster: Cluster, lack: Callable[[Cluster], None], where: str, reason: str, message: str
) -> None:
    lack(cluster)
    job = rayjob("a", preRunningDeadlineSeconds=120)
    if lack is without_secret:
        head(job)["containers"][0]["envFrom"] = [{"secretRef": {"name": "keys"}}]
    cluster.submit(job)
    cluster.advance(60)
    pod = cluster.head("a")
    assert cluster.state("a") == ("Initializing", None, None)
    assert pod["status"]["phase"] == "Pending"
    if where == "waiting":
        told = pod["status"]["containerStatuses"][0]["state"]["waiting"]
    else:
        told = condition(pod, where) or {}
    assert told["reason"] == reason
    assert message in told["message"]
    cluster.advance(60)
    assert cluster.state("a") == ("Failed", None, "PreRunningDeadlineExceeded")
    cluster.advance(5)
    assert cluster.objects.list("pods") == []


def test_pods_start_as_soon_as_what_they_lacked_is_there(cluster: Cluster) -> None:
    job = rayjob("a")
    head(job)["containers"][0]["env"] = [
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "one"}}},
        {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "one", "optional": True}}},
    ]
    cluster.submit(job)
    cluster.advance(60)
    secret: Made = {"metadata": {"name": "keys", "namespace": NAMESPACE}, "stringData": {"one": "1"}}
    cluster.objects.create("secrets", secret)
    cluster.advance(1)
    assert cluster.state("a") == ("Running", "RUNNING", None)
    environment = cluster.standin.environments[cluster.status("a")["jobId"]]
    assert environment["KEY"] == "1"
    assert "NONE" not in environment


def test_pods_go_where_selector_taints_and_room_let_them(cluster: Cluster) -> None:
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    cluster.kubelet.add_node("gpu-1", {"cpu": 64, "memory": "1Ti", "nvidia.com/gpu": 1}, {"gpu": "a100"}, [taint])
    jobs = [rayjob(name, workers=1) for name in ("a", "b")]
    for job in jobs:
        spec = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
        spec["nodeSelector"] = {"gpu": "a100"}
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
        spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = "1"
        cluster.submit(job)
        cluster.advance(5)
    nodes = {pod["metadata"]["labels"]["ray.io/node-type"]: pod["spec"].get("nodeName") for pod in cluster.pods("a")}
    assert nodes == {"head": "node-1", "worker": "gpu-1"}
    assert cluster.state("b")[0] == "Initializing"  # one GPU: it waits
    cluster.standin.say(cluster.status("a")["jobId"], "SUCCEEDED")
    cluster.advance(5)
    assert cluster.state("b") == ("Running", "RUNNING", None)


def test_what_ran_on_a_lost_node_is_gone_and_made_anew_elsewhere(cluster: Cluster) -> None:
    cluster.running("a")
    before = {pod["metadata"]["name"] for pod in cluster.pods("a")}
    cluster.kubelet.add_node("node-2", {"cpu": 8, "memory": "32Gi"})
    cluster.kubelet.lose_node("node-1")
    cluster.advance(10)
    assert not before & {pod["metadata"]["name"] for pod in cluster.pods("a")}
    assert {pod["spec"]["nodeName"] for pod in cluster.pods("a")} == {"node-2"}
    assert len(cluster.standin.submitted) == 2


# --- Kueue --------------------------------------------------------------------------------------------


def test_a_job_without_quota_waits_suspended_and_starts_when_there_is_some(cluster: Cluster) -> None:
    queue(cluster.objects, cpu=2, memory="8Gi")
    cluster.running("a", queue="lq/high")
    cluster.submit(rayjob("b", queue="lq/high"))
    cluster.advance(5)
    assert cluster.state("b") == ("Suspended", None, None)
    told = condition(cluster.workload("b"), "QuotaReserved") or {}
    assert (told["status"], told["reason"]) == ("False", "Pending")
    assert "insufficient unused quota for cpu in flavor default" in told["message"]
    cluster.standin.say(cluster.status("a")["jobId"], "SUCCEEDED")
    cluster.advance(5)
    assert cluster.state("b") == ("Running", "RUNNING", None)


def test_a_queue_that_is_not_there_is_told(cluster: Cluster) -> None:
    cluster.submit(rayjob("a", queue="lq"))
    cluster.advance(5)
    told = condition(cluster.workload("a"), "QuotaReserved") or {}
    assert (told["reason"], told["message"]) == ("Inadmissible", "LocalQueue lq doesn't exist")
    queue(cluster.objects, cpu=2, memory="8Gi")
    cluster.advance(5)
    assert cluster.state("a") == ("Running", "RUNNING", None)


def events(cluster: Cluster, reason: str) -> list[str]:
    return [e["message"] for e in cluster.objects.list("events", NAMESPACE) if e["reason"] == reason]


def test_a_class_of_priority_that_is_missing_keeps_a_job_without_a_workload_until_it_is_there(cluster: Cluster) -> None:
    queue(cluster.objects, cpu=2, memory="8Gi")
    cluster.submit(rayjob("a", queue="lq/none"))  # not refused
    cluster.advance(30)
    assert cluster.state("a")[0] == "Suspended"
    assert cluster.objects.list("workloads", NAMESPACE) == []
    assert 'WorkloadPriorityClass "none" not found' in events(cluster, "WorkloadPriorityClassNotFound")
    cluster.objects.create("workloadpriorityclasses", {"metadata": {"name": "none"}, "value": 5})
    cluster.advance(30)
    assert cluster.state("a")[0] == "Running"
    assert cluster.workload("a")["spec"]["priority"] == 5


def test_labels_of_a_job_in_a_queue_change_only_as_kueue_lets_them(cluster: Cluster) -> None:
    queue(cluster.objects, cpu=2, memory="8Gi")
    cluster.running("a", queue="lq")
    cluster.submit(rayjob("b", queue="lq"))
    cluster.advance(5)

    def label(name: str, **labels: str | None) -> None:
        changed = {f"kueue.x-k8s.io/{key.replace('_', '-')}": value for key, value in labels.items()}
        cluster.objects.patch("rayjobs", NAMESPACE, name, {"metadata": {"labels": changed}})

    with pytest.raises(ApiError, match="cannot be added to a non-suspended workload"):
        label("a", priority_class="low")
    with pytest.raises(ApiError, match="field is immutable"):
        label("a", queue_name="other")
    label("b", priority_class="low")
    label("b", priority_class="high")
    with pytest.raises(ApiError, match="cannot be removed from a workload"):
        label("b", priority_class=None)
    label("b", queue_name="other")


def test_jobs_of_one_priority_do_not_take_each_others_place(cluster: Cluster) -> None:
    queue(cluster.objects, cpu=2, memory="8Gi")
    cluster.running("a", queue="lq/low")
    cluster.submit(rayjob("b", queue="lq/low"))
    cluster.advance(30)
    assert cluster.state("a") == ("Running", "RUNNING", None)
    assert cluster.state("b") == ("Suspended", None, None)


def test_a_raised_priority_takes_a_place_that_the_job_waited_for(cluster: Cluster) -> None:
    queue(cluster.objects, cpu=2, memory="8Gi")
    cluster.running("a", queue="lq/low")
    cluster.submit(rayjob("b", queue="lq/low"))
    cluster.advance(5)
    labels = {"kueue.x-k8s.io/priority-class": "high"}
    cluster.objects.patch("rayjobs", NAMESPACE, "b", {"metadata": {"labels": labels}})
    cluster.advance(10)
    assert cluster.state("b") == ("Running", "RUNNING", None)
    assert cluster.state("a") == ("Suspended", None, None)
    assert is_true(cluster.workload("a"), "Evicted")
    assert not cluster.standin.stopped


def test_an_eviction_before_the_pods_were_up_leaves_no_sign_of_running(cluster: Cluster) -> None:
    queue(cluster.objects, cpu=2, memory="8Gi")
    cluster.kubelet.missing_images.add("rayproject/ray:2.60.0")
    cluster.submit(rayjob("a", queue="lq/low"))
    cluster.advance(5)
    assert cluster.state("a") == ("Initializing", None, None)
    cluster.submit(rayjob("b", queue="lq/high"))
    cluster.advance(5)
    assert cluster.state("a") == ("Suspended", None, None)
    assert not is_true(cluster.workload("a"), "PodsReady")
    assert cluster.state("b")[0] == "Initializing"


def test_a_deactivated_workload_loses_its_place_and_gets_none(cluster: Cluster) -> None:
    queue(cluster.objects, cpu=2, memory="8Gi")
    cluster.running("a", queue="lq/low")
    name = cluster.workload("a")["metadata"]["name"]
    cluster.objects.patch("workloads", NAMESPACE, name, {"spec": {"active": False}})
    cluster.advance(10)
    assert cluster.state("a") == ("Suspended", None, None)
    assert (condition(cluster.workload("a"), "Evicted") or {})["reason"] == "Deactivated"


def test_a_stopped_queue_evicts_all_and_admits_none_until_it_goes_on(cluster: Cluster) -> None:
    queue(cluster.objects, cpu=2, memory="8Gi")
    cluster.running("a", queue="lq/low")
    cluster.objects.patch("clusterqueues", None, "cq", {"spec": {"stopPolicy": "HoldAndDrain"}})
    cluster.advance(10)
    assert cluster.state("a") == ("Suspended", None, None)
    assert (condition(cluster.workload("a"), "Evicted") or {})["reason"] == "ClusterQueueStopped"
    assert (condition(cluster.workload("a"), "QuotaReserved") or {})["reason"] == "Inadmissible"
    cluster.objects.patch("clusterqueues", None, "cq", {"spec": {"stopPolicy": "None"}})
    cluster.advance(10)
    assert cluster.state("a") == ("Running", "RUNNING", None)


def test_what_becomes_free_for_a_higher_job_goes_to_no_other(cluster: Cluster) -> None:
    queue(cluster.objects, cpu=5, memory="8Gi")
    for name in ("a", "b"):
        cluster.running(name, queue="lq/low")
    cluster.submit(rayjob("big", workers=4, queue="lq/high"))  # all five
    cluster.submit(rayjob("small", workers=0, queue="lq/low"))  # would fit at once
    cluster.advance(10)
    assert cluster.state("big") == ("Running", "RUNNING", None)
    assert {cluster.state(name)[0] for name in ("a", "b", "small")} == {"Suspended"}


def test_a_deleted_job_gives_its_quota_back(cluster: Cluster) -> None:
    queue(cluster.objects, cpu=2, memory="8Gi")
    cluster.running("a", queue="lq/low")
    cluster.objects.delete("rayjobs", NAMESPACE, "a")
    cluster.submit(rayjob("b", queue="lq/low"))
    cluster.advance(10)
    assert cluster.state("b") == ("Running", "RUNNING", None)
    assert [w["spec"]["priority"] for w in cluster.objects.list("workloads")] == [10]


@pytest.mark.parametrize("wrong", ["shutdownAfterJobFinishes", "enableInTreeAutoscaling"])
def test_kueue_refuses_what_it_cannot_manage(cluster: Cluster, wrong: str) -> None:
    job = rayjob("a", queue="lq")
    if wrong == "shutdownAfterJobFinishes":
        job["spec"][wrong] = False
    else:
        job["spec"]["rayClusterSpec"][wrong] = True
    with pytest.raises(ApiError, match=wrong) as refused:
        cluster.submit(job)
    assert refused.value.status == 403
    rest = job | {"metadata": {"name": "a", "namespace": NAMESPACE}}
    cluster.submit(rest)  # no queue, no Kueue
