"""What handles on jobs and pipelines show of themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import httpx2
import pytest

import jos
from jos.client import ServerUnreachable, handles
from jos.core.model import Event, InputStatus, Job, JobFailure, Level, Status, utc
from jos.settings import Settings
from jos.shown import page, text
from jos.shown.look import InputLine, Look, Rate, brief, tasks
from jos.shown.pipeline import Pipeline, settings_of
from jos.shown.watching import Cell, Detached, detachable

NOW = datetime(2026, 1, 2, 10, 5, tzinfo=UTC)
EVIL = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def job(**fields: object) -> Job:
    base = {"id": "job_x", "org_id": "o", "name": "pump 7", "pipeline_type": "batch", "pipeline_key": "states"}
    base |= {"pipeline_version": "1.0.0", "parameters": {}, "created_at": NOW, "updated_at": NOW, "queued_at": NOW}
    return Job.model_validate(base | fields)


def look(record: Job | None = None, **fields: Any) -> Look:
    return Look(job=record or job(), comeback='client.job("job_x").wait()', **fields)


def running() -> Look:
    lines = [InputLine("b.csv", "pending"), InputLine("a.csv", "processing", 40, 80, 2)]
    event = Event(id=9, event_type="input_started", level=Level.WARN, message="a.csv begins", created_at=NOW)
    return look(
        job(status="RUNNING", started_at=NOW),
        counts={"pending": 1, "processing": 1, "completed": 0, "failed": 0},
        inputs=lines,
        events=[event],
        done=40,
        total=160,
        rate=12.0,
        at=NOW + timedelta(seconds=75),
    )


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data += data


# --- a job --------------------------------------------------------------------------------------------


def test_a_page_and_its_lines_tell_status_progress_inputs_events_and_the_way_back() -> None:
    for shown in (Tags(page.html(running())).data, text.text(running())):
        for part in ("RUNNING", "pump 7", "states", "1.0.0", "40 of 160 tasks", "12 tasks/s", "ETA 0:10", "for 1:15"):
            assert part in shown
        for part in ("a.csv", "processing", "2 failed", "input_started", "WARN", "a.csv begins", 'client.job("job_x")'):
            assert part in shown
        assert shown.index("a.csv") < shown.index("b.csv")  # what is at work comes first


def test_a_bar_is_told_to_screen_readers_too() -> None:
    [bar] = [a for _, a in Tags(page.html(running())).tags if a.get("role") == "progressbar"]
    assert (bar["aria-valuenow"], bar["aria-label"]) == ("25", "pump 7: RUNNING")


def test_what_a_user_or_a_worker_wrote_is_shown_and_never_obeyed() -> None:
    event = Event(id=1, event_type="x", level=Level.ERROR, message=EVIL, created_at=NOW)
    record = job(
        name=EVIL,
        pipeline_key=EVIL,
        status="FAILED",
        parameters={"worker": {"config": {EVIL: EVIL}}},
        error=JobFailure(code="x", message=EVIL),
    )
    shown = look(record, inputs=[InputLine(EVIL, "failed", error=EVIL)], counts={"failed": 1}, events=[event])
    page_of = Tags(page.html(shown))
    assert {tag for tag, _ in page_of.tags} <= {
        "div", "span", "b", "code", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre",
    }  # fmt: skip
    assert all(not name.startswith("on") for _, attributes in page_of.tags for name in attributes)
    assert page_of.data.count(EVIL) >= 6


def test_a_page_asks_for_nothing_and_leaves_the_colour_of_text_to_the_notebook() -> None:
    html = page.html(running())
    assert not re.search(r"https?:|url\(|src=|href=|<script|<style|<link", html)
    assert not re.search(r"(?<![-\w])color:", html)  # so that it reads in the light and in the dark


def test_control_characters_of_names_do_not_reach_the_terminal() -> None:
    shown = text.text(look(job(name="\x1b[31mred\nline"), inputs=[InputLine("a\x07\r.csv", "failed")]))
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", shown)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (job(status="PENDING", reason="WaitingForQuota", reason_message="3 jobs are ahead."), "3 jobs are ahead."),
        (job(status="FAILED", error=JobFailure(code="x", message="no [GPU] left")), "no [GPU] left"),
    ],
)
def test_why_it_waits_and_why_it_failed_are_told(record: Job, said: str) -> None:
    assert said in text.text(look(record))
    assert said in page.html(look(record))


def test_a_job_that_is_over_says_how_long_it_took_and_needs_no_way_back() -> None:
    over = job(status="COMPLETED", started_at=NOW, completed_at=NOW + timedelta(seconds=61))
    shown = text.text(look(over, at=NOW + timedelta(days=1)))
    assert "took 1:01" in shown
    assert "100%" in shown
    assert "come back" not in shown


def test_a_training_shows_its_steps_and_latest_scores() -> None:
    record = job(status="RUNNING", pipeline_type="training")
    shown = text.text(look(record, done=120, latest={"loss": 0.25, "macro_f1": 0.9}, counts={"processing": 8}))
    assert "120 steps · loss 0.25  macro_f1 0.9" in shown
    assert "%" not in shown  # its inputs are at work until the end: a bar would stand still


def test_of_many_inputs_a_few_are_shown_and_the_rest_counted() -> None:
    lines = [InputLine(f"{n}.csv", "completed", 1, 1) for n in range(200)]
    html = page.html(look(counts={"completed": 2999, "failed": 1}, inputs=[*lines, InputLine("bad", "failed")]))
    assert "and 2,992 more" in html
    assert html.index("bad") < html.index("0.csv")
    assert len(html) < 20_000


def test_a_total_is_told_only_when_all_inputs_are_planned() -> None:
    planned, not_yet = InputLine("a", "processing", 5, 10), InputLine("b", "pending")
    assert tasks([planned], whole=True) == (5, 10)
    assert tasks([planned, not_yet], whole=True) == (5, None)
    assert tasks([planned], whole=False) == (5, None)


def test_a_rate_comes_of_two_looks_and_starts_over_with_a_retry() -> None:
    rate = Rate()
    assert rate.of(10, 1.0) is None
    assert rate.of(30, 2.0) == 20
    assert rate.of(0, 3.0) is None
    assert rate.of(5, 4.0) == 5


def test_a_handle_in_a_plain_terminal_is_one_line() -> None:
    counts = dict.fromkeys(map(str, InputStatus), 0) | {"completed": 3, "failed": 1}
    line = brief(job(status=Status.RUNNING), counts)
    assert line == "<Job job_x RUNNING 'pump 7' states 1.0.0, 3 completed, 1 failed of 4 inputs>"


def test_of_very_many_inputs_a_client_asks_for_those_that_tell_something_and_for_the_sum() -> None:
    asked: list[str] = []

    def an_input(number: int, status: str) -> dict[str, Any]:
        return {"input": {"id": f"inp_{number}", "job_id": "job_x", "port_name": "p", "file_id": f"{number}.csv"}
                | {"status": status, "created_at": utc(NOW)}}  # fmt: skip

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path.rpartition("job_x")[2])
        status = request.url.params.get("status")
        page: dict[str, Any] = {"job_id": "job_x", "total": 3000, "offset": 0, "limit": 200, "events": []}
        if asked[-1].endswith("traces"):
            point = {"t": utc(NOW), "step": 0, "files": {}, "items": {"inference": {"success": 70_000, "failed": 1}}}
            page |= {"bucket_seconds": 1.0, "points": [point]}
        elif asked[-1].endswith("inputs/progress"):
            first = {"failed": [an_input(2900, "failed")], "processing": [an_input(5, "processing")]}
            page["items"] = first.get(
                status or "", [an_input(n, "processing" if n == 5 else "completed") for n in range(200)]
            )
        elif asked[-1] == "":
            record = job(status="RUNNING", started_at=NOW).model_dump(mode="json")
            names = ("queue", "priority", "retry_count", "preemption_count")
            page = {**record, **{n: record.get(n) or 0 for n in names}, "queue": "default", "error": None}
            page["input_progress"] = {"completed": 2998, "failed": 1, "processing": 1}
        return httpx2.Response(200, json=page)

    client = jos.Client("http://x", "sk_x", transport=httpx2.MockTransport(answer))
    found = client.job("job_x").look()
    assert (found.done, found.total) == (70_001, None)
    shown = text.text(found)
    assert shown.index(" 2900.csv") < shown.index(" 5.csv") < shown.index(" 0.csv")
    assert "] 99%" in shown.replace("  ", " ")  # not 100 % before it is over
    assert "2,998 completed, 1 processing, 1 failed of 3,000 inputs" in shown
    assert shown.count(" 5.csv") == 1
    assert len(asked) < 10


# --- watching -----------------------------------------------------------------------------------------


def test_an_interrupt_says_that_the_job_goes_on_and_how_to_come_back() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, detachable("job_x", 'client.job("job_x").wait()'):
        raise KeyboardInterrupt
    assert isinstance(caught.value, Detached)
    assert "job_x goes on" in str(caught.value)
    assert caught.value._render_traceback_() == [str(caught.value)]  # a notebook shows that and no stack
    assert 'client.job("job_x").wait()' in str(caught.value)


def test_a_cell_is_replaced_and_a_job_not_asked_more_often_than_it_can_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    display = pytest.importorskip("IPython.display")
    told: list[dict[str, Any]] = []
    looks: Iterator[int] = iter(range(100))
    monkeypatch.setattr(display, "display", lambda bundle, **options: told.append({**bundle, **options}))
    cell = Cell(lambda: {"text/plain": str(next(looks))})
    for _ in range(50):
        cell.show()
    cell.show(last=True)
    assert [(one["text/plain"], one["update"]) for one in told] == [("0", False), ("1", True)]
    assert len({one["display_id"] for one in told}) == 1


def test_a_server_that_is_away_for_a_moment_leaves_the_page_as_it_is_and_the_waiting_goes_on() -> None:
    def away() -> dict[str, str]:
        raise ServerUnreachable("nobody there")

    page_of = handles._Page(Cell(away))
    page_of.status(Status.RUNNING)
    page_of.end()


# --- a pipeline ---------------------------------------------------------------------------------------


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.delenv("JOS_PIPELINES", raising=False)
    return jos.pipeline("machine-state-classification", settings=Settings())


def test_a_pipeline_shows_ports_versions_and_settings_with_defaults_and_locks(states: Pipeline) -> None:
    assert repr(states) == f"<Pipeline machine-state-classification {states.pipeline_version} published>"
    assert states.versions[0].startswith(states.pipeline_version)
    assert len(states.versions) > 1
    bundle = states._repr_mimebundle_()
    for shown in (Tags(bundle["text/html"]).data, bundle["text/plain"]):
        for part in ("worker.inference", "n shot file list, required", "worker.results", "1.0.0 published"):
            assert part in shown
        assert "reader_config.window_size" in shown
        assert "euclidean | cosine | manhattan" in shown
        assert "locked" in shown
    found = {one.path: one for one in states.settings()["worker"]}
    assert (found["batch_size"].default, found["batch_size"].locked) == ("32", False)
    assert found["batch_size"].takes.startswith("integer ≥ 1")
    assert found["operations.span_seconds"].locked


def test_a_setting_that_users_may_not_set_is_locked_at_any_depth() -> None:
    schema = {"properties": {"a": {"properties": {"b": {"type": "integer"}, "c": {"default": 7}}}, "d": {}}}
    user = {"properties": {"a": {"properties": {"b": {"type": "integer"}}}}}
    found = {one.path: (one.default, one.locked) for one in settings_of(schema, user, {"a": {"b": None}})}
    assert found == {"a.b": ("null", False), "a.c": ("7", True), "d": ("", True)}
    assert all(one.locked for one in settings_of(schema, None, None))


def test_a_pipeline_s_texts_are_escaped(states: Pipeline) -> None:
    evil = Pipeline.model_validate(states.model_dump() | {"name": EVIL, "description": EVIL})
    assert "<script" not in evil._repr_html_()
    assert EVIL in Tags(evil._repr_html_()).data
