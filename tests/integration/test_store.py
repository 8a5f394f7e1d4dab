"""The store on a real Valkey: atomic, fenced, repeatable, and in order, whatever breaks in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import timedelta
from pathlib import Path

import pytest
from store_lab import checkpoint, count_up, keys, numbers, on, output, progress, running
from valkey_lab import NOW, OWNER, Valkey, alive, event, make_job, python, wait_until

from jos.core.commands import Admit, Cancel, Completed, DriverGone, Retry, Started
from jos.core.errors import (
    Conflict,
    InvalidTransition,
    NotFound,
    StaleAttempt,
    StoreUnavailable,
)
from jos.core.ids import new_id
from jos.core.model import Event, InputState, InputStatus, Level, Progress, Status
from jos.store import embedded
from jos.store.beats import beats
from jos.store.changes import CHANGES
from jos.store.records import JobKeys, Mirror
from jos.store.redis import Store

# --- jobs ---------------------------------------------------------------------------------------------


def test_a_job_comes_back_as_it_was_written(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = make_job(name="Ünïcode ☃", parameters={"worker": {"config": {"threshold": 0.1, "empty": []}}})
        assert await store.create(job, [event()]) == job
        assert await store.get(job.id) == job
        assert (await store.events(job.id))[1][0].event_type == "job.created"

    on(valkey, test)


def test_a_second_creation_of_the_same_id_is_a_conflict(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await store.create(make_job(), [event()])
        with pytest.raises(Conflict, match="exists already"):
            await store.create(job.model_copy(update={"name": "other"}), [event()])
        assert (await store.get(job.id)).name == "nightly"
        assert (await store.events(job.id))[0] == 1

    on(valkey, test)


def test_an_unknown_job_is_not_found_wherever_it_is_asked_for(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        nobody = new_id("job")
        for call in (
            store.get(nobody),
            store.transact(nobody, Cancel(), NOW),
            store.mirror(nobody, Mirror("tok", 1, NOW)),
            store.events(nobody),
            store.progress(nobody),
            anext(store.follow(nobody)),
        ):
            with pytest.raises(NotFound, match=nobody):
                await call
        await store.delete(nobody)

    on(valkey, test)


def test_jobs_are_listed_newest_first_filtered_and_by_organisation(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        jobs = [
            await store.create(make_job(name=f"Night {n}", created_at=NOW + timedelta(seconds=n)), [event()])
            for n in (2, 0, 1)
        ]
        other = await store.create(make_job(org_id="org_b", created_at=NOW - timedelta(days=1)), [event()])
        await store.transact(jobs[1].id, Cancel(), NOW)

        total, page = await store.jobs("org_a", 0, 2)
        assert (total, [job.name for job in page]) == (3, ["Night 2", "Night 1"])
        assert [job.name for job in (await store.jobs("org_a", 2, 2))[1]] == ["Night 0"]
        assert await store.jobs("org_a", 0, 0) == (3, [])
        assert (await store.jobs("org_b"))[1] == [other]
        assert (await store.jobs(None))[0] == 4
        assert [job.name for job in (await store.jobs("org_a", status=Status.CANCELLED))[1]] == ["Night 0"]
        assert [job.name for job in (await store.jobs("org_a", q="NIGHT 1"))[1]] == ["Night 1"]
        assert (await store.jobs("org_a", 1, 1, q="sensor-classify"))[0] == 3
        assert (await store.jobs("org_a", q=jobs[0].id))[1] == [await store.get(jobs[0].id)]
        assert await store.jobs("org_nobody") == (0, [])

    on(valkey, test)


def test_active_jobs_are_those_that_are_not_over_or_still_hold_capacity(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        waiting = await store.create(make_job(), [event()])
        job = await running(store)
        late = NOW + timedelta(hours=1)
        await store.transact(job.id, Cancel(), late)
        assert {found.id for found in await store.active()} == {waiting.id, job.id}
        await store.transact(job.id, DriverGone("tok"), late)
        assert [found.id for found in await store.active()] == [waiting.id]
        await store.transact(job.id, Retry(), late)
        assert {found.id for found in await store.active()} == {waiting.id, job.id}

    on(valkey, test)


def test_delete_leaves_nothing_behind(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        state = InputState(input_id="inp_1", status=InputStatus.PROCESSING)
        told = {"inputs": [state], "outputs": [output("a")], "checkpoints": [checkpoint(1)], "live": {"x": 1}}
        batch = Mirror("tok", 1, NOW, [event()], [progress("p")], **told)
        await store.mirror(job.id, batch)
        waiting = await store.create(make_job(), [event()])
        await store.delete(job.id)
        await store.delete(waiting.id)
        assert await keys(store) == {CHANGES}
        assert await store.jobs("org_a") == (0, [])
        assert await store.active() == []
        with pytest.raises(NotFound):
            await store.mirror(job.id, batch)

    on(valkey, test)


# --- transact -----------------------------------------------------------------------------------------


def test_commands_change_the_record_and_leave_their_events(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        assert job.status is Status.RUNNING
        assert await store.get(job.id) == job
        total, events = await store.events(job.id)
        assert total == 3
        assert [entry.event_type for entry in events] == ["job.created", "job.admitted", "job.started"]

    on(valkey, test)


def test_what_the_lifecycle_refuses_changes_nothing(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        with pytest.raises(StaleAttempt):
            await store.transact(job.id, Completed("another"), NOW)
        with pytest.raises(InvalidTransition):
            await store.transact(job.id, Retry(), NOW)
        assert await store.transact(job.id, Started("tok"), NOW) == job  # a repeat
        assert (await store.events(job.id))[0] == 3

    on(valkey, test)


def test_racing_transacts_lose_nothing_and_event_ids_have_no_gaps(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await store.create(make_job(), [event()])
        async with await Store.open(None, valkey.data_dir, decide=count_up) as other:
            stores = [store, other] * 4
            await asyncio.gather(*(many(s, job.id, 10) for s in stores))
        assert (await store.get(job.id)).retry_count == 80
        total, events = await store.events(job.id, limit=1000)
        assert total == 81
        assert numbers(events) == list(range(1, 82))

    async def many(store: Store, job_id: str, times: int) -> None:
        for _ in range(times):
            await store.transact(job_id, Cancel(), NOW)

    on(valkey, test, count_up)


def test_a_record_and_its_event_are_never_apart_when_the_server_is_killed(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await store.create(make_job(), [event()])

        async def write(times: int) -> None:
            for _ in range(times):
                await store.transact(job.id, Cancel(), NOW)

        for _ in range(4):
            writing = [asyncio.create_task(write(15)) for _ in range(3)]
            await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED, timeout=0.03)
            await asyncio.to_thread(valkey.kill)
            await asyncio.gather(*writing)
        assert (await store.get(job.id)).retry_count == 180
        total, events = await store.events(job.id, limit=1000)
        assert total == 181
        assert numbers(events) == list(range(1, 182))

    on(valkey, test, count_up)


# --- mirror -------------------------------------------------------------------------------------------


def test_a_mirrored_batch_is_there_at_once(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        state = InputState(input_id="inp_1", status=InputStatus.COMPLETED, tasks=5, done=5)
        reply = await store.mirror(
            job.id,
            Mirror(
                token="tok",
                seq=1,
                at=NOW,
                events=[event("one", event_type="input_started", input_id="inp_1")],
                progress=[progress("half"), progress("all")],
                inputs=[state],
                outputs=[output("b"), output("a")],
                live={"tasks": 5, "indexes": []},
            ),
        )
        assert (reply.status, reply.seq, reply.applied) == (Status.RUNNING, 1, True)
        assert await store.inputs(job.id) == {"inp_1": state}
        assert await store.outputs(job.id) == [output("b"), output("a")]
        total, entries = await store.progress(job.id)
        assert (total, [entry.message for entry in entries], numbers(entries)) == (2, ["half", "all"], [1, 2])
        live = await store.live(job.id)
        assert live is not None
        assert (live.at, live.data, live.token, live.seq) == (NOW, {"tasks": 5, "indexes": []}, "tok", 1)
        assert await store.last_seq(job.id, "tok") == 1
        assert await store.last_seq(job.id, "another") == 0

    on(valkey, test)


def test_a_repeated_batch_is_a_no_op_that_says_so(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        batch = Mirror("tok", 1, NOW, [event("once")], [progress("once")], outputs=[output("a")])
        assert (await store.mirror(job.id, batch)).applied
        again = await store.mirror(job.id, batch)
        assert (again.applied, again.seq, again.status) == (False, 1, Status.RUNNING)
        assert (await store.events(job.id))[0] == 4
        assert (await store.progress(job.id))[0] == 1

    on(valkey, test)


def test_an_output_told_twice_stays_one_and_keeps_its_place(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        await store.mirror(job.id, Mirror("tok", 1, NOW, outputs=[output("a"), output("b")]))
        await store.mirror(job.id, Mirror("tok", 2, NOW, outputs=[output("c"), output("a", num_bytes=11)]))
        assert await store.outputs(job.id) == [output("a", num_bytes=11), output("b"), output("c")]

    on(valkey, test)


def test_a_batch_without_live_data_leaves_the_last_one_and_moves_the_heartbeat(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        later = NOW + timedelta(seconds=1)
        assert await store.live(job.id) is None
        await store.mirror(job.id, Mirror("tok", 1, NOW, live={"tasks": 1}))
        await store.mirror(job.id, Mirror("tok", 2, later))
        live = await store.live(job.id)
        assert live is not None
        assert (live.at, live.data) == (later, {"tasks": 1})

    on(valkey, test)


def test_many_are_heard_and_shown_together(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        jobs = [await running(store) for _ in range(3)]
        for seq, job in enumerate(jobs[:2], 1):
            await store.mirror(job.id, Mirror("tok", seq, NOW, live={"tasks": seq}))
        asked = [job.id for job in reversed(jobs)]
        assert await beats(store.connection, asked) == {jobs[0].id: ("tok", 1), jobs[1].id: ("tok", 2)}
        shown = await store.lives(asked)
        assert shown == {job.id: await store.live(job.id) for job in jobs[:2]}
        assert shown[jobs[1].id].data == {"tasks": 2}
        assert await beats(store.connection, []) == await store.lives([]) == {}

    on(valkey, test)


def test_a_stale_token_is_refused_and_writes_nothing(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        with pytest.raises(StaleAttempt, match=job.id):
            await store.mirror(job.id, Mirror("zombie", 9, NOW, [event()], [progress("x")], outputs=[output("a")]))
        assert (await store.events(job.id))[0] == 3
        assert (await store.progress(job.id))[0] == 0
        assert await store.outputs(job.id) == []
        never_admitted = await store.create(make_job(), [event()])
        with pytest.raises(StaleAttempt):
            await store.mirror(never_admitted.id, Mirror("tok", 1, NOW))

    on(valkey, test)


def test_a_new_attempt_starts_its_own_numbering(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        await store.mirror(job.id, Mirror("tok", 7, NOW))
        await store.transact(job.id, Cancel(), NOW)
        assert (await store.mirror(job.id, Mirror("tok", 8, NOW))).status is Status.CANCELLED
        await store.transact(job.id, DriverGone("tok"), NOW)
        await store.transact(job.id, Retry(), NOW)
        await store.transact(job.id, Admit("tok2"), NOW)
        assert await store.last_seq(job.id, "tok2") == 0
        assert (await store.mirror(job.id, Mirror("tok2", 1, NOW))).applied
        with pytest.raises(StaleAttempt):
            await store.mirror(job.id, Mirror("tok", 9, NOW))

    on(valkey, test)


def test_a_batch_of_many_thousand_entries_is_taken(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        states = [InputState(input_id=f"inp_{n}", status=InputStatus.PROCESSING, done=n) for n in range(20_000)]
        await store.mirror(job.id, Mirror("tok", 1, NOW, [event()] * 10_000, inputs=states))
        assert len(await store.inputs(job.id)) == 20_000
        assert (await store.events(job.id))[0] == 10_003

    on(valkey, test)


# --- events -------------------------------------------------------------------------------------------


def test_events_are_paged_filtered_and_ordered(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        drafts = [
            event(f"{n}", event_type="index.lost", level=Level.WARN if n % 2 else Level.INFO, input_id=f"inp_{n}")
            for n in range(10)
        ]
        await store.mirror(job.id, Mirror("tok", 1, NOW, drafts))  # ids 4…13

        async def ids(*arguments: object, **options: object) -> tuple[int, list[int]]:
            total, events = await store.events(job.id, *arguments, **options)  # type: ignore[arg-type]
            return total, numbers(events)

        assert await ids(limit=3) == (13, [1, 2, 3])
        assert await ids(3, limit=3) == (13, [4, 5, 6])
        assert await ids(3, limit=3, offset=2) == (13, [6, 7, 8])
        assert await ids(order="desc", limit=3) == (13, [13, 12, 11])
        assert await ids(order="desc", limit=3, offset=11) == (13, [2, 1])
        assert await ids(11, order="desc") == (13, [13, 12])
        assert await ids(13) == (13, [])
        assert await ids(limit=0) == (13, [])
        assert await ids(order="desc", offset=99) == (13, [])
        assert await ids(level=Level.WARN, limit=2) == (5, [5, 7])
        assert await ids(level=Level.WARN, order="desc", offset=1, limit=2) == (5, [11, 9])
        assert await ids(5, level=Level.WARN) == (5, [7, 9, 11, 13])
        assert await ids(event_type="index.lost", input_id="inp_4") == (1, [8])

    on(valkey, test)


def test_trimmed_events_keep_their_numbers_and_their_place_in_the_total(valkey: Valkey) -> None:
    async def test(_: Store) -> None:
        async with await Store.open(valkey.ensure(), keep_events=500) as store:
            job = await running(store)
            for seq in range(1, 21):
                await store.mirror(job.id, Mirror("tok", seq, NOW, [event()] * 100))
            total, events = await store.events(job.id, limit=3_000)
            assert total == 2_003
            assert 500 <= len(events) < 1_000
            assert numbers(events) == list(range(2_004 - len(events), 2_004))
            assert numbers((await store.events(job.id, order="desc", limit=2))[1]) == [2_003, 2_002]

    on(valkey, test)


# --- follow -------------------------------------------------------------------------------------------


def test_follow_gives_both_streams_misses_and_repeats_nothing_over_server_kills(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        seen: list[Event | Progress] = []
        enough = asyncio.Event()

        async def listen() -> None:
            async for batch in store.follow(job.id, block_ms=1_000):
                seen.extend(batch)
                if len(seen) >= 3 + 2 * 60:
                    enough.set()
                    return

        listening = asyncio.create_task(listen())
        for seq in range(1, 61):
            await store.mirror(job.id, Mirror("tok", seq, NOW, [event(f"{seq}")], [progress(f"{seq}")]))
            if seq % 20 == 10:
                await asyncio.to_thread(valkey.kill)
        await asyncio.wait_for(enough.wait(), 20)
        await listening
        assert [entry.id for entry in seen if isinstance(entry, Event)] == list(range(1, 64))
        assert [entry.id for entry in seen if isinstance(entry, Progress)] == list(range(1, 61))

    on(valkey, test)


def test_follow_resumes_after_the_given_ids_and_tells_of_quiet(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await running(store)
        await store.mirror(job.id, Mirror("tok", 1, NOW, progress=[progress("1"), progress("2")]))
        following = store.follow(job.id, after_event=2, after_progress=1, block_ms=20)
        assert [(type(entry), entry.id) for entry in await anext(following)] == [(Event, 3), (Progress, 2)]
        assert await anext(following) == []
        await store.delete(job.id)
        assert [batch async for batch in following] == []

    on(valkey, test)


# --- connections --------------------------------------------------------------------------------------


class CuttingProxy:
    """Stands between store and server; swallows the replies to the next commands and hangs up instead."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.cuts = 0
        self.passed: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server, from_server = None, None
        try:
            to_server_reader, from_server = await asyncio.open_unix_connection(self.target)
            to_server = to_server_reader
            while request := await reader.read(1 << 20):
                from_server.write(request)
                reply = await to_server.read(1 << 20)
                self.passed.append(request)
                if b"EVALSHA" in request and self.cuts > 0 and not reply.startswith(b"-NOSCRIPT"):
                    self.cuts -= 1
                    return
                writer.write(reply)
        finally:
            for stream in (writer, from_server):
                if stream is not None:
                    stream.close()
                    with contextlib.suppress(OSError):
                        await stream.wait_closed()


