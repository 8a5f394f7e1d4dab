"""kubectl installs every overlay on the fake cluster, which has Kubernetes' rules and KubeRay's and Kueue's CRDs; and
what an overlay brings along, its admission policy above all, is in force there.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from kube.fixtures import Cluster, cluster
from manifests_lab import K8S, OVERLAYS, Object, named, objects, program

__all__ = ["cluster"]

EXAMPLE = K8S / "rayjob" / "cpu" / "rayjob.yaml"


def kubectl(cluster: Cluster, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    command = [program("kubectl"), *arguments]
    return subprocess.run(command, env=environment, input=given, capture_output=True, text=True, check=False)


def install(cluster: Cluster, overlay: str) -> str:
    done = kubectl(cluster, "apply", "--server-side", "-k", str(K8S / "overlays" / overlay))
    assert done.returncode == 0, done.stderr
    return done.stdout


def versions(cluster: Cluster, overlay: str) -> dict[tuple[str, str], str]:
    done = kubectl(cluster, "get", "-k", str(K8S / "overlays" / overlay), "-o", "json")
    assert done.returncode == 0, done.stderr
    metadata = [(one["kind"], one["metadata"]) for one in json.loads(done.stdout)["items"]]
    return {(kind, one["name"]): one["resourceVersion"] for kind, one in metadata}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_installed_and_a_second_time_changes_nothing(cluster: Cluster, overlay: str) -> None:
    assert len(install(cluster, overlay).splitlines()) == len(objects(overlay))
    before = versions(cluster, overlay)
    assert len(before) == len(objects(overlay))
    install(cluster, overlay)
    assert versions(cluster, overlay) == before


def example(namespace: str) -> Object:
    (found,) = [one for one in yaml.safe_load_all(Path(EXAMPLE).read_text()) if one["kind"] == "RayJob"]
    found["metadata"]["namespace"] = namespace
    return found  # type: ignore[no-any-return]


def test_where_the_policy_is_installed_the_cluster_refuses_rayjobs_that_jos_would_not_make(cluster: Cluster) -> None:
    install(cluster, "prod")
    namespace = named(objects("prod"), "Namespace")["metadata"]["name"]
    right = example(namespace)
    wrong = example(namespace)
    wrong["metadata"]["name"], wrong["spec"]["submissionMode"] = "wrong", "HttpMode"
    refused = kubectl(cluster, "create", "-f", "-", given=yaml.safe_dump(wrong))
    assert refused.returncode == 1
    assert "spec.submissionMode must be HTTPMode" in refused.stderr
    made = kubectl(cluster, "create", "-f", "-", given=yaml.safe_dump(right))
    assert made.returncode == 0, made.stderr
    elsewhere = wrong | {"metadata": wrong["metadata"] | {"namespace": "default"}}
    assert kubectl(cluster, "create", "-f", "-", given=yaml.safe_dump(elsewhere)).returncode == 0
