"""The k nearest of stored vectors, exactly: found in single precision, decided in double precision.

One single-precision product gives a key of every pair. What it can have rounded is bounded, so the references that
may be among the nearest are known, a few more than k; only their distances are then computed in double precision,
pair by pair in a fixed order of summation. The answer is thus the same in any batch and however the work is cut.

May import: numpy, torch, stdlib. Tests: tests/unit/test_knn.py. Measured by: benchmarks/knn.py.
"""

from __future__ import annotations

import math
import threading
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

METRICS = ("euclidean", "cosine", "manhattan")
BLOCK = 1024  # queries at once on a CPU
KEYS = 1 << 22  # keys held at once: 16 MB; 64 times as many on a GPU
DOUBLES = 1 << 27  # numbers of the references kept in double precision as well: 1 GB
GROUP = 16  # keys of which the least stands for all, at most
GROUPS = 240  # and so many groups at least
_UNIT = {"highest": 2.0**-24}  # what a single-precision product may round; others may work in 8 bits
_SAME = 1e-12  # a cosine distance below this is rounding: the directions are equal
_CLOSE = 1e-6  # a squared distance below this share of the norms has lost digits: from the differences then
_HUGE = 1e18  # squares of norms beyond this may overflow single precision


@dataclass(frozen=True)
class Candidates:
    """Pairs of which the nearest are some; all that lie as near as the k-th of their row are among them."""

    rows: Tensor
    numbers: Tensor
    keys: Tensor
    doubt: Tensor  # for each row: keys that differ by no more may stand in the wrong order


