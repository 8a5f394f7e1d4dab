"""Controllers on a real Valkey with fake drivers, at a pace that lets a test see a lease run out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fake_launcher import FakeLauncher

from jos.controller.controller import Controller, Duties, Paces
from jos.controller.reconcile import Limits
from jos.core.commands import Cancel, Command
from jos.core.ids import new_id
from jos.core.model import EventDraft, Job, RetryPolicy, Status, Timeouts
from jos.core.queues import QueueConfig
from jos.core.snapshot import Node
from jos.storage import open_storage
from jos.store.redis import Store

PACES = Paces(
    lease=0.6,
    idle=0.05,
    look=0.02,
    listen=0.005,
    rescue=0.02,
    meter=0.05,
    warm=0.05,
    archive=0.02,
    prune=0.05,
    again=0.1,
)
LIMITS = Limits(silence=0.4, alone=1.0, moment=0.0, start=0.8, evicted=0.1, drain=0.2, proof=0.6, orphan=0.1)


async def until(look: Callable[[], Awaitable[Any]], seconds: float = 180.0, what: str = "") -> Any:
    """The first true value of `look()`; fails after the deadline."""
    deadline = time.monotonic() + seconds
    while not (found := await look()):
        assert time.monotonic() < deadline, f"did not happen within {seconds} s: {what}"
        await asyncio.sleep(0.005)
    return found


@dataclass
class House:
    store: Store
    launcher: FakeLauncher
    folder: Path
    config: QueueConfig = field(default_factory=lambda: QueueConfig.of(None))
    running: list[tuple[Controller, asyncio.Task[None]]] = field(default_factory=list)

    # --- controllers ---

    def controller(self, duties: Duties | None = None, **more: Any) -> Controller:
        """Starts one."""
        storage = open_storage(str(self.folder / "storage"))
        options: dict[str, Any] = {"paces": PACES, "limits": LIMITS, **more}
        store, launcher = options.pop("store", self.store), options.pop("launcher", self.launcher)
        one = Controller(store, storage, launcher, lambda: self.config, duties or Duties(), **options)
        self.running.append((one, asyncio.create_task(one.run())))
        return one

    async def end(self, one: Controller) -> None:
        """As SIGTERM does."""
        one.stop()
        await self._task(one)

    async def kill(self, one: Controller) -> None:
        """As a crash does: nothing is finished, and the lease is left to run out."""
        one.leadership.release = _nothing  # type: ignore[method-assign]
        self._task(one).cancel()
        await asyncio.gather(self._task(one), return_exceptions=True)

    def _task(self, one: Controller) -> asyncio.Task[None]:
        return next(task for controller, task in self.running if controller is one)

    async def close(self) -> None:
        for one, task in self.running:
            if not task.done():
                await self.kill(one)
        await self.launcher.close()

    # --- jobs ---

    async def submit(self, **fields: Any) -> Job:
        return await self.store.create(
            new_job(**fields), [EventDraft(event_type="job.created", message="", created_at=now())]
        )

    async def say(self, job: Job, command: Command) -> Job:
        return await self.store.transact(job.id, command, now())

    async def cancel(self, job: Job) -> Job:
        return await self.say(job, Cancel())

    async def reaches(self, job: Job, *statuses: Status, seconds: float = 45.0) -> Job:
        async def there() -> Job | None:
            one = await self.store.get(job.id)
            return one if one.status in statuses else None

        found: Job = await until(there, seconds, f"{job.id} {statuses}")
        return found

    async def free(self) -> None:
        """Waits until nothing holds capacity and no driver is left."""

        async def all_free() -> bool:
            _, jobs = await self.store.jobs(None, 0, 1000)
            held = any(job.holds_capacity for job in jobs)
            return not held and all(d.state == "ended" for d in self.launcher.drivers.values())

        await until(all_free, what="all capacity is free and all drivers have ended")

    async def told(self, job: Job) -> list[str]:
        return [event.event_type for event in (await self.store.events(job.id, limit=1000))[1]]


async def _nothing() -> None:
    return None


def now() -> datetime:
    return datetime.now(UTC)


def new_job(**fields: Any) -> Job:
    """Drains within 0.2 s, and is tried again after 0.02 s."""
    defaults: dict[str, Any] = {
        "id": new_id("job"),
        "org_id": "org_a",
        "name": "nightly",
        "pipeline_type": "batch",
        "pipeline_key": "sensor-classify",
        "pipeline_version": "1.0.0",
        "parameters": {},
        "created_at": now(),
        "updated_at": now(),
        "queued_at": now(),
        "timeouts": Timeouts(drain=0.2),
        "retry_policy": RetryPolicy(max_retries=5, backoff=0.02, backoff_max=0.1),
    }
    return Job(**{**defaults, **fields})


def cpus(count: float) -> tuple[Node, ...]:
    return (Node({"cpu": count}),)


def at_home(
    folder: Path,
    test: Callable[[House], Awaitable[None]],
    cpu: float = 16,
    launcher: type[FakeLauncher] = FakeLauncher,
    **options: Any,
) -> None:
    """Runs a test in a house of its own, and leaves nothing behind."""

    async def run() -> None:
        async with await Store.open(None, folder / "redis", **options) as store:
            house = House(store, launcher(store, cpus(cpu)), folder)
            try:
                await test(house)
            finally:
                await house.close()

    asyncio.run(run())
