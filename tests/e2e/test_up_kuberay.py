"""`jos up --launcher kuberay`: one command on a Redis and a Kubernetes cluster (a fake one, whose drivers really run),
from a job over HTTP to its outputs, through a head that dies, and gone when it is stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs_lab import HERE, Head, until
from kube.fixtures import NAMESPACE, Cluster
from kube.world import World
from services_lab import _die_with_parent, free_ports
from up_lab import Up

from jos.core.model import Status
from jos.store import embedded


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Valkey on loopback TCP."""
    (port,) = free_ports(1)
    command = [str(embedded.server_binary()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    options: Any = {"preexec_fn": _die_with_parent} if sys.platform == "linux" else {}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path, **options)
    yield f"redis://127.0.0.1:{port}/0"
    server.kill()
    server.wait()


@pytest.fixture
def world(cluster: Cluster, ray_jobs: Head) -> Iterator[World]:
    found = World.on_ray(cluster.objects, ray_jobs.dashboard)
    yield found
    found.close()


def rayjobs(world: World) -> dict[str, str]:
    """What KubeRay says of each."""
    found = world.objects.list("rayjobs", NAMESPACE)
    return {one["metadata"]["name"]: (one.get("status") or {}).get("jobDeploymentStatus", "") for one in found}


def test_one_command_drives_jobs_on_kubernetes_through_a_dead_head_to_their_outputs(
    own_up: Up, redis_url: str, world: World, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = str(tmp_path / "storage")
    told = {"JOS_REDIS_URL": redis_url, "JOS_STORAGE": storage, "JOS_PIPELINES": str(HERE / "pipelines")}
    if path := os.environ.get("PYTHONPATH"):
        told["PYTHONPATH"] = path
    profile = tmp_path / "kube.yaml"
    profile.write_text(yaml.safe_dump({"env": told}))
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    own_up.start("--redis-url", redis_url, "--storage", storage, "--launcher", "kuberay", "--kube", str(profile))
    records = [{"text": f"a {n}"} for n in range(80)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with own_up.client() as client:
        config = {"worker": {"config": {"span_records": 4, "seconds": 0.05}}}
        job = client.jobs.create("shout", {"data": tmp_path / "a.jsonl"}, config, parallelism=2)
        first = f"jos-{job.id.replace('_', '-')}-1"
        until(lambda: job.refresh().record.status is Status.RUNNING, 90)
        [head] = [
            pod
            for pod in world.objects.list("pods", NAMESPACE)
            if pod["metadata"]["labels"]["ray.io/node-type"] == "head"
        ]
        world.objects.delete("pods", NAMESPACE, head["metadata"]["name"])
        until(lambda: first not in rayjobs(world), 15)
        job.wait(150)
        assert job.record.status is Status.COMPLETED, own_up.said()
        assert job.record.retry_count == 1
        [path] = job.download(tmp_path / "out")
        assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == [f"A {n}" for n in range(80)]
    second = f"jos-{job.id.replace('_', '-')}-2"
    until(lambda: rayjobs(world) == {second: "Complete"}, 30)
    assert own_up.stop() == 0
