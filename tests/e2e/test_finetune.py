"""`jos finetune` on this machine and on a server: from folders of labelled files to a classification with the model."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from jobs_lab import Lab
from up_lab import Up

OPTIONS = ("--columns", "x, y", "--window", "16", "--step", "4", "--epochs", "8", "--seed", "3")


def recording(path: Path, busy: bool, seed: int, rows: int = 160) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    lines = ["t,x,y"]
    for n in range(rows):
        x, y = (math.sin(n / 2), math.cos(n / 3)) if busy else (0.0, 1.0)
        lines.append(f"{n},{x + chance.gauss(0, 0.1):.4f},{y + chance.gauss(0, 0.1):.4f}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """train/CLASS/N.csv and eval/CLASS/N.csv, with the same names in each folder; and new.csv, which is busy."""
    for n, (use, label) in enumerate((u, c) for u in ("train", "eval") for c in ("busy", "idle")):
        for file in range(2 if use == "train" else 1):
            recording(tmp_path / use / label / f"{use}_{file}.csv", label == "busy", 10 * n + file)
    recording(tmp_path / "new.csv", True, 99)
    return tmp_path


def predictions(folder: Path) -> set[str]:
    (path,) = folder.glob("*.csv")
    with path.open() as file:
        return {row["Prediction"] for row in csv.DictReader(file)}


def told(lab: Lab, *arguments: object, code: int = 0) -> tuple[Any, str]:
    process = lab.jos(*arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, f"{out}\n{err}"
    return out, err


def test_folders_of_labelled_files_become_a_model_that_classifies(lab: Lab, data: Path) -> None:
    out, _ = told(lab, "finetune", "--train", data / "train", "--eval", data / "eval", *OPTIONS)
    (model,) = [line.split()[1] for line in out.splitlines() if line.startswith("model:")]
    assert model.startswith("ckp_")
    steps = [line for line in out.splitlines() if "training " in line and "loss" in line]
    assert steps
    assert "macro_f1" in steps[-1]
    (line,) = [line.partition(": ")[2] for line in out.splitlines() if line.startswith("classify with it:")]
    assert f"--input worker.fine_tune_checkpoint={model}" in line
    arguments = line.split(" run ", 1)[1].replace("worker.inference=FILE", f"worker.inference={data / 'new.csv'}")
    told(lab, "run", *arguments.split(), "--set", "worker.config.reader_config.timestamp_column=t")
    told(lab, "outputs", "last", "--download", data / "out")
    assert predictions(data / "out") == {"busy"}


def test_mistakes_are_told_before_anything_is_made(lab: Lab, data: Path) -> None:
    for arguments, said in (
        (("--train", data / "nothing", *OPTIONS), "there is no CSV file"),
        (("--train", data / "train", *OPTIONS, "--method", "svm"), "no method 'svm'"),
        (("--train", data / "train", "--columns", "x,,y", "--window", "16"), "an empty name"),
        (("--train", data / "train" / "busy" / "*.csv", *OPTIONS), 'only the class "busy"'),
    ):
        out, _ = told(lab, "finetune", *arguments, "--json", code=2)
        assert said in json.dumps(json.loads(out)["errors"], ensure_ascii=False).replace('\\"', '"')
    assert lab.engine.jobs()[0] == 0


@pytest.mark.long
def test_a_server_trains_from_files_here_and_its_model_classifies(up: Up, data: Path) -> None:
    trained = up.jos("finetune", "--train", data / "train", "--method", "knn", *OPTIONS[:-4], "--watch")
    model = trained["checkpoints"][-1]
    assert (trained["status"], len(trained["checkpoints"])) == ("COMPLETED", 1)
    assert trained["pipeline_key"] == "knn-fine-tuning-omega"
    with up.client() as client:
        assert {i.file_id for i in client.job(trained["id"]).inputs()} == {
            f"{label}_train_{n}.csv" for label in ("busy", "idle") for n in range(2)
        }
        reader = {"reader_config": {"timestamp_column": "t"}}
        inputs = {"inference": data / "new.csv", "fine_tune_checkpoint": model["id"]}
        job = client.jobs.create("machine-state-classification", inputs, {"worker": {"config": reader}}).wait(120)
        job.download(data / "out")
        assert predictions(data / "out") == {"busy"}
    rows = up.jos("checkpoints", trained["id"], "--download", data / "models")["checkpoints"]
    assert Path(rows[0]["location"]).stat().st_size == rows[0]["num_bytes"] == model["data"]["num_bytes"]
