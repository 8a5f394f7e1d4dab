"""docs/lifecycle.md shows the state machine as it is."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from typing import get_args

from lifecycle_lab import (
    ADMITTED,
    BOOM,
    CANCELLED,
    COMPLETED,
    FAILED,
    IMPOSSIBLE,
    OUT_OF_RETRIES,
    PAGE,
    PENDING,
    PREEMPTED,
    RETRIED_EARLY,
    RUNNING,
    TIMED_OUT,
    moment,
    walk,
)

from jos.core.errors import InvalidTransition, StaleAttempt
from jos.core.lifecycle import (
    TABLE,
    Admit,
    Cancel,
    Command,
    Completed,
    Drained,
    DriverGone,
    Exited,
    Expire,
    Grow,
    Hold,
    Preempt,
    Reason,
    Recall,
    Retry,
    Shrink,
    Started,
    Taken,
    Waits,
    decide,
)
from jos.core.model import Job, Status


def reachable() -> list[Job]:
    """A job in every situation that the table tells apart."""
    grown = [(*ADMITTED, Grow("a", 3)), (*RUNNING, Grow("a", 3))]
    walks = [*grown, PENDING, ADMITTED, RUNNING, PREEMPTED, COMPLETED, FAILED, CANCELLED, TIMED_OUT, RETRIED_EARLY]
    return [walk(*one) for one in (*walks, OUT_OF_RETRIES, (*OUT_OF_RETRIES[:-1],))]


def every_command() -> list[Command]:
    fixed: list[Command] = [Preempt(), Cancel(), Retry(), Expire("queue"), Expire("run"), Admit("new")]
    fixed += [Hold(Reason.CLUSTER_FULL, "full"), Taken("a", "warm-1"), Grow("a", 4), Shrink("a", 0)]
    fixed += [Waits("a", Reason.PULLING_IMAGE, "pulls it"), Recall("a")]
    failed = [Exited("a", BOOM, True), Exited("a", IMPOSSIBLE, False)]
    return [*fixed, *failed, Started("a"), Completed("a"), Drained("a"), DriverGone("a")]


def test_the_diagram_shows_exactly_what_the_table_allows() -> None:
    drawn = defaultdict(set)
    for start, end, label in re.findall(r"^\s+(\w+) --> (\w+): (.+)$", PAGE, re.M):
        drawn[start, end] |= set(label.split(", "))
    happens = defaultdict(set)
    for job, command in itertools.product(reachable(), every_command()):
        try:
            after = decide(job, command, moment(command)).job
        except (InvalidTransition, StaleAttempt):
            continue
        if after is not job:
            happens[str(job.status), str(after.status)].add(type(command).__name__)
    assert drawn == happens
    pairs = {(start, command) for (start, _), commands in drawn.items() for command in commands}
    assert pairs == {(str(status), command.__name__) for status, command in TABLE}


def test_the_page_has_a_line_for_each_status_command_and_reason() -> None:
    rows = re.findall(r"^\| (\w+) \|", PAGE, re.M)
    named = [str(status) for status in Status] + [one.__name__ for one in get_args(Command)] + [*Reason]
    assert sorted(row for row in rows if row not in ("status", "command", "reason")) == sorted(named)
