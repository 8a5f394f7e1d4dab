"""Without Ray or anything else running: `pytest`."""

import json
from pathlib import Path

import pytest
from my_pipeline import MyPipeline

from jos.testing import LocalFile, Outputs, run_worker
from jos.worker import InputInvalid

EXAMPLES = Path(__file__).parent / "pipelines" / "my-pipeline" / "examples"
CONFIG = {"features": 32, "steps": 400, "seed": 1, "group": 1, "enough": 0.0}


def train(file: Path, **config: float) -> Outputs:
    return run_worker(MyPipeline, config=CONFIG | config, scattered={"worker.train_data": [LocalFile(file)]})


def test_the_loss_falls_and_the_best_models_are_kept() -> None:
    outputs = train(EXAMPLES / "wave.csv")
    losses = [metrics["loss"] for metrics in outputs.metrics]
    assert len(losses) == 400
    assert losses[-1] < 0.1 * losses[0]
    assert json.loads(outputs.checkpoints[max(outputs.checkpoints)]).keys() == {"waves", "weights"}


def test_a_run_repeats_itself_and_stops_early_where_it_is_good_enough() -> None:
    assert train(EXAMPLES / "wave.csv").state == train(EXAMPLES / "wave.csv").state
    assert len(train(EXAMPLES / "wave.csv", enough=0.2).metrics) < 400


def test_rows_that_are_no_pairs_of_numbers_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("1,2\n3\n")
    with pytest.raises(InputInvalid, match=r"bad.csv lines 1 to 2: rows of two numbers"):
        train(tmp_path / "bad.csv")
