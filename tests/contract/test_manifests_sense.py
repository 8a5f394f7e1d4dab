"""The manifests of k8s/ mean what they should: who reaches whom, what names point at, what is watched."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from manifests_lab import COMPONENTS, K8S, OVERLAYS, Object, combined, config, named, objects, of_kind, pods
from network_lab import Peer, may, selects

from jos.api.metrics import Metrics as ApiMetrics
from jos.controller.metrics import Metrics as ControllerMetrics
from jos.core.queues import QueueConfig
from jos.launch.kube_profile import profile_of
from jos.settings import Settings

HERE = "jos-dev"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return combined(tmp_path_factory.mktemp("own") / "all", COMPONENTS)


# --- who reaches whom -----------------------------------------------------------------------------------


def ours(component: str) -> Peer:
    return Peer(HERE, {"app.kubernetes.io/name": "jos", "app.kubernetes.io/component": component})


def driver(job: str, node: str) -> Peer:
    return Peer(HERE, {"jos.dev/job": job, "ray.io/node-type": node, "app.kubernetes.io/managed-by": "jos"})


PEERS = {
    **{name: ours(name) for name in ("api", "controller", "redis", "objects")},
    "head": driver("job-1", "head"),
    "worker": driver("job-1", "worker"),
    "stranger": Peer(HERE, {"app": "stranger"}),
    "ingress": Peer("ingress-nginx", {"app.kubernetes.io/name": "ingress-nginx"}),
    "prometheus": Peer("monitoring", {"app.kubernetes.io/name": "prometheus"}),
    "kuberay": Peer("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}),
    "dns": Peer("kube-system", {"k8s-app": "kube-dns"}),
    "elsewhere": Peer("elsewhere", {"app.kubernetes.io/name": "jos", "app.kubernetes.io/component": "api"}),
    "s3": Peer(address="52.95.1.1"),
    "kubernetes": Peer(address="10.96.0.1"),
    "metadata": Peer(address="169.254.169.254"),
}
MAY = """
ingress api 8321 | prometheus api 8321 | prometheus controller 8322 | prometheus head 8080 | kuberay head 8265
api redis 6379 | controller redis 6379 | head redis 6379 | worker redis 6379
api objects 8333 | controller objects 8333 | head objects 8333 | worker objects 8333
api s3 443 | controller s3 443 | head s3 443 | worker s3 443
controller kubernetes 443 | controller kubernetes 6443 | head kubernetes 6443 | controller head 8265
head worker 10002 | worker head 6379 | worker worker 20000 | api dns 53 | worker dns 53
"""
MAY_NOT = """
ingress controller 8322 | ingress head 8265 | ingress redis 6379 | ingress api 22 | elsewhere api 8321
elsewhere redis 6379 | elsewhere head 8265 | stranger redis 6379 | stranger api 8321 | stranger head 8265
stranger controller 8322 | prometheus redis 6379 | prometheus head 8265 | kuberay redis 6379 | kuberay head 6379
api head 8265 | api head 6379 | api controller 8322 | controller head 6379 | controller api 8321 | head api 8321
worker controller 8322 | redis s3 443 | objects s3 443 | redis objects 8333 | api s3 80 | worker s3 22
api kubernetes 6443 | worker kubernetes 6443 | api metadata 80 | worker metadata 80 | api metadata 443
worker elsewhere 8321 | objects redis 6379
"""


def questions(table: str) -> list[tuple[str, str, int]]:
    return [(a, b, int(port)) for a, b, port in (one.split() for one in re.split(r"[|\n]", table.strip()))]


@pytest.mark.parametrize(("source", "target", "port"), questions(MAY))
def test_what_jos_needs_the_network_lets_through(source: str, target: str, port: int) -> None:
    policies = of_kind(objects("dev"), "NetworkPolicy")
    assert may(policies, PEERS[source], PEERS[target], port, "UDP" if port == 53 else "TCP")


@pytest.mark.parametrize(("source", "target", "port"), questions(MAY_NOT))
def test_what_nobody_needs_the_network_keeps_back(source: str, target: str, port: int) -> None:
    policies = of_kind(objects("dev"), "NetworkPolicy")
    assert not may(policies, PEERS[source], PEERS[target], port)


# --- names point at what is there -----------------------------------------------------------------------


def test_services_monitors_and_budgets_select_pods_and_ports_that_are_there(everything: list[Object]) -> None:
    templates = pods(everything)
    services = {one["metadata"]["name"]: one for one in of_kind(everything, "Service")}
    for name, service in services.items():
        template = templates[name.removeprefix("jos-")]
        assert selects({"matchLabels": service["spec"]["selector"]}, template["metadata"]["labels"])
        ports = {port["name"] for c in template["spec"]["containers"] for port in c["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for monitor in of_kind(everything, "ServiceMonitor"):
        (service,) = [s for s in services.values() if selects(monitor["spec"]["selector"], s["metadata"]["labels"])]
        assert {one["port"] for one in monitor["spec"]["endpoints"]} == {p["name"] for p in service["spec"]["ports"]}
    for budget in of_kind(everything, "PodDisruptionBudget"):
        assert any(selects(budget["spec"]["selector"], t["metadata"]["labels"]) for t in templates.values())
    backend = named(everything, "Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["port"]["name"] in {p["name"] for p in services[backend["name"]]["spec"]["ports"]}


def test_ports_of_settings_are_the_ports_of_pods() -> None:
    settings = dict(line.split("=", 1) for line in (K8S / "base" / "settings.env").read_text().split())
    templates = pods(objects("prod"))
    for component in ("api", "controller"):
        (container,) = templates[component]["spec"]["containers"]
        assert str(container["ports"][0]["containerPort"]) == settings[f"JOS_{component.upper()}_PORT"]
        assert settings[f"JOS_{component.upper()}_HOST"] == "0.0.0.0"
        assert container["args"] == [component]


@pytest.mark.parametrize("name", OVERLAYS)
def test_settings_are_settings_of_jos_and_no_secret_is_written_down(name: str) -> None:
    found = objects(name)
    assert of_kind(found, "Secret") == []
    maps = [m for m in of_kind(found, "ConfigMap") if re.match("jos-(settings|data)", m["metadata"]["name"])]
    names = {key for one in maps for key in one["data"]}
    known = {f"JOS_{field.upper()}" for field in Settings.model_fields}
    known |= {"AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP", "LM_ALLOW"}
    assert names - known == set()
    files = {f"/etc/jos/{file}" for one in of_kind(found, "ConfigMap") for file in one["data"] if file.endswith("yaml")}
    settings = next(one["data"] for one in maps if one["metadata"]["name"].startswith("jos-settings"))
    assert {value for value in settings.values() if value.startswith("/etc/")} <= files


@pytest.mark.parametrize("name", OVERLAYS)
def test_queues_are_what_jos_reads(name: str) -> None:
    assert {"default", "production"} <= set(QueueConfig.of(config(objects(name), "queues.yaml")).queues)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_profile_is_what_jos_reads_and_speaks_of_this_namespace(name: str) -> None:
    found = objects(name)
    profile = profile_of(config(found, "kube.yaml"), name)
    assert profile.namespace == named(found, "Namespace")["metadata"]["name"]
    assert profile.admission == "jos"
    assert profile.image.startswith("registry.example/jos-worker@sha256:")
    built_in = {yaml.safe_load(file.read_text())["image"] for file in Path(K8S.parent / "pipelines").glob("*/*.yaml")}
    assert {profile.images.get(image) for image in built_in} == {profile.image}
    accounts = {one["metadata"]["name"] for one in of_kind(found, "ServiceAccount")}
    assert profile.service_account in accounts
    maps = {one["metadata"]["name"] for one in of_kind(found, "ConfigMap")}
    assert {one.config_map for one in profile.env_from if one.config_map} <= maps


def test_with_kueue_and_gpus_the_profile_names_queues_classes_and_nodes_that_are_there(
    everything: list[Object],
) -> None:
    profile = profile_of(config(everything, "kube.yaml"), "all")
    assert profile.admission == "kueue"
    queues = set(QueueConfig.of(config(everything, "queues.yaml")).queues)
    local = {one["metadata"]["name"]: one["spec"]["clusterQueue"] for one in of_kind(everything, "LocalQueue")}
    assert queues == set(profile.kueue.local_queues)
    assert set(profile.kueue.local_queues.values()) == set(local)
    assert set(local.values()) == {one["metadata"]["name"] for one in of_kind(everything, "ClusterQueue")}
    classes = {one["metadata"]["name"]: one["value"] for one in of_kind(everything, "WorkloadPriorityClass")}
    bands = sorted(profile.kueue.priority_classes, key=lambda band: band.at_least)
    assert {band.name for band in bands} == set(classes)
    assert [classes[band.name] for band in bands] == sorted(classes.values())
    flavors = {one["metadata"]["name"]: one["spec"].get("nodeLabels") for one in of_kind(everything, "ResourceFlavor")}
    for queue in of_kind(everything, "ClusterQueue"):
        used = {flavor["name"] for group in queue["spec"]["resourceGroups"] for flavor in group["flavors"]}
        assert used == set(flavors)
        assert selects(queue["spec"]["namespaceSelector"], named(everything, "Namespace")["metadata"]["labels"])
    assert [gpu.node_selector in flavors.values() for gpu in profile.gpus.values()] == [True, True]


# --- pods -----------------------------------------------------------------------------------------------


def test_every_pod_is_restricted_limited_and_probed(everything: list[Object]) -> None:
    assert set(pods(everything)) == {"api", "controller", "redis", "objects"}
    for template in pods(everything).values():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] >= 10000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False, "a Service jos-api would set JOS_API_PORT"
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]) & set(container["resources"]["limits"])
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
            assert re.search(r"@sha256:[0-9a-f]{64}$", container["image"])
            written = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
            assert "/tmp" in written
    labels = named(everything, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_only_the_controller_has_a_token(everything: list[Object]) -> None:
    mounts = {name: one["spec"]["automountServiceAccountToken"] for name, one in pods(everything).items()}
    assert mounts == {"api": False, "controller": True, "redis": False, "objects": False}


# --- numbers --------------------------------------------------------------------------------------------


def metric_names() -> set[str]:
    families = [f for m in (ApiMetrics(), ControllerMetrics()) for f in m.registry.collect()]
    names = set()
    for family in families:
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


def metrics_in(expression: str) -> set[str]:
    assert expression.count("(") == expression.count(")")
    return set(re.findall(r"\bjos_\w+", expression))


def test_alerts_ask_for_numbers_that_jos_has(everything: list[Object]) -> None:
    rules = [rule for g in named(everything, "PrometheusRule")["spec"]["groups"] for rule in g["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 10
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert metrics_in(rule["expr"])
        assert metrics_in(rule["expr"]) <= metric_names(), rule["alert"]
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
    page = (K8S.parent / "docs" / "kubernetes.md").read_text()
    assert [rule["alert"] for rule in rules if f"`{rule['alert']}`" not in page] == []


def test_the_dashboard_asks_for_numbers_that_jos_has_and_shows_them_all(everything: list[Object]) -> None:
    dashboard = json.loads(named(everything, "ConfigMap", "jos-dashboard")["data"]["jos.json"])
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for expression in targets for name in metrics_in(expression)}
    assert asked <= metric_names()
    shown = {re.sub("_(bucket|count|sum|total)$", "", name) for name in asked}
    assert shown == {re.sub("_(bucket|count|sum|total)$", "", name) for name in metric_names()}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    places = [tuple(panel["gridPos"][k] for k in "xy") for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
