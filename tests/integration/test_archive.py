"""Events and progress of a job, wherever they are: chunks in storage, streams in the store, and pages over both."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from valkey_lab import NOW, Valkey, event, make_job

from jos import archive
from jos.core.commands import Admit, Cancel, DriverGone, Retry
from jos.core.model import Event, Job, Level, Progress, ProgressDraft, Status, job_folder
from jos.storage import open_storage
from jos.storage.base import Storage
from jos.store.records import JobKeys, Mirror
from jos.store.redis import Store

Body = Callable[[Store, Storage, Job], Awaitable[None]]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "CHUNK", 10)
    monkeypatch.setattr(archive, "BATCH", 7)


def with_job(valkey: Valkey, tmp_path: Path, body: Body, **options: Any) -> None:
    """A running job of attempt "token" and its created event."""

    async def run() -> None:
        storage = open_storage(str(tmp_path / "storage"))
        async with await Store.open(None, valkey.data_dir, **options) as store:
            job = make_job()
            await store.create(job, [event("0")])
            job = await store.transact(job.id, Admit("token"), NOW)
            await body(store, storage, job)

    asyncio.run(run())


async def trim(store: Store, job: Job, events: int = 1_000_000, progress: int = 1_000_000) -> None:
    """As the stream's own limit, or the pruner, does it: the first so many are gone."""
    keys = JobKeys.of(job.id)
    await store.connection.command("XTRIM", keys.events, "MINID", f"{events + 1}-0")
    await store.connection.command("XTRIM", keys.progress, "MINID", f"{progress + 1}-0")


async def tell(store: Store, job: Job, first: int, count: int, progress: int = 0, token: str = "token") -> None:
    """Events `first`…, every third of them a warning, and progress entries, each a second after the one before."""
    drafts = [
        event(
            str(n),
            level=Level.WARN if n % 3 == 0 else Level.INFO,
            input_id=f"inp_{n % 2}",
            created_at=NOW + timedelta(seconds=n),
        )
        for n in range(first, first + count)
    ]
    entries = [
        ProgressDraft(kind="inference", step=n, input_id=f"inp_{n % 2}", created_at=NOW + timedelta(seconds=n + 0.5))
        for n in range(first, first + progress)
    ]
    seq = await store.last_seq(job.id, token) + 1
    await store.mirror(job.id, Mirror(token, seq, NOW, events=drafts, progress=entries))


def lengths(storage: Storage, job: Job, name: archive.Name = "events") -> list[tuple[int, int]]:
    """(first id, entries) of each chunk."""
    found = archive.chunks(storage, job.org_id, job.id, name)
    return [(first, len(list(archive.chunk_entries(storage, key)))) for first, key in found]


async def ended(store: Store, job: Job) -> Job:
    await store.transact(job.id, Cancel(), NOW)
    return await store.transact(job.id, DriverGone("token"), NOW)


# --- writing ------------------------------------------------------------------------------------------


def test_only_full_chunks_of_a_running_job_are_written_and_the_rest_at_its_end(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage, job: Job) -> None:
        await tell(store, job, 2, 24, progress=9)  # with those of its creation and admission: 26
        for _ in range(2):
            assert await archive.archive(store, storage, job, everything=False) == archive.Archived(20, 0)
            assert (lengths(storage, job), lengths(storage, job, "progress")) == ([(1, 10), (11, 10)], [])
        assert archive.end_of(storage, job.org_id, job.id) is None
        job = await ended(store, job)
        for _ in range(2):
            assert await archive.archive(store, storage, job, everything=True) == archive.Archived(27, 9)
            assert lengths(storage, job) == [(1, 10), (11, 10), (21, 7)]
            assert lengths(storage, job, "progress") == [(1, 9)]
        end = archive.end_of(storage, job.org_id, job.id)
        assert end is not None
        assert (end.job, end.events, end.progress, end.attempt) == (await store.get(job.id), 27, 9, 1)

    with_job(valkey, tmp_path, body)


def test_a_retried_job_goes_on_behind_its_short_chunk_and_ends_anew(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage, job: Job) -> None:
        await archive.archive(store, storage, await ended(store, job), everything=True)
        assert lengths(storage, job) == [(1, 3)]
        await trim(store, job)
        await store.transact(job.id, Retry(), NOW)
        job = await store.transact(job.id, Admit("second"), NOW)
        await tell(store, job, 2, 15, token="second")
        await archive.archive(store, storage, job, everything=False)
        assert lengths(storage, job) == [(1, 3), (4, 10)]
        stale = archive.end_of(storage, job.org_id, job.id)
        assert stale is not None
        assert stale.job.status is Status.CANCELLED
        await archive.archive(store, storage, job, everything=True)
        assert archive.end_of(storage, job.org_id, job.id) == stale, "it runs: it has no end yet"
        await archive.archive(store, storage, await store.transact(job.id, Cancel(), NOW), everything=True)
        total, found = await archive.events(store, storage, job, limit=100)
        assert [e.id for e in found] == list(range(1, total + 1))
        end = archive.end_of(storage, job.org_id, job.id)
        assert end is not None
        assert end.events == total

    with_job(valkey, tmp_path, body)


