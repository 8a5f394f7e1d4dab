"""The first stage of fine-tuning: labelled CSV files become embeddings, over all indexes, before anything is trained.

An input's embeddings are kept as the header below, then 32-bit floats, little endian, one row a window, in the order of
the file. A window that cannot be used (a bad cell, a crash) is a row of NaN: it is counted as failed and left out.

May import: jos.worker, jos.core.spans, actors.*, numpy, torch. Tests: tests/unit/test_fine_tune.py.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actors.choose import AUTO, choose
from actors.csv_windows import Windows
from actors.embedder import Embedder
from actors.encoders import SHORTEST_WINDOW
from actors.fitting import encoder_of, shared, steady, tell_substitute
from actors.labelled import Cutting, Labelled, Sample, Use, label_of, no_window, sample, uses
from actors.model_file import HEAD
from actors.window_reader import WindowReader
from jos.core.spans import cut
from jos.worker import JobImpossible, Output, Plan, Prepared, Source, Span, Trainer

Floats32 = npt.NDArray[np.float32]

TRAIN, EVAL = "worker.train_data", "worker.eval_data"
HEADER = struct.Struct("<8sQ")  # magic, dimensions
MAGIC = b"josemb\0\1"


@dataclass(frozen=True)
class Settings:
    """The part of the configuration that both trainings share, checked."""

    encoder: str
    model_type: str
    cutting: Cutting
    seed: int
    span_seconds: float
    most_windows: int  # embeddings are all held in memory

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        reader, operations = config.get("reader_config", {}), config.get("operations", {})
        missing = [key for key in ("data_columns", "window_size") if not reader.get(key)]
        if missing:
            raise JobImpossible(f"reader_config lacks {', '.join(missing)}.")
        window, step = int(reader["window_size"]), int(reader.get("step_size") or 1)
        if window < SHORTEST_WINDOW or step < 1:
            raise JobImpossible(
                f"window_size must be at least {SHORTEST_WINDOW} and step_size at least 1, not {window} and {step}."
            )
        model_type = config.get("model_type") or AUTO
        return cls(
            encoder=encoder_of(model_type, stand_in=AUTO),
            model_type=model_type,
            cutting=Cutting(tuple(reader["data_columns"]), window, step),
            seed=int(config.get("seed") or 0),
            span_seconds=float(operations.get("span_seconds", 0.5)),
            most_windows=int(operations.get("most_windows", 1_000_000)),
        )


@dataclass(frozen=True)
class Embedded:
    """Embeddings (n, dims) with the number of each one's class."""

    rows: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.rows)


