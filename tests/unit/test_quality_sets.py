"""Labelled CSV files as benchmarks/quality.py finds them, and the made-up plant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality_plant import CHANNELS, KINDS, plant
from benchmarks.quality_sets import folder_set, stratified

TABLE = "time,a,b\n1,0.5,7\n2,,8\n3,0.7,9\n"


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_class_is_a_folder_a_prefix_or_a_column(tmp_path: Path) -> None:
    column = "a,label,b\n1,on,1\n2,on,2\n3,off,3\n4,,4\n5,on,5\n"
    train = written(tmp_path / "train", {"on/x.csv": TABLE, "off__y.csv": TABLE, "many.csv": column})
    found = folder_set([train, train], 2, 1, ["a", "b"])
    assert [(r.label, r.rows.shape) for r in found.train] == [
        ("on", (2, 2)),
        ("off", (2, 1)),
        ("on", (2, 1)),
        ("off", (2, 3)),
        ("on", (2, 3)),
    ]
    assert np.array_equal(found.train[-1].rows, [[0.5, np.nan, 0.7], [7, 8, 9]], equal_nan=True)
    assert found.validation == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no CSV files"),
        ({"x.csv": TABLE}, "has no class: put it in a sub-folder"),
        ({"on/x.csv": "time,a\n1,2\n"}, r"lacks the column\(s\) b; it has time, a"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path: Path, files: dict[str, str], message: str) -> None:
    (tmp_path / "train").mkdir()
    folder = written(tmp_path / "train", files)
    with pytest.raises(SystemExit, match=message):
        folder_set([folder, folder], 2, 1, ["a", "b"])


def test_every_class_is_validated_and_none_wholly_taken() -> None:
    from actors.choose import Recording

    pool = [Recording(f"{n}", "ab"[n % 2], np.zeros((1, 5))) for n in range(8)]
    train, validation = stratified(pool, 0.25, 0)
    assert {r.label for r in train} == {r.label for r in validation} == {"a", "b"}
    assert sorted(r.name for r in [*train, *validation]) == sorted(r.name for r in pool)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plant_is_the_same_each_time_and_evaluated_later(kind: str) -> None:
    one, again = plant(kind, 3), plant(kind, 3)
    for part, same in zip(one, again, strict=True):
        assert [name for name, _, _ in part] == [name for name, _, _ in same]
        assert all(np.array_equal(a, b, equal_nan=True) for (_, _, a), (_, _, b) in zip(part, same, strict=True))
    train, _, evaluation = ([int(name.partition("-")[2]) for name, _, _ in part] for part in one)
    assert max(train) < min(evaluation)
    assert {label for _, label, _ in one[0]} == {label for _, label, _ in one[2]}
    assert all(rows.shape[0] == CHANNELS for _, _, rows in one[0])
