"""The controller: of several, one leads; the leader admits, starts and rescues until it is told to stop or loses the
lease. A new leader knows nothing, looks at what is, and goes on.

May import: everything below jos.api and the command line. Tests: tests/integration/test_controller*.py.
For people: docs/controller.md.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from jos.controller.admitter import Admitter
from jos.controller.archiver import Archive, Archiver
from jos.controller.crew import Crew
from jos.controller.leadership import Leadership
from jos.controller.lookout import Lookout
from jos.controller.loops import Step, complain, keep, pause
from jos.controller.meter import Meter
from jos.controller.metrics import Metrics
from jos.controller.offerer import Offerer
from jos.controller.pruner import Pruner, Sweep
from jos.controller.reconcile import Limits
from jos.controller.rescuer import Rescuer
from jos.controller.scribe import Scribe
from jos.controller.view import View
from jos.controller.warmer import Warmer
from jos.core.queues import QueueConfig
from jos.files.service import Files
from jos.launch.base import Launcher, Offers
from jos.removal import Removals
from jos.storage.base import Storage
from jos.store.redis import Store

UNHEALTHY = 60.0  # seconds without a step
FINISH = 4.0  # seconds that the step in hand may take when told to stop; less than the lease lasts

log = structlog.get_logger()


@dataclass(frozen=True)
class Paces:
    """Seconds between the steps of each loop."""

    lease: float = 5.0  # how long a leader that fell silent leads on; renewed five times as often
    idle: float = 1.0  # the admitting loop waits for changes, and without any plans so often
    look: float = 1.0  # what the launcher knows
    rescue: float = 0.5
    meter: float = 5.0
    warm: float = 1.0
    archive: float = 1.0
    prune: float = 60.0
    again: float = 2.0  # an order to the launcher that shows no effect


@dataclass(frozen=True)
class Duties:
    """What a controller looks after besides drivers; none where a part of the service does not exist."""

    archive: Archive | None = None
    sweeps: Sequence[tuple[str, Sweep]] = ()
    streams_kept: timedelta = timedelta(hours=24)
    jobs_kept: timedelta | None = None
    warm_drivers: int = 0


class Controller:
    def __init__(
        self,
        store: Store,
        storage: Storage,
        launcher: Launcher,
        config: Callable[[], QueueConfig],
        duties: Duties = Duties(),
        paces: Paces = Paces(),
        limits: Limits = Limits(),
        offers: Offers | None = None,
    ) -> None:
        """`offers`: where the cluster's own queue admits, and no plan of ours; as a rule the launcher itself."""
        self._store, self._storage, self._launcher, self._config = store, storage, launcher, config
        self._duties, self._paces, self._limits, self._offers = duties, paces, limits, offers
        self.metrics = Metrics()
        holder = f"{platform.node()}/{os.getpid()}/{secrets.token_hex(3)}"
        self.leadership = Leadership(store.connection, holder, paces.lease)
        self.view = View(store)
        self._stopping = asyncio.Event()
        self._admitted = 0.0  # monotonic; the latest step of the admitting loop
        self._planner = ThreadPoolExecutor(1, "plan")

    def stop(self) -> None:
        """Finish the steps in hand, let the next controller lead, and return from `run`."""
        self._stopping.set()

    def healthy(self) -> bool:
        """Whether its loops turn: asking for the lease, and if it leads, admitting."""
        now = time.monotonic()
        admits = not self.leadership.held or now - self._admitted < UNHEALTHY
        return not self._stopping.is_set() and now - self.leadership.asked < UNHEALTHY and admits

    async def run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    await self._term()
                except Exception as error:
                    complain("leader", error, self.metrics.failed)
                    await pause(self._stopping, 1.0)
        finally:
            self._planner.shutdown(wait=False)

    async def _term(self) -> None:
        """Leads once: from the lease to its end."""
        if not await self.leadership.gain(self._stopping):
            return
        self.metrics.leader.set(1)
        keeping = asyncio.create_task(self.leadership.keep(self._stopping))
        leading = asyncio.create_task(self._lead())
        try:
            await asyncio.wait({keeping, leading}, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                await asyncio.wait({leading}, timeout=FINISH)
        finally:
            self.metrics.leader.set(0)
            for task in (keeping, leading):
                task.cancel()
            ended = await asyncio.gather(keeping, leading, return_exceptions=True)
            await self.leadership.release()
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _lead(self) -> None:
        now, self._admitted = datetime.now(UTC), time.monotonic()
        self.view = View(self._store)  # of an earlier term nothing is believed
        lookout = Lookout(self._launcher, now, self._offers)
        crew = Crew(self._launcher, self.metrics.failed, self._paces.again)
        await asyncio.gather(self.view.resync(), lookout.look(now))
        tasks = [
            asyncio.create_task(keep(name, step, every, self._stopping, self.metrics.failed), name=name)
            for name, step, every in self._loops(lookout, crew)
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)  # one lost the lease, or all are told
            if self._stopping.is_set():
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await crew.close()

    def _loops(self, lookout: Lookout, crew: Crew) -> list[tuple[str, Step, float]]:
        store, view, metrics, paces, duties = self._store, self.view, self.metrics, self._paces, self._duties
        lease = self.leadership.lease
        meter = Meter(store, view, metrics)
        scribe = Scribe(store, lease, view, metrics)
        admitter: Admitter | Offerer = (
            Admitter(scribe, view, lookout, crew, meter, metrics, self._config, self._planner, paces.idle)
            if self._offers is None
            else Offerer(store, scribe, view, lookout, crew, self._offers, self._config, paces.idle)
        )
        rescuer = Rescuer(store, lease, view, lookout, crew, metrics, self._limits)
        pruner = Pruner(
            store,
            self._storage,
            Removals(store, self._storage, Files(store, self._storage)),
            metrics,
            streams_kept=duties.streams_kept,
            jobs_kept=duties.jobs_kept,
            sweeps=duties.sweeps,
        )

        async def admit() -> None:
            await admitter.step()
            self._admitted = time.monotonic()

        async def look() -> None:
            await lookout.look(datetime.now(UTC))
            metrics.cluster.set(lookout.answers)
            metrics.look(view.jobs.values(), view.waiting, lookout.drivers.values(), datetime.now(UTC))

        loops: list[tuple[str, Step, float]] = [
            ("admitter", admit, 0.0),
            ("lookout", look, paces.look),
            ("rescuer", rescuer.step, paces.rescue),
            ("meter", lambda: meter.step(datetime.now(UTC)), paces.meter),
            ("pruner", lambda: pruner.step(datetime.now(UTC)), paces.prune),
            # with 0 as well: spare ones of an earlier setting go
            ("warmer", Warmer(self._launcher, view, lookout, duties.warm_drivers).step, paces.warm),
        ]
        if duties.archive is not None:
            archiver = Archiver(store, view, duties.archive, metrics, meter.ended)
            loops.append(("archiver", lambda: archiver.step(datetime.now(UTC)), paces.archive))
        return loops
