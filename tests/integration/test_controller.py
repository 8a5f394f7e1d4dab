"""The controller on a real Valkey, with drivers that do what real ones do and what they should not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from controller_lab import LIMITS, PACES, House, at_home, until
from fake_launcher import Script
from valkey_lab import Valkey

from jos.controller import admitter, scribe, telling
from jos.controller.controller import Controller, Duties
from jos.core.commands import Admit, Completed, Retry, Started
from jos.core.model import Gpu, Job, Resources, RetryPolicy, Status, Timeouts
from jos.core.queues import QueueConfig
from jos.launch.base import Waits


def home(valkey: Valkey) -> Path:
    return valkey.data_dir.parent


def scripted(*scripts: Script) -> object:
    """The first for the first attempt, and so on; the last for all others."""
    return lambda job, number: scripts[min(number, len(scripts)) - 1]


def test_a_job_is_admitted_driven_and_completed(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        controller = house.controller()
        job = await house.reaches(await house.submit(), Status.COMPLETED)
        assert job.attempt is not None
        assert job.attempt.indexes == 1
        assert len(job.attempt.token) == 32
        assert (await house.told(job))[:4] == ["job.created", "job.admitted", "job.started", "job.completed"]
        await house.free()
        await until(lambda: _true(not controller.view.jobs))

    at_home(home(valkey), test)


def test_a_driver_is_ordered_within_a_moment_of_the_submission(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.controller()
        await house.reaches(await house.submit(), Status.COMPLETED)
        began = asyncio.get_running_loop().time()
        await house.reaches(await house.submit(), Status.RUNNING, Status.COMPLETED)
        assert asyncio.get_running_loop().time() - began < 0.5

    at_home(home(valkey), test)


def test_jobs_wait_for_capacity_with_a_reason_and_all_complete(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.launcher.scripts = scripted(Script(work=5))
        house.controller()
        jobs = [await house.submit() for _ in range(6)]
        await until(lambda: _some_reason(house, jobs, "ClusterFull"))
        for job in jobs:
            await house.reaches(job, Status.COMPLETED)
        await house.free()
        assert house.launcher.most == 2

    at_home(home(valkey), test, cpu=2)


def test_a_job_starts_on_configured_nodes_that_do_not_live_yet(valkey: Valkey) -> None:
    """A GPU pool at zero grows only once an index waits in Ray for it."""

    async def test(house: House) -> None:
        house.controller()
        gpu = Resources(gpu=Gpu(count=1, required=True))
        job = await house.submit(resources=gpu)
        await until(lambda: _some_reason(house, [job], "NoNodeFits"))
        house.config = QueueConfig.of({"nodes": [{"count": 2, "resources": {"cpu": 8, "gpu": 8}}]})
        await house.reaches(job, Status.COMPLETED)

    at_home(home(valkey), test)


def test_jobs_that_wait_for_others_drivers_to_come_up_say_so(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admitter, "MOST_COMING", 1)

    async def test(house: House) -> None:
        script = Script(takes=False)
        house.launcher.scripts = scripted(script)
        house.controller()
        first = await house.reaches(await house.submit(), Status.ADMITTED)
        second = await house.submit()
        await until(lambda: _words(house, second, "It is next: it starts as soon as fewer than 1 drivers"))
        assert (await house.store.get(second.id)).reason == "WaitingForCapacity"
        script.takes = True
        for job in (first, second):
            await house.reaches(job, Status.COMPLETED)

    at_home(home(valkey), test)


def test_jobs_that_wait_for_a_cluster_that_does_not_answer_say_so(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe, "AWAY", timedelta(seconds=0.1))

    async def test(house: House) -> None:
        house.launcher.reachable = False
        house.controller()
        job = await house.submit()
        await until(lambda: _some_reason(house, [job], "ClusterUnavailable"))
        house.launcher.reachable = True
        await house.reaches(job, Status.COMPLETED)
        assert (await house.told(job)).count("job.waiting") == 1

    at_home(home(valkey), test)


def test_the_words_of_a_reason_follow_what_is_without_an_event(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "WORDS_STAY", timedelta(seconds=0.1))

    async def test(house: House) -> None:
        house.launcher.scripts = scripted(Script(work=None))
        house.controller()
        await house.reaches(await house.submit(), Status.RUNNING)
        large = await house.submit(resources=Resources(cpu=2))
        await until(lambda: _words(house, large, "One index needs 2 CPUs; 1 CPU of 2 CPUs is free"))
        await house.reaches(await house.submit(), Status.RUNNING)
        await until(lambda: _words(house, large, "One index needs 2 CPUs; 0 CPUs of 2 CPUs is free"))
        assert (await house.told(large)).count("job.waiting") == 1

    at_home(home(valkey), test, cpu=2)


def test_a_new_leader_keeps_what_was_promised_and_takes_no_second_victim(valkey: Valkey) -> None:
    """An older job of the same priority, which may preempt nobody, would else take what comes back."""

    async def test(house: House) -> None:
        never = {"preemption": {"within_queue": "never"}}
        house.config = QueueConfig.of({"queues": {"mild": never, "harsh": {}}})
        house.launcher.scripts = scripted(Script(work=None, drains=False))
        leader = house.controller()
        slow = Timeouts(drain=60)
        low = [await house.submit(queue="harsh", timeouts=slow) for _ in range(2)]
        for job in low:
            await house.reaches(job, Status.RUNNING)
        older = await house.submit(queue="mild", priority=9)
        await until(lambda: _some_reason(house, [older], "ClusterFull"))
        newer = await house.submit(queue="harsh", priority=9)
        await until(lambda: _some_reason(house, [newer], "WaitingForPreemption"))
        await house.kill(leader)
        next_one = house.controller()
        await until(lambda: _true(_plans(next_one) >= 3))
        found = await house.store.get_many([job.id for job in low])
        assert [job.status for job in found.values()].count(Status.PREEMPTED) == 1

    at_home(home(valkey), test, cpu=2)


def test_a_queue_timeout_runs_out_while_the_cluster_does_not_answer(valkey: Valkey) -> None:
    """Whoever set it wants to hear of it, whatever the job waits for."""

    async def test(house: House) -> None:
        house.launcher.reachable = False
        house.controller()
        job = await house.reaches(await house.submit(timeouts=Timeouts(queue=0.1)), Status.FAILED)
        assert job.reason == "QueueTimeout"

    at_home(home(valkey), test)


def test_a_storage_that_blocks_all_shared_threads_keeps_nobody_from_being_admitted(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        house.controller()
        await house.reaches(await house.submit(), Status.COMPLETED)
        released = threading.Event()
        blocked = asyncio.create_task(asyncio.to_thread(released.wait))
        try:
            await house.reaches(await house.submit(), Status.COMPLETED)
        finally:
            released.set()
            await blocked

    at_home(home(valkey), test)


def test_a_higher_priority_preempts_and_the_victim_resumes_by_itself(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        script = Script(work=None)
        house.launcher.scripts = lambda job, number: script if job.priority == 0 else Script(work=5)
        house.controller()
        low = await house.reaches(await house.submit(priority=0), Status.RUNNING)
        high = await house.submit(priority=100)
        await house.reaches(high, Status.COMPLETED)
        script.work = 0
        low = await house.reaches(low, Status.COMPLETED)
        assert low.preemption_count == 1
        assert low.automatic_retries == 0
        told = await house.told(low)
        assert (
            told.index("job.preempted") < told.index("job.requeued") < len(told) - 1 - told[::-1].index("job.admitted")
        )
        await house.free()

    at_home(home(valkey), test, cpu=1)


def test_a_victim_that_does_not_leave_is_stopped_and_loses_nothing_of_its_budget(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        stubborn = Script(work=None, drains=False)
        house.launcher.scripts = lambda job, number: stubborn if job.priority == 0 and number == 1 else Script()
        house.controller()
        low = await house.reaches(await house.submit(priority=0), Status.RUNNING)
        await house.reaches(await house.submit(priority=100), Status.COMPLETED)
        low = await house.reaches(low, Status.COMPLETED)
        assert low.automatic_retries == 0
        assert any(order.startswith("stop") for order in house.launcher.orders)
        await house.free()

    at_home(home(valkey), test, cpu=1)


def test_a_job_that_is_cancelled_before_its_driver_took_it_frees_its_capacity(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.launcher.scripts = scripted(Script(takes=False))
        house.controller()
        job = await house.reaches(await house.submit(), Status.ADMITTED)
        await house.cancel(job)
        await house.free()
        assert (await house.store.get(job.id)).status is Status.CANCELLED

    at_home(home(valkey), test)


def test_a_job_that_is_cancelled_while_it_runs_drains_and_frees_its_capacity(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.launcher.scripts = scripted(Script(work=None))
        house.controller()
        job = await house.reaches(await house.submit(), Status.RUNNING)
        await house.cancel(job)
        await house.free()
        assert not any(order.startswith("stop") for order in house.launcher.orders)

    at_home(home(valkey), test)


def test_a_killed_driver_is_followed_by_another_after_the_back_off(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.launcher.scripts = scripted(Script(work=None), Script())
        house.controller()
        job = await house.reaches(await house.submit(), Status.RUNNING)
        house.launcher.kill(house.launcher.name_of(job), "killed: out of memory")
        job = await house.reaches(job, Status.COMPLETED)
        assert job.automatic_retries == 1
        _, events = await house.store.events(job.id, limit=100)
        assert [e.message for e in events if e.event_type == "attempt.failed"] == ["killed: out of memory"]
        await house.free()

    at_home(home(valkey), test)


def test_a_job_whose_drivers_always_die_fails_when_its_retries_are_used_up(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.launcher.scripts = scripted(Script(takes=False))
        house.controller()
        job = await house.submit(retry_policy=RetryPolicy(max_retries=2, backoff=0.02))
        for number in (1, 2, 3):
            await until(lambda n=number: _true(f"jos-{job.id}-{n}" in house.launcher.drivers))
            house.launcher.kill(f"jos-{job.id}-{number}", "No module named jos")
        job = await house.reaches(job, Status.FAILED)
        assert job.error is not None
        assert job.error.message == "No module named jos"
        await house.free()

    at_home(home(valkey), test)


def test_a_driver_that_falls_silent_is_stopped_and_replaced(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        hanging = Script(work=None)
        house.launcher.scripts = scripted(hanging, Script())
        house.controller()
        job = await house.reaches(await house.submit(), Status.RUNNING)
        hanging.hangs = True
        job = await house.reaches(job, Status.COMPLETED)
        assert f"stop jos-{job.id}-1" in house.launcher.orders
        assert job.automatic_retries == 1
        await house.free()

    at_home(home(valkey), test)


def test_a_driver_that_never_takes_its_job_is_replaced(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.launcher.scripts = scripted(Script(takes=False), Script())
        house.controller()
        job = await house.reaches(await house.submit(), Status.COMPLETED)
        assert job.automatic_retries == 1
        assert job.error is None
        await house.free()

    at_home(home(valkey), test)


def test_nothing_is_admitted_while_the_cluster_is_away_and_nothing_is_lost(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        running = Script(work=None)
        house.launcher.scripts = lambda job, number: running if job.name == "runs" else Script()
        house.controller()
        first = await house.reaches(await house.submit(name="runs"), Status.RUNNING)
        house.launcher.reachable = False
        await asyncio.sleep(3 * PACES.look)
        second = await house.submit()
        await asyncio.sleep(LIMITS.silence + LIMITS.proof)  # long enough to give up a driver that is not heard
        assert (await house.store.get(second.id)).status is Status.PENDING
        assert (await house.store.get(first.id)).attempt == first.attempt
        house.launcher.reachable = True
        await house.reaches(second, Status.COMPLETED)
        running.work = 0
        assert (await house.reaches(first, Status.COMPLETED)).automatic_retries == 0
        await house.free()

    at_home(home(valkey), test)


def test_timeouts_of_queue_and_run_end_a_job(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.launcher.scripts = scripted(Script(work=None))
        house.controller()
        runs = await house.reaches(await house.submit(timeouts=Timeouts(run=0.5, drain=0.2)), Status.RUNNING)
        waits = await house.submit(timeouts=Timeouts(queue=0.1))
        assert (await house.reaches(waits, Status.FAILED)).reason == "QueueTimeout"
        assert (await house.reaches(runs, Status.FAILED)).reason == "RunTimeout"
        await house.free()

    at_home(home(valkey), test, cpu=1)


def test_a_driver_that_outlives_its_attempt_is_stopped_but_not_one_of_another_installation(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.launcher.scripts = scripted(Script(work=None))
        controller = house.controller()
        job = await house.reaches(await house.submit(), Status.RUNNING)
        foreign = job.model_copy(update={"id": "job_00000000000000000000000000"})
        house.launcher.scripts = scripted(Script(takes=False))
        await house.launcher.start(foreign)
        assert job.attempt is not None
        house.launcher.drivers[house.launcher.name_of(job)].script.drains = False
        await house.say(job, Completed(job.attempt.token))  # its last word; but it hangs in closing
        await until(lambda: _true(f"stop jos-{job.id}-1" in house.launcher.orders))
        assert house.launcher.running(foreign)
        house.launcher.kill(house.launcher.name_of(foreign))
        await house.end(controller)

    at_home(home(valkey), test)


def test_a_job_of_a_door_without_a_controller_is_left_alone(valkey: Valkey) -> None:
    """`jos run` admits itself; the controller only notices when it has been silent for long."""

    async def test(house: House) -> None:
        house.controller()
        job = await house.submit(queue="")
        await asyncio.sleep(5 * PACES.idle)
        assert (await house.store.get(job.id)).status is Status.PENDING
        await house.say(job, Admit("own", "host", 1))
        await house.say(job, Started("own", "host", 1))
        await asyncio.sleep(LIMITS.alone / 2)
        assert (await house.store.get(job.id)).holds_capacity
        job = await house.reaches(job, Status.PENDING)  # silent for longer than allowed
        assert job.automatic_retries == 1
        assert not house.launcher.orders

    at_home(home(valkey), test)


def test_a_job_that_was_cancelled_and_retried_waits_for_its_old_driver(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        stubborn = Script(work=None, drains=False)
        house.launcher.scripts = scripted(stubborn, Script())
        house.controller()
        job = await house.reaches(await house.submit(), Status.RUNNING)
        await house.cancel(job)
        await house.say(job, Retry())
        job = await house.reaches(job, Status.COMPLETED)
        assert job.attempt is not None
        assert job.attempt.number == 2
        assert house.launcher.orders.index(f"stop jos-{job.id}-1") < house.launcher.orders.index(
            f"start jos-{job.id}-2"
        )
        await house.free()

    at_home(home(valkey), test)


def test_what_a_driver_waits_for_is_its_jobs_reason_until_a_driver_takes_it(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        script = Script(takes=False)
        house.launcher.scripts = scripted(script)
        house.controller(limits=replace(LIMITS, start=60))
        job = await house.submit()
        house.launcher.waits[f"jos-{job.id}-1"] = Waits("PullingImage", "node-1 pulls jos:1")
        await until(lambda: _words(house, job, "node-1 pulls jos:1"))
        assert (await house.store.get(job.id)).reason == "PullingImage"
        script.takes = True
        job = await house.reaches(job, Status.COMPLETED)
        _, [event] = await house.store.events(job.id, event_type="job.waiting")
        assert (event.message, event.payload["reason"]) == ("node-1 pulls jos:1", "PullingImage")

    at_home(home(valkey), test)


def test_a_job_whose_place_the_cluster_took_is_preempted_and_goes_on_in_a_new_attempt(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.launcher.scripts = scripted(Script(work=None), Script())
        house.controller()
        job = await house.reaches(await house.submit(), Status.RUNNING)
        name = house.launcher.name_of(job)
        house.launcher.suspend(name, "Somebody suspended its RayJob.")
        job = await house.reaches(job, Status.COMPLETED)
        assert job.attempt is not None
        assert (job.attempt.number, job.preemption_count, job.retry_count) == (2, 1, 0)
        orders = house.launcher.orders
        assert orders.index(f"stop {name}") < orders.index(f"start jos-{job.id}-2")
        _, [event] = await house.store.events(job.id, event_type="job.preempted")
        assert event.message == "Somebody suspended its RayJob."

    at_home(home(valkey), test)


def test_spare_drivers_are_kept_and_those_that_drive_are_left_alone(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.launcher.scripts = scripted(Script(work=None))
        house.controller(Duties(warm_drivers=3))
        await until(lambda: _true(house.launcher.warmed == 3))
        job = await house.reaches(await house.submit(), Status.RUNNING)
        await until(lambda: _true(house.launcher.left_alone == {house.launcher.name_of(job)}))

    at_home(home(valkey), test)


def test_told_to_stop_it_lets_the_next_one_lead_at_once(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        first, second = house.controller(), house.controller()
        await until(lambda: _true(first.leadership.held or second.leadership.held))
        leader, other = (first, second) if first.leadership.held else (second, first)
        house.launcher.scripts = scripted(Script(work=None))
        job = await house.reaches(await house.submit(), Status.RUNNING)
        began = asyncio.get_running_loop().time()
        await house.end(leader)
        await until(lambda: _true(other.leadership.held))
        assert asyncio.get_running_loop().time() - began < 2 * PACES.lease
        assert len(house.launcher.running(job)) == 1  # drivers do not notice
        house.launcher.drivers[house.launcher.name_of(job)].script.work = 0
        await house.reaches(job, Status.COMPLETED)

    at_home(home(valkey), test)


def test_a_failing_loop_is_counted_and_keeps_no_other_from_its_work(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(house: House) -> None:
        async def broken(count: int, driving: Collection[str]) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(house.launcher, "keep_warm", broken)
        controller = house.controller(Duties(warm_drivers=1))
        await house.reaches(await house.submit(), Status.COMPLETED)
        await until(
            lambda: _true(controller.metrics.registry.get_sample_value("jos_loop_errors_total", {"loop": "warmer"}))
        )

    at_home(home(valkey), test)


async def _true(value: object) -> object:
    return value


def _plans(controller: Controller) -> float:
    return controller.metrics.registry.get_sample_value("jos_plan_seconds_count") or 0.0


async def _words(house: House, job: Job, words: str) -> bool:
    return (await house.store.get(job.id)).reason_message.startswith(words)


async def _some_reason(house: House, jobs: list[Job], reason: str) -> bool:
    found = await house.store.get_many([job.id for job in jobs])
    return any(job.reason == reason for job in found.values())
