"""Files are put back beside a service that works: its pruner removes nothing that a live job reads."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from api_lab import Api, now

from jos.core.files import FileStatus
from jos.core.model import Job
from jos.files.service import Files
from jos.store.files import FileRecords
from jos.store.redis import Store

OLD, NEW = b'{"text": "old"}\n', b'{"text": "new"}\n'


def test_a_pruner_beside_a_recovery_leaves_what_a_live_job_reads(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.upload("a.jsonl", OLD)
    api.create("a.jsonl")
    api.upload("a.jsonl", NEW)
    mark = Files._mark_again

    async def pruned_before(self: Files, job: Job) -> None:
        await self.prune(now())
        await mark(self, job)

    async def recover(store: Store) -> int:
        await forget(store)
        files = Files(store, api.service.storage)
        restored = await files.recover()
        await files.prune(later())
        return restored

    monkeypatch.setattr(Files, "_mark_again", pruned_before)
    assert api.with_store(recover) == 2
    kept = [api.service.storage.read(s.key) for s in api.service.storage.list("org_a/files/") if "/data/" in s.key]
    assert sorted(kept) == [NEW, OLD]


def test_a_file_that_is_half_removed_keeps_no_other_reader_from_being_marked(api: Api) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        api.upload(name)
    jobs = [api.create("a.jsonl", "b.jsonl") for _ in range(2)]

    async def recover(store: Store) -> dict[str, float]:
        records = FileRecords(store.connection)
        half = await records.named("org_a", "a.jsonl")
        kept = await records.named("org_a", "b.jsonl")
        assert half is not None
        assert kept is not None
        await records.apply(records.change("org_a").put_file(half.but(status=FileStatus.REMOVING)))
        for uid in (half.uid, kept.uid):
            await store.connection.command("DEL", records.change("org_a").keys.readers(uid))
        await Files(store, api.service.storage).recover()
        return await records.readers("org_a", kept.uid)

    assert set(api.with_store(recover)) == set(jobs)


async def forget(store: Store) -> None:
    await store.connection.command("DEL", *await store.connection.command("KEYS", "jos:*files*"))


def later() -> datetime:
    return now() + timedelta(hours=2)
