"""Exact k nearest neighbours, in batches, on CPU or GPU, with the same answer whatever the batch.

Distances are computed in double precision. The reference's number sits in the lowest bits of its distance, so that
ties fall to the earlier reference and one `topk` does the ranking. Memory is bounded: references are taken in
chunks, and only the best k are kept from one to the next.

May import: numpy, torch, stdlib. Tests: tests/unit/test_knn.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

METRICS = ("euclidean", "cosine", "manhattan")
WEIGHTS = ("uniform", "distance")
PAIRS = 1 << 18  # distances held at once: 2 MB, which a CPU's cache holds; 64 times as many on a GPU
_SAME = 1e-12  # a squared distance below this share of the norms is rounding: the vectors are equal


class NearestNeighbours:
    """Remembers reference embeddings and their classes; scores queries by their k nearest references."""

    def __init__(
        self,
        references: Tensor,
        labels: npt.NDArray[np.int64],
        classes: int,
        *,
        n_neighbors: int = 5,
        metric: str = "euclidean",
        weights: str = "uniform",
        normalize_embeddings: bool = False,
    ) -> None:
        if metric not in METRICS or weights not in WEIGHTS:
            raise ValueError(f"unknown metric {metric!r} or weights {weights!r}")
        if not 1 <= n_neighbors <= len(references) or len(labels) != len(references):
            raise ValueError(f"{n_neighbors} neighbours of {len(references)} references, {len(labels)} labels")
        self.n_neighbors, self.metric, self.weights, self.classes = n_neighbors, metric, weights, classes
        self.normalize = normalize_embeddings or metric == "cosine"
        self.centre = references.double().mean(0)  # cosine has none; elsewhere it saves digits
        self.references = self._prepare(references)
        self.norms = self.references.square().sum(1)
        self.labels = torch.from_numpy(labels).to(references.device)
        self.index_bits = max(1, (len(references) - 1).bit_length())

    def scores(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(class per query, score per query and class). Scores sum to 1. Of classes with equal scores the one
        with the nearest member wins."""
        distance, index = self.neighbours(queries)
        if self.weights == "uniform":
            weight = torch.ones_like(distance)
        else:
            exact = distance == 0
            weight = torch.where(exact.any(1, keepdim=True), exact.double(), 1 / distance.clamp(min=1e-300))
        labels = self.labels[index]
        score = torch.zeros(len(queries), self.classes, dtype=torch.float64, device=queries.device)
        # one rank after the other: a scatter of all at once adds in no fixed order on a GPU
        rank = torch.full_like(score, self.n_neighbors)
        for nth in range(self.n_neighbors - 1, -1, -1):
            score.scatter_add_(1, labels[:, nth : nth + 1], weight[:, nth : nth + 1])
            rank.scatter_(1, labels[:, nth : nth + 1], nth)
        score /= score.sum(1, keepdim=True)
        return (score - 1e-9 * rank).argmax(1), score

    def neighbours(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and numbers of the k nearest references, nearest first."""
        queries = self._prepare(queries)
        pairs = PAIRS if queries.device.type == "cpu" else PAIRS * 64
        chunk = max(self.n_neighbors, pairs // max(len(queries), 1))
        best: Tensor | None = None
        for start in range(0, len(self.references), chunk):
            keys = self._keys(queries, slice(start, start + chunk))
            keys = keys if best is None else torch.cat([best, keys], 1)
            best = keys.topk(min(self.n_neighbors, keys.shape[1]), dim=1, largest=False, sorted=True).values
        assert best is not None
        bits = best.view(torch.int64)
        low = (1 << self.index_bits) - 1
        distance = (bits & ~low).view(torch.float64)
        return (distance.sqrt() if self.metric == "euclidean" else distance), bits & low

    def seconds(self) -> float:
        """What a query of 128 dimensions takes one CPU core, roughly; never timed, so that plans do not vary."""
        return 1e-6 + (40e-9 if self.metric == "manhattan" else 9e-9) * len(self.references)

    def _prepare(self, vectors: Tensor) -> Tensor:
        vectors = vectors.double()
        if self.normalize:
            vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-30)
        elif self.metric == "euclidean":
            vectors = vectors - self.centre
        return vectors

    def _keys(self, queries: Tensor, chunk: slice) -> Tensor:
        """Distances (squared for euclidean) with the reference's number in their lowest bits. Numbers that are
        not negative sort like their bits; subnormal ones come out of a zero distance and sort rightly too."""
        references = self.references[chunk]
        if self.metric == "manhattan":
            distance = torch.cdist(queries, references, p=1)
        elif self.metric == "cosine":
            distance = _snapped(1 - queries @ references.T, torch.ones_like(queries[:, :1]))
        else:
            norms = queries.square().sum(1, keepdim=True) + self.norms[chunk]
            distance = _snapped(norms.addmm(queries, references.T, alpha=-2), norms)
        numbers = torch.arange(chunk.start, chunk.start + len(references), device=queries.device)
        low = (1 << self.index_bits) - 1
        return ((distance.view(torch.int64) & ~low) | numbers).view(torch.float64)


def _snapped(distance: Tensor, size: Tensor) -> Tensor:
    """What is only rounding becomes exactly 0."""
    return torch.where(distance > _SAME * size, distance, 0)
