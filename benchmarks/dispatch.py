"""No-op tasks a second on two actors: JOS as a whole against what it could have been built on.

    python -m benchmarks.dispatch [--rounds 5] [--small]

JOS is the real driver with commit log and Valkey mirror. Steady = from the first span pushed to the last commit
durable; total = the whole process, with a Ray head that is already up. Bars: JOS at least 150,000 tasks/s, and
30 times Ray Data. What travels in one message decides such numbers, so both have a row with one task at a time too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Report, Spread, bar, bars, number, ray_head, rounds, run_job, sandbox, table

LEAST, TIMES_RAY_DATA = 150_000, 30
JOS_1, JOS_256, JOS_4096 = "JOS, spans of 1", "JOS, spans of 256", "JOS, spans of 4,096 (default)"
SPANS = {JOS_1: 1, JOS_256: 256, JOS_4096: 4096}
RAY_DATA_1 = "Ray Data map_batches, one task a call"
RAY_DATA = "Ray Data map_batches, batches of 256"
TASKS = {  # as many as keep each busy for some seconds
    JOS_1: 50_000,
    JOS_256: 10_000_000,
    JOS_4096: 50_000_000,
    "ray.util.ActorPool, one task a call": 20_000,
    "ray.util.ActorPool, batches of 256": 2_000_000,
    RAY_DATA_1: 50_000,
    RAY_DATA: 4_000_000,
    "multiprocessing.Pool.imap, chunks of 256": 10_000_000,
}
RIVALS = dict(
    zip(list(TASKS)[3:], ("actor-pool", "actor-pool-256", "ray-data-1", "ray-data-256", "pool-imap"), strict=True)
)


def of_jos(folder: Path, address: str, tasks: int, span_tasks: int) -> dict[str, float]:
    trace = run_job(folder, harness.noop_request(folder, tasks, span_tasks), address)
    return {"tasks": tasks, "steady": trace.steady, "total": trace.total}


def of_rival(name: str, address: str, tasks: int) -> dict[str, float]:
    began = time.monotonic()
    result = harness.contender("benchmarks.rivals", name, str(tasks), env={"RAY_ADDRESS": address})
    return {"tasks": tasks, "steady": result["steady"], "total": time.monotonic() - began}


def contenders(folder: Path, address: str, small: bool) -> dict[str, Callable[[], dict[str, float]]]:
    tasks = {name: count // (20 if small else 1) for name, count in TASKS.items()}
    found: dict[str, Callable[[], dict[str, float]]] = {
        title: partial(of_jos, folder, address, tasks[title], span) for title, span in SPANS.items()
    }
    for title, name in RIVALS.items():
        found[title] = partial(of_rival, name, address, tasks[title])
    return found


def report(results: dict[str, list[dict[str, float]]], small: bool) -> None:
    rates = {name: Spread.of([r["tasks"] / r["steady"] for r in runs]) for name, runs in results.items()}
    single, batched = rates[RAY_DATA_1].median, rates[RAY_DATA].median
    rows = []
    for name, runs in results.items():
        whole = Spread.of([r["tasks"] / r["total"] for r in runs])
        ratios = [number(rates[name].median / base, 2) for base in (single, batched)]
        rows.append([name, f"{runs[0]['tasks']:,.0f}", rates[name].text(0), whole.text(0), *ratios])
    out = Report("dispatch", "No-op tasks a second, two workers", small)
    out.raw = {"rounds": results}
    head = ["", "tasks", "tasks/s, steady", "tasks/s, total", "× Ray Data, 1 a call", "× Ray Data, 256 a batch"]
    out.add(table(head, rows))
    for name in (JOS_256, JOS_4096):
        rate = rates[name]
        ratios = [
            f"{rate.median / base:,.1f} × ({bar(rate.median >= TIMES_RAY_DATA * base)})" for base in (single, batched)
        ]
        out.add(
            f"{name}: at least {LEAST:,} tasks/s {bar(rate.least >= LEAST)} (least {rate.least:,.0f}); at least "
            f"{TIMES_RAY_DATA} × Ray Data: {ratios[0]} one task a call, {ratios[1]} batches of 256."
        )
    count = len(next(iter(results.values())))
    out.add(
        f"Medians of {count} interleaved rounds (least..most). Steady: JOS from the first span pushed to the last "
        "commit durable; Ray Data from its first batch to the last result; the others from the first call to the last "
        "result, workers up before. Total: the whole process, Ray head up before. JOS alone commits what it did."
    )

    def draw(axes: Any) -> None:
        bars(axes, rates, "no-op tasks a second, steady (logarithmic)", log=True)
        axes.axvline(LEAST, color="#c53030", linewidth=1)

    out.write(draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a twentieth of the tasks: does it run at all?")
    arguments = parser.parse_args()
    with sandbox() as folder, ray_head() as address:
        results = rounds(contenders(folder, address, arguments.small), arguments.rounds)
    report(results, arguments.small)


if __name__ == "__main__":
    main()
