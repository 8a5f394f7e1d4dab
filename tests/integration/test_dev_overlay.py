"""The containers of the dev overlay as processes: their own commands, settings, Secrets and probes, with the paths and
addresses of pods moved to this machine. What only a cluster can show, images and networks, is not tried here.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from jobs_lab import until
from kube.fixtures import Cluster, cluster
from manifests_lab import K8S, named, objects, of_kind, pods, program
from services_lab import free_ports

from jos.store.embedded import server_binary

__all__ = ["cluster"]

SECRETS = K8S / "overlays" / "dev" / "secrets.sh"


def make_secrets(cluster: Cluster) -> str:
    path = f"{Path(program('kubectl')).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(cluster.kubeconfig)}
    return subprocess.run([SECRETS], env=environment, capture_output=True, text=True, check=True).stdout


def secret(cluster: Cluster, name: str) -> dict[str, str]:
    found = cluster.objects.get("secrets", "jos-dev", name)
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


def grant(cluster: Cluster) -> None:
    """Namespace, account and Role of the controller, as they stand in the manifests."""
    plurals = {"ServiceAccount": "serviceaccounts", "Role": "roles", "RoleBinding": "rolebindings"}
    for one in of_kind(objects("dev"), *plurals):
        cluster.objects.create(plurals[one["kind"]], one)


def test_the_dev_overlays_processes_come_up_and_pass_their_probes(cluster: Cluster, tmp_path: Path) -> None:
    make_secrets(cluster)
    grant(cluster)
    store, s3, api, controller = free_ports(4)
    own = settings(cluster)
    assert own["JOS_REDIS_URL"].endswith("@jos-redis:6379/0")
    assert own["AWS_ENDPOINT_URL"] == "http://jos-objects:8333"
    here = {
        "JOS_REDIS_URL": own["JOS_REDIS_URL"].replace("jos-redis:6379", f"127.0.0.1:{store}"),
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        "JOS_API_PORT": str(api),
        "JOS_API_HOST": "127.0.0.1",
        "JOS_CONTROLLER_PORT": str(controller),
        "JOS_CONTROLLER_HOST": "127.0.0.1",
        "KUBECONFIG": str(cluster.as_account("jos-controller", "jos-dev")),
        "JOS_HOME": str(tmp_path / "home"),
        "JOS_QUEUES": str(tmp_path / "queues.yaml"),
        "JOS_KUBE": str(tmp_path / "kube.yaml"),
    }
    (config,) = [m for m in of_kind(objects("dev"), "ConfigMap") if m["metadata"]["name"].startswith("jos-config-")]
    for name, text in config["data"].items():
        (tmp_path / name).write_text(text)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **own, **here}
    with ExitStack() as stack:
        stack.enter_context(valkey(tmp_path / "valkey", store, secret(cluster, "jos-redis")["password"]))
        stack.enter_context(seaweedfs(tmp_path / "seaweedfs", s3, secret(cluster, "jos-objects")["s3.json"]))
        probe = container("objects")["readinessProbe"]["httpGet"]
        until(lambda: answers(f"http://127.0.0.1:{s3}{probe['path']}"))
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=store).ping()
        assert redis.Redis.from_url(here["JOS_REDIS_URL"]).config_get("maxmemory-policy") == {
            "maxmemory-policy": "noeviction"
        }
        for component in ("api", "controller"):
            found = container(component)
            command = [str(Path(sys.executable).parent / "jos"), *found["args"]]
            stack.enter_context(process(command, tmp_path, environment, component))
        for component, port in (("api", api), ("controller", controller)):
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                url = f"http://127.0.0.1:{port}{container(component)[kind]['httpGet']['path']}"
                until(partial(answers, url))
        numbers = f"http://127.0.0.1:{controller}/metrics"
        until(
            lambda: (
                {"jos_controller_leader 1.0", "jos_cluster_answers 1.0"} <= set(httpx2.get(numbers).text.splitlines())
            )
        )
        doctor = [str(Path(sys.executable).parent / "jos"), "doctor"]
        said = subprocess.run(doctor, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        words = " ".join(said.stdout.split())
        assert (said.returncode, said.stderr) == (0, ""), words
        assert "all that JOS needs in namespace jos-dev" in words
        assert "accepted, with every field of KubeRay 1.7" in words
        ready = httpx2.get(f"http://127.0.0.1:{api}/readyz").json()
        assert ready["checks"] == {"store": "ok", "storage": "ok", "controller": "ok"}


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False
