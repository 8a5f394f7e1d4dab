"""What recovery and the archive do to the store: whole jobs come back, and old streams go."""

from __future__ import annotations

import asyncio

from store_lab import checkpoint, keys, numbers, on, output, progress, running
from valkey_lab import NOW, Valkey, event, make_job

from jos.core.commands import Admit, Cancel, Completed, DriverGone, Retry
from jos.core.model import Attempt, InputState, InputStatus, Status
from jos.store import changes
from jos.store.changes import CHANGES
from jos.store.records import Mirror
from jos.store.redis import Store

STATE = InputState(input_id="inp_1", status=InputStatus.COMPLETED, tasks=5, done=5)

# --- restore ------------------------------------------------------------------------------------------------


def test_a_restored_job_reads_as_if_it_had_been_there_all_along(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = make_job(status=Status.COMPLETED, attempt=Attempt(number=2, token="tok", admitted_at=NOW))
        at = await changes.latest(store.connection)
        restored = await store.restore(
            job,
            events=[event("recovered")],
            inputs=[STATE],
            outputs=[output("b"), output("a")],
            progress=[progress("p")],
            checkpoints=[checkpoint(20), checkpoint(3)],
            event_count=12_345,
            progress_count=7,
        )
        assert restored
        assert await store.get(job.id) == job
        assert await store.jobs("org_a", status=Status.COMPLETED, q="nightly") == (1, [job])
        assert await store.inputs(job.id) == {"inp_1": STATE}
        assert await store.outputs(job.id) == [output("b"), output("a")]
        assert await store.checkpoints(job.id) == [checkpoint(3), checkpoint(20)]
        total, events = await store.events(job.id)
        assert (total, numbers(events)) == (12_346, [12_346])
        total, entries = await store.progress(job.id)
        assert (total, numbers(entries)) == (8, [8])
        assert (await changes.wait(store.connection, at, 1_000))[1] == [job.id]
        assert await store.live(job.id) is None
        await store.delete(job.id)
        assert await keys(store) == {CHANGES}

    on(valkey, test)


def test_a_restored_job_that_waits_goes_on_like_any_other(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = make_job()
        assert await store.restore(job, event_count=3)
        assert await store.places([job]) == {job.id: (1, 1)}
        assert await store.active() == [job]
        await store.transact(job.id, Admit("tok"), NOW)
        await store.mirror(job.id, Mirror("tok", 1, NOW, [event()], outputs=[output("a")]))
        assert numbers((await store.events(job.id))[1]) == [4, 5]

    on(valkey, test)


def test_a_job_that_is_there_is_not_touched(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        at = await changes.latest(store.connection)
        old = job.model_copy(update={"status": Status.PENDING, "name": "old"})
        assert not await store.restore(old, [event()], [STATE], [output("a")], event_count=99)
        assert await store.get(job.id) == job
        assert (await store.events(job.id))[0] == 3
        assert await store.outputs(job.id) == []
        assert await store.jobs("org_a", status=Status.PENDING) == (0, [])
        assert await changes.latest(store.connection) == at

    on(valkey, test)


def test_of_many_that_restore_a_job_at_once_one_does_all_of_it(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = make_job()
        outputs = [output(f"{n}") for n in range(200)]
        async with await Store.open(None, valkey.data_dir) as other:
            tries = [each.restore(job, [event()] * 50, outputs=outputs) for each in (store, other) * 5]
            assert sum(await asyncio.gather(*tries)) == 1
        assert numbers((await store.events(job.id))[1]) == list(range(1, 51))
        assert await store.outputs(job.id) == outputs

    on(valkey, test)


def test_a_large_job_is_restored(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = make_job(status=Status.COMPLETED)
        states = [STATE.model_copy(update={"input_id": f"inp_{n}"}) for n in range(10_000)]
        outputs = [output(f"{n}") for n in range(10_000)]
        assert await store.restore(job, [event()] * 10_000, states, outputs)
        assert len(await store.inputs(job.id)) == len(await store.outputs(job.id)) == 10_000
        assert (await store.events(job.id))[0] == 10_000

    on(valkey, test)


# --- checkpoints --------------------------------------------------------------------------------------------


def test_checkpoints_are_listed_by_step_and_told_twice_stay_one(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        assert await store.checkpoints(job.id) == []
        await store.mirror(job.id, Mirror("tok", 1, NOW, checkpoints=[checkpoint(200), checkpoint(9)]))
        await store.mirror(job.id, Mirror("tok", 1, NOW, checkpoints=[checkpoint(7)]))  # a repeat, whatever it holds
        await store.mirror(job.id, Mirror("tok", 2, NOW, checkpoints=[checkpoint(9, num_bytes=11)]))
        assert await store.checkpoints(job.id) == [checkpoint(9, num_bytes=11), checkpoint(200)]

    on(valkey, test)


# --- dropping archived streams ------------------------------------------------------------------------------


def test_dropped_streams_leave_their_numbers_and_totals(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        await store.mirror(job.id, Mirror("tok", 1, NOW, [event()] * 4, [progress("p")] * 2))
        await store.transact(job.id, Completed("tok"), NOW)
        assert await store.drop_streams(job.id)
        assert await store.drop_streams(job.id)
        assert await store.events(job.id) == (8, [])
        assert await store.events(job.id, order="desc") == (8, [])
        assert await store.progress(job.id) == (2, [])
        assert (await store.get(job.id)).status is Status.COMPLETED

    on(valkey, test)


def test_what_came_after_the_archive_was_written_is_kept(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        await store.mirror(job.id, Mirror("tok", 1, NOW, progress=[progress("1"), progress("2")]))
        await store.transact(job.id, Cancel(), NOW)
        assert not await store.drop_streams(job.id)  # its driver may still tell something
        await store.transact(job.id, DriverGone("tok"), NOW)
        total, _ = await store.events(job.id)
        await store.transact(job.id, Retry(), NOW)  # while the archive was being written
        assert not await store.drop_streams(job.id)
        assert len((await store.events(job.id))[1]) == total + 1
        await store.transact(job.id, Cancel(), NOW)
        assert await store.drop_streams(job.id, event_count=total, progress_count=1)
        assert numbers((await store.events(job.id))[1]) == [total + 1, total + 2]
        assert numbers((await store.progress(job.id))[1]) == [2]
        following = store.follow(job.id, after_event=0, after_progress=2)
        assert numbers(await anext(following)) == [total + 1, total + 2]

    on(valkey, test)


def test_a_retry_that_comes_while_streams_are_dropped_keeps_its_event(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        jobs = [await store.create(make_job(status=Status.FAILED), [event()]) for _ in range(20)]
        retries = [store.transact(job.id, Retry(), NOW) for job in jobs]
        await asyncio.gather(*retries, *(store.drop_streams(job.id) for job in jobs))
        for job in jobs:
            total, events = await store.events(job.id)
            assert total == 2
            assert 2 in numbers(events)

    on(valkey, test)


def test_dropping_streams_of_a_job_that_is_gone_leaves_nothing(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        assert not await store.drop_streams("job_gone")
        assert await keys(store) == set()

    on(valkey, test)
