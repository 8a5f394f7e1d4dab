"""Rights in a cluster: what the manifests of k8s/ grant to an account, and what it asked for and was allowed.

Tests: tests/contract/test_rbac.py, tests/e2e/test_kuberay_service.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from kube.fixtures import NAMESPACE
from kube.objects import Objects
from kube.server import Server
from manifests_lab import Object, of_kind

CONTROLLER = "jos-controller"
Right = tuple[str, str, str]  # verb, API group, resource


def granted(found: Iterable[Object], account: str) -> set[Right]:
    """By all Roles that are bound to the account. There is no wildcard and no right in other namespaces."""
    assert of_kind(found, "ClusterRole", "ClusterRoleBinding") == []
    bound = {
        one["roleRef"]["name"]
        for one in of_kind(found, "RoleBinding")
        if account in [subject["name"] for subject in one["subjects"]]
    }
    rules = [rule for one in of_kind(found, "Role") if one["metadata"]["name"] in bound for rule in one["rules"]]
    found_rights = {
        (verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert "*" not in {part for right in found_rights for part in right}
    return found_rights


def used(server: Server, account: str) -> set[Right]:
    """What this service account asked for and was allowed."""
    did = server.guard.used[f"system:serviceaccount:{NAMESPACE}:{account}"]
    return {(verb, group, f"{plural}/{below}" if below else plural) for verb, group, plural, below in did}


def install(found: Iterable[Object], objects: Objects) -> None:
    """The accounts and their rights, in the lab's namespace."""
    plurals = {"ServiceAccount": "serviceaccounts", "Role": "roles", "RoleBinding": "rolebindings"}
    for one in of_kind(found, *plurals):
        here = one | {"metadata": one["metadata"] | {"namespace": NAMESPACE}}
        if "subjects" in here:
            here["subjects"] = [subject | {"namespace": NAMESPACE} for subject in here["subjects"]]
        objects.create(plurals[one["kind"]], here)
