"""The ledger: refuses doubles and leaves itself alone, survives JSON, and does not care about order."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jos.core.ledger import STEPS, Blob, Commit, Entry, Finished, Ledger
from jos.core.spans import cut

AT = "2026-01-01T00:00:00.000000Z"
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
blobs = st.builds(Blob, text, st.integers(0, 2**60), text)
metrics = st.dictionaries(text, st.floats(allow_nan=False, allow_infinity=False), max_size=3)


@st.composite
def commit_lists(draw: st.DrawFn) -> list[Commit]:
    """Disjoint commits of a few inputs, in any order."""
    commits = []
    for ordinal in draw(st.lists(st.integers(STEPS, 3), unique=True, max_size=3)):
        bounds = cut(draw(st.integers(0, 40)), draw(st.integers(1, 10)))
        for start, end in itertools.pairwise(bounds):
            failed = draw(st.lists(st.integers(start, end - 1), unique=True, max_size=3).map(sorted))
            commits.append(
                Commit(
                    ordinal,
                    start,
                    end,
                    part=draw(st.integers(0, 2)),
                    index=draw(st.integers(0, 7)),
                    failed=len(failed),
                    failures=tuple((task, draw(text)) for task in failed),
                    body=draw(st.none() | blobs),
                    state=draw(st.none() | blobs),
                    metrics=draw(metrics),
                )
            )
    return draw(st.permutations(commits))


def folded(commits: list[Commit], per_entry: int = 1) -> Ledger:
    ledger = Ledger()
    for at in range(0, len(commits), per_entry):
        ledger.apply(Entry(ledger.next_number, "a", AT, tuple(commits[at : at + per_entry])))
    return ledger


def facts(ledger: Ledger) -> object:
    """All that a ledger says, without the order it learned it in."""
    return {
        ordinal: (
            list(one.done),
            one.failed,
            one.first_failure,
            {part: sorted(bodies, key=lambda c: c.start) for part, bodies in one.bodies.items()},
            one.finished,
            one.state,
        )
        for ordinal, one in ledger.inputs.items()
    }


@given(commit_lists(), st.integers(1, 5))
def test_order_and_grouping_of_commits_do_not_matter(commits: list[Commit], per_entry: int) -> None:
    shuffled = sorted(commits, key=lambda c: (c.input, c.start))
    assert facts(folded(commits, per_entry)) == facts(folded(shuffled))


@given(commit_lists())
def test_counts_are_sums(commits: list[Commit]) -> None:
    ledger = folded(commits, 3)
    assert ledger.commits == len(commits)
    assert ledger.tasks_done == sum(c.end - c.start for c in commits)
    assert ledger.tasks_failed == sum(c.failed for c in commits)
    for one in ledger.inputs.values():
        assert one.first_failure is None or one.failed > 0


@given(
    commit_lists(), st.lists(st.builds(Finished, st.integers(0, 3), st.integers(0, 9), text, blobs, st.just(1), text))
)
def test_an_entry_survives_json(commits: list[Commit], finished: list[Finished]) -> None:
    entry = Entry(7, "token", AT, tuple(commits), tuple(finished))
    data = orjson.dumps(entry.to_json())
    assert Entry.from_json(orjson.loads(data)) == entry
    assert orjson.dumps(entry) == data, "orjson's own way with dataclasses gives the same bytes, faster"


def test_a_loss_that_is_no_number_survives_json() -> None:
    entry = Entry(0, "a", AT, (Commit(STEPS, 0, 1, metrics={"loss": math.nan, "step": 1.0}),))
    (back,) = Entry.from_json(orjson.loads(orjson.dumps(entry.to_json()))).commits
    assert math.isnan(back.metrics["loss"])
    assert back.metrics["step"] == 1.0


@given(commit_lists(), st.data())
def test_work_done_twice_is_refused_and_changes_nothing(commits: list[Commit], data: st.DataObject) -> None:
    ledger = folded(commits)
    fresh = Commit(9, 0, 5, body=Blob("k", 1, "s"))
    doubles = [(fresh, fresh), (fresh, Commit(9, 4, 6)), (fresh, Commit(9, 3, 3))]
    if commits:
        doubles.append((fresh, replace(data.draw(st.sampled_from(commits)), body=None)))
    before, number = facts(ledger), ledger.next_number
    for double in doubles:
        entry = Entry(number, "b", AT, double)
        for refuse in (ledger.check, ledger.apply):
            with pytest.raises(ValueError, match=r"committed before|already there|empty range"):
                refuse(entry)
        assert (facts(ledger), ledger.next_number, ledger.attempts) == (before, number, ["a"] if commits else [])
    ledger.apply(Entry(number, "b", AT, (fresh,)))


def test_an_output_is_finished_once_and_its_bodies_may_go() -> None:
    ledger = Ledger()
    out = Finished(0, 1, "x.csv", Blob("outputs/x", 2, "s"), 20, AT)
    bodies = (Commit(0, 0, 10, part=1, body=Blob("p", 1, "s")), Commit(0, 20, 30, part=2, body=Blob("q", 1, "s")))
    ledger.apply(Entry(0, "a", AT, bodies))
    ledger.apply(Entry(1, "a", AT, (Commit(0, 10, 20, part=1, body=Blob("r", 1, "s")),), (out,)))
    assert ledger.of(0).finished == {1: out}
    assert set(ledger.of(0).bodies) == {2}
    for again in ((out,), (replace(out, part=3), replace(out, part=3))):
        with pytest.raises(ValueError, match="finished twice"):
            ledger.apply(Entry(2, "a", AT, (Commit(0, 40, 50),), again))
    assert not ledger.of(0).done.overlaps(40, 50)


def test_entries_come_in_order_and_attempts_are_remembered() -> None:
    ledger = Ledger()
    for number, attempt in enumerate(["a", "a", "b"]):
        ledger.apply(Entry(number, attempt, AT))
    assert ledger.attempts == ["a", "b"]
    for number in (0, 2, 4):
        with pytest.raises(ValueError, match="where 3 was due"):
            ledger.apply(Entry(number, "b", AT))


def test_the_state_to_resume_from_is_the_one_after_the_most_steps() -> None:
    later = Commit(STEPS, 10, 20, state=Blob("s20", 1, "s"))
    ledger = folded([later, Commit(STEPS, 0, 10, state=Blob("s10", 1, "s")), Commit(STEPS, 20, 30)])
    assert ledger.of(STEPS).state == later


def finished(part: int, key: str) -> Finished:
    return Finished(0, part, f"part_{part}", Blob(key, 1, ""), 10, AT)


def body(key: str) -> Blob:
    return Blob(key, 1, "")


def test_a_retry_opens_failed_tasks_again_and_nothing_else() -> None:
    """One bad record in the second span of part 0: the part comes apart again, the good span's bytes are reused."""
    good = Commit(0, 0, 5, body=body("good"))
    bad = Commit(0, 5, 10, failed=1, failures=((7, "bad cell"),), body=body("bad"))
    other = Commit(0, 10, 20, part=1, body=body("other"))
    ledger = Ledger()
    ledger.apply(Entry(0, "a", AT))
    ledger.apply(Entry(1, "a", AT, (good, bad, other), (finished(1, "other"),)))
    ledger.apply(Entry(2, "a", AT, (), (finished(0, "whole"),)))
    one = ledger.of(0)
    assert one.keeps(0)
    assert not one.keeps(1)
    ledger.apply(Entry(3, "b", AT, retry=1))
    assert list(one.done) == [(0, 5), (10, 20)]
    assert (one.failed, one.first_failure) == (0, None)
    assert list(one.finished) == [1]
    assert one.bodies == {0: [good]}
    ledger.apply(Entry(4, "c", AT, retry=1))  # the same retry, gone on with by a third attempt
    ledger.apply(Entry(5, "c", AT, (replace(bad, failed=0, failures=()),), (finished(0, "mended"),)))
    assert list(one.done) == [(0, 20)]
    assert one.finished[0].blob.key == "mended"
    assert not one.keeps(0)


def test_a_log_of_before_retries_were_written_down_still_opens() -> None:
    data = Entry(0, "a", AT).to_json()
    del data["retry"]
    assert Entry.from_json(data) == Entry(0, "a", AT)
