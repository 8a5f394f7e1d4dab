"""Tasks per second and how busy the indexes are, from two looks at what drivers show."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from test_lookout import at, job

from jos.controller.meter import Meter
from jos.controller.metrics import Metrics
from jos.core.model import Job
from jos.launch.base import DriverSeen
from jos.store.records import Live

BEGAN = datetime(2026, 4, 14, 10, 5, 0, tzinfo=UTC)


def live(seconds: float, done: int, *busy: float, token: str = "tok") -> Live:
    lines = {str(i): {"state": "running", "seconds": b} for i, b in enumerate(busy)}
    return Live(token, 1, BEGAN + timedelta(seconds=seconds), {"items_processed": done, "indexes": lines})


def meter() -> tuple[Meter, Metrics]:
    metrics = Metrics()
    return Meter(None, None, metrics), metrics  # type: ignore[arg-type]


def take(one: Meter, seconds: float, reading: Live, what: Job | None = None) -> None:
    what = what or job()
    one.take([what], {what.id: reading}, BEGAN + timedelta(seconds=seconds))


def value(metrics: Metrics, name: str) -> Any:
    return metrics.registry.get_sample_value(name)


def test_rates_come_from_two_readings_of_one_attempt() -> None:
    one, metrics = meter()
    take(one, 0, live(0, 100, 0.0, 0.0))
    assert value(metrics, "jos_tasks_per_second") == 0
    take(one, 5, live(5, 600, 5.0, 2.5))
    assert value(metrics, "jos_tasks_per_second") == 100
    assert value(metrics, "jos_index_utilisation") == 0.75
    assert value(metrics, "jos_indexes_granted") == 1


def test_a_grant_of_which_nothing_is_left_is_none() -> None:
    one, metrics = meter()
    attempt = job().attempt
    assert attempt is not None
    take(one, 0, live(0, 1, 0.0), job().model_copy(update={"attempt": attempt.model_copy(update={"indexes": 0})}))
    assert value(metrics, "jos_indexes_granted") == 0


def test_a_new_attempt_begins_anew() -> None:
    one, metrics = meter()
    take(one, 0, live(0, 1000, 9.0))
    take(one, 5, live(5, 10, 0.5, token="new"), job("new"))
    assert value(metrics, "jos_tasks_per_second") == 0


def test_a_driver_that_was_not_heard_in_between_adds_nothing() -> None:
    one, metrics = meter()
    take(one, 0, live(0, 10, 1.0))
    take(one, 5, live(0, 10, 1.0))
    assert value(metrics, "jos_tasks_per_second") == 0


def test_what_a_preemption_would_throw_away_is_the_time_since_something_was_committed() -> None:
    one, _ = meter()
    for seconds, done in ((0, 5), (10, 7), (20, 7), (30, 7)):
        take(one, seconds, live(seconds, done))
    assert one.work_lost(BEGAN + timedelta(seconds=40)) == {"job_1": 30}


class LastWords:
    """A store that has the last word of one job's driver."""

    def __init__(self, said: Live) -> None:
        self.said = said

    async def live(self, _job_id: str) -> Live:
        return self.said

    async def lives(self, job_ids: Sequence[str]) -> dict[str, Live]:
        return dict.fromkeys(job_ids, self.said)


def own(tasks: int, commits: int, token: str = "tok") -> Live:
    data = {"items_processed": 1000 + tasks, "attempt": {"tasks": tasks, "commits": commits}}
    return Live(token, 1, BEGAN, data)


def over(token: str, seconds: float) -> Job:
    one = job(token)
    assert one.attempt is not None
    return one.model_copy(update={"attempt": one.attempt.model_copy(update={"ended_at": at(seconds)})})


def test_tasks_and_commits_are_counted_once_also_of_a_job_that_was_never_seen_running() -> None:
    async def test() -> None:
        metrics, words = Metrics(), LastWords(own(50, 5))
        one = Meter(words, SimpleNamespace(holding=[job()]), metrics)  # type: ignore[arg-type]
        await one.step(at(0))
        assert value(metrics, "jos_tasks_total") == 0  # what it did before, an earlier leader counted
        words.said = own(70, 7)
        await one.step(at(5))
        words.said = own(80, 8)
        for _ in range(2):
            await one.ended(over("tok", 6))
        assert (value(metrics, "jos_tasks_total"), value(metrics, "jos_commits_total")) == (30, 3)
        words.said = own(9, 1, token="short")
        await one.ended(over("short", 8))
        assert (value(metrics, "jos_tasks_total"), value(metrics, "jos_commits_total")) == (39, 4)
        await one.ended(over("short", -5))
        words.said = own(9, 1, token="long ago")
        await one.ended(over("long ago", -5))
        assert value(metrics, "jos_tasks_total") == 39

    asyncio.run(test())


def test_what_the_clusters_own_queue_holds_back_is_no_driver_that_starts() -> None:
    """Or an alert would tell of drivers that do not come up, wherever all of Kueue's quota is in use."""
    metrics = Metrics()
    held, comes = DriverSeen("jos-job_1-1", "starting", suspended=True), DriverSeen("jos-job_2-1", "starting")
    metrics.look([], [], [held, comes], BEGAN)
    assert metrics.registry.get_sample_value("jos_drivers", {"state": "starting"}) == 1
    metrics.look([], [], [held], BEGAN)
    assert metrics.registry.get_sample_value("jos_drivers", {"state": "starting"}) == 0
