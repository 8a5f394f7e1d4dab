"""A rank of a group without Ray: it begins what all agree on, and says at once when it cannot do its share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_index import FOLDER, make_index

from jos.core.ledger import STEPS
from jos.core.plan import SpanWork
from jos.driver.messages import LeaseReply
from jos.driver.rank import Rank

Vote = tuple[int, int, bool]


def rank(tmp_path: Path, number: int, agree: Callable[[int, int, bool], bool], **config: object) -> Rank:
    index = make_index(tmp_path, "quick-train", steps=30, span_steps=10, **config)
    return Rank(replace(index.config, rank=number, ranks=2), agree)


def leases(one: Rank, *starts: int) -> list[LeaseReply]:
    """The replies to a lease for each span of ten steps, all of them in hand at once."""

    async def go() -> list[LeaseReply]:
        await one.ready()
        work = [SpanWork(STEPS, start, start + 10) for start in starts]
        return await asyncio.gather(*(one.run(n, (w,)) for n, w in enumerate(work)))

    return asyncio.run(go())


@pytest.mark.parametrize("number", [0, 1])
def test_all_ranks_do_the_steps_and_only_rank_0_keeps_what_comes_of_them(number: int, tmp_path: Path) -> None:
    votes: list[Vote] = []
    one = rank(tmp_path, number, lambda *vote: not votes.append(vote))  # type: ignore[func-returns-value]
    replies = leases(one, 0, 10)
    assert [(c.start, c.end, c.state is not None) for r in replies for c in r.commits] == [
        (0, 10, number == 0),
        (10, 20, number == 0),
    ]
    assert votes == [(0, 0, True), (1, 10, True)]
    assert (one.worker.context.rank, one.worker.context.ranks) == (number, 2)
    assert (tmp_path / "storage" / FOLDER / "state").exists() == (number == 0)


def test_what_not_all_can_begin_is_dropped_and_begun_when_they_can(tmp_path: Path) -> None:
    answers = {0: False, 1: True}
    one = rank(tmp_path, 1, lambda lease, start, can: answers[lease])
    refused, done = leases(one, 0, 0)
    assert [(f.work.start, f.dropped) for f in refused.faults] == [(0, True)]
    assert [(c.start, c.end) for c in done.commits] == [(0, 10)]


def test_a_rank_votes_against_steps_that_it_does_not_stand_at(tmp_path: Path) -> None:
    votes: list[Vote] = []
    one = rank(tmp_path, 0, lambda *vote: bool(votes.append(vote)))  # type: ignore[func-returns-value]
    leases(one, 20)
    assert votes == [(0, 20, False)]


def test_a_rank_that_fails_says_so_and_takes_part_in_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    votes: list[Vote] = []
    one = rank(tmp_path, 1, lambda *vote: not votes.append(vote))  # type: ignore[func-returns-value]

    def poison(trainer: object, number: int) -> None:
        raise ValueError("this step is poison")

    monkeypatch.setattr("lab_workers.QuickTrain.step", poison)
    bad, after = leases(one, 0, 10)
    assert bad.sick == "rank 1 failed in a step: ValueError"
    assert [(f.message, f.dropped) for f in bad.faults] == [("ValueError: this step is poison", False)]
    assert [(f.work.start, f.dropped) for f in after.faults] == [(10, True)]
    assert votes == [(0, 0, True)]
