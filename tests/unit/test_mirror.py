"""What the driver tells, against a store that only listens."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from jos.core.errors import NotFound
from jos.core.ledger import Ledger
from jos.core.model import JobSpec, Pipeline, Status
from jos.driver.mirror import Mirror
from jos.store.records import Mirror as Batch
from jos.store.records import MirrorReply

PIPELINE = Pipeline(
    pipeline_key="noop",
    pipeline_version="1.0.0",
    name="Noop",
    worker="noop:Noop",
    default_config={"worker": {"parallelism": 1, "config": {}}},
    config_schema={"worker": {"type": "object"}},
    user_config_schema={"worker": {"type": "object"}},
    inputs={},
    outputs={},
)
SPEC = JobSpec(
    id="job_1",
    org_id="org_a",
    name="a job",
    pipeline=PIPELINE,
    parameters={"worker": {"parallelism": 1, "config": {}}},
    inputs=[],
    created_at=datetime(2026, 4, 14, tzinfo=UTC),
)


class SlowStore:
    """Takes a batch if its number is new, as the real one does; each reply takes its time."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.seq = 0
        self.told: list[str] = []

    async def mirror(self, _job_id: str, batch: Batch) -> MirrorReply:
        applied = batch.seq > self.seq
        if applied:
            self.seq = batch.seq
            self.told += [event.message for event in batch.events]
        for _ in range(self.chance.randrange(6)):
            await asyncio.sleep(0)
        return MirrorReply(Status.RUNNING, 1, self.seq, applied)


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_lost_when_heartbeat_and_last_word_tell_at_once(seed: int) -> None:
    async def test() -> None:
        store: Any = SlowStore(seed)
        mirror = Mirror(store, SPEC, "token", Ledger(), {}, heard=print, stale=print)
        messages = [str(n) for n in range(40)]
        tellers = []
        for message in messages:
            mirror.event("index.started", message)
            tellers.append(asyncio.create_task(mirror.flush()))
            for _ in range(int(message) % 4):
                await asyncio.sleep(0)
        await asyncio.gather(*tellers)
        assert store.told == messages

    asyncio.run(test())


@pytest.mark.parametrize("deleted", [True, False])
def test_the_driver_of_a_deleted_job_leaves_and_that_of_a_lost_redis_goes_on(deleted: bool) -> None:
    async def test() -> None:
        asked, stale = asyncio.Event(), asyncio.Event()

        async def mirror(_job_id: str, _batch: Batch) -> MirrorReply:
            raise NotFound("There is no job job_1.")

        async def command(*parts: object) -> int:
            assert parts == ("EXISTS", "jos:deleted:job_1")
            asked.set()
            return int(deleted)

        store: Any = SimpleNamespace(mirror=mirror, connection=SimpleNamespace(command=command))
        teller = Mirror(store, SPEC, "token", Ledger(), {}, heard=print, stale=stale.set)
        beating = asyncio.create_task(teller.beat())
        await asyncio.wait_for(asked.wait(), 5)
        if deleted:
            await asyncio.wait_for(beating, 5)
        assert stale.is_set() is deleted
        assert beating.done() is deleted
        beating.cancel()

    asyncio.run(test())
