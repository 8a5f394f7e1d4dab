"""The commit log on a folder and on a real S3: one owner, nothing lost, nothing twice, few reads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from jos.core.errors import FenceLost, StorageUnavailable
from jos.core.ledger import Blob, Commit, Entry, Finished, Ledger
from jos.storage import Stat, Storage, open_storage
from jos.storage.log import SEGMENT, CommitLog, LogDamaged

AT = "2026-01-01T00:00:00.000000Z"
JOB = "org_x/jobs/job_y/"


def commit(number: int, **fields: Any) -> Commit:
    return Commit(0, number * 10, number * 10 + 10, body=Blob(f"parts/a/{number}", 7, "0" * 64), **fields)


def opened(storage: Storage, attempt: str) -> CommitLog:
    log = CommitLog.open(storage, JOB)
    log.claim(attempt, AT)
    return log


def same(one: Ledger, other: Ledger) -> bool:
    facts = [
        (led.next_number, led.attempts, led.commits, led.tasks_done, {k: list(i.done) for k, i in led.inputs.items()})
        for led in (one, other)
    ]
    return facts[0] == facts[1]


class Faulty:
    """A storage that counts, and breaks where it is told to."""

    def __init__(self, storage: Storage) -> None:
        self.inner = storage
        self.reads: list[str] = []
        self.lists = 0
        self.before_create: Callable[[str], None] = lambda key: None
        self.after_create: Callable[[str, bool], bool] = lambda key, won: won

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        self.reads.append(key)
        return self.inner.read(key, start, end)

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        self.lists += 1
        return self.inner.list(prefix, after)

    def create(self, key: str, data: bytes) -> bool:
        self.before_create(key)
        return self.after_create(key, self.inner.create(key, data))


def broken(*_: Any) -> Any:
    raise StorageUnavailable("the network went away")


def write_entries(storage: Storage, count: int) -> None:
    """Straight to storage, so that no segment is written: as if the writer had died each time."""
    for number in range(count):
        entry = Entry(number, "a", AT, (commit(number),) if number else ())
        storage.create(f"{JOB}log/{number:020d}.json", orjson.dumps(entry.to_json()))


# --- writing and reading ----------------------------------------------------------------------------------


def test_a_log_that_does_not_exist_is_an_empty_one(storage: Storage) -> None:
    log = CommitLog.open(storage, JOB)
    assert (log.ledger.next_number, log.ledger.attempts, log.prefix) == (0, [], JOB)


def test_what_one_attempt_committed_the_next_finds(storage: Storage) -> None:
    first = opened(storage, "a")
    entry = first.append("a", AT, [commit(0, failures=((3, "bad\tü"),), failed=1), commit(1)])
    assert entry.number == 1
    done = Finished(0, 0, "out.csv", Blob("outputs/a/0", 14, "1" * 64), 20, AT)
    first.append("a", AT, [commit(2, metrics={"loss": 0.5, "odd": math.nan}), Commit(-1, 0, 5)], [done])
    second = opened(storage, "b")
    assert second.ledger.attempts == ["a", "b"]
    assert list(second.ledger.of(0).done) == [(0, 30)]
    assert second.ledger.of(0).first_failure == (3, "bad\tü")
    assert second.ledger.of(0).finished == {0: done}
    assert second.ledger.tasks_failed == 1
    second.append("b", AT, [commit(3)])
    assert CommitLog.open(storage, JOB).ledger.tasks_done == 45


def test_an_entry_is_the_json_of_the_ledgers_entry(storage: Storage) -> None:
    entry = opened(storage, "a").append("a", AT, [commit(0, failures=((1, "x"),), metrics={"m": 1.5})])
    stored = storage.read(f"{JOB}log/00000000000000000001.json")
    assert stored == orjson.dumps(entry.to_json())
    assert Entry.from_json(orjson.loads(stored)) == entry


def test_a_message_that_is_no_unicode_does_not_stop_the_job(storage: Storage) -> None:
    opened(storage, "a").append("a", AT, [commit(0, failures=((1, "file \udcff.csv"),), failed=1)])
    assert CommitLog.open(storage, JOB).ledger.of(0).first_failure == (1, "file ?.csv")


def test_work_that_is_committed_already_is_refused_before_it_is_written(storage: Storage) -> None:
    log = opened(storage, "a")
    log.append("a", AT, [commit(0)])
    for twice in ([commit(0)], [commit(1), commit(1)], [commit(1), Commit(0, 15, 16)]):
        with pytest.raises(ValueError, match=r"committed before|already there"):
            log.append("a", AT, twice)
    log.append("a", AT, [commit(1)])
    assert CommitLog.open(storage, JOB).ledger.commits == 2


# --- the fence --------------------------------------------------------------------------------------------


def test_of_two_writers_the_later_claim_goes_on_and_the_other_never_again(storage: Storage) -> None:
    old = opened(storage, "old")
    old.append("old", AT, [commit(0)])
    new = opened(storage, "new")
    with pytest.raises(FenceLost, match=r"written by attempt new at 2026.*attempt old has lost"):
        old.append("old", AT, [commit(1)])
    new.append("new", AT, [commit(1)])
    for again in (lambda: old.append("old", AT, [commit(2)]), lambda: old.claim("old", AT)):
        with pytest.raises(FenceLost):
            again()
    new.append("new", AT, [commit(2)])
    with pytest.raises(FenceLost):
        opened(storage, "old")
    final = CommitLog.open(storage, JOB).ledger
    assert (final.attempts, final.commits) == (["old", "new"], 3)
    assert same(final, new.ledger)


def test_who_has_not_claimed_may_not_append(storage: Storage) -> None:
    opened(storage, "a")
    with pytest.raises(ValueError, match="claim it first"):
        CommitLog.open(storage, JOB).append("b", AT, [commit(0)])


def test_a_claim_gets_through_while_another_writes(storage: Storage) -> None:
    """The claimer's number is taken twice before it wins; it knows of all that was written meanwhile."""
    old = opened(storage, "old")
    counting = Faulty(storage)
    new = CommitLog.open(counting, JOB)
    left = [0, 1]

    def overtake(key: str) -> None:
        if left:
            old.append("old", AT, [commit(left.pop(0))])

    counting.before_create = overtake
    assert new.claim("new", AT).number == 3
    assert new.ledger.tasks_done == 20
    with pytest.raises(FenceLost):
        old.append("old", AT, [commit(5)])


