"""No-op tasks a second on two actors: JOS as a whole against what it could have been built on.

    python -m benchmarks.dispatch [--rounds 5] [--small]

JOS is the real driver with commit log and Valkey mirror. Steady = from the first span pushed to the last commit
durable; total = the whole process, with a Ray head that is already up. Bars: JOS at least 150,000 tasks/s, and
30 times Ray Data.
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
JOS_256, JOS_4096 = "JOS, spans of 256", "JOS, spans of 4,096 (default)"
RAY_DATA = "Ray Data map_batches, batches of 256"
TASKS = {  # as many as keep each busy for some seconds
    JOS_256: 10_000_000,
    JOS_4096: 50_000_000,
    "ray.util.ActorPool, one task a call": 20_000,
    "ray.util.ActorPool, batches of 256": 2_000_000,
    RAY_DATA: 1_000_000,
    "multiprocessing.Pool.imap, chunks of 256": 10_000_000,
}
RIVALS = dict(zip(list(TASKS)[2:], ("actor-pool", "actor-pool-256", "ray-data", "pool-imap"), strict=True))


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
        JOS_256: partial(of_jos, folder, address, tasks[JOS_256], 256),
        JOS_4096: partial(of_jos, folder, address, tasks[JOS_4096], 4096),
    }
    for title, name in RIVALS.items():
        found[title] = partial(of_rival, name, address, tasks[title])
    return found


def report(results: dict[str, list[dict[str, float]]], small: bool) -> None:
    rates = {name: Spread.of([r["tasks"] / r["steady"] for r in runs]) for name, runs in results.items()}
    base = rates[RAY_DATA].median
    rows = []
    for name, runs in results.items():
        whole = Spread.of([r["tasks"] / r["total"] for r in runs])
        ratio = number(rates[name].median / base, 2)
        rows.append([name, f"{runs[0]['tasks']:,.0f}", rates[name].text(0), whole.text(0), ratio])
    out = Report("dispatch", "No-op tasks a second, two workers")
    out.raw = {"small": small, "rounds": results}
    out.add(table(["", "tasks", "tasks/s, steady", "tasks/s, total", "× Ray Data"], rows))
    for name in (JOS_256, JOS_4096):
        rate = rates[name]
        out.add(
            f"{name}: at least {LEAST:,} tasks/s {bar(rate.least >= LEAST)} (least {rate.least:,.0f}); "
            f"at least {TIMES_RAY_DATA} × Ray Data {bar(rate.median >= TIMES_RAY_DATA * base)} "
            f"({rate.median / base:,.0f} ×)."
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
