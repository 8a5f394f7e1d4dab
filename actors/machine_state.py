"""machine-state-classification: which state a machine is in, window by window.

Sensor windows are encoded and compared with the windows of labelled example files ("n-shots"); the k nearest decide.
Every index learns the same scaling, encoder and neighbours from the same n-shots, without chance.

May import: jos.worker, jos.core.spans, actors.*, numpy, torch, pyarrow, stdlib.
Tests: tests/unit/test_machine_state.py. Pipeline: pipelines/machine-state-classification.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from actors import csv_windows, encoders, knn
from actors.csv_windows import Header, Windows, count_windows
from jos.core.spans import cut
from jos.worker import InputInvalid, JobImpossible, Output, Plan, Source, Span, Worker

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]

N_SHOTS, CHECKPOINT = "worker.n_shots", "worker.fine_tune_checkpoint"
PREDICTION = "Prediction"  # the column of the results that clients read
SPAN_BYTES = 64 << 20  # of input, however cheap its windows are
CALL = 1024  # windows in one call of `compute` at least: fewer leave the machine waiting for Python
BLOCK = 128  # windows at once on a CPU, padded: fits the cache, and one shape always rounds in one way
CLIP = 8.0  # in standard deviations of the n-shots: a broken sensor must not outweigh all others
DECIMALS = 4
REMEMBERED = 64  # headers of files


@dataclass(frozen=True)
class Settings:
    """The configuration of the component, checked."""

    model_type: str
    batch_size: int
    flush_every: int
    data_columns: tuple[str, ...]
    timestamp_column: str
    window_size: int
    step_size: int
    n_neighbors: int
    metric: str
    weights: str
    normalize_embeddings: bool
    span_seconds: float  # work of one CPU core in a span
    fit_windows: int  # the encoder is fitted on at most so many, evenly taken

    @property
    def part_tasks(self) -> int:
        return self.batch_size * self.flush_every

    @property
    def encoder(self) -> str:
        """The encoder that `model_type` asks for; the hosted service's own models are not open."""
        return encoders.DEFAULT_ENCODER if self.model_type.startswith("omega") else self.model_type

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        reader, classifier = config.get("reader_config", {}), config.get("classifier_config", {})
        operations = config.get("operations", {})
        missing = [key for key in ("data_columns", "timestamp_column", "window_size") if not reader.get(key)]
        if missing:
            raise JobImpossible(f"reader_config lacks {', '.join(missing)}.")
        settings = cls(
            model_type=config.get("model_type", encoders.DEFAULT_ENCODER),
            batch_size=int(config.get("batch_size", 32)),
            flush_every=int(config.get("flush_every_n_iteration", 100)),
            data_columns=tuple(reader["data_columns"]),
            timestamp_column=reader["timestamp_column"],
            window_size=int(reader["window_size"]),
            step_size=int(reader.get("step_size", 1)),
            n_neighbors=int(classifier.get("n_neighbors", 5)),
            metric=classifier.get("metric", "euclidean"),
            weights=classifier.get("weights", "uniform"),
            normalize_embeddings=bool(classifier.get("normalize_embeddings", False)),
            span_seconds=float(operations.get("span_seconds", 0.5)),
            fit_windows=int(operations.get("fit_windows", 1024)),
        )
        settings.check()
        return settings

    def check(self) -> None:
        if self.encoder not in encoders.ENCODERS:
            known = ", ".join(sorted(encoders.ENCODERS))
            raise JobImpossible(f"Unknown model_type {self.model_type!r}.", suggestion=f"Known: {known}, omega_*.")
        numbers = (self.batch_size, self.flush_every, self.step_size, self.n_neighbors)
        if min(numbers) < 1 or self.metric not in knn.METRICS or self.weights not in knn.WEIGHTS:
            raise JobImpossible(f"The configuration is out of range: {self}.")
        if self.timestamp_column == PREDICTION:
            raise JobImpossible(
                f"The timestamp column cannot be called {PREDICTION!r}: the results have a column of that name.",
                suggestion="Rename the column in the files, or name another as reader_config.timestamp_column.",
            )
        if self.window_size < encoders.SHORTEST_WINDOW:
            raise JobImpossible(f"window_size must be at least {encoders.SHORTEST_WINDOW}, not {self.window_size}.")


