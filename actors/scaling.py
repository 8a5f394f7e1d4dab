"""Scalings: sensor rows of any unit to numbers around 0, and what a window keeps of its level and amplitude.

    global         by the spread of each channel over all training rows: level, amplitude and shape count
    centred        each window without its own mean: amplitude and shape count, a drifting level does not
    differences    each window as steps from row to row: the same, and slow courses count for less
    window         each window by its own mean and spread: only the shape counts
    window+spread  the same, with the logarithm of the spreads as features of their own

Nothing here looks beyond one window: a span of a large file knows no more, and must give the same on every index.

May import: numpy, torch, stdlib. Tests: tests/unit/test_scaling.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]

SCALINGS = ("global", "centred", "differences", "window", "window+spread")
DEFAULT_SCALING = "global"
CLIP = 8.0  # in spreads of the training rows: a broken sensor must not outweigh all others
_LOOSE = 1e5  # the same before a window has lost its level, which may have drifted far; still exact in 32 bits
_FLAT = 0.02  # of a channel's usual spread within a window: below, its shape is noise and is not blown up


@dataclass(frozen=True)
class Scaling:
    """Centre and spread of each channel, as (channels, 1). Blind to the outermost hundredths of the training rows, so
    that a placeholder such as -999.25 in a few rows does not flatten everything else."""

    centre: Floats
    spread: Floats
    kind: str = DEFAULT_SCALING

    @classmethod
    def of(cls, rows: Floats, kind: str = DEFAULT_SCALING, window: int = 1) -> Scaling:
        """From the training rows of all files, (channels, rows); cells that are no finite number do not count.
        The kinds without a level ask how far a channel goes within so many rows. Raises ValueError."""
        if kind not in SCALINGS:
            raise ValueError(f"unknown scaling {kind!r}; known: {', '.join(SCALINGS)}")
        moments = [_moments(channel, kind, window) for channel in rows]
        centre, spread = (np.array(some, np.float64).reshape(-1, 1) for some in zip(*moments, strict=True))
        return cls(centre, spread, kind)

    def apply(self, rows: Floats) -> Floats32:
        """Rows of a file or a piece of it, before windows are cut. A bad cell becomes 0: its windows are blanked."""
        most = CLIP if self.kind == "global" else _LOOSE
        scaled = np.clip((rows - self.centre) / self.spread, -most, most)
        return np.nan_to_num(scaled).astype(np.float32)

    def windows(self, windows: Tensor) -> Tensor:
        """What the encoder sees of windows (n, channels, length) of scaled rows; the same shape."""
        if self.kind == "global":
            return windows
        if self.kind == "differences":
            first = torch.zeros_like(windows[..., :1])
            return torch.cat([first, windows.diff()], -1).clamp(-CLIP, CLIP)
        centred = windows - windows.mean(-1, keepdim=True)
        if self.kind == "centred":
            return centred.clamp(-CLIP, CLIP)
        return (centred / (_spread(centred)[..., None] + _FLAT)).clamp(-CLIP, CLIP)

    def extras(self, windows: Tensor) -> Tensor | None:
        """Features (n, channels) that stand beside the encoder's, if this kind has any."""
        if self.kind != "window+spread":
            return None
        return (_spread(windows - windows.mean(-1, keepdim=True)) + _FLAT).log()

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "centre": self.centre.ravel().tolist(), "spread": self.spread.ravel().tolist()}

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> Scaling:
        if settings["kind"] not in SCALINGS:
            raise ValueError(f"unknown scaling {settings['kind']!r}; known: {', '.join(SCALINGS)}")
        centre, spread = (np.array(settings[key], np.float64).reshape(-1, 1) for key in ("centre", "spread"))
        if centre.shape != spread.shape or not np.isfinite([centre, spread]).all() or not (spread > 0).all():
            raise ValueError("a scaling needs a finite centre and a spread above 0 for each channel")
        return cls(centre, spread, settings["kind"])


def _moments(values: Floats, kind: str, window: int) -> tuple[float, float]:
    """Centre and spread of one channel."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    usual = np.clip(finite, *np.quantile(finite, [0.01, 0.99]))
    centre = float(usual.mean())
    if kind == "differences" and len(finite) > 1:
        finite = np.diff(usual)
        usual = np.clip(finite, *np.quantile(finite, [0.01, 0.99]))
    elif kind != "global" and len(finite) >= window > 1:
        blocks = usual[: len(usual) // window * window].reshape(-1, window)  # clipped first: one bad row moves a mean
        usual = (blocks - blocks.mean(1, keepdims=True)).ravel()
    return centre, next((float(spread) for spread in (usual.std(), finite.std()) if spread > 0), 1.0)


def _spread(centred: Tensor) -> Tensor:
    return centred.square().mean(-1).sqrt()
