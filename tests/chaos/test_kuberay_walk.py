"""A random life of a hundred jobs on a fake cluster: they are cancelled, their heads die, RayJobs are deleted by hand,
the API server goes away, forgets and fails, and controllers are killed. Whatever happened: no attempt is driven twice,
every job ends as it should, and nothing is left.

The same lives each time; `make walks` takes longer and new ones.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kube.errors import ApiError
from kube.fixtures import NAMESPACE, Cluster
from kube.samples import queue
from kube_town import Town, in_town, keep_nothing

from jos.core.model import Job, Status
from jos.launch import kube_known
from jos.launch.kube_profile import KubeProfile, profile_of

LONG = int(os.environ.get("JOS_WALKS", "0"))
JOBS, STEPS = 100, 60  # jobs at most; some 35 come in so many steps
SEEDS = [random.randrange(10**6) for _ in range(2)] if LONG else [1]
KUEUE = profile_of(
    {
        "admission": "kueue",
        "kueue": {
            "local_queues": {"default": "lq"},
            "priority_classes": [{"at_least": 0, "name": "low"}, {"at_least": 100, "name": "high"}],
        },
    },
    "test",
)


@dataclass
class Life:
    """One step after the other, each chosen by the seed."""

    town: Town
    pick: random.Random
    jobs: list[Job] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    done: list[str] = field(default_factory=list)  # what was done, for whoever has to understand a failure

    @property
    def steps(self) -> dict[Callable[[], Awaitable[None]], int]:
        return {
            self.come: 60,
            self.cancel: 6,
            self.behead: 10,
            self.crash: 3,
            self.delete: 4,
            self.forget_jobs: 1,
            self.cut: 3,
            self.away: 2,
            self.expire: 2,
            self.fail: 5,
            self.restart: 3,
        }

    async def live(self, steps: int) -> None:
        choices, weights = zip(*self.steps.items(), strict=True)
        for _ in range(steps):
            step = self.pick.choices(choices, weights)[0]
            self.done.append(step.__name__)
            await step()
            await asyncio.sleep(0.02)  # a life, not a jump

    # --- users ---

    async def come(self) -> None:
        if len(self.jobs) < JOBS:
            priority = self.pick.choice((0, 0, 0, 100))
            self.jobs.append(await self.town.submit(self.pick.randrange(1, 12), priority=priority))

    async def cancel(self) -> None:
        if self.jobs:
            job = self.pick.choice(self.jobs)
            if await self.town.cancel(job):
                self.cancelled.add(job.id)

    # --- the cluster ---

    def _rayjob(self) -> str | None:
        names = sorted(one["metadata"]["name"] for one in self.town.rayjobs())
        return self.pick.choice(names) if names else None

    async def behead(self) -> None:
        if name := self._rayjob():
            self.town.kill_head(name)

    async def crash(self) -> None:
        """The head's container dies, and is started again in its pod."""
        heads = self.town.cluster.objects.list("pods", NAMESPACE, {"ray.io/node-type": "head"})
        if heads:
            with suppress(ApiError, LookupError):
                self.town.world.kubelet.crash(NAMESPACE, self.pick.choice(heads)["metadata"]["name"])

    async def delete(self) -> None:
        if name := self._rayjob():
            with suppress(ApiError):
                self.town.cluster.objects.delete("rayjobs", NAMESPACE, name)

    async def forget_jobs(self) -> None:
        """Ray's heads lose their job tables, and KubeRay submits once more."""
        self.town.drivers.lose_table()

    # --- its API server ---

    async def cut(self) -> None:
        await asyncio.to_thread(self.town.cluster.server.drop)

    async def away(self) -> None:
        await asyncio.to_thread(self.town.cluster.server.down)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(self.town.cluster.server.up)

    async def expire(self) -> None:
        self.town.cluster.server.expire()
        await self.cut()

    async def fail(self) -> None:
        self.town.cluster.server.fail(self.pick.randrange(1, 6), self.pick.choice((429, 500, 503)))

    # --- controllers ---

    async def restart(self) -> None:
        await self.town.kill()
        await self.town.store.connection.command("DEL", "jos:lease:controller")  # as if it had run out
        self.town.controller()


@pytest.mark.parametrize("profile", [KubeProfile(), KUEUE], ids=["jos", "kueue"])
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_every_job_ends_right_and_nothing_is_left(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: KubeProfile, seed: int
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    keep_nothing(monkeypatch)
    monkeypatch.setattr(kube_known, "AGAIN", 0.5)
    if profile is KUEUE:
        queue(cluster.objects, **{"cpu": 60, "memory": "1Ti", "ephemeral-storage": "10Ti"})

    async def test(town: Town) -> None:
        town.controller()
        life = Life(town, random.Random(seed))
        try:
            await life.live(LONG or STEPS)
            await check(town, life)
        except BaseException:
            print(f"seed {seed}: {' '.join(life.done)}")
            raise

    in_town(cluster, tmp_path, test, profile)


async def check(town: Town, life: Life) -> None:
    ended = {job.id: job for job in await town.settled()}
    town.sound()
    for job in life.jobs:
        expected = (Status.CANCELLED,) if job.id in life.cancelled else (Status.COMPLETED,)
        assert ended[job.id].status in expected, ended[job.id]
        mine = {attempt: count for (owner, attempt), count in town.made.items() if owner == job.id}
        last = ended[job.id].attempt
        assert len(mine) <= (last.number if last else 0) + 1, mine  # one that was offered may not have come to be
