"""A job as HTML, for notebooks: no script, no request, nothing but text and boxes.

Styles are written at each element, because notebooks drop style sheets of outputs that they do not trust. Text has the
colour of the page around it, boxes are half transparent grey: so it reads in the light and in the dark. Everything
that a user or a worker wrote is escaped. Pure. May import: jos.core, jos.shown. Tests: tests/unit/test_shown.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from jos import wire
from jos.core.model import Event, Status
from jos.shown.look import InputLine, Look, amount, marked, tally, worth_a_line

FRAME = (
    "font-family:system-ui,sans-serif;font-size:14px;line-height:1.5;max-width:60em;padding:.6em .9em;"
    "border:1px solid rgba(128,128,128,.4);border-radius:6px"
)
CELL = "padding:.1em .9em .1em 0;text-align:left;vertical-align:top;background:none;border:none"
FAINT = "opacity:.75"
DOTS = {
    Status.COMPLETED: "#1a9850",
    Status.FAILED: "#d73027",
    Status.CANCELLED: "#888888",
    Status.PREEMPTED: "#e08214",
    Status.PENDING: "#e08214",
}
RUNNING = "#3182bd"


def html(look: Look) -> str:
    job = look.job
    parts = [
        f'<div>{_dot(job.status)}<b>{said(job.status)}</b> {said(job.name)} <span style="{FAINT}">'
        f"{said(job.pipeline_key)} {said(job.pipeline_version)} · <code>{said(job.id)}</code></span></div>",
        _bar(look.share, f"{job.name}: {job.status}"),
        _line(" · ".join(part for part in (tally(look.counts), amount(look)) if part)),
        _line(look.waiting and f"It waits: {look.waiting}"),
        _error(look.error),
        _inputs(look),
        _events(look.events),
        _settings(job.parameters),
        "" if job.status.terminal else _line(f"It goes on without this notebook: {look.comeback}"),
    ]
    return framed(parts)


def framed(parts: Iterable[str]) -> str:
    return f'<div style="{FRAME}">{"".join(parts)}</div>'


def said(value: object) -> str:
    """Text as text."""
    return escape(str(value), quote=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    top = "".join(f'<th scope="col" style="{CELL}">{said(name)}</th>' for name in head)
    lines = "".join(f'<tr style="background:none">{"".join(map(_cell, row))}</tr>' for row in rows)
    return (
        f'<div style="overflow-x:auto"><table style="border-collapse:collapse;margin:.4em 0"><thead><tr>{top}</tr>'
        f"</thead><tbody>{lines}</tbody></table></div>"
    )


def _cell(content: str) -> str:
    return f'<td style="{CELL}">{content}</td>'


def folded(title: str, content: str) -> str:
    return f'<details><summary style="{FAINT}">{said(title)}</summary>{content}</details>'


def _dot(status: Status) -> str:
    """Beside the word, never instead of it."""
    colour = DOTS.get(status, RUNNING)
    shape = f"display:inline-block;width:.7em;height:.7em;border-radius:50%;background:{colour};margin-right:.5em"
    return f'<span aria-hidden="true" style="{shape}"></span>'


def _bar(share: float | None, label: str) -> str:
    if share is None:
        return ""
    percent = int(100 * share)  # never 100 before the end
    around = "height:.6em;margin:.4em 0;border-radius:.3em;background:rgba(128,128,128,.25);overflow:hidden"
    return (
        f'<div role="progressbar" aria-label="{said(label)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}" style="{around}">'
        f'<div style="height:100%;width:{percent}%;background:{RUNNING}"></div></div>'
    )


def _line(text: str) -> str:
    return f'<div style="{FAINT}">{said(text)}</div>' if text else ""


def _error(text: str) -> str:
    style = f"border-left:4px solid {DOTS[Status.FAILED]};padding-left:.6em;margin:.4em 0;white-space:pre-wrap"
    return f'<div role="alert" style="{style}">{said(text)}</div>' if text else ""


def _inputs(look: Look) -> str:
    lines = worth_a_line(look.inputs)
    if not lines:
        return ""
    rest = sum(look.counts.values()) - len(lines)
    more = _line(f"and {rest:,} more") if rest > 0 else ""
    return table(("input", "status", "tasks", "notes"), map(_input, lines)) + more


def _input(line: InputLine) -> tuple[str, str, str, str]:
    of = f"{line.done:,} / {line.total:,}" if line.total is not None else f"{line.done:,}" if line.done else ""
    wrong = line.error or (f"{line.failed:,} failed" if line.failed else "")
    return said(line.name), said(line.status), said(of), said(wrong)


def _events(events: Sequence[Event | wire.Event]) -> str:
    if not events:
        return ""
    rows = [
        (
            f'<span style="{FAINT}">{said(f"{event.created_at.astimezone():%H:%M:%S}")}</span>',
            f"<code>{said(event.event_type)}</code>",
            f"<b>{said(marked(event.level))}</b>",
            said(event.message),
        )
        for event in events
    ]
    return table(("time", "event", "level", "message"), rows)


def _settings(parameters: Any) -> str:
    text = json.dumps(parameters, indent=2, ensure_ascii=False, default=str)
    return folded("settings", f'<pre style="background:none;margin:.3em 0">{said(text)}</pre>')
