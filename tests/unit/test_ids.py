"""Ids: their shape, their order, and that derived ones are the same for the same parts."""

from __future__ import annotations

import pytest

from jos.core import ids
from jos.core.ids import derived_id, is_id, new_id


def test_a_new_id_has_the_shape_of_an_id() -> None:
    made = new_id("job")
    assert is_id(made, "job")
    assert not is_id(made, "inp")
    assert len(made) == len("job_") + 26


def test_ids_do_not_repeat() -> None:
    assert len({new_id("job") for _ in range(1000)}) == 1000


def test_ids_sort_by_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for milliseconds in (1, 31, 32, 1_000_000, 1_776_160_000_000, 1_776_160_000_001):
        monkeypatch.setattr(ids.time, "time_ns", lambda at=milliseconds: at * 1_000_000)
        made.append(new_id("job"))
    assert made == sorted(made)


def test_derived_ids_are_the_same_for_the_same_parts_only() -> None:
    assert derived_id("out", "job_1", "a.csv") == derived_id("out", "job_1", "a.csv")
    assert is_id(derived_id("out", "job_1", "a.csv"), "out")
    different = [("job_1", "a.csv"), ("job_1", "b.csv"), ("job_1a.csv",), ("job_1a", ".csv"), ()]
    assert len({derived_id("out", *parts) for parts in different}) == len(different)


@pytest.mark.parametrize(
    "text",
    ["", "job_", "job", "job_01", "job_" + "l" * 26, "job_" + "0" * 27, "JOB_" + "0" * 26, "job_" + "0" * 26 + "\n"],
)
def test_not_an_id(text: str) -> None:
    assert not is_id(text, "job")
