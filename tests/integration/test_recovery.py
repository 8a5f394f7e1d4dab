"""Redis is lost with all that was in it: what storage has is put back, and jobs go on where their logs end."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from jobs_lab import Lab
from kept_lab import BEGAN, Kept, pipeline, spec
from test_driver import shouted, texts
from test_driver_survives import assert_whole, committed_texts, slow_job
from valkey_lab import NOW, Valkey

from jos import archive, recovery, removal
from jos.core.commands import Admit, Cancel, Completed, DriverGone, Retry, Started
from jos.core.errors import NotFound
from jos.core.ledger import STEPS
from jos.core.lifecycle import new_job
from jos.core.model import InputState, InputStatus, Job, JobSpec, Status
from jos.recovery import Recovered, job_folders, recover
from jos.storage import open_storage
from jos.storage.base import Storage
from jos.store import embedded
from jos.store.keys import ApiKeys
from jos.store.pipelines import PipelineRecord, Pipelines
from jos.store.records import Mirror
from jos.store.redis import Store

Body = Callable[[Store, Storage], Awaitable[None]]


def with_store(valkey: Valkey, tmp_path: Path, body: Body) -> None:
    async def run() -> None:
        async with await Store.open(None, valkey.data_dir) as store:
            await body(store, open_storage(str(tmp_path / "storage")))

    asyncio.run(run())


async def put_back(store: Store, storage: Storage, **options: Any) -> Recovered:
    """Must find nothing wrong."""
    found = await recover(store, storage, **options)
    assert found.problems == []
    return found


async def lose(store: Store) -> None:
    await store.connection.command("FLUSHALL")


async def types(store: Store, job: JobSpec | Job) -> list[tuple[int, str]]:
    return [(e.id, e.event_type) for e in (await store.events(job.id))[1]]


async def live_job(store: Store, kept: Kept, token: str = "a") -> Job:
    """A record for a hand-made job, its driver's attempt running."""
    made = new_job(kept.spec, BEGAN)
    if not await _there(store, kept.spec.id):
        await store.create(made.job, list(made.events))
    await store.transact(kept.spec.id, Admit(token), NOW)
    return await store.transact(kept.spec.id, Started(token), NOW)


async def _there(store: Store, job_id: str) -> bool:
    try:
        await store.get(job_id)
    except NotFound:
        return False
    return True


# --- what a job is afterwards -------------------------------------------------------------------------


def test_a_job_whose_work_is_all_committed_is_completed_with_its_outputs(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage) -> None:
        kept = Kept(storage, tasks={1: 10})
        kept.complete(failed=1)
        found = await put_back(store, storage)
        assert (found.jobs, found.statuses, found.there) == (1, {"COMPLETED": 1}, 0)
        job = await store.get(kept.spec.id)
        assert (job.status, job.holds_capacity, job.org_id, job.queue) == (Status.COMPLETED, False, "org_a", "nightly")
        assert job.attempt is not None
        assert (job.attempt.number, job.attempt.token) == (1, "a")
        assert job.started_at is not None
        assert job.completed_at == kept.clock.replace(microsecond=0)
        outputs = await store.outputs(job.id)
        assert {o.filename: storage.read(kept.folder + o.key) for o in outputs} == kept.outputs()
        assert [o.filename for o in outputs] == ["inp_0_0.txt", "inp_0_1.txt", "inp_1_0.txt"]
        states = await store.inputs(job.id)
        assert [(s.status, s.done, s.failed, s.step) for s in states.values()] == [
            (InputStatus.FAILED, 20, 1, 1),
            (InputStatus.FAILED, 10, 1, 2),
        ]
        assert states["inp_0"].error_message == "task 0 is bad"
        assert await types(store, job) == [(1, "job.created"), (2, "job.recovered")]
        assert [(p.input_id, p.step) for p in (await store.progress(job.id))[1]] == [("inp_0", 20), ("inp_1", 10)]

    with_store(valkey, tmp_path, body)


