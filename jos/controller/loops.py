"""How the controller's loops run: each at its own pace, and no failure of one ends another or goes unsaid.

May import: jos.core.errors, jos.store.lease. Tests: tests/integration/test_controller.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import structlog

from jos.core.errors import JosError
from jos.store.lease import LeaseLost

T = TypeVar("T")
Step = Callable[[], Awaitable[object]]

AFTER_FAILURE = 1.0  # seconds, so that a fault does not spin

log = structlog.get_logger()


async def keep(name: str, step: Step, every: float, stop: asyncio.Event, failed: Callable[[str], None]) -> None:
    """Takes a step every so many seconds, until told to stop, cancelled, or without the lease."""
    while not stop.is_set():
        began, least = time.monotonic(), 0.0
        try:
            await step()
        except LeaseLost:
            return
        except Exception as error:
            complain(name, error, failed)
            least = AFTER_FAILURE
        await pause(stop, max(least, every - (time.monotonic() - began)))


async def pause(stop: asyncio.Event, seconds: float) -> None:
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for loses a cancel that comes together with the event
                await stop.wait()


def complain(name: str, error: Exception, failed: Callable[[str], None]) -> None:
    """An outage is worth a line; anything else is a fault of ours and comes with its traceback."""
    failed(name)
    if isinstance(error, JosError | TimeoutError):
        log.warning("a loop could not do its work; trying again", loop=name, error=str(error) or type(error).__name__)
    else:
        log.error("a loop failed; trying again", loop=name, exc_info=error)


async def each(limit: int, things: Iterable[T], work: Callable[[T], Awaitable[object]]) -> None:
    """`work` for each, at most `limit` at once, begun in the given order. The first error ends it."""
    waiting = iter(things)

    async def one_after_another() -> None:
        for thing in waiting:
            await work(thing)

    tasks = [asyncio.create_task(one_after_another()) for _ in range(limit)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
