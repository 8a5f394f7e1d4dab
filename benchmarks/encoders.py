"""Which encoder should be the default? Accuracy and macro-F1 of k nearest neighbours on few examples, and speed.

    python -m benchmarks.encoders [--volve DIR] [--seeds 5] [--shots 10] [--threads 1]

Labelled sets are those inside the installed sktime (extra `demo`); with `--volve` also the labelled drilling rows,
whose order in time is lost: they measure levels, not courses. Writes benchmarks/results/encoders.md.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from actors.encoders import DEFAULT_ENCODER, ENCODERS
from actors.knn import NearestNeighbours
from actors.scaling import Scaling

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
RESULTS = Path(__file__).parent / "results" / "encoders.md"
SHAPES = [(9, 16), (9, 64), (9, 128), (40, 64)]
VOLVE_CLASSES = ("drilling", "not_drilling")


@dataclass(frozen=True)
class Dataset:
    name: str
    train: Floats  # (cases, channels, rows)
    train_labels: Labels
    test: Floats
    test_labels: Labels


def sktime_sets() -> Iterator[Dataset]:
    from sktime import datasets

    loaders = {
        "BasicMotions": datasets.load_basic_motions,
        "GunPoint": datasets.load_gunpoint,
        "ItalyPowerDemand": datasets.load_italy_power_demand,
        "JapaneseVowels": datasets.load_japanese_vowels,
        "OSULeaf": datasets.load_osuleaf,
        "ArrowHead": datasets.load_arrow_head,
        "ACSF1": datasets.load_acsf1,
        "UnitTest": datasets.load_unit_test,
    }
    for name, load in loaders.items():
        (train, train_labels), (test, test_labels) = (load(split=split, return_X_y=True) for split in ("train", "test"))
        length = max(len(cell) for frame in (train, test) for column in frame for cell in frame[column])
        classes = {label: number for number, label in enumerate(sorted({*train_labels, *test_labels}))}
        numbers = [np.array([classes[label] for label in labels]) for labels in (train_labels, test_labels)]
        yield Dataset(name, _dense(train, length), numbers[0], _dense(test, length), numbers[1])


def _dense(frame: Any, length: int) -> Floats:
    """Cases of one length: shorter ones hold their last value."""
    return np.array(
        [[np.pad(np.asarray(cell), (0, length - len(cell)), mode="edge") for cell in row] for row in frame.to_numpy()]
    )


def volve_set(folder: Path, size: int = 16) -> Dataset:
    """Windows of the first half of each labelled file against windows of its second half."""
    halves: tuple[list[Floats], list[Floats]] = ([], [])
    for name in VOLVE_CLASSES:
        rows = np.genfromtxt(folder / f"volve_{name}.csv", delimiter=",", skip_header=1)[:, 1:].T
        middle = rows.shape[1] // 2
        for half, some in zip(halves, (rows[:, :middle], rows[:, middle:]), strict=True):
            half.append(np.lib.stride_tricks.sliding_window_view(some, size, axis=1).transpose(1, 0, 2))
    labels = [np.repeat(np.arange(len(half)), [len(some) for some in half]) for half in halves]
    return Dataset("Volve rows", np.concatenate(halves[0]), labels[0], np.concatenate(halves[1]), labels[1])


def shots(labels: Labels, per_class: int, seed: int) -> Labels:
    random = np.random.default_rng(seed)
    picked = [random.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(picked))


def measure(encoder: str, data: Dataset, picked: Labels, neighbours: int) -> tuple[float, float]:
    """(accuracy, macro-F1) with these training cases, by the path that the worker takes."""
    train, labels = data.train[picked], data.train_labels[picked]
    scaling = Scaling.of(np.concatenate(list(train), axis=1))
    made = ENCODERS[encoder](*train.shape[1:])
    references = torch.from_numpy(scaling.apply(train))
    made.fit(references)
    found = NearestNeighbours(made.encode(references), labels, int(data.train_labels.max()) + 1, n_neighbors=neighbours)
    states = [
        found.scores(made.encode(torch.from_numpy(scaling.apply(some))))[0].numpy()
        for some in np.array_split(data.test, -(-len(data.test) // 128))
    ]
    return scores_of(np.concatenate(states), data.test_labels)


def scores_of(states: Labels, truth: Labels) -> tuple[float, float]:
    f1 = []
    for label in np.unique(truth):
        hits = np.sum((states == label) & (truth == label))
        f1.append(2 * hits / (np.sum(states == label) + np.sum(truth == label)))
    return float(np.mean(states == truth)), float(np.mean(f1))


def speed(encoder: str, channels: int, window: int) -> float:
    """Windows a second."""
    some = torch.randn(1024, channels, window, generator=torch.Generator().manual_seed(0))
    made = ENCODERS[encoder](channels, window)
    made.fit(some[:256])
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        for block in some.split(128):
            made.encode(block)
        best = max(best, len(some) / (time.perf_counter() - start))
    return best


def accuracy_table(sets: list[Dataset], seeds: int, per_class: int, neighbours: int) -> list[str]:
    lines = ["| set | shape | " + " | ".join(ENCODERS) + " |", "|---|---|" + "---|" * len(ENCODERS)]
    means = dict.fromkeys(ENCODERS, np.zeros((seeds, 2)))
    for data in sets:
        cells = []
        for encoder in ENCODERS:
            runs = np.array(
                [measure(encoder, data, shots(data.train_labels, per_class, seed), neighbours) for seed in range(seeds)]
            )
            means[encoder] = means[encoder] + runs / len(sets)
            cells.append(_cell(runs))
        shape = f"{data.train.shape[1]} × {data.train.shape[2]}, {len(np.unique(data.train_labels))} classes"
        lines.append(f"| {data.name} | {shape} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    lines.append("| **mean** | | " + " | ".join(_cell(means[encoder]) for encoder in ENCODERS) + " |")
    return lines


def _cell(runs: Floats) -> str:
    mean, spread = runs.mean(0), runs.std(0)
    return f"{mean[0]:.3f} ± {spread[0]:.3f} (F1 {mean[1]:.3f})"


def speed_table() -> list[str]:
    lines = ["| channels × rows | " + " | ".join(ENCODERS) + " |", "|---|" + "---|" * len(ENCODERS)]
    for shape in SHAPES:
        lines.append(f"| {shape[0]} × {shape[1]} | " + " | ".join(f"{speed(e, *shape):,.0f}" for e in ENCODERS) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volve", type=Path, help="folder with volve_drilling.csv and volve_not_drilling.csv")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shots", type=int, default=10, help="examples per class")
    parser.add_argument("--neighbours", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # sktime's, about its own dependencies
    with torch.inference_mode():
        sets = list(sktime_sets())
        if options.volve:
            sets.append(volve_set(options.volve))
        few = accuracy_table(sets, options.seeds, options.shots, options.neighbours)
        everything = accuracy_table(sets[:8], 1, 10**9, options.neighbours)
        speeds = speed_table()
    report = [
        "# Encoders, measured",
        f"\nMade by `python -m benchmarks.encoders`; the default encoder is `{DEFAULT_ENCODER}`.",
        f"Accuracy (macro-F1) on the sets' own test cases, {options.neighbours} nearest neighbours, euclidean.",
        f"\n## {options.shots} examples a class, mean ± sd of {options.seeds} draws\n",
        *few,
        "\n## All training examples\n",
        *everything,
        "\nRead with care: the encoders' sizes (groups of hydra, biases of rocket, dimensions kept) were chosen with",
        "these sets in view, and some have under 50 test cases. Sets differ more than encoders do.",
        f"\n## Windows a second, {options.threads} thread(s), without the neighbours\n",
        *speeds,
        f"\nLoad average while this was timed: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(report) + "\n")
    print("\n".join(report))


if __name__ == "__main__":
    main()
