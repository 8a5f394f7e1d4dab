"""A group on a real Ray: ranks in lock-step, what they come to, and what is left of them when one dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from jobs_lab import Head, alive, until

from jos.core.ledger import STEPS, Commit
from jos.core.model import JobSpec
from jos.core.plan import SpanWork
from jos.driver import cluster
from jos.driver.index import Index
from jos.driver.messages import IndexConfig, LeaseReply, Ready
from jos.registry import Registry
from jos.testing import run_worker

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

    async def lease(self, number: int, *, from_state: bool = True) -> LeaseReply:
        """One span of steps, from the state before it if that is stored."""
        before = [c.state.key for c in self.commits if c.end == number * SPAN and c.state]
        state = before[0] if before and from_state else None
        work = SpanWork(STEPS, number * SPAN, (number + 1) * SPAN, state=state)
        reply: LeaseReply = await self.actor.run.remote(number, (work,))
        self.commits += reply.commits
        return reply

    def weights(self) -> list[float]:
        last = self.commits[-1].state
        assert last is not None
        return list(orjson.loads((self.folder / "storage" / FOLDER / last.key).read_bytes())[0])

    def traced(self, rank: int, step: int) -> int:
        """The process of a rank that is at this step or was; waits for it."""
        trace = self.folder / "trace"

        def look() -> int:
            lines = [line.split() for line in trace.read_text().splitlines()] if trace.exists() else []
            return next((int(pid) for r, pid, n in lines if (int(r), int(n)) == (rank, step)), 0)

        return int(until(look))


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
        return [
            await index.run(n, (SpanWork(STEPS, n * SPAN, (n + 1) * SPAN),))
            for n in range(spans)
        ]

    [*_, last] = asyncio.run(go())
    state = last.commits[0].state
    assert state is not None
    return list(orjson.loads((folder / "storage" / FOLDER / state.key).read_bytes())[0])


def kill(running: Running) -> None:
    import ray

    ray.kill(running.actor)


def close(first: list[float], second: list[float]) -> bool:
    return len(first) == len(second) == 8 and all(abs(a - b) < 1e-12 for a, b in zip(first, second, strict=True))


def test_two_ranks_come_to_the_weights_of_one_and_go_on_after_one_was_killed_in_a_span(
    tmp_path: Path, on_ray: None
) -> None:
    from ray.exceptions import RayError

    wanted = one_index(tmp_path / "alone", 4)

    async def go() -> None:
        began = time.monotonic()
        first = start(config_of(tmp_path, seconds=0.02), tmp_path)
        _, ready = await asyncio.gather(first.actor.placed.remote(), first.actor.ready.remote())
        print("up after", time.monotonic() - began)
        assert (ready.error, ready.trainer, ready.progress_kind) == (None, True, "training")
        replies = await asyncio.gather(first.lease(0, from_state=False), first.lease(1, from_state=False))
        assert [len(r.commits) for r in replies] == [1, 1], replies
        in_hand = asyncio.ensure_future(first.lease(2))
        victim = await asyncio.to_thread(first.traced, 1, 2 * SPAN + 3)
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(RayError, match="rank 1 of 2 .* died"):
            await in_hand
        print("told after", time.monotonic() - began)
        kill(first)
        pids = [first.traced(0, 0), ready.pid]
        second = start(replace(first.config, life=2), tmp_path)
        second.commits = first.commits
        again = await second.actor.ready.remote()
        assert not any(map(alive, pids))
        for n in (2, 3):
            await second.lease(n)
        assert [(c.start, c.end) for c in second.commits] == [(0, 10), (10, 20), (20, 30), (30, 40)]
        assert second.commits[-1].metrics["ranks"] == 2
        assert close(second.weights(), wanted)
        kill(second)

    asyncio.run(go())
