"""A classification head over frozen embeddings: trained step by step, exactly resumable, alone or by several ranks.

What a step does is a function of the seed, the step's number and the state before it; so a training that is saved and
loaded goes on to the same weights, bit for bit, on the same kind of machine. Ranks share the batch of each step and
add up their gradients: the same as one rank alone, within float error.

May import: actors.scores, numpy, torch, safetensors, stdlib. Tests: tests/unit/test_head.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from actors.scores import accuracy, macro_f1

LEAST_STEPS = 10  # of an epoch: where windows are few, so are the steps of a pass, and a head would learn nothing
_BETTER = 0.98  # of the best loss: less, at the same macro-F1, is better too; a small validation is soon at 1.0
_STATE = ("done", "best", "best_loss", "since", "improved", "stopped")
_FORMAT = "jos.head-training.1"


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained. `check` raises ValueError for what cannot be."""

    epochs: int = 60
    batch_size: int = 64  # windows of one step, over all ranks
    learning_rate: float = 0.01  # the highest, after the warm-up; falls as a cosine to 0
    warmup: float = 0.05  # share of all steps
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    class_weights: bool = True  # each class counts alike, however many windows it has
    patience: int = 15  # epochs without a better validation
    hidden: int = 0  # width of a hidden layer; 0 for a linear head

    def check(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("weight_decay", "hidden"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to below 1, not {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")


class Head:
    """A trained head: embeddings (n, dims) to a class and scores."""

    def __init__(self, centre: Tensor, scale: Tensor, layers: list[Tensor], classes: int) -> None:
        self.centre, self.scale, self.layers, self.classes = centre, scale, layers, classes
        self._exact = [layer.double() for layer in layers]

    @property
    def dims(self) -> int:
        return len(self.centre)

    def scores(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """(class per row, score per row and class). Scores are float64 and sum to 1. Computed in double and rounded:
        how a matrix product rounds depends on the batch, and here nobody sees it."""
        with torch.inference_mode():
            rows = (embeddings.to(self.centre.device).double() - self.centre.double()) * self.scale.double()
            score = _logits(rows, self._exact).float().double().softmax(1)
            return score.argmax(1), score

    def seconds(self) -> float:
        """What an embedding takes one CPU core, roughly; never timed, so that plans do not vary."""
        return 1e-6 + 1e-9 * sum(int(layer.numel()) for layer in self.layers)

    def settings(self) -> dict[str, Any]:
        """With `tensors`, all that `restore` needs; goes through JSON unharmed."""
        return {"classes": self.classes, "dims": self.dims, "layers": len(self.layers)}

    def tensors(self) -> dict[str, Tensor]:
        layers = {f"layer.{at}": layer for at, layer in enumerate(self.layers)}
        return {
            n: t.cpu().contiguous().clone() for n, t in {"centre": self.centre, "scale": self.scale, **layers}.items()
        }

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str = "cpu") -> Head:
        """The same head again. Raises KeyError or ValueError when settings and tensors do not go together."""
        layers = [tensors[f"layer.{at}"].to(device) for at in range(int(settings["layers"]))]
        found = cls(tensors["centre"].to(device), tensors["scale"].to(device), layers, int(settings["classes"]))
        if found.dims != settings["dims"] or len(found.scale) != found.dims or not layers:
            raise ValueError(f"a head of {settings['dims']} dimensions whose tensors have {found.dims}")
        if layers[0].shape[1] != found.dims or len(layers[-1]) != found.classes:
            raise ValueError(f"a head of {found.dims} dimensions and {found.classes} classes with other weights")
        return found


class HeadTraining:
    """Trains a head. Steps are numbered from 0 and done in order.

    improved  the last step ended an epoch with a new best macro-F1 on the validation, or the same with clearly less
              loss: worth a checkpoint
    stopped   so many epochs brought nothing better: no further step is worth it
    """

    def __init__(
        self,
        train: Tensor,
        labels: Tensor,
        validation: Tensor,
        validation_labels: Tensor,
        classes: int,
        settings: HeadSettings,
        seed: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        device: str = "cpu",
    ) -> None:
        settings.check()
        _check_data(train, labels, validation, validation_labels, classes)
        self.settings, self.seed, self.classes, self.rank, self.ranks = settings, seed, classes, rank, ranks
        self.device = torch.device(device)
        self.centre, self.scale = _standard(train)
        self.centre, self.scale = self.centre.to(device), self.scale.to(device)
        self.train, self.validation = (((some.to(device) - self.centre) * self.scale) for some in (train, validation))
        self.labels, self.validation_labels = labels.to(device), validation_labels.to(device)
        self.truth = validation_labels.cpu().numpy()
        self.weight = _class_weights(labels, classes, settings.class_weights).to(device)
        self.batch_size = min(settings.batch_size, len(train))
        self.steps_per_epoch = max(LEAST_STEPS, -(-len(train) // self.batch_size))
        self.total_steps = self.steps_per_epoch * settings.epochs
        self.layers = [layer.to(device).requires_grad_() for layer in _initial(train.shape[1], classes, settings, seed)]
        self.optimizer = torch.optim.AdamW(
            self.layers, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.order, self.order_of = torch.zeros(0, dtype=torch.int64), -1
        self.done, self.best, self.best_loss, self.since = 0, -1.0, math.inf, 0
        self.improved = self.stopped = False

    def step(self, number: int) -> dict[str, float]:
        """Do step `number`: returns loss and learning_rate, and at the end of an epoch also macro_f1 and accuracy
        on the validation. Raises ValueError when it is not that step's turn."""
        if number != self.done:
            raise ValueError(f"step {number} out of turn: the next is {self.done}")
        epoch, nth = divmod(number, self.steps_per_epoch)
        rate = self._rate(number)
        self.optimizer.param_groups[0]["lr"] = rate
        batch = self._order(epoch)[nth * self.batch_size : (nth + 1) * self.batch_size]
        loss = self._gradients(batch)
        self.optimizer.step()
        self.done += 1
        self.improved = False
        metrics = {"loss": loss, "learning_rate": rate}
        return metrics if nth + 1 < self.steps_per_epoch else {**metrics, **self._validate()}

    def _order(self, epoch: int) -> Tensor:
        """All training rows in the order of this epoch, which seed and epoch decide; few are gone over repeatedly."""
        if self.order_of != epoch:
            generator = torch.Generator().manual_seed(_mixed(self.seed, epoch))
            passes = max(1, -(-LEAST_STEPS * self.batch_size // len(self.train)))
            order = [torch.randperm(len(self.train), generator=generator) for _ in range(passes)]
            self.order = torch.cat(order)[: self.steps_per_epoch * self.batch_size].to(self.device)
            self.order_of = epoch
        return self.order

    def _gradients(self, batch: Tensor) -> float:
        """Leaves the gradients of the whole batch; returns its loss."""
        self.optimizer.zero_grad()
        smooth = self.settings.label_smoothing
        if self.ranks == 1:
            rows, labels = self.train[batch], self.labels[batch]
            loss = F.cross_entropy(_logits(rows, self.layers), labels, self.weight, label_smoothing=smooth)
            loss.backward()
            return float(loss.item())
        mine = batch[self.rank :: self.ranks]
        logits, labels = _logits(self.train[mine], self.layers), self.labels[mine]
        loss = F.cross_entropy(logits, labels, self.weight, label_smoothing=smooth, reduction="sum")
        loss = loss / self.weight[self.labels[batch]].sum()
        loss.backward()
        return self._added_up(loss.detach())

    def _added_up(self, loss: Tensor) -> float:
        """Gradients and loss of all ranks together, in one exchange."""
        gradients = [layer.grad for layer in self.layers if layer.grad is not None]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.reshape(1)])
        dist.all_reduce(flat)
        for gradient, sums in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(sums.view_as(gradient))
        return float(flat[-1].item())

    def _rate(self, number: int) -> float:
        settings = self.settings
        warm = int(settings.warmup * self.total_steps)
        if number < warm:
            return settings.learning_rate * (number + 1) / (warm + 1)
        left = (number - warm) / max(self.total_steps - warm, 1)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * left))

    def _validate(self) -> dict[str, float]:
        with torch.no_grad():
            logits = _logits(self.validation, self.layers)
            loss = F.cross_entropy(logits, self.validation_labels).item()
        predicted = logits.argmax(1).cpu().numpy()
        score = macro_f1(self.truth, predicted, self.classes)
        self.improved = score > self.best or (score == self.best and loss < _BETTER * self.best_loss)
        self.since = 0 if self.improved else self.since + 1
        if self.improved:
            self.best, self.best_loss = score, loss
        self.stopped = self.since >= self.settings.patience
        return {"macro_f1": score, "accuracy": accuracy(self.truth, predicted)}

    def save(self) -> bytes:
        """The state after the last step."""
        tensors = {f"layer.{at}": layer.detach().cpu().contiguous() for at, layer in enumerate(self.layers)}
        for at, layer in enumerate(self.layers):
            for name, value in self.optimizer.state.get(layer, {}).items():
                tensors[f"optimizer.{at}.{name}"] = value.detach().cpu().contiguous()
        state = {name: getattr(self, name) for name in _STATE}
        # one entry: several would stand in no fixed order, and the same state has the same bytes
        return save(tensors, {_FORMAT: json.dumps(state)})

    def load(self, state: bytes) -> None:
        """Go back to a saved state of the same training. Raises ValueError for anything else."""
        try:
            tensors, kept = load(state), _metadata(state)
            layers = [tensors[f"layer.{at}"] for at in range(len(self.layers))]
            if set(kept) != set(_STATE):
                raise ValueError(f"it tells of {', '.join(sorted(kept))}")
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"no state of a head's training: {error}") from None
        if [layer.shape for layer in layers] != [layer.shape for layer in self.layers]:
            raise ValueError("the saved state is of a head of another shape")
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, at, of = name.split(".")
                moments.setdefault(int(at), {})[of] = value
        with torch.no_grad():
            for own, layer in zip(self.layers, layers, strict=True):
                own.copy_(layer)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        for name in _STATE:
            setattr(self, name, kept[name])

    def head(self) -> Head:
        """The model as it stands now."""
        layers = [layer.detach().clone() for layer in self.layers]
        return Head(self.centre.clone(), self.scale.clone(), layers, self.classes)


def _check_data(train: Tensor, labels: Tensor, validation: Tensor, validation_labels: Tensor, classes: int) -> None:
    for what, rows, of in (("training", train, labels), ("validation", validation, validation_labels)):
        if not len(rows):
            raise ValueError(f"there are no {what} windows")
        if len(rows) != len(of) or rows.shape[1] != train.shape[1]:
            raise ValueError(f"{tuple(rows.shape)} {what} embeddings and {len(of)} labels do not go together")
        if int(of.min()) < 0 or int(of.max()) >= classes:
            raise ValueError(f"{what} labels must be from 0 to {classes - 1}")
        if not torch.isfinite(rows).all():
            raise ValueError(f"{what} embeddings are not all finite")
    if len(labels.unique()) < 2:
        raise ValueError("a head needs training windows of two or more classes")


def _standard(train: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and scale so that a dimension has variance 1 on average. One scale for all: their sizes say what is
    signal, and a dimension that hardly varies is mostly noise."""
    rows = train.double()
    spread = rows.var(0, correction=0)
    whole = spread.mean().sqrt().clamp(min=1e-12)
    return rows.mean(0).float(), (1 / whole).float().repeat(rows.shape[1])


def _class_weights(labels: Tensor, classes: int, wanted: bool) -> Tensor:
    """So that each class present counts alike; 1 on average over the windows."""
    if not wanted:
        return torch.ones(classes)
    counts = torch.bincount(labels.cpu(), minlength=classes).double()
    return torch.where(counts > 0, len(labels) / (counts.clamp(min=1) * (counts > 0).sum()), 0).float()


def _initial(dims: int, classes: int, settings: HeadSettings, seed: int) -> list[Tensor]:
    """Weight and bias of each layer. The last layer starts at 0: no class is preferred, whatever the seed."""
    generator = torch.Generator().manual_seed(_mixed(seed, -1))
    if not settings.hidden:
        return [torch.zeros(classes, dims), torch.zeros(classes)]
    first = torch.randn(settings.hidden, dims, generator=generator) / math.sqrt(dims)
    return [first, torch.zeros(settings.hidden), torch.zeros(classes, settings.hidden), torch.zeros(classes)]


def _logits(rows: Tensor, layers: list[Tensor]) -> Tensor:
    for at in range(0, len(layers), 2):
        rows = F.linear(rows if at == 0 else F.gelu(rows), layers[at], layers[at + 1])
    return rows


def _mixed(seed: int, epoch: int) -> int:
    return ((seed * 1_000_003 + epoch + 1) * 2_654_435_761) % (1 << 63)


def _metadata(state: bytes) -> dict[str, Any]:
    size = int.from_bytes(state[:8], "little")
    kept: dict[str, Any] = json.loads(json.loads(state[8 : 8 + size])["__metadata__"][_FORMAT])
    return kept
