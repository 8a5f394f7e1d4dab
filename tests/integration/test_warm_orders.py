"""A warm driver and its orders, without a cluster."""

from __future__ import annotations

import asyncio
import faulthandler
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from controller_lab import House, at_home
from valkey_lab import Valkey

from jos import __version__
from jos.core.commands import Admit, DriverGone, Taken
from jos.core.errors import StoreUnavailable
from jos.driver import warm as warm_module
from jos.driver.attempts import Leave
from jos.driver.driver import Ending, Outcome
from jos.driver.warm import Left, WarmDriver
from jos.store.drivers import Drivers, Order


def home(valkey: Valkey) -> Path:
    return valkey.data_dir.parent


def warm(house: House) -> WarmDriver:
    wired: Any = SimpleNamespace(store=house.store)
    return WarmDriver("jos-warm-1", wired, Leave())


def test_it_takes_no_next_order_while_the_record_believes_it_to_be_driving(valkey: Valkey) -> None:
    """Else the controller would stop it for the silence of the first job, in the middle of the next one."""

    async def test(house: House) -> None:
        driver, job = warm(house), await house.submit()
        await house.say(job, Admit("tok", indexes=1))
        order = Order(job.id, "tok")
        assert await driver._is_over(order)  # another process was to take it
        await house.say(job, Taken("tok", driver.name, "host", 1))
        assert not await driver._is_over(order)
        await house.say(job, DriverGone("tok"))
        assert await driver._is_over(order)
        await house.cancel(job)
        await house.store.delete(job.id)
        assert await driver._is_over(order)

    at_home(home(valkey), test)


def test_a_store_that_refuses_at_once_is_not_asked_without_a_pause(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(house: House) -> None:
        asked = 0

        async def full(self: Drivers, name: str) -> None:
            nonlocal asked
            asked += 1
            raise StoreUnavailable("It reached its maxmemory.")

        monkeypatch.setattr(Drivers, "beat", full)
        driver = warm(house)
        serving = asyncio.create_task(driver._serve())
        await house.submit()  # a few round trips to Redis
        await house.submit()
        assert asked == 1
        driver.leave.event.set()
        await serving

    at_home(home(valkey), test)


def test_an_idle_driver_is_known_again_to_a_store_that_lost_its_memory(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        drivers = Drivers(house.store.connection)
        await drivers.register("jos-warm-1")
        await house.store.connection.command("FLUSHALL")
        assert await drivers.known() == set()
        await drivers.beat("jos-warm-1")
        assert (await drivers.known(), await drivers.idle()) == ({"jos-warm-1"}, ["jos-warm-1"])

    at_home(home(valkey), test)


HANGS = """
import asyncio, time
from types import SimpleNamespace
from jos.driver import warm

async def hang(self):
    time.sleep(60)

warm.HANG_SECONDS = 0.2
warm.WarmDriver._next_order = hang
wired = SimpleNamespace(store=SimpleNamespace(connection=None))
asyncio.run(warm.WarmDriver("jos-warm-1", wired, warm.Leave())._serve())
"""


def test_a_driver_that_hangs_between_jobs_ends_and_says_where_it_hung() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 1
    assert "in hang" in ended.stderr


def test_a_driver_is_not_timed_while_it_drives_nor_once_it_has_left(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(house: House) -> None:
        steps: list[str] = []
        monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: steps.append("timed"))
        monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: steps.append("not timed"))

        async def drive(*_: Any, **__: Any) -> Outcome:
            steps.append("drives")
            return Outcome(Ending.COMPLETED)

        monkeypatch.setattr(warm_module, "run_admitted", drive)
        driver, job = warm(house), await house.submit()
        driver.most_jobs = 1
        await driver.drivers.register(driver.name)
        await driver.drivers.give(Order(job.id, "tok", __version__))
        assert await driver._serve() is Left.SERVED
        assert steps == ["timed", "not timed", "drives", "timed", "not timed"]

    at_home(home(valkey), test)
