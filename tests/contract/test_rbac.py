"""What the manifests let the controller do is what it does: no right is missing, and none is there for nothing.

Three things are compared: the Roles of k8s/, the list that the launcher gives (jos.launch.kuberay.rights), and what it
really asked of an API server that lets its service account do what these Roles say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection
from pathlib import Path

import pytest
from kube.fixtures import NAMESPACE, Cluster, cluster
from kuberay_lab import PIPELINE, job, until
from manifests_lab import combined, config, of_kind
from rights_lab import CONTROLLER, granted, install, used

from jos.core.model import Job, Pipeline
from jos.launch.kube_api import KubeApi
from jos.launch.kube_profile import KubeProfile, profile_of
from jos.launch.kuberay import KubeRay, rights

__all__ = ["cluster"]


def launcher(cluster: Cluster, profile: KubeProfile, monkeypatch: pytest.MonkeyPatch) -> KubeRay:
    monkeypatch.setenv("KUBECONFIG", str(cluster.as_account(CONTROLLER)))

    async def pipeline_of(_job: Job) -> Pipeline:
        return PIPELINE

    return KubeRay(KubeApi.connect(NAMESPACE), profile, "0123abcd", pipeline_of)


async def operate(launcher: KubeRay, cluster: Cluster, kueue: bool) -> None:
    """Everything that a controller has its launcher do."""

    async def nothing_left() -> bool:
        return not cluster.objects.list("rayjobs", NAMESPACE) and not await launcher.offered()

    going = job()
    await launcher.start(going)
    await until(lambda: _knows(launcher.seen(), launcher.name_of(going)))
    await launcher.stop(launcher.name_of(going))
    if kueue:
        waiting = job(2, attempt=None, queue="default")
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
    assert granted(found, CONTROLLER) == listed
    install(found, cluster.objects)

    async def work() -> None:
        live = launcher(cluster, profile, monkeypatch)
        try:
            async with asyncio.timeout(30):
                await operate(live, cluster, bool(components))
        finally:
            await live.close()

    asyncio.run(work())
    assert used(cluster.server, CONTROLLER) == granted(found, CONTROLLER)


def test_nobody_else_has_any_right(tmp_path: Path) -> None:
    found = combined(tmp_path / "manifests", ("kueue",))
    {one["metadata"]["name"] for one in of_kind(found, "ServiceAccount")}