@dataclass(frozen=True)
class Scaling:
    """Per channel, from the rows of all n-shots; blind to their outermost hundredths, so that a placeholder such
    as -999.25 in a few rows does not flatten everything else."""

    centre: Floats
    spread: Floats

    @classmethod
    def of(cls, rows: Floats) -> Scaling:
        low, high = np.quantile(rows, [0.01, 0.99], axis=1, keepdims=True)
        usual = np.clip(rows, low, high)
        spread, whole = usual.std(axis=1, keepdims=True), rows.std(axis=1, keepdims=True)
        spread = np.where(spread > 0, spread, np.where(whole > 0, whole, 1.0))
        return cls(usual.mean(axis=1, keepdims=True), spread)

    def apply(self, rows: Floats) -> Floats32:
        scaled = np.clip((rows - self.centre) / self.spread, -CLIP, CLIP)
        return np.nan_to_num(scaled).astype(np.float32)  # a bad cell: its windows are blanked later


class MachineStateWorker(Worker):
    def setup(self) -> None:
        self.settings = Settings.of(self.context.config)
        # Small batches of the user's are taken several at once; the parts of the output keep their size.
        self.batch_size = CALL * -(-self.settings.batch_size // CALL)
        self.headers: OrderedDict[str, tuple[Header, list[int], int]] = OrderedDict()
        self.block = BLOCK if self.context.device == "cpu" else None
        torch.set_num_threads(max(1, self.context.threads))
        torch.backends.cudnn.allow_tf32 = False  # ten bits of mantissa would decide who wins
        torch.backends.cudnn.deterministic = True
        if self.settings.encoder != self.settings.model_type:
            self.context.warn(
                "model.substituted",
                f"{self.settings.model_type} is not an open model: the {self.settings.encoder} encoder runs instead.",
                model_type=self.settings.model_type,
                encoder=self.settings.encoder,
            )
        if self.context.inputs.get(CHECKPOINT):
            raise JobImpossible("This version cannot start from a fine-tuned checkpoint.")
        self._learn(read_references(self.context.inputs.get(N_SHOTS, ()), self.settings))

    def _learn(self, references: Mapping[str, list[Floats]]) -> None:
        settings = self.settings
        self.classes = list(references)
        self.scaling = Scaling.of(np.concatenate([rows for files in references.values() for rows in files], axis=1))
        windows = [
            (Windows(self.scaling.apply(rows), settings.window_size, settings.step_size), label)
            for label, files in enumerate(references.values())
            for rows in files
            if rows.shape[1] >= settings.window_size
        ]
        every = -(-sum(len(some) for some, _ in windows) // self.settings.fit_windows)
        sample = np.concatenate([some[:][::every] for some, _ in windows])
        channels = len(settings.data_columns)
        make = encoders.ENCODERS[settings.encoder]
        self.encoder = make(channels, settings.window_size, self.context.device)
        with torch.inference_mode():
            self.encoder.fit(torch.from_numpy(sample))
            embeddings = [torch.cat(list(self._encoded(some[:])))[: len(some)] for some, _ in windows]
        self.neighbours = knn.NearestNeighbours(
            torch.cat(embeddings),
            np.concatenate([np.full(len(some), label) for some, label in windows]),
            len(self.classes),
            n_neighbors=settings.n_neighbors,
            metric=settings.metric,
            weights=settings.weights,
            normalize_embeddings=settings.normalize_embeddings,
        )
        self.table = _Table(self.classes, settings.timestamp_column)

    def plan(self, source: Source) -> Plan:
        settings = self.settings
        layout = csv_windows.scan(source)
        self._columns(source, layout.header)
        windows = count_windows(layout.rows, settings.window_size, settings.step_size)
        message = ""
        if not windows:
            message = f"{source.filename} has {layout.rows} rows, fewer than one window of {settings.window_size}."
        bounds = cut(windows, self._span_tasks(layout, windows), settings.part_tasks)
        hints = [
            layout.locate(start * settings.step_size, (end - 1) * settings.step_size + settings.window_size)
            for start, end in itertools.pairwise(bounds)
        ]
        return Plan(
            bounds=bounds,
            hints=hints,
            part_tasks=settings.part_tasks,
            output_name="{input_id}_output_{stem}_part_{part}.csv",
            header=self.table.header,
            message=message,
        )

    def _span_tasks(self, layout: csv_windows.Layout, windows: int) -> int:
        settings = self.settings
        tasks = int(self.settings.span_seconds / (self.encoder.seconds() + self.neighbours.seconds()))
        row_bytes = layout.num_bytes / max(layout.rows, 1)
        tasks = min(tasks, int(SPAN_BYTES / (row_bytes * settings.step_size)))
        part = min(settings.part_tasks, max(windows, 1))
        if part <= 1.5 * tasks:  # little more than a span: one span, and nobody has to put the part together
            return settings.part_tasks
        return min(max(tasks, settings.batch_size), part)

    def _columns(self, source: Source, header: Header | None = None) -> tuple[Header, list[int], int]:
        """A file's header and where our columns are in it. Remembered: each span of the file asks."""
        known = self.headers.get(source.id)
        if known is None:
            header = header or csv_windows.read_header(source)
            numeric = [header.find(name, source.filename) for name in self.settings.data_columns]
            known = header, numeric, header.find(self.settings.timestamp_column, source.filename)
            self.headers[source.id] = known
            if len(self.headers) > REMEMBERED:
                self.headers.popitem(last=False)
        return known

    def read(self, source: Source, span: Span) -> Windows:
        size, step = self.settings.window_size, self.settings.step_size
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
        timestamps = rows.timestamps[start : end - size + 1]
        if step > 1:
            timestamps = timestamps.take(pa.array(np.arange(0, len(timestamps), step)))
        return Windows(self.scaling.apply(rows.values[:, start:end]), size, step, timestamps, failures)

    def compute(self, batch: Floats32) -> tuple[npt.NDArray[np.int64], Floats]:
        with torch.inference_mode():
            parts = [self.neighbours.scores(block) for block in self._encoded(batch)]
            state, score = (torch.cat(some)[: len(batch)].cpu().numpy() for some in zip(*parts, strict=True))
        return state, score

    def _encoded(self, batch: Floats32) -> Iterator[torch.Tensor]:
        """Embeddings, block by block, those of the padding at the end included."""
        block = self.block or len(batch)
        for at in range(0, len(batch), block):
            some = batch[at : at + block]
            if len(some) < block:
                some = np.concatenate([some, np.zeros((block - len(some), *some.shape[1:]), np.float32)])
            yield self.encoder.encode(torch.from_numpy(np.ascontiguousarray(some)))

    def write(
        self, source: Source, span: Span, data: Windows, results: list[tuple[npt.NDArray[np.int64], Floats]]
    ) -> Output:
        state = np.concatenate([state for state, _ in results])
        score = np.concatenate([score for _, score in results])
        body, unreadable = self.table.rows(data, state, score)
        failures = dict(data.failures)
        for at in unreadable:
            failures.setdefault(at, f"{source.filename}: the timestamp of window {span.start + at} is not UTF-8 text")
        return Output(body, {span.start + at: why for at, why in failures.items()})

    def failed(self, source: Source, span: Span, message: str) -> bytes:
        return self.table.blank * len(span)


def read_references(sources: Sequence[Source], settings: Settings) -> dict[str, list[Floats]]:
    """The rows of the n-shots by class, classes sorted; or JobImpossible that says what to mend."""
    found: dict[str, list[Floats]] = {}
    for source in sources:
        label = str(source.metadata.get("class", ""))
        if not label.strip():
            raise JobImpossible(f"The n-shot file {source.filename} has no class.", suggestion="Set metadata.class.")
        found.setdefault(label, []).append(_reference_rows(source, label, settings))
    if len(found) < 2:
        raise JobImpossible(
            f"Classification needs n-shot files of two or more classes; there are {_named(list(found))}.",
            suggestion=f"Give at least one labelled file for each class on the port {N_SHOTS}.",
        )
    size, step = settings.window_size, settings.step_size
    windows = {label: sum(count_windows(rows.shape[1], size, step) for rows in found[label]) for label in found}
    for label, count in sorted(windows.items()):
        if not count:
            longest = max(rows.shape[1] for rows in found[label])
            raise JobImpossible(
                f"The n-shot files of class {label!r} hold no window: a window takes {size} rows, and the longest "
                f"of the {len(found[label])} file(s) has {longest}.",
                suggestion="Give longer files or a smaller window_size.",
            )
    if sum(windows.values()) < settings.n_neighbors:
        counts = ", ".join(f"{label!r} {count}" for label, count in sorted(windows.items()))
        raise JobImpossible(
            f"n_neighbors is {settings.n_neighbors}, but the n-shot files hold only {sum(windows.values())} "
            f"windows of {size} rows ({counts}).",
            suggestion="Give longer or more n-shot files, a smaller window_size or step_size, or fewer neighbours.",
        )
    return {label: found[label] for label in sorted(found)}


def _reference_rows(source: Source, label: str, settings: Settings) -> Floats:
    of = f"n-shot file of class {label!r}"
    try:
        layout = csv_windows.scan(source)
        numeric = [layout.header.find(name, source.filename) for name in settings.data_columns]
    except InputInvalid as error:
        raise JobImpossible(f"{error.message} It is an {of}.", suggestion=error.suggestion) from None
    if not layout.rows:
        return np.zeros((len(numeric), 0))
    begin, end, _, line = layout.locate(0, layout.rows)
    where = (source.filename, 1, line, layout.header)
    # n-shots need no timestamps: any column will do
    rows = csv_windows.parse(source.read_range(begin, end), len(layout.header.columns), numeric, numeric[0], where)
    if rows.bad:
        more = f" ({len(rows.bad)} such rows)" if len(rows.bad) > 1 else ""
        raise JobImpossible(
            f"{rows.bad[min(rows.bad)]}{more}, in an {of}.",
            suggestion="Correct the cell, or cut the row out of this file.",
        )
    return rows.values


def _named(names: Sequence[str]) -> str:
    return "none" if not names else f"only {', '.join(map(repr, sorted(names)))}"


class _Table:
    """Writes results as CSV: `timestamp, Prediction, p_<class> …`, whole columns at a time."""

    def __init__(self, classes: Sequence[str], timestamp_column: str) -> None:
        self.header = _csv_line([timestamp_column, PREDICTION, *(f"p_{label}" for label in classes)])
        self.blank = b"," * (len(classes) + 1) + b"\n"
        self.names = pa.array([_csv_line([label]).decode()[:-1] for label in classes] + [""])
        one = 10**DECIMALS
        numbers = [f"{number / one:.{DECIMALS}f}" for number in range(one + 1)] + [""]
        self.numbers, self.last = pa.array(numbers), pa.array([number + "\n" for number in numbers])

    def rows(self, data: Windows, state: npt.NDArray[np.int64], score: Floats) -> tuple[bytes, list[int]]:
        """The CSV text, and the windows whose timestamp is no text."""
        timestamps, unreadable = _texts(data.timestamps)
        tenths = np.rint(score * 10**DECIMALS).astype(np.int64)
        blank = [*data.failures, *unreadable]
        state[blank], tenths[blank] = len(self.names) - 1, len(self.numbers) - 1
        columns = [self.numbers.take(pa.array(column)) for column in tenths.T[:-1]]
        columns.append(self.last.take(pa.array(tenths[:, -1])))
        lines = pc.binary_join_element_wise(timestamps, self.names.take(pa.array(state)), *columns, ",")
        return b"".join(
            [pc.binary_join(pa.ListArray.from_arrays([0, len(lines)], lines), "")[0].as_buffer()]
        ), unreadable


def _texts(cells: pa.Array) -> tuple[pa.Array, list[int]]:
    """Timestamps as CSV fields, quoted only where they must be."""
    unreadable: list[int] = []
    try:
        texts = cells.cast(pa.string())
    except pa.ArrowInvalid:
        values = [value.decode(errors="replace") for value in cells.to_pylist()]
        unreadable = [at for at, value in enumerate(cells.to_pylist()) if values[at].encode() != value]
        texts = pa.array(values, pa.string())
    special = pc.match_substring_regex(texts, '[,"\r\n]')
    if pc.any(special).as_py():
        doubled = pc.replace_substring(texts, '"', '""')
        texts = pc.if_else(special, pc.binary_join_element_wise('"', doubled, '"', ""), texts)
    return texts, unreadable


def _csv_line(fields: Sequence[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue().encode()
