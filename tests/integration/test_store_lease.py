"""A lease: one holder at a time, and nothing is written in its name once it is over."""

from __future__ import annotations

import asyncio

import pytest
from store_lab import on, running
from valkey_lab import NOW, Valkey, event, make_job

from jos.core.commands import Admit, Cancel, Hold
from jos.core.errors import InvalidTransition
from jos.core.model import Status
from jos.store.lease import Lease, LeaseLost, holder
from jos.store.redis import Store


async def take_over(lease: Lease) -> None:
    """Asks until the one before has run out."""
    async with asyncio.timeout(10):
        while not await lease.acquire():
            continue


def test_of_many_that_ask_at_once_exactly_one_gets_it(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        leases = [Lease(store.connection, "controller", f"host-{n}") for n in range(20)]
        got = await asyncio.gather(*(lease.acquire() for lease in leases))
        assert sum(got) == 1
        winner = leases[got.index(True)]
        assert await holder(store.connection, "controller") == winner.holder
        assert [bool(lease.token) for lease in leases] == got
        assert await Lease(store.connection, "another", "host-x").acquire()

    on(valkey, test)


def test_a_holder_renews_and_releases_only_what_is_its_own(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        first, second = (Lease(store.connection, "controller", name) for name in ("first", "second"))
        assert await first.acquire()
        token = first.token
        assert await first.acquire()  # it is ours already
        assert first.token == token
        assert await first.renew()
        assert not await second.renew()
        await second.release()
        assert not await second.acquire()
        await first.release()
        assert await holder(store.connection, "controller") is None
        assert not await first.renew()
        assert await second.acquire()
        assert second.token != token
        await first.release()
        assert await second.renew()

    on(valkey, test)


def test_a_lease_that_is_not_renewed_runs_out(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        paused = Lease(store.connection, "controller", "paused", ttl=0.05)
        heir = Lease(store.connection, "controller", "heir")
        assert await paused.acquire()
        await take_over(heir)
        assert not await paused.renew()
        assert await heir.renew()
        assert not await paused.acquire()

    on(valkey, test)


def test_nothing_is_written_under_a_lease_that_is_over(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await store.create(make_job(), [event()])
        never = Lease(store.connection, "controller", "never")
        with pytest.raises(LeaseLost, match="never does not hold the lease controller"):
            await store.transact(job.id, Admit("tok"), NOW, lease=never)
        paused = Lease(store.connection, "controller", "paused", ttl=0.05)
        heir = Lease(store.connection, "controller", "heir")
        assert await paused.acquire()
        await take_over(heir)
        with pytest.raises(LeaseLost, match="paused"):
            await store.transact(job.id, Admit("tok"), NOW, lease=paused)
        assert await store.get(job.id) == job
        assert (await store.events(job.id))[0] == 1
        assert await store.places([job]) == {job.id: (1, 1)}

        assert (await store.transact(job.id, Admit("tok"), NOW, lease=heir)).status is Status.ADMITTED
        await heir.release()
        with pytest.raises(LeaseLost):
            await store.transact(job.id, Cancel(), NOW, lease=heir)
        assert (await store.transact(job.id, Cancel(), NOW)).status is Status.CANCELLED  # a user needs no lease

    on(valkey, test)


def test_of_several_that_believe_they_hold_it_only_the_holder_admits(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        jobs = [await store.create(make_job(), [event()]) for _ in range(10)]
        paused = [Lease(store.connection, "controller", name, ttl=0.05) for name in ("first", "second")]
        last = Lease(store.connection, "controller", "last", ttl=30)
        for lease in (*paused, last):
            await take_over(lease)

        async def admit(lease: Lease, job_id: str) -> bool:
            try:
                await store.transact(job_id, Admit(lease.holder), NOW, lease=lease)
            except (LeaseLost, InvalidTransition):  # the latter: it came after the holder
                return False
            return True

        got = await asyncio.gather(*(admit(lease, job.id) for job in jobs for lease in (*paused, last)))
        assert got == [False, False, True] * len(jobs)
        for job in (await store.get_many([job.id for job in jobs])).values():
            assert job.attempt is not None
            assert (job.attempt.number, job.attempt.token) == (1, "last")

    on(valkey, test)


def test_a_repeat_needs_no_lease_for_it_writes_nothing(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        over = Lease(store.connection, "controller", "over")
        assert await store.transact(job.id, Admit("tok"), NOW, lease=over) == job
        waiting = await store.create(make_job(reason="ClusterFull", reason_message="full"), [event()])
        assert await store.transact(waiting.id, Hold("ClusterFull", "full"), NOW, lease=over) == waiting

    on(valkey, test)