class ExactSearch:
    """Finds the k nearest of `references` (n, dims) float32, of which the earlier wins where distances are equal."""

    def __init__(self, references: Tensor, k: int, metric: str, normalize: bool) -> None:
        self.k, self.metric = k, metric
        self.normalize = normalize or metric == "cosine"
        self.references = references.float().contiguous()
        self.count, self.dims = references.shape
        self.centre = None if self.normalize or metric == "manhattan" else _centre(self.references)
        self.plain = self.centre is None and not self.normalize  # vectors are used as they are given
        self.singles = self.references if self.plain else torch.empty_like(self.references)
        self.doubles: Tensor | None = None
        if references.device.type == "cpu" and metric != "manhattan" and self.count * self.dims <= DOUBLES:
            self.doubles = torch.empty(self.count, self.dims, dtype=torch.float64)
        self.norms = torch.zeros(self.count, dtype=torch.float64, device=references.device)
        for start in range(0, self.count, 1 << 14):
            self._store(slice(start, start + (1 << 14)))
        # a constant less in all keys orders them alike, and less of them is rounding
        self.level = float(self.norms.mean()) if metric == "euclidean" else 0.0
        self.bias = (self.norms - self.level if metric == "euclidean" else torch.zeros_like(self.norms)).float()
        self.most = float(self.bias.abs().amax())
        self.largest = float(self.norms.amax()) ** 0.5
        self.group = _group(self.count, k)
        self.local = threading.local()
        _announce()

    def _store(self, some: slice) -> None:
        exact = self.prepare(self.references[some])
        if not self.plain:
            self.singles[some] = exact.float()
        if self.doubles is not None:
            self.doubles[some] = exact
        self.norms[some] = _squares(exact)

    def prepare(self, vectors: Tensor) -> Tensor:
        """The vectors (n, dims) in double precision, as distances are taken of them."""
        exact = vectors.double()
        if self.normalize:
            return exact / exact.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return exact if self.centre is None else exact - self.centre

    def nearest(self, queries: Tensor, distances: bool = True, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(distances, numbers) of the k nearest references of each of the queries (n, dims), nearest first. Without
        `distances` they are left out where the order is certain without them: what stands there means nothing. With
        `labels` (one a reference) an order is certain enough if that of the labels is, and only they are right."""
        queries = queries.float()
        large = 1 if queries.device.type == "cpu" else 64
        block = min(max(len(queries), 1), BLOCK * large)
        chunk = max(KEYS * large // block // GROUP, self.k) * GROUP
        parts = [self._block(some, chunk, distances, labels) for some in queries.split(block)]
        distance = torch.cat([part[0] for part in parts])
        return (distance.sqrt() if self.metric == "euclidean" else distance), torch.cat([part[1] for part in parts])

    def _block(self, queries: Tensor, chunk: int, distances: bool, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._decide(queries, self._candidates(queries, chunk), distances, labels)

    def choose(
        self,
        queries: Tensor,
        sizes: Tensor,
        pairs: tuple[Tensor, Tensor, Tensor],
        distances: bool,
        labels: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(distances, squared for euclidean; numbers) of the k nearest of each query, if only those `pairs` are looked
        at: their rows, which ascend, numbers and keys; at least k of each row."""
        rows, numbers, keys = pairs
        places = _places(rows, len(queries))
        table = torch.full((len(queries), int(places.amax()) + 1), math.inf)
        table[rows, places] = keys
        last = _smallest(table, self.k)[:, -1].double()
        doubt = 2 * self._error(sizes, last)
        near = (~(keys > (last + doubt).float()[rows])).nonzero()[:, 0]
        found = Candidates(rows[near], numbers[near], keys[near], doubt)
        return self._decide(queries, found, distances, labels)

    def _decide(
        self, queries: Tensor, found: Candidates, distances: bool, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        numbers, keys = self._table(found, len(queries))
        if distances:
            return self._ranked(queries, numbers)
        keys, order = keys.double().sort(dim=1, stable=True)
        order, gaps = order[:, : self.k + 1], keys.diff()[:, : self.k]
        ranked, keys = numbers.gather(1, order), keys[:, : self.k]
        certain = gaps > found.doubt[:, None]
        if labels is not None:
            known = labels[ranked.clamp(max=self.count - 1)]
            certain |= (known[:, 1:] == known[:, :-1]) & gaps.isfinite()
        ranked = ranked[:, : self.k]
        doubtful = (~certain.all(1)).nonzero()[:, 0]
        if len(doubtful):
            keys[doubtful], ranked[doubtful] = self._ranked(queries[doubtful], numbers[doubtful])
        return keys, ranked

    def _candidates(self, queries: Tensor, chunk: int) -> Candidates:
        """What may be among the nearest of the queries, chunk by chunk of the references."""
        singles, sizes = self.prepared(queries)
        least: Tensor | None = None  # the k smallest keys of groups so far
        found: Candidates | None = None
        for start in range(0, self.count, chunk):
            end = min(start + chunk, self.count)
            keys, groups = self._keys(singles, start, end)
            least = _smallest(groups if least is None else torch.cat([least, groups], 1), self.k)
            last = least[:, -1].double()
            doubt = 2 * self._error(sizes, last)
            rows, numbers, key = _below(keys, groups, (last + doubt).float())
            if keys.shape[1] != end - start:
                real = numbers < end - start  # the rest only fills the last groups up
                rows, numbers, key = rows[real], numbers[real], key[real]
            found = self._joined(found, Candidates(rows, numbers + start, key, doubt))
            if len(found.rows) > 4 * self.k * len(queries):
                found = self._thinned(queries, found)
        assert found is not None
        return found

    def _joined(self, found: Candidates | None, more: Candidates) -> Candidates:
        """Rows ascend."""
        if found is None:
            return more
        rows, numbers = torch.cat([found.rows, more.rows]), torch.cat([found.numbers, more.numbers])
        order = rows.sort(stable=True).indices
        return Candidates(rows[order], numbers[order], torch.cat([found.keys, more.keys])[order], more.doubt)

    def _thinned(self, queries: Tensor, found: Candidates) -> Candidates:
        """Many lie equally near: the k that are nearest of each row."""
        order = (found.rows * self.count + found.numbers).argsort()
        rows, numbers, keys = found.rows[order], found.numbers[order], found.keys[order]
        order = self.distances(self.prepare(queries), rows, numbers).sort(stable=True).indices
        order = order[rows[order].sort(stable=True).indices]
        order = order[_places(rows, len(queries)) < self.k]
        return Candidates(rows[order], numbers[order], keys[order], found.doubt)

    def prepared(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The queries in single precision, and their norms."""
        if self.normalize:
            singles = self.prepare(queries).float()
        else:
            singles = queries if self.centre is None else queries - self.centre.float()
        return singles, torch.linalg.vector_norm(singles, dim=1).double()

    def _keys(self, queries: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys (n, references) that order the references as distances do, and the least of each group of them. What
        fills the last groups up is infinite."""
        width = _up(end - start, self.group)
        keys = self._scratch(len(queries), width)
        if end - start < width:
            keys[:, end - start :] = math.inf
        references, into = self.singles[start:end], keys[:, : end - start]
        if self.metric == "manhattan":
            into.copy_(torch.cdist(queries, references, p=1))
        else:
            alpha = -1 if self.metric == "cosine" else -2
            torch.addmm(self.bias[start:end], queries, references.T, alpha=alpha, out=into)
        return keys, keys if self.group == 1 else keys.unflatten(1, (self.group, -1)).amin(1)

    def _scratch(self, rows: int, columns: int) -> Tensor:
        """Memory for keys. On a CPU always the same: fresh pages cost as much as a tenth of a product."""
        if self.references.device.type != "cpu":
            return torch.empty(rows, columns, device=self.references.device)
        kept = getattr(self.local, "scratch", None)
        if kept is None or len(kept) < rows * columns:
            with torch.inference_mode(False):
                kept = self.local.scratch = torch.empty(rows * columns)
        return kept[: rows * columns].view(rows, columns)

    def _error(self, sizes: Tensor, least: Tensor) -> Tensor:
        """How far off the keys may be of references that count, given the k-th smallest key of some.

        A sum of n products, in any order, is wrong by n units of the sum of their sizes at most; a reference that
        counts is no further from the centre than the query and the distance between them together."""
        unit = _UNIT.get(torch.get_float32_matmul_precision(), 2.0**-8)
        share = 1.01 * (self.dims + 16) * unit
        if share > 0.01 or self.largest > _HUGE:
            return torch.full_like(least, math.inf)
        if self.metric == "manhattan":
            return 1.1 * share * least + (4 * unit * math.sqrt(self.dims) if self.normalize else 0)
        if self.metric == "cosine":
            return torch.full_like(least, share + _SAME)
        reach = 1.1 * (sizes.square() + (least + self.level)).clamp(min=0).sqrt() + 1.4 * sizes
        far = reach.clamp(max=self.largest) if share < 1e-3 else torch.full_like(reach, self.largest)
        error = share * (2.01 * sizes * far + self.most) + 1e-36
        return torch.where(sizes > _HUGE, math.inf, error)

    def _table(self, found: Candidates, count: int) -> tuple[Tensor, Tensor]:
        """(numbers, keys) with a line for each row; what fills it up has no number and an infinite key."""
        places = _places(found.rows, count)
        shape = count, int(places.amax()) + 1
        numbers = torch.full(shape, self.count, device=places.device)
        keys = torch.full(shape, math.inf, device=places.device)
        numbers[found.rows, places], keys[found.rows, places] = found.numbers, found.keys
        return numbers, keys

    def _ranked(self, queries: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """(distances, numbers) of the k nearest of each line of a table."""
        numbers = numbers.sort(dim=1).values
        rows, places = _where(numbers < self.count)
        distance = torch.full(numbers.shape, math.inf, dtype=torch.float64, device=numbers.device)
        distance[rows, places] = self.distances(self.prepare(queries), rows, numbers[rows, places])
        distance, order = distance.sort(dim=1, stable=True)
        return distance[:, : self.k], numbers.gather(1, order[:, : self.k])

    def distances(self, exact: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
        """Distances (squared for euclidean) of prepared queries' `rows`, which ascend, to references' `numbers`."""
        if self.doubles is None:
            return self._apart(exact, rows, numbers)
        starts = torch.searchsorted(rows, torch.arange(len(exact) + 1))
        products = sparse_products(exact, self.doubles, starts, numbers)
        if self.metric == "cosine":
            return _snapped(1 - products)
        sizes = _squares(exact)[rows] + self.norms[numbers]
        distance = sizes - 2 * products
        close = (distance <= _CLOSE * sizes).nonzero()[:, 0]
        if len(close):
            distance[close] = self._apart(exact, rows[close], numbers[close])
        return distance

    def _apart(self, exact: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
        """The same from the vectors themselves: slower, but nothing cancels out."""
        parts = []
        few = max(1, (KEYS if exact.device.type == "cpu" else KEYS * 64) // (4 * self.dims))
        for some, those in zip(rows.split(few), numbers.split(few), strict=True):
            references, queries = self.prepare(self.references[those]), exact[some]
            if self.metric == "cosine":
                parts.append(_snapped(1 - _folded(queries * references)))
            else:
                apart = queries - references
                parts.append(_folded(apart.abs() if self.metric == "manhattan" else apart.square()))
        return torch.cat(parts)


def _centre(references: Tensor) -> Tensor | None:
    """The middle of the references on a coarse grid, so that whole numbers stay whole; none where they lie around 0
    already."""
    mean, spread = torch.zeros(2, references.shape[1], dtype=torch.float64, device=references.device)
    for some in references.split(1 << 14):
        mean += some.double().sum(0) / len(references)
    for some in references.split(1 << 14):
        spread += (some.double() - mean).square().sum(0) / len(references)
    if not mean.square().sum() > 0.1 * spread.sum():
        return None
    step = torch.exp2(spread.sqrt().clamp(min=1e-300).log2().floor())
    coarse = (mean / step).round() * step
    return torch.where(spread > 1e-20 * mean.square(), coarse, references[0]).float().double()


def _group(count: int, k: int) -> int:
    """How many keys the least stands for: many groups for each neighbour, or most of them come into question."""
    group = GROUP
    while group > 1 and count // group < max(GROUPS, 16 * k):
        group //= 2
    return group


def _up(count: int, group: int) -> int:
    return -(-count // group) * group


def _smallest(keys: Tensor, k: int) -> Tensor:
    """The k smallest of each row, the largest of them last. NumPy is several times faster on a CPU."""
    if keys.device.type != "cpu":
        return keys.topk(k, 1, largest=False).values
    return torch.from_numpy(np.partition(keys.numpy(), k - 1, axis=1)[:, :k])


def _below(keys: Tensor, groups: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, columns, keys) of the keys that are not above their row's threshold, or not comparable."""
    rows, columns = _where(~(groups > threshold[:, None]))
    width = groups.shape[1]
    if keys.shape[1] == width:
        return rows, columns, keys[rows, columns]
    first = rows * keys.shape[1] + columns
    members = keys.flatten().take(first[:, None] + torch.arange(0, keys.shape[1], width, device=keys.device))
    at, member = _where(~(members > threshold[rows, None]))
    return rows[at], member * width + columns[at], members[at, member]


def _places(rows: Tensor, count: int) -> Tensor:
    """How many of its own row come before each; rows ascend."""
    counts = torch.bincount(rows, minlength=count)
    return torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]


def _where(true: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of what is true. NumPy is twenty times faster on a CPU."""
    if true.device.type != "cpu":
        rows, columns = true.nonzero(as_tuple=True)
        return rows, columns
    rows, columns = np.divmod(np.flatnonzero(true.numpy()), true.shape[1])
    return torch.from_numpy(rows), torch.from_numpy(columns)


def sparse_products(queries: Tensor, references: Tensor, starts: Tensor, numbers: Tensor) -> Tensor:
    """Inner products of pairs, each by itself: a sparse product gathers nothing. The pairs of query n are those from
    starts[n] to starts[n + 1]."""
    size, values = (len(queries), len(references)), torch.zeros(len(numbers), dtype=queries.dtype)
    pairs = torch.sparse_csr_tensor(starts, numbers, values, size=size)
    return torch.sparse.sampled_addmm(pairs, queries, references.T, beta=0.0).values()


def _announce() -> None:
    """The library says once that its sparse rows are young: here and not to the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(
            torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), size=(1, 1)
        )


def _squares(exact: Tensor) -> Tensor:
    return torch.linalg.vecdot(exact, exact)


def _folded(terms: Tensor) -> Tensor:
    """Sums of rows, by halves: the same order whatever the device and the number of rows."""
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        folded = terms[:, :half] + terms[:, half : 2 * half]
        terms = torch.cat([folded, terms[:, 2 * half :]], 1)
    return terms[:, 0]


def _snapped(distance: Tensor) -> Tensor:
    """What is only rounding becomes exactly 0."""
    return torch.where(distance > _SAME, distance, torch.where(distance.isnan(), distance, 0.0))
