"""What people see while a job runs."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from jos.core.model import Event, Job, JobFailure, Level, Status
from jos.display import event_line, frame, summary
from jos.shown.look import duration

NOW = datetime(2026, 1, 2, 10, 5, tzinfo=UTC)


def shown(thing: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def job(**fields: object) -> Job:
    base = {"id": "job_x", "org_id": "o", "name": "n", "pipeline_type": "batch", "pipeline_key": "p"}
    base |= {"pipeline_version": "1.0.0", "parameters": {}, "created_at": NOW, "updated_at": NOW, "queued_at": NOW}
    return Job.model_validate(base | fields)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.4, "0:00"), (75.2, "1:15"), (3599.6, "1:00:00"), (90061, "25:01:01")]
)
def test_durations_read_like_a_clock(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_frame_tells_tasks_rate_eta_and_a_line_per_index() -> None:
    line = {"state": "running", "tasks": 500, "now": "a.csv", "restarts": 2}
    live = {"items_processed": 500, "items_total": 2000, "planned": True, "tasks_per_second": 100.0}
    text = shown(frame(job(status="RUNNING"), live | {"seconds_left": 15.0, "failed": 3, "indexes": {"0": line}}, 5.0))
    for part in (
        "RUNNING",
        "500 / 2,000 tasks",
        "100 tasks/s",
        "ETA 0:15",
        "3 failed",
        "index 0",
        "a.csv",
        "2 restarts",
    ):
        assert part in text


def test_a_total_that_is_still_growing_is_marked() -> None:
    live = {"items_processed": 5, "items_total": 20, "planned": False}
    assert "5 / 20+ tasks" in shown(frame(job(), live, 1.0))


def test_a_frame_before_the_first_heartbeat_is_no_error() -> None:
    assert "PENDING" in shown(frame(job(), {}, 0.0))


def test_markup_in_a_message_is_shown_and_not_obeyed() -> None:
    event = Event(id=1, event_type="job.failed", level=Level.FAILED, message="bad [red]x[/] [0]", created_at=NOW)
    assert "bad [red]x[/] [0]" in shown(event_line(event))


def test_a_summary_says_how_it_ended_and_why() -> None:
    failed = job(status=Status.FAILED, error=JobFailure(code="x", message="no [GPU] left"))
    assert shown(summary(failed)).strip() == "job_x FAILED: no [GPU] left"
