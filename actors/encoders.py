"""Encoders: sensor windows (n, channels, length) to embeddings (n, features). Open, seeded, nothing to download.

    rocket  proportions of positive values of 84 fixed kernels at several dilations, plus levels per channel
    hydra   groups of random kernels compete at each moment; the embedding counts the winners
    stats   statistics per channel, of differences, of the spectrum and across channels

Kernels come from a seeded CPU generator, everything else is fitted on the reference windows without chance, so
every index of a job has the same encoder.

May import: numpy, torch, stdlib. Tests: tests/unit/test_encoders.py. Measured by: benchmarks/encoders.py.
"""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

DEFAULT_ENCODER = "rocket"
SHORTEST_WINDOW = 3


class Encoder:
    """Base: raw features, then the scaling of each feature, learned from the reference windows."""

    name: ClassVar[str]

    def __init__(self, channels: int, window: int, device: str = "cpu", seed: int = 0) -> None:
        if channels < 1 or window < SHORTEST_WINDOW:
            raise ValueError(
                f"{self.name} needs at least 1 channel and windows of {SHORTEST_WINDOW} rows, "
                f"not {channels} and {window}"
            )
        self.channels, self.window, self.device = channels, window, torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)
        self.centre = self.scale = torch.zeros(0)

    def fit(self, windows: Tensor) -> None:
        windows = windows.to(self.device)
        self.prepare(windows)
        raw = torch.cat([self.raw(some) for some in windows.split(256)]).double()
        spread = raw.std(0, correction=0)
        self.centre = raw.mean(0).float()
        self.scale = torch.where(spread > 1e-6, 1 / spread, 0).float()

    def encode(self, windows: Tensor) -> Tensor:
        return (self.raw(windows.to(self.device)) - self.centre) * self.scale

    def seconds(self) -> float:
        """What a window takes one CPU core, roughly."""
        return 1e-4

    def prepare(self, windows: Tensor) -> None:
        """Fit what `raw` needs."""

    def raw(self, windows: Tensor) -> Tensor:
        raise NotImplementedError


def levels(x: Tensor) -> Tensor:
    return torch.cat(
        [x.mean(-1), x.std(-1, correction=0), x.amin(-1), x.amax(-1), x[..., 1:].sub(x[..., :-1]).abs().mean(-1)], 1
    )


def dilations(window: int, taps: int, most: int) -> list[int]:
    top = max((window - 1) / (taps - 1), 1)
    exps = torch.linspace(0, math.log2(top), most)
    return sorted({int(2**e) for e in exps.tolist()})


