"""Pictures of a job: how fast it went, what it said over time, how right that was, and how a training learned.

A picture is a matplotlib Figure that shows itself in a notebook and has `savefig`; nothing of pyplot's state is
touched. May import: matplotlib and pandas when one is drawn, jos.core. Tests: tests/unit/test_plots.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jos import wire
from jos.core.model import Progress
from jos.shown.extras import needed
from jos.shown.truth import labels_of, scores, tally

if TYPE_CHECKING:
    import pandas

THROUGHPUT, PREDICTIONS, CONFUSION, LEARNING = "throughput", "predictions", "confusion", "learning"
KINDS = (THROUGHPUT, PREDICTIONS, CONFUSION, LEARNING)
BUCKETS = 40
FILES = 4  # whose predictions are drawn
POINTS = 20_000  # of one file; of more, every n-th
CLASSES = 20  # of free text there are more, and no plot
BLUE, GREY, RED, GREEN = "#3182bd", "#999999", "#d73027", "#1a9850"


@dataclass(frozen=True)
class Curve:
    """How many tasks were done, and how many of them failed, by the seconds since the job began; both cumulative."""

    seconds: Sequence[float]
    done: Sequence[int]
    failed: Sequence[int]


def curve_of(points: Sequence[wire.TracePoint], bucket_seconds: float) -> Curve:
    """Points of the API's traces, one at the end of each bucket. Every kind of work counts."""
    return Curve(
        [(at + 1) * bucket_seconds for at in range(len(points))],
        [sum(n["success"] + n["failed"] for n in point.items.values()) for point in points],
        [sum(n["failed"] for n in point.items.values()) for point in points],
    )


def throughput(axes: Any, curve: Curve) -> None:
    seconds, done = [0.0, *curve.seconds], [0, *curve.done]
    spans = list(pairwise(zip(seconds, done, strict=True)))
    rates = [(later[1] - before[1]) / max(later[0] - before[0], 1e-9) for before, later in spans]
    axes.fill_between(seconds, [*rates, 0.0], step="post", color=BLUE, alpha=0.35, linewidth=0)
    axes.set(title="throughput", xlabel="seconds", ylabel="tasks/s", ylim=(0, None))
    beside = axes.twinx()
    beside.plot(seconds, done, color=GREY)
    if any(curve.failed):
        beside.plot(seconds, [0, *curve.failed], color=RED, label="failed")
        beside.legend(loc="upper left", frameon=False)
    beside.set(ylabel="tasks done", ylim=(0, None))


def predictions(axes: Sequence[Any], frame: pandas.DataFrame, column: str, truth: Sequence[Any] | None) -> None:
    """What was said of each window, file by file: a dot in the row of its class, a red cross where the truth, which is
    the green line, is another."""
    classes = labels_of(frame[column], truth)
    place = {label: at for at, label in enumerate(classes)}
    groups = list(frame.groupby("input_file", sort=False).indices.items())
    for own, (name, rows) in zip(axes, groups, strict=False):
        kept = rows[:: len(rows) // POINTS + 1]
        time, what = _time(frame, column, kept)
        said = [str(label) for label in frame[column].iloc[kept]]
        true = [None if truth is None else truth[row] for row in kept]
        if truth is not None:
            line = [place[t] if t is not None else float("nan") for t in true]
            own.plot(time, line, color=GREEN, alpha=0.4, linewidth=6, drawstyle="steps-mid", label="truth")
        for wrong, marker, colour in ((False, "o", BLUE), (True, "x", RED)):
            at = [n for n, (s, t) in enumerate(zip(said, true, strict=True)) if (t is not None and t != s) is wrong]
            label = "wrong" if wrong else "predicted"
            where = [time[n] for n in at], [place[said[n]] for n in at]
            own.scatter(*where, c=colour, marker=marker, s=24 if wrong else 8, zorder=3, label=label)
        own.set_yticks(range(len(classes)), classes)
        own.set_title(name, loc="left")
        own.set(ylim=(-0.5, len(classes) - 0.5))
        own.set_xlabel(what if own is axes[-1] else "")
    if truth is not None:
        axes[0].legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    if len(groups) > len(axes):
        axes[-1].set_xlabel(f"{what} (the first {len(axes)} of {len(groups):,} files)")


def confusion(axes: Any, said: Sequence[Any], truth: Sequence[Any]) -> None:
    classes = labels_of(said, truth)
    counts = tally(said, truth, classes)
    accuracy, macro_f1 = scores(counts)
    axes.imshow(counts, cmap="Blues")
    most = max(max(row) for row in counts)
    for true, row in enumerate(counts):
        for at, count in enumerate(row):
            axes.text(at, true, f"{count:,}", ha="center", va="center", color="white" if 2 * count > most else "black")
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="truth", title=f"accuracy {accuracy:.3f}, macro-F1 {macro_f1:.3f}")


