"""A launcher with a queue of its own in front, as KubeRay behind Kueue: offers stand there until a test gives one its
place (`place`) and takes it away again (`evict`). A driver comes with its place, and waits for its admission.

The other queue outlives controllers, as a cluster does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from fake_launcher import BEAT, FakeDriver, FakeLauncher

from jos.core.commands import Reason
from jos.core.errors import StaleAttempt
from jos.core.model import Job, Status
from jos.launch.base import DriverSeen, Offer, Waits, number_of

WORDS = "It is first in cluster queue main, which has 0 of 4 CPUs left."


@dataclass
class Placed:
    """One entry of the other queue: with its place (a driver runs, or may), or without."""

    offer: Offer
    priority: int
    refused: str = ""
    evicted: bool = False

    @property
    def name(self) -> str:
        return f"jos-{self.offer.job_id}-{self.offer.number}"


@dataclass
class FakeKueue(FakeLauncher):
    entries: dict[str, Placed] = field(default_factory=dict)  # by the driver's name, as objects in a cluster
    gives: Callable[[list[Placed]], list[Placed]] = lambda waiting: []  # whom it gives a place by itself
    most_standing: int = 0

    # --- Launcher ---

    async def start(self, job: Job) -> None:
        """Whoever was placed has a driver; one whose entry is gone is put there again."""
        self._check()
        self.orders.append(f"start {self.name_of(job)}")
        assert job.attempt is not None
        if self.name_of(job) not in self.entries:
            self._enter(job, job.attempt.token, job.attempt.number)

    async def stop(self, name: str) -> None:
        await super().stop(name)
        if self.entries.pop(name, None) is not None and name in self.drivers:
            self.drivers[name].state = "ended"

    async def seen(self) -> dict[str, DriverSeen]:
        found = await super().seen()
        for name, entry in self.entries.items():
            waits = self.waits.get(name)
            if not entry.offer.admitted:
                waits = Waits(Reason.WAITING_IN_KUEUE, entry.offer.message)
                found[name] = DriverSeen(name, "starting", waits=waits, suspended=True)
            elif waits is not None:
                found[name] = DriverSeen(name, "starting", waits=waits)
            elif name not in found:
                found[name] = DriverSeen(name, "starting")
        return found

    # --- Offers ---

    async def offer(self, job: Job, token: str) -> None:
        self._check()
        self.orders.append(f"offer {job.id} {job.priority}")
        name = f"jos-{job.id}-{number_of(job, token)}"
        if name in self.entries:
            self.entries[name].priority = job.priority
        else:
            self._enter(job, token, number_of(job, token))

    async def offered(self) -> dict[str, Offer]:
        self._check()
        for entry in self.gives([e for e in self.entries.values() if not e.offer.admitted]):
            self.place(entry.name)
        living = [e for n, e in self.entries.items() if n not in self.drivers or self.drivers[n].state != "ended"]
        return {e.offer.job_id: e.offer for e in [*living, *(e for e in self.entries.values() if e.evicted)]}

    async def withdraw(self, job_id: str) -> None:
        self._check()
        self.orders.append(f"withdraw {job_id}")
        for name in [name for name, entry in self.entries.items() if entry.offer.job_id == job_id]:
            self.kill(name)
            del self.entries[name]

    def _enter(self, job: Job, token: str, number: int) -> None:
        entry = Placed(Offer(job.id, token, False, WORDS, number), job.priority)
        self.entries[entry.name] = entry
        self.most_standing = max(self.most_standing, sum(not e.offer.admitted for e in self.entries.values()))

    # --- what a test does ---

    def standing(self, job: Job) -> Placed | None:
        """Its entry that has no place yet."""
        found = [e for e in self.entries.values() if e.offer.job_id == job.id and not e.offer.admitted]
        assert len(found) <= 1, "two offers of one job"
        return found[0] if found else None

    def place(self, name: str, driver: bool = True) -> None:
        """Gives an entry its place; its driver comes up, or not yet."""
        entry = self.entries[name]
        entry.offer = replace(entry.offer, admitted=True, message="")
        entry.evicted = False
        if driver:
            self.come(name)

    def come(self, name: str) -> None:
        """The driver of an entry that has its place comes up."""
        offer, old = self.entries[name].offer, self.drivers.get(name)
        assert offer.number is not None
        assert old is None or old.state == "ended"
        self.waits.pop(name, None)
        script = self.scripts(_nobody(offer.job_id), offer.number)
        driver = FakeDriver(name, offer.job_id, offer.number, offer.token, script)
        self.drivers[name] = driver
        driver.task = asyncio.create_task(self._live(driver))

    def evict(self, name: str, why: str = "Preempted to make room for another workload.") -> None:
        """Takes its place: whatever ran there is dead, with no last word; and its entry waits once more."""
        entry = self.entries[name]
        entry.offer = replace(entry.offer, admitted=False, message=why)
        entry.evicted = True
        self.kill(name, "its pods were deleted")

    async def _drive(self, driver: FakeDriver) -> None:
        """As a real one it waits for its admission, which may be written later than it comes."""
        driver.state = "running"
        while True:
            job = await self.store.get(driver.job_id)
            ahead = driver.number > (job.attempt.number if job.attempt else 0)
            again = job.attempt is not None and job.attempt.ended_by == "Recall" and job.attempt.token == driver.token
            if job.status is not Status.PENDING:
                break
            if not (ahead or again):
                raise StaleAttempt("of an attempt that is over")
            await asyncio.sleep(BEAT)
        await super()._drive(driver)


def _nobody(job_id: str) -> Job:
    """Scripts of these tests go by id and number."""
    return Job.model_construct(id=job_id)
