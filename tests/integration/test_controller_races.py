"""What a controller does while its view of the jobs is older than they are, and when very many come at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from controller_lab import LIMITS, PACES, House, at_home, now, until
from fake_launcher import FakeDriver, Script
from valkey_lab import Valkey

from jos.controller.admitter import MOST_COMING
from jos.controller.controller import Paces
from jos.controller.crew import Crew
from jos.controller.lookout import Lookout
from jos.controller.metrics import Metrics
from jos.controller.rescuer import Rescuer
from jos.controller.telling import MOST_HOLDS
from jos.controller.view import View
from jos.core.commands import Admit, Taken
from jos.core.model import Job, Status
from jos.store.lease import Lease


def home(valkey: Valkey) -> Path:
    return valkey.data_dir.parent


class Watch:
    """A rescuer whose view of the jobs is renewed only when a test says so."""

    def __init__(self, house: House) -> None:
        self.house, self.metrics, self.view = house, Metrics(), View(house.store)
        self.lease = Lease(house.store.connection, "controller", "here", ttl=60)
        self.lookout = Lookout(house.launcher, now())
        crew = Crew(house.launcher, self.metrics.failed)
        self.rescuer = Rescuer(house.store, self.lease, self.view, self.lookout, crew, self.metrics, LIMITS)

    async def step(self) -> None:
        await self.lookout.look(now())
        await self.rescuer.step()

    def lost(self) -> float | None:
        return self.metrics.registry.get_sample_value("jos_drivers_lost_total")


def ended_driver(house: House, job: Job) -> None:
    name = house.launcher.name_of(job)
    house.launcher.drivers[name] = FakeDriver(name, job.id, 1, "tok", Script(), state="ended", exit_code=3)


def test_a_job_that_a_warm_driver_took_a_moment_ago_is_not_given_up_for_the_end_of_the_other_one(
    valkey: Valkey,
) -> None:
    """Two were ordered; the second found the job taken and ended, which is seen before the record is heard of."""

    async def test(house: House) -> None:
        watch = Watch(house)
        assert await watch.lease.acquire()
        job = await house.say(await house.submit(), Admit("tok", indexes=1))
        await watch.view.resync()
        await house.say(job, Taken("tok", "jos-warm-1", "host", 1))
        ended_driver(house, job)
        await watch.step()
        assert (await house.store.get(job.id)).holds_capacity
        assert watch.lost() == 0

    at_home(home(valkey), test)


def test_a_lost_driver_is_counted_once(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        watch = Watch(house)
        assert await watch.lease.acquire()
        job = await house.say(await house.submit(), Admit("tok", indexes=1))
        await watch.view.resync()
        ended_driver(house, job)
        await watch.step()
        await watch.step()  # the view knows nothing of it yet
        assert (await house.store.get(job.id)).status is Status.PENDING
        assert watch.lost() == 1

    at_home(home(valkey), test)


def test_no_more_attempts_are_begun_at_once_than_can_be_started(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        waits = Script(takes=False)
        house.launcher.scripts = lambda job, number: waits
        jobs = [await house.submit() for _ in range(MOST_COMING + 20)]
        house.controller(limits=LIMITS.__class__(start=60.0))
        await until(lambda: _count(house, Status.ADMITTED, MOST_COMING))
        await asyncio.sleep(4 * PACES.idle)  # some more plans
        assert await _count(house, Status.ADMITTED, MOST_COMING)
        waits.takes = True
        for job in jobs:
            await house.reaches(job, Status.COMPLETED, seconds=60)

    at_home(home(valkey), test, cpu=1000)


def test_all_that_wait_are_told_why_and_who_comes_with_a_high_priority_does_not_wait_for_that(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        stays = Script(work=None)
        house.launcher.scripts = lambda job, number: stays if job.name == "stays" else Script()
        stay = await house.submit(name="stays", priority=50)
        jobs = [await house.submit(resources={"cpu": 4}) for _ in range(3 * MOST_HOLDS)]
        house.controller(paces=Paces(**{**vars(PACES), "idle": 30.0}))  # what is not told at once would come late
        await house.reaches(stay, Status.RUNNING)
        small = await house.submit(priority=100)
        await house.reaches(small, Status.COMPLETED)

        async def told() -> bool:
            return all(job.reason_message for job in (await house.store.get_many([j.id for j in jobs])).values())

        await until(told, what="every waiting job has a reason")
        stays.work = 0

    at_home(home(valkey), test, cpu=4)


async def _count(house: House, status: Status, wanted: int) -> bool:
    return (await house.store.jobs(None, 0, 1, status))[0] == wanted
