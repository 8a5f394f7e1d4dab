"""The manifests of k8s/, built by kubectl's kustomize: overlays as they are, and components in any combination."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import kubernetes_validate
import kubernetes_validate.utils
import yaml
from services_lab import missing

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
COMPONENTS = sorted(folder.name for folder in (K8S / "components").iterdir() if folder.name != "images")
OLDEST = re.search(r"Kubernetes (1\.\d+) or newer", (ROOT / "docs" / "kubernetes.md").read_text())[1]  # type: ignore[index]
OTHERS_KINDS = ("ServiceMonitor", "PrometheusRule")  # of the Prometheus operator, whose CRDs are not at hand

Object = dict[str, Any]

# the definitions of all kinds are one large file, read anew for each object otherwise
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def program(name: str, *more: Path) -> str:
    """One that a test dependency brought, beside the interpreter; without it a skip at home, a failure in CI."""
    folders = [*map(str, more), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        missing(f"no `{name}`: make installs it")
    assert found is not None
    return found


def built(folder: Path) -> str:
    done = subprocess.run([program("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    assert done.stderr == "", f"{folder} warns: {done.stderr}"
    return done.stdout


def parsed(text: str) -> list[Object]:
    return [one for one in yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if one]


@functools.cache
def overlay(name: str) -> str:
    return built(K8S / "overlays" / name)


@functools.cache
def objects(name: str) -> tuple[Object, ...]:
    """Of an overlay; nobody may change them."""
    return tuple(parsed(overlay(name)))


def combined(folder: Path, components: Iterable[str]) -> list[Object]:
    """The base with these components, as an overlay of one's own would have it."""
    folder.mkdir()

    def path(*parts: str) -> str:
        return os.path.relpath(K8S.joinpath(*parts), folder)

    own = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "own",
        "resources": [path("base")],
        "components": [path("components", name) for name in (*components, "images")],
        "replacements": yaml.safe_load((K8S / "overlays" / "dev" / "kustomization.yaml").read_text())["replacements"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
    return parsed(built(folder))


def combinations_of_components() -> list[tuple[str, ...]]:
    """None, each alone, every two, all but one, all."""
    few = [some for count in (0, 1, 2) for some in combinations(COMPONENTS, count)]
    return [*few, *combinations(COMPONENTS, len(COMPONENTS) - 1), tuple(COMPONENTS)]


def named(found: Iterable[Object], kind: str, name: str | None = None) -> Object:
    (one,) = [o for o in found if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    return one


def of_kind(found: Iterable[Object], *kinds: str) -> list[Object]:
    return [one for one in found if one["kind"] in kinds]


def config(found: Iterable[Object], file: str) -> Any:
    """A file of the ConfigMap jos-config, parsed."""
    (one,) = [o for o in of_kind(found, "ConfigMap") if o["metadata"]["name"].startswith("jos-config-")]
    return yaml.safe_load(one["data"][file])


def pods(found: Iterable[Object]) -> dict[str, Object]:
    """Component -> what its pods are made from."""
    workloads = of_kind(found, "Deployment", "StatefulSet")
    return {one["metadata"]["name"].removeprefix("jos-"): one["spec"]["template"] for one in workloads}


@functools.cache
def _mistake(text: str, version: str) -> str | None:
    try:
        kubernetes_validate.validate(json.loads(text), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.utils.SchemaNotFoundError as error:
        return str(error.message)  # the command line would only warn
    return None


def mistakes(found: Iterable[Object]) -> list[str]:
    """What Kubernetes' own schemas, read strictly, say against objects of its kinds: the newest, and the oldest that
    docs/kubernetes.md names."""
    said = [
        (one, mistake)
        for one in found
        if not others(one)
        for version in (OLDEST, kubernetes_validate.latest_version())
        if (mistake := _mistake(json.dumps(one, sort_keys=True), version))
    ]
    return [f"{one['kind']} {one['metadata']['name']}: {mistake}" for one, mistake in said]


def others(one: Object) -> bool:
    return one["kind"] in OTHERS_KINDS or is_custom(one)


def is_custom(one: Object) -> bool:
    """Of KubeRay or Kueue, whose CRDs the fake cluster has."""
    return str(one["apiVersion"]).partition("/")[0] in ("ray.io", "kueue.x-k8s.io")
