"""Makes the files here from the original CRDs: `python tests/lab/kube/crds/make.py FOLDER`, FOLDER with both releases.

The same originals give the same bytes. What a validator reads stays as it is; descriptions go.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

SOURCES = {
    "kuberay-v1.7.0": ("ray.io_rayjobs", "ray.io_rayclusters"),
    "kueue-v0.19.2": tuple(
        f"kueue.x-k8s.io_{name}"
        for name in (
            "workloads",
            "localqueues",
            "clusterqueues",
            "cohorts",
            "resourceflavors",
            "workloadpriorityclasses",
            "admissionchecks",
            "topologies",
        )
    ),
}


def bare(schema: Any) -> Any:
    """A schema without its descriptions; a property that is called so stays."""
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "description":
            continue
        if key == "properties":
            found[key] = {name: bare(child) for name, child in value.items()}
        elif key in ("items", "additionalProperties"):
            found[key] = bare(value)
        elif key in ("anyOf", "allOf", "oneOf"):
            found[key] = [bare(child) for child in value]
        else:
            found[key] = value
    return found


def made(source: Path) -> tuple[str, bytes]:
    """The plural name and the bytes of the file made from one original."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load(source.read_text(), loader)
    spec = crd["spec"]
    versions = [
        {"name": v["name"], "served": v["served"], "storage": v["storage"]}
        | {"subresources": v.get("subresources", {})}
        | {"additionalPrinterColumns": [bare(column) for column in v.get("additionalPrinterColumns", ())]}
        | {"schema": {"openAPIV3Schema": bare(v["schema"]["openAPIV3Schema"])}}
        for v in spec["versions"]
    ]
    kept = {"group": spec["group"], "names": spec["names"], "scope": spec["scope"], "versions": versions}
    found = {"apiVersion": crd["apiVersion"], "kind": crd["kind"], "metadata": {"name": crd["metadata"]["name"]}}
    text = json.dumps(found | {"spec": kept}, separators=(",", ":"), sort_keys=True)
    return spec["names"]["plural"], gzip.compress(text.encode(), 9, mtime=0)


def read(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(data))
    return found


def originals(folder: Path) -> list[Path]:
    return [folder / release / f"{name}.yaml" for release, names in SOURCES.items() for name in names]


if __name__ == "__main__":
    for original in originals(Path(sys.argv[1])):
        plural, data = made(original)
        (Path(__file__).parent / f"{plural}.json.gz").write_bytes(data)
        print(f"{plural}: {len(data)} bytes")
