"""The fake KubeRay with jobs that really run, on the Ray head of the session, from RayJobs in the fake store."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs_lab import Head, alive, until
from kube.objects import Objects
from kube.parts import Made, found
from kube.samples import NAMESPACE, head, rayjob
from kube.standins import LocalRay
from kube.world import World

WRITES = "import json, os, pathlib; pathlib.Path(os.environ['OUT']).write_text(json.dumps(dict(os.environ)))"
STAYS = WRITES + "; import time; pathlib.Path(os.environ['OUT'] + '.pid').write_text(str(os.getpid())); time.sleep(600)"


ACTOR = """
import os, pathlib, time, ray
ray.init(log_to_driver=False)

@ray.remote(num_cpus=1)
class Worker:
    def pid(self):
        return os.getpid()

worker = Worker.remote()
out = pathlib.Path(os.environ["OUT"])
out.with_name("written").write_text(str(ray.get(worker.pid.remote())))
out.with_name("written").rename(out)
time.sleep(600)
"""


@pytest.fixture
def world(ray_jobs: Head) -> Iterator[World]:
    running = World.on_ray(Objects(namespaces=(NAMESPACE,)), ray_jobs.dashboard)
    yield running
    running.close()


def status(world: World, name: str) -> Made:
    found_status: Made = (found(world.objects, "rayjobs", NAMESPACE, name) or {}).get("status", {})
    return found_status


def when(world: World, name: str, **wanted: str) -> Made:
    until(lambda: all(status(world, name).get(field) == value for field, value in wanted.items()), 90)
    return status(world, name)


def submitted(world: World, name: str, code: str, out: Path, **spec: object) -> Path:
    job = rayjob(name, shlex.join(["python", "-c", code]), **spec)
    head(job)["containers"][0]["env"] = [{"name": "OUT", "value": str(out)}]
    world.objects.create("rayjobs", job)
    return out


def pid_in(path: Path) -> int:
    until(lambda: path.exists() and path.read_text(), 90)
    return int(path.read_text())


def test_the_entrypoint_runs_with_the_variables_of_the_head_pod(world: World, tmp_path: Path) -> None:
    coded = base64.b64encode(b"s3cret").decode()
    world.objects.create("secrets", {"metadata": {"name": "store", "namespace": NAMESPACE}, "data": {"JOS_KEY": coded}})
    world.objects.create(
        "configmaps", {"metadata": {"name": "settings", "namespace": NAMESPACE}, "data": {"JOS_HOME": "/there"}}
    )
    job = rayjob("s", shlex.join(["python", "-c", WRITES]), runtimeEnvYAML="env_vars:\n  MINE: last\n")
    container = head(job)["containers"][0]
    container["envFrom"] = [{"secretRef": {"name": "store"}}, {"configMapRef": {"name": "settings"}}]
    named = {"name": "HEAD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    container["env"] = [{"name": "OUT", "value": str(tmp_path / "out.json")}, {"name": "MINE", "value": "first"}, named]
    world.objects.create("rayjobs", job)
    ended = when(world, "s", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    seen = json.loads((tmp_path / "out.json").read_text())
    assert {name: seen[name] for name in ("JOS_KEY", "JOS_HOME", "MINE")} == {
        "JOS_KEY": "s3cret",
        "JOS_HOME": "/there",
        "MINE": "last",
    }
    assert seen["HEAD"].startswith(ended["rayClusterName"] + "-head-")
    assert isinstance(world.standin, LocalRay)
    assert ended["dashboardURL"] == world.standin.dashboard


def test_a_running_job_is_stopped_when_its_rayjob_is_deleted(world: World, tmp_path: Path) -> None:
    out = submitted(world, "d", STAYS, tmp_path / "out.json")
    pid = pid_in(out.with_name("out.json.pid"))
    world.objects.delete("rayjobs", NAMESPACE, "d")
    until(lambda: not alive(pid), 60)
    until(lambda: found(world.objects, "rayjobs", NAMESPACE, "d") is None)
    assert isinstance(world.standin, LocalRay)
    assert len(world.standin.stopped) == 1


@pytest.mark.parametrize("death", ["kill", "delete"])
def test_a_dead_head_takes_its_driver_along_and_the_next_one_runs_the_job_again(
    world: World, tmp_path: Path, death: str
) -> None:
    out = submitted(world, f"k-{death}", STAYS, tmp_path / "out.json")
    first = pid_in(out.with_name("out.json.pid"))
    (out.with_name("out.json.pid")).unlink()
    now = when(world, f"k-{death}", jobStatus="RUNNING")
    kills: dict[str, Callable[[], object]] = {
        "kill": lambda: world.kubelet.kill_head(NAMESPACE, now["rayClusterName"]),
        "delete": lambda: world.objects.delete("pods", NAMESPACE, now["rayClusterStatus"]["head"]["podName"]),
    }
    kills[death]()
    until(lambda: not alive(first), 30)
    second = pid_in(out.with_name("out.json.pid"))
    assert second != first
    after = status(world, f"k-{death}")
    assert (after["failed"], after["jobId"]) == (0, now["jobId"])  # pain 1: nothing tells that it began again


def test_the_actors_of_a_job_die_with_its_head_and_nothing_starts_it_again_where_that_is_forbidden(
    world: World, tmp_path: Path
) -> None:
    job = rayjob("w", shlex.join(["python", "-c", ACTOR]))
    job["metadata"]["annotations"] = {"ray.io/disable-provisioned-head-restart": "true"}
    head(job)["containers"][0]["env"] = [{"name": "OUT", "value": str(tmp_path / "actor.pid")}]
    world.objects.create("rayjobs", job)
    actor = pid_in(tmp_path / "actor.pid")
    now = when(world, "w", jobStatus="RUNNING")
    (tmp_path / "actor.pid").unlink()
    world.kubelet.kill_head(NAMESPACE, now["rayClusterName"])
    assert not alive(actor)
    until(lambda: "jobStatusCheckFailureStartTime" in status(world, "w"))
    assert (status(world, "w")["jobDeploymentStatus"], status(world, "w")["jobStatus"]) == ("Running", "RUNNING")
    assert not (tmp_path / "actor.pid").exists()
