"""Encoders: sensor windows (n, channels, length) to embeddings (n, features). Open, seeded, nothing to download.

    hydra   groups of random kernels compete at each moment; counts of their wins, and all of `stats`
    rocket  84 fixed kernels at several dilations; how often each is over a bias, and levels per channel
    stats   statistics per channel, of its differences and spectrum, and across channels

`hydra` is the default: over nine labelled sets and few examples it had the best mean accuracy with k nearest
neighbours (0.896, rocket 0.879, stats 0.824: benchmarks/results/encoders.md). Its lead comes from sets where the
shape decides; on movements of many channels `rocket` is as good, at twice the speed. Kernels come from a seeded CPU
generator, all else is fitted on the reference windows without chance: every index of a job has the same encoder.

May import: torch, stdlib. Tests: tests/unit/test_encoders.py. Measured by: benchmarks/encoders.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

DEFAULT_ENCODER = "hydra"
SHORTEST_WINDOW = 3
TAPS = 9
COMPONENTS = 128  # dimensions kept: cost no accuracy on any set measured, and neighbours are found 8 times faster
_NOTHING = 1e-4  # responses closer than this are rounding: a flat signal must not be told apart by it


class Encoder:
    """Base: raw features, each scaled by what it does over the reference windows, then their principal components."""

    name: ClassVar[str]
    # µs of one core: a window; a value; a moment at a dilation; the same for each channel. Measured, block 128.
    cost: ClassVar[tuple[float, float, float, float]]

    def __init__(self, channels: int, window: int, device: str = "cpu", seed: int = 0) -> None:
        if channels < 1 or window < SHORTEST_WINDOW:
            raise ValueError(
                f"{self.name} needs at least 1 channel and windows of {SHORTEST_WINDOW} rows, "
                f"not {channels} and {window}"
            )
        self.channels, self.window, self.device = channels, window, torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)
        self.dilations = _dilations(window)
        # what lies between two steps should fit a CPU's cache; a GPU wants much at once
        self.block = 8192 if self.device.type == "cuda" else _power_of_two(4096 / window, 16, 128)
        self.basis: Tensor | None = None
        self.prepare()

    def prepare(self) -> None:
        """Draw what is random."""

    def adapt(self, windows: Tensor) -> None:
        """Fit what `raw` needs."""

    def raw(self, windows: Tensor) -> Tensor:
        raise NotImplementedError

    def parts(self) -> dict[str, Tensor]:
        """Tensors that `raw` needs."""
        return {}

    def take(self, parts: Mapping[str, Tensor]) -> None:
        """Put `parts` of another of the same kind and shape in place of the own."""

    def fit(self, windows: Tensor) -> None:
        """Learn from reference windows. They are not altered."""
        windows = windows.to(self.device)
        self.adapt(windows)
        raw = self._raw(windows)
        spread = raw.std(0, correction=0)
        self.centre, self.scale = raw.mean(0), torch.where(spread > 1e-6, 1 / spread, 0)
        if raw.shape[1] > COMPONENTS:
            self.basis = _principal((raw - self.centre) * self.scale)

    def encode(self, windows: Tensor) -> Tensor:
        # in double: how a matrix product rounds depends on the batch, and here nobody sees it
        scaled = (self._raw(windows.to(self.device)) - self.centre) * self.scale
        return (scaled if self.basis is None else scaled @ self.basis).float()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that was drawn or fitted, on the CPU, each with memory of its own: what `restore` needs."""
        fitted = {"centre": self.centre, "scale": self.scale, **self.parts()}
        if self.basis is not None:
            fitted["basis"] = self.basis
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in fitted.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become the encoder that `tensors` were taken from. Raises KeyError or ValueError when they do not fit."""
        here = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self.centre, self.scale, self.basis = here["centre"], here["scale"], here.get("basis")
        self.take(here)
        wanted = self.raw(torch.zeros(1, self.channels, self.window, device=self.device)).shape[1]
        sizes = {len(self.centre), len(self.scale), wanted if self.basis is None else len(self.basis)}
        if sizes != {wanted}:
            raise ValueError(f"{self.name} has {wanted} features, its tensors are of {sorted(sizes)}")

    def _raw(self, windows: Tensor) -> Tensor:
        return torch.cat([self.raw(some) for some in windows.split(self.block)]).double()

    def seconds(self) -> float:
        """What a window takes one CPU core, roughly. A constant of the shape, so that plans do not vary."""
        each, value, moment, heard = self.cost
        moments = self.window * len(self.dilations)
        values = self.channels * self.window
        return (each + value * values + moments * (moment + heard * self.channels)) * 1e-6


class Stats(Encoder):
    name = "stats"
    cost = (4, 0.055, 0, 0)

    def raw(self, windows: Tensor) -> Tensor:
        return statistics(windows)


class Hydra(Encoder):
    """After the idea of competing dictionaries: in each group the kernel with the largest response wins the
    moment. Asked of the signal and of its differences."""

    name = "hydra"
    cost = (5, 0.055, 0.08, 0.0145)
    groups, rivals = 8, 8

    def prepare(self) -> None:
        self.kernels = [[self._draw().to(self.device) for _ in self.dilations] for _ in ("signal", "differences")]

    def parts(self) -> dict[str, Tensor]:
        flat = [kernel for kernels in self.kernels for kernel in kernels]
        return {f"kernel.{at}": kernel for at, kernel in enumerate(flat)}

    def take(self, parts: Mapping[str, Tensor]) -> None:
        each = len(self.dilations)
        self.kernels = [
            [_alike(parts[f"kernel.{at * each + nth}"], kernel) for nth, kernel in enumerate(kernels)]
            for at, kernels in enumerate(self.kernels)
        ]

    def _draw(self) -> Tensor:
        """Kernels without a mean, so that the level does not choose the winner; a group hears half of the channels."""
        kernels = torch.randn(self.groups, self.rivals, 1, TAPS, generator=self.generator)
        kernels = kernels - kernels.mean(-1, keepdim=True)
        kernels = kernels / kernels.abs().sum(-1, keepdim=True)
        hears = torch.zeros(self.groups, 1, self.channels, 1)
        for group in hears:
            group[0, torch.randperm(self.channels, generator=self.generator)[: self.channels // 2 + 1]] = 1
        return (kernels * hears).flatten(0, 1)

    def raw(self, windows: Tensor) -> Tensor:
        features = [statistics(windows)]
        for kernels, signal in zip(self.kernels, (windows, windows.diff()), strict=True):
            for kernel, dilation in zip(kernels, self.dilations, strict=True):
                response = _convolve(signal, kernel, dilation).unflatten(1, (self.groups, self.rivals))
                best = response.amax(2, keepdim=True).clamp(min=_NOTHING)
                features.append(_count(torch.ge, response, best).flatten(1).sqrt())
        return torch.cat(features, 1)


class Rocket(Encoder):
    """After the idea of MiniRocket: 84 kernels of six −1 and three 2, each on its own draw of channels. The biases
    are quantiles of the responses over the reference windows."""

    name = "rocket"
    cost = (5, 0.01, 0.08, 0.014)
    biases = 4
    thresholds: list[Tensor]

    def prepare(self) -> None:
        shapes = torch.full((84, 1, TAPS), -1.0)
        for shape, three in zip(shapes, itertools.combinations(range(TAPS), 3), strict=True):
            shape[0, list(three)] = 2
        self.kernels = [(shapes * self._hears()).to(self.device) for _ in self.dilations]

    def _hears(self) -> Tensor:
        """For each kernel 1 to 9 channels, few more often than many."""
        hears = torch.zeros(84, self.channels, 1)
        most = math.log2(min(self.channels, 9) + 1)
        for kernel in hears:
            count = int(2 ** (torch.rand((), generator=self.generator).item() * most))
            kernel[torch.randperm(self.channels, generator=self.generator)[:count]] = 1
        return hears

    def parts(self) -> dict[str, Tensor]:
        kernels = {f"kernel.{at}": kernel for at, kernel in enumerate(self.kernels)}
        return kernels | {f"thresholds.{at}": some for at, some in enumerate(self.thresholds)}

    def take(self, parts: Mapping[str, Tensor]) -> None:
        self.kernels = [_alike(parts[f"kernel.{at}"], kernel) for at, kernel in enumerate(self.kernels)]
        self.thresholds = [parts[f"thresholds.{at}"] for at in range(len(self.kernels))]

    def adapt(self, windows: Tensor) -> None:
        golden = (math.sqrt(5) + 1) / 2  # its multiples spread evenly over 0 … 1 for each kernel
        share = (torch.arange(1, 84 * self.biases + 1) * golden % 1).reshape(self.biases, 84)
        self.thresholds = []
        some = windows[:: -(-len(windows) // 128)]
        for kernel, dilation in zip(self.kernels, self.dilations, strict=True):
            response = _convolve(some, kernel, dilation).transpose(0, 1).flatten(1)
            response = response[:, :: -(-response.shape[1] // 20_000)].sort(1).values
            at = (share * (response.shape[1] - 1)).long().to(self.device)
            self.thresholds.append(response.gather(1, at.T).T[..., None] + _NOTHING)

    def raw(self, windows: Tensor) -> Tensor:
        features = [levels(windows)]
        for kernel, dilation, thresholds in zip(self.kernels, self.dilations, self.thresholds, strict=True):
            response = _convolve(windows, kernel, dilation)
            features += [_count(torch.gt, response, threshold) / self.window for threshold in thresholds]
        return torch.cat(features, 1)


ENCODERS: dict[str, type[Encoder]] = {encoder.name: encoder for encoder in (Hydra, Rocket, Stats)}


def levels(windows: Tensor) -> Tensor:
    """Of each channel: where it lies, how far it goes and how rough it is."""
    spread, rough = windows.std(-1, correction=0), windows.diff().abs().mean(-1)
    return torch.cat([windows.mean(-1), spread, windows.amin(-1), windows.amax(-1), rough], 1)


def statistics(windows: Tensor) -> Tensor:
    """Of each channel: level, spread, shape of the distribution, roughness, memory, course and spectrum; and how
    the channels go together."""
    length = windows.shape[-1]
    mean = windows.mean(-1, keepdim=True)
    spread = (windows - mean).square().mean(-1).sqrt()
    unit = (windows - mean) / (spread[..., None] + 1e-3)
    step = windows.diff()
    rough = step.square().mean(-1).sqrt()
    time = torch.linspace(-1, 1, length, device=windows.device)
    features = [
        mean[..., 0],
        *(spread, (spread + 1e-3).log(), step.abs().mean(-1), rough, (rough + 1e-3).log()),
        *(unit.pow(3).mean(-1), unit.pow(4).mean(-1).clamp(max=20)),
        _quantiles(windows).flatten(1),
        _share(unit[..., 1:] * unit[..., :-1] < 0),
        _share(step > 0),
        (windows * time).mean(-1),
        F.adaptive_avg_pool1d(windows, min(8, length)).flatten(1),
        F.adaptive_avg_pool1d(unit.square(), min(4, length)).flatten(1),
        *((unit[..., lag:] * unit[..., :-lag]).mean(-1) for lag in _lags(length)),
        *_bands(unit),
    ]
    if windows.shape[1] > 1:
        first, second = torch.triu_indices(windows.shape[1], windows.shape[1], 1, device=windows.device)
        features.append((unit @ unit.transpose(1, 2) / length)[:, first, second])
    return torch.cat(features, 1)


def _share(true: Tensor) -> Tensor:
    return true.to(torch.float32).mean(-1)


def _lags(length: int) -> list[int]:
    return [lag for lag in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if lag < length // 2]


def _quantiles(windows: Tensor) -> Tensor:
    share = torch.tensor([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], device=windows.device)
    return windows.sort(-1).values[..., (share * (windows.shape[-1] - 1)).round().long()]


def _bands(unit: Tensor) -> list[Tensor]:
    """Logarithm of the power in up to eight bands, each twice as wide as the one before or so."""
    power = torch.fft.rfft(unit).abs().square()[..., 1:] / unit.shape[-1]
    count = power.shape[-1]
    edges = sorted({0, *(round(count ** (band / 8)) for band in range(9))})
    return [(power[..., low:high].sum(-1) + 1e-3).log() for low, high in itertools.pairwise(edges)]


def _alike(given: Tensor, own: Tensor) -> Tensor:
    if given.shape != own.shape:
        raise ValueError(f"kernels of shape {tuple(given.shape)} where {tuple(own.shape)} belongs")
    return given


def _power_of_two(wanted: float, least: int, most: int) -> int:
    return int(min(max(2 ** int(math.log2(wanted)), least), most)) if wanted >= 1 else least


def _dilations(window: int) -> list[int]:
    """Up to five, from 1 to where the kernel spans the window."""
    most = math.log2(max((window - 1) / (TAPS - 1), 1))
    return sorted({int(2 ** (most * part / 4)) for part in range(5)})


def _convolve(signal: Tensor, kernel: Tensor, dilation: int) -> Tensor:
    """Same length out as in. As an image one row high: the library is four times faster at those than at lines."""
    reach = (TAPS - 1) // 2 * dilation
    return F.conv2d(signal[:, :, None], kernel[:, :, None], dilation=(1, dilation), padding=(0, reach))[:, :, 0]


def _count(compare: Callable[..., Tensor], response: Tensor, bound: Tensor) -> Tensor:
    """At how many moments the comparison holds. Written as floats at once: four times faster than by booleans."""
    return compare(response, bound, out=torch.empty_like(response)).sum(-1)


def _principal(rows: Tensor) -> Tensor:
    """The main directions of rows around 0, as columns; by way of the smaller of the two square products."""
    wide = rows.shape[0] < rows.shape[1]
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    keep = values > values[-1] * 1e-10
    keep[:-COMPONENTS] = False
    if not keep.any():  # all references are alike
        return torch.zeros(rows.shape[1], 1, dtype=rows.dtype, device=rows.device)
    return rows.T @ vectors[:, keep] / values[keep].sqrt() if wide else vectors[:, keep]
