"""Who leads, and that a leader whose lease is over leads no more."""

from __future__ import annotations

import asyncio
from pathlib import Path

from controller_lab import House, at_home
from valkey_lab import Valkey

from jos.controller.leadership import Leadership


def home(valkey: Valkey) -> Path:
    return valkey.data_dir.parent


def test_a_leader_that_was_paused_past_its_lease_does_not_slip_into_a_new_one(valkey: Valkey) -> None:
    """Others may have led in between: what it planned before the pause must not be written under a fresh lease."""

    async def test(house: House) -> None:
        stop = asyncio.Event()
        paused = Leadership(house.store.connection, "paused", ttl=0.2)
        assert await paused.gain(stop)
        token = paused.lease.token
        other = Leadership(house.store.connection, "other", ttl=0.2)
        assert await other.gain(stop)  # the first did not renew
        await other.release()
        await paused.keep(stop)  # returns: it is over
        assert not paused.held
        assert paused.lease.token == token
        assert not await paused.lease.renew()

    at_home(home(valkey), test)


def test_a_leader_that_was_paused_goes_on_when_nobody_led_since(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        stop = asyncio.Event()
        one = Leadership(house.store.connection, "one", ttl=5)
        assert await one.gain(stop)
        one._until = 0.0  # its own clock says that it may be over; Redis knows better
        assert await one._ask(one.lease.renew)
        assert one.held
        await one.release()

    at_home(home(valkey), test)
