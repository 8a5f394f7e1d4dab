"""The RayJob of an attempt: what is asked of a cluster, in Kubernetes' own words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube.validation import validate

from jos.core.errors import ConfigInvalid
from jos.core.model import Attempt, Gpu, Job, JobRequest, Pipeline, Resources
from jos.launch.kube_profile import KubeProfile, profile_of
from jos.launch.rayjob import driver_name, installation, kubernetes_name, label_value, rayjob, to_yaml
from jos.launch.rendered import lacking, rendered
from jos.registry import Registry
from jos.request import read_request

EXAMPLES = Path(__file__).parents[2] / "k8s" / "rayjob"
NOW = datetime(2026, 11, 25, tzinfo=UTC)
ID, TOKEN = "job_01jd000000000000000000000z", "tok_1"
GIB = 1 << 30


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Registry().get("machine-state-classification", "1.1.0")


def job(pipeline: Pipeline, resources: Resources | None = None, parallelism: int = 4, **fields: Any) -> Job:
    return Job(
        id=ID,
        name="a job",
        pipeline_type="batch",
        pipeline_key=pipeline.pipeline_key,
        pipeline_version=pipeline.pipeline_version,
        parameters={},
        resources=resources or Resources(),
        parallelism=parallelism,
        **{"org_id": "org_local", "created_at": NOW, "updated_at": NOW, "queued_at": NOW, **fields},
    )


def made(pipeline: Pipeline, profile: dict[str, Any] | None = None, number: int = 3, **of_job: Any) -> dict[str, Any]:
    """A RayJob that KubeRay's own schema takes."""
    found = rayjob(
        job(pipeline, **of_job),
        pipeline,
        profile_of(profile, "the profile"),
        token=TOKEN,
        number=number,
        installation=installation("s3://jos"),
    )
    assert validate(found) == []
    return found


