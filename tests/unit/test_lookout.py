"""Who was heard when: by the arrival of heartbeats here, and never counting time in which nobody listened."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from jos.controller.lookout import Lookout
from jos.core.errors import ComputeFailed
from jos.core.model import Attempt, Job, Status
from jos.core.snapshot import Node
from jos.launch.base import DriverSeen, Offer

BEGAN = datetime(2026, 4, 14, 10, 5, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def job(token: str = "tok", admitted: float = 0, driver: str = "") -> Job:
    attempt = Attempt(number=1, token=token, admitted_at=at(admitted), indexes=1, driver=driver)
    fields: dict[str, Any] = {
        "id": "job_1", "org_id": "org_a", "name": "n", "pipeline_type": "batch", "pipeline_key": "k",
        "pipeline_version": "1.0.0", "parameters": {}, "created_at": BEGAN, "updated_at": BEGAN, "queued_at": BEGAN,
    }  # fmt: skip
    return Job(**fields, status=Status.RUNNING, holds_capacity=True, attempt=attempt)


class Cluster:
    """A launcher that only answers questions."""

    away = False
    asked_nodes = 0
    token = ""

    def name_of(self, job: Job) -> str:
        return f"jos-{job.id}-1"

    async def seen(self) -> dict[str, DriverSeen]:
        if self.away:
            raise ComputeFailed("away")
        return {n: DriverSeen(n, "running", token=self.token) for n in ("jos-job_1-1", "jos-warm-1")}

    async def nodes(self) -> tuple[Node, ...] | None:
        self.asked_nodes += 1
        return (Node({"cpu": 4}),)


def lookout(cluster: Cluster | None = None) -> Lookout:
    return Lookout(cluster or Cluster(), BEGAN)  # type: ignore[arg-type]


def listen(out: Lookout, one: Job, beats: dict[float, int]) -> None:
    """{when: the number of the heartbeat that the store has then}"""
    for when, number in beats.items():
        out.hear([one], {one.id: ("tok", number)}, at(when))


def test_a_heartbeat_counts_from_its_arrival() -> None:
    out, one = lookout(), job()
    listen(out, one, {1: 1, 2: 2, 3: 2, 4: 2})
    assert out.sight(one).heard == at(2)
    assert out.sight(one).beats


def test_heartbeats_of_the_attempt_before_are_not_this_ones() -> None:
    out, one = lookout(), job("new", admitted=2)
    listen(out, one, {1: 1, 3: 2})
    assert out.sight(one).heard == at(2)
    assert not out.sight(one).beats


def test_a_driver_that_was_made_for_another_token_is_none_of_this_attempt() -> None:
    cluster, one = Cluster(), job("new")
    for token, known in (("", True), ("new", True), ("old", False)):
        cluster.token = token
        out = lookout(cluster)
        asyncio.run(out.look(BEGAN))
        assert (out.sight(one).driver is not None) is known


def test_time_in_which_nobody_listened_is_no_silence() -> None:
    """Redis was away for a minute, for the driver too: it is given its time again."""
    out, one = lookout(), job()
    listen(out, one, {1: 1, 61: 1})
    assert out.sight(one).heard == at(61)


def test_a_clock_that_was_put_back_does_not_keep_a_silent_driver_from_being_noticed() -> None:
    out, one = lookout(), job(admitted=-7200)
    listen(out, one, {1: 1, 2: 2, -3600: 2, -3599: 2, -3598: 2})
    assert out.sight(one).heard == at(-3600)


def test_an_answer_that_nobody_understands_is_none() -> None:
    class Garbled(Cluster):
        async def nodes(self) -> tuple[Node, ...] | None:
            raise ValueError("this is no JSON")

    out = lookout(Garbled())
    asyncio.run(out.look(at(1)))
    assert not out.answers
    assert not out.drivers


def test_a_new_controller_gives_everybody_time() -> None:
    out, one = Lookout(Cluster(), at(1000)), job()  # type: ignore[arg-type]
    out.hear([one], {}, at(1000))
    assert out.sight(one).heard == at(1000)


def test_a_driver_is_known_by_the_process_that_took_the_job() -> None:
    out = lookout()
    asyncio.run(out.look(at(1)))
    assert out.sight(job()).name == "jos-job_1-1"
    warm = out.sight(job(driver="jos-warm-1"))
    assert (warm.name, warm.driver) == ("jos-warm-1", DriverSeen("jos-warm-1", "running"))
    assert out.needed([job(driver="jos-warm-1")]) == {"jos-warm-1", "jos-job_1-1"}


def test_while_the_cluster_does_not_answer_nothing_is_known_of_its_drivers() -> None:
    cluster = Cluster()
    out = lookout(cluster)
    asyncio.run(out.look(at(1)))
    assert out.answers
    cluster.away = True
    asyncio.run(out.look(at(2)))
    asyncio.run(out.look(at(9)))
    seen = out.sight(job())
    assert (seen.answers, seen.driver, seen.since) == (False, None, at(2))


def test_nodes_are_asked_for_less_often() -> None:
    cluster = Cluster()
    out = lookout(cluster)
    for when in (0, 1, 2, 3, 4):
        asyncio.run(out.look(at(when)))
    assert cluster.asked_nodes == 3
    assert out.nodes == (Node({"cpu": 4}),)


class Kueue(Cluster):
    """And one with a queue of its own."""

    offer = Offer("job_1", "tok", True)

    async def offered(self) -> dict[str, Offer]:
        return {} if self.away else {"job_1": self.offer}


def test_an_attempt_whose_place_was_taken_back_is_displaced_and_no_other() -> None:
    cluster = Kueue()
    out = Lookout(cluster, BEGAN, cluster)  # type: ignore[arg-type]
    told = []
    for offer in (
        Offer("job_1", "tok", True),
        Offer("job_1", "tok", False, "preempted in Kueue"),
        Offer("job_1", "another", False, "of the next attempt"),
    ):
        cluster.offer = offer
        asyncio.run(out.look(at(1)))
        told.append(out.sight(job()).displaced)
    assert told == [None, "preempted in Kueue", None]
    assert out.offering
    cluster.away = True
    asyncio.run(out.look(at(2)))
    assert (out.offers, out.answers) == ({}, False)
    assert not lookout().offering
