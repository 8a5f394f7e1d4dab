"""From sensor rows to embeddings: a scaling and an encoder, fitted together on labelled recordings.

A recipe names the two; an embedder is what came of them, and can be written into a checkpoint and read back. It is the
whole path that training and inference share, so that they cannot differ.

May import: actors.{encoders,scaling,csv_windows}, numpy, torch, stdlib. Tests: tests/unit/test_embedder.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors import encoders
from actors.csv_windows import Windows, count_windows
from actors.encoders import ENCODERS, Encoder
from actors.scaling import DEFAULT_SCALING, SCALINGS, Floats, Floats32, Scaling

BLOCK = 128  # windows at once on a CPU, padded: fits the cache, and one shape always rounds in one way
CALL, GPU_CALL = 1024, 16_384  # windows to hand over at once: fewer leave the machine waiting for Python
EXTRAS = 0.5  # how much of the embedding's variance features beside the encoder's have, as a share of the encoder's


@dataclass(frozen=True)
class Recipe:
    """Names of an encoder and a scaling. Raises ValueError for one that there is not."""

    encoder: str = encoders.DEFAULT_ENCODER
    scaling: str = DEFAULT_SCALING

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"unknown encoder {self.encoder!r}; known: {', '.join(sorted(ENCODERS))}")
        if self.scaling not in SCALINGS:
            raise ValueError(f"unknown scaling {self.scaling!r}; known: {', '.join(SCALINGS)}")


class Embedder:
    """A fitted recipe. Made by `fit` or `restore`."""

    def __init__(self, recipe: Recipe, scaling: Scaling, encoder: Encoder) -> None:
        self.recipe, self.scaling, self.encoder = recipe, scaling, encoder
        self.channels, self.window = encoder.channels, encoder.window
        self.extra_centre: Tensor | None = None
        self.extra_scale: Tensor | None = None
        self.dims = 0

    @classmethod
    def fit(
        cls,
        recipe: Recipe,
        recordings: Sequence[Floats],
        window: int,
        step: int,
        *,
        device: str = "cpu",
        most_windows: int = 1024,
    ) -> Embedder:
        """From the rows of labelled files, each (channels, rows); files shorter than a window count for the scaling
        alone. The encoder is fitted on at most about `most_windows` windows, evenly taken. Raises ValueError when
        there is no window at all."""
        scaling = Scaling.of(np.concatenate(recordings, axis=1), recipe.scaling, window)
        found = cls(recipe, scaling, ENCODERS[recipe.encoder](len(recordings[0]), window, device))
        sample = torch.from_numpy(_sample(recordings, scaling, window, step, most_windows))
        with torch.inference_mode():
            found._fit(sample.to(found.encoder.device))
        return found

    def _fit(self, sample: Tensor) -> None:
        self.encoder.fit(self.scaling.windows(sample))
        made = self.encoder.encode(self.scaling.windows(sample[:BLOCK]))
        extras = self.scaling.extras(sample)
        self.dims = made.shape[1]
        if extras is not None:
            spread = extras.std(0, correction=0)
            energy = made.square().sum(1).mean() * EXTRAS / extras.shape[1]
            self.extra_centre = extras.mean(0)
            self.extra_scale = torch.where(spread > 1e-3, energy.sqrt() / spread, 0)
            self.dims += extras.shape[1]

    def scaled(self, rows: Floats) -> Floats32:
        """A file's rows (channels, rows), or a piece of them, before windows are cut; the same either way."""
        return self.scaling.apply(rows)

    def encode(self, windows: Tensor) -> Tensor:
        """Windows (n, channels, window) of scaled rows to embeddings (n, dims). On a CPU a window's embedding has
        the same bits in any company: the work is done in blocks of one size. On a GPU it is alike within rounding."""
        if not len(windows):
            return torch.zeros(0, self.dims, device=self.encoder.device)
        with torch.inference_mode():
            if self.encoder.device.type != "cpu":
                return self._encoded(_moved(windows, self.encoder.device))
            whole = torch.from_numpy(np.ascontiguousarray(windows.numpy()))  # NumPy copies them faster
            return torch.cat([self._encoded(_padded(some))[: len(some)] for some in whole.split(BLOCK)])

    def _encoded(self, windows: Tensor) -> Tensor:
        made = self.encoder.encode(self.scaling.windows(windows))
        if self.extra_centre is None or self.extra_scale is None:
            return made
        extras = self.scaling.extras(windows)
        assert extras is not None
        return torch.cat([made, (extras - self.extra_centre) * self.extra_scale], 1)

    @property
    def call(self) -> int:
        """How many windows `encode` should be given at once, where there are so many."""
        return CALL if self.encoder.device.type == "cpu" else GPU_CALL

    def seconds(self) -> float:
        """What a window takes one CPU core, roughly. A constant of the shape, so that plans do not vary."""
        return self.encoder.seconds()

    def settings(self) -> dict[str, Any]:
        """With `tensors`, all that `restore` needs; goes through JSON unharmed."""
        return {
            "encoder": self.recipe.encoder,
            "scaling": self.scaling.settings(),
            "channels": self.channels,
            "window": self.window,
            "dims": self.dims,
        }

    def tensors(self) -> dict[str, Tensor]:
        extra = {"extra.centre": self.extra_centre, "extra.scale": self.extra_scale}
        of_encoder = {f"encoder.{name}": tensor for name, tensor in self.encoder.tensors().items()}
        return {**of_encoder, **{name: tensor.cpu() for name, tensor in extra.items() if tensor is not None}}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str = "cpu") -> Embedder:
        """The same embedder again. Raises ValueError or KeyError when settings and tensors do not go together."""
        scaling = Scaling.restore(settings["scaling"])
        recipe = Recipe(settings["encoder"], scaling.kind)
        channels, window = int(settings["channels"]), int(settings["window"])
        if len(scaling.centre) != channels:
            raise ValueError(f"a scaling of {len(scaling.centre)} channels for {channels}")
        found = cls(recipe, scaling, ENCODERS[recipe.encoder](channels, window, device))
        of_encoder = {n.removeprefix("encoder."): t for n, t in tensors.items() if n.startswith("encoder.")}
        found.encoder.restore(of_encoder)
        extra = {name: tensor.to(found.encoder.device) for name, tensor in tensors.items() if name.startswith("extra.")}
        found.extra_centre, found.extra_scale = extra.get("extra.centre"), extra.get("extra.scale")
        found.dims = int(settings["dims"])
        made = found.encode(torch.zeros(1, channels, window)).shape[1]
        if made != found.dims:
            raise ValueError(f"an embedder of {found.dims} dimensions makes {made}")
        return found