class Rocket(Encoder):
    name = "rocket"
    taps = 9
    biases = 6
    most_dil = 5
    lev = True

    def prepare(self, windows):
        k = torch.full((84, 1, 9), -1.0)
        for i, three in enumerate(itertools.combinations(range(9), 3)):
            k[i, 0, list(three)] = 2.0
        self.dils = dilations(self.window, 9, self.most_dil)
        self.kern, self.bias = [], []
        for d in self.dils:
            mask = torch.zeros(84, self.channels, 1)
            for i in range(84):
                m = int(2 ** (torch.rand((), generator=self.generator).item() * math.log2(min(self.channels, 9) + 1)))
                mask[i, torch.randperm(self.channels, generator=self.generator)[:m]] = 1
            self.kern.append((k * mask).to(self.device))
            n = len(windows)
            conv = self.conv(windows, len(self.kern) - 1)  # n 84 W
            q = (torch.arange(1, 84 * self.biases + 1) * ((math.sqrt(5) + 1) / 2) % 1).reshape(self.biases, 84)
            flat = conv.permute(1, 0, 2).reshape(84, -1)
            if flat.shape[1] > 20000:
                flat = flat[:, :: -(-flat.shape[1] // 20000)]
            srt = flat.sort(1).values
            idx = (q * (srt.shape[1] - 1)).long()
            self.bias.append(srt.gather(1, idx.T).T.contiguous())  # biases, 84

    def conv(self, x, i):
        d = self.dils[i]
        return F.conv1d(x, self.kern[i], dilation=d, padding=4 * d)

    def raw(self, x):
        out = []
        for i in range(len(self.dils)):
            c = self.conv(x, i)
            for b in self.bias[i]:
                out.append((c > b[None, :, None]).float().mean(-1))
        if self.lev:
            out.append(levels(x))
        return torch.cat(out, 1)


class Hydra(Encoder):
    name = "hydra"
    groups, per = 32, 8

    def prepare(self, windows):
        self.dils = dilations(self.window, 9, 5)
        self.kern = []
        for _ in range(2):
            row = []
            for d in self.dils:
                w = torch.randn(self.groups, self.per, 1, 9, generator=self.generator)
                w = w - w.mean(-1, keepdim=True)
                w = w / w.abs().sum(-1, keepdim=True)
                mask = torch.zeros(self.groups, 1, self.channels, 1)
                for i in range(self.groups):
                    mask[
                        i, 0, torch.randperm(self.channels, generator=self.generator)[: max(1, self.channels // 2 + 1)]
                    ] = 1
                row.append((w * mask).reshape(-1, self.channels, 9).to(self.device))
            self.kern.append(row)

    def raw(self, x):
        out = []
        for diff in range(2):
            y = x[..., 1:] - x[..., :-1] if diff else x
            for i, d in enumerate(self.dils):
                c = F.conv1d(y, self.kern[diff][i], dilation=d, padding=4 * d)
                c = c.reshape(len(y), self.groups, self.per, -1)
                hi, at = c.max(2)
                lo, al = c.min(2)
                wide = torch.zeros_like(c)
                out.append(torch.zeros(c.shape[:3]).scatter_add_(2, at, hi).flatten(1))
                out.append(torch.zeros(c.shape[:3]).scatter_add_(2, al, torch.ones_like(lo)).flatten(1))
        out = torch.cat(out, 1).clamp(min=0).sqrt()
        return torch.cat([out, levels(x)], 1)


class Stats(Encoder):
    name = "stats"

    def raw(self, x):
        d = x[..., 1:] - x[..., :-1]
        m = x.mean(-1, keepdim=True)
        c = x - m
        s = c.square().mean(-1).sqrt()
        z = c / (s[..., None] + 1e-3)
        q = x.sort(-1).values
        pos = (torch.tensor([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]) * (self.window - 1)).round().long()
        out = [
            m.squeeze(-1),
            s,
            (s + 1e-3).log(),
            d.abs().mean(-1),
            d.square().mean(-1).sqrt(),
            (d.square().mean(-1).sqrt() + 1e-3).log(),
        ]
        out += [z.pow(3).mean(-1), z.pow(4).mean(-1).clamp(max=20), q[..., pos].flatten(1)]
        L = self.window
        for lag in sorted({1, 2, 3, 4, 6, 8, 12, 16, 24, 32}):
            if lag < L // 2:
                out.append((z[..., lag:] * z[..., :-lag]).mean(-1))
        out.append((c[..., 1:] * c[..., :-1] < 0).float().mean(-1))
        out.append((d > 0).float().mean(-1))
        t = torch.linspace(-1, 1, L)
        out.append((x * t).mean(-1))
        seg = F.adaptive_avg_pool1d(x, min(8, L))
        out.append(seg.flatten(1))
        out.append(F.adaptive_avg_pool1d(z.square(), min(4, L)).flatten(1))
        p = torch.fft.rfft(z).abs().square()[..., 1:] / L
        edges = [0]
        bands = min(8, p.shape[-1])
        e = torch.logspace(0, math.log10(p.shape[-1]), bands + 1).round().long().tolist()
        lo = 0
        for hi in e[1:]:
            if hi > lo:
                out.append((p[..., lo:hi].sum(-1) + 1e-3).log())
                lo = hi
        if self.channels > 1:
            i, j = torch.triu_indices(self.channels, self.channels, 1)
            out.append((z @ z.transpose(1, 2) / L)[:, i, j])
        return torch.cat([o.flatten(1) for o in out], 1)


ENCODERS = {e.name: e for e in (Rocket, Hydra, Stats)}