def test_a_job_that_is_being_deleted_or_created_at_this_moment_is_left_alone(valkey: Valkey, tmp_path: Path) -> None:
    """Its record is gone already, and its folder will be; or the record is about to come."""

    async def body(store: Store, storage: Storage) -> None:
        kept = Kept(storage, tasks={1: 10})
        await removal.mark(store.connection, kept.spec.org_id, kept.spec.id)
        assert (await put_back(store, storage)).jobs == 0
        await store.connection.command("DEL", removal.MARKS)
        later = kept.spec.model_copy(update={"created_at": datetime.now(UTC) + timedelta(minutes=1)})
        storage.write(kept.folder + "job.json", later.model_dump_json(by_alias=True).encode())
        assert (await put_back(store, storage)).jobs == 0

    with_store(valkey, tmp_path, body)


def test_an_unfinished_job_waits_to_go_on_and_its_attempts_are_counted_on(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage) -> None:
        fresh, begun = Kept(storage, planned=False), Kept(storage)
        for token in ("a", "b", "c"):
            begun.claim(token)
        begun.work(1, "c")
        begun.append(begun.commit(0, 5, 10, "c"), attempt="c")
        assert (await put_back(store, storage)).statuses == {"PENDING": 2}
        job = await store.get(fresh.spec.id)
        assert (job.status, job.attempt, job.holds_capacity, job.started_at) == (Status.PENDING, None, False, None)
        job = await store.get(begun.spec.id)
        assert job.attempt is not None
        assert (job.status, job.attempt.number, job.holds_capacity) == (Status.PENDING, 3, False)
        states = await store.inputs(job.id)
        assert {name: (s.status, s.done, s.step) for name, s in states.items()} == {
            "inp_0": (InputStatus.PROCESSING, 5, None),
            "inp_1": (InputStatus.COMPLETED, 20, 1),
        }
        assert [o.filename for o in await store.outputs(job.id)] == ["inp_1_0.txt", "inp_1_1.txt"]
        job = await store.transact(job.id, Admit("d"), NOW)
        assert job.attempt is not None
        assert job.attempt.number == 4

    with_store(valkey, tmp_path, body)


def test_what_a_last_driver_committed_and_could_not_tell_is_listed_once_the_job_is_over(
    valkey: Valkey, tmp_path: Path
) -> None:
    async def body(store: Store, storage: Storage) -> None:
        kept = Kept(storage)
        job = await live_job(store, kept)
        kept.claim()
        kept.work(0)
        await store.mirror(job.id, Mirror("a", 7, NOW, inputs=_states(storage, job), outputs=[]))
        kept.work(1)  # then it is killed
        await store.transact(job.id, DriverGone("a", "killed"), NOW)
        job = await store.transact(job.id, Cancel(), NOW)
        for _ in range(2):  # the second time there is nothing to tell
            await recovery.put_away(store, storage, job, everything=True)
            assert {o.filename for o in await store.outputs(job.id)} == set(kept.outputs())
            states = await store.inputs(job.id)
            assert [(s.status, s.done, s.step) for _, s in sorted(states.items())] == [
                (InputStatus.COMPLETED, 20, 1),
                (InputStatus.COMPLETED, 20, 2),
            ]
            live = await store.live(job.id)
            assert live is not None
            assert live.seq == 8
        assert archive.end_of(storage, job.org_id, job.id) is not None

    with_store(valkey, tmp_path, body)


def _states(storage: Storage, job: Job) -> list[InputState]:
    return recovery.read_job(storage, job.org_id, job.id)[1].states()


def test_a_damaged_log_keeps_no_job_from_the_archive(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage) -> None:
        kept = Kept(storage)
        job = await live_job(store, kept)
        kept.complete()
        storage.write(kept.entry_key(1), b"{")
        await store.transact(job.id, DriverGone("a", "killed"), NOW)
        job = await store.transact(job.id, Cancel(), NOW)
        await recovery.put_away(store, storage, job, everything=True)
        assert archive.end_of(storage, job.org_id, job.id) is not None

    with_store(valkey, tmp_path, body)


