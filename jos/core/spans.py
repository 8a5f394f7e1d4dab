"""Cutting tasks into spans, and keeping account of which are done.

May import: stdlib. Tests: tests/unit/test_spans.py.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


def cut(tasks: int, span_tasks: int, part_tasks: int | None = None) -> list[int]:
    """Bounds of equal spans of at most `span_tasks`, never across a multiple of `part_tasks`.

    >>> cut(10, 4)
    [0, 4, 8, 10]
    >>> cut(10, 4, 5)
    [0, 3, 5, 8, 10]
    """
    if tasks < 0 or span_tasks < 1 or (part_tasks is not None and part_tasks < 1):
        raise ValueError(f"cannot cut {tasks} tasks into spans of {span_tasks} and parts of {part_tasks}")
    stride = min(span_tasks, part_tasks or span_tasks)
    if part_tasks is not None:  # spread a part evenly, so that no tiny span ends each part
        stride = -(-part_tasks // -(-part_tasks // stride))
    bounds = [0]
    while bounds[-1] < tasks:
        at = bounds[-1]
        part_end = tasks if part_tasks is None else (at // part_tasks + 1) * part_tasks
        bounds.append(min(at + stride, part_end, tasks))
    return bounds


class Ranges:
    """A set of integers kept as sorted, disjoint, merged half-open ranges: a million done tasks in order cost
    one pair of numbers."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Adds [start, end). Raises ValueError if any of it is already there: done twice is a bug."""
        if start >= end:
            raise ValueError(f"empty range {start}..{end}")
        if self.overlaps(start, end):
            raise ValueError(f"{start}..{end} was already there")
        at = bisect_left(self._starts, start)
        joins_left = at > 0 and self._ends[at - 1] == start
        joins_right = at < len(self._starts) and self._starts[at] == end
        if joins_left and joins_right:
            self._ends[at - 1] = self._ends.pop(at)
            self._starts.pop(at)
        elif joins_left:
            self._ends[at - 1] = end
        elif joins_right:
            self._starts[at] = start
        else:
            self._starts.insert(at, start)
            self._ends.insert(at, end)

    def remove(self, start: int, end: int) -> None:
        """Takes [start, end) out. Raises ValueError unless all of it is there."""
        if start >= end or not self.covers(start, end):
            raise ValueError(f"{start}..{end} is not all there")
        at = bisect_right(self._starts, start) - 1
        left, right = self._starts[at], self._ends[at]
        pieces = [(a, b) for a, b in ((left, start), (end, right)) if a < b]
        self._starts[at : at + 1] = [a for a, _ in pieces]
        self._ends[at : at + 1] = [b for _, b in pieces]

    def overlaps(self, start: int, end: int) -> bool:
        at = bisect_right(self._starts, start)
        return (at > 0 and self._ends[at - 1] > start) or (at < len(self._starts) and self._starts[at] < end)

    def covers(self, start: int, end: int) -> bool:
        at = bisect_right(self._starts, start)
        return start >= end or (at > 0 and self._ends[at - 1] >= end)

    def missing(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of [start, end) that are not in the set."""
        at = max(bisect_right(self._starts, start) - 1, 0)
        while start < end:
            while at < len(self._starts) and self._ends[at] <= start:
                at += 1
            if at == len(self._starts) or self._starts[at] >= end:
                yield start, end
                return
            if self._starts[at] > start:
                yield start, self._starts[at]
            start = self._ends[at]

    def __len__(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))
