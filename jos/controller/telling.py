"""When a job is told anew why it waits: a reason that was just given stays a while, or two could take turns for ever;
other words for the same reason can wait longer still.

Pure. May import: jos.core. Tests: tests/unit/test_telling.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

from jos.core.model import Job
from jos.core.snapshot import Hold

MOST_HOLDS = 50  # reasons written in one step: nobody who comes waits for them longer than some 0.05 s
REASON_STAYS = timedelta(seconds=10)  # before a reason is replaced by another one
WORDS_STAY = timedelta(minutes=1)  # before the same reason is told in other words
AWAY = timedelta(seconds=10)  # without an answer of the cluster, until those who wait are told
NO_ANSWER = "The cluster does not answer; jobs start again when it does."


def news(job: Job, reason: str, message: str, now: datetime) -> Literal["reason", "words"] | None:
    """What of this is worth telling now; None: nothing, or not yet."""
    if (job.reason, job.reason_message) == (reason, message):
        return None
    known = job.reason == reason
    if job.reason_message and now - job.updated_at < (WORDS_STAY if known else REASON_STAYS):
        return None
    return "words" if known else "reason"


def new_holds(holds: Sequence[Hold], jobs: Mapping[str, Job], now: datetime) -> list[Hold]:
    """Those that say something new, the last one first. Other words for a known reason come last, and only so many at
    once."""
    found: dict[str | None, list[Hold]] = {"reason": [], "words": []}
    for hold in holds:
        job = jobs.get(hold.job_id)
        if job is not None and (new := news(job, hold.reason, hold.message, now)) is not None:
            found[new].append(hold)
    return [*found["reason"], *found["words"][:MOST_HOLDS]][::-1]
