"""What is offered to the cluster's own queue, admitted from it, and withdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_lookout import BEGAN

from jos.controller.crew import Crew
from jos.controller.offerer import Offerer, Round, decide, needless, stands
from jos.core.model import Attempt, Job, Status
from jos.core.queues import QueueConfig
from jos.launch.base import Offer, Offers, number_of
from jos.launch.kube_api import Refused

CONFIG = QueueConfig.of({"queues": {"shut": {"stopped": True}}, "organisations": {"small": {"max_running": 2}}})
LATER = BEGAN + timedelta(hours=1)


def job(name: str = "job_1", status: Status = Status.PENDING, **fields: Any) -> Job:
    defaults: dict[str, Any] = {
        "org_id": "org_a", "name": "n", "pipeline_type": "batch", "pipeline_key": "k", "pipeline_version": "1.0.0",
        "parameters": {}, "created_at": BEGAN, "updated_at": BEGAN, "queued_at": BEGAN,
    }  # fmt: skip
    return Job(**{**defaults, "id": name, "status": status, **fields})


def attempt(number: int = 1, token: str = "old", ended_by: str | None = "DriverGone") -> Attempt:
    ended = None if ended_by is None else BEGAN
    return Attempt(number=number, token=token, admitted_at=BEGAN, ended_at=ended, ended_by=ended_by)


def offer(name: str = "job_1", token: str = "new", admitted: bool = False, **fields: Any) -> Offer:
    return Offer(name, token, admitted, **fields)


def look(jobs: list[Job], *offers: Offer, most: int = 1000) -> Round:
    return decide(jobs, {one.job_id: one for one in offers}, CONFIG, LATER, most)


def told(made: Round) -> list[tuple[str, list[str]]]:
    """What is done with each job."""
    return [
        ("admits", [job.id for job, _ in made.admits]),
        ("offers", [job.id for job, _ in made.offers]),
        ("withdraws", list(made.withdraws)),
        ("holds", [f"{hold.job_id} {hold.reason}" for hold in made.holds]),
        ("unknown", [one.job_id for one in made.unknown]),
    ]


RECALLED = {"attempt": attempt(ended_by="Recall")}
LEAVING = {"attempt": attempt(ended_by=None), "holds_capacity": True}


@pytest.mark.parametrize(
    ("_sentence", "jobs", "offers", "what"),
    [
        ("a job that could run is offered", [job()], [], {"offers": ["job_1"]}),
        ("and stays offered", [job()], [offer()], {"offers": ["job_1"]}),
        ("one that has its place is admitted", [job()], [offer(admitted=True)], {"admits": ["job_1"]}),
        ("one in back-off is not offered", [job(not_before=LATER + timedelta(seconds=1))], [],
         {"holds": ["job_1 WaitingForBackoff"]}),
        ("nor is one whose last driver has not left", [job(**LEAVING)], [], {"holds": ["job_1 WaitingForDriver"]}),
        ("whose place is not taken from it, for it may yet commit", [job(**LEAVING)], [offer(token="old")],
         {"holds": ["job_1 WaitingForDriver"]}),
        ("what stands for a stopped queue is withdrawn", [job(queue="shut")], [offer()],
         {"withdraws": ["job_1"], "holds": ["job_1 QueueStopped"]}),
        ("even with its place", [job(queue="shut")], [offer(admitted=True)],
         {"withdraws": ["job_1"], "holds": ["job_1 QueueStopped"]}),
        ("nothing is offered for a queue that nobody knows", [job(queue="gone")], [],
         {"holds": ["job_1 QueueStopped"]}),
        ("what the attempt before left there makes way", [job(attempt=attempt())], [offer(token="old")],
         {"withdraws": ["job_1"]}),
        ("even if it was given its place again", [job(attempt=attempt())], [offer(token="old", admitted=True)],
         {"withdraws": ["job_1"]}),
        ("and so does what a still older one left", [job(attempt=attempt(2))],
         [offer(token="older", admitted=True, number=1)], {"withdraws": ["job_1"]}),
        ("an offer of the next attempt is good", [job(attempt=attempt(2))],
         [offer(admitted=True, number=3)], {"admits": ["job_1"]}),
        ("what was taken back before it began goes on standing", [job(**RECALLED)],
         [offer(token="old", number=1)], {"offers": ["job_1"]}),
        ("and is admitted anew under its token", [job(**RECALLED)],
         [offer(token="old", number=1, admitted=True)], {"admits": ["job_1"]}),
        ("a job that runs keeps its entry", [job(status=Status.RUNNING, **LEAVING)],
         [offer(token="old", admitted=True)], {}),
        ("a job of a door without a controller is not offered", [job(queue="")], [], {}),
        ("what became of others is asked", [], [offer("job_x")], {"unknown": ["job_x"]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_done(_sentence: str, jobs: list[Job], offers: list[Offer], what: dict[str, list[str]]) -> None:
    assert [(name, ids) for name, ids in told(look(jobs, *offers)) if ids] == list(what.items())


def test_jobs_are_offered_by_priority_then_time() -> None:
    jobs = [
        job("job_late", queued_at=BEGAN + timedelta(seconds=2)),
        job("job_early", queued_at=BEGAN + timedelta(seconds=1)),
        job("job_high", queued_at=BEGAN + timedelta(seconds=3), priority=5),
    ]
    assert [one.id for one, _ in look(jobs).offers] == ["job_high", "job_early", "job_late"]


def test_only_so_many_stand_there_and_one_of_higher_priority_takes_the_last_ones_place() -> None:
    jobs = [job(f"job_{n}", queued_at=BEGAN + timedelta(seconds=n)) for n in range(3)]
    made = look(jobs, most=2)
    assert ([one.id for one, _ in made.offers], made.holds[0].reason) == (["job_0", "job_1"], "WaitingForCapacity")
    assert (
        made.holds[0].message
        == "It is put into the cluster's queue as soon as fewer than 2 jobs stand there before it."
    )
    made = look([*jobs, job("job_high", priority=1)], offer("job_0"), offer("job_1"), most=2)
    assert [one.id for one, _ in made.offers] == ["job_high", "job_0"]
    assert list(made.withdraws) == ["job_1"]


def test_a_queue_in_which_very_many_wait_leaves_places_to_the_others() -> None:
    """The cluster may have room for those of another queue, which it sees only once they are offered."""
    jobs = [job(f"job_{n}", queued_at=BEGAN + timedelta(seconds=n), priority=9, queue="busy") for n in range(5)]
    late = [job(f"job_late{n}", queued_at=LATER, queue="default") for n in range(2)]
    config = QueueConfig.of({"queues": {"busy": {}}})
    made = decide([*jobs, *late], {}, config, LATER, 4)
    assert [one.id for one, _ in made.offers] == ["job_0", "job_late0", "job_1", "job_late1"]
    made = decide([*jobs, late[0]], {}, config, LATER, 4)
    assert [one.id for one, _ in made.offers] == ["job_0", "job_late0", "job_1", "job_2"]


def test_an_organisation_never_has_more_offers_and_jobs_than_it_may_run() -> None:
    runs = job("job_r", Status.RUNNING, org_id="small", attempt=attempt(ended_by=None), holds_capacity=True)
    jobs = [runs, *(job(f"job_{n}", org_id="small") for n in range(3)), job("job_other")]
    made = look(jobs)
    assert [one.id for one, _ in made.offers] == ["job_0", "job_other"]
    assert {hold.reason for hold in made.holds} == {"OrganisationLimit"}
    placed = look(jobs, offer("job_2", admitted=True), offer("job_0"))
    assert ([one.id for one, _ in placed.admits], list(placed.withdraws)) == (["job_2"], ["job_0"])


def test_offers_of_jobs_that_wait_no_more_are_needless_but_not_what_an_attempt_left() -> None:
    cancelled = job(status=Status.CANCELLED)
    assert needless(cancelled, offer())
    assert needless(job(status=Status.CANCELLED, **RECALLED), offer(token="old", number=1))
    assert needless(job(status=Status.FAILED, attempt=attempt()), offer(token="new", number=2))
    assert not needless(job(status=Status.COMPLETED, attempt=attempt(ended_by="Completed")), offer(token="old"))
    assert not needless(job(status=Status.COMPLETED, attempt=attempt(2, ended_by="Completed")), offer("x", number=1))
    assert not needless(job(status=Status.CANCELLED, **LEAVING), offer(token="old"))
    assert not needless(job(), offer())


ATTEMPTS = st.sampled_from([None, attempt(), attempt(2), attempt(ended_by="Recall"), attempt(2, ended_by="Recall")])


@given(
    made=st.lists(
        st.tuples(
            st.sampled_from(list(Status)), ATTEMPTS, st.integers(0, 2), st.sampled_from(["org_a", "small"]),
            st.sampled_from(["default", "shut"]),
            st.none() | st.tuples(st.sampled_from(["old", "new", "older"]), st.booleans(), st.integers(1, 3)),
        ),
        max_size=8,
    ),
    most=st.integers(1, 4),
)  # fmt: skip
def test_whatever_stands_there_only_what_may_begin_is_admitted_and_nothing_is_lost(made: Any, most: int) -> None:
    jobs, offers = [], []
    for number, (status, last, priority, org, queue, offered) in enumerate(made):
        name = f"job_{number}"
        jobs.append(job(name, status, attempt=last, priority=priority, org_id=org, queue=queue))
        if offered is not None:
            offers.append(offer(name, offered[0], offered[1], number=offered[2]))
    found = look(jobs, *offers, most=most)
    for one, placed in found.admits:
        assert (one.status, one.queue, placed.admitted) == (Status.PENDING, "default", True)
        assert stands(one, placed)
        assert placed.number == number_of(one, placed.token)
        assert placed.token != "old" or one.attempt is None or one.attempt.ended_by == "Recall"
    waiting = {one.id for one in jobs if one.status is Status.PENDING}
    done = [{one.id for one, _ in found.admits}, {one.id for one, _ in found.offers}, {h.job_id for h in found.holds}]
    assert set.union(*done) | found.withdraws.keys() == waiting
    assert sum(map(len, done)) == len(set.union(*done)), "two answers for one job"
    assert not (done[0] | done[1]) & found.withdraws.keys()
    assert len(found.offers) <= most


class Refusing:
    """A cluster that takes no offer, and who carries orders out when they are told to."""

    def __init__(self) -> None:
        self.orders: list[Callable[[], Awaitable[None]]] = []

    async def offer(self, job: Job, token: str) -> None:
        raise Refused("there is no such queue")

    def crew(self) -> Crew:
        class Orders:
            offer = staticmethod(lambda job_id, call, most: self.orders.append(call))

        return cast(Crew, Orders())


@pytest.mark.parametrize("standing", [None, offer()])
def test_a_refusal_is_told_once_and_stays_the_reason_for_the_wait(standing: Offer | None) -> None:
    cluster, nobody = Refusing(), cast(Any, None)
    offers = cast(Offers, cluster)
    offerer = Offerer(nobody, nobody, nobody, nobody, cluster.crew(), offers, lambda: CONFIG, 1.0)
    complaints = []
    for _ in range(4):
        offerer._put(job(), standing)  # as long as it is refused, it is tried again
        try:
            asyncio.run(cast(Any, cluster.orders.pop()()))
        except Refused as error:
            complaints.append(str(error))
        assert [hold.message for hold in offerer._waits(job(), None)] == ["there is no such queue"]
    assert complaints == ["there is no such queue"]
