"""One look at a job: what its page, its lines and its live display are made of.

Pure. May import: jos.core, jos.wire. Tests: tests/unit/test_shown.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jos import wire
from jos.core.model import Event, Job, Level, Status

TAIL = 6  # events shown
LINES = 8  # inputs shown
READ = 200  # inputs that are looked at; of more, only the counts
_FIRST = {"failed": 0, "processing": 1, "pending": 2, "completed": 3}  # what is worth a line


@dataclass(frozen=True)
class InputLine:
    """A tracked input. `total` is None until it is planned."""

    name: str
    status: str
    done: int = 0
    total: int | None = None
    failed: int = 0
    error: str = ""


@dataclass(frozen=True)
class Look:
    job: Job | wire.Job
    comeback: str  # Python that takes the job up again
    counts: Mapping[str, int] = field(default_factory=dict)  # tracked inputs by status
    inputs: Sequence[InputLine] = ()
    events: Sequence[Event | wire.Event] = ()  # the newest, oldest of them first
    done: int = 0  # tasks
    total: int | None = None  # None until all inputs are planned
    rate: float | None = None  # tasks a second
    latest: Mapping[str, Any] = field(
        default_factory=dict
    )  # metrics of a training's last step; `done` counts its steps
    at: datetime | None = None  # when this was

    @property
    def waiting(self) -> str:
        """Why it waits; empty unless it does."""
        if isinstance(self.job, wire.Job):
            reason = self.job.waiting
            return (reason.message or reason.code) if reason else ""
        return (self.job.reason_message or self.job.reason or "") if self.job.status is Status.PENDING else ""

    @property
    def error(self) -> str:
        return self.job.error.message if self.job.error and self.job.status is not Status.COMPLETED else ""

    @property
    def share(self) -> float | None:
        """How much is done, 0–1: of the tasks, else of the inputs; None when neither is known."""
        if self.job.status is Status.COMPLETED:
            return 1.0
        if self.total:
            return min(self.done / self.total, 1.0)
        if self.job.pipeline_type == "training":
            return None  # its inputs are at work until the end
        inputs = sum(self.counts.values())
        return (self.counts.get("completed", 0) + self.counts.get("failed", 0)) / inputs if inputs else None

    @property
    def seconds_left(self) -> float | None:
        if not self.rate or not self.total or self.job.status is not Status.RUNNING:
            return None
        return (self.total - self.done) / self.rate

    @property
    def elapsed(self) -> float | None:
        """Seconds since it started, or that it took."""
        began, end = self.job.started_at, ended_at(self.job) or self.at
        return max((end - began).total_seconds(), 0.0) if began and end else None


def ended_at(job: Job | wire.Job) -> datetime | None:
    return (job.completed_at or job.failed_at or job.cancelled_at) if job.status.terminal else None


def amount(look: Look) -> str:
    """`1,200 of 7,000 tasks · 300 tasks/s · ETA 0:19 · for 4.1 s`: what is known of it."""
    known = []
    unit = "steps" if look.job.pipeline_type == "training" else "tasks"
    if look.total is not None:
        known.append(f"{look.done:,} of {look.total:,} {unit}")
    elif look.done:
        known.append(f"{look.done:,} {unit}")
    if look.latest:
        known.append(metrics_line(look.latest))
    if look.rate and not look.job.status.terminal:
        known.append(f"{look.rate:,.0f} tasks/s")
    if look.seconds_left is not None:
        known.append(f"ETA {duration(look.seconds_left)}")
    if look.elapsed is not None:
        span = f"{look.elapsed:.1f} s" if look.elapsed < 10 else duration(look.elapsed)
        known.append(f"{'took' if look.job.status.terminal else 'for'} {span}")
    return " · ".join(known)


def tally(counts: Mapping[str, int]) -> str:
    """`3 completed, 1 failed of 5 inputs`."""
    some = ", ".join(f"{counts[name]:,} {name}" for name in reversed(list(_FIRST)) if counts.get(name))
    return f"{some} of {sum(counts.values()):,} inputs" if some else ""


def worth_a_line(lines: Iterable[InputLine]) -> list[InputLine]:
    """Failed ones first, then those at work; the rest in their order."""
    return sorted(lines, key=lambda line: _FIRST.get(line.status, len(_FIRST)))[:LINES]


def tasks(lines: Sequence[InputLine], whole: bool) -> tuple[int, int | None]:
    """(done, total) over the inputs; no total unless these are `whole` and all are planned."""
    done = sum(line.done for line in lines)
    totals = [line.total for line in lines]
    known = whole and totals and all(total is not None for total in totals)
    return done, sum(total or 0 for total in totals) if known else None


def duration(seconds: float | None) -> str:
    """75.2 -> 1:15."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def metrics_line(metrics: Mapping[str, Any]) -> str:
    """`loss 0.1234  macro_f1 0.9876`: numbers of a training, in the order of their names."""
    return "  ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()) if isinstance(value, int | float))


def marked(level: Level) -> str:
    """A word for those who cannot see a colour; empty for what is only information."""
    return "" if level in (Level.INFO, Level.SUCCESS) else str(level)


def brief(job: Job | wire.Job, counts: Mapping[str, int] | None = None) -> str:
    """`<Job job_… RUNNING "pump 7" machine-state-classification 1.2.0, 3 completed of 5 inputs>`."""
    end = f", {tally(counts)}" if counts and tally(counts) else ""
    return f"<Job {job.id} {job.status} {job.name!r} {job.pipeline_key} {job.pipeline_version}{end}>"


class Rate:
    """Tasks a second over the looks at one job."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=20)

    def of(self, done: int, now: float) -> float | None:
        """`now` in seconds. None until something was done between two looks."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # a retry
        self._seen.append((now, done))
        began, before = self._seen[0]
        return (done - before) / (now - began) if done > before and now > began else None
