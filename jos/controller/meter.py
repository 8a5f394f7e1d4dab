"""What jobs get done: tasks and commits, tasks per second, how busy the indexes are, and what a preemption would throw
away.

All from the display data that drivers send with their heartbeats.
May import: jos.controller, jos.store. Tests: tests/unit/test_meter.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from jos.controller.metrics import Metrics
from jos.controller.view import View
from jos.core.model import Job, Status
from jos.store.records import Live
from jos.store.redis import Store

MOST_COUNTED = 50_000  # attempts; of those that are long over nothing more is heard


@dataclass(frozen=True)
class Reading:
    token: str
    done: int
    busy: float  # seconds that its indexes computed
    at: datetime  # the driver's clock: only differences count
    moved: datetime  # ours: when `done` was last seen to rise


class Meter:
    def __init__(self, store: Store, view: View, metrics: Metrics) -> None:
        self._store, self._view, self._metrics = store, view, metrics
        self._readings: dict[str, Reading] = {}
        self._counted: dict[str, tuple[int, int]] = {}  # by token: tasks and commits of that attempt; oldest first
        self._began: datetime | None = None

    async def step(self, now: datetime) -> None:
        running = [job for job in self._view.holding if job.status is Status.RUNNING]
        lives = await self._store.lives([job.id for job in running])
        if self._began is None:  # what these did so far, an earlier leader has counted
            self._began = now
            self._counted = {live.token: _done_by(live) for live in lives.values()}
        self.take(running, lives, now)

    async def ended(self, job: Job) -> None:
        """Counts what a job that is over did since it was last looked at; for a short one that is all of it."""
        attempt = job.attempt
        if attempt is None or attempt.ended_at is None or self._began is None or attempt.ended_at < self._began:
            return
        live = await self._store.live(job.id)
        if live is not None and live.token == attempt.token:
            self._count(live)

    def _count(self, live: Live) -> None:
        tasks, commits = _done_by(live)
        tasks_before, commits_before = self._counted.pop(live.token, (0, 0))
        self._counted[live.token] = (tasks, commits)
        self._metrics.done.inc(max(0, tasks - tasks_before))
        self._metrics.commits.inc(max(0, commits - commits_before))
        if len(self._counted) > MOST_COUNTED:
            del self._counted[next(iter(self._counted))]

    def take(self, running: list[Job], lives: Mapping[str, Live], now: datetime) -> None:
        before, self._readings = self._readings, {}
        tasks = busy = room = granted = 0.0
        for job in running:
            live, attempt = lives.get(job.id), job.attempt
            if live is None or attempt is None or live.token != attempt.token:
                continue
            self._count(live)
            last = before.get(job.id)
            reading = _reading(live, last if last and last.token == live.token else None, now)
            self._readings[job.id] = reading
            granted += job.granted
            if last is None or last.token != live.token or (seconds := (reading.at - last.at).total_seconds()) <= 0:
                continue
            tasks += max(0, reading.done - last.done) / seconds
            busy += max(0.0, reading.busy - last.busy) / seconds
            room += sum(line.get("state") == "running" for line in live.data.get("indexes", {}).values())
        self._metrics.tasks.set(round(tasks, 3))
        self._metrics.granted.set(granted)
        self._metrics.utilisation.set(round(min(1.0, busy / room), 4) if room else 0.0)

    def work_lost(self, now: datetime) -> dict[str, float]:
        """By job: seconds since it last committed something."""
        return {job_id: (now - reading.moved).total_seconds() for job_id, reading in self._readings.items()}


def _done_by(live: Live) -> tuple[int, int]:
    """Tasks and commits of this attempt alone."""
    own = live.data.get("attempt", {})
    return int(own.get("tasks", 0)), int(own.get("commits", 0))


def _reading(live: Live, last: Reading | None, now: datetime) -> Reading:
    done = int(live.data.get("items_processed", 0))
    busy = sum(float(line.get("seconds", 0.0)) for line in live.data.get("indexes", {}).values())
    moved = last.moved if last is not None and done <= last.done else now
    return Reading(live.token, done, busy, live.at, moved)
