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
import torch
from jobs_lab import Lab, alive, kill, until

from actors.fine_tune import HeadTrainer
from actors.model_file import unpack_model
from jos.core.model import Status
from jos.request import build
from jos.testing import LocalFile, run_worker

LEVELS = {"idle": 0.0, "slow": 0.25, "fast": 0.5}
WINDOWS = {"data_columns": ["a", "b"], "window_size": 16, "step_size": 2}


def recordings(folder: Path, count: int, seed: int, rows: int = 60, apart: float = 1) -> list[tuple[Path, str]]:
    """So many files of each class with their class; levels overlap, less where they are further apart."""
    rng, made = np.random.default_rng(seed), []
    folder.mkdir(exist_ok=True)
    for nth in range(count):
        for label, level in LEVELS.items():
            path = folder / f"{folder.name}_{label}_{nth}.csv"
            values = rng.normal(level * apart, 1, (rows, 2))
            lines = ["time,a,b", *(f"t{row},{a:.4f},{b:.4f}" for row, (a, b) in enumerate(values))]
            if not path.exists():  # another job may read it: to write it again would be a change
                path.write_text("\n".join([*lines, ""]))
            made.append((path, label))
    return made


SLOWLY: dict[str, Any] = {
    "model_type": "stats",
    "reader_config": WINDOWS,
    "batch_size": 8,
    "seed": 3,
    "train_config": {"epochs": 100, "patience": 100, "learning_rate": 1e-4, "hidden": 32},
}


def labelled(lab: Lab) -> dict[str, list[tuple[Path, str]]]:
    return {
        "train_data": recordings(lab.folder / "train", 4, 1),
        "eval_data": recordings(lab.folder / "eval", 2, 2),
    }


def fine_tune(lab: Lab, parallelism: int) -> str:
    """A job, PENDING: some seconds of training in 20 spans, in which the score rises often."""
    request = build("fine-tuning-omega", labelled(lab), {"worker": {"config": SLOWLY}}, parallelism=parallelism)
    return lab.engine.submit(request).id


def models(lab: Lab, job_id: str) -> dict[int, tuple[float, bytes]]:
    """Checkpoints by step: score and bytes."""
    found = lab.engine.checkpoints(job_id)
    read = lab.engine.storage.read
    return {one.step: (one.metrics["macro_f1"], read(lab.folder_of(job_id) + one.key)) for one in found}


def hits(lab: Lab, checkpoint_id: str, apart: float = 1) -> float:
    """Which share of windows is classified rightly from a checkpoint; a third would be by chance."""
    files = recordings(lab.folder / "later", 2, 9, apart=apart)
    inputs = {"inference": [path for path, _ in files], "fine_tune_checkpoint": [checkpoint_id]}
    config = {"reader_config": {"timestamp_column": "time"}}
    job_id = lab.engine.submit(build("machine-state-classification", inputs, {"worker": {"config": config}})).id
    lab.complete(job_id)
    assert not lab.events(job_id, "checkpoint.overrules")
    found = []
    for body, (_, label) in zip(lab.outputs(job_id), files, strict=True):
        rows = list(csv.DictReader(io.StringIO(body.decode())))
        assert [row["time"] for row in rows] == [f"t{2 * at}" for at in range(23)]
        found += [row["Prediction"] == label for row in rows]
    return float(np.mean(found))


@pytest.mark.long
def test_a_training_killed_at_any_step_leaves_the_very_same_checkpoints(lab: Lab) -> None:
    calm, hurt = fine_tune(lab, 2), fine_tune(lab, 1)  # and however many indexes prepare it
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
    scores = [score for _, (score, _) in sorted(undisturbed.items())]
    assert scores == sorted(scores)
    assert len(set(scores)) >= 3
    assert len(lab.attempts(hurt)) == 3
    assert hits(lab, lab.engine.checkpoints(hurt)[-1].id) > 0.5


def test_two_indexes_that_do_each_step_together_come_to_the_head_of_one(lab: Lab) -> None:
    config = SLOWLY | {"batch_size": 32, "train_config": {"epochs": 4, "ranks": 2}}
    request = build("fine-tuning-omega", labelled(lab), {"worker": {"config": config}}, parallelism=2)
    job_id = lab.engine.submit(request).id
    lab.complete(job_id)
    scattered = {
        f"worker.{port}": [LocalFile(path, {"class": label}) for path, label in files]
        for port, files in labelled(lab).items()
    }
    alone = run_worker(HeadTrainer, config=config, scattered=scattered)  # type: ignore[arg-type]
    assert sorted(models(lab, job_id)) == sorted(alone.checkpoints)
    for step, (_, data) in models(lab, job_id).items():
        together, single = (unpack_model(some, "it").classifier_tensors for some in (data, alone.checkpoints[step]))
        assert together.keys() == single.keys()
        assert all(torch.allclose(together[name], single[name], atol=1e-5) for name in single)


def test_bad_windows_are_told_and_the_training_goes_on_without_them(lab: Lab) -> None:
    inputs = {"train_data": recordings(lab.folder / "train", 4, 1, apart=6)}
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
    assert hits(lab, checkpoint.id, apart=6) > 0.9


def test_what_cannot_be_trained_fails_at_once_with_the_reason(lab: Lab) -> None:
    inputs = {"train_data": recordings(lab.folder / "train", 1, 1, rows=15)}
    config = {"model_type": "stats", "reader_config": WINDOWS}
    job_id = lab.engine.submit(build("fine-tuning-omega", inputs, {"worker": {"config": config}})).id
    assert lab.resume(job_id).end().code == 1
    error = lab.get(job_id).error
    assert error is not None
    assert "hold no window of 16 rows that can be used. " in error.message
