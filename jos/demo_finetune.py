"""`jos demo finetune`: a head is trained on real recordings, and its best checkpoint classifies others.

The recordings are those of `jos demo`. Of each activity's ten train recordings the last two validate, whole; the test
recordings are classified twice: from the checkpoint, and by the nearest neighbours among the same train recordings.
May import: jos.engine, jos.demo, rich. Tests: `make demo-finetune`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jos.core.model import Checkpoint
from jos.demo import CHANNELS, STEP, WINDOW, Drive, score, write_files
from jos.engine import Engine
from jos.request import build

HELD_OUT = 2  # recordings of each activity that validate
WINDOWS = {"data_columns": CHANNELS, "window_size": WINDOW, "step_size": STEP}
READER = {**WINDOWS, "timestamp_column": "time_ms"}


def run_finetune_demo(engine: Engine, folder: Path, parallelism: int, console: Console, drive: Drive) -> bool:
    """Files, training, two classifications, scores. Returns whether there was anything to score."""
    labelled, inference, truth = write_files(folder)
    train, validation = held_out(labelled)
    console.print(
        f"{len(train)} recordings to train on, {len(validation)} to validate and {len(inference)} files to classify "
        f"are in {folder}/"
    )
    best = _train(engine, train, validation, parallelism, drive)
    if best is None:
        return False
    console.print(f"best checkpoint: {best.id}, {best.name}, validation macro-F1 {best.metrics['macro_f1']:.3f}")
    scored = {}
    for name, inputs, reader in (
        ("fine-tuned head", {"fine_tune_checkpoint": [best.id]}, {"timestamp_column": "time_ms"}),
        ("nearest neighbours", {"n_shots": labelled}, READER),
    ):
        results = _classify(engine, name, {**inputs, "inference": inference}, reader, parallelism, folder, drive)
        if not results:
            return False
        scored[name] = score(results, truth)
    _print(scored, folder, console)
    return True


def held_out(labelled: list[tuple[Path, str]]) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Recordings to train on and those that validate, whole: the last HELD_OUT of each activity."""
    last: set[Path] = set()
    for label in {label for _, label in labelled}:
        last |= {path for path, of in [one for one in labelled if one[1] == label][-HELD_OUT:]}
    return [one for one in labelled if one[0] not in last], [one for one in labelled if one[0] in last]


def _train(
    engine: Engine,
    train: list[tuple[Path, str]],
    validation: list[tuple[Path, str]],
    parallelism: int,
    drive: Drive,
) -> Checkpoint | None:
    """The best checkpoint: each is a rise, so the last is the best."""
    request = build(
        "fine-tuning-omega",
        {"train_data": train, "eval_data": validation},
        {"worker": {"config": {"reader_config": WINDOWS}}},
        parallelism=parallelism,
        name="demo: BasicMotions, a head",
    )
    job = engine.submit(request)
    drive(engine, job.id, False, False)
    found = engine.checkpoints(job.id)
    return found[-1] if found else None


def _classify(
    engine: Engine,
    name: str,
    inputs: dict[str, Any],
    reader: dict[str, Any],
    parallelism: int,
    folder: Path,
    drive: Drive,
) -> dict[str, list[Path]]:
    """Result files of each inference file."""
    request = build(
        "machine-state-classification",
        inputs,
        {"worker": {"config": {"reader_config": reader, "flush_every_n_iteration": 100}}},
        parallelism=parallelism,
        name=f"demo: BasicMotions, {name}",
    )
    job = engine.submit(request)
    drive(engine, job.id, False, False)
    names = {one["id"]: one["filename"] for one in engine.inputs(job.id)}
    results: dict[str, list[Path]] = {}
    for output in engine.outputs(job.id):
        path = engine.download(job.id, output, folder / "results" / name.replace(" ", "_"))
        results.setdefault(names[output.input_id or ""], []).append(path)
    return results


def _print(scored: dict[str, dict[str, Any]], folder: Path, console: Console) -> None:
    table = Table("classifier", "windows", "accuracy", "macro-F1", box=None)
    for name, one in scored.items():
        table.add_row(name, str(one["windows"]), f"{one['accuracy']:.3f}", f"{one['macro_f1']:.3f}")
    console.print(table)
    console.print("on recordings that neither training nor validation has seen; both learned from the same 40")
    console.print(f"results: {folder / 'results'}/*/*.csv    truth: {folder / 'truth.json'}")
