"""Orders to the launcher: start and stop drivers, offer jobs and withdraw them. Each order may come again and again; it
is passed on at most every two seconds, a few at a time, and never makes a plan wait.

May import: jos.controller, jos.launch.base. Tests: tests/integration/test_controller.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from jos.controller.loops import complain
from jos.core.model import Job
from jos.launch.base import Launcher

AGAIN = 2.0  # seconds until an order that shows no effect is given again
AT_ONCE = 16
START, STOP = 60.0, 15.0  # seconds that one order may take

log = structlog.get_logger()


class Crew:
    def __init__(self, launcher: Launcher, failed: Callable[[str], None], again: float = AGAIN) -> None:
        self._launcher, self._failed, self._again = launcher, failed, again
        self._given: dict[str, float] = {}  # order -> monotonic
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)

    def start(self, job: Job) -> None:
        number = job.attempt.number if job.attempt else 0
        if self._due(f"start {job.id} {number}"):
            log.info("starting a driver", job=job.id, attempt=number)
            self._give(f"start {job.id} {number}", lambda: self._launcher.start(job), START)

    def stop(self, name: str, why: str, job_id: str = "") -> None:
        if self._due(f"stop {name}"):
            log.warning("stopping a driver", driver=name, job=job_id, why=why)
            self._give(f"stop {name}", lambda: self._launcher.stop(name), STOP)

    def offer(self, job_id: str, call: Callable[[], Awaitable[None]], most: int) -> None:
        """Not while so many are on their way, nor right after it was withdrawn: what is known of it may be older."""
        under_way = sum(order.startswith("offer ") for order in self._busy)
        if under_way < most and not self.withdraws(job_id) and self._due(f"offer {job_id}"):
            self._give(f"offer {job_id}", call, START)

    def withdraw(self, job_id: str, call: Callable[[], Awaitable[None]], why: str) -> None:
        if self._due(f"withdraw {job_id}"):
            log.info("withdrawing an offer", job=job_id, why=why)
            self._give(f"withdraw {job_id}", call, STOP)

    def withdraws(self, job_id: str) -> bool:
        """Whether that order is under way or was just carried out."""
        return not self._due(f"withdraw {job_id}")

    async def close(self) -> None:
        """Lets go of orders under way. Whether they arrived is seen by the next leader."""
        tasks = list(self._busy.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _due(self, order: str) -> bool:
        return order not in self._busy and time.monotonic() - self._given.get(order, float("-inf")) >= self._again

    def _give(self, order: str, call: Callable[[], Awaitable[None]], seconds: float) -> None:
        task = asyncio.create_task(self._carry_out(order, call, seconds))
        self._busy[order] = task
        task.add_done_callback(lambda _: self._busy.pop(order, None))

    async def _carry_out(self, order: str, call: Callable[[], Awaitable[None]], seconds: float) -> None:
        try:
            async with self._places, asyncio.timeout(seconds):
                await call()
        except Exception as error:
            complain(order.partition(" ")[0], error, self._failed)
        now = time.monotonic()
        self._given = {o: t for o, t in self._given.items() if now - t < self._again} | {order: now}
