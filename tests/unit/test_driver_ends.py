"""How an attempt ends, by what the brain says."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from jos.core.commands import Expire
from jos.core.model import Level, Pipeline
from jos.core.stimuli import NoRoom
from jos.driver.driver import Driver, Ending, Outcome


def driver_of(store: Any = None, run: float | None = None) -> Driver:
    pipeline = Pipeline.model_construct(timeouts=SimpleNamespace(drain=30.0, run=run))
    spec: Any = SimpleNamespace(id="job_1", org_id="org_1", pipeline=pipeline)
    storage: Any = None
    return Driver(spec, "tok", storage, store, storage, granted=1)


def test_an_attempt_that_found_no_room_drains_and_says_why() -> None:
    async def end() -> tuple[Outcome, list[Any]]:
        driver = driver_of()
        told: list[Any] = []
        mirror: Any = SimpleNamespace(event=lambda *what: told.append(what))
        driver.mirror = mirror
        driver._obey([NoRoom("no node has had room for an index for 300 s")])
        return await driver.outcome, told

    outcome, told = asyncio.run(end())
    assert (outcome.ending, outcome.failure) == (Ending.DRAINED, None)
    words = "no node has had room for an index for 300 s; the job goes back into the queue"
    assert told == [("index.waiting", words, Level.WARN)]


def test_a_fault_beside_the_work_ends_the_attempt_and_is_told() -> None:
    class Broken:
        async def transact(self, *what: Any) -> None:
            raise RuntimeError("no such luck")

    async def end() -> Outcome:
        driver = driver_of(Broken())
        driver._say("Started")
        async with asyncio.timeout(10):
            return await driver.outcome

    outcome = asyncio.run(end())
    assert (outcome.ending, outcome.retryable) == (Ending.FAILED, True)
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.message) == ("internal_error", "RuntimeError: no such luck")


def test_the_run_timeout_counts_from_the_first_index_that_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[Any] = []

    class Store:
        async def transact(self, job_id: str, command: Any, now: Any) -> None:
            commands.append(command)

    async def tick(driver: Driver, times: int) -> None:
        left = times

        async def sleep(_seconds: float) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise asyncio.CancelledError

        monkeypatch.setattr("jos.driver.driver.asyncio.sleep", sleep)
        with pytest.raises(asyncio.CancelledError):
            await driver._ticks()

    async def work() -> None:
        driver = driver_of(Store(), run=5.0)
        driver.began = time.monotonic() - 100
        await tick(driver, 3)
        assert commands == []  # images were pulled all that time
        driver.runs_since = time.monotonic() - 6
        await tick(driver, 1)
        assert commands == [Expire("run")]

    asyncio.run(work())
