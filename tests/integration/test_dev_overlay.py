"""docs/kubernetes.md from `kubectl apply` to a finished job: the dev overlay on the fake cluster, its containers as
processes with their own commands, settings, Secrets, rights and probes, and a job that really runs.

The paths and addresses of pods are moved to this machine. What only a cluster can show, images and networks, is not
tried here.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from jobs_lab import Head, until
from kube.fixtures import Cluster, cluster
from kube.world import World
from manifests_lab import K8S, ROOT, named, objects, of_kind, pods, program
from services_lab import free_ports

from jos.store.embedded import server_binary

__all__ = ["cluster"]

NAMESPACE, BIN = "jos-dev", Path(sys.executable).parent
SECRETS = K8S / "overlays" / "dev" / "secrets.sh"
JOB = ROOT / "pipelines" / "machine-state-classification" / "examples" / "job.yaml"


def run(cluster: Cluster, *command: str) -> str:
    """As an administrator, with kubectl on the path."""
    path = f"{Path(program('kubectl')).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(cluster.kubeconfig)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def kubectl(cluster: Cluster, *arguments: str) -> str:
    return run(cluster, "kubectl", *arguments)


def make_secrets(cluster: Cluster) -> str:
    return run(cluster, str(SECRETS))


def secret(cluster: Cluster, name: str) -> dict[str, str]:
    found = cluster.objects.get("secrets", NAMESPACE, name)
    told = {key: base64.b64decode(value).decode() for key, value in found.get("data", {}).items()}
    return told | found.get("stringData", {})  # which the lab keeps as it came


def container(component: str) -> Any:
    return pods(objects("dev"))[component]["spec"]["containers"][0]


def moved(text: str, folder: Path) -> str:
    return re.sub(r"(?<![\w.])/(data|etc|run|tmp)(?=/|\s|\"|$)", rf"{folder}/\1", text)


@contextmanager
def process(command: list[str], folder: Path, environment: Mapping[str, str], name: str) -> Iterator[None]:
    with (folder / f"{name}.log").open("wb") as log:
        running = subprocess.Popen(command, cwd=folder, env={**environment}, stdout=log, stderr=log)
    try:
        yield
    finally:
        running.kill()
        running.wait()


@contextmanager
def valkey(folder: Path, port: int, password: str) -> Iterator[None]:
    for place in ("data", "tmp", "etc/valkey", "run/jos-redis"):
        (folder / place).mkdir(parents=True)
    (config,) = [m for m in of_kind(objects("dev"), "ConfigMap") if m["metadata"]["name"].startswith("jos-redis-")]
    (folder / "etc/valkey/valkey.conf").write_text(moved(config["data"]["valkey.conf"], folder))
    (folder / "run/jos-redis/password").write_text(password)
    found = container("redis")
    command = moved(found["args"][0], folder).rstrip() + f" --port {port}"
    environment = {"PATH": f"{server_binary().parent}:/usr/bin:/bin"}
    with process(
        [*found["command"], command.replace("valkey-server", server_binary().name)], folder, environment, "valkey"
    ):
        yield


@contextmanager
def seaweedfs(folder: Path, port: int, identities: str) -> Iterator[None]:
    for place in ("data", "run/jos-objects"):
        (folder / place).mkdir(parents=True)
    (folder / "run/jos-objects/s3.json").write_text(identities)
    found = container("objects")
    arguments = [moved(one, folder) for one in found["args"] if not one.startswith("-s3.port=")]
    master, volume, filer, admin = free_ports(4)
    ports = [f"-s3.port={port}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    command = [program("weed"), *arguments, *ports, f"-admin.port={admin}"]
    with process(command, folder / "data", {"HOME": str(folder / "data")}, "seaweedfs"):
        yield


def settings(cluster: Cluster) -> dict[str, str]:
    """The environment of the API's container, as envFrom puts it together."""
    found: dict[str, str] = {}
    for source in container("api")["envFrom"]:
        if "configMapRef" in source:
            found |= named(objects("dev"), "ConfigMap", source["configMapRef"]["name"])["data"]
        else:
            found |= secret(cluster, source["secretRef"]["name"])
    return found


def test_the_secrets_script_makes_what_the_pods_ask_for_and_leaves_it_alone_the_next_time(cluster: Cluster) -> None:
    make_secrets(cluster)
    made = {name: secret(cluster, name) for name in ("jos-redis", "jos-objects", "jos-secrets")}
    wanted = {
        reference
        for template in pods(objects("dev")).values()
        for reference in [
            *(v["secret"]["secretName"] for v in template["spec"]["volumes"] if "secret" in v),
            *(s["secretRef"]["name"] for s in template["spec"]["containers"][0].get("envFrom", ()) if "secretRef" in s),
        ]
    }
    assert wanted == set(made)
    assert made["jos-redis"]["password"] in made["jos-secrets"]["JOS_REDIS_URL"]
    assert "there already" in make_secrets(cluster)
    assert {name: secret(cluster, name) for name in made} == made


