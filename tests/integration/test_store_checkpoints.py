"""Whose a checkpoint is, found without looking at jobs; and who reads it."""

from __future__ import annotations

import pytest
from store_lab import checkpoint, keys, on, running
from valkey_lab import NOW, Valkey, make_job

from jos.checkpoints import find
from jos.core.commands import Cancel, Completed
from jos.core.errors import Conflict
from jos.core.ids import new_id
from jos.core.model import Job
from jos.store import checkpoints
from jos.store.changes import CHANGES
from jos.store.connection import Connection
from jos.store.readers import judged
from jos.store.records import Mirror
from jos.store.redis import Store

ID = "ckp_00000000000000000000000001"


async def trained(store: Store, *ids: str) -> Job:
    job = await running(store, pipeline_type="training")
    models = [checkpoint(step, id=name) for step, name in enumerate(ids, 1)]
    await store.mirror(job.id, Mirror(token="tok", seq=1, at=NOW, checkpoints=models))
    return await store.transact(job.id, Completed("tok"), NOW)


def test_a_checkpoint_is_found_by_its_id_until_its_job_is_deleted(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job, other = await trained(store, ID, new_id("ckp")), await trained(store, new_id("ckp"))
        found = await find(store, job.org_id, ID)
        assert found is not None
        assert (found.job.id, found.checkpoint.step) == (job.id, 1)
        assert await find(store, "org_other", ID) is None
        assert await find(store, job.org_id, new_id("ckp")) is None
        assert await find(store, job.org_id, "state/step_1") is None
        await store.delete(job.id)
        assert await find(store, job.org_id, ID) is None
        await store.delete(other.id)
        assert await keys(store) == {CHANGES, "jos:checkpoints:known"}

    on(valkey, test)


def test_a_restored_job_has_its_checkpoints_in_the_index(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = make_job(pipeline_type="training")
        assert await store.restore(job, checkpoints=[checkpoint(7, id=ID)])
        assert await store.connection.command("HGET", checkpoints.INDEX, ID) == job.id.encode()

    on(valkey, test)


def test_checkpoints_from_before_the_index_are_found_by_one_look_at_all_jobs(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = list[str](), checkpoints._index_all

    async def counted(connection: Connection) -> None:
        looks.append("all")
        await look(connection)

    monkeypatch.setattr(checkpoints, "_index_all", counted)

    async def test(store: Store) -> None:
        ids = [new_id("ckp") for _ in range(3)]
        jobs = [await trained(store, name) for name in ids]
        await store.connection.command("DEL", checkpoints.INDEX)
        for job, name in zip(jobs, ids, strict=True):
            assert await checkpoints.job_of(store.connection, name) == job.id
        for _ in range(3):
            assert await checkpoints.job_of(store.connection, new_id("ckp")) is None
        assert looks == ["all"]

    on(valkey, test)


def test_a_look_up_asks_the_server_the_same_with_any_number_of_jobs(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        async def asked() -> int:
            before = await store.connection.command("INFO", "stats")
            assert await find(store, job.org_id, ID) is not None
            assert await find(store, job.org_id, new_id("ckp")) is None
            after = await store.connection.command("INFO", "stats")
            name = "total_commands_processed"
            return int(after[name]) - int(before[name])

        job = await trained(store, ID)
        await asked()  # which looks at all jobs, once
        few = await asked()
        for _ in range(40):
            await trained(store, new_id("ckp"))
        assert await asked() == few

    on(valkey, test)


def test_a_reader_that_comes_between_the_look_and_the_deletion_keeps_the_job(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await trained(store, ID)
        seen = await checkpoints.readers(store.connection, job.id)
        assert await checkpoints.mark(store.connection, job.id, "job_reader", NOW)
        with pytest.raises(Conflict, match="being created"):
            await store.delete(job.id, readers=list(seen))
        assert await store.get(job.id) == job
        await checkpoints.unmark(store.connection, job.id, "job_reader")
        await store.delete(job.id, readers=list(seen))
        assert not await checkpoints.mark(store.connection, job.id, "job_reader", NOW)
        assert await keys(store) == {CHANGES}

    on(valkey, test)


def test_a_reader_counts_until_it_is_over(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        reader = await running(store)
        assert (await judged(store, {reader.id: 0.0, "job_never_made": 0.0}, NOW)).live == [reader.id]
        await store.transact(reader.id, Cancel(), NOW)
        left = await judged(store, {reader.id: 0.0}, NOW)
        assert (left.live, left.leaving) == ([], [reader.id])  # its driver may still read

    on(valkey, test)
