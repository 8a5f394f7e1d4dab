"""A group without Ray: what it tells the driver, and when its ranks may begin a span."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from ray.exceptions import RayActorError

from jos.core.ledger import STEPS, Commit
from jos.core.plan import SpanWork
from jos.core.stimuli import SpanFault
from jos.driver.group import Group, GroupLost
from jos.driver.messages import IndexConfig, LeaseReply

SPANS = [SpanWork(STEPS, start, start + 10) for start in (0, 10)]


def group(size: int = 2) -> Group:
    return Group(IndexConfig(b"", "", "", "token", 0, 1, "cpu", 1), size)


def commit(work: SpanWork, end: int | None = None) -> Commit:
    return Commit(input=STEPS, start=work.start, end=end or work.end, part=0, index=0, failed=0)


def run(*steps: Coroutine[Any, Any, Any]) -> list[Any]:
    async def go() -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*steps), 5)

    return asyncio.run(go())


@pytest.mark.parametrize(("votes", "begun"), [((True, True), True), ((True, False), False), ((False, False), False)])
def test_a_span_is_begun_by_all_ranks_or_by_none(votes: tuple[bool, bool], begun: bool) -> None:
    one = group()
    assert run(*(one.agree(rank, 7, 0, vote) for rank, vote in enumerate(votes))) == [begun, begun]
    assert not one.votes


def test_a_lease_goes_to_all_ranks_and_comes_back_as_what_rank_0_made_of_it() -> None:
    one = group()

    async def rank(number: int) -> None:
        lease, (work,) = await one.order(number)
        await one.done(number, LeaseReply(lease, seconds=number + 1, commits=[commit(work)]))

    reply, *_ = run(one.run(3, (SPANS[0],)), rank(1), rank(0))
    assert (reply.lease, reply.seconds, reply.commits, reply.sick) == (3, 1, [commit(SPANS[0])], None)
    assert not one.leases


def test_ranks_that_stop_after_different_steps_break_the_contract() -> None:
    one = group()
    replies = [LeaseReply(3, commits=[commit(SPANS[0], end)]) for end in (10, 60)]
    reply, *_ = run(one.run(3, (SPANS[0],)), *(one.done(rank, said) for rank, said in enumerate(replies)))
    assert reply.sick == "rank 0 and rank 1 did not stop after the same step: `finished` must be the same"
    assert [(f.work.start, f.dropped) for f in reply.faults] == [(0, False)]
    assert not reply.commits


def test_a_rank_that_fails_speaks_for_all_since_the_others_may_wait_for_it() -> None:
    one = group()
    said = LeaseReply(3, faults=[SpanFault(SPANS[1], "no")], commits=[commit(SPANS[0])], sick="rank 1 failed")
    reply, _ = run(one.run(3, tuple(SPANS)), one.done(1, said))
    assert (reply.sick, reply.commits) == ("rank 1 failed", [])
    # what rank 1 did well is done again: whether rank 0 stored it is not known
    assert [(f.work.start, f.dropped) for f in reply.faults] == [(0, True), (10, False)]


def test_a_group_that_stops_begins_nothing_and_gives_back_what_takes_too_long() -> None:
    one = group()

    async def stop() -> None:
        await one.stop(0.01)
        assert await asyncio.gather(*(one.agree(rank, 4, 10, True) for rank in range(2))) == [False, False]

    reply, _ = run(one.run(3, (SPANS[0],)), stop())
    assert [(f.work.start, f.dropped) for f in reply.faults] == [(0, True)]


def test_a_group_that_lost_a_rank_says_why_to_all_who_wait() -> None:
    one = group()

    async def lose() -> None:
        one._lose("rank 1 died")

    async def waits(wanted: Coroutine[Any, Any, Any]) -> str:
        with pytest.raises(GroupLost) as lost:
            await wanted
        return str(lost.value)

    assert run(waits(one.run(3, (SPANS[0],))), waits(one.placed()), lose())[:2] == ["rank 1 died", "rank 1 died"]


class Failures(Exception):
    """As Ray Train tells them."""

    def __init__(self, **ranks: Exception) -> None:
        self.worker_failures = {int(name[1:]): error for name, error in ranks.items()}


class HealthCheckFailed(Exception):
    health_check_failure = RayActorError()


def test_what_ray_train_tells_becomes_one_line_that_names_the_rank() -> None:
    one = group(3)
    hung = ValueError("Traceback\n  File …\nRuntimeError: connection closed by peer")
    assert one._why(Failures(r0=hung, r2=HealthCheckFailed())).startswith("rank 2 of 3 died")
    assert one._why(Failures(r1=hung)) == "rank 1 of 3 failed: RuntimeError: connection closed by peer"
    assert one._why(RayActorError()) == "the process that watches over the ranks died"
    assert one._why(ValueError("no node\nhas room")) == "the group has ended: has room"


def test_ranks_that_ray_train_starts_anew_are_not_the_group_that_was() -> None:
    one = group(3)
    run(one.here(1, None))
    run(one.here(1, None))
    assert one.why == "rank 1 of 3 was started anew"


def test_without_what_ray_train_needs_the_job_ends_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise ImportError("no module named pandas")

    monkeypatch.setattr("jos.driver.group.release_all", lambda: None)
    monkeypatch.setattr("jos.driver.group.current_actor", lambda: None)
    monkeypatch.setattr("jos.driver.group.make_trainer", missing)
    one = group()
    ready, _ = run(one.ready(), one.placed())  # the pool waits for `placed` first
    assert "2 indexes cannot train together here: no module named pandas." in str(ready.error)
    assert "jos[train]" in str(ready.error)


def test_whoever_waits_for_a_group_that_cannot_be_set_up_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(*_: Any) -> Any:
        raise AttributeError("no such call in this Ray")

    monkeypatch.setattr("jos.driver.group.release_all", moved)
    one = group()

    async def heard(call: Coroutine[Any, Any, Any]) -> str:
        with pytest.raises((AttributeError, GroupLost)) as raised:
            await call
        return str(raised.value)

    told = run(heard(one.ready()), heard(one.placed()))
    assert told == ["no such call in this Ray", "AttributeError: no such call in this Ray"]
