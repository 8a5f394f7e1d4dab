"""Does a job of 10 million tasks cost what it should? No-op jobs of 10^4 to 10^7 tasks, on a Ray head that is up.

    python -m benchmarks.growth [--rounds 3] [--small]

Seconds are steady (from the first span pushed to the last commit durable), memory is the most that the driver process
alone had resident. Bars: time linear in tasks; the driver's memory at 10^7 within 50 MB of that at 10^4.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Report, Spread, bar, ray_head, rounds, run_job, sandbox, table

SPANS = (4096, 256)
TASKS = (10**4, 10**5, 10**6, 10**7)
MOST_MB = 50.0
STEEPEST = 1.2  # times the tenfold from one size to the next; below some 10^6 waiting for the log's beat is all


def measure(folder: Path, address: str, tasks: int, span_tasks: int) -> dict[str, float]:
    trace = run_job(folder, harness.noop_request(folder, tasks, span_tasks), address)
    return {"seconds": trace.steady, "peak_mb": trace.peak / 1e6, "entries": trace.counts["entries"]}


def lines(results: dict[str, list[dict[str, float]]], sizes: tuple[int, ...]) -> tuple[list[list[str]], list[str]]:
    rows, verdicts = [], []
    for span in SPANS:
        seconds = {n: Spread.of([r["seconds"] for r in results[f"{n}/{span}"]]) for n in sizes}
        peak = {n: Spread.of([r["peak_mb"] for r in results[f"{n}/{span}"]]) for n in sizes}
        for n in sizes:
            rate = f"{n / seconds[n].median:,.0f}"
            rows.append([f"{n:,}", f"{span:,}", seconds[n].text(3), rate, peak[n].text(1)])
        least, most = sizes[0], sizes[-1]
        growth = seconds[most].median / seconds[sizes[-2]].median
        more = peak[most].median - peak[least].median
        verdicts.append(
            f"Spans of {span:,}: {most:,} tasks take {growth:.1f} times as long as {sizes[-2]:,} (at most "
            f"{10 * STEEPEST:g}: {bar(growth <= 10 * STEEPEST)}); the driver has {more:+.1f} MB at {most:,} against "
            f"{least:,} (at most {MOST_MB:g}: {bar(more <= MOST_MB)})."
        )
    return rows, verdicts


def report(results: dict[str, list[dict[str, float]]], sizes: tuple[int, ...]) -> None:
    rows, verdicts = lines(results, sizes)
    out = Report("growth", f"From {sizes[0]:,} to {sizes[-1]:,} no-op tasks", sizes != TASKS)
    out.raw = {"rounds": results}
    out.add(table(["tasks", "tasks a span", "seconds, steady", "tasks/s", "driver's peak, MB"], rows), *verdicts)
    count = len(next(iter(results.values())))
    out.add(
        f"Medians of {count} interleaved rounds (least..most). The commit log is written ten times a second at most, "
        "until the queue is empty."
    )

    def draw(axes: Any) -> None:
        for span, style in zip(SPANS, ("o-", "s--"), strict=True):
            middle = [Spread.of([r["seconds"] for r in results[f"{n}/{span}"]]).median for n in sizes]
            axes.loglog(sizes, middle, style, color="#2b6cb0", label=f"spans of {span:,}")
        axes.set_xlabel("tasks")
        axes.set_ylabel("seconds, steady")
        axes.legend(frameon=False)

    out.write(draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="up to 10^6 tasks only")
    arguments = parser.parse_args()
    sizes = TASKS[:3] if arguments.small else TASKS
    with sandbox() as folder, ray_head() as address:
        contenders = {f"{n}/{s}": partial(measure, folder, address, n, s) for n in sizes for s in SPANS}
        results = rounds(contenders, arguments.rounds)
    report(results, sizes)


if __name__ == "__main__":
    main()
