"""k nearest neighbours as a classifier: the classes of the nearest stored embeddings decide, whatever the batch.

The neighbours are exact up to a number of references; beyond it, and where asked for, an inverted index looks at a
part of them only (actors/knn_index.py), and says how much it finds. What is stored is plain tensors and JSON values.

May import: actors.knn_exact, actors.knn_index, numpy, torch, stdlib. Tests: tests/unit/test_knn.py. Measured by:
benchmarks/knn.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actors import knn_index
from actors.knn_exact import METRICS, ExactSearch
from actors.knn_index import InvertedIndex

__all__ = ["INDEXES", "METRICS", "WEIGHTS", "NearestNeighbours"]
WEIGHTS = ("uniform", "distance")
INDEXES = ("auto", "exact", "approximate")
SAMPLE = 256  # queries of which the recall is measured


class NearestNeighbours:
    """Remembers reference embeddings (n, dims), taken as float32, and their classes 0 … classes - 1; scores queries by
    their k nearest references. Of references equally near the earlier counts as the nearer."""

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
        index: str = "auto",
        trained: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`index` is `exact`, `approximate` or `auto`: approximate from so many references on that it pays. `trained`
        are the tensors of an index trained before. ValueError for what does not go together."""
        if metric not in METRICS or weights not in WEIGHTS or index not in INDEXES:
            raise ValueError(f"unknown metric {metric!r}, weights {weights!r} or index {index!r}")
        if not 1 <= n_neighbors <= len(references) or len(labels) != len(references):
            raise ValueError(f"{n_neighbors} neighbours of {len(references)} references, {len(labels)} labels")
        self.n_neighbors, self.metric, self.weights, self.classes = n_neighbors, metric, weights, classes
        self.normalize = normalize_embeddings
        self.asked = index
        self.labels = torch.from_numpy(labels).to(references.device)
        self.exact = ExactSearch(references, n_neighbors, metric, normalize_embeddings)
        self.approximate: InvertedIndex | None = None
        wanted = index == "approximate" or (index == "auto" and len(references) >= knn_index.PAYS_FROM)
        self.note = knn_index.hindrance(self.exact) if wanted else ""  # why the index asked for is not there
        if wanted and not self.note:
            self.approximate = InvertedIndex(self.exact, trained)

    @property
    def references(self) -> Tensor:
        """(n, dims) float32, as given."""
        return self.exact.references

    def scores(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(class per query, score per query and class). Scores sum to 1. Of classes with equal scores the one
        with the nearest member wins."""
        search, weighted = self.approximate or self.exact, self.weights == "distance"
        distance, index = search.nearest(queries, weighted, None if weighted else self.labels)
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
        """Distances (float64) and numbers of the k nearest references of each query (n, dims), nearest first."""
        return (self.approximate or self.exact).nearest(queries)

    def recall(self) -> float:
        """Which share of the true neighbours is found, measured on a sample of the references, each apart from
        itself. 1 where the search is exact."""
        if self.approximate is None or self.n_neighbors == 1:
            return 1.0
        references = self.exact.references
        queries = references[:: -(-len(references) // SAMPLE)]
        true, found = (search.nearest(queries, False)[1] for search in (self.exact, self.approximate))
        hits = int((true[:, :, None] == found[:, None]).sum()) - len(queries)
        return max(0.0, float(hits) / (len(queries) * (self.n_neighbors - 1)))

    def seconds(self) -> float:
        """What a query takes one CPU core, roughly; never timed, so that plans do not vary."""
        looked_at = len(self.labels) if self.approximate is None else self.approximate.looked_at
        each = 130e-9 if self.approximate is not None else 3.5e-9
        return float(
            4e-6 + (20e-9 if self.metric == "manhattan" else each) * looked_at * (1 + self.exact.dims / 128) / 2
        )

    def settings(self) -> dict[str, Any]:
        """What `restore` needs besides the tensors, as JSON values."""
        return {
            "classes": self.classes,
            "n_neighbors": self.n_neighbors,
            "metric": self.metric,
            "weights": self.weights,
            "normalize_embeddings": self.normalize,
            "index": self.asked if self.approximate is None else "approximate",
        }

    def tensors(self) -> dict[str, Tensor]:
        """`references` (n, dims) float32, `labels` (n,) int64, and those of the index where there is one."""
        trained = {} if self.approximate is None else self.approximate.tensors()
        stored = {"references": self.exact.references, "labels": self.labels, **trained}
        return {name: tensor.cpu().contiguous() for name, tensor in stored.items()}

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str = "cpu"
    ) -> NearestNeighbours:
        """The same neighbours again: they answer as those did whose `settings` and `tensors` these are. ValueError
        that says what is wrong with them."""
        lacking = [name for name in ("references", "labels") if name not in tensors]
        lacking += [name for name in ("classes", "n_neighbors", "metric", "weights") if name not in settings]
        if lacking:
            raise ValueError(f"the stored neighbours lack {', '.join(lacking)}")
        references, labels = tensors["references"], tensors["labels"]
        if references.dtype != torch.float32 or references.ndim != 2 or not references.isfinite().all():
            raise ValueError("the stored references are not finite float32 vectors")
        classes = int(settings["classes"])
        if labels.dtype != torch.int64 or labels.shape != references.shape[:1]:
            raise ValueError(f"{tuple(labels.shape)} stored labels for {len(references)} references")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"the stored labels are not all in 0 … {classes - 1}")
        return cls(
            references.to(device),
            labels.cpu().numpy(),
            classes,
            n_neighbors=int(settings["n_neighbors"]),
            metric=settings["metric"],
            weights=settings["weights"],
            normalize_embeddings=bool(settings.get("normalize_embeddings", False)),
            index=settings.get("index", "exact"),
            trained=tensors,
        )
