"""How an attempt ends, by what the brain says."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from jos.core.model import Level, Pipeline
from jos.core.stimuli import NoRoom
from jos.driver.driver import Driver, Ending, Outcome


def test_an_attempt_that_found_no_room_drains_and_says_why() -> None:
    async def end() -> tuple[Outcome, list[Any]]:
        pipeline = Pipeline.model_construct(timeouts=SimpleNamespace(drain=30.0))
        spec: Any = SimpleNamespace(id="job_1", org_id="org_1", pipeline=pipeline)
        storage: Any = None
        driver = Driver(spec, "tok", storage, storage, storage, granted=1)
        told: list[Any] = []
        mirror: Any = SimpleNamespace(event=lambda *what: told.append(what))
        driver.mirror = mirror
        driver._obey([NoRoom("no node has had room for an index for 300 s")])
        return await driver.outcome, told

    outcome, told = asyncio.run(end())
    assert (outcome.ending, outcome.failure) == (Ending.DRAINED, None)
    words = "no node has had room for an index for 300 s; the job goes back into the queue"
    assert told == [("index.waiting", words, Level.WARN)]
