"""A warm driver and its orders, without a cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from controller_lab import House, at_home
from valkey_lab import Valkey

from jos.core.commands import Admit, DriverGone, Taken
from jos.core.errors import StoreUnavailable
from jos.driver.attempts import Leave
from jos.driver.warm import WarmDriver
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
