"""When a job is told anew why it waits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from test_lookout import BEGAN, at, job

from jos.controller.telling import MOST_HOLDS, new_holds, news
from jos.core.model import Job
from jos.core.snapshot import Hold


def waits(reason: str = "ClusterFull", message: str = "0 of 8 are free", **fields: Any) -> Job:
    return job().model_copy(update={"reason": reason, "reason_message": message, "updated_at": BEGAN, **fields})


@pytest.mark.parametrize(
    ("_sentence", "before", "reason", "message", "seconds", "new"),
    [
        ("the same is no news", waits(), "ClusterFull", "0 of 8 are free", 999, None),
        ("a first reason is told at once", waits("WaitingForCapacity", ""), "ClusterFull", "full", 0, "reason"),
        ("another reason waits", waits(), "QuotaExhausted", "used up", 9, None),
        ("for ten seconds", waits(), "QuotaExhausted", "used up", 10, "reason"),
        ("other words wait", waits(), "ClusterFull", "1 of 8 is free", 59, None),
        ("for a minute", waits(), "ClusterFull", "1 of 8 is free", 60, "words"),
        ("that it waits no more is told as late", waits("PullingImage", "pulls it"), "CapacityGranted", "", 9, None),
        ("and then it may wait at once for something else", waits("CapacityGranted", ""), "NoNodeForPods", "no node", 0,
         "reason"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_news(_sentence: str, before: Job, reason: str, message: str, seconds: float, new: str | None) -> None:
    assert news(before, reason, message, at(seconds)) == new


def test_a_reason_is_told_at_most_every_ten_seconds_however_often_it_changes() -> None:
    one, told, now = waits("CapacityGranted", ""), 0, BEGAN
    for second in range(120):
        now = at(second)
        reason, message = [("PullingImage", "pulls"), ("CapacityGranted", ""), ("NoNodeForPods", "none")][second % 3]
        if news(one, reason, message, now):
            told += reason != "CapacityGranted"
            one = waits(reason, message, updated_at=now)
    assert 2 <= told <= 120 / 10 + 1


def test_new_reasons_come_before_new_words_of_which_only_some_are_told_at_once() -> None:
    jobs = {f"job_{n}": waits(id=f"job_{n}") for n in range(MOST_HOLDS + 9)}
    holds = [Hold(name, "ClusterFull", "1 of 8 is free") for name in jobs]
    holds[-1] = Hold(holds[-1].job_id, "QuotaExhausted", "used up")
    found = new_holds(holds, jobs, BEGAN + timedelta(minutes=2))
    assert (len(found), found[-1]) == (1 + MOST_HOLDS, holds[-1])
    assert new_holds([Hold("gone", "ClusterFull", "full")], jobs, at(999)) == []
