"""What a plan sees of a job."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from test_lookout import BEGAN, job

from jos.controller.view import View, holding
from jos.core.model import Job, Status, Timeouts


def view(*jobs: Job) -> View:
    one = View(None)  # type: ignore[arg-type]
    for each in jobs:
        one.put(each)
    return one


def changed(**fields: Any) -> Job:
    return job().model_copy(update=fields)


PENDING = {"status": Status.PENDING, "holds_capacity": False}


def test_a_job_waits_or_holds_or_both() -> None:
    waits = changed(**PENDING)
    assert (len(view(waits).waiting), len(view(waits).holding)) == (1, 0)
    assert (len(view(job()).waiting), len(view(job()).holding)) == (0, 1)
    both = changed(status=Status.PENDING)  # retried, and the driver of its last attempt has not left
    assert (len(view(both).waiting), len(view(both).holding)) == (1, 1)
    assert view(both).waiting[0].holds_capacity


def test_a_job_that_is_over_is_dropped_once_it_holds_nothing() -> None:
    one = view(job())
    assert one.put(changed(status=Status.CANCELLED))
    assert len(one.holding) == 1
    assert one.put(changed(status=Status.CANCELLED, holds_capacity=False))
    assert not one.jobs
    assert not one.put(changed(status=Status.CANCELLED, holds_capacity=False))


def test_the_same_record_again_is_no_change() -> None:
    one = view(job())
    assert not one.put(Job.model_validate_json(job().model_dump_json()))
    assert one.put(changed(priority=5))


def test_a_job_without_a_queue_is_watched_but_not_planned_for() -> None:
    one = view(changed(queue="", **PENDING))
    assert (len(one.jobs), one.waiting) == (1, ())
    own = view(changed(queue=""))
    assert len(own.holding) == 1
    assert own.held({}, BEGAN) == ()


def test_only_jobs_that_can_run_out_of_time_where_they_are_are_looked_at_for_it() -> None:
    queue, run = {"timeouts": Timeouts(queue=60)}, {"timeouts": Timeouts(run=60)}
    assert len(view(changed(**queue, **PENDING)).timed) == 1
    assert len(view(changed(**run)).timed) == 1
    for other in (changed(**PENDING), changed(**run, **PENDING), changed(**queue)):
        assert view(other).timed == []
    one = view(changed(**run))
    one.drop(job().id)
    assert one.timed == []


def test_a_training_may_use_all_its_indexes_to_prepare() -> None:
    trainer = {"pipeline_type": "training", "parallelism": 8}
    assert view(changed(**trainer, **PENDING)).waiting[0].parallelism == 8


def test_only_an_attempt_that_stays_and_was_granted_indexes_can_grow() -> None:
    now = BEGAN + timedelta(seconds=50)
    assert holding(job(), None, now).growable
    assert holding(job(), None, now).work_lost == 50
    assert holding(job(), 3.0, now).work_lost == 3
    leaving = holding(changed(status=Status.PREEMPTED), None, now)
    assert (leaving.leaving, leaving.growable) == (True, False)
    attempt = job().attempt
    assert attempt is not None
    shrunk = changed(parallelism=4, attempt=attempt.model_copy(update={"indexes": 2, "shrunk": True}))
    assert (holding(shrunk, None, now).indexes, holding(shrunk, None, now).growable) == (2, False)
    alone = changed(parallelism=4, attempt=attempt.model_copy(update={"indexes": None}))
    assert (holding(alone, None, now).indexes, holding(alone, None, now).growable) == (4, False)
