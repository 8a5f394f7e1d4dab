"""Lists, queue places and depths: after any history they say what the records say."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import datetime, timedelta

import pytest
from store_lab import keys, on, running
from valkey_lab import NOW, Valkey, event, make_job

from jos.core.commands import (
    Admit,
    Cancel,
    Command,
    Completed,
    Drained,
    DriverGone,
    Exited,
    Expire,
    Grow,
    Hold,
    Preempt,
    Reason,
    Retry,
    Started,
    Taken,
)
from jos.core.errors import Conflict
from jos.core.model import Job, JobFailure, RetryPolicy, Status, Timeouts
from jos.store import indexes
from jos.store.changes import CHANGES
from jos.store.redis import Store

ORGS, TYPES, QUEUES = ("org_a", "org_b"), ("batch", "training"), ("default", "night")


# --- a walk through all transitions against a brute-force model ------------------------------------------


async def compare(store: Store, jobs: dict[str, Job]) -> None:
    """Every list, place and depth against what a look at all records gives."""
    newest = sorted(jobs.values(), key=lambda job: (job.created_at, job.id), reverse=True)
    for org in (None, *ORGS):
        for kind in (None, *TYPES):
            for status in (None, *Status):
                expected = [
                    job
                    for job in newest
                    if org in (None, job.org_id)
                    and kind in (None, job.pipeline_type)
                    and (status is None or job.status is status)
                ]
                found = await store.jobs(org, 0, 1000, status, pipeline_type=kind)
                assert found == (len(expected), expected), (org, kind, status)
    waiting = [job for job in newest if job.status is Status.PENDING]
    assert await store.depths() == {kind: sum(job.pipeline_type == kind for job in waiting) for kind in TYPES}
    depths = Counter(job.queue for job in waiting)
    ordered = sorted(waiting, key=lambda job: (-job.priority, job.queued_at, job.id))
    places = {}
    for queue in QUEUES:
        own = [job.id for job in ordered if job.queue == queue]
        places |= {name: (number, depths[queue]) for number, name in enumerate(own, 1)}
        tickets = await store.connection.command("ZRANGE", indexes.queue_key(queue), 0, -1)
        assert [ticket.decode().rpartition(":")[2] for ticket in tickets] == own
    assert await store.places(newest) == places
    active = [job for job in reversed(newest) if not job.status.terminal or job.holds_capacity]
    assert await store.active() == active
    at_work = [job for job in active if job.status is not Status.PENDING]
    assert await indexes.at_work(store.connection) == at_work
    assert await indexes.queued(store.connection, QUEUES) == {queue: depths[queue] for queue in QUEUES}


def some_command(chance: random.Random, job: Job) -> Command:
    """Mostly what is next in a good life, so that walks get far; else anything."""
    token = job.attempt.token if job.attempt else "none"
    if chance.random() < 0.4 and job.status in (Status.PENDING, Status.ADMITTED, Status.RUNNING):
        if job.status is Status.PENDING:
            return DriverGone(token) if job.holds_capacity else Admit(f"tok{chance.random()}")
        return Started(token) if job.status is Status.ADMITTED else chance.choice([Completed(token), Preempt()])
    failure = JobFailure(code="compute_failed", message="It failed.")
    return chance.choice(
        [
            Admit(f"tok{chance.random()}", indexes=1),
            Hold(chance.choice([Reason.CLUSTER_FULL, Reason.QUOTA_EXHAUSTED]), "full"),
            Taken(token, "driver"),
            Started(token),
            Grow(token, 2),
            Preempt(),
            Cancel(),
            Completed(token),
            Exited(token, failure, retryable=chance.random() < 0.7),
            Drained(token),
            DriverGone(token),
            Retry(),
            Expire(chance.choice(["queue", "run"])),
        ]
    )


@pytest.mark.parametrize("seed", range(3))
def test_every_index_agrees_with_the_records_after_any_history(valkey: Valkey, seed: int) -> None:
    chance = random.Random(seed)
    policy, timeouts = RetryPolicy(max_retries=1, backoff=0.001), Timeouts(queue=5, run=5)

    async def create(store: Store, now: datetime) -> Job:
        job = make_job(
            org_id=chance.choice(ORGS),
            pipeline_type=chance.choice(TYPES),
            queue=chance.choice(QUEUES),
            priority=chance.choice([-5, 0, 0, 7]),
            created_at=now,
            queued_at=now,
            retry_policy=policy,
            timeouts=timeouts,
        )
        return await store.create(job, [event()])

    async def walk(store: Store) -> None:
        jobs: dict[str, Job] = {}
        seen: set[Status] = set()
        for step in range(400):
            now = NOW + timedelta(seconds=step // 3)  # some at the same moment
            job = jobs[chance.choice(list(jobs))] if len(jobs) >= 12 else await create(store, now)
            jobs[job.id] = job
            if chance.random() < 0.03:
                await store.delete(job.id)
                del jobs[job.id]
                continue
            try:
                jobs[job.id] = await store.transact(job.id, some_command(chance, job), now)
                seen.add(jobs[job.id].status)
            except Conflict:
                assert await store.get(job.id) == job
            if step % 20 == 19:
                await compare(store, jobs)
        assert seen == set(Status)
        await asyncio.gather(*(store.delete(name) for name in jobs))
        assert await keys(store) == {CHANGES}

    on(valkey, walk)


def test_indexes_agree_after_racing_commands_and_deletes(valkey: Valkey) -> None:
    """Each writes what it read; whoever loses the race must move the job from where the winner put it."""

    async def race(store: Store) -> None:
        async def shove(other: Store, job: Job) -> None:
            for command in (Cancel(), Retry(), Cancel(), Retry(), Hold("ClusterFull", "full"), Admit("tok"), Cancel()):
                try:
                    await other.transact(job.id, command, NOW)
                except Conflict:
                    continue

        jobs = [await store.create(make_job(), [event()]) for _ in range(4)]
        async with await Store.open(None, valkey.data_dir) as other:
            await asyncio.gather(*(shove(each, job) for job in jobs for each in (store, other, store)))
        await compare(store, {job.id: await store.get(job.id) for job in jobs})
        writers = [store.transact(job.id, Retry(), NOW) for job in jobs]
        await asyncio.gather(*writers, *(store.delete(job.id) for job in jobs), return_exceptions=True)
        assert await keys(store) == {CHANGES}

    on(valkey, race)


# --- lists -----------------------------------------------------------------------------------------------


def test_a_page_of_any_list_can_start_anywhere(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        jobs = [
            await store.create(
                make_job(pipeline_type=TYPES[n % 2], created_at=NOW + timedelta(microseconds=n)), [event()]
            )
            for n in range(9)
        ]
        jobs.reverse()
        assert await store.jobs("org_a", 2, 3, Status.PENDING) == (9, jobs[2:5])
        assert await store.jobs("org_a", 1, 2, pipeline_type="batch") == (5, jobs[2:6:2])
        assert await store.jobs("org_a", 0, 20, Status.PENDING, pipeline_type="training") == (4, jobs[1::2])
        assert await store.jobs("org_a", 9, 3, Status.PENDING) == (9, [])
        assert await store.jobs("org_a", 0, 0, Status.PENDING) == (9, [])
        assert await store.jobs("org_a", 0, 3, Status.RUNNING) == (0, [])
        assert await store.get_many([jobs[3].id, "job_none", jobs[0].id]) == {
            jobs[0].id: jobs[0],
            jobs[3].id: jobs[3],
        }

    on(valkey, test)


def test_a_search_looks_within_the_other_filters(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        night = await store.create(make_job(name="Nachtläufe (50%)"), [event()])
        other = await store.create(make_job(name="NACHTLÄUFE", pipeline_type="training"), [event()])
        await store.create(make_job(name="nachtläufe", org_id="org_b"), [event()])
        assert (await store.jobs("org_a", q="nachtLÄUFE"))[0] == 2
        assert await store.jobs("org_a", q="läufe", pipeline_type="training") == (1, [other])
        assert await store.jobs("org_a", q="(50%)") == (1, [night])  # no pattern, plain text
        assert await store.jobs("org_a", q="läufe", status=Status.RUNNING) == (0, [])
        assert (await store.jobs(None, q="läufe"))[0] == 3

    on(valkey, test)


# --- the queue ---------------------------------------------------------------------------------------------


def test_places_follow_priority_then_time_then_id_and_close_up(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        async def queue(priority: int, seconds: int, **fields: object) -> Job:
            at = NOW + timedelta(seconds=seconds)
            return await store.create(make_job(priority=priority, queued_at=at, **fields), [event()])

        late, early, urgent = await queue(0, 9), await queue(0, 1), await queue(100, 20)
        humble, elsewhere = await queue(-1, 0), await queue(0, 0, queue="night")
        jobs = [late, early, urgent, humble, elsewhere]
        assert await store.places(jobs) == {
            urgent.id: (1, 4),
            early.id: (2, 4),
            late.id: (3, 4),
            humble.id: (4, 4),
            elsewhere.id: (1, 1),
        }
        admitted = await store.transact(urgent.id, Admit("tok"), NOW)
        assert await store.places([admitted, late]) == {late.id: (2, 3)}
        assert await store.places([urgent]) == {urgent.id: (1, 3)}  # an old record: the place that it had
        assert await store.places([]) == {}
        assert await store.depths() == {"batch": 4, "training": 0}

    on(valkey, test)


def test_a_job_that_comes_back_queues_anew_at_the_time_of_its_return(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job, later = await running(store), NOW + timedelta(seconds=5)
        rival = await store.create(make_job(queued_at=NOW + timedelta(seconds=1)), [event()])
        await store.transact(job.id, Preempt(), later)
        back = await store.transact(job.id, Drained("tok"), later)
        assert await store.places([back, rival]) == {rival.id: (1, 2), back.id: (2, 2)}

    on(valkey, test)


def test_the_order_of_the_queue_holds_for_any_priority() -> None:
    jobs = [make_job(priority=priority) for priority in (-(10**12), -(10**9), -11, -2, 0, 3, 20, 10**9, 10**12)]
    tickets = [member for job in reversed(jobs) for key, _, member in indexes.of(job) if key == "jos:queue:default"]
    assert len(tickets) == len(jobs)
    ranks = [ticket.partition(":")[0] for ticket in tickets]
    assert ranks == sorted(ranks)
    assert len({len(rank) for rank in ranks}) == 1
