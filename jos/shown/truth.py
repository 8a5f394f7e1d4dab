"""The truth about a job's predictions, as a user gives it, and the scores that come of it.

Pure. May import: jos.core. Tests: tests/unit/test_plots.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jos.core.errors import BadRequest

if TYPE_CHECKING:
    import pandas


def truth_of(frame: pandas.DataFrame, given: Mapping[str, Sequence[Any]] | Sequence[Any]) -> list[str | None]:
    """One label for each row of a job's frame; None where it is not known (None, NaN or an empty text was given).

    given: a label for each row, or the name of each input file -> a label for each of its rows, in order; files that
    are left out are not known. Raises BadRequest that says how many labels were expected.
    """
    if isinstance(given, Mapping):
        return _by_file(frame, given)
    labels = [_label(one) for one in given]
    if len(labels) != len(frame):
        raise BadRequest(
            f"the truth has {len(labels):,} labels for {len(frame):,} predictions.",
            suggestion="Give one for each row of to_pandas(), None where it is not known.",
        )
    return labels


def _by_file(frame: pandas.DataFrame, given: Mapping[str, Sequence[Any]]) -> list[str | None]:
    rows = {str(name): list(at) for name, at in frame.groupby("input_file", sort=False).indices.items()}
    if unknown := sorted(set(given) - set(rows)):
        raise BadRequest(
            f"the truth tells of {unknown[0]!r}, and the job has no results of such a file.",
            suggestion=f"Its files: {', '.join(list(rows)[:5])}",
        )
    labels: list[str | None] = [None] * len(frame)
    for name, own in given.items():
        if len(own) != len(rows[name]):
            raise BadRequest(
                f"the truth has {len(own):,} labels for the {len(rows[name]):,} predictions of {name}.",
                suggestion="Give one for each of its windows, in order, None where it is not known.",
            )
        for at, label in zip(rows[name], own, strict=True):
            labels[at] = _label(label)
    return labels


def _label(value: Any) -> str | None:
    return None if value is None or value == "" or value != value else str(value)


def labels_of(said: Iterable[Any], truth: Iterable[Any] | None) -> list[str]:
    """All classes, in order."""
    return sorted({str(label) for label in said} | {str(label) for label in truth or () if label is not None})


def tally(said: Sequence[Any], truth: Sequence[Any], classes: Sequence[str]) -> list[list[int]]:
    """How often [true class][said class] came; what is not known does not count."""
    place = {label: at for at, label in enumerate(classes)}
    counts = [[0] * len(classes) for _ in classes]
    for one, true in zip(said, truth, strict=True):
        if true is not None:
            counts[place[true]][place[str(one)]] += 1
    return counts


def scores(counts: Sequence[Sequence[int]]) -> tuple[float, float]:
    """(accuracy, macro-F1 over the classes that occur in the truth); NaN of nothing."""
    whole = sum(map(sum, counts))
    if not whole:
        return float("nan"), float("nan")
    f1 = [2 * row[at] / (sum(row) + sum(other[at] for other in counts)) for at, row in enumerate(counts) if sum(row)]
    return sum(row[at] for at, row in enumerate(counts)) / whole, sum(f1) / len(f1)
