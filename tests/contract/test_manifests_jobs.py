"""RayJobs as JOS makes them with the profiles of k8s/, and what the manifests say to them: the admission policy, the
network policies, Kueue's quotas, Pod Security and KubeRay's own schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import cel
import pytest
from kube import validation
from manifests_lab import COMPONENTS, Object, combined, config, mistakes, named, objects, of_kind
from network_lab import selects

from jos.core.model import Gpu, Job
from jos.launch.kube_profile import profile_of
from jos.launch.rayjob import rayjob
from jos.registry import Registry

DIGEST = "@sha256:" + "0123456789abcdef" * 4
NOW = datetime(2026, 11, 25, tzinfo=UTC)
GPUS = ({}, {"count": 1}, {"count": 2, "type": "H100"}, {"count": 1, "type": "L4"})


@pytest.fixture(scope="module", params=["dev", "staging", "prod", "all components"])
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    if request.param != "all components":
        return list(objects(request.param))
    return combined(tmp_path_factory.mktemp("own") / "all", COMPONENTS)


def jobs(found: list[Object]) -> Iterator[Object]:
    """The RayJob of each pipeline of JOS, without GPUs and with each kind that the profile knows."""
    profile = profile_of(config(found, "kube.yaml"), "kube.yaml")
    for pipeline in Registry().list():
        for number, gpu in enumerate(GPUS):
            if gpu.get("type", "any") not in ("any", *profile.gpus):
                continue
            resources = pipeline.resources.model_copy(update={"gpu": Gpu(**gpu, required=True)} if gpu else {})
            name = f"job_{number:026d}"
            job = Job(
                id=name,
                org_id="org_local",
                name=name,
                pipeline_type=pipeline.pipeline_type,
                pipeline_key=pipeline.pipeline_key,
                pipeline_version=pipeline.pipeline_version,
                parameters={},
                parallelism=2,
                resources=resources,
                created_at=NOW,
                updated_at=NOW,
                queued_at=NOW,
            )
            yield rayjob(job, pipeline, profile, token="t", number=1, installation="0123abcd")


def templates(job: Object) -> list[Object]:
    """Of the head and of each group of workers."""
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ()))]


# --- RayJobs as JOS makes them --------------------------------------------------------------------------


def test_every_rayjob_is_what_kuberay_and_kubernetes_take_in_this_namespace(manifests: list[Object]) -> None:
    found = list(jobs(manifests))
    assert len(found) >= 8
    namespace = named(manifests, "Namespace")["metadata"]["name"]
    for job in found:
        assert job["metadata"]["namespace"] == namespace
        assert validation.validate(job) == []
        pods = [{"apiVersion": "v1", "kind": "Pod", **template} for template in templates(job)]
        assert mistakes([pod | {"metadata": {**pod["metadata"], "name": "pod"}} for pod in pods]) == []


def test_the_admission_policy_lets_every_one_of_them_in(manifests: list[Object]) -> None:
    assert [told(job) for job in jobs(manifests) if told(job)] == []


def test_the_network_policies_know_their_pods(manifests: list[Object]) -> None:
    (policy,) = [p for p in of_kind(manifests, "NetworkPolicy") if p["metadata"]["name"] == "jos-drivers"]
    labels = [template["metadata"]["labels"] for job in jobs(manifests) for template in templates(job)]
    assert all(selects(policy["spec"]["podSelector"], each) for each in labels)


def test_their_account_and_environment_are_in_the_manifests(manifests: list[Object]) -> None:
    accounts = {one["metadata"]["name"] for one in of_kind(manifests, "ServiceAccount")}
    there = {one["metadata"]["name"] for one in of_kind(manifests, "ConfigMap")} | {"jos-secrets"}
    for template in (template for job in jobs(manifests) for template in templates(job)):
        assert template["spec"]["serviceAccountName"] in accounts
        sources = [one for c in template["spec"]["containers"] for one in c.get("envFrom", ())]
        named_there = {next(iter(one.values()))["name"] for one in sources}
        assert named_there == {"jos-data", "jos-secrets"} <= there


def test_kueue_covers_all_that_their_pods_ask_for(manifests: list[Object]) -> None:
    for queue in of_kind(manifests, "ClusterQueue"):
        covered = {one for group in queue["spec"]["resourceGroups"] for one in group["coveredResources"]}
        asked = {
            resource
            for job in jobs(manifests)
            for template in templates(job)
            for container in template["spec"]["containers"]
            for resource in container["resources"]["requests"]
        }
        assert asked == covered


# --- what a cluster refuses -----------------------------------------------------------------------------


def ray_job(**changes: Any) -> Object:
    """As JOS makes them, as far as the policy looks."""
    pod = {"spec": {"containers": [{"name": "ray", "image": f"registry.example/jos-worker{DIGEST}"}]}}
    cluster = {"headGroupSpec": {"template": pod}, "workerGroupSpecs": [{"groupName": "w", "template": pod}]}
    spec = {"submissionMode": "HTTPMode", "backoffLimit": 0, "shutdownAfterJobFinishes": True}
    return {"spec": {key: v for key, v in (spec | {"rayClusterSpec": cluster} | changes).items() if v is not None}}


def told(job: Object) -> list[str]:
    """The messages that the policy refuses it with; an expression that cannot be evaluated refuses as well."""
    spec = named(objects("prod"), "ValidatingAdmissionPolicy")["spec"]
    assert spec["failurePolicy"] == "Fail"
    variables: dict[str, Any] = {}
    known: Mapping[str, Any] = {"object": job, "variables": variables}
    messages = []
    for one in spec["variables"]:
        try:
            variables[one["name"]] = cel.evaluate(one["expression"], dict(known))
        except (ValueError, RuntimeError, TypeError, KeyError):
            continue  # what needs it cannot be evaluated either
    for one in spec["validations"]:
        try:
            held = cel.evaluate(one["expression"], dict(known))
        except (ValueError, RuntimeError, TypeError, KeyError):
            held = False
        if held is not True:
            messages.append(one["message"])
    return messages


def with_image(image: str | None, *, worker: bool, init: bool = False) -> Object:
    job = json.loads(json.dumps(ray_job()))
    cluster = job["spec"]["rayClusterSpec"]
    group = cluster["workerGroupSpecs"][0] if worker else cluster["headGroupSpec"]
    container = {"name": "more"} | ({"image": image} if image else {})
    group["template"]["spec"].setdefault("initContainers" if init else "containers", []).append(container)
    return job  # type: ignore[no-any-return]


def test_a_rayjob_as_jos_makes_it_passes_the_policy() -> None:
    assert told(ray_job()) == []
    assert told(ray_job(backoffLimit=None)) == []
    assert told(with_image(f"busybox{DIGEST}", worker=True, init=True)) == []


@pytest.mark.parametrize(
    ("job", "word"),
    [
        (ray_job(submissionMode="HttpMode"), "submissionMode"),
        (ray_job(submissionMode="K8sJobMode"), "submissionMode"),
        (ray_job(submissionMode=None), "submissionMode"),
        (ray_job(backoffLimit=1), "backoffLimit"),
        (ray_job(shutdownAfterJobFinishes=False), "shutdownAfterJobFinishes"),
        (ray_job(shutdownAfterJobFinishes=None), "shutdownAfterJobFinishes"),
        (ray_job(rayClusterSpec=None, clusterSelector={"ray.io/cluster": "a"}), "its own cluster"),
        (with_image("jos-worker:0.1.0", worker=False), "of the head"),
        (with_image("jos-worker@sha256:0123", worker=False), "of the head"),
        (with_image(None, worker=False), "of the head"),
        (with_image("busybox", worker=False, init=True), "of the head"),
        (with_image("jos-worker:0.1.0", worker=True), "of the workers"),
        (with_image("busybox", worker=True, init=True), "of the workers"),
    ],
)
def test_a_rayjob_that_jos_would_not_make_is_refused_with_its_reason(job: Object, word: str) -> None:
    assert any(word in message for message in told(job))


def test_the_policy_holds_in_jos_s_namespaces_and_nowhere_else() -> None:
    for name in ("staging", "prod"):
        found = objects(name)
        binding = named(found, "ValidatingAdmissionPolicyBinding")["spec"]
        assert binding["policyName"] == named(found, "ValidatingAdmissionPolicy")["metadata"]["name"]
        assert "Deny" in binding["validationActions"]
        selector = binding["matchResources"]["namespaceSelector"]
        assert selects(selector, named(found, "Namespace")["metadata"]["labels"])
        assert not selects(selector, {"kubernetes.io/metadata.name": "elsewhere"})
