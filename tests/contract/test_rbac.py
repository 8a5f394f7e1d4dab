"""What the manifests let the controller do is what it does: no right is missing, and none is there for nothing.

Three things are compared: the Roles of k8s/, the list that the launcher gives (jos.launch.kuberay.rights), and what it
really asked of an API server that lets its service account do what these Roles say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kube.fixtures import NAMESPACE, Cluster, cluster
from manifests_lab import combined, config, of_kind
from rights_lab import CONTROLLER, granted, install, used

from jos.core.model import Attempt, Job, Pipeline, Status
from jos.launch.kube_api import KubeApi
from jos.launch.kube_profile import KubeProfile, profile_of
from jos.launch.kuberay import KubeRay, rights

__all__ = ["cluster"]

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
    monkeypatch.setenv("KUBECONFIG", str(cluster.as_account(CONTROLLER)))

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
