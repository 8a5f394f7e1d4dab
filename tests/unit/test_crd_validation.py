"""The CRDs that the lab serves, and what they say to good and bad objects (tests/lab/kube/validation.py)."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube.crds import crds, make
from kube.kinds import CUSTOM, KINDS
from kube.validation import Schemas, covers, validate

SHARED = Path(__file__).parents[2].parent / "shared"
RAYJOB: dict[str, Any] = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "a"},
    "spec": {
        "entrypoint": "x",
        "rayClusterSpec": {"headGroupSpec": {"template": {"spec": {"containers": [{"name": "head", "image": "i"}]}}}},
    },
}
WORKLOAD: dict[str, Any] = {
    "apiVersion": "kueue.x-k8s.io/v1beta2",
    "kind": "Workload",
    "metadata": {"name": "w", "namespace": "jos"},
    "spec": {"podSets": [{"name": "head", "count": 1, "template": {"spec": {"containers": [{"name": "h"}]}}}]},
}
FLAVOR: dict[str, Any] = {
    "apiVersion": "kueue.x-k8s.io/v1beta2",
    "kind": "ResourceFlavor",
    "metadata": {"name": "gpu"},
    "spec": {"nodeLabels": {"gpu": "a"}},
}


def changed(obj: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with `value` at a path such as `spec.rayClusterSpec.workerGroupSpecs`."""
    found = deepcopy(obj)
    node: Any = found
    *steps, last = path.split(".")
    for step in steps:
        node = node[int(step)] if isinstance(node, list) else node.setdefault(step, {})
    node[last] = value
    return found


def test_the_kinds_served_are_those_of_the_crds() -> None:
    for kind in CUSTOM:
        spec = crds()[kind.plural]["spec"]
        version = next(v for v in spec["versions"] if v["name"] == kind.version)
        assert version["served"]
        assert version["storage"]
        assert (kind.group, kind.kind) == (spec["group"], spec["names"]["kind"])
        assert kind.namespaced == (spec["scope"] == "Namespaced")
        assert kind.status == ("status" in version["subresources"])


def test_the_crds_are_the_originals_without_their_prose() -> None:
    if not (SHARED / "crds").exists():
        pytest.skip("the original CRDs are not here")
    sources = make.originals(SHARED / "crds")
    assert len(sources) == len(crds())
    for source in sources:
        plural, data = make.made(source)
        assert make.read(data) == crds()[plural], f"{plural} differs: run tests/lab/kube/crds/make.py"
    assert "description" not in json.dumps(crds()["rayjobs"])


def test_prose_goes_and_properties_called_so_stay() -> None:
    schema = {"description": "x", "properties": {"description": {"type": "string", "description": "y"}}}
    assert make.bare(schema) == {"properties": {"description": {"type": "string"}}}


@pytest.mark.parametrize(
    "good",
    [
        RAYJOB,
        WORKLOAD,
        FLAVOR,
        changed(RAYJOB, "spec.backoffLimit", None),  # null is dropped
        changed(RAYJOB, "spec.managedBy", "kueue.x-k8s.io/multikueue"),
        changed(
            RAYJOB, "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.resources", {"limits": {"cpu": 1}}
        ),
        changed(RAYJOB, "spec.activeDeadlineSeconds", 2.0),  # an integer all the same
        changed(WORKLOAD, "apiVersion", "kueue.x-k8s.io/v1beta1"),
    ],
)
def test_what_is_right_has_no_problems(good: dict[str, Any]) -> None:
    assert validate(good) == []


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (changed(RAYJOB, "spec.entrypint", "x"), 'unknown field "spec.entrypint"'),
        (
            changed(RAYJOB, "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.imagine", "x"),
            'unknown field "spec.rayClusterSpec.headGroupSpec.template.spec.containers[0].imagine"',
        ),
        (
            changed(RAYJOB, "spec.backoffLimit", "1"),
            'spec.backoffLimit: Invalid value: "string": spec.backoffLimit in body must be of type integer: "string"',
        ),
        (
            changed(RAYJOB, "spec.activeDeadlineSeconds", 2**31),
            "spec.activeDeadlineSeconds in body must be of type int32",
        ),
        (
            changed(RAYJOB, "spec.rayClusterSpec.headGroupSpec", {}),
            "spec.rayClusterSpec.headGroupSpec.template: Required value",
        ),
        (
            changed(
                RAYJOB, "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.resources.limits", {"cpu": "x"}
            ),
            "resources.limits.cpu: Invalid value",
        ),
        (
            changed(RAYJOB, "spec.rayClusterSpec.authOptions", {"mode": "maybe"}),
            'spec.rayClusterSpec.authOptions.mode: Unsupported value: "maybe"',
        ),
        (
            changed(
                RAYJOB, "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.ports", [{"containerPort": 1}] * 2
            ),
            'ports[1]: Duplicate value: {"containerPort":1,"protocol":"TCP"}',
        ),
        (changed(RAYJOB, "spec.managedBy", "me"), "the managedBy field value must be either"),
        (changed(RAYJOB, "metadata.name", "Not_A_Name"), "metadata.name: Invalid value"),
        (changed(RAYJOB, "metadata.labels", {"a": "b c"}), "metadata.labels: Invalid value"),
        (changed(RAYJOB, "metadata.label", {"a": "b"}), 'unknown field "metadata.label"'),
        (changed(WORKLOAD, "spec.podSets.0.minCount", 2), "minCount should be positive and less or equal to count"),
        (changed(WORKLOAD, "spec.podSets", []), "spec.podSets in body should have at least 1 items"),
        (
            changed(FLAVOR, "spec.topologyName", "t") | {"spec": {"topologyName": "t"}},
            "at least one nodeLabel is required",
        ),
        (
            changed(FLAVOR, "spec.tolerations", [{"key": "a", "operator": "Maybe"}]),
            "supported toleration values: 'Equal'(default), 'Exists'",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(bad: dict[str, Any], told: str) -> None:
    assert any(told in problem for problem in validate(bad)), validate(bad)


def test_rules_on_changes_look_back() -> None:
    kind, schemas = KINDS["rayjobs"], Schemas()
    old = changed(RAYJOB, "spec.managedBy", "ray.io/kuberay-operator")
    new = changed(RAYJOB, "spec.managedBy", "kueue.x-k8s.io/multikueue")
    assert schemas.problems(kind, new, None) == []
    assert schemas.problems(kind, new, old) == [
        'spec.managedBy: Invalid value: "kueue.x-k8s.io/multikueue": the managedBy field is immutable'
    ]


def test_a_kind_without_a_crd_is_nobodys_to_judge() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
    assert not covers(pod)
    with pytest.raises(KeyError, match="no CRD for v1 Pod"):
        validate(pod)
    with pytest.raises(KeyError, match=r"no CRD for ray\.io/v2 RayJob"):
        validate(RAYJOB | {"apiVersion": "ray.io/v2"})


def test_manifests_from_yaml_are_judged_as_they_are() -> None:
    assert validate(yaml.safe_load(yaml.safe_dump(RAYJOB))) == []
