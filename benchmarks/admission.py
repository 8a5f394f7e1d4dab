"""What does one plan of admission cost as the queue grows? Jobs waiting from 1,000 to 40,000, with 1,000 running.

    python -m benchmarks.admission [--rounds 7] [--small]

No services and no Ray: `jos.core.admission.plan` over a snapshot in memory, of eight queues in two cohorts, 20
organisations, six needs and five priorities, on a cluster that is full but for a few nodes, so that every step has
work: admitting, growing, borrowing, preempting, and a reason for all who wait. Bars: 100 ms at 10,000 waiting; 40,000
take at most 4 × 1.3 times as long as 10,000.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from benchmarks.harness import Report, Spread, bar, rounds, table
from jos.core.admission import Holding, Node, Snapshot, Waiting, plan
from jos.core.model import Gpu, Resources
from jos.core.queues import QueueConfig

WAITING = (1_000, 5_000, 10_000, 20_000, 40_000)
RUNNING = 1_000
MOST_MS, AT = 100.0, 10_000
STEEPEST = 1.3  # times what is linear
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEEDS: tuple[dict[str, Any], ...] = (
    {"cpu": 1},
    {"cpu": 4, "memory_bytes": 16_000_000_000},
    {"cpu": 2, "gpu": {"count": 1}},
    {"cpu": 4, "gpu": {"count": 1, "type": "H100", "required": True}},
    {"cpu": 8, "memory_bytes": 64_000_000_000, "gpu": {"count": 4, "required": True}},
    {"cpu": 16, "gpu": {"count": 8, "type": "H100", "required": True}},
)


def snapshot(count: int, seed: int = 1) -> Snapshot:
    """Every job has a Resources of its own, as jobs read from the store have."""
    pick = random.Random(seed)
    queues = [f"queue-{i}" for i in range(8)]
    config = QueueConfig.of({"queues": {name: _queue(i) for i, name in enumerate(queues)}})
    nodes = (Node({"cpu": 64, "memory": 512e9, "gpu": 8, "gpu:H100": 8}),) * 100

    def common(number: int) -> dict[str, Any]:
        needs = dict(pick.choice(NEEDS))
        return {
            "id": f"job_{number:06d}",
            "org_id": f"org_{pick.randrange(20)}",
            "queue": pick.choice(queues),
            "priority": pick.choice((0, 0, 0, 10, 10, 50, 100, 200)),
            "resources": Resources(cpu=needs["cpu"], memory_bytes=needs.get("memory_bytes"), gpu=Gpu(**needs["gpu"]))
            if "gpu" in needs
            else Resources(**needs),
            "parallelism": pick.choice((1, 1, 4, 16)),
        }

    holding = tuple(
        Holding(**common(n), indexes=1, admitted_at=NOW - timedelta(seconds=n), work_lost=float(n % 60), growable=True)
        for n in range(RUNNING)
    )
    waiting = [
        Waiting(**common(RUNNING + n), queued_at=NOW - timedelta(seconds=pick.randrange(90_000)), not_before=None)
        for n in range(count)
    ]
    return Snapshot(config, nodes, tuple(waiting), holding)


def _queue(number: int) -> dict[str, Any]:
    quota = {"cpu": 800, "memory": 6e12, "gpu": 100, "gpu:H100": 100}
    strategy = "strict_fifo" if number == 7 else "best_effort"
    return {"quota": quota, "cohort": f"cohort-{number % 2}", "strategy": strategy, "weight": 1 + number % 3}


def measure(count: int) -> dict[str, float]:
    given = snapshot(count)
    gc.collect()  # of the snapshots before: they are no part of a plan
    began = time.perf_counter()
    made = plan(given, NOW)
    spent = time.perf_counter() - began
    counts = {"admits": len(made.admits), "grows": len(made.grows), "preempts": len(made.preempts)}
    return {"ms": spent * 1000, "holds": len(made.holds), **counts}


def report(results: dict[str, list[dict[str, float]]]) -> None:
    ms = {n: Spread.of([r["ms"] for r in results[f"{n:,}"]]) for n in WAITING}
    rows = []
    for n in WAITING:
        made = results[f"{n:,}"][0]
        did = [f"{made[what]:,.0f}" for what in ("admits", "grows", "preempts", "holds")]
        rows.append([f"{n:,}", ms[n].text(1), f"{ms[n].median / n * 1000:.1f}", *did])
    out = Report("admission", f"One plan of admission, {RUNNING:,} jobs running", False)
    out.raw = {"rounds": results}
    out.add(table(["waiting", "ms", "µs a waiting job", "admits", "grows", "preempts", "holds"], rows))
    linear = WAITING[-1] / AT
    ratio = ms[WAITING[-1]].median / ms[AT].median
    out.add(
        f"{AT:,} waiting: {ms[AT].median:.0f} ms (at most {MOST_MS:g}: {bar(ms[AT].median <= MOST_MS)}). "
        f"{WAITING[-1]:,} take {ratio:.1f} times as long as {AT:,} (at most {linear * STEEPEST:.1f}: "
        f"{bar(ratio <= linear * STEEPEST)})."
    )
    out.add(f"Medians of {len(next(iter(results.values())))} interleaved rounds (least..most).")

    def draw(axes: Any) -> None:
        axes.loglog(WAITING, [ms[n].median for n in WAITING], "o-", color="#2b6cb0", label="one plan")
        axes.loglog(WAITING, [ms[AT].median * n / AT for n in WAITING], ":", color="#a0aec0", label="linear")
        axes.set_xlabel("jobs waiting")
        axes.set_ylabel("ms")
        axes.legend(frameon=False)

    out.write(draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="the same; it takes seconds")
    arguments = parser.parse_args()
    report(rounds({f"{n:,}": partial(measure, n) for n in WAITING}, arguments.rounds))


if __name__ == "__main__":
    main()
