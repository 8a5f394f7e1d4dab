"""fine-tuning-omega and knn-fine-tuning-omega: a classifier over frozen embeddings, as a checkpoint for other jobs.

HeadTrainer trains a head by gradient descent, a task being one optimiser step; each rise of the validation's macro-F1
leaves a checkpoint. KnnTrainer has one step: it keeps all training embeddings as reference vectors.

May import: jos.worker, actors.*, numpy, torch. Tests: tests/unit/test_fine_tune.py.
Pipelines: pipelines/fine-tuning-omega, pipelines/knn-fine-tuning-omega.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from actors.head import Head, HeadSettings, HeadTraining
from actors.knn import NearestNeighbours
from actors.model_file import KNN, Model, pack_model
from actors.preparation import EVAL, TRAIN, Embedded, Preparation
from actors.scores import accuracy, macro_f1
from jos.core.spans import cut
from jos.worker import JobImpossible, Plan, Prepared

STEP_SECONDS = 4e-4  # of one CPU core, roughly: constants, so that plans do not vary
PRODUCT_SECONDS = 1e-10  # the same for each product of a value with a weight
SPAN_SECONDS = 0.5
LEAST_SPANS = 20  # of a training whose epochs are short: a curve for people, and rises told apart


class HeadTrainer(Preparation):
    def setup(self) -> None:
        config = self.context.config
        train_config = dict(config.get("train_config") or {})
        self.group = int(train_config.pop("ranks", 1))
        known = {field.name for field in fields(HeadSettings)}
        asked = {name: value for name, value in train_config.items() if name in known and value is not None}
        if config.get("batch_size") is not None:
            asked["batch_size"] = int(config["batch_size"])
        try:
            self.head_settings = HeadSettings(**asked)
            self.head_settings.check()
        except (TypeError, ValueError) as error:
            raise JobImpossible(f"train_config cannot be used: {error}.") from None
        super().setup()

    def begin(self, prepared: Sequence[Prepared]) -> None:
        train, validation = self.gather(prepared)
        if not len(validation):
            validation = self._without_validation(train)
        self.training = HeadTraining(
            train.rows,
            train.labels,
            validation.rows,
            validation.labels,
            len(self.classes),
            self.head_settings,
            self.settings.seed,
            rank=self.context.rank,
            ranks=self.context.ranks,
            device=self.context.device,
        )
        products = PRODUCT_SECONDS * sum(layer.numel() for layer in self.training.layers)
        each = STEP_SECONDS + 3 * products * self.head_settings.batch_size  # forward once, backward twice
        self.epoch_seconds = self.training.steps_per_epoch * each + products * len(validation)
        self.best: Head | None = None  # since the last checkpoint
        self.scores: Mapping[str, float] = {}  # of the best epoch of this span
        self.metrics: dict[str, float] = {}  # of the last step
        self.bounds = self._bounds()
        self.starts = set(self.bounds)

    def _without_validation(self, train: Embedded) -> Embedded:
        """What validates when nothing could be held out."""
        if self.context.inputs.get(EVAL):
            raise JobImpossible(
                f"The files on the port {EVAL} hold no window that can be used.",
                suggestion="Mend them, or leave them out: a part of the training data validates then.",
            )
        self.context.warn(
            "training.no_validation",
            "The training files are too short to hold anything out: the scores are those of the training data itself, "
            "and too good.",
        )
        return train

    def _bounds(self) -> list[int]:
        """Spans of about SPAN_SECONDS: whole epochs, or an equal part of one."""
        epoch, total = self.training.steps_per_epoch, self.training.total_steps
        if self.epoch_seconds <= SPAN_SECONDS:
            epochs = min(int(SPAN_SECONDS / self.epoch_seconds), self.head_settings.epochs // LEAST_SPANS)
            return cut(total, epoch * max(1, epochs))
        return cut(total, -(-epoch // round(self.epoch_seconds / SPAN_SECONDS)), epoch)

    def steps(self) -> Plan:
        return Plan(bounds=self.bounds, group=self.group)

    def step(self, number: int) -> Mapping[str, float]:
        """Metrics: loss and learning_rate of the step, epoch (how many are complete); macro_f1 and accuracy of the
        best epoch that ended in its span, which are the ones of the span's checkpoint if it has one."""
        if number in self.starts:
            self.scores = {}
        if self.training.stopped:  # within a span: the rest of it is nothing
            return self.metrics
        metrics = self.training.step(number)
        if "macro_f1" in metrics and (self.training.improved or metrics["macro_f1"] > self.scores.get("macro_f1", -1)):
            self.scores = {name: metrics[name] for name in ("macro_f1", "accuracy")}
        if self.training.improved:
            self.best = self.training.head()
        self.finished = self.training.stopped
        epoch = (number + 1) // self.training.steps_per_epoch
        self.metrics = {**metrics, "epoch": float(epoch), **self.scores}
        return self.metrics

    def save(self) -> bytes:
        return self.training.save()

    def load(self, state: bytes) -> None:
        self.training.load(state)
        self.finished, self.best, self.scores = self.training.stopped, None, {}

    def checkpoint(self) -> bytes | None:
        if self.best is None:
            return None
        head, self.best = self.best, None
        return pack_model(_model(self, head.settings(), head.tensors()))


