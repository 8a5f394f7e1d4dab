"""The CustomResourceDefinitions of KubeRay and Kueue that the lab serves: the real ones without their prose.

README.md says where they come from; `make` makes them from the originals, and a test compares the two.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from kube.crds.make import read

FOLDER = Path(__file__).parent


@cache
def crds() -> dict[str, dict[str, Any]]:
    """All of them by plural name; not to be changed."""
    return {path.name.removesuffix(".json.gz"): read(path.read_bytes()) for path in sorted(FOLDER.glob("*.json.gz"))}


@cache
def schema(plural: str, version: str) -> dict[str, Any]:
    """The structural schema of one version; KeyError where there is none."""
    found = next((v for v in crds()[plural]["spec"]["versions"] if v["name"] == version), None)
    if found is None:
        raise KeyError(f"{plural} has no version {version}")
    return found["schema"]["openAPIV3Schema"]  # type: ignore[no-any-return]
