"""How a loop of the controller is ended."""

from __future__ import annotations

import asyncio

import pytest

from jos.controller.loops import pause


def test_a_cancel_that_comes_together_with_the_event_is_not_lost() -> None:
    """It was, and then who waited for the loop's end waited for ever."""

    async def work() -> None:
        event = asyncio.Event()
        pausing = asyncio.create_task(pause(event, 60.0))
        await asyncio.sleep(0.01)
        event.set()
        pausing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pausing

    asyncio.run(work())
