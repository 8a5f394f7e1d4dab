"""Warm drivers: which of them wait for a job, and the orders that they are given.

Nothing here is a fact about a job: an order that is lost or never taken costs nothing, since the controller gives
another, and the command Taken lets one process drive an attempt. All times are the server's own.
May import: jos.store.connection. Tests: tests/integration/test_driver_warm.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import orjson

from jos.store.connection import Connection

BEAT_SECONDS = 1.0  # how often an idle driver says so
FRESH_SECONDS = 3.0  # one that was silent for longer is not idle but gone
TAKING_SECONDS = 3.0  # so long an order counts as being taken
WAITING_SECONDS = 10.0  # so long it lies in an inbox

_IDLE, _KNOWN = "jos:{drivers}:idle", "jos:{drivers}:known"
_INBOX, _ORDERED = "jos:{drivers}:inbox:", "jos:{drivers}:ordered:"


@dataclass(frozen=True)
class Order:
    """What a warm driver is to do: an attempt, or with `job_id` empty: to leave. `version`: the JOS that asks; a
    driver that is another one leaves too."""

    job_id: str
    token: str
    version: str = ""


class Drivers:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # --- called by a driver ---

    async def register(self, name: str) -> None:
        """It is up: from now on it counts as idle or busy, no longer as starting."""
        await self._connection.command("DEL", _INBOX + name)
        await self.beat(name)

    async def beat(self, name: str) -> None:
        """It is up, and idle unless an order waits for it. That it is up is said each time: a Redis that was emptied,
        or an older one that was restored, does not know it."""
        await self._connection.script("idle", [_IDLE, _INBOX + name, _KNOWN], [name])

    async def next_order(self, name: str, seconds: float) -> Order | None:
        """Waits for one. It is gone from the inbox then: whoever asks must carry it out or let it go."""
        found = await self._connection.command("BLPOP", _INBOX + name, f"{seconds:g}")
        return None if found is None else Order(**orjson.loads(found[1]))

    async def busy(self, name: str) -> None:
        """It is not idle (any more)."""
        await self._connection.command("ZREM", _IDLE, name)

    async def leave(self, name: str) -> None:
        await self._connection.commands([("ZREM", _IDLE, name), ("SREM", _KNOWN, name), ("DEL", _INBOX + name)])

    # --- called by a launcher ---

    async def give(self, order: Order) -> str | None:
        """Gives it to an idle driver: its name, or None when there is none. Within TAKING_SECONDS the same order is
        not given twice: then the name of the driver that has it."""
        name: bytes = await self._connection.script(
            "order",
            [_IDLE, f"{_ORDERED}{order.job_id}:{order.token}"],
            [
                orjson.dumps(asdict(order)),
                round(FRESH_SECONDS * 1000),
                round(TAKING_SECONDS * 1000),
                round(WAITING_SECONDS * 1000),
                _INBOX,
            ],
        )
        return name.decode() or None

    async def dismiss(self) -> str | None:
        """Asks an idle driver to leave; its name."""
        name = await self.give(Order("", ""))
        await self._connection.command("DEL", f"{_ORDERED}:")  # the next one may be asked at once
        return name

    async def idle(self) -> list[str]:
        """Those that wait for an order now."""
        seconds, micros = await self._connection.command("TIME")
        oldest = int(seconds) * 1000 + int(micros) // 1000 - round(FRESH_SECONDS * 1000)
        return [n.decode() for n in await self._connection.command("ZRANGEBYSCORE", _IDLE, oldest, "+inf")]

    async def known(self) -> set[str]:
        """Those that came up and have not left, as far as they could say so."""
        return {n.decode() for n in await self._connection.command("SMEMBERS", _KNOWN)}

    async def forget(self, names: set[str]) -> None:
        """Drivers whose process is known to be gone."""
        if names:
            await self._connection.commands([("ZREM", _IDLE, *names), ("SREM", _KNOWN, *names)])