class KnnTrainer(Preparation):
    holds_out, kind = False, KNN

    def begin(self, prepared: Sequence[Prepared]) -> None:
        self.train, self.validation = self.gather(prepared)
        self.model: bytes | None = None
        classifier = self.context.config.get("classifier_config") or {}
        neighbours = int(classifier.get("n_neighbors", 5))
        if neighbours > len(self.train):
            raise JobImpossible(
                f"n_neighbors is {neighbours}, but the training files hold only {len(self.train)} windows.",
                suggestion=f"Give longer or more files on the port {TRAIN}, a smaller step_size, or fewer neighbours.",
            )
        try:
            self.neighbours = NearestNeighbours(
                self.train.rows.to(self.context.device),
                self.train.labels.numpy(),
                len(self.classes),
                n_neighbors=neighbours,
                metric=classifier.get("metric", "euclidean"),
                weights=classifier.get("weights", "uniform"),
                normalize_embeddings=bool(classifier.get("normalize_embeddings", False)),
                index=classifier.get("index", "auto"),
            )
        except ValueError as error:
            raise JobImpossible(f"classifier_config cannot be used: {error}.") from None
        if self.neighbours.note:
            self.context.warn("training.no_index", self.neighbours.note)

    def steps(self) -> Plan:
        return Plan(bounds=[0, 1])

    def step(self, number: int) -> Mapping[str, float]:
        """Metrics: references, how many vectors are kept; recall, which share of the true neighbours is found among
        them (1 but for very many); with evaluation files macro_f1 and accuracy on them."""
        self.model = pack_model(_model(self, self.neighbours.settings(), self.neighbours.tensors()))
        metrics = {"references": float(len(self.train)), "recall": self.neighbours.recall()}
        if not len(self.validation):
            return metrics
        queries = self.validation.rows.to(self.context.device)
        with torch.inference_mode():
            predicted = torch.cat([self.neighbours.scores(some)[0] for some in queries.split(self.batch_size)])
        truth, said = self.validation.labels.numpy(), predicted.cpu().numpy()
        return metrics | {"macro_f1": macro_f1(truth, said, len(self.classes)), "accuracy": accuracy(truth, said)}

    def save(self) -> bytes:
        return b"stored"

    def load(self, state: bytes) -> None:
        """The one step was done: nothing is left to go back to."""

    def checkpoint(self) -> bytes | None:
        model, self.model = self.model, None
        return model


def _model(trainer: Preparation, classifier: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Model:
    cutting = trainer.settings.cutting
    return Model(
        kind=trainer.kind,
        classes=tuple(trainer.classes),
        data_columns=cutting.data_columns,
        window_size=cutting.window,
        step_size=cutting.step,
        embedder=trainer.embedder.settings(),
        classifier=classifier,
        embedder_tensors=trainer.embedder.tensors(),
        classifier_tensors=tensors,
    )