def learning(axes: Any, entries: Sequence[Progress | wire.Progress]) -> None:
    """Losses by the left scale, scores between 0 and 1 by the right one, over the steps."""
    names = sorted({name for e in entries for name in e.metrics if _is_number(e.metrics[name])})
    beside = axes.twinx()
    colours = iter([BLUE, "#e08214", "#542788", GREY])
    for name in (n for n in names if "loss" in n):
        axes.plot(*_series(entries, name), color=next(colours, GREY), label=name)
    greens = iter([GREEN, RED, "#542788", GREY])
    for name in (n for n in names if n.endswith(("f1", "accuracy", "recall"))):
        beside.plot(*_series(entries, name), color=next(greens, GREY), label=name, linestyle="--")
    axes.set(title="learning", xlabel="step", ylabel="loss")
    beside.set(ylabel="score", ylim=(0, 1.02))
    lines = [*axes.lines, *beside.lines]
    if lines:
        axes.legend(lines, [line.get_label() for line in lines], loc="center right", frameon=False)


def _series(entries: Sequence[Progress | wire.Progress], name: str) -> tuple[list[int], list[float]]:
    known = [(e.step or 0, e.metrics[name]) for e in entries if _is_number(e.metrics.get(name))]
    return [step for step, _ in known], [value for _, value in known]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _time(frame: pandas.DataFrame, column: str, rows: Any) -> tuple[Any, str]:
    """(where the points lie, what that is): the column of times if it holds numbers, else the windows by number."""
    pandas = needed("pandas", "a plot")
    for name in frame.columns[1 : list(frame.columns).index(column)]:
        if pandas.api.types.is_numeric_dtype(frame[name]):
            return frame[name].iloc[rows].tolist(), str(name)
    return range(len(rows)), "window" if len(rows) < POINTS else "windows, thinned out"


def column_of(frame: pandas.DataFrame) -> str | None:
    """The column of predicted classes; None where there are none, or only free text."""
    for name in ("Prediction", "prediction"):
        if name in frame.columns and 0 < frame[name].nunique() <= CLASSES:
            return name
    return None


def picture(
    kinds: Sequence[str],
    *,
    curve: Curve | None = None,
    entries: Sequence[Progress | wire.Progress] = (),
    frame: pandas.DataFrame | None = None,
    truth: Sequence[str | None] | None = None,
) -> Any:
    """The figure of these kinds, one below the other. Predictions and confusion need `frame`, confusion `truth`."""
    files = min(frame["input_file"].nunique(), FILES) if frame is not None else 0
    heights = {THROUGHPUT: 2.4, PREDICTIONS: 1.5 * files + 0.4, CONFUSION: 3.6, LEARNING: 3.0}
    own = [heights[kind] for kind in kinds]
    figure = _figure_class()(figsize=(9, sum(own)), layout="constrained", facecolor="white")
    parts = figure.subfigures(len(kinds), 1, height_ratios=own, squeeze=False)[:, 0]
    for kind, part in zip(kinds, parts, strict=True):
        if kind == THROUGHPUT and curve is not None:
            throughput(part.subplots(), curve)
        elif kind == LEARNING:
            learning(part.subplots(), entries)
        elif frame is not None and (column := column_of(frame)) is not None:
            if kind == PREDICTIONS:
                predictions(part.subplots(files, 1, squeeze=False)[:, 0], frame, column, truth)
            elif truth is not None:
                confusion(part.subplots(), frame[column].astype(str).tolist(), truth)
    return figure


@cache
def _figure_class() -> Any:
    """matplotlib's Figure, which a notebook then shows however it was told to show others."""
    figures = needed("matplotlib.figure", "a plot")

    class Picture(figures.Figure):  # type: ignore[misc, name-defined]
        def _repr_png_(self) -> bytes:
            out = BytesIO()
            self.savefig(out, format="png", dpi=100)
            return out.getvalue()

    return Picture