def test_a_driver_that_lived_on_is_told_that_its_attempt_is_over(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage) -> None:
        kept = Kept(storage)
        kept.claim("a")
        await put_back(store, storage)
        reply = await store.mirror(kept.spec.id, Mirror("a", 9, NOW))
        assert reply.status is Status.PENDING, "which makes it commit what it has and leave"
        with pytest.raises(Exception, match="ended before"):
            await store.transact(kept.spec.id, Completed("a"), NOW)

    with_store(valkey, tmp_path, body)


def test_a_job_of_which_nothing_succeeded_is_failed(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage) -> None:
        kept = Kept(storage, spec(1), tasks={0: 10})
        kept.claim()
        kept.append(kept.commit(0, 0, 5, failed=5), kept.commit(0, 5, 10, failed=5))
        kept.append(finished=[kept.finished(0, 0)])
        await put_back(store, storage)
        job = await store.get(kept.spec.id)
        assert job.error is not None
        assert (job.status, job.error.code) == (Status.FAILED, "all_inputs_failed")
        job = await store.transact(job.id, Retry(), NOW)
        assert job.retry_count == 1, "more than the log has seen, so that the failed tasks are tried again"

    with_store(valkey, tmp_path, body)


def test_training_is_put_back_with_its_curve(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage) -> None:
        kept = Kept(storage, spec(1, training=True))
        kept.claim()
        kept.append(kept.commit(STEPS, 0, 5), kept.commit(STEPS, 5, 10))
        await put_back(store, storage)
        entries = (await store.progress(kept.spec.id))[1]
        assert [(e.kind, e.step, e.metrics) for e in entries] == [
            ("training", 5, {"loss": 0.2}),
            ("training", 10, {"loss": 0.1}),
        ]
        assert (await store.inputs(kept.spec.id))["inp_0"].status is InputStatus.PROCESSING

    with_store(valkey, tmp_path, body)


# --- what the archive adds ----------------------------------------------------------------------------


def test_a_cancelled_job_stays_cancelled_and_its_events_go_on(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage) -> None:
        kept = Kept(storage)
        kept.claim("a")
        kept.work(0)
        job = await live_job(store, kept)
        job = await store.transact(job.id, Cancel(), NOW)
        await archive.archive(store, storage, job, everything=True)
        await lose(store)
        await put_back(store, storage)
        again = await store.get(job.id)
        assert (again.status, again.cancelled_at, again.holds_capacity) == (Status.CANCELLED, NOW, False)
        assert await types(store, job) == [(5, "job.recovered")]
        total, events = await archive.events(store, storage, again)
        assert [(e.id, e.event_type) for e in events] == [
            *enumerate(["job.created", "job.admitted", "job.started", "job.canceled", "job.recovered"], 1)
        ]
        assert (total, len(await store.outputs(job.id))) == (5, 2)

        # retried, and lost again in the middle: the end before says nothing any more
        await store.transact(job.id, Retry(), NOW)
        kept.claim("b", retry=1)
        await live_job(store, kept, "b")
        await lose(store)
        await put_back(store, storage)
        again = await store.get(job.id)
        assert again.attempt is not None
        assert (again.status, again.attempt.number, again.retry_count) == (Status.PENDING, 2, 1)
        assert (await types(store, job))[0][0] == 5, "the same number: the archive was not told of the first recovery"

    with_store(valkey, tmp_path, body)


def test_an_attempt_that_never_claimed_the_log_counts_too(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage) -> None:
        kept = Kept(storage, clock=datetime.now(UTC))
        kept.claim("a")
        await live_job(store, kept, "a")
        for token in ("b", "c"):
            await store.transact(kept.spec.id, DriverGone("b" if token == "c" else "a"), NOW)
            await store.transact(kept.spec.id, Admit(token), NOW)
        job = await store.transact(kept.spec.id, Cancel(), NOW)
        await archive.archive(store, storage, job, everything=True)
        await lose(store)
        assert (await put_back(store, storage)).statuses == {"PENDING": 1}, "a's claim is later than that end"

        await lose(store)
        kept = Kept(storage)
        kept.claim("a")
        await live_job(store, kept, "a")
        await store.transact(kept.spec.id, DriverGone("a"), NOW)
        await store.transact(kept.spec.id, Admit("b"), NOW)
        job = await store.transact(kept.spec.id, Cancel(), NOW)
        await archive.archive(store, storage, job, everything=True)
        await lose(store)
        await put_back(store, storage)
        again = await store.get(kept.spec.id)
        assert again.attempt is not None
        assert (again.status, again.attempt.number, again.attempt.token) == (Status.CANCELLED, 2, "b")

    with_store(valkey, tmp_path, body)


