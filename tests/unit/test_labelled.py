"""What of the labelled files validates, and what is read of them to fit an encoder on: fixed rules, bounded work."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_machine_state import Memory, table

from actors import labelled
from actors.labelled import Cutting, Labelled, Use, sample, uses
from jos.worker import JobImpossible

CUTTING = Cutting(("HKLD", "RPM"), window=16, step=4)
TRAIN, OUT, BOTH = Use.TRAIN, Use.VALIDATE, Use.BOTH


def test_of_three_files_or_more_the_last_fifth_is_held_out_and_of_fewer_a_part_of_each() -> None:
    assert uses(list("aabab")) == [TRAIN, TRAIN, BOTH, OUT, BOTH]
    assert uses(["a"] * 11) == [TRAIN] * 9 + [OUT] * 2
    assert uses([]) == []


@given(windows=st.integers(0, 500), window=st.integers(3, 60), step=st.integers(1, 80))
def test_what_trains_and_what_validates_of_a_file_share_no_row(windows: int, window: int, step: int) -> None:
    cutting = Cutting(("a",), window, step)
    train, first = cutting.split(windows)
    if (train, first) == (windows, windows):
        return
    assert 0 < train <= first < windows
    assert windows - first == windows // 5
    assert cutting.rows(train) <= first * step
    assert cutting.rows(train + 1) > first * step  # and none is given away


def file(name: str, rows: int, label: str = "a", use: Use = TRAIN) -> Labelled:
    return Labelled(name, Memory(table(rows, 0, len(name)), f"{name}.csv", name, {"class": label}), label, use)


def test_small_files_are_taken_whole() -> None:
    found = sample([file("one", 40), file("three", 20, "b"), file("short", 9), file("later", 30, use=OUT)], CUTTING)
    assert [(one.name, one.label, one.rows.shape) for one in found.train] == [
        ("one", "a", (2, 40)),
        ("three", "b", (2, 20)),
    ]
    assert [(one.name, one.rows.shape) for one in found.validation] == [("later", (2, 30))]


def test_a_file_that_does_both_is_divided_where_its_windows_are() -> None:
    found = sample([file("one", 100, use=BOTH)], CUTTING)
    train, first = CUTTING.split(22)
    assert [one.rows.shape[1] for one in (*found.train, *found.validation)] == [
        (train - 1) * 4 + 16,
        100 - first * 4,
    ]
    whole = sample([file("one", 100)], CUTTING).train[0].rows
    assert np.array_equal(found.train[0].rows, whole[:, : (train - 1) * 4 + 16])
    assert np.array_equal(found.validation[0].rows, whole[:, first * 4 :])


def test_of_a_long_file_pieces_are_read_that_lie_evenly_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    long = file("long", 5000)
    whole = sample([long], CUTTING)
    assert [one.rows.shape[1] for one in whole.train] == [5000]
    monkeypatch.setattr(labelled, "MOST_VALUES", 2 * 8 * 50)
    found = sample([long], CUTTING)
    assert [one.rows.shape[1] for one in found.train] == [50] * 8
    assert {one.name for one in found.train} == {"long"}
    begins = np.linspace(0, 4950, 8).astype(int)
    for begin, one in zip(begins, found.train, strict=True):
        assert np.array_equal(one.rows, whole.train[0].rows[:, begin : begin + 50])
    monkeypatch.setattr(labelled, "MOST_VALUES", 1)
    assert [one.rows.shape[1] for one in sample([long], CUTTING).train] == [16]  # a window at least


def test_of_a_file_with_many_other_columns_no_more_bytes_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    long = file("long", 5000)
    monkeypatch.setattr(labelled, "MOST_BYTES", long.source.num_bytes // 10)
    assert sum(one.rows.shape[1] for one in sample([long], CUTTING).train) <= 500


def test_of_many_files_a_few_are_looked_at_evenly_and_more_only_if_those_are_no_use() -> None:
    many = [file(f"f{at:03}", 40) for at in range(100)]
    assert [one.name for one in sample(many, CUTTING).train] == [f"f{int(at):03}" for at in np.linspace(0, 99, 32)]
    useless = [file(f"f{at:03}", 40 if at == 70 else 9) for at in range(100)]
    assert [one.name for one in sample(useless, CUTTING).train] == ["f070"]


def test_a_file_that_cannot_be_read_is_left_to_its_own_plan_unless_there_is_no_other() -> None:
    broken = Labelled("broken", Memory(b"a,b\n1,2\n", "broken.csv"), "a", TRAIN)
    assert len(sample([file("one", 40), broken], CUTTING).train) == 1
    with pytest.raises(JobImpossible, match=r"class 'a' hold no window of 16 rows .*broken.csv has no column 'HKLD'"):
        sample([broken], CUTTING)
