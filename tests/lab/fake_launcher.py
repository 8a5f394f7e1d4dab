"""A launcher whose drivers are asyncio tasks that send the store what a real driver sends, as their script says.

Drivers outlive controllers, as processes do: a test may kill the controller between any two steps and go on with the
same launcher.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime

from jos.core.commands import Completed, Drained, Started, Taken
from jos.core.errors import ComputeFailed, JosError, StaleAttempt
from jos.core.model import Job, Status
from jos.core.snapshot import Node
from jos.launch.base import DriverSeen, Waits
from jos.store.records import Mirror
from jos.store.redis import Store

BEAT = 0.02


@dataclass
class Script:
    """How a driver behaves. Its life can be changed while it runs."""

    takes: bool = True  # else it hangs before Taken
    work: int | None = 1  # heartbeats until it is done; None: until told
    drains: bool = True  # leaves when the record says so; else it goes on
    hangs: bool = False  # goes silent, and can only be killed
    says: str = ""  # what the launcher says of it once it has been killed


@dataclass
class FakeDriver:
    name: str
    job_id: str
    number: int
    token: str
    script: Script
    task: asyncio.Task[None] | None = None
    took: bool = False
    state: str = "starting"
    message: str = ""
    exit_code: int | None = None
    process: str = field(default_factory=lambda: secrets.token_hex(4))


@dataclass
class FakeLauncher:
    """`scripts` gives the script of (job, attempt number)."""

    store: Store
    capacity: tuple[Node, ...] | None = None
    scripts: Callable[[Job, int], Script] = lambda job, number: Script()
    reachable: bool = True
    optional_gpus: bool = True
    drivers: dict[str, FakeDriver] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)  # tokens, in order: no token may come twice
    orders: list[str] = field(default_factory=list)
    warmed: int = 0
    left_alone: set[str] = field(default_factory=set)
    most: int = 0  # drivers that had taken a job at the same time
    waits: dict[str, Waits] = field(default_factory=dict)  # what drivers that are not up wait for
    suspended: dict[str, str] = field(default_factory=dict)  # drivers whose place was taken, and why

    def name_of(self, job: Job) -> str:
        return f"jos-{job.id}-{job.attempt.number if job.attempt else 0}"

    async def start(self, job: Job) -> None:
        self._check()
        name = self.name_of(job)
        self.orders.append(f"start {name}")
        if name in self.drivers or job.attempt is None:
            return
        number = job.attempt.number
        driver = FakeDriver(name, job.id, number, job.attempt.token, self.scripts(job, number))
        self.drivers[name] = driver
        driver.task = asyncio.create_task(self._live(driver))

    async def stop(self, name: str) -> None:
        self._check()
        self.orders.append(f"stop {name}")
        self.suspended.pop(name, None)
        self.kill(name, "killed by SIGTERM")

    async def seen(self) -> dict[str, DriverSeen]:
        self._check()
        return {name: self._seen(driver) for name, driver in self.drivers.items()}

    def _seen(self, driver: FakeDriver) -> DriverSeen:
        name = driver.name
        if name in self.suspended:
            return DriverSeen(name, "starting", self.suspended[name], suspended=True)
        if name in self.waits and not driver.took:
            return DriverSeen(name, "starting", waits=self.waits[name])
        return DriverSeen(name, driver.state, driver.message, driver.exit_code)  # type: ignore[arg-type]

    async def nodes(self) -> tuple[Node, ...] | None:
        self._check()
        return self.capacity

    async def keep_warm(self, count: int, driving: Collection[str] = ()) -> None:
        self.warmed, self.left_alone = count, set(driving)

    async def close(self) -> None:
        tasks = [d.task for d in self.drivers.values() if d.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what a test does ---

    def kill(self, name: str, message: str = "killed by signal 9") -> None:
        driver = self.drivers.get(name)
        if driver is None or driver.state == "ended":
            return
        if driver.task is not None:
            driver.task.cancel()
        driver.state, driver.message, driver.exit_code = "ended", message, 137

    def suspend(self, name: str, why: str) -> None:
        """Takes its place: the process is dead, with no last word, and its entry waits in the cluster."""
        self.kill(name)
        self.suspended[name] = why

    def running(self, job: Job) -> list[str]:
        return [d.name for d in self.drivers.values() if d.job_id == job.id and d.state != "ended"]

    def _check(self) -> None:
        if not self.reachable:
            raise ComputeFailed("The cluster cannot be reached.")

    # --- a driver's life ---

    async def _live(self, driver: FakeDriver) -> None:
        try:
            await self._drive(driver)
        except StaleAttempt:
            driver.exit_code = 3
        except JosError as error:
            driver.message, driver.exit_code = str(error), 1
        else:
            driver.exit_code = 0
        driver.state = "ended"

    async def _drive(self, driver: FakeDriver) -> None:
        job_id, token, script = driver.job_id, driver.token, driver.script
        driver.state = "running"
        while not script.takes:  # noqa: ASYNC110 (a script is changed by its test at any time)
            await asyncio.sleep(BEAT)
        job = await self.store.transact(job_id, Taken(token, driver.name, "host", 1, driver.process), _now())
        self.taken.append(token)
        driver.took = True
        self.most = max(self.most, sum(d.took and d.state != "ended" for d in self.drivers.values()))
        if job.status is Status.ADMITTED:
            await self.store.transact(job_id, Started(token, "host", 1), _now())
        seq = 0
        while script.work is None or seq < script.work:
            while script.hangs:  # noqa: ASYNC110
                await asyncio.sleep(BEAT)
            seq += 1
            live = {"items_processed": seq, "indexes": {"0": {"state": "running", "seconds": seq * BEAT}}}
            reply = await self.store.mirror(job_id, Mirror(token, seq, _now(), live=live))
            if script.drains and reply.status not in (Status.ADMITTED, Status.RUNNING):
                await self.store.transact(job_id, Drained(token), _now())
                return
            await asyncio.sleep(BEAT)
        await self.store.transact(job_id, Completed(token), _now())


def _now() -> datetime:
    return datetime.now(UTC)