def _sample(recordings: Sequence[Floats], scaling: Scaling, window: int, step: int, most: int) -> Floats32:
    """Windows of all files, evenly taken; those with a bad cell only where there are no others."""
    long = [rows for rows in recordings if rows.shape[1] >= window]
    every = -(-sum(count_windows(rows.shape[1], window, step) for rows in long) // most)
    if not every:
        longest = max((rows.shape[1] for rows in recordings), default=0)
        raise ValueError(f"no window of {window} rows in {len(recordings)} recordings; the longest has {longest} rows")
    taken = [
        (Windows(scaling.apply(rows), window, step)[:][::every], whole_windows(rows, window, step)[::every])
        for rows in long
    ]
    sample = np.concatenate([some for some, _ in taken])
    whole = np.concatenate([good for _, good in taken])
    return np.ascontiguousarray(sample[whole] if whole.any() else sample)


def whole_windows(rows: Floats, window: int, step: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which windows have no bad cell."""
    bad = np.concatenate([[0], np.cumsum(~np.isfinite(rows).all(0))])
    return np.asarray((bad[window:] - bad[:-window])[::step] == 0)


def _moved(windows: Tensor, device: torch.device) -> Tensor:
    """Windows on a device. Of those that overlap only the rows that lie under them travel, many times less."""
    count, channels, size = windows.shape
    step, channel, row = windows.stride()
    rows = (count - 1) * step + size
    if not (count and row == 1 and 0 < step < size and rows <= channel):
        return windows.to(device)
    return windows.as_strided((channels, rows), (channel, 1)).to(device).unfold(1, size, step).transpose(0, 1)


def _padded(windows: Tensor) -> Tensor:
    if len(windows) == BLOCK:
        return windows
    return torch.cat([windows, windows.new_zeros(BLOCK - len(windows), *windows.shape[1:])])
