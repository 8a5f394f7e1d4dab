"""The controller is killed between any two of its steps, before or after the step took effect; the next one heals what
it left. And a leader that was paused past its lease cannot admit anything any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from controller_lab import PACES, House, at_home, now, until
from fake_launcher import Script
from valkey_lab import Valkey

from jos.controller.controller import Controller
from jos.core.commands import Admit
from jos.core.model import Status
from jos.core.queues import QueueConfig
from jos.store.lease import LeaseLost


def home(valkey: Valkey) -> Path:
    return valkey.data_dir.parent


class CrashPoint:
    """Counts the steps of a controller that others can see, and kills it at one of them."""

    def __init__(self, house: House, at: int, after: bool) -> None:
        self.house, self.at, self.after = house, at, after
        self.steps: list[str] = []
        self.reached = asyncio.Event()
        self.controller: Controller | None = None

    def dead(self) -> bool:
        return self.reached.is_set()

    def around(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def step(*arguments: Any, **options: Any) -> Any:
            if self.dead():
                raise asyncio.CancelledError  # a dead process does nothing more
            self.steps.append(name)
            mine = len(self.steps) == self.at
            if mine and not self.after:
                return await self.die()
            result = await call(*arguments, **options)
            return await self.die() if mine else result

        return step

    async def die(self) -> None:
        self.reached.set()
        raise asyncio.CancelledError


class CrashingStore:
    """The store of one controller: its writes are steps."""

    def __init__(self, point: CrashPoint) -> None:
        self._store = point.house.store
        self.transact = point.around("transact", self._store.transact)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class CrashingLauncher:
    def __init__(self, point: CrashPoint) -> None:
        self._launcher = point.house.launcher
        self.start = point.around("start", self._launcher.start)
        self.stop = point.around("stop", self._launcher.stop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._launcher, name)


async def eventful(house: House) -> None:
    """A preemption, a stubborn driver, a driver that dies, a cancel on the way: about 20 steps of the controller."""
    scripts = {
        ("low", 1): Script(work=None),
        ("dies", 1): Script(takes=False),
        ("stubborn", 1): Script(work=None, drains=False),
    }
    house.launcher.scripts = lambda job, number: scripts.get((job.name, number), Script(work=3))
    low = await house.submit(name="low", priority=0)
    dies = await house.submit(name="dies", priority=50)
    stubborn = await house.reaches(await house.submit(name="stubborn", priority=50), Status.RUNNING)
    await house.cancel(stubborn)
    await until(lambda: _true(f"jos-{dies.id}-1" in house.launcher.drivers), what="dies was started")
    house.launcher.kill(f"jos-{dies.id}-1")
    high = [await house.submit(name="high", priority=100) for _ in range(2)]
    for job in (*high, dies, low):
        scripts.pop(("low", 1), None)
        for driver in house.launcher.drivers.values():
            if driver.job_id == low.id:
                driver.script.work = 3
        await house.reaches(job, Status.COMPLETED, seconds=20)
    await house.free()
    assert (await house.store.get(stubborn.id)).status is Status.CANCELLED
    assert len(set(house.launcher.taken)) == len(house.launcher.taken)


async def _true(value: object) -> object:
    return value


def steps_of_a_quiet_life(folder: Path) -> int:
    counted: list[int] = []

    async def test(house: House) -> None:
        point = CrashPoint(house, at=0, after=False)
        house.controller(store=CrashingStore(point), launcher=CrashingLauncher(point))
        await eventful(house)
        counted.append(len(point.steps))

    at_home(folder, test, cpu=3)
    return counted[0]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 23))
def test_killed_at_any_step_the_next_controller_heals(valkey: Valkey, at: int, after: bool) -> None:
    async def test(house: House) -> None:
        point = CrashPoint(house, at, after)
        first = house.controller(store=CrashingStore(point), launcher=CrashingLauncher(point))
        life = asyncio.create_task(eventful(house))
        died = asyncio.create_task(point.reached.wait())
        await asyncio.wait({life, died}, return_when=asyncio.FIRST_COMPLETED)
        if point.dead():
            await house.kill(first)
            house.controller()
        died.cancel()
        await life

    at_home(home(valkey), test, cpu=3)


def test_the_eventful_life_has_about_as_many_steps_as_are_killed(valkey: Valkey) -> None:
    assert 16 <= steps_of_a_quiet_life(home(valkey)) <= 30


def test_a_leader_that_was_paused_past_its_lease_admits_nothing(valkey: Valkey) -> None:
    """Two jobs, capacity for one. The paused leader saw both waiting, and wakes up when the other one has admitted."""

    async def test(house: House) -> None:
        house.launcher.scripts = lambda job, number: Script(work=None)
        paused = house.controller()
        await until(lambda: _true(paused.leadership.held))
        view = await _seen_waiting(house, paused)
        await house.kill(paused)  # its tasks stand still; the lease runs out
        second = house.controller()
        await until(lambda: _true(second.leadership.held))
        await until(lambda: _one_runs(house, view))
        [waits] = [j for j in (await house.store.get_many(view)).values() if j.status is Status.PENDING]
        lease = paused.leadership.lease
        with pytest.raises(LeaseLost):
            await house.store.transact(waits.id, Admit("late", indexes=1), now(), lease=lease)
        assert await _held(house, view) == 1

    at_home(home(valkey), test, cpu=1)


async def _seen_waiting(house: House, controller: Controller) -> list[str]:
    """Two jobs that the controller knows, and does not admit since its cluster is away."""
    house.launcher.reachable = False
    await asyncio.sleep(5 * PACES.look)
    jobs = [await house.submit() for _ in range(2)]
    await until(lambda: _true(len(controller.view.jobs) == 2))
    house.launcher.reachable = True
    return [job.id for job in jobs]


async def _held(house: House, ids: list[str]) -> int:
    return sum(job.holds_capacity for job in (await house.store.get_many(ids)).values())


async def _one_runs(house: House, ids: list[str]) -> bool:
    return any(job.status is Status.RUNNING for job in (await house.store.get_many(ids)).values())


def test_two_controllers_whose_leases_run_out_all_the_time_never_admit_too_much(valkey: Valkey) -> None:
    """The renewal of whoever leads is lost again and again, while it goes on believing."""

    async def test(house: House) -> None:
        house.config = QueueConfig.of({"queues": {"default": {"quota": {"cpu": 3}}}})
        house.launcher.scripts = lambda job, number: Script(work=4)
        controllers = [house.controller() for _ in range(2)]
        jobs = [await house.submit() for _ in range(30)]
        most = done = looks = 0
        while done < len(jobs):
            found = (await house.store.get_many([job.id for job in jobs])).values()
            most = max(most, sum(job.holds_capacity for job in found))
            done = sum(job.status is Status.COMPLETED for job in found)
            if (looks := looks + 1) % 20 == 0:
                await house.store.connection.command("DEL", controllers[0].leadership.lease.key)
            await asyncio.sleep(0.01)
        assert most == 3
        assert len(set(house.launcher.taken)) == len(house.launcher.taken) == len(jobs)
        await house.free()

    at_home(home(valkey), test, cpu=16)
