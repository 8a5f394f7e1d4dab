"""The stream of changes: wakes who waits, names each changed job, and says when something was missed."""

from __future__ import annotations

import asyncio

import pytest
from store_lab import on, running
from valkey_lab import NOW, Valkey, event, make_job

from jos.core.commands import Cancel, Retry
from jos.core.errors import Conflict
from jos.store import changes
from jos.store.changes import CHANGES, ChangesLost
from jos.store.records import Mirror
from jos.store.redis import Store


def test_each_write_of_a_record_is_told_and_nothing_else(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        start = await changes.latest(store.connection)
        assert await changes.wait(store.connection, start, 1) == (start, [])
        first, second = await running(store), await store.create(make_job(), [event()])
        at, names = await changes.wait(store.connection, start, 1_000)
        assert names == [first.id, second.id]
        assert at == await changes.latest(store.connection)
        await store.mirror(first.id, Mirror("tok", 1, NOW, [event()]))
        with pytest.raises(Conflict):
            await store.transact(second.id, Retry(), NOW)
        assert await changes.wait(store.connection, at, 1) == (at, [])
        await store.delete(second.id)
        await store.delete(second.id)
        assert (await changes.wait(store.connection, at, 1_000))[1] == [second.id]
        entries = await store.connection.command("XRANGE", CHANGES, "-", "+")
        assert {fields[b"org"] for _, fields in entries} == {b"org_a"}

    on(valkey, test)


def test_a_change_wakes_who_waits_without_delaying_anybody(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await store.create(make_job(), [event()])
        at = await changes.latest(store.connection)
        waiting = [asyncio.create_task(changes.wait(store.connection, at, 5_000)) for _ in range(50)]

        async with asyncio.timeout(20):
            while (await store.connection.command("INFO", "clients"))["blocked_clients"] < 50:
                continue
        await store.transact(job.id, Cancel(), NOW)
        done = await asyncio.wait_for(asyncio.gather(*waiting), 4)
        assert {names[0] for _, names in done} == {job.id}

    on(valkey, test)


def test_whoever_fell_behind_is_told_to_look_at_everything(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await store.create(make_job(), [event()])
        old = await changes.latest(store.connection)
        await store.transact(job.id, Cancel(), NOW)
        middle = await changes.latest(store.connection)
        await store.transact(job.id, Retry(), NOW)
        await store.connection.command("XTRIM", CHANGES, "MAXLEN", 2)
        with pytest.raises(ChangesLost):
            await changes.wait(store.connection, old, 1)
        assert (await changes.wait(store.connection, middle, 1))[1] == [job.id]

    on(valkey, test)


@pytest.mark.parametrize("since", ["before", "after"])
def test_a_server_that_lost_its_data_is_noticed(valkey: Valkey, since: str) -> None:
    async def test(store: Store) -> None:
        await store.create(make_job(), [event()])
        at = await changes.latest(store.connection) if since == "before" else "99999999999999-0"
        await store.connection.command("FLUSHALL")
        if since == "after":  # the clock of the new server is behind
            await store.create(make_job(), [event()])
        with pytest.raises(ChangesLost):
            await changes.wait(store.connection, at, 1)

    on(valkey, test)


def test_a_reader_from_the_very_start_notices_what_may_have_been_trimmed(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(store: Store) -> None:
        await store.create(make_job(), [event()])
        assert len((await changes.wait(store.connection, "0-0", 1))[1]) == 1
        monkeypatch.setattr(changes, "KEEP", 1)
        with pytest.raises(ChangesLost):
            await changes.wait(store.connection, "0-0", 1)

    on(valkey, test)


def test_a_reader_goes_on_over_kills_of_the_server(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        at, seen, expected = await changes.latest(store.connection), set(), set()
        for turn in range(6):
            expected.add((await store.create(make_job(), [event()])).id)
            if turn % 2:
                await asyncio.to_thread(valkey.kill)
            async with asyncio.timeout(60):  # a server that was killed takes its time to come back
                while seen != expected:
                    at, names = await changes.wait(store.connection, at, 1_000)
                    seen |= set(names)

    on(valkey, test)
