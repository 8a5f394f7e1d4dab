"""The controller where the cluster's own queue admits, on a real Valkey: it offers, admits what was given its place,
preempts what was evicted, and is killed between any two of its steps."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from controller_lab import House, at_home, until
from fake_kueue import WORDS, FakeKueue
from fake_launcher import Script
from test_controller_crashes import CrashingLauncher, CrashingStore, CrashPoint
from valkey_lab import Valkey

from jos.controller import offerer, telling
from jos.core.commands import Cancel, Retry
from jos.core.errors import ComputeFailed
from jos.core.model import Job, Status, Timeouts
from jos.core.queues import QueueConfig
from jos.launch.base import Waits


def home(valkey: Valkey) -> Path:
    return valkey.data_dir.parent


def kueue(house: House) -> FakeKueue:
    assert isinstance(house.launcher, FakeKueue)
    return house.launcher


def controller(house: House, **more: Any) -> Any:
    return house.controller(**{"offers": house.launcher, **more})


async def offered(house: House, job: Job, number: int = 1) -> str:
    """Waits until that attempt stands in the other queue; the name of its entry."""

    async def there() -> str | None:
        found = kueue(house).standing(job)
        return found.name if found is not None and found.offer.number == number else None

    found: str = await until(there, 20, f"attempt {number} of {job.id} is offered")
    return found


async def says(house: House, job: Job, reason: str, words: str = "") -> None:
    async def there() -> bool:
        one = await house.store.get(job.id)
        return one.reason == reason and words in one.reason_message

    await until(there, what=f"{job.id} says {reason} {words}")


async def _true(value: object) -> object:
    return value


def scripts(house: House, *by_number: Script) -> None:
    house.launcher.scripts = lambda job, number: by_number[min(number, len(by_number)) - 1]


def test_a_job_is_offered_admitted_evicted_preempted_offered_anew_and_completed(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        scripts(house, Script(work=None), Script(work=2))
        controller(house)
        job = await house.submit(parallelism=3)
        first = await offered(house, job)
        await says(house, job, "WaitingInKueue", WORDS)
        kueue(house).place(first)
        job = await house.reaches(job, Status.RUNNING)
        assert job.attempt is not None
        assert (job.attempt.indexes, job.attempt.driver, job.attempt.number) == (3, first, 1)
        kueue(house).evict(first, "Preempted by job high.")
        second = await offered(house, job, 2)
        assert f"stop {first}" in house.launcher.orders
        assert first not in kueue(house).entries
        kueue(house).place(second)
        job = await house.reaches(job, Status.COMPLETED)
        assert (job.preemption_count, job.retry_count, job.retries_spent) == (1, 0, 0)
        told = [(e.event_type, e.message) for e in (await house.store.events(job.id, limit=100))[1]]
        assert ("job.preempted", "Preempted by job high.") in told
        kinds = [kind for kind, _ in told if kind != "job.waiting"]
        life = ["job.admitted", "job.started"]
        assert kinds == ["job.created", *life, "job.preempted", "job.requeued", *life, "job.completed"]
        await house.free()

    at_home(home(valkey), test, launcher=FakeKueue)


def test_a_place_that_is_taken_back_before_its_driver_came_costs_nothing_and_comes_again(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        controller(house)
        job = await house.submit()
        name = await offered(house, job)
        for _ in range(2):
            kueue(house).place(name, driver=False)
            job = await house.reaches(job, Status.ADMITTED)
            assert job.attempt is not None
            assert job.attempt.number == 1
            kueue(house).evict(name, "Its pods were not ready in time.")
            job = await house.reaches(job, Status.PENDING)
        await until(lambda: _true(kueue(house).standing(job)))
        kueue(house).place(name)
        job = await house.reaches(job, Status.COMPLETED)
        assert job.attempt is not None
        assert (job.preemption_count, job.retry_count, job.attempt.number) == (0, 0, 1)
        assert "withdraw" not in " ".join(house.launcher.orders), "it kept its place in line"
        assert not any(order.startswith("stop") for order in house.launcher.orders)

    at_home(home(valkey), test, launcher=FakeKueue)


def test_what_an_admitted_jobs_driver_waits_for_is_its_reason(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "REASON_STAYS", telling.REASON_STAYS / 100)

    async def test(house: House) -> None:
        controller(house)
        job = await house.submit()
        name = await offered(house, job)
        await says(house, job, "WaitingInKueue", WORDS)
        kueue(house).waits[name] = Waits("NoNodeForPods", "0/3 nodes have 1 GPU")
        kueue(house).place(name, driver=False)
        await says(house, job, "NoNodeForPods", "0/3 nodes")
        kueue(house).waits[name] = Waits("PullingImage", "pulls jos:1")
        await says(house, job, "PullingImage", "pulls jos:1")
        kueue(house).come(name)
        job = await house.reaches(job, Status.COMPLETED)
        _, events = await house.store.events(job.id, limit=100, event_type="job.waiting")
        assert [e.payload["reason"] for e in events] == ["WaitingInKueue", "NoNodeForPods", "PullingImage"]

    at_home(home(valkey), test, launcher=FakeKueue)


def test_a_driver_that_comes_before_its_admission_is_written_waits_for_it(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        scripts(house, Script(work=None))
        first = controller(house)
        job = await house.submit()
        name = await offered(house, job)
        await house.kill(first)
        kueue(house).place(name)
        await until(lambda: _true(house.launcher.drivers[name].state == "running"))
        assert (await house.store.get(job.id)).status is Status.PENDING
        controller(house)
        job = await house.reaches(job, Status.RUNNING)
        assert job.attempt is not None
        assert job.attempt.token == kueue(house).entries[name].offer.token

    at_home(home(valkey), test, launcher=FakeKueue)


def test_a_job_that_is_cancelled_while_it_is_offered_is_withdrawn_and_may_be_retried(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        controller(house)
        job = await house.submit()
        await offered(house, job)
        await house.say(job, Cancel())
        await until(lambda: _true(not kueue(house).entries))
        await house.say(job, Retry())
        kueue(house).place(await offered(house, job))
        await house.reaches(job, Status.COMPLETED)

    at_home(home(valkey), test, launcher=FakeKueue)


def test_a_job_that_is_cancelled_as_its_place_comes_never_runs(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        scripts(house, Script(takes=False))
        controller(house)
        job = await house.submit()
        name = await offered(house, job)
        kueue(house).place(name)
        await house.say(job, Cancel())
        await until(lambda: _true(not kueue(house).entries))
        await house.free()
        assert (await house.store.get(job.id)).status is Status.CANCELLED
        assert not house.launcher.taken

    at_home(home(valkey), test, launcher=FakeKueue)


def test_a_job_that_waited_too_long_or_was_deleted_is_withdrawn(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        controller(house)
        late = await house.submit(timeouts=Timeouts(queue=0.3))
        deleted = await house.submit()
        await offered(house, deleted)
        await says(house, deleted, "WaitingInKueue", WORDS)  # the controller has seen it stand there
        await house.store.delete(deleted.id)
        await house.reaches(late, Status.FAILED)
        await until(lambda: _true(not kueue(house).entries))

    at_home(home(valkey), test, launcher=FakeKueue)


def test_offers_of_jobs_that_this_store_does_not_know_are_left_alone(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        job = await house.submit()
        foreign = job.model_copy(update={"id": "job_00000000000000000000000000"})
        await kueue(house).offer(foreign, "theirs")
        controller(house)
        kueue(house).place(await offered(house, job))
        await house.reaches(job, Status.COMPLETED)
        await until(lambda: _true(kueue(house).standing(foreign)))
        assert not any(foreign.id in order for order in house.launcher.orders[1:])

    at_home(home(valkey), test, launcher=FakeKueue)


def test_another_priority_is_told_to_the_other_queue(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        controller(house)
        job = await house.submit()
        name = await offered(house, job)
        await says(house, job, "WaitingInKueue", WORDS)
        token = kueue(house).entries[name].offer.token
        await _change(house, job, priority=50)
        await until(lambda: _true(kueue(house).entries[name].priority == 50))
        assert kueue(house).entries[name].offer.token == token
        asked = house.launcher.orders.count(f"offer {job.id} 50")
        await asyncio.sleep(0.3)
        assert house.launcher.orders.count(f"offer {job.id} 50") == asked, "told once, and not at each look"

    at_home(home(valkey), test, launcher=FakeKueue)


async def _change(house: House, job: Job, **fields: Any) -> None:
    while True:
        known, version = await house.store._read(job.id)
        if await house.store._write(known, known.model_copy(update=fields), [], version):
            return


def test_only_so_many_are_offered_at_one_time_the_highest_priority_first(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offerer, "MOST", 2)

    async def test(house: House) -> None:
        jobs = [await house.submit(priority=n) for n in range(4)]
        controller(house)
        for job in jobs[2:]:
            await offered(house, job)
        await says(house, jobs[1], "WaitingForCapacity", "as soon as fewer than 2 jobs stand there")
        urgent = await house.submit(priority=9)
        await offered(house, urgent)
        await until(lambda: _true(kueue(house).standing(jobs[2]) is None))
        kueue(house).gives = lambda waiting: waiting
        for job in (*jobs, urgent):
            await house.reaches(job, Status.COMPLETED)
        assert kueue(house).most_standing <= 3  # the third for a moment, until the last one is withdrawn

    at_home(home(valkey), test, launcher=FakeKueue)


def test_an_organisation_may_run_so_many_jobs_in_the_other_queue_as_well(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.config = QueueConfig.of({"organisations": {"org_a": {"max_running": 1}}})
        house.launcher.scripts = lambda job, number: Script(work=4)
        kueue(house).gives = lambda waiting: waiting
        controller(house)
        jobs = [await house.submit() for _ in range(3)]
        for job in jobs:
            await house.reaches(job, Status.COMPLETED)
        assert house.launcher.most == 1

    at_home(home(valkey), test, launcher=FakeKueue)


def test_a_cluster_that_refuses_an_offer_is_told_in_its_words_and_keeps_no_other_job_waiting(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        controller(house)
        offer = house.launcher.offer  # type: ignore[attr-defined]

        async def refuse(job: Job, token: str) -> None:
            if job.name == "bad":
                raise ComputeFailed("RayJobs of this namespace need an image by its digest.")
            await offer(job, token)

        house.launcher.offer = refuse  # type: ignore[attr-defined]
        bad, good = await house.submit(name="bad"), await house.submit()
        kueue(house).place(await offered(house, good))
        await house.reaches(good, Status.COMPLETED)
        await says(house, bad, "WaitingInKueue", "need an image by its digest")

    at_home(home(valkey), test, launcher=FakeKueue)


# --- a controller that dies, and two of them ----------------------------------------------------------


class CrashingKueue(CrashingLauncher):
    def __init__(self, point: CrashPoint) -> None:
        super().__init__(point)
        self.offer = point.around("offer", self._launcher.offer)
        self.withdraw = point.around("withdraw", self._launcher.withdraw)


def crashing(house: House, point: CrashPoint) -> Any:
    launcher = CrashingKueue(point)
    return house.controller(store=CrashingStore(point), launcher=launcher, offers=launcher)


async def eventful(house: House) -> None:
    """Offered, given back before its driver came, run, evicted, offered anew, run to its end; and one cancelled while
    it is offered: 11 steps of the controller, or a few more."""
    scripts(house, Script(work=None), Script(work=2))
    job, cancelled = await house.submit(), await house.submit()
    name = await offered(house, job)
    await offered(house, cancelled)
    await house.say(cancelled, Cancel())
    kueue(house).place(name, driver=False)
    await house.reaches(job, Status.ADMITTED, seconds=20)
    kueue(house).evict(name)
    await house.reaches(job, Status.PENDING, seconds=20)
    name = await offered(house, job)
    kueue(house).place(name)
    await house.reaches(job, Status.RUNNING, seconds=20)
    kueue(house).evict(name)
    kueue(house).place(await offered(house, job, 2))
    done = await house.reaches(job, Status.COMPLETED, seconds=20)
    await house.free()
    await until(lambda: _true(not [e for e in kueue(house).entries.values() if not e.offer.admitted]))
    assert done.preemption_count == 1
    assert (await house.store.get(cancelled.id)).status is Status.CANCELLED
    assert len(set(house.launcher.taken)) == len(house.launcher.taken)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 14))
def test_killed_at_any_step_the_next_controller_heals(valkey: Valkey, at: int, after: bool) -> None:
    async def test(house: House) -> None:
        point = CrashPoint(house, at, after)
        first = crashing(house, point)
        life = asyncio.create_task(eventful(house))
        died = asyncio.create_task(point.reached.wait())
        await asyncio.wait({life, died}, return_when=asyncio.FIRST_COMPLETED)
        if point.dead():
            await house.kill(first)
            controller(house)
        died.cancel()
        await life

    at_home(home(valkey), test, launcher=FakeKueue)


def test_the_eventful_life_has_about_as_many_steps_as_are_killed(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        point = CrashPoint(house, at=0, after=False)
        crashing(house, point)
        await eventful(house)
        assert 9 <= len(point.steps) <= 13, point.steps
        assert {"offer", "withdraw", "stop", "transact"} <= set(point.steps)

    at_home(home(valkey), test, launcher=FakeKueue)


def test_two_controllers_offer_and_admit_each_job_once(valkey: Valkey) -> None:
    """The renewal of whoever leads is lost again and again, while it goes on believing."""

    async def test(house: House) -> None:
        house.launcher.scripts = lambda job, number: Script(work=3)
        kueue(house).gives = lambda waiting: waiting[:2]
        controllers = [controller(house) for _ in range(2)]
        jobs = [await house.submit() for _ in range(12)]
        looks = 0
        while any(job.status is not Status.COMPLETED for job in (await _all(house, jobs))):
            if (looks := looks + 1) % 20 == 0:
                await house.store.connection.command("DEL", controllers[0].leadership.lease.key)
            await asyncio.sleep(0.01)
        assert all(job.attempt is not None and job.attempt.number == 1 for job in await _all(house, jobs))
        assert len(set(house.launcher.taken)) == len(house.launcher.taken) == len(jobs)
        await house.free()

    at_home(home(valkey), test, launcher=FakeKueue)


async def _all(house: House, jobs: list[Job]) -> list[Job]:
    return list((await house.store.get_many([job.id for job in jobs])).values())