def test_of_many_racing_drivers_one_remains_and_no_work_is_done_twice(storage: Storage) -> None:
    start = threading.Barrier(6)

    def drive(who: int) -> int:
        attempt, written = f"attempt{who}", 0
        start.wait(60)
        try:
            log = opened(storage, attempt)
            for _ in range(8):
                log.append(attempt, AT, [commit(log.ledger.tasks_done // 10)])
                written += 1
        except FenceLost:
            pass
        return written

    with ThreadPoolExecutor(6) as pool:
        written = list(pool.map(drive, range(6)))
    final = CommitLog.open(storage, JOB).ledger
    assert final.commits == sum(written)
    assert list(final.of(0).done) == [(0, 10 * sum(written))]
    assert sorted(final.attempts) == sorted(set(final.attempts)), "an attempt came back after it was fenced"
    assert written[int(final.attempts[-1].removeprefix("attempt"))] == 8


# --- unclear failures -------------------------------------------------------------------------------------


def test_a_lost_reply_counts_as_won(storage: Storage) -> None:
    faulty = Faulty(storage)
    log = opened(faulty, "a")
    faulty.after_create = lambda key, won: False
    assert log.append("a", AT, [commit(0)]).number == 1
    assert opened(faulty, "b").ledger.attempts == ["a", "b"]
    assert CommitLog.open(storage, JOB).ledger.commits == 1


@pytest.mark.parametrize("written", [True, False], ids=["written", "not written"])
def test_after_an_outage_the_same_append_settles_it(storage: Storage, written: bool) -> None:
    faulty = Faulty(storage)
    log = opened(faulty, "a")
    if written:
        faulty.after_create = broken
    else:
        faulty.before_create = broken
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            log.append("a", AT, [commit(0)])
    faulty.before_create, faulty.after_create = lambda key: None, lambda key, won: won
    with pytest.raises(ValueError, match="the very same"):
        log.append("a", AT, [commit(0), commit(1)])
    assert log.append("a", "2026-01-01T00:00:09Z", [commit(0)]).at == AT
    log.append("a", AT, [commit(1)])
    assert same(CommitLog.open(storage, JOB).ledger, log.ledger)


def test_after_an_outage_a_claim_settles_it_too(storage: Storage) -> None:
    faulty = Faulty(storage)
    log = opened(faulty, "a")
    faulty.after_create = broken
    with pytest.raises(StorageUnavailable):
        log.append("a", AT, [commit(0)])
    faulty.after_create = lambda key, won: won
    log.claim("a", AT)
    assert log.ledger.tasks_done == 10
    log.append("a", AT, [commit(1)])


def test_after_an_outage_a_lost_fence_is_still_seen(storage: Storage) -> None:
    faulty = Faulty(storage)
    log = opened(faulty, "a")
    faulty.before_create = broken
    with pytest.raises(StorageUnavailable):
        log.append("a", AT, [commit(0)])
    faulty.before_create = lambda key: None
    opened(storage, "b")
    with pytest.raises(FenceLost):
        log.append("a", AT, [commit(0)])


# --- segments ---------------------------------------------------------------------------------------------


def segments(storage: Storage) -> dict[str, bytes]:
    return {stat.key: storage.read(stat.key) for stat in storage.list(f"{JOB}log/segments/")}


def test_every_full_segment_is_written_once_more_and_read_instead(storage: Storage) -> None:
    log = opened(storage, "a")
    for number in range(2 * SEGMENT + 20):
        log.append("a", AT, [commit(number)])
    entries = [storage.read(f"{JOB}log/{n:020d}.json") for n in range(2 * SEGMENT)]
    assert segments(storage) == {
        f"{JOB}log/segments/{first:020d}.json": b"".join(e + b"\n" for e in entries[first : first + SEGMENT])
        for first in (0, SEGMENT)
    }
    counting = Faulty(storage)
    assert same(CommitLog.open(counting, JOB).ledger, log.ledger)
    assert counting.lists == 1
    assert len(counting.reads) <= 2 + 21 + 16, "two segments, 21 entries, and at most 16 read ahead in vain"
    assert len(set(counting.reads)) == len(counting.reads)


def test_a_crash_between_entry_and_segment_is_made_good_at_the_next_opening(storage: Storage) -> None:
    faulty = Faulty(storage)
    log = opened(faulty, "a")
    faulty.before_create = lambda key: broken() if "/segments/" in key else None
    for number in range(2 * SEGMENT - 1):
        log.append("a", AT, [commit(number)])
    assert segments(storage) == {}
    reopened = CommitLog.open(storage, JOB)
    assert same(reopened.ledger, log.ledger)
    assert sorted(segments(storage)) == [f"{JOB}log/segments/{first:020d}.json" for first in (0, SEGMENT)]
    counting = Faulty(storage)
    assert same(CommitLog.open(counting, JOB).ledger, log.ledger)
    assert len(counting.reads) == 3, "two segments and the entry that is not there yet"


def test_a_gap_among_the_segments_is_filled_from_the_entries(storage: Storage) -> None:
    write_entries(storage, 3 * SEGMENT + 5)
    log = CommitLog.open(storage, JOB)
    before = segments(storage)
    storage.delete([f"{JOB}log/segments/{SEGMENT:020d}.json"])
    assert same(CommitLog.open(storage, JOB).ledger, log.ledger)
    assert segments(storage) == before


def test_a_hundred_thousand_commits_open_with_few_reads(tmp_path: Path) -> None:
    """The time is in benchmarks/log_open.py; what a bucket would bill is asserted here."""
    storage = open_storage(str(tmp_path))
    per_entry, number, commits = 20, 0, 0
    lines = []
    for number in range(100_000 // per_entry + 1):
        some = tuple(commit(commits + n) for n in range(per_entry)) if number else ()
        commits += len(some)
        lines.append(orjson.dumps(Entry(number, "a", AT, some)))
    full = len(lines) // SEGMENT * SEGMENT
    for first in range(0, full, SEGMENT):
        storage.write(f"{JOB}log/segments/{first:020d}.json", b"\n".join(lines[first : first + SEGMENT]) + b"\n")
    for tail in range(full, len(lines)):
        storage.write(f"{JOB}log/{tail:020d}.json", lines[tail])
    counting = Faulty(storage)
    log = CommitLog.open(counting, JOB)
    assert log.ledger.commits == 100_000
    assert list(log.ledger.of(0).done) == [(0, 1_000_000)]
    assert counting.lists == 1
    assert len(counting.reads) <= len(lines) // SEGMENT + len(lines) % SEGMENT + 16


# --- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "JSONDecodeError"),
        (b'{"number": 3, "att', "JSONDecodeError"),
        (b"[]", "TypeError"),
        (b'{"number": 3}', "KeyError"),
        (orjson.dumps(Entry(4, "a", AT)), "log entry 4 where 3 was due"),
        (orjson.dumps(Entry(3, "a", AT, (commit(1),))), "committed before"),
    ],
)
def test_a_damaged_entry_is_named(storage: Storage, data: bytes, reason: str) -> None:
    write_entries(storage, 6)
    storage.write(f"{JOB}log/{3:020d}.json", data)
    with pytest.raises(LogDamaged, match=f"log/0+3.json.*{reason}"):
        CommitLog.open(storage, JOB)


def test_a_missing_entry_is_named_and_not_taken_for_the_end(storage: Storage) -> None:
    write_entries(storage, SEGMENT + 10)
    storage.delete([f"{JOB}log/{3:020d}.json"])
    with pytest.raises(LogDamaged, match=r"log/0+3\.json is missing, but a later entry is there"):
        CommitLog.open(storage, JOB)


def test_a_missing_entry_before_a_segment_is_named(storage: Storage) -> None:
    write_entries(storage, 2 * SEGMENT)
    CommitLog.open(storage, JOB)
    storage.delete([f"{JOB}log/segments/{0:020d}.json"] + [f"{JOB}log/{n:020d}.json" for n in range(20)])
    with pytest.raises(LogDamaged, match=r"log/0+\.json is missing, but .*segments/0+256\.json is there"):
        CommitLog.open(storage, JOB)


def test_a_damaged_segment_says_that_it_may_be_deleted(storage: Storage) -> None:
    write_entries(storage, SEGMENT + 1)
    log = CommitLog.open(storage, JOB)
    key = f"{JOB}log/segments/{0:020d}.json"
    storage.write(key, storage.read(key)[:-5000])
    with pytest.raises(LogDamaged, match=r"segments/0+\.json .*Delete it"):
        CommitLog.open(storage, JOB)
    storage.delete([key])
    assert same(CommitLog.open(storage, JOB).ledger, log.ledger)
