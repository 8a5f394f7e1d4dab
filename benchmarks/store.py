"""What the store takes: events a second, and how long its calls last with 100,000 jobs in it.

    python -m benchmarks.store [--rounds 5] [--jobs 100000] [--small]

One client and one embedded Valkey on the same machine, append-only file on, one call after the other. Bars: 5,000
events/s, a list within 10 ms, a creation within 1 ms. Writes results/store.md and .json.
May import: jos.core, jos.store, benchmarks.harness.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from benchmarks.harness import Report, Spread, bar, number, rounds, sandbox, say, table
from jos.core.commands import Admit, Cancel, Command, DriverGone, Hold, Retry, Started
from jos.core.ids import new_id
from jos.core.model import EventDraft, Job, Status
from jos.store.records import Mirror
from jos.store.redis import Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EVENTS_BAR, LIST_BAR, CREATE_BAR = 5_000, 10.0, 1.0  # events/s, ms, ms
BATCHES = {1: 500, 10: 300, 100: 100}  # events in a batch: batches in a round
ORG = "org_bench"
CONFIG = {"window": 256, "stride": 256, "labels": [f"label-{n}" for n in range(20)], "threshold": 0.5}
Measure = Callable[[Store], Awaitable[list[float]]]  # seconds of single calls


def event(message: str) -> EventDraft:
    payload = {"tasks": 4096, "seconds": 1.25, "index": 3}
    return EventDraft(
        event_type="inference.success", message=message, payload=payload, input_id="inp_1", created_at=NOW
    )


def new_job(n: int) -> Job:
    at = NOW + timedelta(milliseconds=n)
    return Job(
        id=new_id("job"),
        org_id=ORG if n % 10 else "org_other",
        name=f"Nightly run {n} of turbine {n % 97}",
        pipeline_type="training" if n % 4 == 0 else "batch",
        pipeline_key="sensor-classify",
        pipeline_version="1.0.0",
        parameters={"worker": {"parallelism": 4, "config": CONFIG}},
        priority=n % 3,
        created_at=at,
        updated_at=at,
        queued_at=at,
    )


async def fill(store: Store, count: int) -> list[str]:
    """As many jobs, one in ten still waiting, the others over."""
    names: list[str] = []
    for start in range(0, count, 200):
        jobs = [new_job(n) for n in range(start, min(start + 200, count))]
        over = [
            job.model_copy(update={"status": Status.COMPLETED}) if n % 10 != 1 else job for n, job in enumerate(jobs)
        ]
        await asyncio.gather(*(store.create(job, [event("created")]) for job in over))
        names += [job.id for job in over]
        if start and start % 20_000 == 0:
            say(f"{start:,} jobs are in")
    return names


# --- what is measured -------------------------------------------------------------------------------------


async def timed(calls: int, call: Callable[[], Awaitable[Any]]) -> list[float]:
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    return times


async def append(store: Store, size: int) -> list[float]:
    job = await store.create(new_job(1), [event("created")])
    await store.transact(job.id, Admit("tok"), NOW)
    await store.transact(job.id, Started("tok"), NOW)
    events, seq = [event(f"{n} of {size} windows are done") for n in range(size)], itertools.count(1)
    times = await timed(BATCHES[size], lambda: store.mirror(job.id, Mirror("tok", next(seq), NOW, events)))
    assert (await store.events(job.id, limit=0))[0] == 3 + size * BATCHES[size]
    await store.delete(job.id)
    return times


async def create(store: Store) -> list[float]:
    jobs = iter([new_job(10 * n + 1) for n in range(300)])
    return await timed(300, lambda: store.create(next(jobs), [event("created")]))


def life() -> Iterator[Command]:
    """Six changes of a job, again and again."""
    for attempt in itertools.count():
        token = f"tok{attempt}"
        yield from (Hold("ClusterFull", "0 of 8"), Admit(token), Started(token), Cancel(), DriverGone(token), Retry())


async def transact(store: Store) -> list[float]:
    job, commands = await store.create(new_job(1), [event("created")]), life()
    times = await timed(300, lambda: store.transact(job.id, next(commands), NOW))
    await store.delete(job.id)
    return times


def reads(names: list[str]) -> dict[str, Measure]:
    chance = random.Random(1)
    deep = len(names) // 2

    def listing(calls: int, *arguments: Any, **options: Any) -> Measure:
        return lambda store: timed(calls, lambda: store.jobs(ORG, *arguments, **options))

    async def places(store: Store) -> list[float]:
        _, page = await store.jobs(ORG, 0, 100, Status.PENDING)
        return await timed(50, lambda: store.places(page))

    return {
        "get a job": lambda store: timed(200, lambda: store.get(chance.choice(names))),
        "list, 20 newest": listing(100),
        "list by type": listing(100, pipeline_type="training"),
        "list by status": listing(100, status=Status.PENDING),
        "list by type and status": listing(100, status=Status.COMPLETED, pipeline_type="batch"),
        f"list by status, from the {deep:,}th": listing(100, deep, 20, status=Status.COMPLETED),
        "list, 100 newest": listing(50, 0, 100),
        "places of 100 waiting jobs": places,
        "depths": lambda store: timed(100, store.depths),
        "search all of them (`q`)": listing(2, q="turbine 13"),
    }


# --- the report -------------------------------------------------------------------------------------------


def milliseconds(times: list[list[float]]) -> tuple[Spread, float]:
    """(the medians of the rounds, the slowest call of all)."""
    return Spread.of([statistics.median(one) * 1000 for one in times]), max(map(max, times)) * 1000


def _summary(seconds: list[float]) -> dict[str, float]:
    """Of one round's calls; milliseconds."""
    ms = sorted(round(t * 1000, 4) for t in seconds)
    return {"calls": len(ms), "p50": ms[len(ms) // 2], "p99": ms[len(ms) * 99 // 100], "most": ms[-1]}


def report(results: dict[str, list[list[float]]], count: int, small: bool) -> Report:
    page = Report("store", f"The store with {count:,} jobs", small)
    rows, met = [], True
    for size in BATCHES:
        rates = Spread.of([size * len(one) / sum(one) for one in results[f"append {size}"]])
        call, slowest = milliseconds(results[f"append {size}"])
        rows.append([f"{size}", rates.text(0), call.text(2), number(slowest)])
        met = met and (size == 1 or rates.least >= EVENTS_BAR)
    page.add(table(["events in a batch", "events/s", "ms a batch", "slowest"], rows))
    page.add(f"At least {EVENTS_BAR:,} events/s in batches of 10 and more: {bar(met)}.")
    rows = []
    for name, times in results.items():
        if not name.startswith("append"):
            call, slowest = milliseconds(times)
            limit = CREATE_BAR if name == "create a job" else LIST_BAR if name.startswith("list") else None
            rows.append([name, call.text(2), number(slowest), "" if limit is None else bar(call.most <= limit)])
    head = ["call", "ms", "slowest", f"lists ≤ {LIST_BAR:g} ms, creation ≤ {CREATE_BAR:g} ms"]
    page.add(table(head, rows))
    page.add(
        "Medians of a round's calls: the median of the rounds (least..most). One client, one call after the other."
    )
    page.raw = {name: [_summary(one) for one in times] for name, times in results.items()}
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    count = 2_000 if arguments.small else arguments.jobs
    with sandbox() as folder, asyncio.Runner() as runner:
        store = runner.run(Store.open(None, folder / "home" / "redis"))
        names = runner.run(fill(store, count))
        measures: dict[str, Measure] = {f"append {size}": partial(append, size=size) for size in BATCHES}
        measures |= {"create a job": create, "change a job (`transact`)": transact, **reads(names)}
        contenders = {name: partial(lambda one: runner.run(one(store)), one) for name, one in measures.items()}
        results = rounds(contenders, arguments.rounds)
        runner.run(store.close())
    report(results, count, arguments.small).write()


if __name__ == "__main__":
    main()
