"""What `jos run` shows while a job works: events as they come, one bar for all tasks, one line per index.

May import: rich, jos.core, jos.engine, jos.shown. Tests: tests/unit/test_display.py, tests/e2e.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jos.core.model import Event, Job, Level, Progress, Status
from jos.shown.look import duration, metrics_line

if TYPE_CHECKING:
    from jos import wire
    from jos.engine import Engine

STYLES = {
    Level.INFO: "default",
    Level.WARN: "yellow",
    Level.ERROR: "red",
    Level.FAILED: "bold red",
    Level.SUCCESS: "green",
}
REFRESH = 0.25
PACE = 2.0  # seconds between two lines of a training's progress


def event_line(event: Event | wire.Event) -> Text:
    """`10:05:00 inference.success  plant.csv: all 7,000 tasks done`."""
    style = STYLES[event.level]
    return Text.assemble(
        (f"{event.created_at.astimezone():%H:%M:%S} ", "dim"),
        (f"{event.event_type:<20} ", style),
        (event.message, style if event.level is not Level.INFO else "default"),
    )


class Pace:
    """Which progress entries of a training are worth a line: each span of steps has one, and there are many."""

    def __init__(self) -> None:
        self._last: datetime | None = None

    def line(self, entry: Progress | wire.Progress) -> Text | None:
        """`10:05:00 training              step 120  loss 0.1234  macro_f1 0.9876`; None: too soon after the last one,
        or nothing of a training."""
        if entry.kind != "training":
            return None
        if self._last is not None and (entry.created_at - self._last).total_seconds() < PACE:
            return None
        self._last = entry.created_at
        when = f"{entry.created_at.astimezone():%H:%M:%S} "
        return Text.assemble(
            (when, "dim"), (f"{entry.kind:<20} ", "default"), f"step {entry.step}  {metrics_line(entry.metrics)}"
        )


def frame(job: Job, live: dict[str, Any], elapsed: float) -> Group:
    """The moving part of the display."""
    done, total, planned = live.get("items_processed", 0), live.get("items_total", 0), live.get("planned", False)
    head = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=total if planned and total else None, completed=done, width=32, pulse=not planned)
    count = f"{done:,} / {total:,}{'' if planned else '+'} tasks"
    rate = f"{live.get('tasks_per_second', 0):,.0f} tasks/s"
    failed = Text(f"{live['failed']:,} failed", "red") if live.get("failed") else Text("")
    left = f"ETA {duration(live.get('seconds_left'))}"
    head.add_row(Text(job.status, "bold"), bar, count, rate, left, Text(duration(elapsed), "dim"), failed)
    lines = Table.grid(padding=(0, 2))
    for name, line in live.get("indexes", {}).items():
        restarts = f"{line['restarts']} restarts" if line.get("restarts") else ""
        lines.add_row(f"  index {name}", line["state"], f"{line['tasks']:,} tasks", line["now"], restarts)
    parts: list[Any] = [head, lines]
    if live.get("storage_waits"):
        parts.append(Text(f"  Redis is away, the job goes on: {live['storage_waits']}", "yellow"))
    return Group(*parts)


class Watch:
    """Shows a job until it is over, or until `gone` says that nobody works on it any more."""

    def __init__(self, engine: Engine, console: Console, gone: Callable[[], bool]) -> None:
        self.engine, self.console, self.gone = engine, console, gone
        self.seen, self.heard = 0, 0
        self.pace = Pace()

    def run(self, job_id: str, after: int = 0) -> Job:
        """Returns the job as it was at the end. Ctrl-C comes through as KeyboardInterrupt."""
        self.seen = after
        began = time.monotonic()
        with Live(console=self.console, refresh_per_second=8) as screen:
            while True:
                was_gone = self.gone()
                job, now = self.engine.get(job_id), self.engine.live(job_id)
                self._tell_events(job_id)
                if job.pipeline_type == "training":
                    self._tell_steps(job_id)
                screen.update(frame(job, now.data if now else {}, time.monotonic() - began))
                if job.status.terminal or was_gone:
                    break
                time.sleep(REFRESH)
        if not self.console.is_terminal:
            self.console.print()  # rich leaves the last frame without an end of line there
        return job

    def _tell_events(self, job_id: str) -> None:
        _, events = self.engine.events(job_id, after=self.seen)
        for event in events:
            self.console.print(event_line(event))
            self.seen = event.id

    def _tell_steps(self, job_id: str) -> None:
        for entry in self.engine.progress(job_id, after=self.heard):
            self.heard = entry.id
            if (line := self.pace.line(entry)) is not None:
                self.console.print(line)


def summary(job: Job | wire.Job) -> Text:
    """One line on how a job ended."""
    style = {Status.COMPLETED: "bold green", Status.FAILED: "bold red"}.get(job.status, "bold yellow")
    text = Text(f"{job.id} {job.status}", style)
    return text.append(f": {job.error.message}", "default") if job.error else text