# --- how it goes about it -----------------------------------------------------------------------------


def test_it_may_run_twice_and_touches_nothing_that_is_there(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage) -> None:
        jobs = [Kept(storage) for _ in range(20)]
        running = await live_job(store, jobs[0])
        dry = await put_back(store, storage, dry_run=True)
        assert (dry.jobs, dry.there) == (19, 1)
        assert (await store.jobs(None))[0] == 1
        assert await put_back(store, storage) == dry
        before = [await store.get(kept.spec.id) for kept in jobs]
        assert before[0] == running
        again = await put_back(store, storage)
        assert (again.jobs, again.there) == (0, 20)
        assert [await store.get(kept.spec.id) for kept in jobs] == before
        assert all([len(await types(store, job)) == 2 for job in before[1:]])
        waiting = [job.id for job in await store.active() if job.status is Status.PENDING]
        assert sorted(waiting) == sorted(kept.spec.id for kept in jobs[1:])

    with_store(valkey, tmp_path, body)


def test_what_is_damaged_is_named_and_the_others_are_put_back(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage) -> None:
        good, cut, odd, gap, other, none, end, plan = (Kept(storage) for _ in range(8))
        for kept in (good, cut, odd, gap, other, none, end, plan):
            kept.claim()
            kept.append(kept.commit(0, 0, 5))
            kept.append(kept.commit(0, 5, 10))
        key = f"{cut.folder}job.json"
        storage.write(key, storage.read(key)[:100])
        storage.write(f"{odd.folder}job.json", b"[]")
        storage.delete([gap.entry_key(1)])
        storage.write(f"{other.folder}job.json", good.spec.model_dump_json(by_alias=True).encode())
        storage.delete([f"{none.folder}job.json"])
        (tmp_path / "storage" / "org_a" / "jobs" / "job_gone").mkdir()
        storage.write(f"{end.folder}archive/end.json", b"{")
        storage.write(f"{plan.folder}plan/00000000.json", b'[{"input": 0}]')
        storage.write("system/keys/key_bad.json", b"{}")
        lines: list[str] = []
        found = await recover(store, storage, keys=ApiKeys(store.connection), report=lines.append)
        assert (found.jobs, found.statuses) == (1, {"PENDING": 1})
        assert (await store.get(good.spec.id)).status is Status.PENDING
        assert len(found.problems) == 7
        assert [none.spec.id in note for note in found.notes] == [True], "what is left of a job that was deleted"
        for what in ("job.json cannot be read", "is missing, but a later entry", "is that of", "end.json"):
            assert any(what in problem for problem in found.problems), what
        for kept in (cut, odd, gap, other, end, plan):
            assert len([problem for problem in found.problems if kept.spec.id in problem]) == 1
        assert sum(line.startswith("NOT RECOVERED") for line in lines) == 7

    with_store(valkey, tmp_path, body)


