"""What a job costs the API server, from its making to its deletion, with KubeRay's stand-in at work."""

from __future__ import annotations

from pathlib import Path

import pytest
from kube.fixtures import Cluster
from kube_town import Town, in_town, keep_nothing

from jos.core.model import Status

JOBS = 50


def test_fifty_jobs_cost_two_calls_each_and_a_dead_head_two_more(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    keep_nothing(monkeypatch)

    async def test(town: Town) -> None:
        town.controller()
        jobs = [await town.submit() for _ in range(JOBS - 1)]
        lost = await town.submit(work=None)
        assert town.kill_head(await town.running_rayjob(lost))
        town.drivers.work[lost.id] = 3
        for job in await town.settled():
            assert job.status is Status.COMPLETED
        town.sound()
        calls = town.launcher.api.calls
        assert calls["patch rayjobs"] == len(jobs) + 2
        assert calls["delete rayjobs"] == len(jobs) + 2
        rest = calls.total() - calls["patch rayjobs"] - calls["delete rayjobs"]
        assert rest <= 15, calls  # lists and watches, which are for all
        print(f"{calls.total() / (JOBS + 1):.2f} calls a RayJob: {dict(calls)}")

    in_town(cluster, tmp_path, test)
