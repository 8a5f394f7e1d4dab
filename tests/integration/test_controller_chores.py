"""What a controller does beside admission: archives, prunes, tells its numbers."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from controller_lab import House, at_home, now, until
from fake_launcher import Script
from valkey_lab import Valkey

from jos import archive
from jos.archive import CHUNK, Archived
from jos.controller.archiver import Archiver
from jos.controller.controller import Duties
from jos.controller.metrics import Metrics, serve
from jos.controller.pruner import Pruner
from jos.controller.view import View
from jos.core.commands import Admit, Cancel, Retry
from jos.core.errors import NotFound, StorageUnavailable
from jos.core.model import EventDraft, Job, Status, job_folder
from jos.files.service import Files
from jos.removal import MARKS, Removals
from jos.storage import open_storage
from jos.store.changes import CHANGES
from jos.store.records import Mirror


def home(valkey: Valkey) -> Path:
    return valkey.data_dir.parent


@dataclass
class Shelf:
    """Stands for jos.archive."""

    house: House
    saved: list[tuple[str, bool]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    async def __call__(self, job: Job, *, everything: bool) -> Archived:
        if job.id in self.broken:
            raise StorageUnavailable("The disk is full.")
        self.saved.append((job.id, everything))
        total, _ = await self.house.store.events(job.id, limit=1)
        return Archived(total, 0)

    def ended(self) -> list[str]:
        return [job_id for job_id, everything in self.saved if everything]


def archiver(house: House, shelf: Shelf) -> Archiver:
    return Archiver(house.store, View(house.store), shelf, Metrics())


async def ended_job(house: House) -> Job:
    return await house.say(await house.submit(), Cancel())


def test_a_job_is_archived_when_it_has_ended(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        shelf = Shelf(house)
        house.controller(Duties(archive=shelf))
        job = await house.reaches(await house.submit(), Status.COMPLETED)
        await until(lambda: _true(shelf.ended() == [job.id]))

    at_home(home(valkey), test)


def test_whoever_counts_hears_of_each_job_that_ended(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        job, heard = await ended_job(house), list[str]()

        async def ended(job: Job) -> None:
            heard.append(job.id)

        await Archiver(house.store, View(house.store), Shelf(house), Metrics(), ended).step(now())
        assert heard == [job.id]

    at_home(home(valkey), test)


def test_jobs_that_ended_while_no_controller_ran_are_archived_by_the_next(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        shelf = Shelf(house)
        first = await ended_job(house)
        await archiver(house, shelf).step(now())  # no position yet: it looks at all jobs
        second = await ended_job(house)
        await archiver(house, shelf).step(now())
        assert shelf.ended() == [first.id, second.id]
        await archiver(house, shelf).step(now())
        assert len(shelf.ended()) == 2

    at_home(home(valkey), test)


def test_changes_that_were_trimmed_are_made_good_by_a_look_at_all_jobs(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        shelf = Shelf(house)
        await ended_job(house)
        await archiver(house, shelf).step(now())
        missed = await ended_job(house)
        await house.store.connection.command("XTRIM", CHANGES, "MAXLEN", 0)
        await ended_job(house)
        await archiver(house, shelf).step(now())
        assert missed.id in shelf.ended()

    at_home(home(valkey), test)


def test_a_job_that_cannot_be_archived_is_tried_again_and_holds_up_no_other(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        bad, good = await ended_job(house), await ended_job(house)
        shelf = Shelf(house, broken={bad.id})
        loop = archiver(house, shelf)
        await loop.step(now())
        assert shelf.ended() == [good.id]
        shelf.broken.clear()
        await loop.step(now() + timedelta(minutes=2))
        assert shelf.ended() == [good.id, bad.id]

    at_home(home(valkey), test)


def test_a_job_that_runs_long_is_archived_in_pieces_before_its_events_are_trimmed(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        job = await house.say(await house.submit(), Admit("tok"))
        shelf, view = Shelf(house), View(house.store)
        await view.resync()
        loop = Archiver(house.store, view, shelf, Metrics())
        await loop.step(now())
        assert shelf.saved == []
        note = EventDraft(event_type="note", message="", created_at=now())
        for batch in range(1, CHUNK // 2000 + 1):
            await house.store.mirror(job.id, Mirror("tok", batch, now(), events=[note] * 2000))
        await loop.step(now() + timedelta(minutes=1))
        await loop.step(now() + timedelta(minutes=2))
        assert shelf.saved == [(job.id, False)]

    at_home(home(valkey), test)


def pruner(house: House, **kept: Any) -> Pruner:
    storage = open_storage(str(house.folder / "storage"))
    options: dict[str, Any] = {"streams_kept": timedelta(hours=1), "jobs_kept": None, **kept}
    removals = Removals(house.store, storage, Files(house.store, storage))
    return Pruner(house.store, storage, removals, Metrics(), **options)


def test_streams_go_hours_after_the_archive_but_not_of_a_job_that_was_retried(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        shelf = Shelf(house)
        gone, retried = await ended_job(house), await ended_job(house)
        await archiver(house, shelf).step(now())
        storage = open_storage(str(house.folder / "storage"))
        for job in (gone, retried):  # the shelf only notes what it is given
            await archive.archive(house.store, storage, await house.store.get(job.id), everything=True)
        await house.say(retried, Retry())
        await pruner(house).step(now())
        assert (await house.store.events(gone.id))[1]
        await pruner(house).step(now() + timedelta(hours=2))
        assert not (await house.store.events(gone.id))[1]
        assert (await house.store.events(retried.id))[1]

    at_home(home(valkey), test)


def test_removing_many_folders_takes_two_threads_at_most(valkey: Valkey) -> None:
    """Of those that everything else in the process shares, however long the storage takes."""

    async def test(house: House) -> None:
        storage = open_storage(str(house.folder / "storage"))
        removals = Removals(house.store, storage, Files(house.store, storage))
        busy, most, done = 0, 0, threading.Event()

        def empty(folder: str) -> None:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            done.wait()
            busy -= 1

        removals._empty = empty  # type: ignore[method-assign]
        jobs = [await house.submit() for _ in range(5)]
        going = [asyncio.create_task(removals.remove(job, lambda _: None)) for job in jobs]
        await until(lambda: _true(busy == 2))
        await until(lambda: _true(len(removals._tasks) == 5))
        done.set()
        await asyncio.gather(*going)
        assert most == 2

    at_home(home(valkey), test)


def test_jobs_are_removed_after_the_retention_time_and_only_those(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        storage = open_storage(str(house.folder / "storage"))
        old, runs = await ended_job(house), await house.submit()
        for job in (old, runs):
            storage.write(f"{job_folder(job.org_id, job.id)}job.json", b"{}")
            storage.write(f"{job_folder(job.org_id, job.id)}outputs/a/x.csv", b"1")
        await pruner(house).step(now() + timedelta(days=999))
        assert len(await house.store.get_many([old.id, runs.id])) == 2  # no retention time is set
        await pruner(house, jobs_kept=timedelta(days=7)).step(now() + timedelta(days=6))
        assert len(await house.store.get_many([old.id, runs.id])) == 2
        await pruner(house, jobs_kept=timedelta(days=7)).step(now() + timedelta(days=8))
        assert list(await house.store.get_many([old.id, runs.id])) == [runs.id]
        assert not list(storage.list(job_folder(old.org_id, old.id)))
        assert len(list(storage.list(job_folder(runs.org_id, runs.id)))) == 2

    at_home(home(valkey), test)


def test_a_job_that_is_retried_just_then_is_not_removed(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        storage = open_storage(str(house.folder / "storage"))
        job = await ended_job(house)
        key = f"{job_folder(job.org_id, job.id)}job.json"
        storage.write(key, b"{}")
        loop = pruner(house, jobs_kept=timedelta(days=7))
        found = loop._old

        async def old_and_then_retried(*arguments: Any) -> list[Job]:
            jobs = await found(*arguments)
            if jobs:
                await house.say(job, Retry())
            return jobs

        loop._old = old_and_then_retried  # type: ignore[method-assign]
        await loop.step(now() + timedelta(days=8))
        assert (await house.store.get(job.id)).status is Status.PENDING
        assert storage.stat(key) is not None
        assert not await house.store.connection.command("ZCARD", MARKS)

    at_home(home(valkey), test)


def test_an_archive_that_is_damaged_keeps_no_other_streams_in_redis(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        storage = open_storage(str(house.folder / "storage"))
        bad, good = await ended_job(house), await ended_job(house)
        await archiver(house, Shelf(house)).step(now())
        for job in (bad, good):
            await archive.archive(house.store, storage, await house.store.get(job.id), everything=True)
        storage.write(archive.end_key(bad.org_id, bad.id), b"{")
        await pruner(house).step(now() + timedelta(hours=2))
        assert (await house.store.events(bad.id))[1]
        assert not (await house.store.events(good.id))[1]

    at_home(home(valkey), test)


def test_what_is_archived_while_its_job_is_deleted_is_deleted_as_well(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        storage = open_storage(str(house.folder / "storage"))
        job = await ended_job(house)

        async def deleted_meanwhile(job: Job, *, everything: bool) -> Archived:
            await house.store.delete(job.id)
            storage.write(f"{job_folder(job.org_id, job.id)}archive/events/000000000001.jsonl", b"{}")
            raise NotFound("There is no such job.")

        await Archiver(house.store, View(house.store), deleted_meanwhile, Metrics()).step(now())
        loop = pruner(house)
        old = ("ZADD", MARKS, "XX", 0, f"{job.org_id} {job.id}")  # the mark is there, and as if a while had passed
        await house.store.connection.command(*old)
        await loop.step(now())
        assert not list(storage.list(job_folder(job.org_id, job.id)))
        assert not await house.store.connection.command("ZCARD", MARKS)

    at_home(home(valkey), test)


def test_a_deletion_that_waited_for_redis_is_marked_though_another_took_its_mark_for_old(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(house: House) -> None:
        storage = open_storage(str(house.folder / "storage"))
        job = await ended_job(house)
        storage.write(f"{job_folder(job.org_id, job.id)}job.json", b"{}")
        removals = Removals(house.store, storage, Files(house.store, storage))
        age = ("ZADD", MARKS, "XX", 0, f"{job.org_id} {job.id}")
        delete = house.store.delete

        async def slow(*arguments: Any, **options: Any) -> None:
            await house.store.connection.command(*age)
            await removals.go_on()  # another process's: it finds an old mark, and the record
            await delete(*arguments, **options)

        def fails(keys: object) -> None:
            raise StorageUnavailable("away")

        with monkeypatch.context() as patch:
            patch.setattr(house.store, "delete", slow)
            patch.setattr(storage, "delete", fails)
            await removals.remove(job)
        await house.store.connection.command(*age)
        await removals.go_on()
        assert not list(storage.list(job_folder(job.org_id, job.id)))
        assert not await house.store.connection.command("ZCARD", MARKS)

    at_home(home(valkey), test)


def test_a_sweep_that_fails_keeps_no_other_from_its_work(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        swept = []

        async def fails(when: object) -> None:
            raise StorageUnavailable("away")

        async def works(when: object) -> None:
            swept.append(when)

        await pruner(house, sweeps=[("uploads", fails), ("files", works)]).step(now())
        assert len(swept) == 1

    at_home(home(valkey), test)


def test_numbers_and_health_are_served_over_http(valkey: Valkey) -> None:
    async def test(house: House) -> None:
        house.launcher.scripts = lambda job, number: Script(work=None)
        controller = house.controller()
        server = await serve("127.0.0.1", 0, controller.metrics, controller.healthy)
        port = server.sockets[0].getsockname()[1]
        await house.reaches(await house.submit(), Status.RUNNING)
        await house.submit()
        wanted = (
            b"jos_controller_leader 1.0",
            b'jos_queue_depth{queue="default"} 1.0',
            b'jos_jobs{status="RUNNING"} 1.0',
            b'jos_drivers{state="running"} 1.0',
            b'jos_admissions_total{queue="default"} 1.0',
            b"jos_admission_seconds_count 1.0",
            b"jos_indexes_granted 1.0",
            b"jos_cluster_answers 1.0",
        )
        await until(lambda: _holds(port, wanted), what=str(wanted))
        assert b"200 OK" in await _get(port, "/healthz")
        assert b"404" in await _get(port, "/else")
        await house.end(controller)
        assert b"503" in await _get(port, "/healthz")
        server.close()

    at_home(home(valkey), test, cpu=1)


async def _get(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def _holds(port: int, wanted: tuple[bytes, ...]) -> bool:
    answer = await _get(port, "/metrics")
    return all(line in answer for line in wanted)


async def _true(value: object) -> object:
    return value