@pytest.mark.parametrize("seed", range(5))
def test_archivers_at_once_write_every_event_once(valkey: Valkey, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    async def body(store: Store, storage: Storage, job: Job) -> None:
        for _ in range(6):
            await asyncio.gather(
                tell(store, job, 2, chance.randrange(1, 30)),
                *(archive.archive(store, storage, job, everything=chance.random() < 0.5) for _ in range(3)),
            )
        until = (await archive.archive(store, storage, job, everything=True)).events
        keys = archive.chunks(storage, job.org_id, job.id, "events")
        ids = [entry["id"] for _, key in keys for entry in archive.chunk_entries(storage, key)]
        assert ids == list(range(1, until + 1))

    with_job(valkey, tmp_path, body)


# --- reading ------------------------------------------------------------------------------------------


class Places:
    """The same 60 events and 40 progress entries: all in the store, half of them archived and trimmed, or dropped."""

    async def store(self, store: Store, storage: Storage, job: Job) -> None:
        pass

    async def both(self, store: Store, storage: Storage, job: Job) -> None:
        done = await archive.archive(store, storage, job, everything=False)
        await trim(store, job, done.events - 17, done.progress - 3)

    async def archive(self, store: Store, storage: Storage, job: Job) -> None:
        done = await archive.archive(store, storage, job, everything=True)
        await trim(store, job, done.events, done.progress)


FILTERS: list[dict[str, Any]] = [
    {},
    {"level": Level.WARN},
    {"input_id": "inp_1"},
    {"level": Level.WARN, "input_id": "inp_0", "event_type": "job.created"},
    {"event_type": "job.admitted"},
    {"level": Level.ERROR},
]


@pytest.mark.parametrize("place", ["store", "both", "archive"])
def test_pages_are_the_same_wherever_the_events_are(valkey: Valkey, tmp_path: Path, place: str) -> None:
    async def body(store: Store, storage: Storage, job: Job) -> None:
        await tell(store, job, 2, 58, progress=40)
        _, everything = await store.events(job.id, limit=1000)
        _, entries = await store.progress(job.id, limit=1000)
        await getattr(Places(), place)(store, storage, job)
        chance = random.Random(7)
        for wanted in FILTERS:
            for _ in range(25):
                order: archive.Order = chance.choice(["asc", "desc"])
                after, offset, limit = chance.choice([0, 0, 13, 44, 80]), chance.randrange(70), chance.randrange(40)
                page = {"order": order, "after": after, "offset": offset, "limit": limit}
                matches = [e for e in everything if all(getattr(e, k) == v for k, v in wanted.items())]
                rest = [e for e in matches if e.id > after][:: 1 if order == "asc" else -1]
                found = await archive.events(store, storage, job, **page, **wanted)
                assert found == (len(matches), rest[offset : offset + limit]), (page, wanted)
        assert await archive.progress(store, storage, job, limit=100) == (40, entries)
        odd = [entry for entry in entries if entry.input_id == "inp_1"]
        assert await archive.progress(store, storage, job, limit=100, kind="inference", input_id="inp_1") == (20, odd)
        if place == "store":
            assert list(storage.list(job_folder(job.org_id, job.id))) == []

    with_job(valkey, tmp_path, body)


@pytest.mark.parametrize("place", ["store", "both", "archive"])
def test_history_tells_all_in_order_and_follow_goes_on(valkey: Valkey, tmp_path: Path, place: str) -> None:
    async def body(store: Store, storage: Storage, job: Job) -> None:
        await tell(store, job, 2, 58, progress=40)
        await getattr(Places(), place)(store, storage, job)
        for after_event, after_progress in [(0, 0), (25, 0), (59, 39), (60, 40)]:
            told = [e async for b in archive.history(store, storage, job, after_event, after_progress) for e in b]
            events, progress = [e for e in told if isinstance(e, Event)], [e for e in told if isinstance(e, Progress)]
            assert [e.id for e in events] == list(range(after_event + 1, 61))
            assert [e.id for e in progress] == list(range(after_progress + 1, 41))
            assert told == sorted(told, key=lambda e: e.created_at)
        await tell(store, job, 99, 1)
        fresh = await anext(store.follow(job.id, events[-1].id if events else 60, 40))
        assert [e.id for e in fresh] == [61]

    with_job(valkey, tmp_path, body)


def test_what_was_trimmed_before_it_was_archived_is_a_gap_and_no_more(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage, job: Job) -> None:
        await tell(store, job, 2, 28)
        await trim(store, job, 12)
        await archive.archive(store, storage, job, everything=True)
        await trim(store, job)
        await tell(store, job, 2, 5)
        assert [e.id for e in (await archive.events(store, storage, job, limit=100))[1]] == list(range(13, 36))
        assert [e.id async for b in archive.history(store, storage, job) for e in b] == list(range(13, 36))
        total, found = await archive.events(store, storage, job, limit=4, order="desc", offset=3)
        assert (total, [e.id for e in found]) == (35, [32, 31, 30, 29])

    with_job(valkey, tmp_path, body)


def test_a_damaged_chunk_is_named(valkey: Valkey, tmp_path: Path) -> None:
    async def body(store: Store, storage: Storage, job: Job) -> None:
        await tell(store, job, 2, 8)
        await Places().archive(store, storage, job)
        key = archive.chunks(storage, job.org_id, job.id, "events")[0][1]
        storage.write(key, storage.read(key)[:-9])
        with pytest.raises(archive.ArchiveDamaged, match=r"000000000001\.jsonl"):
            await archive.events(store, storage, job)
        storage.write(archive.end_key(job.org_id, job.id), b"{}")
        with pytest.raises(archive.ArchiveDamaged, match=r"end\.json"):
            archive.end_of(storage, job.org_id, job.id)

    with_job(valkey, tmp_path, body)
