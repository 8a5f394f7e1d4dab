"""The choice of a recipe: by another time than training, never by neighbours in time; the same every time."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from actors import choose as choosing
from actors.choose import Recording, candidates, choose, held_out
from actors.embedder import Recipe
from actors.encoders import DEFAULT_ENCODER, ENCODERS
from actors.scaling import DEFAULT_SCALING, SCALINGS

torch.set_num_threads(1)  # tests run side by side

WINDOW = 24
FAST = {"window": WINDOW, "step": 6, "encoder": "stats"}


def recording(
    label: str, number: int, *, rows: int = 150, drift: float = 0, level: float = 0, rate: float = 0
) -> Recording:
    """Two channels in noise. `level` and `rate` (of a wave) are the class's, `drift` is how far this time has gone."""
    random = np.random.default_rng([number, ord(label[0])])
    wave = 2 * np.sin(rate * np.arange(rows) + random.uniform(0, 6, (2, 1)))
    where = level + drift * random.normal(0, 1, (2, 1))
    return Recording(f"{label}-{number}", label, random.normal(0, 0.5, (2, rows)) + wave + where)


def by_shape(numbers: range, drift: float) -> list[Recording]:
    return [
        recording(label, n, drift=drift, rate=rate) for n in numbers for label, rate in (("slow", 0.3), ("fast", 1.2))
    ]


def by_level(numbers: range) -> list[Recording]:
    return [recording(label, n, level=level) for n in numbers for label, level in (("low", 0), ("high", 6))]


def test_levels_that_drift_are_not_relied_on() -> None:
    found = choose(by_shape(range(4), 60), [], **FAST)  # type: ignore[arg-type]
    assert found.scaling != "global"


@pytest.mark.parametrize("classifier", choosing.CLASSIFIERS)
def test_levels_that_tell_the_classes_apart_are(classifier: str) -> None:
    assert choose(by_level(range(4)), [], classifier=classifier, **FAST).scaling == "global"  # type: ignore[arg-type]


def test_validation_recordings_decide_where_there_are_enough() -> None:
    """In training each class's level gives it away; in the validation's time it no longer does."""
    train = [
        recording(label, n, rate=rate, level=level)
        for n in range(3)
        for label, rate, level in (("slow", 0.3, 0), ("fast", 1.2, 60))
    ]
    validation = by_shape(range(10, 14), 60)
    assert choose(train, [], **FAST).scaling == "global"  # type: ignore[arg-type]
    assert choose(train, validation, **FAST).scaling != "global"  # type: ignore[arg-type]


def test_levels_of_classes_recorded_once_do_not_count_where_shapes_do_as_well() -> None:
    slow = recording("slow", 0, rows=600, rate=0.3)
    fast, still = (recording(label, 1, rows=600, rate=rate, level=60) for label, rate in (("fast", 1.2), ("still", 0)))
    assert choose([slow, fast], [], **FAST).scaling != "global"  # type: ignore[arg-type]
    low = recording("low", 0, rows=600)
    assert choose([low, still], [], **FAST).scaling == "global"  # type: ignore[arg-type]


def pieces(of: Recording, *bounds: int) -> list[Recording]:
    """Parts of one recording, each from one of the rows to the next."""
    return [replace(of, rows=of.rows[:, start:end]) for start, end in itertools.pairwise(bounds)]


def test_the_end_of_a_training_file_is_no_other_time_and_its_levels_are_doubted() -> None:
    """As a class of one file is divided where no evaluation files are given."""
    slow = pieces(recording("slow", 0, rows=900, rate=0.3), 0, 700, 900)
    fast = pieces(recording("fast", 1, rows=900, rate=1.2, level=60), 0, 700, 900)
    train, validation = [[one[part] for one in (slow, fast)] for part in (0, 1)]
    assert choose(train, validation, **FAST).scaling != "global"  # type: ignore[arg-type]
    trial = choosing._Trial(train, validation, (WINDOW, 6, 0), "knn", "cpu")
    assert trial.confounded
    assert len(trial.folds) == choosing.FOLDS  # blocks of time, and not the end alone


def test_levels_of_classes_recorded_once_in_pieces_are_doubted_too() -> None:
    train = [
        *pieces(recording("slow", 0, rows=600, rate=0.3), 0, 200, 400, 600),
        *pieces(recording("fast", 1, rows=600, rate=1.2, level=60), 0, 200, 400, 600),
    ]
    assert choose(train, [], **FAST).scaling != "global"  # type: ignore[arg-type]


def test_where_validation_shows_only_some_classes_the_others_are_held_out_as_well() -> None:
    train = [*by_level(range(3)), *pieces(recording("rare", 0, rows=400, level=-6), 0, 300)]
    validation = [recording("low", n, rows=600) for n in (10, 11)]
    trial = choosing._Trial(train, validation, (WINDOW, 6, 0), "knn", "cpu")
    assert set(trial.truth.tolist()) == {0, 1, 2}


def test_a_few_windows_more_are_no_reason_to_leave_the_default() -> None:
    """Windows that overlap are not so many observations."""
    trial = choosing._Trial(by_level(range(2)), [], (WINDOW, 2, 0), "knn", "cpu")
    first, second = Recipe("stats", "global"), Recipe("stats", "centred")
    trial.known = {first: 0.93, second: 0.95}
    trial.independent = 50
    assert trial.best([first, second]) == first
    trial.independent = 5000
    assert trial.best([first, second]) == second