def test_the_walk_finds_every_job_and_nothing_else(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    wanted = [(org, job) for org in ("jobs", "org_a", "org_b") for job in ("job_1", "job_2", "job_3")]
    for org, job in wanted:
        storage.create(f"{org}/jobs/{job}/job.json", b"x")
        storage.create(f"{org}/jobs/{job}/log/1", b"x")
        storage.create(f"{org}/files/{job}/data/a.csv", b"x")
    storage.create("system/keys/1.json", b"x")
    storage.create("loose", b"x")
    storage.create("org_c/jobs/loose", b"x")
    assert list(job_folders(storage)) == wanted


def test_keys_and_pipelines_come_back_and_revoked_ones_do_not(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage) -> None:
        keys, pipelines = ApiKeys(store.connection), Pipelines(store.connection)
        key, secret = await keys.create("org_a", "user", "mine", NOW)
        gone, gone_secret = await keys.create("org_a", "admin", "gone", NOW)
        for one in (key, gone):
            await recovery.save_key(storage, one)
        assert secret.encode() not in storage.read(f"system/keys/{key.id}.json")
        await recovery.drop_key(storage, gone.id)
        records = [
            PipelineRecord(pipeline=pipeline(), org_id=org, created_at=NOW, updated_at=NOW) for org in ("org_a", None)
        ]
        for record in records:
            await recovery.save_pipeline(storage, record)
        await recovery.drop_pipeline(storage, None, "kept", "1.0.0")
        await lose(store)
        found = await put_back(store, storage, keys=keys, pipelines=pipelines)
        assert (found.keys, found.pipelines) == (1, 1)
        assert await keys.find(secret) == key
        assert await keys.find(gone_secret) is None
        assert await pipelines.all() == records[:1]
        again = await put_back(store, storage, keys=keys, pipelines=pipelines)
        assert (again.keys, again.pipelines) == (0, 0)

    with_store(valkey, tmp_path, body)


def test_routes_say_where_a_recovered_job_waits(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage) -> None:
        kept = Kept(storage)
        await put_back(store, storage, queue_of=lambda spec: f"for-{spec.pipeline.pipeline_key}")
        assert (await store.get(kept.spec.id)).queue == "for-kept"

    with_store(valkey, tmp_path, body)


# --- real jobs ----------------------------------------------------------------------------------------


def test_a_wiped_redis_loses_no_job(lab: Lab) -> None:
    """One completed, one killed in the middle, one never begun; then the server and its folder are gone."""
    files = [lab.write("b.jsonl", texts("b", 40)), lab.write("c.jsonl", [{"text": "c 0", "refuse": "bad"}])]
    done = lab.submit("shout", files, span_records=8)
    lab.complete(done)
    before = lab.engine.outputs(done), lab.engine.inputs(done), lab.outputs(done), lab.get(done)
    fresh = lab.submit("shout", files)
    half = slow_job(lab)
    driver = lab.resume(half)
    lab.wait_for_tasks(half, 8)
    driver.kill()
    committed = committed_texts(lab, half)

    lab.engine.close()
    del lab.__dict__["engine"]
    embedded.stop(lab.settings.redis_dir)
    shutil.rmtree(lab.settings.redis_dir)

    parts = lab.engine.parts
    found = lab.engine._thread.call(recover(parts.store, parts.storage, pipelines=None))
    assert (found.problems, found.statuses) == ([], {"COMPLETED": 1, "PENDING": 2})
    outputs, inputs, contents, job = before
    assert (lab.engine.outputs(done), lab.outputs(done)) == (outputs, contents)
    same = ("id", "filename", "status", "tasks", "done", "failed", "error_message", "step")
    again = lab.engine.inputs(done)
    assert [[i.get(n) for n in same[:-1]] for i in again] == [[i.get(n) for n in same[:-1]] for i in inputs]
    assert sorted(i["step"] for i in again) == [1, 2]
    kept = {"name", "org_id", "pipeline_key", "parameters", "created_at", "status", "resources", "timeouts", "queue"}
    assert lab.get(done).model_dump(include=kept) == job.model_dump(include=kept)

    assert lab.complete(fresh).status is Status.COMPLETED
    assert lab.outputs(fresh) == contents
    lab.complete(half)
    assert_whole(lab, half, committed)
    assert lab.outputs(half) == [shouted(texts("a", 60))]
    assert len(lab.attempts(half)) == 2
    attempt = lab.get(half).attempt
    assert attempt is not None
    assert attempt.number == 2
    assert [e.event_type for e in lab.events(half)][:3] == ["job.created", "job.recovered", "job.admitted"]
