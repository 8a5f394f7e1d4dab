"""Labelled files of a training job: which of them are held out for validation, and pieces of them to fit on.

Without evaluation files some of the training data validates, and never windows that overlap others that train:
    a class of three files or more   the last fifth of its files, in the order of the request
    of one or two files              the last fifth of each file's windows; those that share rows with them are unused

Fitting reads a bounded number of rows, however many and large the files: evenly taken, the same on every machine.

May import: jos.worker, actors.{choose,csv_windows}, numpy. Tests: tests/unit/test_labelled.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from actors import csv_windows
from actors.choose import Recording
from actors.csv_windows import count_windows
from jos.worker import InputInvalid, JobImpossible, Source

Floats = npt.NDArray[np.float64]

HELD_OUT = 5  # one part in so many validates
MOST_FILES = 32  # of a class, to fit on
MOST_VALUES = 1 << 23  # in all recordings to fit on: 64 MB
MOST_BYTES = 64 << 20  # of a file that are parsed for it, however many columns nobody asks for
PIECES = 8  # at most, of a file that is longer than its share


class Use(Enum):
    """What a training file is for."""

    TRAIN = "all of it trains"
    VALIDATE = "all of it validates"
    BOTH = "its last part validates"


@dataclass(frozen=True)
class Cutting:
    """How files are cut into windows."""

    data_columns: tuple[str, ...]
    window: int
    step: int

    def windows(self, rows: int) -> int:
        return count_windows(rows, self.window, self.step)

    def rows(self, windows: int) -> int:
        """That so many windows cover."""
        return (windows - 1) * self.step + self.window if windows else 0

    def split(self, windows: int) -> tuple[int, int]:
        """Windows [0, a) of a file train and [b, windows) validate, and share no row; (windows, windows) where the
        file is too short for both."""
        first = windows - windows // HELD_OUT
        train = count_windows(first * self.step, self.window, self.step)
        return (train, first) if train and first < windows else (windows, windows)


def label_of(source: Source, port: str) -> str:
    """The class of a file. Raises JobImpossible where it has none."""
    label = str(source.metadata.get("class", ""))
    if not label.strip():
        raise JobImpossible(
            f"The file {source.filename} on the port {port} has no class.", suggestion="Set metadata.class."
        )
    return label


def uses(labels: Sequence[str]) -> list[Use]:
    """What each training file is for when nothing else validates; `labels` in the order of the request."""
    found = [Use.BOTH] * len(labels)
    for label in set(labels):
        files = [at for at, one in enumerate(labels) if one == label]
        if len(files) >= 3:
            out = max(1, len(files) // HELD_OUT)
            for nth, at in enumerate(files):
                found[at] = Use.TRAIN if nth < len(files) - out else Use.VALIDATE
    return found


@dataclass
class Sample:
    """Recordings to fit on; several may be pieces of one file, with its name."""

    train: list[Recording] = field(default_factory=list)
    validation: list[Recording] = field(default_factory=list)


@dataclass(frozen=True)
class Labelled:
    """A file with its class and what it is for. `name` tells files apart, the same in every job of the same files."""

    name: str
    source: Source
    label: str
    use: Use


def sample(files: Sequence[Labelled], cutting: Cutting) -> Sample:
    """Pieces of the files. Raises JobImpossible that names the class of which there is no window to train on."""
    found = Sample()
    alike: dict[tuple[bool, str], list[Labelled]] = {}
    for file in files:
        alike.setdefault((file.use is Use.VALIDATE, file.label), []).append(file)
    looked_at = sum(min(len(some), MOST_FILES) for some in alike.values())
    share = MOST_VALUES // max(looked_at * len(cutting.data_columns), 1)
    for (validates, label), some in alike.items():
        trained = len(found.train)
        problems = _sample_alike(some, cutting, share, found)
        if not validates and len(found.train) == trained:
            raise no_window(label, cutting, problems)
    return found


def _sample_alike(files: Sequence[Labelled], cutting: Cutting, share: int, found: Sample) -> list[str]:
    """Files of one class and use: MOST_FILES of them, and more only as long as they give nothing. Returns why some
    gave nothing."""
    before, problems = len(found.train), list[str]()
    for nth, file in enumerate(_evenly_first(files)):
        if nth >= MOST_FILES and (file.use is Use.VALIDATE or len(found.train) > before):
            break
        try:
            rows = _sample_file(file, cutting, share, found)
        except InputInvalid as error:  # it fails alone, when it is planned
            problems.append(error.message)
        else:
            if rows < cutting.window:
                problems.append(f"{file.source.filename} has {rows} rows.")
    return problems


def no_window(label: str, cutting: Cutting, problems: Sequence[str]) -> JobImpossible:
    why = f" {problems[0]}" if problems else ""
    return JobImpossible(
        f"The training files of class {label!r} hold no window of {cutting.window} rows that can be used.{why}",
        suggestion="Give longer or sounder files, or a smaller window_size.",
    )


def _evenly_first(files: Sequence[Labelled]) -> Iterator[Labelled]:
    """MOST_FILES of them, evenly taken, then the others."""
    first = set(np.linspace(0, len(files) - 1, min(len(files), MOST_FILES)).astype(int).tolist())
    yield from (file for at, file in enumerate(files) if at in first)
    yield from (file for at, file in enumerate(files) if at not in first)


def _sample_file(file: Labelled, cutting: Cutting, share: int, found: Sample) -> int:
    """Adds the file's pieces; returns how many rows it has."""
    layout = csv_windows.scan(file.source)
    numeric = [layout.header.find(name, file.source.filename) for name in cutting.data_columns]
    windows = cutting.windows(layout.rows)
    share = min(share, MOST_BYTES * layout.rows // max(layout.num_bytes, 1))
    train, first = (windows, windows) if file.use is Use.TRAIN else (0, 0)
    if file.use is Use.BOTH:
        train, first = cutting.split(windows)
    for recordings, start, end in (
        (found.train, 0, layout.rows if file.use is Use.TRAIN else cutting.rows(train)),
        (found.validation, first * cutting.step, layout.rows),
    ):
        if end - start >= cutting.window:
            for first_row, last in _pieces(start, end, share, cutting.window):
                rows = _rows(file.source, layout, numeric, first_row, last)
                recordings.append(Recording(file.name, file.label, rows))
    return layout.rows


def _pieces(start: int, end: int, share: int, window: int) -> list[tuple[int, int]]:
    """Rows [start, end), or evenly lying pieces of them that have `share` rows together, and a window each."""
    if end - start <= max(share, window):
        return [(start, end)]
    pieces = min(PIECES, max(share // window, 1))
    size = max(share // pieces, window)
    begins = np.linspace(start, end - size, pieces).astype(int).tolist()
    return [(begin, begin + size) for begin in begins]


def _rows(source: Source, layout: csv_windows.Layout, numeric: Sequence[int], start: int, end: int) -> Floats:
    """Rows [start, end) as (channels, rows). Bad cells are no finite numbers."""
    byte_start, byte_end, skip, line = layout.locate(start, end)
    where = (source.filename, start - skip + 1, line, layout.header)
    data = source.read_range(byte_start, byte_end)
    rows = csv_windows.parse(data, len(layout.header.columns), numeric, numeric[0], where)
    values = rows.values[:, skip : skip + end - start]
    if values.shape[1] < end - start:
        raise InputInvalid(f"{source.filename} ends early: it has changed while it was read.")
    return values
