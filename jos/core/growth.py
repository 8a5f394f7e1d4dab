"""How running jobs take more indexes once everybody of their priority has one.

May import: stdlib, jos.core. Tests: tests/unit/test_admission.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from heapq import heapify, heappop, heappush, heapreplace

from jos.core.capacity import Ledger, Shape, Shares


@dataclass(slots=True, eq=False)
class Growing:
    id: str
    org_id: str
    queue: str
    shape: Shape
    granted: int
    most: int
    since: datetime
    before: int = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.granted


Key = tuple[float, float, datetime, str, Growing]


def grow(jobs: Iterable[Growing], now: Ledger, soon: Ledger, kept: Ledger, shares: Shares) -> bool:
    """Gives what is free, always to the organisation that has least, in steps that get smaller as room does.
    Says whether what is kept for others stopped anybody."""

    def key(job: Growing) -> Key:
        return now.borrowed_share(job.queue, job.shape), shares.of(job.org_id), job.since, job.id, job

    full: set[tuple[str, Shape]] = set()
    stopped = False

    def room(job: Growing) -> float:
        nonlocal stopped
        place = job.queue, job.shape
        if place in full:
            return 0
        free = now.room(*place)
        if free >= 1 and (left := kept.room(*place)) < free:
            stopped, free = stopped or left < min(free, soon.room(*place)), left
        if free < 1:
            full.add(place)
        return free

    turns = [key(job) for job in jobs if job.granted < job.most and room(job) >= 1]
    heapify(turns)
    while turns:
        job, fresh = turns[0][-1], key(turns[0][-1])
        if fresh > turns[0]:
            heapreplace(turns, fresh)
            continue
        heappop(turns)
        free = room(job)
        if free < 1:
            continue
        left = job.most - job.granted
        step = left if free == math.inf else max(1, min(left, int(free // (len(turns) + 1))))
        for ledger in (now, soon, kept):
            ledger.charge(job.queue, job.org_id, job.shape, step)
        shares.charge(job.org_id, job.shape, step)
        job.granted += step
        if job.granted < job.most:
            heappush(turns, key(job))
    return stopped
