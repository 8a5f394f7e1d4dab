"""What `jos doctor` finds out about a cluster, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kube.errors import invalid
from kube.shelf import kind_of
from kuberay_lab import KUEUE, Site, grant

from jos.doctor import Finding, _guarded, _kubernetes
from jos.launch.kube_profile import KubeProfile
from jos.launch.kuberay import rights
from jos.settings import Settings

TOLD = "env_from: [{secret: jos}]\n"


def examined(folder: Path, profile: str = TOLD) -> dict[str, Finding]:
    (folder / "kube.yaml").write_text(profile)
    real: Any = {"redis_url": "redis://redis.example/0", "storage": "s3://bucket/jos"}
    settings = Settings(**real, launcher="kuberay", kube=folder / "kube.yaml")
    return {finding.name: finding for finding in _guarded(_kubernetes, settings)}


def test_a_cluster_that_has_all_is_fine(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(grant(site, rights(KUEUE))))
    found = examined(tmp_path, TOLD + "admission: kueue\n")
    assert {finding.state for finding in found.values()} == {"ok"}
    assert list(found) == [
        *("profile", "kubernetes", "rights", "KubeRay: rayjobs", "KubeRay: rayclusters", "Kubernetes: pods"),
        *("Kueue: workloads", "a RayJob, made dry", "pods' settings"),
    ]
    assert site.rayjobs == {}


def test_rights_that_are_missing_are_named(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {kind: verbs - {"delete", "watch"} for kind, verbs in rights(KubeProfile()).items()}
    monkeypatch.setenv("KUBECONFIG", str(grant(site, given)))
    found = examined(tmp_path)["rights"]
    assert found.state == "fail"
    assert found.detail == "lacks: delete rayjobs.ray.io, watch rayjobs.ray.io, watch rayclusters.ray.io, watch pods"
    assert "k8s/base" in found.advice


def test_a_cluster_that_refuses_rayjobs_says_what_is_wrong(site: Site, tmp_path: Path) -> None:
    def older(review: Any) -> None:
        if review.resource == "rayjobs":
            raise invalid(kind_of("rayjobs"), "x", ["spec.preRunningDeadlineSeconds: unknown"])

    site.cluster.objects.validators.append(older)
    found = examined(tmp_path)["a RayJob, made dry"]
    assert (found.state, "spec.preRunningDeadlineSeconds: unknown" in found.detail) == ("fail", True)


def test_a_cluster_that_is_away_is_told(site: Site, tmp_path: Path) -> None:
    site.cluster.server.down()
    [found] = [f for f in examined(tmp_path).values() if f.state != "ok"]
    assert "cannot be reached" in found.detail


def test_pods_that_are_not_told_where_redis_is_are_a_finding(site: Site, tmp_path: Path) -> None:
    found = examined(tmp_path, "namespace: jos\n")
    assert found["a RayJob, made dry"].state == "ok"
    assert "not told JOS_REDIS_URL" in found["kubernetes"].detail
