"""Fine-tuning as jobs: over several indexes, killed at any step, to the same checkpoints as undisturbed; and from the
best of them a classification."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs_lab import Lab, alive, kill, until

from jos.core.model import Status
from jos.request import build

LEVELS = {"idle": 0.0, "slow": 0.25, "fast": 0.5}
WINDOWS = {"data_columns": ["a", "b"], "window_size": 16, "step_size": 2}


def recordings(folder: Path, count: int, seed: int, rows: int = 60) -> list[tuple[Path, str]]:
    """So many files of each class, whose levels overlap, with their class."""
    rng, made = np.random.default_rng(seed), []
    folder.mkdir(exist_ok=True)
    for nth in range(count):
        for label, level in LEVELS.items():
            path = folder / f"{label}_{nth}.csv"
            values = rng.normal(level, 1, (rows, 2))
            lines = ["time,a,b", *(f"t{row},{a:.4f},{b:.4f}" for row, (a, b) in enumerate(values))]
            if not path.exists():  # another job may read it: to write it again would be a change
                path.write_text("\n".join([*lines, ""]))
            made.append((path, label))
    return made


def fine_tune(lab: Lab, pipeline: str = "fine-tuning-omega", parallelism: int = 2, **config: Any) -> str:
    """A job, PENDING: some seconds of training in 20 spans."""
    inputs = {
        "train_data": recordings(lab.folder / "train", 4, 1),
        "eval_data": recordings(lab.folder / "eval", 2, 2),
    }
    slowly = {"epochs": 100, "patience": 100, "learning_rate": 1e-4, "hidden": 32}  # many rises
    trained = {} if "knn" in pipeline else {"train_config": slowly}
    config = {"model_type": "stats", "reader_config": WINDOWS, "batch_size": 8, "seed": 3, **trained, **config}
    return lab.engine.submit(build(pipeline, inputs, {"worker": {"config": config}}, parallelism=parallelism)).id


def models(lab: Lab, job_id: str) -> dict[int, tuple[float, bytes]]:
    """Checkpoints by step: score and bytes."""
    found = lab.engine.checkpoints(job_id)
    read = lab.engine.storage.read
    return {one.step: (one.metrics["macro_f1"], read(lab.folder_of(job_id) + one.key)) for one in found}


def test_a_training_killed_at_any_step_leaves_the_very_same_checkpoints(lab: Lab) -> None:
    calm, hurt = fine_tune(lab), fine_tune(lab, parallelism=1)  # and however many indexes prepare it
    lab.complete(calm)
    chance = random.Random(4)
    for what in ("index", "driver"):
        driver = lab.resume(hurt)
        lab.wait_for_tasks(hurt, lab.tasks_done(hurt) + chance.randrange(1, 1500))
        if what == "index":
            [pid] = until(lambda: [p for e in lab.events(hurt, "index.started") if alive(p := e.payload["pid"])])
            kill(pid)
            lab.wait_for(hurt, "index.restarted")
        driver.kill()
    lab.complete(hurt)
    undisturbed = models(lab, calm)
    assert models(lab, hurt) == undisturbed
    assert len(undisturbed) >= 3
    scores = [score for _, (score, _) in sorted(undisturbed.items())]
    assert scores == sorted(set(scores))  # each is a rise
    assert len(lab.attempts(hurt)) == 3


def test_bad_windows_are_told_and_the_training_goes_on_without_them(lab: Lab) -> None:
    inputs = {"train_data": recordings(lab.folder / "train", 4, 1)}
    bad = inputs["train_data"][0][0]
    bad.write_text(bad.read_text().replace("\nt30,", "\nt30,x"))
    config = {"model_type": "omega_1_4_base", "reader_config": WINDOWS}
    job_id = lab.engine.submit(build("knn-fine-tuning-omega", inputs, {"worker": {"config": config}})).id
    assert lab.complete(job_id).status is Status.COMPLETED
    [failed] = lab.events(job_id, "preparation.failed")
    assert "idle_0.csv row 31 (line 32), column 'a': 'x" in failed.message
    assert len(lab.events(job_id, "model.substituted")) == 1
    [checkpoint] = lab.engine.checkpoints(job_id)
    assert checkpoint.metrics == {"references": 12 * 23 - 8, "recall": 1.0}


def test_what_cannot_be_trained_fails_at_once_with_the_reason(lab: Lab) -> None:
    inputs = {"train_data": recordings(lab.folder / "train", 1, 1, rows=15)}
    config = {"model_type": "stats", "reader_config": WINDOWS}
    job_id = lab.engine.submit(build("fine-tuning-omega", inputs, {"worker": {"config": config}})).id
    assert lab.resume(job_id).end().code == 1
    error = lab.get(job_id).error
    assert error is not None
    assert "hold no window of 16 rows that can be used. " in error.message


@pytest.mark.parametrize("pipeline", ["fine-tuning-omega", "knn-fine-tuning-omega"])
def test_the_best_checkpoint_classifies(lab: Lab, pipeline: str) -> None:
    job_id = fine_tune(lab, pipeline, **({"train_config": {"epochs": 20}} if "knn" not in pipeline else {}))
    lab.complete(job_id)
    best = lab.engine.checkpoints(job_id)[-1]
    files = recordings(lab.folder / "later", 2, 9)
    inputs = {"inference": [path for path, _ in files], "fine_tune_checkpoint": [best.id]}
    config = {"reader_config": {"timestamp_column": "time"}}
    done = lab.engine.submit(build("machine-state-classification", inputs, {"worker": {"config": config}})).id
    lab.complete(done)
    hits = []
    for body, (_, label) in zip(lab.outputs(done), files, strict=True):
        rows = list(csv.DictReader(io.StringIO(body.decode())))
        assert [row["time"] for row in rows] == [f"t{2 * at}" for at in range(23)]
        hits += [row["Prediction"] == label for row in rows]
    assert np.mean(hits) > 0.4  # chance: a third; the classes overlap
    assert not lab.events(done, "checkpoint.overrules")
