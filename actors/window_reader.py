"""Sensor files as spans of scaled windows, the same for a job that trains and one that classifies.

May import: jos.worker, actors.csv_windows, numpy, pyarrow. Tests: tests/unit/test_machine_state.py, test_fine_tune.py.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors import csv_windows
from actors.csv_windows import Header, Layout, Windows, count_windows
from jos.worker import InputInvalid, Source, Span

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Scaled = Callable[[Floats], Floats32]

SPAN_BYTES = 64 << 20  # of input, however cheap its windows are
REMEMBERED = 64  # headers of files


class WindowReader:
    """Windows of `window` rows, one each `step` rows, of the columns `data_columns`; `scaled` is asked for the values
    of a piece of a file, (channels, rows)."""

    def __init__(
        self,
        data_columns: Sequence[str],
        window: int,
        step: int,
        scaled: Scaled,
        timestamp_column: str | None = None,
    ) -> None:
        self.data_columns, self.window, self.step = tuple(data_columns), window, step
        self.scaled, self.timestamp_column = scaled, timestamp_column
        self.headers: OrderedDict[str, tuple[Header, list[int], int]] = OrderedDict()

    def scan(self, source: Source) -> tuple[Layout, int]:
        """Where a file's rows are, and how many windows it has. Raises InputInvalid."""
        layout = csv_windows.scan(source)
        self._columns(source, layout.header)
        return layout, count_windows(layout.rows, self.window, self.step)

    def too_short(self, source: Source, layout: Layout, windows: int) -> str:
        """The note on a file without a window; "" for others."""
        if windows:
            return ""
        return f"{source.filename} has {layout.rows} rows, fewer than one window of {self.window}."

    def most_tasks(self, layout: Layout, tasks: int) -> int:
        """`tasks`, or as many as a span may have for its bytes."""
        row_bytes = layout.num_bytes / max(layout.rows, 1)
        return min(tasks, int(SPAN_BYTES / (row_bytes * self.step)))

    def hints(self, layout: Layout, bounds: Sequence[int]) -> list[Any]:
        """For each span which bytes hold it."""
        return [
            layout.locate(start * self.step, (end - 1) * self.step + self.window)
            for start, end in itertools.pairwise(bounds)
        ]

    def read(self, source: Source, span: Span) -> Windows:
        """The span's windows, with the time stamp of the first row of each: without a column of time stamps, its
        number from 1. Windows that touch a bad row are among its failures."""
        size, step = self.window, self.step
        header, numeric, text = self._columns(source)
        byte_start, byte_end, skip, line = span.hint
        first = span.hint_start * step - skip  # the row at byte_start
        rows = csv_windows.parse(
            source.read_range(byte_start, byte_end),
            len(header.columns),
            numeric,
            text,
            (source.filename, first + 1, line, header),
        )
        start, end = span.start * step - first, (span.end - 1) * step + size - first
        if rows.values.shape[1] < end:
            raise InputInvalid(f"{source.filename} ends early: it has changed since it was planned.")
        failures = csv_windows.spoilt_windows(rows.bad, start, len(span), size, step)
        if self.timestamp_column is None:
            numbers = range(span.start * step + 1, (span.end - 1) * step + 2, step)
            timestamps = pa.array([str(number).encode() for number in numbers], pa.binary())
        else:
            timestamps = rows.timestamps[start : end - size + 1]
            if step > 1:
                timestamps = timestamps.take(pa.array(np.arange(0, len(timestamps), step)))
        return Windows(self.scaled(rows.values[:, start:end]), size, step, timestamps, failures)

    def _columns(self, source: Source, header: Header | None = None) -> tuple[Header, list[int], int]:
        """A file's header and where our columns are in it. Remembered: each span of the file asks."""
        known = self.headers.get(source.id)
        if known is None:
            header = header or csv_windows.read_header(source)
            numeric = [header.find(name, source.filename) for name in self.data_columns]
            # where nobody asks for time stamps, any column will do
            text = numeric[0] if self.timestamp_column is None else header.find(self.timestamp_column, source.filename)
            known = header, numeric, text
            self.headers[source.id] = known
            if len(self.headers) > REMEMBERED:
                self.headers.popitem(last=False)
        return known
