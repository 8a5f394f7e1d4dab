"""An index for very many references: each query looks only at those near some of its nearest centres.

The references lie in lists by their nearest centre (k-means, without chance). Within the lists looked at the search is
the exact one, so an answer depends neither on the batch nor on the number of threads; what it misses lies in lists not
looked at. Centres and lists are plain tensors: a stored index is the same index everywhere.

The exact search is one product of matrices and hard to beat: over 400,000 references of 128 dimensions the index takes
2.4 times as long, at a recall of 0.998 (faiss's inverted lists over 100,000: 2.1 times, at 0.991). The one grows with
the number of references, the other with its root: they should meet at some two million.

May import: actors.knn_exact, torch, stdlib. Tests: tests/unit/test_knn.py. Measured by: benchmarks/knn.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from actors.knn_exact import BLOCK, ExactSearch, sparse_products

PAYS_FROM = 4_000_000  # references; put there from what 100,000 and 400,000 take, see below
LEAST = 4096  # references below which lists are not worth their name
PAIRS = 1 << 19  # looked at at once: 4 MB for each of their arrays
PROBES = 64  # lists that a query looks at
ROUNDS = 8  # of k-means
SAMPLE = 64  # references a list, of which the centres are learnt


def hindrance(search: ExactSearch) -> str:
    """Why there can be no index over these references; nothing where there can."""
    if search.metric == "manhattan":
        return "The approximate index knows no manhattan distance: the search is exact."
    if search.references.device.type != "cpu":
        return "On a GPU the search is exact: there it needs no index."
    if search.count < LEAST:
        return f"Fewer than {LEAST} references need no index: the search is exact."
    return ""


class InvertedIndex:
    """Finds most of the k nearest references of `search`. Trained, or put together from the `trained` tensors."""

    def __init__(self, search: ExactSearch, trained: Mapping[str, Tensor] | None = None) -> None:
        self.search = search
        if trained is not None and "lists.centres" in trained:
            self.centres, self.list_of = trained["lists.centres"], trained["lists.members"]
            self._check()
        else:
            self.centres = _centres(search.singles, 2 ** round(math.log2(2 * math.sqrt(search.count))))
            self.list_of = _nearest_of(self.centres, search.singles)
        order = self.list_of.long().argsort(stable=True)
        self.numbers = order  # of the references, list by list
        self.singles, self.bias = search.singles[order], search.bias[order]
        self.sizes = torch.bincount(self.list_of, minlength=len(self.centres))
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.probes = min(PROBES, len(self.centres))
        self.coarse = ExactSearch(self.centres, self.probes, "euclidean", False)
        self.looked_at = len(self.centres) // 12 + search.count * self.probes // len(self.centres)

    def _check(self) -> None:
        lists, count = self.list_of, self.search.count
        if self.centres.shape[1:] != (self.search.dims,) or lists.shape != (count,) or lists.dtype != torch.int32:
            raise ValueError("the stored index does not belong to these references")
        if not 0 <= int(lists.min()) <= int(lists.max()) < len(self.centres):
            raise ValueError("the stored index names lists that it does not have")

    def tensors(self) -> dict[str, Tensor]:
        """`lists.centres` (lists, dims) float32 and `lists.members` (n,) int32: the list of each reference."""
        return {"lists.centres": self.centres, "lists.members": self.list_of}

    def nearest(self, queries: Tensor, distances: bool = True, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As ExactSearch.nearest, of the references in the lists looked at."""
        queries = queries.float()
        block = max(1, min(BLOCK, PAIRS // self.looked_at))
        parts = [self._block(some, distances, labels) for some in queries.split(block)]
        distance, numbers = (torch.cat([part[at] for part in parts]) for at in (0, 1))
        return (distance.sqrt() if self.search.metric == "euclidean" else distance), numbers

    def _block(self, queries: Tensor, distances: bool, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        singles, sizes = self.search.prepared(queries)
        lists = self.coarse.nearest(singles, False)[1]
        counts = self.sizes[lists].sum(1)
        short = (counts < self.search.k).nonzero()[:, 0]
        if len(short):  # too little there to choose from
            return self._with_exact(queries, short, distances, labels)
        return self.search.choose(queries, sizes, self._looked_at(singles, lists, counts), distances, labels)

    def _with_exact(
        self, queries: Tensor, short: Tensor, distances: bool, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`short` queries by the exact search, the others as ever."""
        there = torch.ones(len(queries), dtype=torch.bool).index_fill(0, short, False)
        distance = torch.empty(len(queries), self.search.k, dtype=torch.float64)
        numbers = torch.empty(len(queries), self.search.k, dtype=torch.int64)
        exact = self.search.nearest(queries[short], distances, labels)
        distance[short] = exact[0].square() if self.search.metric == "euclidean" else exact[0]
        numbers[short] = exact[1]
        if there.any():
            distance[there], numbers[there] = self._block(queries[there], distances, labels)
        return distance, numbers

    def _looked_at(self, singles: Tensor, lists: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, numbers, keys) of all references in the lists of each query; rows ascend."""
        sizes = self.sizes[lists].flatten()
        ends = sizes.cumsum(0)
        at = torch.arange(int(ends[-1])) + (self.starts[lists].flatten() - (ends - sizes)).repeat_interleave(sizes)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        products = sparse_products(singles, self.singles, starts, at)
        alpha = -1 if self.search.metric == "cosine" else -2
        rows = torch.arange(len(singles)).repeat_interleave(counts)
        return rows, self.numbers[at], self.bias[at] + alpha * products


def _centres(singles: Tensor, lists: int) -> Tensor:
    """k-means over evenly taken references, from evenly taken ones; a centre without any stays where it is."""
    sample = singles[:: -(-len(singles) // (SAMPLE * lists))]
    centres = sample[:: len(sample) // lists][:lists].clone()
    for _ in range(ROUNDS):
        nearest = _nearest_of(centres, sample).long()
        sums = torch.zeros(centres.shape, dtype=torch.float64).index_add_(0, nearest, sample.double())
        counts = torch.bincount(nearest, minlength=len(centres))[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres.double()).float()
    return centres


def _nearest_of(centres: Tensor, vectors: Tensor) -> Tensor:
    search = ExactSearch(centres, 1, "euclidean", False)
    return search.nearest(vectors, False)[1][:, 0].to(torch.int32)
