"""Who may talk to whom by NetworkPolicies, as Kubernetes defines them: for questions to manifests, not to a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """A pod with its namespace's name, or an address outside (then it has no labels)."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_holds(one, labels) for one in selector.get("matchExpressions", ()))


def _holds(expression: Object, labels: Mapping[str, str]) -> bool:
    key, operator = expression["key"], expression["operator"]
    if operator in ("Exists", "DoesNotExist"):
        return (key in labels) == (operator == "Exists")
    return (labels.get(key) in expression["values"]) == (operator == "In")


def may(policies: Iterable[Object], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    policies = list(policies)
    out = _allowed(policies, "Egress", source, target, port, protocol)
    return out and _allowed(policies, "Ingress", target, source, port, protocol)


def _allowed(policies: list[Object], way: str, here: Peer, there: Peer, port: int, protocol: str) -> bool:
    """Whether `here` may send to, or be sent to by, `there`: all where no policy selects it."""
    mine = [one for one in policies if _selects_pod(one, here) and way in one["spec"]["policyTypes"]]
    rules = [rule for one in mine for rule in one["spec"].get(way.lower(), ())]
    side = "to" if way == "Egress" else "from"
    passes = any(_ports(rule, port, protocol) and _peers(rule, side, here, there) for rule in rules)
    return not mine or passes


def _selects_pod(policy: Object, pod: Peer) -> bool:
    here = not pod.address and policy["metadata"]["namespace"] == pod.namespace
    return here and selects(policy["spec"]["podSelector"], pod.labels)


def _ports(rule: Object, port: int, protocol: str) -> bool:
    wanted = rule.get("ports")
    return wanted is None or any(one["port"] == port and one.get("protocol", "TCP") == protocol for one in wanted)


def _peers(rule: Object, side: str, here: Peer, there: Peer) -> bool:
    wanted = rule.get(side)
    return wanted is None or any(_is(one, here, there) for one in wanted)


def _is(wanted: Object, here: Peer, there: Peer) -> bool:
    if "ipBlock" in wanted:
        block = wanted["ipBlock"]
        if not there.address:
            return False  # addresses of pods are not for policies to name
        address = ip_address(there.address)
        inside = address in ip_network(block["cidr"])
        return inside and not any(address in ip_network(one) for one in block.get("except", ()))
    if there.address:
        return False
    if "namespaceSelector" in wanted:
        names = {"kubernetes.io/metadata.name": there.namespace}
        if not selects(wanted["namespaceSelector"], names):
            return False
    elif there.namespace != here.namespace:
        return False
    return selects(wanted.get("podSelector", {}), there.labels)
