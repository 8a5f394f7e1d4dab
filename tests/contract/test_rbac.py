"""What the manifests let the controller do is what it does: no right is missing, and none is there for nothing.

Three things are compared: the Roles of k8s/, the list that the launcher gives (jos.launch.kuberay.rights), and what it
really asked of an API server that lets its service account do what these Roles say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kube.fixtures import NAMESPACE, Cluster, cluster
from manifests_lab import Object, combined, config, of_kind

from jos.core.model import Attempt, Job, Pipeline, Status
from jos.launch.kube_api import KubeApi
from jos.launch.kube_profile import KubeProfile, profile_of
from jos.launch.kuberay import KubeRay, rights

__all__ = ["cluster"]

ACCOUNT = "jos-controller"
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


def used(cluster: Cluster, account: str) -> set[Right]:
    """What this service account asked for and was allowed."""
    did = cluster.server.guard.used[f"system:serviceaccount:{NAMESPACE}:{account}"]
    return {(verb, group, f"{plural}/{below}" if below else plural) for verb, group, plural, below in did}


def install(found: Iterable[Object], cluster: Cluster) -> None:
    """The accounts and their rights, in the lab's namespace."""
    plurals = {"ServiceAccount": "serviceaccounts", "Role": "roles", "RoleBinding": "rolebindings"}
    for one in of_kind(found, *plurals):
        here = one | {"metadata": one["metadata"] | {"namespace": NAMESPACE}}
        if "subjects" in here:
            here["subjects"] = [subject | {"namespace": NAMESPACE} for subject in here["subjects"]]
        cluster.objects.create(plurals[one["kind"]], here)


PIPELINE = Pipeline(
    pipeline_key="shout",
    pipeline_version="1.0.0",
    name="Shout",
    worker="lab_workers:Shout",
    default_config={"worker": {"parallelism": 2, "config": {}}},
    config_schema={"worker": {}},
    user_config_schema={"worker": {}},
    inputs={},
    outputs={},
)


def job(number: int, **more: Any) -> Job:
    now, name = datetime.now(UTC), f"job_{number:026d}"
    return Job(
        id=name,
        org_id="org_local",
        name=name,
        pipeline_type="batch",
        pipeline_key="shout",
        pipeline_version="1.0.0",
        parameters={},
        parallelism=2,
        created_at=now,
        updated_at=now,
        queued_at=now,
        **more,
    )


def launcher(cluster: Cluster, profile: KubeProfile, monkeypatch: pytest.MonkeyPatch) -> KubeRay:
    monkeypatch.setenv("KUBECONFIG", str(cluster.as_account(ACCOUNT)))

    async def pipeline_of(_job: Job) -> Pipeline:
        return PIPELINE

    return KubeRay(KubeApi.connect(NAMESPACE), profile, "0123abcd", pipeline_of)


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    while True:
        if await what():
            return
        await asyncio.sleep(0.02)


async def operate(launcher: KubeRay, cluster: Cluster, kueue: bool) -> None:
    """Everything that a controller has its launcher do."""

    async def nothing_left() -> bool:
        return not cluster.objects.list("rayjobs", NAMESPACE) and not await launcher.offered()

    attempt = Attempt(number=1, token="t1", admitted_at=job(1).created_at, indexes=1)
    going = job(1, status=Status.ADMITTED, attempt=attempt)
    await launcher.start(going)
    await until(lambda: _knows(launcher.seen(), launcher.name_of(going)))
    await launcher.stop(launcher.name_of(going))
    if kueue:
        waiting = job(2, queue="default")
        await launcher.offer(waiting, "t2")
        await until(lambda: _knows(launcher.offered(), waiting.id))
        await launcher.offer(waiting.model_copy(update={"priority": 100}), "t2")
        await launcher.withdraw(waiting.id)
    await until(nothing_left)


async def _knows(what: Awaitable[Collection[str]], name: str) -> bool:
    return name in await what


@pytest.mark.parametrize("components", [(), ("kueue",)], ids=["jos", "kueue"])
def test_the_role_grants_what_the_launcher_asks_and_nothing_else(
    components: tuple[str, ...], tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = combined(tmp_path / "manifests", components)
    profile = profile_of(config(found, "kube.yaml"), "kube.yaml").model_copy(update={"namespace": NAMESPACE})
    listed = {(verb, kind.group, kind.plural) for kind, verbs in rights(profile).items() for verb in verbs}
    assert granted(found, ACCOUNT) == listed
    install(found, cluster)

    async def work() -> None:
        live = launcher(cluster, profile, monkeypatch)
        try:
            async with asyncio.timeout(30):
                await operate(live, cluster, bool(components))
        finally:
            await live.close()

    asyncio.run(work())
    assert used(cluster, ACCOUNT) == granted(found, ACCOUNT)


def test_nobody_else_has_any_right(tmp_path: Path) -> None:
    found = combined(tmp_path / "manifests", ("kueue",))
    {one["metadata"]["name"] for one in of_kind(found, "ServiceAccount")}
