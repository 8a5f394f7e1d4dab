"""Rivals for benchmarks/quality.py, given the same labelled windows as JOS: MiniRocket with nearest neighbours, and
statistics with a ridge classifier (scikit-learn).

MiniRocket is written here after its paper (Dempster, Schmidt, Webb 2021: 84 kernels, up to 32 dilations, about 10,000
features, biases from quantiles of training windows, padding in turn; several channels as in the authors' multivariate
variant), because sktime's own needs numba, which JOS does not bring.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from actors.encoders import statistics

Labels = npt.NDArray[np.int64]
ALPHAS = np.logspace(-3, 3, 10)
FEATURES = 9_996


class MiniRocket:
    def __init__(self, windows: Tensor, seed: int) -> None:
        _, channels, length = windows.shape
        generator = np.random.default_rng(seed)
        self.kernels = torch.full((84, 1, 9), -1.0)
        for kernel, three in zip(self.kernels, itertools.combinations(range(9), 3), strict=True):
            kernel[0, list(three)] = 2
        self.plan = _dilations(length, FEATURES // 84)
        self.hears = [_hears(channels, generator) for _ in self.plan]
        self.biases: list[Tensor] = []
        at = 0
        for (dilation, count), hears in zip(self.plan, self.hears, strict=True):
            share = torch.tensor([((at + n + 1) * (math.sqrt(5) + 1) / 2) % 1 for n in range(84 * count)])
            at += 84 * count
            picked = torch.from_numpy(generator.integers(len(windows), size=84))
            response = self._convolve(windows[picked], hears, dilation)
            own = response[torch.arange(84), torch.arange(84)]
            self.biases.append(torch.stack([own[k].quantile(share[k * count : (k + 1) * count]) for k in range(84)]))

    def features(self, windows: Tensor) -> Tensor:
        return torch.cat([self._features(some) for some in windows.split(64)])

    def _features(self, windows: Tensor) -> Tensor:
        made = []
        for nth, ((dilation, count), hears, biases) in enumerate(zip(self.plan, self.hears, self.biases, strict=True)):
            response = self._convolve(windows, hears, dilation)
            inner = response[..., 4 * dilation : response.shape[-1] - 4 * dilation]
            padded = ((torch.arange(84) + nth) % 2 == 0)[:, None]
            for bias in biases.T[:count]:
                whole, middle = ((some > bias[None, :, None]).float().mean(-1) for some in (response, inner))
                made.append(torch.where(padded[None, :, 0], whole, middle) if inner.shape[-1] else whole)
        return torch.cat(made, 1)

    def _convolve(self, windows: Tensor, hears: Tensor, dilation: int) -> Tensor:
        mixed = torch.einsum("ncl,kc->nkl", windows, hears)
        return F.conv1d(mixed, self.kernels, dilation=dilation, padding=4 * dilation, groups=84)


def _dilations(length: int, features: int) -> list[tuple[int, int]]:
    """(dilation, features of each kernel at it)."""
    most = min(features, 32)
    exponent = math.log2(max((length - 1) / 8, 1))
    dilations, counts = np.unique(np.logspace(0, exponent, most, base=2).astype(int), return_counts=True)
    counts = (counts * (features / most)).astype(int)
    for at in range(features - counts.sum()):
        counts[at % len(counts)] += 1
    return list(zip(dilations.tolist(), counts.tolist(), strict=True))


def _hears(channels: int, generator: np.random.Generator) -> Tensor:
    """Which channels each kernel adds up: 1 to 9, few more often."""
    hears = torch.zeros(84, channels)
    for kernel in hears:
        count = int(2 ** generator.uniform(0, math.log2(min(channels, 9) + 1)))
        kernel[torch.from_numpy(generator.permutation(channels)[:count])] = 1
    return hears


def minirocket_neighbours(
    train: Tensor, labels: Labels, validation: tuple[Tensor, Labels] | None, test: Tensor, seed: int
) -> Labels:
    """Standardised or not and 1, 3 or 5 neighbours: as validation says, or cross-validation where there is none."""
    made = MiniRocket(train, seed)
    options = [
        make_pipeline(*scaler, KNeighborsClassifier(min(k, len(train))))
        for scaler, k in itertools.product(((), (StandardScaler(),)), (1, 3, 5))
    ]
    rows = made.features(train).numpy()
    held = None if validation is None else (made.features(validation[0]).numpy(), validation[1])
    scores = [_score(option, rows, labels, held) for option in options]
    best = options[int(np.argmax(scores))].fit(rows, labels)
    return np.asarray(best.predict(made.features(test).numpy()))


def _score(
    option: object, rows: npt.NDArray[np.float32], labels: Labels, held: tuple[npt.NDArray[np.float32], Labels] | None
) -> float:
    if held is not None:
        return float(option.fit(rows, labels).score(*held))  # type: ignore[attr-defined]
    folds = min(5, int(np.bincount(labels)[np.unique(labels)].min()))
    if folds < 2:
        return 0.0
    return float(cross_val_score(option, rows, labels, cv=StratifiedKFold(folds)).mean())


def statistics_ridge(train: Tensor, labels: Labels, test: Tensor) -> Labels:
    """The same statistics that JOS's own encoder `stats` takes, standardised; the penalty by leave-one-out."""
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(ALPHAS)).fit(_statistics(train), labels)
    return np.asarray(model.predict(_statistics(test)))


def _statistics(windows: Tensor) -> npt.NDArray[np.float64]:
    return np.asarray(torch.cat([statistics(some) for some in windows.split(128)]).double().numpy())
