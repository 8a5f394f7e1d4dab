"""Of several controllers one leads. The lease in Redis decides; every write that counts carries it, so a leader that
was paused and believes itself one still is refused.

May import: jos.core.errors, jos.store. Tests: tests/integration/test_controller_lease.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import structlog

from jos.controller.loops import pause
from jos.core.errors import StoreUnavailable
from jos.store.connection import Connection
from jos.store.lease import Lease

NAME = "controller"

log = structlog.get_logger()


class Leadership:
    def __init__(self, connection: Connection, holder: str, ttl: float = 5.0) -> None:
        self.lease = Lease(connection, NAME, holder, ttl)
        self.ttl = ttl
        self.asked = time.monotonic()  # the latest answer, or the latest that none came
        self._until = 0.0  # monotonic; ours for sure until then

    @property
    def held(self) -> bool:
        return time.monotonic() < self._until

    async def gain(self, stop: asyncio.Event) -> bool:
        """Waits for our turn; False when told to stop."""
        while not stop.is_set():
            if await self._ask(self.lease.acquire):
                log.info("this controller leads", holder=self.lease.holder)
                return True
            await pause(stop, self.ttl / 5)
        return False

    async def keep(self, stop: asyncio.Event) -> None:
        """Renews it; returns when it is lost or may be, or when told to stop. Once lost it is not gained anew here:
        others may have led in between, and the plan in hand knows nothing of that."""
        while not stop.is_set():
            await pause(stop, self.ttl / 5)
            if not await self._ask(self.lease.renew):
                log.warning("this controller leads no more", holder=self.lease.holder)
                return

    async def release(self) -> None:
        self._until = 0.0
        with contextlib.suppress(StoreUnavailable, TimeoutError):  # then it runs out by itself
            async with asyncio.timeout(self.ttl):
                await self.lease.release()

    async def _ask(self, question: Callable[[], Awaitable[bool]]) -> bool:
        """Whether it is ours. No answer in time is an answer too, once what was sure has run out."""
        asked = time.monotonic()
        held = self.held
        try:
            async with asyncio.timeout(max(0.05, self._until - asked) if held else self.ttl):
                ours = await question()
        except (StoreUnavailable, TimeoutError):
            return self.held
        finally:
            self.asked = time.monotonic()
        self._until = asked + self.ttl if ours else 0.0
        return ours