@dataclass(frozen=True)
class Site:
    """The overlay on the fake cluster, with the addresses of its Services moved to free ports of this machine."""

    cluster: Cluster
    folder: Path
    ports: Mapping[str, int]  # of redis, objects, api, controller
    environment: Mapping[str, str]  # of API and controller

    def jos(self, *arguments: str, **more: str) -> str:
        """The command's output, as `kubectl exec` into a pod would have it."""
        command = [str(BIN / "jos"), *arguments]
        environment = {**self.environment, **more}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def url(self, component: str, path: str) -> str:
        return f"http://127.0.0.1:{self.ports[component]}{path}"


def installed(cluster: Cluster, folder: Path) -> Site:
    """By the commands of docs/kubernetes.md. Jobs' pods are told the moved addresses, too."""
    make_secrets(cluster)
    kubectl(cluster, "apply", "--server-side", "-k", str(K8S / "overlays" / "dev"))
    ports = dict(zip(("redis", "objects", "api", "controller"), free_ports(4), strict=True))
    own = settings(cluster)
    moved_data = {
        "JOS_REDIS_URL": own["JOS_REDIS_URL"].replace("jos-redis:6379", f"127.0.0.1:{ports['redis']}"),
        "AWS_ENDPOINT_URL": own["AWS_ENDPOINT_URL"].replace("jos-objects:8333", f"127.0.0.1:{ports['objects']}"),
    }
    assert all("127.0.0.1" in value for value in moved_data.values())
    told = {key: value for key, value in moved_data.items() if key == "AWS_ENDPOINT_URL"}
    cluster.objects.patch("configmaps", NAMESPACE, "jos-data", {"data": told})
    hidden = secret(cluster, "jos-secrets") | {"JOS_REDIS_URL": moved_data["JOS_REDIS_URL"]}
    coded = {key: base64.b64encode(value.encode()).decode() for key, value in hidden.items()}
    cluster.objects.patch("secrets", NAMESPACE, "jos-secrets", {"data": coded, "stringData": None})
    (config,) = [m for m in of_kind(objects("dev"), "ConfigMap") if m["metadata"]["name"].startswith("jos-config-")]
    for name, text in config["data"].items():
        (folder / name).write_text(text)
    moved_paths = {"JOS_HOME": "home", "JOS_QUEUES": "queues.yaml", "JOS_KUBE": "kube.yaml"}
    environment = {
        **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
        **own,
        **moved_data,
        **{name: str(folder / path) for name, path in moved_paths.items()},
        **{f"JOS_{component.upper()}_PORT": str(ports[component]) for component in ("api", "controller")},
        **{f"JOS_{component.upper()}_HOST": "127.0.0.1" for component in ("api", "controller")},
        "KUBECONFIG": str(cluster.as_account("jos-controller", NAMESPACE)),
    }
    return Site(cluster, folder, ports, environment)


def start(site: Site, stack: ExitStack) -> None:
    """Every container as a process, until all its probes pass."""
    password, identities = secret(site.cluster, "jos-redis")["password"], secret(site.cluster, "jos-objects")["s3.json"]
    stack.enter_context(valkey(site.folder / "valkey", site.ports["redis"], password))
    stack.enter_context(seaweedfs(site.folder / "seaweedfs", site.ports["objects"], identities))
    until(partial(answers, site.url("objects", container("objects")["readinessProbe"]["httpGet"]["path"])))
    for component in ("api", "controller"):
        command = [str(BIN / "jos"), *container(component)["args"]]
        stack.enter_context(process(command, site.folder, site.environment, component))
    for component in ("api", "controller"):
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            until(partial(answers, site.url(component, container(component)[kind]["httpGet"]["path"])))


def examine(site: Site) -> None:
    """All parts know each other, and nobody gets in who should not."""
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=site.ports["redis"]).ping()
    store = redis.Redis.from_url(site.environment["JOS_REDIS_URL"])
    assert store.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    wanted = {"jos_controller_leader 1.0", "jos_cluster_answers 1.0"}
    until(lambda: wanted <= set(httpx2.get(site.url("controller", "/metrics")).text.splitlines()))
    ready = httpx2.get(site.url("api", "/readyz")).json()
    assert ready["checks"] == {"store": "ok", "storage": "ok", "controller": "ok"}
    words = " ".join(site.jos("doctor").split())
    assert "all that JOS needs in namespace jos-dev" in words
    assert "accepted, with every field of KubeRay 1.7" in words


def finish_a_job(site: Site) -> None:
    key = json.loads(site.jos("keys", "create", "--here", "--role", "admin", "--name", "first", "--json"))["key"]
    server = {"JOS_URL": site.url("api", ""), "JOS_API_KEY": key}
    site.jos("submit", str(JOB), "--download", str(site.folder / "results"), **server)
    assert [file for file in (site.folder / "results").rglob("*") if file.is_file()]
    (rayjob,) = site.cluster.objects.list("rayjobs", NAMESPACE)
    assert rayjob["metadata"]["labels"]["jos.dev/job"].startswith("job_")
    until(lambda: site.cluster.objects.list("rayjobs", NAMESPACE)[0]["status"]["jobStatus"] == "SUCCEEDED")


def test_from_kubectl_apply_of_the_dev_overlay_to_a_finished_job(
    cluster: Cluster, ray_jobs: Head, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        site = installed(cluster, tmp_path)
        start(site, stack)
        examine(site)
        world = World.on_ray(cluster.objects, ray_jobs.dashboard)
        stack.callback(world.close)
        finish_a_job(site)


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False
