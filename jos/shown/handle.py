"""What a handle on a job shows of itself, whichever door it came by.

May import: jos.core, jos.wire, jos.shown. Tests: tests/unit/test_shown.py, tests/e2e/test_notebook.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jos import wire
from jos.core.errors import BadRequest
from jos.core.model import Progress
from jos.shown import page, plots, text
from jos.shown.look import Look
from jos.shown.plots import CONFUSION, KINDS, LEARNING, PREDICTIONS, THROUGHPUT
from jos.shown.truth import truth_of
from jos.shown.watching import Bundle, Cell, cell_number

if TYPE_CHECKING:
    import pandas

Labels = Mapping[str, Sequence[Any]] | Sequence[Any]


class Shown(ABC):
    """The common face of `jos.Job` and the client's `Job`."""

    _told_in: int | None = None  # the cell in which `wait` showed it

    @abstractmethod
    def look(self) -> Look:
        """The job as it is now, as its page and its lines show it."""

    @abstractmethod
    def to_pandas(self) -> pandas.DataFrame:
        """All outputs as one DataFrame, in the order of the inputs, with the column `input_file`."""

    @abstractmethod
    def _curve(self) -> plots.Curve: ...

    @abstractmethod
    def _steps(self) -> Sequence[Progress | wire.Progress]:
        """Progress entries of a training, oldest first."""

    def bundle(self) -> Bundle:
        """The job as it is now, for a notebook and for a terminal."""
        look = self.look()
        return {"text/plain": text.text(look), "text/html": page.html(look)}

    @contextmanager
    def _watched(self) -> Iterator[Cell]:
        """The live page of the cell that waits. A handle that ends the same cell does not show it once more."""
        yield Cell(self.bundle)
        self._told_in = cell_number()

    def _told(self) -> bool:
        return self._told_in is not None and self._told_in == cell_number()

    def _repr_mimebundle_(self, **_options: Any) -> Bundle:
        return {"text/plain": repr(self)} if self._told() else self.bundle()

    def _repr_html_(self) -> str | None:
        return None if self._told() else page.html(self.look())

    def plot(self, *kinds: str, truth: Labels | None = None) -> Any:
        """A matplotlib Figure: it shows itself in a notebook, and has `savefig("picture.png")`; also while it runs.

        kinds: "throughput", "predictions" (over time), "confusion", "learning"; without any, all that the job has.
        truth: a label for each row of `to_pandas()`, or input file -> a label for each of its rows; None where it is
        not known. Raises BadRequest for what the job does not have, and without matplotlib.
        """
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise BadRequest(f"there is no plot {unknown[0]!r}.", suggestion=f"There are {', '.join(KINDS)}.")
        training = self.look().job.pipeline_type == "training"
        frame = None if training else self._classified(kinds)
        labels = truth_of(frame, truth) if frame is not None and truth is not None else None
        had = [LEARNING] if training else [THROUGHPUT]
        had += [PREDICTIONS] if frame is not None else []
        had += [CONFUSION] if labels is not None and any(label is not None for label in labels) else []
        for kind in kinds:
            if kind not in [*had, THROUGHPUT]:
                raise BadRequest(f"there is nothing for the plot {kind!r} of this job.", suggestion=_LACKS[kind])
        wanted = kinds or had
        return plots.picture(
            wanted,
            curve=self._curve() if THROUGHPUT in wanted else None,
            entries=self._steps() if LEARNING in wanted else (),
            frame=frame,
            truth=labels,
        )

    def _classified(self, kinds: Sequence[str]) -> pandas.DataFrame | None:
        """The results, if they are wanted and are classes."""
        if kinds and not {PREDICTIONS, CONFUSION} & set(kinds):
            return None
        frame = self.to_pandas()
        return frame if len(frame) and plots.column_of(frame) is not None else None


_LACKS = {
    PREDICTIONS: "It needs results with a column of classes, Prediction.",
    CONFUSION: "It needs results with a column of classes, and truth=…, a label for each row of to_pandas().",
    LEARNING: "Only a training learns.",
}
