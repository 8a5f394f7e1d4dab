"""`jos demo`: machine-state-classification on real recordings, scored against the truth.

BasicMotions (in the sktime package): a wrist's accelerometer and gyroscope, 6 channels, 4 activities, 40 + 40
recordings of 10 s at 10 Hz. The train recordings become labelled n-shot files; the test recordings, five to a file
as a logger would have written them, are to be classified; their truth stays aside.
May import: jos.engine, rich, sktime and numpy when it runs. Tests: `make demo`, which CI runs.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jos.core.errors import BadRequest
from jos.engine import Engine
from jos.request import build

CHANNELS = ["acc_x", "acc_y", "acc_z", "gyr_x", "gyr_y", "gyr_z"]
GROUP = 5  # test recordings in one inference file
WINDOW, STEP = 50, 5  # rows: 5 s windows, two a second

Drive = Callable[[Engine, str, bool, bool], None]


def write_files(folder: Path) -> tuple[list[tuple[Path, str]], list[Path], dict[str, list[str]]]:
    """Writes the CSV files. Returns n-shots with their class, inference files, and the truth per row of each."""
    try:
        from sktime.datasets import load_basic_motions
    except ImportError as error:
        raise BadRequest("the demo's recordings are not here.", suggestion="pip install 'jos[demo]'.") from error
    train, train_labels = load_basic_motions(split="train", return_type="numpy3D")
    test, test_labels = load_basic_motions(split="test", return_type="numpy3D")
    for name in ("n_shots", "inference"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    n_shots = []
    for at, (series, label) in enumerate(zip(train, train_labels, strict=True)):
        path = folder / "n_shots" / f"{label}_{at:02}.csv"
        _write(path, [series])
        n_shots.append((path, str(label)))
    inference, truth = [], {}
    for group in range(0, len(test), GROUP):
        # every eighth recording: the set is sorted by activity, a logger's file holds several
        members = range(group // GROUP, len(test), len(test) // GROUP)
        path = folder / "inference" / f"wrist_{group // GROUP + 1}.csv"
        _write(path, [test[m] for m in members])
        inference.append(path)
        truth[path.name] = [str(test_labels[m]) for m in members for _row in range(test.shape[2])]
    (folder / "truth.json").write_text(json.dumps(truth))
    return n_shots, inference, truth


def _write(path: Path, recordings: Sequence[Any]) -> None:
    """Recordings (channels × rows, 10 Hz) one after the other, with milliseconds as timestamps."""
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["time_ms", *CHANNELS])
        row = 0
        for recording in recordings:
            for values in recording.T:
                out.writerow([row * 100, *(f"{v:.6f}" for v in values)])
                row += 1


def score(results: dict[str, list[Path]], truth: dict[str, list[str]]) -> dict[str, Any]:
    """Accuracy and macro-F1 over the windows that lie within one recording (the others show two activities)."""
    pairs: list[tuple[str, str]] = []
    for name, paths in results.items():
        rows = truth[name]
        for path in paths:
            with path.open(newline="") as file:
                for line in csv.DictReader(file):
                    first = int(line["time_ms"]) // 100
                    if first % 100 <= 100 - WINDOW:
                        pairs.append((rows[first], line["Prediction"]))
    per_class = {}
    for label in sorted({t for t, _ in pairs}):
        hit = sum(t == p == label for t, p in pairs)
        said, there = sum(p == label for _, p in pairs), sum(t == label for t, _ in pairs)
        per_class[label] = {"windows": there, "recall": hit / there, "f1": 2 * hit / (said + there)}
    return {
        "windows": len(pairs),
        "accuracy": sum(t == p for t, p in pairs) / len(pairs),
        "macro_f1": sum(c["f1"] for c in per_class.values()) / len(per_class),
        "classes": per_class,
    }


def run_demo(engine: Engine, folder: Path, parallelism: int, console: Console, drive: Drive) -> bool:
    """Files, job, display, score. Returns whether there was anything to score."""
    n_shots, inference, truth = write_files(folder)
    console.print(f"{len(n_shots)} labelled recordings and {len(inference)} files to classify are in {folder}/")
    reader = {"data_columns": CHANNELS, "timestamp_column": "time_ms", "window_size": WINDOW, "step_size": STEP}
    request = build(
        "machine-state-classification",
        {"n_shots": n_shots, "inference": inference},
        {"worker": {"config": {"reader_config": reader, "flush_every_n_iteration": 100}}},
        parallelism=parallelism,
        name="demo: BasicMotions",
    )
    job = engine.submit(request)
    drive(engine, job.id, False, False)
    names = {i["id"]: i["filename"] for i in engine.inputs(job.id)}
    results: dict[str, list[Path]] = {}
    for output in engine.outputs(job.id):
        path = engine.download(job.id, output, folder / "results")
        results.setdefault(names[output.input_id or ""], []).append(path)
    if not results:
        return False
    _print(score(results, truth), folder, console)
    return True


def _print(scored: dict[str, Any], folder: Path, console: Console) -> None:
    table = Table("activity", "windows", "recall", "F1", box=None)
    for label, row in scored["classes"].items():
        table.add_row(label, str(row["windows"]), f"{row['recall']:.3f}", f"{row['f1']:.3f}")
    console.print(table)
    console.print(
        f"[bold]accuracy {scored['accuracy']:.3f}, macro-F1 {scored['macro_f1']:.3f}[/] "
        f"on {scored['windows']} windows of recordings that were never seen"
    )
    console.print(f"results: {folder / 'results'}/*.csv    truth: {folder / 'truth.json'}")
