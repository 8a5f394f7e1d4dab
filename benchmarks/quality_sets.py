"""Labelled sets for benchmarks/quality.py: what is at hand, as recordings to train on, to validate and to score.

Sets of cases (sktime's): a recording is a case, one window long. Sets of series (Volve, folders of CSV files, the
made-up plant): a recording is a stretch of time, and evaluation is from another time than training.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.choose import Recording

Floats = npt.NDArray[np.float64]
SPLITS = ("train", "validation", "eval")
VOLVE_CLASSES = ("drilling", "not_drilling")
VOLVE_WINDOW, VOLVE_BLOCKS = 16, 5
SKTIME = {  # those with at least 20 cases to train on; shortest windows first
    "ItalyPowerDemand": "load_italy_power_demand",
    "UnitTest": "load_unit_test",
    "JapaneseVowels": "load_japanese_vowels",
    "BasicMotions": "load_basic_motions",
    "GunPoint": "load_gunpoint",
    "ArrowHead": "load_arrow_head",
    "OSULeaf": "load_osuleaf",
    "ACSF1": "load_acsf1",
}


@dataclass(frozen=True)
class Labelled:
    """One draw of a set: what is trained on, what every choice is made by, and what is scored once at the end."""

    train: list[Recording]
    validation: list[Recording]
    evaluation: list[Recording]
    window: int
    step: int


Draw = Callable[[int], Labelled]  # by seed


def sets(volve: Path | None, folders: list[Path], window: int, step: int, columns: list[str]) -> dict[str, Draw]:
    """All sets that can be had, by name. Nothing is read before it is drawn."""
    from benchmarks import quality_plant as plant

    found: dict[str, Draw] = {name: _sktime_draw(loader) for name, loader in SKTIME.items()}
    if volve is not None:
        found["Volve, five blocks"] = lambda seed: volve_blocks(volve, held_out=seed % VOLVE_BLOCKS)
        found["Volve, last block"] = lambda seed: volve_blocks(volve, held_out=VOLVE_BLOCKS - 1, seed=seed)
    for kind in plant.KINDS:
        found[f"plant, {kind}"] = _plant_draw(kind)
    if folders:
        found[folders[0].resolve().parent.name] = lambda seed: folder_set(folders, window, step, columns)
    return found


# --- sktime -------------------------------------------------------------------------------------------


def _sktime_draw(loader: str) -> Draw:
    kept: list[tuple[list[Recording], list[Recording], int]] = []

    def draw(seed: int) -> Labelled:
        if not kept:
            kept.append(_sktime(loader))
        pool, evaluation, window = kept[0]
        train, validation = stratified(pool, 0.25, seed)
        return Labelled(train, validation, evaluation, window, 1)

    return draw


def _sktime(loader: str) -> tuple[list[Recording], list[Recording], int]:
    from sktime import datasets

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sktime's, about its own dependencies
        halves = [getattr(datasets, loader)(split=split, return_X_y=True) for split in ("train", "test")]
    length = max(len(cell) for frame, _ in halves for column in frame for cell in frame[column])
    recordings = [
        [
            Recording(f"{at}", str(label), rows)
            for at, (label, rows) in enumerate(zip(labels, _cases(frame, length), strict=True))
        ]
        for frame, labels in halves
    ]
    return recordings[0], recordings[1], length


def _cases(frame: Any, length: int) -> Iterator[Floats]:
    """Cases of one length: shorter ones hold their last value."""
    for row in frame.to_numpy():
        yield np.array([np.pad(np.asarray(cell, np.float64), (0, length - len(cell)), mode="edge") for cell in row])


def stratified(pool: list[Recording], share: float, seed: int) -> tuple[list[Recording], list[Recording]]:
    """A share of each class's recordings, one at least, drawn by the seed, and the rest before it."""
    random = np.random.default_rng([seed, 1])
    held: set[int] = set()
    for label in sorted({recording.label for recording in pool}):
        members = [at for at, recording in enumerate(pool) if recording.label == label]
        held |= set(random.permutation(members)[: max(1, round(share * len(members)))].tolist())
    parts = [[r for at, r in enumerate(pool) if (at in held) is wanted] for wanted in (False, True)]
    return parts[0], parts[1]


