"""Pictures of jobs, the truth that users give, and the scores that come of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas
import pytest

from jos import wire
from jos.core.errors import BadRequest
from jos.core.model import Job, Progress
from jos.shown import plots
from jos.shown.extras import needed
from jos.shown.handle import Shown
from jos.shown.look import Look
from jos.shown.truth import scores, tally, truth_of

NOW = datetime(2026, 1, 2, 10, 5, tzinfo=UTC)
FRAME = pandas.DataFrame(
    {"input_file": ["a.csv"] * 3 + ["b.csv"], "time": [0, 5, 10, 0], "Prediction": ["x", "x", "y", "y"]}
)


class Handle(Shown):
    """A job that is over, without a service."""

    def __init__(self, frame: pandas.DataFrame = FRAME, kind: str = "batch") -> None:
        self.frame, self.kind = frame, kind

    def look(self) -> Look:
        fields = {"id": "job_x", "org_id": "o", "name": "n", "pipeline_type": self.kind, "pipeline_key": "p"}
        fields |= {"pipeline_version": "1.0.0", "parameters": {}}
        times = {"created_at": NOW, "updated_at": NOW, "queued_at": NOW}
        return Look(Job.model_validate({**fields, **times}), "")

    def to_pandas(self) -> pandas.DataFrame:
        return self.frame

    def _curve(self) -> plots.Curve:
        points = [
            wire.TracePoint(
                t=NOW + timedelta(seconds=at + 1),
                step=0,
                files={},
                items={"inference": {"success": 10 * at, "failed": at}},
            )
            for at in range(4)
        ]
        return plots.curve_of(points, 2.0)

    def _steps(self) -> Sequence[Progress]:
        return [
            Progress(id=n, kind="training", step=n, metrics={"loss": 1 / n, "macro_f1": n / 9}, created_at=NOW)
            for n in range(1, 9)
        ]


def titles(figure: Any) -> list[str]:
    return [title for axes in figure.axes if (title := axes.get_title() or axes.get_title("left"))]


def dots(figure: Any, file: str) -> list[list[list[float]]]:
    """Where the predictions of a file lie: those that are right or not known, and those that are wrong."""
    [axes] = [axes for axes in figure.axes if axes.get_title("left") == file]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "y"]
    return [some.get_offsets().tolist() for some in axes.collections]


def test_a_batch_shows_its_throughput_and_its_predictions_by_file() -> None:
    figure = Handle().plot()
    assert titles(figure) == ["throughput", "a.csv", "b.csv"]
    assert dots(figure, "a.csv") == [[[0, 0], [5, 0], [10, 1]], []]  # the column of times, and the class
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_truth_adds_a_confusion_matrix_and_marks_what_is_wrong() -> None:
    figure = Handle().plot(truth=["x", "y", "y", None])
    assert titles(figure) == ["throughput", "a.csv", "b.csv", "accuracy 0.667, macro-F1 0.667"]
    assert dots(figure, "a.csv") == [[[0, 0], [10, 1]], [[5, 0]]]
    assert dots(figure, "b.csv") == [[[0, 1]], []]


def test_of_many_files_the_first_are_drawn_and_that_is_said() -> None:
    frame = pandas.DataFrame({"input_file": [f"{n}.csv" for n in range(9)], "Prediction": ["x", "y", "y"] * 3})
    figure = Handle(frame).plot("predictions")
    assert titles(figure) == ["0.csv", "1.csv", "2.csv", "3.csv"]
    assert figure.axes[-1].get_xlabel() == "window (the first 4 of 9 files)"


def test_throughput_is_what_was_done_in_each_bucket() -> None:
    curve = Handle()._curve()
    assert (curve.seconds, curve.done, curve.failed) == ([2, 4, 6, 8], [0, 11, 22, 33], [0, 1, 2, 3])
    figure = Handle().plot("throughput")
    assert [line.get_label() for line in figure.axes[1].lines][-1] == "failed"


def test_a_training_shows_losses_and_scores_over_its_steps() -> None:
    figure = Handle(kind="training").plot()
    assert titles(figure) == ["learning"]
    lines = [line for axes in figure.axes for line in axes.lines]
    assert [line.get_label() for line in lines] == ["loss", "macro_f1"]
    assert lines[1].get_xdata().tolist() == list(range(1, 9))


def test_results_without_classes_and_jobs_without_results_show_throughput_alone() -> None:
    free = pandas.DataFrame({"input_file": ["a"] * 40, "prediction": [f"answer {n}" for n in range(40)]})
    assert titles(Handle(free).plot()) == ["throughput"]
    assert titles(Handle(pandas.DataFrame()).plot()) == ["throughput"]


def test_what_a_job_does_not_have_is_told() -> None:
    with pytest.raises(BadRequest, match="truth=…"):
        Handle().plot("confusion")
    with pytest.raises(BadRequest, match="Only a training learns"):
        Handle().plot("learning")
    with pytest.raises(BadRequest, match=r"no plot 'pie'.* throughput, predictions"):
        Handle().plot("pie")


def test_a_truth_by_file_leaves_the_others_unknown() -> None:
    assert truth_of(FRAME, {"b.csv": ["y"]}) == [None, None, None, "y"]
    assert truth_of(FRAME, pandas.Series(["x", float("nan"), "", 3])) == ["x", None, None, "3"]


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        (["x"], "1 labels for 4 predictions"),
        ({"a.csv": ["x"]}, "1 labels for the 3 predictions of a.csv"),
        ({"c.csv": ["x"]}, "'c.csv'.*a.csv, b.csv"),
    ],
)
def test_a_truth_that_does_not_fit_is_refused_with_what_was_expected(truth: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        truth_of(FRAME, truth)


def test_scores_are_those_of_their_definitions() -> None:
    counts = tally(["a", "a", "b", "b", "a"], ["a", "b", "b", "b", None], ["a", "b"])
    assert counts == [[1, 0], [1, 2]]
    accuracy, macro_f1 = scores(counts)
    assert accuracy == 3 / 4
    assert macro_f1 == pytest.approx((2 * 1 / (1 + 2) + 2 * 2 / (3 + 2)) / 2)
    assert scores([[0]]) == pytest.approx((float("nan"), float("nan")), nan_ok=True)


@pytest.mark.parametrize(("library", "module"), [("pandas", "pandas"), ("matplotlib", "matplotlib.figure")])
def test_a_library_that_is_not_here_is_named_with_what_to_install(
    library: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadRequest, match=rf"needs {library}, which is not here. pip install 'jos\[notebook\]'"):
        needed(module, "a plot")