def test_the_same_recordings_give_the_same_choice() -> None:
    train = by_shape(range(3), 20)
    found = {choose(train, [], window=WINDOW, step=6, scaling="global") for _ in range(2)}
    assert len(found) == 1


def test_what_is_named_is_not_chosen() -> None:
    train = by_shape(range(4), 60)
    assert choose(train, [], window=WINDOW, step=6, encoder="rocket", scaling="window") == Recipe("rocket", "window")
    assert choose(train, [], **FAST).encoder == "stats"  # type: ignore[arg-type]


def test_ties_fall_to_the_default() -> None:
    same = [Recording(f"{label}{n}", label, np.zeros((2, 60))) for n in range(2) for label in "ab"]
    assert choose(same, [], window=WINDOW, step=6) == Recipe(DEFAULT_ENCODER, DEFAULT_SCALING)


def test_without_anything_to_hold_out_there_are_the_defaults() -> None:
    short = [recording("a", 0, rows=WINDOW + 3), recording("b", 1, rows=WINDOW + 3)]
    assert choose(short, [], window=WINDOW, step=6) == Recipe(DEFAULT_ENCODER, DEFAULT_SCALING)


@pytest.mark.parametrize("label", ["unheard of", "low"])
def test_validation_without_use_is_as_none(label: str) -> None:
    useless = [recording(label, 1, rows=300 if label != "low" else WINDOW - 1)]
    train = by_level(range(2))
    assert choose(train, useless, **FAST) == choose(train, [], **FAST)  # type: ignore[arg-type]


def test_bad_cells_and_constant_channels_do_no_harm() -> None:
    train = by_level(range(3))
    for some in train:
        some.rows[1] = 4.0
        some.rows[0, 70] = np.nan
    assert choose(train, [], **FAST).scaling == "global"  # type: ignore[arg-type]


def test_a_class_of_one_short_recording_among_others_does_no_harm() -> None:
    train = [*by_level(range(3)), recording("rare", 0, rows=WINDOW, level=-6)]
    assert choose(train, [], **FAST).scaling == "global"  # type: ignore[arg-type]


def test_whole_recordings_are_held_out_each_once() -> None:
    train = by_level(range(5))
    pairs = held_out(train, WINDOW)
    assert sorted(r.name for _, out in pairs for r in out) == sorted(r.name for r in train)
    for fit, out in pairs:
        assert not {r.name for r in fit} & {r.name for r in out}
        assert {r.label for r in fit} == {"low", "high"}


def test_one_recording_is_cut_into_blocks_of_time_with_a_gap_of_a_window() -> None:
    times = np.arange(400, dtype=np.float64)[None]
    only = [Recording("a", "a", times), Recording("b", "b", times)]
    pairs = held_out(only, WINDOW)
    assert len(pairs) == choosing.FOLDS
    held = np.concatenate([out[0].rows[0] for _, out in pairs])
    assert np.array_equal(held, times[0])
    for fit, out in pairs:
        near = np.abs(np.concatenate([r.rows[0] for r in fit])[:, None] - out[0].rows[0][None]).min()
        assert near > WINDOW


def test_pieces_of_one_file_never_stand_on_both_sides_of_a_fold() -> None:
    train = [
        piece
        for n in range(3)
        for label in ("low", "high")
        for piece in pieces(recording(label, n, rows=300), 0, 100, 200, 300)
    ]
    pairs = held_out(train, WINDOW)
    assert len(pairs) == 3
    for fit, out in pairs:
        assert not {r.name for r in fit} & {r.name for r in out}


def test_one_file_in_pieces_is_cut_into_blocks_of_time_with_a_gap_of_a_window() -> None:
    times = np.arange(900, dtype=np.float64)[None]
    train = [
        piece for label in "ab" for piece in pieces(Recording(label, label, times), 0, 90, 200, 500, 610, 640, 900)
    ]
    pairs = held_out(train, WINDOW)
    assert len(pairs) == choosing.FOLDS
    for fit, out in pairs:
        held, kept = (np.concatenate([r.rows[0] for r in some]) for some in (out, fit))
        assert np.abs(kept[:, None] - held[None]).min() > WINDOW
        assert all(r.rows.shape[1] >= WINDOW for r in (*fit, *out))


def test_its_cost_does_not_grow_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    tried = choosing._tried

    def counted(recipe: Recipe, fold: choosing._Fold, *rest: object) -> object:
        sizes.append((len(fold.fit), len(fold.held)))
        return tried(recipe, fold, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(choosing, "_tried", counted)
    choose([recording(label, n, rows=40_000) for n in range(3) for label in "ab"], [], **FAST)  # type: ignore[arg-type]
    assert len(sizes) == 3 * len(SCALINGS)  # three recordings of each class
    assert max(fit for fit, _ in sizes) <= choosing.MOST
    assert max(held for _, held in sizes) <= choosing.MOST / 3 + 1


def test_all_that_may_be_chosen_begins_with_the_default_and_goes_on_from_cheap_to_dear() -> None:
    every = candidates("auto", "auto")
    assert every[0] == Recipe(DEFAULT_ENCODER, DEFAULT_SCALING)
    assert len(set(every)) == len(ENCODERS) * len(SCALINGS)
    assert list(dict.fromkeys(recipe.encoder for recipe in every)) == ["hydra", "stats", "rocket"]


def test_unknown_names_are_refused() -> None:
    for names in ({"encoder": "x"}, {"scaling": "x"}, {"classifier": "x"}):
        with pytest.raises(ValueError, match="unknown"):
            choose(by_level(range(2)), [], window=WINDOW, step=6, **names)  # type: ignore[arg-type]
