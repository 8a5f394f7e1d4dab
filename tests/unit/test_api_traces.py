"""The cumulative curves of a job's work."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from jos.api import traces
from jos.api.traces import Trace
from jos.core.model import InputState, InputStatus, Progress

BEGAN = datetime(2026, 4, 14, 10, 0, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def entry(number: int, seconds: float, input_id: str | None, success: int, failed: int = 0) -> Progress:
    kind = "inference" if input_id else "training"
    metrics = {"success": success, "failed": failed} if input_id else {"loss": 0.5}
    return Progress(id=number, kind=kind, step=success, metrics=metrics, input_id=input_id, created_at=at(seconds))


def ended(input_id: str, seconds: float, status: InputStatus = InputStatus.COMPLETED) -> InputState:
    return InputState(input_id=input_id, status=status, completed_at=at(seconds))


def test_inputs_add_up_by_what_is_new_of_each() -> None:
    trace = Trace()
    for one in (entry(1, 10, "a", 5), entry(2, 20, "b", 3, 1), entry(3, 90, "a", 8), entry(4, 100, "b", 3, 1)):
        trace.add(one)
    seconds, latest, points = trace.points(BEGAN, [ended("a", 90), ended("b", 100, InputStatus.FAILED)], 10)
    assert (seconds, latest, trace.seen) == (10.0, at(100), 4)
    none, some = {"completed": 0, "failed": 0}, {"success": 8, "failed": 1}
    assert [(p.t, p.items["inference"], p.files, p.step) for p in points] == [
        (at(10), {"success": 0, "failed": 0}, none, 0),
        (at(20), {"success": 5, "failed": 0}, none, 0),
        *((at(end), some, none, 0) for end in range(30, 100, 10)),
        (at(100), {"success": 11, "failed": 1}, {"completed": 1, "failed": 1}, 2),
    ]
    assert trace.latest["a"].id == 3


def test_training_steps_count_by_their_number() -> None:
    trace = Trace()
    for number in range(1, 5):
        trace.add(entry(number, number, None, 20 * number))
    _, _, points = trace.points(BEGAN, [], 10)
    assert [p.items["training"]["success"] for p in points] == [0, 0, 20, 20, 20, 40, 40, 60, 60, 80]


def test_there_is_a_point_for_each_bucket_of_some_length_even_of_nothing_and_of_one_moment() -> None:
    trace = Trace()
    seconds, latest, points = trace.points(BEGAN, [], 10)
    assert (seconds > 0, latest) == (True, None)
    assert [(p.step, p.items) for p in points] == [(0, {})] * 10
    trace.add(entry(1, 0, "a", 4))
    seconds, latest, points = trace.points(BEGAN, [], 10)
    assert (seconds > 0, latest) == (True, BEGAN)
    assert [p.items for p in points] == [{"inference": {"success": 4, "failed": 0}}] * 10


def test_a_retry_may_take_back_what_it_does_again() -> None:
    trace = Trace()
    trace.add(entry(1, 1, "a", 8, 2))
    trace.add(entry(2, 5, "a", 8, 0))
    _, _, points = trace.points(BEGAN, [], 10)
    assert points[-1].items["inference"] == {"success": 8, "failed": 0}


def test_a_job_of_any_length_takes_bounded_memory_and_keeps_its_end() -> None:
    trace = Trace()
    count = 3 * traces._MOST_STEPS
    for number in range(1, count + 1):
        trace.add(entry(number, number, "a", number))
    assert len(trace._steps) <= traces._MOST_STEPS
    _, _, points = trace.points(BEGAN, [], 100)
    assert points[-1].items["inference"]["success"] == count
    totals = [p.items["inference"]["success"] for p in points]
    assert totals == sorted(totals)
    assert len(points) == 100
