"""Verification names every damage, where it is and in which log entry, and finds nothing wrong with a good job."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from jobs_lab import Lab
from kept_lab import Kept, spec
from test_driver import texts
from valkey_lab import Valkey

from jos import archive
from jos.core.errors import NotFound
from jos.core.ledger import STEPS
from jos.core.model import InputState, InputStatus, Status
from jos.core.rebuild import rebuilt
from jos.core.standing import Replay, plans_of
from jos.recovery import read_plans
from jos.storage import open_storage
from jos.storage.log import SEGMENT, CommitLog
from jos.store.redis import Store
from jos.verify import Report, Told, owner, verify, verify_with_store


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(open_storage(str(tmp_path / "storage")))


def look(kept: Kept, **options: Any) -> Report:
    return verify(kept.storage, kept.spec.org_id, kept.spec.id, **options)


def wrong(kept: Kept, **options: Any) -> list[tuple[str, int | None, str]]:
    return [(p.key.removeprefix(kept.folder), p.entry, p.what) for p in look(kept, **options).problems]


def record(kept: Kept) -> Told:
    """What the store would say."""
    stored = read_plans(kept.storage, kept.folder)
    replay = Replay(kept.spec, plans_of(stored, 0))
    replay.ledger = CommitLog.open(kept.storage, kept.folder, replay.see).ledger
    job = rebuilt(kept.spec, replay, None, kept.clock)
    return Told(job, {s.input_id: s for s in replay.states()}, replay.outputs())


# --- good jobs ----------------------------------------------------------------------------------------


def test_a_good_job_is_whole(kept: Kept) -> None:
    kept.complete()
    seen: list[tuple[str, int, int]] = []
    report = look(kept, told=record(kept), progress=lambda *at: seen.append(at))
    assert report.ok, report
    counts = {"log entries": 13, "attempts": 1, "commits": 8, "tasks": 40, "failed": 0, "outputs": 4, "objects": 4}
    assert counts.items() <= report.counts.items()
    assert report.counts["orphans"] == 8, "the pieces that the outputs were made of"
    assert str(report).endswith("orphan bytes 138")
    assert [at for at in seen if at[1] == at[2]] == [("log", 13, 13), ("objects", 4, 4)]


def test_a_job_in_the_middle_retried_or_not_begun_is_whole_too(kept: Kept) -> None:
    assert look(kept).ok
    kept.claim()
    kept.work(0, failed=2)
    kept.append(kept.commit(1, 5, 10))
    assert (look(kept).ok, look(kept, told=record(kept)).ok) == (True, True)
    kept.claim("b", retry=1)
    kept.append(kept.commit(0, 0, 5, "b"), attempt="b")
    kept.append(finished=[kept.finished(0, 0, "b")], attempt="b")
    report = look(kept, told=record(kept))
    assert report.ok, report
    assert (report.counts["tasks"], report.counts["failed"], report.counts["outputs"]) == (25, 0, 2)


def test_training_jobs_keep_their_latest_state(tmp_path: Path) -> None:
    kept = Kept(open_storage(str(tmp_path)), spec(0, training=True))
    kept.complete()
    report = look(kept)
    assert (report.ok, report.counts["objects"], report.counts["orphans"]) == (True, 1, 3)
    kept.storage.delete([kept.folder + kept.log.ledger.of(STEPS).state.state.key])  # type: ignore[union-attr]
    assert wrong(kept) == [("state/a/-00001-000000000015-20", 4, "is missing")]


def test_pieces_that_were_put_together_while_it_looked_are_not_missed(kept: Kept) -> None:
    kept.claim()
    kept.append(kept.commit(0, 0, 5), kept.commit(0, 5, 10))
    pieces = [c.body.key for c in kept.log.ledger.of(0).bodies[0] if c.body]

    def meanwhile(what: str, done: int, of: int) -> None:
        if what == "log" and done == of:
            kept.append(finished=[kept.finished(0, 0)])
            kept.storage.delete([kept.folder + key for key in pieces])

    assert look(kept, progress=meanwhile).ok


# --- damage -------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_an_output_is_found_by_its_sum(kept: Kept) -> None:
    kept.complete()
    kept.flip(f"{kept.folder}outputs/a/000001-000000")
    what = "has another content than the log says (sha256)"
    assert wrong(kept) == [("outputs/a/000001-000000", 9, what)]
    assert wrong(kept, deep=False) == [], "sizes are right"


def test_a_removed_and_a_cut_object_are_found_without_reading_any(kept: Kept) -> None:
    kept.complete()
    kept.storage.delete([f"{kept.folder}outputs/a/000000-000001"])
    key = f"{kept.folder}outputs/a/000000-000000"
    kept.storage.write(key, kept.storage.read(key)[:-1])
    assert wrong(kept, deep=False) == [
        ("outputs/a/000000-000000", 3, "has 32 bytes instead of 33"),
        ("outputs/a/000000-000001", 6, "is missing"),
    ]


def test_a_cut_entry_a_missing_one_and_what_follows_from_them(kept: Kept) -> None:
    kept.complete()
    told = record(kept)
    kept.storage.write(kept.entry_key(2), kept.storage.read(kept.entry_key(2))[:50])
    kept.storage.delete([kept.entry_key(8)])
    found = wrong(kept, told=told)
    assert [(key, entry) for key, entry, _ in found[:4]] == [
        ("log/00000000000000000002.json", 2),
        ("log/00000000000000000003.json", 3),
        ("log/00000000000000000008.json", 8),
        ("log/00000000000000000009.json", 9),
    ]
    whats = [what for _, _, what in found]
    assert whats[0].startswith("cannot be used")
    assert whats[1] == "inp_0_0.txt was put together without tasks 5..10"
    assert whats[2] == "is missing, while later ones are there"
    assert "tasks 5..10 of input 1 are missing, but the store says COMPLETED" in whats


def test_a_doubled_commit_names_both_what_and_where(kept: Kept) -> None:
    kept.complete()
    first = orjson.loads(kept.storage.read(kept.entry_key(1)))["commits"]
    kept.rewrite(7, {"commits": first})
    assert wrong(kept)[0] == ("log/00000000000000000007.json", 7, "commits 0..5 of input 0 a second time")
    kept.rewrite(7, {"commits": [{**first[0], "input": 5}]})
    assert wrong(kept)[0] == ("log/00000000000000000007.json", 7, "commits 0..5 of input 5, which has no plan")


def test_an_attempt_that_writes_after_another_took_over_is_found(kept: Kept) -> None:
    kept.claim("a")
    kept.claim("b")
    kept.append(kept.commit(0, 0, 5), attempt="b")
    kept.append(kept.commit(0, 5, 10), attempt="b")
    kept.rewrite(3, {"attempt": "a"})
    kept.rewrite(0, {"commits": orjson.loads(kept.storage.read(kept.entry_key(2)))["commits"]})
    whats = [(entry, what) for _, entry, what in wrong(kept)]
    assert (3, "was written by attempt a after another had taken over") in whats
    assert (0, "attempt a begins with work instead of its claim") in whats


def test_segments_and_entries_stand_in_for_one_another(tmp_path: Path) -> None:
    kept = Kept(open_storage(str(tmp_path)), tasks={0: 5 * 300, 1: 5})
    kept.claim()
    for n in range(300):
        kept.append(kept.commit(0, 5 * n, 5 * n + 5))
    assert look(kept, deep=False).ok
    segment = f"log/segments/{0:020d}.json"
    data = kept.storage.read(kept.folder + segment)

    kept.storage.delete([kept.entry_key(7)])
    assert wrong(kept, deep=False) == [
        ("log/00000000000000000007.json", 7, "is missing, but its copy in the segment could be read")
    ]
    kept.storage.write(kept.entry_key(7), data.splitlines()[7])
    assert look(kept, deep=False).ok

    kept.storage.delete([kept.folder + segment])
    report = look(kept, deep=False)
    assert (report.ok, len([n for n in report.notes if segment in n])) == (True, 1)

    kept.storage.write(kept.folder + segment, b"".join(data.splitlines(keepends=True)[:-1]))
    what = f"holds {SEGMENT - 1} entries instead of {SEGMENT}; delete it, it is made again"
    assert wrong(kept, deep=False) == [(segment, None, what)]

    lines = data.splitlines()
    lines[9] = lines[8]
    kept.storage.write(kept.folder + segment, b"\n".join(lines))
    assert wrong(kept, deep=False) == [(segment, 9, "differs from the entry")]


def test_job_json_and_plans_are_read_too(kept: Kept) -> None:
    kept.complete()
    kept.flip(f"{kept.folder}plan/00000000.json", 0)
    kept.storage.write(f"{kept.folder}job.json", b"{")
    found = wrong(kept)
    assert [key for key, _, _ in found[:2]] == ["job.json", "plan/00000000.json"]
    kept.storage.delete([f"{kept.folder}job.json"])
    assert wrong(kept)[0] == ("job.json", None, "is missing")


def test_the_store_and_the_archived_end_are_held_against_the_log(kept: Kept) -> None:
    kept.claim()
    kept.work(0)
    told = record(kept)
    completed = told.job.model_copy(update={"status": Status.COMPLETED})
    ahead = {"inp_1": InputState(input_id="inp_1", status=InputStatus.COMPLETED, done=20)}
    ghost = told.outputs[0].model_copy(update={"key": "outputs/a/ghost", "filename": "ghost.txt"})
    whats = [what for _, _, what in wrong(kept, told=Told(completed, ahead, [ghost]))]
    assert whats == [
        "tasks 0..20 of input 1 are missing, but the store says COMPLETED",
        "part 0 of input 1 is missing, but the store says COMPLETED",
        "part 1 of input 1 is missing, but the store says COMPLETED",
        "inp_0_0.txt is finished, but the store does not list it",
        "inp_0_1.txt is finished, but the store does not list it",
        "the store lists it as ghost.txt, but the log does not name it",
        "the store says 20 tasks of inp_1 are done, the log 0",
    ]
    end = archive.End(job=completed, events=0, progress=0, attempt=1)
    kept.storage.write(archive.end_key(completed.org_id, completed.id), end.model_dump_json().encode())
    assert next(what for _, _, what in wrong(kept)).endswith("archive/end.json says COMPLETED")
    kept.claim("later")
    assert wrong(kept) == [], "a later attempt goes on with it"


# --- a real job ---------------------------------------------------------------------------------------


def test_a_real_job_is_whole_and_a_flipped_bit_in_it_is_found(lab: Lab) -> None:
    bad = [*texts("b", 30), {"text": "x", "refuse": "no"}]
    job_id = lab.submit("shout", [lab.write("a.jsonl", texts("a", 70)), lab.write("b.jsonl", bad)], span_records=8)
    lab.complete(job_id)
    engine = lab.engine

    def look() -> Report:
        work = verify_with_store(engine.parts.store, engine.storage, lab.settings.org, job_id)
        return engine._thread.call(work)

    report = look()
    assert report.ok, report
    assert (report.counts["tasks"], report.counts["failed"], report.counts["outputs"]) == (101, 1, 2)
    output = engine.outputs(job_id)[0]
    key = lab.folder_of(job_id) + output.key
    data = bytearray(engine.storage.read(key))
    data[10] ^= 4
    engine.storage.write(key, bytes(data))
    assert [(p.key, p.what) for p in look().problems] == [(key, "has another content than the log says (sha256)")]


def test_verify_may_be_called_inside_a_loop(kept: Kept) -> None:
    kept.complete()

    async def run() -> Report:
        return look(kept)

    assert asyncio.run(run()).ok


def test_a_job_of_another_organisation_is_found_in_storage_when_redis_lost_it(kept: Kept, valkey: Valkey) -> None:
    kept.complete()

    async def whose(job_id: str) -> str:
        async with await Store.open(None, valkey.data_dir) as store:
            return await owner(store, kept.storage, job_id, "org_local")

    assert asyncio.run(whose(kept.spec.id)) == "org_a"
    with pytest.raises(NotFound, match=r"Neither Redis nor .* has anything of a job job_none"):
        asyncio.run(whose("job_none"))
