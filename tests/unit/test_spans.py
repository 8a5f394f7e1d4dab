"""Cutting, and accounts of ranges checked against plain sets."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jos.core.spans import Ranges, cut

SIZE = 60


@given(tasks=st.integers(0, 2000), span=st.integers(1, 300), part=st.none() | st.integers(1, 500))
def test_a_cut_covers_all_tasks_in_spans_within_bounds_and_parts(tasks: int, span: int, part: int | None) -> None:
    bounds = cut(tasks, span, part)
    assert bounds[0] == 0
    assert bounds[-1] == tasks
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    assert all(0 < size <= span for size in sizes)
    if part is None:
        assert len(set(sizes[:-1])) <= 1
    else:
        assert set(range(0, tasks, part)) <= set(bounds), "a span crosses a part"


@given(tasks=st.integers(0, 3000), span=st.integers(1, 300), part=st.none() | st.integers(1, 500))
def test_no_part_ends_in_a_needlessly_tiny_span(tasks: int, span: int, part: int | None) -> None:
    """A full part is cut as evenly as its size allows: as many spans as it needs, and no more."""
    if part is None or tasks < part:
        return
    inside = [b for b in cut(tasks, span, part) if b < part]
    assert len(inside) <= -(-part // min(span, part))


@pytest.mark.parametrize("wrong", [(-1, 4, None), (4, 0, None), (4, -1, None), (4, 4, 0)])
def test_a_cut_that_makes_no_sense_is_refused(wrong: tuple[int, int, int | None]) -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        cut(*wrong)


spans = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE))


class RangesAgainstASet(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ranges = Ranges()
        self.model: set[int] = set()

    @rule(span=spans)
    def add(self, span: tuple[int, int]) -> None:
        start, end = span
        wanted = set(range(start, end))
        if not wanted or wanted & self.model:
            with pytest.raises(ValueError, match=r"already there|empty range"):
                self.ranges.add(start, end)
        else:
            self.ranges.add(start, end)
            self.model |= wanted

    @precondition(lambda self: len(self.model) < SIZE)
    @rule(length=st.integers(1, 5), data=st.data())
    def add_what_is_missing(self, length: int, data: st.DataObject) -> None:
        """Random spans soon collide; this fills the gaps, so that ranges come to touch and merge."""
        start = data.draw(st.sampled_from(sorted(set(range(SIZE)) - self.model)))
        end = start
        while end < min(start + length, SIZE) and end not in self.model:
            end += 1
        self.ranges.add(start, end)
        self.model |= set(range(start, end))

    @rule(span=spans)
    def ask(self, span: tuple[int, int]) -> None:
        start, end = span
        asked = set(range(start, end))
        if asked:
            assert self.ranges.overlaps(start, end) == bool(asked & self.model)
        assert self.ranges.covers(start, end) == (asked <= self.model)
        missing = list(self.ranges.missing(start, end))
        assert {n for a, b in missing for n in range(a, b)} == asked - self.model
        assert all(a < b for a, b in missing)
        assert all(b < a for (_, b), (a, _) in itertools.pairwise(missing)), "missing ranges are maximal"

    @invariant()
    def agrees(self) -> None:
        ranges = list(self.ranges)
        assert {n for a, b in ranges for n in range(a, b)} == self.model
        assert len(self.ranges) == len(self.model)
        assert all(a < b for a, b in ranges)
        assert all(b < a for (_, b), (a, _) in itertools.pairwise(ranges)), "sorted, disjoint and merged"


TestRangesAgainstASet = RangesAgainstASet.TestCase


def test_a_million_in_order_cost_one_pair() -> None:
    ranges = Ranges((n, n + 1) for n in range(10_000))
    assert list(ranges) == [(0, 10_000)]


@given(st.sets(st.integers(0, 40)), st.integers(0, 40), st.integers(1, 10))
def test_removing_is_the_opposite_of_adding(numbers: set[int], start: int, length: int) -> None:
    ranges = Ranges((n, n + 1) for n in sorted(numbers))
    wanted = set(range(start, start + length))
    if wanted <= numbers:
        ranges.remove(start, start + length)
        assert {n for a, b in ranges for n in range(a, b)} == numbers - wanted
    else:
        with pytest.raises(ValueError, match="not all there"):
            ranges.remove(start, start + length)
