"""How much of the bare matrix product's speed is left to the nearest neighbours, and what does the index save?

    python -m benchmarks.knn [--small] [--rounds 5] [--queries 20480] [--threads 1]

The bar: 1,000,000 queries against 4,000 references of 1,000 dimensions at 0.9 of the speed of the bare float32 product
of the same shapes in the same batches. Cost is linear in the queries, so fewer are measured. Vectors are normal and
their classes mixed: the worst case, for hardly any two neighbours agree. Time is the processor's, of one process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.knn import NearestNeighbours
from benchmarks.harness import Report, Spread, bar, rounds, table

REFERENCES, DIMS, BATCH, BAR = 4000, 1000, 1024, 0.9
BLOCK = 128  # of the worker
CLASSES = 4


def seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def vectors(count: int, dims: int, seed: int) -> Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))


def clustered(count: int, dims: int, seed: int) -> Tensor:
    """As windows of machines lie: in many clouds, each along a few directions."""
    random = torch.Generator().manual_seed(seed)
    centres, ways = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in ((200, dims), (8, dims))
    )
    cloud = torch.randint(200, (count,), generator=random)
    along = torch.randn(count, 8, generator=random)
    return centres[cloud] + along @ ways * 0.5 + torch.randn(count, dims, generator=random) * 0.1


def search(references: Tensor, **options: Any) -> NearestNeighbours:
    labels = np.arange(len(references)) % CLASSES
    return NearestNeighbours(references, labels, CLASSES, **options)


def product(report: Report, queries: int, count: int) -> None:
    references, asked = vectors(REFERENCES, DIMS, 1), vectors(queries, DIMS, 2).split(BATCH)
    found = search(references, index="exact")
    out = torch.empty(BATCH, REFERENCES)
    contenders: dict[str, Callable[[], float]] = {
        "bare product": lambda: seconds(lambda: [torch.mm(some, references.T, out=out[: len(some)]) for some in asked]),
        "classes, votes of the k": lambda: seconds(lambda: [found.scores(some) for some in asked]),
        "neighbours and their distances": lambda: seconds(lambda: [found.neighbours(some) for some in asked]),
    }
    results = rounds(contenders, count)
    bare = results["bare product"]
    lines, ratios = [], {}
    for name, took in results.items():
        ratios[name] = Spread.of([one / other for one, other in zip(bare, took, strict=True)])
        lines.append([name, Spread.of([queries / one for one in took]).text(0), ratios[name].text(3)])
    report.raw["product"] = results
    met = ratios["classes, votes of the k"].median
    report.add(
        table(["", "queries/s", "of the bare product"], lines),
        f"{queries:,} queries in batches of {BATCH:,}, {REFERENCES:,} references of {DIMS:,} dimensions, 5 neighbours, "
        f"euclidean: {met:.3f} of the bare product (at least {BAR}: {bar(met >= BAR)}).",
    )


def blocks(report: Report, count: int) -> None:
    """The worker's shapes: a block of 128 queries of 128 dimensions."""
    lines = []
    for number in (100, 300, 1000):
        references, asked = vectors(number, 128, 3), vectors(BLOCK, 128, 4)
        found = search(references)
        many = asked.repeat(8, 1)
        took = rounds(
            {
                "one": lambda found=found, asked=asked: seconds(lambda: [found.scores(asked) for _ in range(80)]),  # type: ignore[misc]
                "eight": lambda found=found, many=many: seconds(lambda: [found.scores(many) for _ in range(10)]),  # type: ignore[misc]
            },
            count,
        )
        report.raw[f"blocks of {number}"] = took
        each = [Spread.of([one / 80 / BLOCK * 1e6 for one in took[name]]).text(2) for name in took]
        lines.append([f"{number:,}", *each])
    report.add(table(["references of 128 dimensions", "µs a query, blocks of 128", "blocks of 1,024"], lines))


def index(report: Report, sizes: list[int], count: int) -> None:
    lines = []
    for number in sizes:
        references, asked = clustered(number, 128, 5), clustered(512, 128, 6)
        exact = search(references, index="exact")
        began = time.process_time()
        near = search(references, index="approximate")
        trained = time.process_time() - began
        took = rounds(
            {
                "exact": lambda exact=exact, asked=asked: seconds(lambda: exact.scores(asked)),  # type: ignore[misc]
                "index": lambda near=near, asked=asked: seconds(lambda: near.scores(asked)),  # type: ignore[misc]
            },
            count,
        )
        true, seen = exact.neighbours(asked)[1], near.neighbours(asked)[1]
        recall = (true[:, :, None] == seen[:, None]).any(2).double().mean().item()
        same = (exact.scores(asked)[0] == near.scores(asked)[0]).double().mean().item()
        faster = Spread.of([one / other for one, other in zip(took["exact"], took["index"], strict=True)])
        report.raw[f"index of {number}"] = {**took, "recall": recall, "same": same, "trained": trained}
        each = [Spread.of([one / 512 * 1e6 for one in took[name]]).text(0) for name in took]
        lines.append(
            [
                f"{number:,}",
                *each,
                faster.text(1),
                f"{recall:.4f}",
                f"{near.recall():.4f}",
                f"{same:.4f}",
                f"{trained:.1f}",
            ]
        )
    head = ["references", "µs a query, exact", "with the index", "times as fast", "recall@5", "its own estimate"]
    report.add(table([*head, "same class", "seconds to train"], lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=20_480)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = Report("knn", f"Nearest neighbours, {options.threads} thread(s)", options.small)
    with torch.inference_mode():
        product(report, 2048 if options.small else options.queries, options.rounds)
        blocks(report, options.rounds)
        index(report, [10_000] if options.small else [100_000, 400_000], options.rounds)
    report.add("Medians of interleaved rounds (least..most), processor time.")
    report.write()


if __name__ == "__main__":
    main()
