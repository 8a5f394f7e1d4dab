"""A group on a real Ray: ranks in lock-step, what they come to, and what is left of them when one dies."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from jobs_lab import Head, Lab, alive, until

from jos.core.ledger import STEPS, Commit
from jos.core.model import JobSpec
from jos.core.plan import SpanWork
from jos.driver import cluster
from jos.driver.index import Index
from jos.driver.messages import IndexConfig, LeaseReply
from jos.registry import Registry

LAB = Path(__file__).parents[1] / "lab"
FOLDER = "org/jobs/job/"
SPAN = 10


@pytest.fixture(scope="module")
def on_ray(ray: Head) -> Iterator[None]:
    cluster.connect(ray.address)
    yield
    cluster.disconnect()


@dataclass
class Running:
    """A group as the pool has it, and what became of its leases."""

    folder: Path
    config: IndexConfig
    actor: Any
    commits: list[Commit] = field(default_factory=list)

    async def lease(self, number: int) -> LeaseReply:
        """One span of steps, from the state before it if that is stored."""
        before = [c.state.key for c in self.commits if c.end == number * SPAN and c.state]
        work = SpanWork(STEPS, number * SPAN, (number + 1) * SPAN, state=before[0] if before else None)
        reply: LeaseReply = await self.actor.run.remote(number, (work,))
        self.commits += reply.commits
        return reply

    def weights(self) -> list[float]:
        last = self.commits[-1].state
        assert last is not None
        return list(orjson.loads((self.folder / "storage" / FOLDER / last.key).read_bytes())[0])

    def traced(self, rank: int, step: int) -> int:
        return traced(self.folder / "trace", rank, step)


def traced(trace: Path, rank: int, step: int) -> int:
    """The process of a rank that is at this step or was; waits for it."""

    def look() -> int:
        lines = [line.split() for line in trace.read_text().splitlines()] if trace.exists() else []
        return next((int(words[1]) for words in lines if words[::2] == [str(rank), str(step)]), 0)

    return int(until(look, 120))  # three processes import torch on the way


def settings(folder: Path, **config: Any) -> dict[str, Any]:
    template = Registry(extra=[LAB / "pipelines"]).get("train-together")
    return template.default_config["worker"]["config"] | {"trace": str(folder / "trace")} | config


def config_of(folder: Path, **config: Any) -> IndexConfig:
    template = Registry(extra=[LAB / "pipelines"]).get("train-together")
    parameters = {"worker": {"parallelism": 2, "config": settings(folder, **config)}}
    now = datetime(2026, 1, 1, tzinfo=UTC)
    spec = JobSpec(
        id="job", org_id="org", name="n", pipeline=template, parameters=parameters, inputs=[], created_at=now
    )
    storage = str(folder / "storage")
    return IndexConfig(spec.model_dump_json().encode(), storage, FOLDER, "token", 0, 1, "cpu", 1, (str(LAB),))


def start(config: IndexConfig, folder: Path, size: int = 2) -> Running:
    import ray

    from jos.driver.group import Group

    actor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=100)(Group).remote(config, size)
    return Running(folder, config, actor)


def one_index(folder: Path, spans: int, **config: Any) -> list[float]:
    """What a single index comes to."""
    index = Index(config_of(folder, **config))

    async def go() -> list[LeaseReply]:
        await index.ready()
        return [await index.run(n, (SpanWork(STEPS, n * SPAN, (n + 1) * SPAN),)) for n in range(spans)]

    [*_, last] = asyncio.run(go())
    state = last.commits[0].state
    assert state is not None
    return list(orjson.loads((folder / "storage" / FOLDER / state.key).read_bytes())[0])


def close(first: list[float], second: list[float]) -> bool:
    return len(first) == len(second) == 8 and all(abs(a - b) < 1e-12 for a, b in zip(first, second, strict=True))


def nothing_is_left(pids: list[int]) -> None:
    import ray

    from jos.driver.rank import release_leftovers

    until(lambda: not any(map(alive, pids)), 15)
    until(release_leftovers, 15)
    until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], 15)


def test_two_ranks_come_to_the_weights_of_one_and_stop_at_the_end_of_a_span(tmp_path: Path, on_ray: None) -> None:
    import ray

    wanted = one_index(tmp_path / "alone", 3)

    async def go() -> None:
        group = start(config_of(tmp_path, seconds=0.02), tmp_path)
        _, ready = await asyncio.gather(group.actor.placed.remote(), group.actor.ready.remote())
        assert (ready.error, ready.trainer, ready.progress_kind) == (None, True, "training")
        early = await group.lease(1)
        assert [(f.work.start, f.dropped) for f in early.faults] == [(10, True)]  # nobody stands there
        replies = await asyncio.gather(group.lease(0), group.lease(1))
        assert [(c.start, c.end, c.metrics["ranks"]) for r in replies for c in r.commits] == [(0, 10, 2), (10, 20, 2)]
        in_hand = asyncio.gather(group.lease(2), group.lease(3))
        other = await asyncio.to_thread(group.traced, 1, 2 * SPAN + 3)
        await group.actor.stop.remote(30.0)
        finished, dropped = await in_hand
        assert [(c.start, c.end) for c in finished.commits] == [(20, 30)]
        assert [(f.work.start, f.dropped) for f in dropped.faults] == [(30, True)]
        assert close(group.weights(), wanted)
        ray.kill(group.actor)
        nothing_is_left([ready.pid, other])

    asyncio.run(go())


@pytest.mark.long
def test_a_training_by_two_indexes_survives_the_death_of_one(lab: Lab) -> None:
    alone = lab.submit("train-together", group=1, parallelism=1)
    lab.complete(alone)
    trace = lab.folder / "trace"
    job_id = lab.submit("train-together", trace=str(trace), seconds=0.02)
    driver = lab.resume(job_id)
    os.kill(traced(trace, 1, 2 * SPAN + 3), signal.SIGKILL)
    ended = driver.end(180)
    assert ended.code == 0, ended.said[-6000:]
    [lost] = lab.events(job_id, "index.lost")
    assert re.search(r"index 0 was lost: rank 1 of 2 \(process \d+ on .+\) died", lost.message)
    assert lab.committed(job_id) == {STEPS: 6 * SPAN}
    assert close(weights(lab, job_id), weights(lab, alone))
    assert {c.metrics["ranks"] for e in lab.log(job_id) for c in e.commits} == {2}


def weights(lab: Lab, job_id: str) -> list[float]:
    last = lab.ledger(job_id).of(STEPS).state
    assert last is not None
    assert last.state is not None
    return list(orjson.loads(lab.engine.storage.read(lab.folder_of(job_id) + last.state.key))[0])
