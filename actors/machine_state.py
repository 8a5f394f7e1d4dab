"""machine-state-classification: which state a machine is in, window by window.

Sensor windows are encoded and classified: by the k nearest of the windows of labelled example files ("n-shots"), or by
the classifier of a fine-tuned checkpoint, which then brings window, columns and scaling. Every index learns the same
from the same n-shots, without chance.

May import: jos.worker, jos.core.spans, actors.*, numpy, torch, pyarrow, stdlib.
Tests: tests/unit/test_machine_state.py, test_machine_state_checkpoint.py.
Pipeline: pipelines/machine-state-classification.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from actors import csv_windows, encoders, knn
from actors.choose import AUTO, Recording, choose
from actors.csv_windows import Windows, count_windows
from actors.embedder import Embedder, Recipe
from actors.fitting import encoder_of, shared, steady, tell_substitute
from actors.head import Head
from actors.knn import NearestNeighbours
from actors.model_file import HEAD, Model, open_model
from actors.window_reader import WindowReader
from jos.core.spans import cut
from jos.worker import Context, InputInvalid, JobImpossible, Output, Plan, Source, Span, Worker

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]

MOST_CELLS = 50_000_000  # of all labelled examples together: 400 MB as numbers
MOST_BYTES = 1 << 30  # of one of them, as text
N_SHOTS, CHECKPOINT = "worker.n_shots", "worker.fine_tune_checkpoint"
PREDICTION = "Prediction"  # the column of the results that clients read
ROW = "row"  # and the one that says where a window begins, when no column of time stamps is named
DECIMALS = 4


@dataclass(frozen=True)
class Settings:
    """The configuration of the component, checked; what a checkpoint brings is its own."""

    model_type: str
    batch_size: int
    flush_every: int
    data_columns: tuple[str, ...]
    timestamp_column: str | None  # None only with a checkpoint
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
        """The encoder that `model_type` asks for."""
        return encoder_of(self.model_type, stand_in=encoders.DEFAULT_ENCODER)

    @classmethod
    def of(cls, config: Mapping[str, Any], model: Model | None = None) -> Settings:
        reader, classifier = dict(config.get("reader_config", {})), config.get("classifier_config", {})
        operations = config.get("operations", {})
        if model is not None:
            reader |= {"data_columns": model.data_columns, "window_size": model.window_size}
            reader["step_size"] = reader.get("step_size") or model.step_size
        needed = ("data_columns", "window_size") if model else ("data_columns", "timestamp_column", "window_size")
        missing = [key for key in needed if not reader.get(key)]
        if missing:
            raise JobImpossible(f"reader_config lacks {', '.join(missing)}.")
        settings = cls(
            model_type=config.get("model_type", encoders.DEFAULT_ENCODER),
            batch_size=int(config.get("batch_size", 32)),
            flush_every=int(config.get("flush_every_n_iteration", 100)),
            data_columns=tuple(reader["data_columns"]),
            timestamp_column=reader.get("timestamp_column") or None,
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
        _ = self.encoder
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


class MachineStateWorker(Worker):
    def setup(self) -> None:
        steady(self.context.threads)
        given = self.context.inputs.get(CHECKPOINT, ())
        model = open_model(given[0]) if given else None
        self.settings = settings = Settings.of(self.context.config, model)
        if model is not None:
            _tell_unused(self.context, model)
            self._restore(model, given[0].filename)
        else:
            tell_substitute(self.context, settings.model_type, settings.encoder)
            self._learn(read_references(self.context.inputs.get(N_SHOTS, ()), settings))
        # Small batches of the user's are taken several at once; the parts of the output keep their size.
        self.batch_size = self.embedder.call * -(-settings.batch_size // self.embedder.call)
        self.reader = WindowReader(
            settings.data_columns,
            settings.window_size,
            settings.step_size,
            self.embedder.scaled,
            settings.timestamp_column,
        )
        self.table = _Table(self.classes, settings.timestamp_column or ROW)

    def _restore(self, model: Model, name: str) -> None:
        self.classes = list(model.classes)
        device = self.context.device
        try:
            self.embedder = Embedder.restore(model.embedder, model.embedder_tensors, device)
            restore = Head.restore if model.kind == HEAD else NearestNeighbours.restore
            self.classifier: Head | NearestNeighbours = restore(model.classifier, model.classifier_tensors, device)
        except (LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError) as error:
            raise JobImpossible(
                f"The checkpoint {name} cannot be used by this version of JOS: {error}.",
                suggestion="Train it again with this version.",
            ) from None
        shape = (self.embedder.channels, self.embedder.window, self.classifier.classes)
        if shape != (len(model.data_columns), model.window_size, len(self.classes)):
            raise JobImpossible(f"The checkpoint {name} contradicts itself: its parts do not fit each other.")

    def _learn(self, references: Mapping[str, list[Floats]]) -> None:
        settings = self.settings
        self.classes = list(references)
        self.embedder = self._embedder(references)
        embeddings, labels = [], []
        for label, files in enumerate(references.values()):
            for rows in files:
                if rows.shape[1] >= settings.window_size:
                    windows = Windows(self.embedder.scaled(rows), settings.window_size, settings.step_size)
                    embeddings.append(self.embedder.encode(torch.from_numpy(windows[:])))
                    labels.append(np.full(len(windows), label))
        self.classifier = NearestNeighbours(
            torch.cat(embeddings),
            np.concatenate(labels),
            len(self.classes),
            n_neighbors=settings.n_neighbors,
            metric=settings.metric,
            weights=settings.weights,
            normalize_embeddings=settings.normalize_embeddings,
            index="exact",  # as the published versions promise, however many examples there are
        )

    def _embedder(self, references: Mapping[str, list[Floats]]) -> Embedder:
        """Of a named encoder each index makes its own, the same as all others; a choice is made once for the job."""
        settings, window, step = self.settings, self.settings.window_size, self.settings.step_size
        rows = [rows for files in references.values() for rows in files]
        options: dict[str, Any] = {"device": self.context.device, "most_windows": settings.fit_windows}
        if settings.encoder != AUTO:
            return Embedder.fit(Recipe(settings.encoder), rows, window, step, **options)
        recordings = [
            Recording(f"{label} {nth}", label, rows)
            for label, files in references.items()
            for nth, rows in enumerate(files)
        ]

        def fit() -> Embedder:
            recipe = choose(recordings, [], window=window, step=step, device=self.context.device)
            return Embedder.fit(recipe, rows, window, step, **options)

        return shared(self.context, fit)

    def plan(self, source: Source) -> Plan:
        settings = self.settings
        layout, windows = self.reader.scan(source)
        bounds = cut(windows, self._span_tasks(layout, windows), settings.part_tasks)
        return Plan(
            bounds=bounds,
            hints=self.reader.hints(layout, bounds),
            part_tasks=settings.part_tasks,
            output_name="{input_id}_output_{stem}_part_{part}.csv",
            header=self.table.header,
            message=self.reader.too_short(source, layout, windows),
        )

    def _span_tasks(self, layout: csv_windows.Layout, windows: int) -> int:
        settings = self.settings
        tasks = int(settings.span_seconds / (self.embedder.seconds() + self.classifier.seconds()))
        tasks = self.reader.most_tasks(layout, tasks)
        part = min(settings.part_tasks, max(windows, 1))
        if part <= 1.5 * tasks:  # little more than a span: one span, and nobody has to put the part together
            return settings.part_tasks
        return min(max(tasks, settings.batch_size), part)

    def read(self, source: Source, span: Span) -> Windows:
        return self.reader.read(source, span)

    def compute(self, batch: Floats32) -> tuple[npt.NDArray[np.int64], Floats]:
        with torch.inference_mode():
            embeddings = self.embedder.encode(torch.from_numpy(batch))
            state, score = self.classifier.scores(embeddings)
        return state.cpu().numpy(), score.cpu().numpy()

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


def _tell_unused(context: Context, model: Model) -> None:
    """Says what a checkpoint overrules, and what the results lack without it."""
    reader = context.config.get("reader_config", {})
    for name, own in (("data_columns", list(model.data_columns)), ("window_size", model.window_size)):
        asked = reader.get(name)
        if asked and asked != own:
            context.warn(
                "checkpoint.overrules",
                f"reader_config.{name} is {asked} in the request and {own} in the checkpoint, which counts.",
                field=f"reader_config.{name}",
            )
    if context.inputs.get(N_SHOTS):
        context.warn("checkpoint.overrules", f"The files on the port {N_SHOTS} are not used: a checkpoint is given.")
    if not reader.get("timestamp_column"):
        context.warn(
            "results.without_timestamps",
            f"No reader_config.timestamp_column is given: the results have the column {ROW!r} instead, the number of "
            "each window's first row, from 1.",
        )


def read_references(sources: Sequence[Source], settings: Settings) -> dict[str, list[Floats]]:
    """The rows of the n-shots by class, classes sorted; or JobImpossible that says what to mend."""
    found: dict[str, list[Floats]] = {}
    cells = 0
    for source in sources:
        label = str(source.metadata.get("class", ""))
        if not label.strip():
            raise JobImpossible(f"The n-shot file {source.filename} has no class.", suggestion="Set metadata.class.")
        rows = _reference_rows(source, label, settings, cells)
        found.setdefault(label, []).append(rows)
        cells += rows.size
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


def _reference_rows(source: Source, label: str, settings: Settings, before: int) -> Floats:
    """The rows of one file; `before`: cells of those that were read already."""
    of = f"n-shot file of class {label!r}"
    try:
        layout = csv_windows.scan(source)
        numeric = [layout.header.find(name, source.filename) for name in settings.data_columns]
    except InputInvalid as error:
        raise JobImpossible(f"{error.message} It is an {of}.", suggestion=error.suggestion) from None
    if not layout.rows:
        return np.zeros((len(numeric), 0))
    _check_room(source, layout, layout.rows * len(numeric), before, of)
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


def _check_room(source: Source, layout: csv_windows.Layout, cells: int, before: int, of: str) -> None:
    why = "every index holds all of them in memory."
    if cells > MOST_CELLS or layout.num_bytes > MOST_BYTES:
        raise JobImpossible(
            f"{source.filename} has {layout.rows:,} rows and {layout.num_bytes:,} bytes, too many for an {of}: {why}",
            suggestion="Give a part of it as an example, or train on it with the pipeline fine-tuning-omega.",
        )
    if before + cells > MOST_CELLS:
        raise JobImpossible(
            f"{source.filename} has {cells:,} cells in the data columns, and the n-shot files before it {before:,}; "
            f"together they may have {MOST_CELLS:,}: {why} It is an {of}.",
            suggestion="Give fewer or shorter n-shot files, or train on all with the pipeline fine-tuning-omega.",
        )


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
