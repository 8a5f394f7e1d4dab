"""Who reads what somebody wants to delete: a file, or the checkpoints of a job.

A job is marked as a reader before its record is written, so a mark without a job counts for a while.
May import: jos.core, jos.store. Tests: tests/contract/test_files_post.py, tests/integration/test_api_checkpoints.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic

from jos.core.errors import Conflict
from jos.store.redis import Store

MARK_COUNTS = 900.0  # seconds that the record of a job may come after its marks
LEAVING_TAKES = 10.0  # seconds that a deletion waits for the drivers of jobs that are over
LOOK_AGAIN = 0.15


@dataclass
class Readers:
    marked: list[str]  # all jobs with a mark, in the order of the marks
    live: list[str] = field(default_factory=list)  # of these
    leaving: list[str] = field(default_factory=list)  # over, but their drivers may still read

    def check_none(self, what: str) -> None:
        """Raises Conflict. `what`: with an article, e.g. "The file 'a.csv'"."""
        jobs = self.live or self.leaving
        if not jobs:
            return
        shown = ", ".join(jobs[:5]) + (" and others" if len(jobs) > 5 else "")
        if self.live:
            raise Conflict(f"{what} is being read by {shown}.", suggestion="Cancel these jobs, or wait.")
        raise Conflict(f"{what} was read by {shown}: over, but the driver still leaves.", suggestion="Try again soon.")


async def judged(store: Store, marks: Mapping[str, float], now: datetime) -> Readers:
    """`marks`: job id -> when it was marked, in Unix seconds."""
    jobs = await store.get_many(list(marks))
    found = Readers(list(marks))
    for job_id, marked in marks.items():
        job = jobs.get(job_id)
        if job is None:
            if now.timestamp() - marked < MARK_COUNTS:
                found.live.append(job_id)
        elif not job.status.terminal:
            found.live.append(job_id)
        elif job.holds_capacity:
            found.leaving.append(job_id)
    return found


async def when_left(look: Callable[[], Awaitable[Readers]]) -> Readers:
    """The readers, once the drivers of jobs that are over have left, or after a while. Not with a live job among them,
    for which nobody would wait."""
    until = monotonic() + LEAVING_TAKES
    while True:
        found = await look()
        if found.live or not found.leaving or monotonic() >= until:
            return found
        await asyncio.sleep(LOOK_AGAIN)