def test_a_command_whose_reply_was_lost_takes_effect_once(valkey: Valkey) -> None:
    async def test(_: Store) -> None:
        proxy = CuttingProxy(valkey.ensure().removeprefix("unix://"))
        path = valkey.ensure().removeprefix("unix://").replace(".sock", ".proxy")
        async with await asyncio.start_unix_server(proxy.serve, path):
            async with await Store.open(f"unix://{path}", decide=count_up) as store:
                proxy.cuts = 2
                job = await store.create(make_job(), [event()])
                proxy.cuts = 2
                assert (await store.transact(job.id, Cancel(), NOW)).retry_count == 1
                assert proxy.cuts == 0
            async with await Store.open(f"unix://{path}") as store:
                await store.transact(job.id, Admit("tok"), NOW)
                proxy.cuts = 1
                reply = await store.mirror(job.id, Mirror("tok", 1, NOW, [event()]))
                assert (reply.applied, reply.seq) == (False, 1)
                assert (await store.get(job.id)).retry_count == 1
                assert numbers((await store.events(job.id))[1]) == [1, 2, 3, 4]
        os.unlink(path)

    on(valkey, test)


def test_a_task_that_only_talks_to_the_store_can_be_cancelled_at_any_moment(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        async def talk(times: int, enough: asyncio.Event) -> None:
            while True:
                await store.ping()
                times -= 1
                if times == 0:
                    enough.set()

        for times in range(1, 60):
            enough = asyncio.Event()
            talking = asyncio.create_task(talk(times, enough))
            await enough.wait()
            talking.cancel()
            done, _ = await asyncio.wait([talking], timeout=5)
            assert done
            assert talking.cancelled()

    on(valkey, test)


def test_a_write_is_known_again_after_others_wrote(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        job = await store.create(make_job(), [event()])
        names = JobKeys.of(job.id)
        fields = [job.model_dump_json(), "PENDING", "", "", job.id, job.org_id]
        arguments = [1, "wrt_1", 100, *fields, 100, "holder", 0, 1, 7, job.id, event().model_dump_json()]
        index, lease = "jos:jobs:test", "jos:lease:test"
        await store.connection.command("SET", lease, "holder")

        async def write() -> bytes:
            places = [names.job, names.events, names.writes, CHANGES, lease, index]
            code, _ = await store.connection.script("write", places, arguments)
            return bytes(code)

        assert await write() == b"written"
        await store.transact(job.id, Cancel(), NOW)
        await store.connection.command("UNLINK", index, lease)
        told = await store.connection.command("XLEN", CHANGES)
        assert await write() == b"repeated"
        assert (await store.get(job.id)).status is Status.CANCELLED
        assert (await store.events(job.id))[0] == 3
        assert await store.connection.command("XLEN", CHANGES) == told
        assert await store.connection.command("EXISTS", index) == 0

    on(valkey, test)


def test_a_store_goes_on_when_the_process_that_owned_the_server_ends(tmp_path: Path) -> None:
    async def test() -> None:
        with python(OWNER, tmp_path) as owner:
            assert owner.stdout is not None
            server = int(owner.stdout.readline())
            async with await Store.open(None, tmp_path) as store:
                job = await running(store)
                following = store.follow(job.id)
                assert len(await anext(following)) == 3
                waiting = asyncio.ensure_future(anext(following))
                owner.kill()
                await asyncio.to_thread(wait_until, lambda: not alive(server))
                await store.transact(job.id, Cancel(), NOW)
                assert numbers(await waiting) == [4]
                assert (await store.get(job.id)).status is Status.CANCELLED
        embedded.stop(tmp_path)

    asyncio.run(test())


def test_an_unreachable_server_is_told_with_its_place_but_not_its_password() -> None:
    async def test() -> None:
        with pytest.raises(StoreUnavailable, match=r"redis://127\.0\.0\.1:1 ") as caught:
            await Store.open("redis://user:secret@127.0.0.1:1/0")
        assert "secret" not in str(caught.value)

    asyncio.run(test())


def test_what_is_no_redis_url_is_refused() -> None:
    with pytest.raises(StoreUnavailable, match="no Redis URL"):
        asyncio.run(Store.open("http://localhost"))


def test_a_server_that_is_out_of_memory_is_told_as_such(valkey: Valkey) -> None:
    async def test(store: Store) -> None:
        await store.connection.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            await store.create(make_job(), [event()])

    on(valkey, test)
