"""The manifests of k8s/ as tools judge them: kustomize builds them; schemas, CRDs and checkov take them.

No cluster is needed. Whether they mean the right thing: test_manifests_sense.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import manifests_lab
import pytest
import yaml
from kube import validation
from manifests_lab import COMPONENTS, OVERLAYS, combinations_of_components, combined, is_custom, mistakes, objects

CHECKOV = manifests_lab.ROOT / ".venv" / ".checkov" / "bin"
BAD_POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "bad", "namespace": "default"},
    "spec": {"containers": [{"name": "bad", "image": "bad", "securityContext": {"privileged": True}}]},
}


@pytest.mark.parametrize("name", OVERLAYS)
def test_each_overlay_builds_and_is_what_kubernetes_takes(name: str) -> None:
    found = objects(name)
    assert len(found) > 20
    assert mistakes(found) == []


def test_each_component_alone_every_two_and_all_together_build_and_are_what_kubernetes_takes(tmp_path: Path) -> None:
    for number, components in enumerate(combinations_of_components()):
        found = combined(tmp_path / str(number), components)
        assert mistakes(found) == [], components
        assert {one["metadata"].get("namespace", "own") for one in found} == {"own"}, components


def test_a_misspelt_field_and_an_unknown_kind_are_found() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"sellector": {}}}
    unknown = {"apiVersion": "apps/v9", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {}}
    assert len(mistakes([service, unknown])) == 4  # in two versions of Kubernetes


def test_the_overlay_that_the_documentation_shows_builds(tmp_path: Path) -> None:
    page = (manifests_lab.ROOT / "docs" / "kubernetes.md").read_text()
    (shown,) = [one for one in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "kind: Kustomization" in one]
    for name in ("base", "components"):
        shutil.copytree(manifests_lab.K8S / name, tmp_path / name)
    own = tmp_path / "overlays" / "own"
    own.mkdir(parents=True)
    (own / "kustomization.yaml").write_text(shown)
    (own / "queues.yaml").write_text("queues: {default: {}}\n")
    found = manifests_lab.parsed(manifests_lab.built(own))
    assert mistakes(found) == []
    assert manifests_lab.config(found, "kube.yaml")["namespace"] == "team-a"
    assert manifests_lab.config(found, "queues.yaml") == {"queues": {"default": {}}}
    assert manifests_lab.named(found, "ConfigMap", "jos-data")["data"]["JOS_STORAGE"] == "s3://team-a/jobs"


def test_every_component_and_overlay_is_in_the_documentation() -> None:
    page = (manifests_lab.ROOT / "docs" / "kubernetes.md").read_text()
    assert [name for name in (*COMPONENTS, *OVERLAYS, "images") if f"`{name}`" not in page] == []


def test_kueues_objects_are_what_its_crds_take(tmp_path: Path) -> None:
    found = [one for one in combined(tmp_path / "all", COMPONENTS) if is_custom(one)]
    assert {one["kind"] for one in found} == {
        *("ResourceFlavor", "Cohort", "ClusterQueue", "LocalQueue", "WorkloadPriorityClass")
    }
    assert [(one["metadata"]["name"], wrong) for one in found for wrong in validation.validate(one)] == []


def test_checkov_finds_nothing_and_what_it_skips_has_a_reason(tmp_path: Path) -> None:
    checkov = manifests_lab.program("checkov", CHECKOV)
    for name in OVERLAYS:
        (tmp_path / f"{name}.yaml").write_text(manifests_lab.overlay(name))
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(BAD_POD))  # so that a scan of nothing cannot pass
    command = [
        checkov,
        "--skip-download",
        "--framework",
        "kubernetes",
        "-d",
        str(tmp_path),
        "-o",
        "json",
        "--soft-fail",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    failed = {(one["file_path"], one["check_id"], one["resource"]) for one in results["failed_checks"]}
    assert len({one for one in failed if one[0] == "/bad.yaml"}) > 10
    assert {one for one in failed if one[0] != "/bad.yaml"} == set()
    assert results["parsing_errors"] == []
    skipped = {one["check_id"] for one in results["skipped_checks"]}
    assert skipped == {"CKV_K8S_35", "CKV_K8S_38"}
    assert all(len(one["check_result"]["suppress_comment"]) > 20 for one in results["skipped_checks"])
    checked = {one["file_path"] for one in results["passed_checks"]}
    assert checked >= {f"/{name}.yaml" for name in OVERLAYS}
