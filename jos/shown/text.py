"""A job in plain lines, for terminals. Control characters of names and messages are shown as such and not obeyed.

Pure. May import: jos.core, jos.shown. Tests: tests/unit/test_shown.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from jos.shown.look import Look, amount, marked, tally, worth_a_line

WIDTH = 32


def text(look: Look) -> str:
    return "\n".join(_lines(look))


def plain(value: object) -> str:
    """On one line, without anything that moves a cursor."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def bar(share: float) -> str:
    full = int(share * WIDTH)
    return f"[{'#' * full}{'-' * (WIDTH - full)}] {int(100 * share):3}%"


def _lines(look: Look) -> Iterator[str]:
    job = look.job
    yield f"{job.id} {job.status} {plain(job.name)} ({plain(job.pipeline_key)} {plain(job.pipeline_version)})"
    known = [bar(look.share)] if look.share is not None else []
    if amount(look):
        known.append(amount(look))
    if known:
        yield "  " + "  ".join(known)
    if look.waiting:
        yield f"  waits: {plain(look.waiting)}"
    if look.error:
        yield f"  error: {plain(look.error)}"
    if look.inputs:
        yield f"  inputs: {tally(look.counts)}"
    for line in worth_a_line(look.inputs):
        of = f"{line.done:,}/{line.total:,}" if line.total is not None else f"{line.done:,}"
        wrong = line.error or (f"{line.failed:,} failed" if line.failed else "")
        yield f"    {line.status:<10} {of:>13}  {plain(line.name)}  {plain(wrong)}".rstrip()
    if look.events:
        yield "  events:"
    for event in look.events:
        level = f"{marked(event.level)} " if marked(event.level) else ""
        yield f"    {event.created_at.astimezone():%H:%M:%S} {event.event_type:<20} {level}{plain(event.message)}"
    if not job.status.terminal:
        yield f"  it goes on by itself; come back with {look.comeback}"