def workers(found: dict[str, Any]) -> dict[str, Any]:
    [group] = found["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group  # type: ignore[no-any-return]


def head(found: dict[str, Any]) -> dict[str, Any]:
    return found["spec"]["rayClusterSpec"]["headGroupSpec"]  # type: ignore[no-any-return]


def pods(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (head(found), workers(found)):
        yield group["template"]


def limits(group: dict[str, Any]) -> dict[str, str]:
    [container] = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"]
    return container["resources"]["limits"]  # type: ignore[no-any-return]


def env(group: dict[str, Any]) -> dict[str, Any]:
    [container] = group["template"]["spec"]["containers"]
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}


# --- one attempt, one RayJob ---


def test_an_attempt_is_a_rayjob_that_only_jos_retries(pipeline: Pipeline) -> None:
    found = made(pipeline)
    spec = found["spec"]
    assert found["metadata"]["name"] == "jos-job-01jd000000000000000000000z-3"
    assert spec["jobId"] == driver_name(ID, 3) == f"jos-{ID}-3"
    assert (spec["submissionMode"], spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == ("HTTPMode", 0, True)
    assert spec["preRunningDeadlineSeconds"] == 1800
    assert "suspend" not in spec
    assert "gcsFaultToleranceOptions" not in spec["rayClusterSpec"]
    assert found["metadata"]["annotations"] == {
        "jos.dev/token": TOKEN,
        "ray.io/disable-provisioned-head-restart": "true",
    }


def test_the_driver_s_command_is_one_argv_whatever_the_pipeline_s_holds(pipeline: Pipeline) -> None:
    odd = pipeline.model_copy(update={"command": ["python", "-c", "print('a; b')", "$HOME"]})
    words = shlex.split(made(odd)["spec"]["entrypoint"])
    assert words == [*odd.command, "attempt", ID, TOKEN, "--name", f"jos-{ID}-3"]


def test_rayjob_and_pods_carry_who_they_belong_to(pipeline: Pipeline) -> None:
    found = made(pipeline, {"labels": {"team": "a"}, "annotations": {"example.com/note": "x y"}}, queue="production")
    labels = {
        "team": "a",
        "jos.dev/job": ID,
        "jos.dev/attempt": "3",
        "jos.dev/org": "org_local",
        "jos.dev/queue": "production",
        "app.kubernetes.io/managed-by": "jos",
        "jos.dev/installation": installation("s3://jos"),
    }
    for metadata in (found["metadata"], *(pod["metadata"] for pod in pods(found))):
        assert metadata["labels"] == labels
        assert metadata["annotations"]["example.com/note"] == "x y"


@pytest.mark.parametrize("text", ["org/with spaces & more", "x" * 80, "-a-", "ü", "", "plain_1.2"])
def test_whatever_an_organisation_is_called_makes_a_label(pipeline: Pipeline, text: str) -> None:
    found = made(pipeline, org_id=text or "none", queue=text)
    assert len(found["metadata"]["labels"]["jos.dev/queue"]) <= 63


def test_labels_tell_apart_what_they_cannot_spell() -> None:
    assert label_value("plain_1.2") == "plain_1.2"
    assert label_value("a b") != label_value("a/b")
    assert label_value("a b").startswith("a-b-")


def test_a_name_that_kuberay_would_refuse_is_refused_here(pipeline: Pipeline) -> None:
    with pytest.raises(ConfigInvalid, match="at most 47 characters"):
        rayjob(job(pipeline), pipeline, KubeProfile(), token=TOKEN, number=10**12, installation="0")
    assert len(kubernetes_name(driver_name(ID, 99_999_999))) <= 47


# --- pods ---


def test_no_index_runs_on_the_head(pipeline: Pipeline) -> None:
    found = head(made(pipeline, {"head": {"cpu": 2, "memory": "6Gi"}}))
    assert (found["rayStartParams"]["num-cpus"], found["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert limits(found) == {"cpu": "2", "memory": "6Gi", "ephemeral-storage": "5Gi"}
    assert found["template"]["metadata"]["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }


def test_a_pod_is_an_index_and_room_for_ray(pipeline: Pipeline) -> None:
    group = workers(made(pipeline, resources=Resources(cpu=1.5, memory_bytes=2 * GIB)))
    assert limits(group) == {"cpu": "1500m", "memory": "3Gi", "ephemeral-storage": "10Gi"}
    # Ray counts whole CPUs of a node; memory is what indexes may ask for
    assert (group["rayStartParams"]["num-cpus"], group["rayStartParams"]["memory"]) == ("2", str(2 * GIB))
    assert (group["groupName"], group["numOfHosts"], group["maxReplicas"]) == ("cpu", 1, 4)


@pytest.mark.parametrize(
    ("resources", "parallelism", "pods", "cpu", "gpus", "memory"),
    [
        (Resources(cpu=1, gpu=Gpu(count=1, required=True)), 4, 4, "1", "1", 2),
        (Resources(cpu=4, gpu=Gpu(count=2, required=True)), 4, 4, "4", "2", 2),
        (Resources(cpu=1, gpu=Gpu(count=0.25, required=True)), 8, 2, "4", "1", 8),
        (Resources(cpu=1, gpu=Gpu(count=0.25, required=True)), 9, 3, "4", "1", 8),
        (Resources(cpu=1, gpu=Gpu(count=0.25, required=True)), 2, 1, "2", "1", 4),
        (Resources(cpu=0.5, gpu=Gpu(count=0.4, required=True)), 4, 2, "1", "1", 4),
        (Resources(cpu=0.25), 8, 2, "1", None, 8),
        (Resources(cpu=0.4), 4, 2, "800m", None, 4),
        (Resources(cpu=0.6), 4, 4, "600m", None, 2),
    ],
)
def test_indexes_share_a_pod_only_where_they_share_a_gpu_or_a_cpu(
    pipeline: Pipeline, resources: Resources, parallelism: int, pods: int, cpu: str, gpus: str | None, memory: int
) -> None:
    group = workers(made(pipeline, resources=resources, parallelism=parallelism))
    assert (group["maxReplicas"], limits(group)["cpu"], limits(group).get("nvidia.com/gpu")) == (pods, cpu, gpus)
    assert group["rayStartParams"]["memory"] == str(memory * GIB)
    assert group["rayStartParams"]["num-gpus"] == (gpus or "0")


def restricted(spec: dict[str, Any], containers: list[dict[str, Any]]) -> list[str]:
    """What Kubernetes' Pod Security "restricted" holds against it."""
    wrong = []
    pod = spec["securityContext"]
    if not pod["runAsNonRoot"] or pod["runAsUser"] == 0 or pod["seccompProfile"] != {"type": "RuntimeDefault"}:
        wrong.append("the pod's security context")
    if {key for volume in spec["volumes"] for key in volume} - {"name", "emptyDir", "configMap", "projected"}:
        wrong.append("volumes")
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        wrong.append("the host's namespaces")
    for container in containers:
        own = container["securityContext"]
        if own["allowPrivilegeEscalation"] or own["privileged"] or own["capabilities"] != {"drop": ["ALL"]}:
            wrong.append("privileges")
        if not own["runAsNonRoot"] or own["seccompProfile"] != {"type": "RuntimeDefault"}:
            wrong.append("the user")
    return wrong


@pytest.mark.parametrize("mode", ["elastic", "fixed"])
def test_every_container_holds_to_restricted_pod_security_with_a_root_that_cannot_be_written(
    pipeline: Pipeline, mode: str
) -> None:
    found = made(pipeline, {"workers": {"mode": mode}})
    beside = [found["spec"]["rayClusterSpec"]["autoscalerOptions"]] if mode == "elastic" else []
    for pod in pods(found):
        containers = [*pod["spec"]["containers"], *beside]
        assert restricted(pod["spec"], containers) == []
        assert all(c["securityContext"]["readOnlyRootFilesystem"] for c in containers)
        mounts = {m["name"]: m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"]}
        assert mounts == {"tmp": "/tmp", "shared-mem": "/dev/shm"}
        assert pod["spec"]["restartPolicy"] == "Never"
        assert pod["spec"]["enableServiceLinks"] is False
    written = made(pipeline, {"read_only_root": False})
    assert not head(written)["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"]


def test_nobody_has_a_token_of_the_cluster_but_ray_s_autoscaler(pipeline: Pipeline) -> None:
    fixed, elastic = made(pipeline, {"workers": {"mode": "fixed"}}), made(pipeline)
    for found in (fixed, elastic):
        for pod in pods(found):
            assert pod["spec"]["automountServiceAccountToken"] is False
            assert not any("serviceaccount" in m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"])
    assert not any("projected" in v for pod in pods(fixed) for v in pod["spec"]["volumes"])
    options = elastic["spec"]["rayClusterSpec"]["autoscalerOptions"]
    [token] = [v["name"] for v in head(elastic)["template"]["spec"]["volumes"] if "projected" in v]
    assert {m["name"]: m["mountPath"] for m in options["volumeMounts"]}[token].endswith("/serviceaccount")


def test_secrets_are_named_and_not_told(pipeline: Pipeline) -> None:
    profile = {
        "env": {"JOS_STORAGE": "s3://jos", "RAY_AUTH_MODE": "token"},
        "secret_env": {"JOS_REDIS_URL": {"secret": "jos", "key": "redis-url"}},
        "env_from": [{"config_map": "jos-data"}, {"secret": "s3", "optional": True}],
    }
    found = made(pipeline, profile)
    for group in (head(found), workers(found)):
        assert env(group)["JOS_STORAGE"] == "s3://jos"
        assert env(group)["RAY_AUTH_MODE"] == "token"  # an operator's word wins
        assert env(group)["JOS_REDIS_URL"] == {"secretKeyRef": {"name": "jos", "key": "redis-url"}}
        assert group["template"]["spec"]["containers"][0]["envFrom"] == [
            {"configMapRef": {"name": "jos-data"}},
            {"secretRef": {"name": "s3", "optional": True}},
        ]


def test_a_driver_has_its_drain_and_pods_have_more(pipeline: Pipeline) -> None:
    found = made(pipeline, timeouts=pipeline.timeouts.model_copy(update={"drain": 90.5}))
    assert env(head(found))["RAY_JOB_STOP_WAIT_TIME_S"] == "96"
    assert [pod["spec"]["terminationGracePeriodSeconds"] for pod in pods(found)] == [121, 121]


def test_what_an_operator_chose_for_all_pods_is_there(pipeline: Pipeline) -> None:
    profile = {
        "namespace": "ml",
        "service_account": "driver",
        "image_pull_secrets": ["registry"],
        "pod_priority_class": "batch",
        "user": 2000,
        "ttl_seconds_after_finished": 30,
        "workers": {"spread_over": "topology.kubernetes.io/zone", "shared_memory": "256Mi"},
    }
    found = made(pipeline, profile)
    assert (found["metadata"]["namespace"], found["spec"]["ttlSecondsAfterFinished"]) == ("ml", 30)
    for pod in pods(found):
        spec = pod["spec"]
        assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("driver", "batch")
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert spec["securityContext"]["fsGroup"] == 2000
    [spread] = workers(found)["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == {"jos.dev/job": ID, "ray.io/node-type": "worker"}
    assert "topologySpreadConstraints" not in head(found)["template"]["spec"]


# --- images ---


def test_an_operator_s_image_wins_by_pipeline_then_by_name(pipeline: Pipeline) -> None:
    def image(profile: dict[str, Any], of: Pipeline = pipeline) -> set[str]:
        return {pod["spec"]["containers"][0]["image"] for pod in pods(made(of, profile))}

    mine, pinned = "registry.example/x:1", f"registry.example/jos@sha256:{'0' * 64}"
    assert image({}) == {"jos:0.1.0"}
    assert image({"images": {"jos:0.1.0": pinned}}) == {pinned}
    assert image({"images": {"jos:0.1.0": pinned, pipeline.pipeline_key: mine}}) == {mine}
    assert image({"image": mine}) == {"jos:0.1.0"}
    assert image({"image": mine}, pipeline.model_copy(update={"image": None})) == {mine}


# --- how many ---


def test_elastic_workers_begin_with_one_and_grow_to_all_that_may_be_granted(pipeline: Pipeline) -> None:
    granted = Attempt(number=3, token=TOKEN, admitted_at=NOW, indexes=2)
    found = made(pipeline, attempt=granted, parallelism=8)
    group = workers(found)
    assert found["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert found["spec"]["rayClusterSpec"]["autoscalerOptions"]["version"] == "v2"
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (1, 1, 8)


def test_fixed_workers_are_those_that_were_granted(pipeline: Pipeline) -> None:
    fixed = {"workers": {"mode": "fixed"}}

    def counts(token: str) -> tuple[int, int, int]:
        attempt = Attempt(number=3, token=token, admitted_at=NOW, indexes=2)
        found = made(pipeline, fixed, attempt=attempt, parallelism=8)
        assert "enableInTreeAutoscaling" not in found["spec"]["rayClusterSpec"]
        group = workers(found)
        return group["minReplicas"], group["replicas"], group["maxReplicas"]

    assert counts(TOKEN) == (2, 2, 2)
    assert counts("tok_of_the_last_attempt") == (8, 8, 8)


# --- GPUs and nodes ---


def test_a_gpu_that_can_be_done_without_is_asked_for_only_where_the_operator_says_so(pipeline: Pipeline) -> None:
    wants = Resources(cpu=1, gpu=Gpu(count=1))
    assert "nvidia.com/gpu" not in limits(workers(made(pipeline, resources=wants)))
    group = workers(made(pipeline, {"optional_gpus": True}, resources=wants))
    assert limits(group)["nvidia.com/gpu"] == "1"
    assert group["groupName"] == "gpu"
    [toleration] = group["template"]["spec"]["tolerations"]
    assert toleration == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def test_a_gpu_type_has_its_nodes_and_ray_s_autoscaler_hears_of_it(pipeline: Pipeline) -> None:
    h100 = {
        "resource": "nvidia.com/mig-3g.40gb",
        "node_selector": {"gpu": "h100"},
        "tolerations": [{"key": "gpu", "value": "h100", "tolerationSeconds": 60, "effect": "NoExecute"}],
        "runtime_class": "nvidia",
    }
    wants = Resources(cpu=8, gpu=Gpu(count=2, type="H100", required=True))
    group = workers(made(pipeline, {"gpus": {"H100": h100}}, resources=wants))
    spec = group["template"]["spec"]
    assert (group["groupName"], limits(group)["nvidia.com/mig-3g.40gb"]) == ("h100", "2")
    assert (spec["nodeSelector"], spec["runtimeClassName"]) == ({"gpu": "h100"}, "nvidia")
    assert spec["tolerations"][0]["tolerationSeconds"] == 60
    told = group["rayStartParams"]["resources"]
    assert json.loads(told[1:-1]) == {"accelerator_type:H100": 1}  # as Ray's autoscaler reads it
    assert shlex.split(f"--resources={told}") == ['--resources={"accelerator_type:H100": 1}']  # and the shell


def test_a_gpu_type_that_the_profile_does_not_know_is_told_with_what_to_do(pipeline: Pipeline) -> None:
    wants = Resources(gpu=Gpu(count=1, type="B200", required=True))
    with pytest.raises(ConfigInvalid) as caught:
        made(pipeline, {"gpus": {"H100": {}, "L4": {}}}, resources=wants)
    assert "needs a GPU of type B200" in str(caught.value)
    assert "$.gpus.B200: is missing; the profile has: H100, L4" in str(caught.value)


def test_workers_go_to_spot_nodes_and_the_head_does_not(pipeline: Pipeline) -> None:
    spot = {"node_selector": {"spot": "true"}, "tolerations": [{"key": "spot", "operator": "Exists"}]}
    found = made(pipeline, {"spot": spot, "head": {"node_selector": {"spot": "false"}}})
    assert workers(found)["template"]["spec"]["nodeSelector"] == {"spot": "true"}
    assert workers(found)["template"]["spec"]["tolerations"] == [{"key": "spot", "operator": "Exists"}]
    assert head(found)["template"]["spec"]["nodeSelector"] == {"spot": "false"}
    assert "tolerations" not in head(found)["template"]["spec"]


# --- Kueue ---


@pytest.mark.parametrize(
    ("priority", "name"), [(-5, None), (0, "normal"), (99, "normal"), (100, "high"), (5000, "high")]
)
def test_kueue_gets_a_queue_and_the_class_of_the_job_s_priority(
    pipeline: Pipeline, priority: int, name: str | None
) -> None:
    classes = [{"at_least": 100, "name": "high"}, {"at_least": 0, "name": "normal"}]
    profile = {"admission": "kueue", "kueue": {"local_queues": {"Big Jobs": "big"}, "priority_classes": classes}}
    found = made(pipeline, profile, queue="Big Jobs", priority=priority)
    labels = found["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "big"
    assert labels.get("kueue.x-k8s.io/priority-class") == name
    assert "suspend" not in found["spec"]
    assert "kueue.x-k8s.io/queue-name" not in head(found)["template"]["metadata"]["labels"]


def test_a_queue_that_cannot_be_a_local_queue_is_told_with_what_to_do(pipeline: Pipeline) -> None:
    with pytest.raises(ConfigInvalid, match=r"local_queues: has no entry for 'Big Jobs'"):
        made(pipeline, {"admission": "kueue"}, queue="Big Jobs")
    assert "kueue.x-k8s.io/queue-name" not in made(pipeline, queue="Big Jobs")["metadata"]["labels"]
    mapped = {"admission": "kueue", "kueue": {"local_queues": {"Big Jobs": "2-big"}}}
    assert made(pipeline, mapped, queue="Big Jobs")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "2-big"


# --- YAML ---


@pytest.mark.parametrize(
    "text", ["12345e67", "1e5", "0o17", "0x1f", "3", "1.5", "yes", "y", "N", "null", "2026-11-25", "12:30"]
)
def test_a_text_stays_a_text_for_every_reader_of_yaml(text: str) -> None:
    written = to_yaml([{"a": text}])
    assert written == f"---\na: '{text}'\n"
    assert yaml.safe_load(written) == {"a": text}


def test_the_same_content_is_the_same_bytes(pipeline: Pipeline) -> None:
    assert to_yaml([made(pipeline)]) == to_yaml([made(pipeline)])
    assert yaml.safe_load(to_yaml([made(pipeline)])) == made(pipeline)


# --- without the service ---


def request(example: str = "cpu") -> JobRequest:
    return read_request(EXAMPLES / example / "job.yaml")


def test_a_rendered_job_is_one_however_often_and_another_when_it_asks_for_something_else(pipeline: Pipeline) -> None:
    one, manifests = rendered(request(), pipeline, KubeProfile())
    again, same = rendered(request(), pipeline, KubeProfile())
    other, _ = rendered(request().model_copy(update={"name": "another"}), pipeline, KubeProfile())
    elsewhere, _ = rendered(request(), pipeline, profile_of({"namespace": "ml"}, "x"))
    assert (one, manifests) == (again, same)
    assert elsewhere == one != other
    assert rendered(request(), pipeline, KubeProfile(), ID)[0] == ID


def test_a_rendered_job_runs_its_file_by_hand_and_belongs_to_no_service(pipeline: Pipeline) -> None:
    job_id, [file, found] = rendered(request(), pipeline, KubeProfile())
    assert validate(found) == []
    assert shlex.split(found["spec"]["entrypoint"])[-4:] == ["run", "/etc/jos/job.yaml", "--job-id", job_id]
    assert found["metadata"]["labels"] == {"jos.dev/job": job_id, "app.kubernetes.io/managed-by": "jos-render"}
    spec = head(found)["template"]["spec"]
    [volume] = [v for v in spec["volumes"] if v["name"] == "job"]
    assert volume["configMap"]["name"] == file["metadata"]["name"] == found["metadata"]["name"]
    assert {"name": "job", "mountPath": "/etc/jos", "readOnly": True} in spec["containers"][0]["volumeMounts"]
    group = workers(found)
    assert (group["minReplicas"], group["maxReplicas"]) == (4, 4)  # nobody grants indexes here
    elastic = workers(rendered(request(), pipeline, profile_of({"workers": {"mode": "elastic"}}, "x"))[1][1])
    assert (elastic["minReplicas"], elastic["maxReplicas"]) == (1, 4)


def test_the_file_in_the_cluster_is_the_request_with_its_version(pipeline: Pipeline, tmp_path: Path) -> None:
    asked = request().model_copy(update={"pipeline_version": None})
    _, [file, _] = rendered(asked, pipeline, KubeProfile())
    path = tmp_path / "job.yaml"
    path.write_text(file["data"]["job.yaml"])
    assert read_request(path) == asked.model_copy(update={"pipeline_version": "1.1.0"})


def test_a_profile_that_gives_drivers_no_store_is_told() -> None:
    assert "no JOS_STORAGE and no JOS_REDIS_URL" in (lacking(KubeProfile()) or "")
    assert lacking(profile_of({"env_from": [{"secret": "all"}]}, "x")) is None
    given = {"env": {"JOS_STORAGE": "s3://x"}, "secret_env": {"JOS_REDIS_URL": {"secret": "a", "key": "b"}}}
    assert lacking(profile_of(given, "x")) is None
