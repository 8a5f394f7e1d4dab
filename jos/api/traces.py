"""How a job's work adds up over time, from its progress entries: the cumulative curves of its progress page.

Pure. May import: stdlib, jos.core, jos.wire. Tests: tests/unit/test_api_traces.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from datetime import datetime, timedelta

from jos import wire
from jos.core.model import InputState, InputStatus, Progress

_MOST_STEPS = 20_000  # changes that are kept; beyond, every second of the older half goes
_SHORTEST = 0.001  # seconds of a bucket: clients divide by it, so it is never 0


class Trace:
    """What the entries so far come to. Entries are added once each, in their order."""

    def __init__(self) -> None:
        self.seen = 0  # the latest entry's number
        self.latest: dict[str, Progress] = {}  # by input
        self._inputs: dict[tuple[str, str], tuple[int, int]] = {}  # (kind, input) -> (success, failed)
        self._totals: dict[str, tuple[int, int]] = {}  # by kind
        self._steps: list[tuple[datetime, str, int, int]] = []  # when, kind, its totals from then on

    def add(self, entry: Progress) -> None:
        self.seen = entry.id
        kind, before = entry.kind, self._totals.get(entry.kind, (0, 0))
        if entry.input_id is not None:
            self.latest[entry.input_id] = entry
            success, failed = _count(entry, "success"), _count(entry, "failed")
            was = self._inputs.get((kind, entry.input_id), (0, 0))
            self._inputs[kind, entry.input_id] = (success, failed)
            total = (before[0] + success - was[0], before[1] + failed - was[1])
        else:  # a training step: its number is how many there were
            total = (max(before[0], entry.step or 0), before[1])
        if total == before:
            return
        self._totals[kind] = total
        self._steps.append((entry.created_at, kind, *total))
        if len(self._steps) > _MOST_STEPS:
            half = _MOST_STEPS // 2
            self._steps = self._steps[:half:2] + self._steps[half:]

    def points(
        self, began: datetime, states: Iterable[InputState], buckets: int
    ) -> tuple[float, datetime | None, list[wire.TracePoint]]:
        """(seconds of a bucket, when anything happened last, the curves): one point for each bucket, with everything
        up to its end."""
        ended = sorted(
            (state.completed_at, state.status is InputStatus.COMPLETED)
            for state in states
            if state.completed_at is not None and state.status in (InputStatus.COMPLETED, InputStatus.FAILED)
        )
        times = [when for when, _ in ended] + [step[0] for step in self._steps]
        last = max(times, default=None)
        span = (last - began).total_seconds() if last is not None else 0.0
        seconds = max(span / buckets, _SHORTEST)
        return round(seconds, 6), last, self._points(began, seconds, buckets, ended)

    def _points(
        self, began: datetime, seconds: float, buckets: int, ended: list[tuple[datetime, bool]]
    ) -> list[wire.TracePoint]:
        changes: list[tuple[datetime, str, int, int]] = [*self._steps, *((when, "", good, 0) for when, good in ended)]
        changes.sort(key=lambda change: change[0])
        waiting = deque((_bucket(change[0], began, seconds, buckets), *change[1:]) for change in changes)
        files = {"completed": 0, "failed": 0}
        items = {kind: {"success": 0, "failed": 0} for kind in self._totals}
        points: list[wire.TracePoint] = []
        for at in range(buckets):
            while waiting and waiting[0][0] <= at:
                _, kind, first, second = waiting.popleft()
                if kind:
                    items[kind] = {"success": first, "failed": second}
                else:
                    files["completed" if first else "failed"] += 1
            points.append(
                wire.TracePoint(
                    t=began + timedelta(seconds=(at + 1) * seconds),
                    step=files["completed"] + files["failed"],
                    files=dict(files),
                    items=dict(items),
                )
            )
        return points


def _bucket(when: datetime, began: datetime, seconds: float, buckets: int) -> int:
    return min(max(int((when - began).total_seconds() / seconds), 0), buckets - 1)


def _count(entry: Progress, name: str) -> int:
    value = entry.metrics.get(name, 0)
    return int(value) if isinstance(value, int | float) else 0