class Preparation(Trainer):
    """Base of the trainings. `holds_out`: without evaluation files some of the training data validates. `kind`: of the
    classifier that the embeddings are for."""

    holds_out = True
    kind = HEAD

    def setup(self) -> None:
        self.settings = Settings.of(self.context.config)
        steady(self.context.threads)
        tell_substitute(self.context, self.settings.model_type, self.settings.encoder)
        train, eval_ = (self.context.inputs.get(port, ()) for port in (TRAIN, EVAL))
        self.labels = {
            source.id: label_of(source, port) for port in (TRAIN, EVAL) for source in self.context.inputs.get(port, ())
        }
        self.classes = sorted({self.labels[source.id] for source in train})
        if len(self.classes) < 2:
            raise JobImpossible(
                f"A classifier needs files of two or more classes on the port {TRAIN}; there are "
                f"{f'only {self.classes[0]!r}' if self.classes else 'none'}.",
            )
        found = uses([self.labels[source.id] for source in train]) if self.holds_out and not eval_ else []
        self.uses = {source.id: use for source, use in zip(train, found, strict=False)}
        self._tell_unknown(eval_)
        cutting = self.settings.cutting
        self.embedder = shared(self.context, self._fit)
        self.batch_size = self.embedder.call
        self.reader = WindowReader(cutting.data_columns, cutting.window, cutting.step, self.embedder.scaled)

    def _tell_unknown(self, eval_: Sequence[Source]) -> None:
        unknown = sorted({self.labels[source.id] for source in eval_} - set(self.classes))
        if unknown:
            self.context.warn(
                "training.unknown_class",
                f"Files on the port {EVAL} show classes that no training file shows: {', '.join(map(repr, unknown))}. "
                "They do not count in the scores.",
                classes=unknown,
            )

    def _files(self) -> Sample:
        """Pieces of the labelled files of known classes."""
        named = [
            Labelled(f"{port} {nth:06}", source, self.labels[source.id], self.uses.get(source.id, use))
            for port, use in ((TRAIN, Use.TRAIN), (EVAL, Use.VALIDATE))
            for nth, source in enumerate(self.context.inputs.get(port, ()))
        ]
        return sample([one for one in named if one.label in self.classes], self.settings.cutting)

    def _fit(self) -> Embedder:
        files, settings = self._files(), self.settings
        window, step = settings.cutting.window, settings.cutting.step
        recipe = choose(
            files.train,
            files.validation,
            window=window,
            step=step,
            encoder=settings.encoder,
            seed=settings.seed,
            device=self.context.device,
            classifier=self.kind,
        )
        rows = [recording.rows for recording in files.train]
        return Embedder.fit(recipe, rows, window, step, device=self.context.device)

    # --- each file ---

    def plan(self, source: Source) -> Plan:
        layout, windows = self.reader.scan(source)
        tasks = self.reader.most_tasks(layout, int(self.settings.span_seconds / self.embedder.seconds()))
        bounds = cut(windows, max(tasks, 1))
        return Plan(
            bounds=bounds,
            hints=self.reader.hints(layout, bounds),
            output_name="{input_id}_{stem}.embeddings",
            header=HEADER.pack(MAGIC, self.embedder.dims),
            message=self.reader.too_short(source, layout, windows),
        )

    def read(self, source: Source, span: Span) -> Windows:
        return self.reader.read(source, span)

    def compute(self, batch: Floats32) -> Floats32:
        embeddings = self.embedder.encode(torch.from_numpy(batch))
        return np.asarray(embeddings.float().cpu().numpy())

    def write(self, source: Source, span: Span, data: Windows, results: list[Floats32]) -> Output:
        rows = np.concatenate(results)
        rows[list(data.failures)] = np.nan
        failures = {span.start + at: why for at, why in data.failures.items()}
        return Output(rows.astype("<f4").tobytes(), failures)

    def failed(self, source: Source, span: Span, message: str) -> bytes:
        return np.full((len(span), self.embedder.dims), np.nan, "<f4").tobytes()

    # --- all of them ---

    def gather(self, prepared: Sequence[Prepared]) -> tuple[Embedded, Embedded]:
        """Embeddings to train on and to validate on. Raises JobImpossible where there are too few or too many."""
        tasks = sum(one.tasks for one in prepared)
        if tasks > self.settings.most_windows:
            raise JobImpossible(
                f"The labelled files hold {tasks:,} windows; at most {self.settings.most_windows:,} are trained on.",
                suggestion="Set a larger reader_config.step_size.",
            )
        parts: dict[bool, list[Embedded]] = {False: [], True: []}
        for one in prepared:
            label = self.labels[one.source.id]
            if label not in self.classes:
                continue
            rows = self._embeddings(one)
            use = Use.VALIDATE if one.port == EVAL else self.uses.get(one.source.id, Use.TRAIN)
            first = {Use.TRAIN: (len(rows), len(rows)), Use.VALIDATE: (0, 0)}.get(use)
            train, validation = first or self.settings.cutting.split(len(rows))
            for validates, some in ((False, rows[:train]), (True, rows[validation:])):
                sound = some[np.isfinite(some).all(1)]
                number = torch.full((len(sound),), self.classes.index(label))
                parts[validates].append(Embedded(torch.from_numpy(sound), number))
        train_set, validation_set = (self._joined(parts[validates]) for validates in (False, True))
        self._check(train_set, prepared)
        return train_set, validation_set

    def _embeddings(self, one: Prepared) -> Floats32:
        data = one.read()
        dims = self.embedder.dims
        if data[: HEADER.size] != HEADER.pack(MAGIC, dims) or len(data) != HEADER.size + one.tasks * dims * 4:
            if not one.tasks:
                return np.zeros((0, dims), np.float32)
            raise RuntimeError(f"the stored embeddings of {one.source.filename} are not {one.tasks} rows of {dims}")
        return np.frombuffer(data, "<f4", offset=HEADER.size).reshape(-1, dims)

    def _joined(self, parts: Sequence[Embedded]) -> Embedded:
        rows = [torch.zeros(0, self.embedder.dims), *(part.rows for part in parts)]
        labels = [torch.zeros(0, dtype=torch.int64), *(part.labels for part in parts)]
        return Embedded(torch.cat(rows), torch.cat(labels))

    def _check(self, train: Embedded, prepared: Sequence[Prepared]) -> None:
        for number, label in enumerate(self.classes):
            if not (train.labels == number).any():
                tasks = sum(one.tasks for one in prepared if one.port == TRAIN and self.labels[one.source.id] == label)
                problem = f"All {tasks} windows failed; the events of its inputs say why." if tasks else ""
                raise no_window(label, self.settings.cutting, [problem] if problem else [])