# --- Volve --------------------------------------------------------------------------------------------


def volve_blocks(folder: Path, held_out: int, seed: int | None = None) -> Labelled:
    """The labelled drilling rows in order of time, each class in five blocks: one is scored, the one before it (round
    the corner) validates, three train. With a seed, the block that validates is drawn. A window spans hours to weeks,
    for the rows were sampled at random over nine years: levels mean something here, courses little."""
    others = [block for block in range(VOLVE_BLOCKS) if block != held_out]
    picked = held_out - 1 if seed is None else int(np.random.default_rng([seed, 2]).permutation(others)[0])
    parts: dict[str, list[Recording]] = {split: [] for split in SPLITS}
    for label in VOLVE_CLASSES:
        table = np.genfromtxt(folder / f"volve_{label}.csv", delimiter=",", skip_header=1)
        rows = table[np.argsort(table[:, 0], kind="stable"), 1:].T
        for block, some in enumerate(np.array_split(rows, VOLVE_BLOCKS, axis=1)):
            split = "eval" if block == held_out else "validation" if block == picked % VOLVE_BLOCKS else "train"
            parts[split].append(Recording(f"{label}-{block}", label, some))
    return Labelled(parts["train"], parts["validation"], parts["eval"], VOLVE_WINDOW, 2)


# --- folders of CSV files -----------------------------------------------------------------------------


def folder_set(folders: list[Path], window: int, step: int, columns: list[str]) -> Labelled:
    """The folders of --train, --validation and --eval (two of them: the first is train, the last is eval). The class
    of a file is its sub-folder; without one, its name up to the first "__", as in pump_ok__2024-01.csv; and where
    there is a column `label`, each stretch of rows with one label is a recording."""
    parts = [list(_recordings(folder, columns)) for folder in folders]
    validation = parts[1] if len(parts) == 3 else []
    return Labelled(parts[0], validation, parts[-1], window, step)


def _recordings(folder: Path, columns: list[str]) -> Iterator[Recording]:
    files = sorted(folder.rglob("*.csv"))
    if not files:
        raise SystemExit(f"{folder} holds no CSV files.")
    for path in files:
        with path.open(newline="") as lines:
            rows = csv.reader(lines)
            header = [name.strip() for name in next(rows, [])]
            body = [row for row in rows if row]
        yield from _labelled(path, folder, header, body, columns)


def _labelled(
    path: Path, root: Path, header: list[str], body: list[list[str]], columns: list[str]
) -> Iterator[Recording]:
    missing = [name for name in columns if name not in header]
    if missing:
        raise SystemExit(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(header)}.")
    values = np.array([[_value(row[header.index(name)]) for row in body] for name in columns]).reshape(len(columns), -1)
    if "label" in header:
        labels = [row[header.index("label")].strip() for row in body]
        edges = [at for at in range(len(labels)) if at == 0 or labels[at] != labels[at - 1]]
        for start, end in zip(edges, [*edges[1:], len(labels)], strict=True):
            if labels[start]:
                yield Recording(f"{path.name}:{start + 2}", labels[start], values[:, start:end])
        return
    below = path.relative_to(root).parts
    label = below[0] if len(below) > 1 else path.stem.partition("__")[0]
    if len(below) == 1 and "__" not in path.stem:
        raise SystemExit(
            f"{path} has no class: put it in a sub-folder, name it CLASS__{path.name}, or add a column label."
        )
    yield Recording(path.name, label, values)


def _value(cell: str) -> float:
    """A cell that is no number spoils the windows that touch it, as in the pipelines."""
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _plant_draw(kind: str) -> Draw:
    def draw(seed: int) -> Labelled:
        from benchmarks.quality_plant import WINDOW, plant

        parts = plant(kind, seed)
        return Labelled(*([Recording(*one) for one in part] for part in parts), WINDOW, WINDOW // 4)  # type: ignore[arg-type, call-arg]

    return draw
