"""What do a thousand RayJobs cost the controller? The real controller and its launcher for Kubernetes, against an API
server over HTTP in another process (tests/lab/kube: the real schemas, watches, bookmarks), on an embedded Valkey.

    python -m benchmarks.kuberay [--rounds 1] [--jobs 1000] [--changes 5000] [--windows 3] [--small]

RayJobs run as soon as they are made (benchmarks/kuberay_site.py plays KubeRay, drivers and users), so that what is
measured is JOS: the processor time that a change takes the controller, with 100 RayJobs and with 1,000; how long a
change waits in a storm of them, from the API server to its arrival here, and on to the decision that a lost head leads
to; memory after each 5,000 changes; calls to the API server for each RayJob from its making to its deletion. Bars:
100 ms from a change to its decision; memory that does not grow with changes; 2.1 calls, and two more for a dead head.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import structlog

from benchmarks.harness import LAB, ROOT, Report, Spread, bar, end, rounds, sandbox, say, table
from jos.controller.controller import Controller
from jos.controller.reconcile import Limits
from jos.core.commands import Command, DriverGone
from jos.core.model import Job, Pipeline
from jos.core.queues import QueueConfig
from jos.launch import kube_known
from jos.launch.kube_api import KubeApi
from jos.launch.kube_cache import PODS
from jos.launch.kube_profile import KubeProfile
from jos.launch.kuberay import KubeRay
from jos.storage import open_storage
from jos.store import embedded
from jos.store.redis import Store
from jos.wiring import spare_the_collector

CONTROLLER, SITE, STORE = "the controller", "the API server, drivers and users", "the store"
NAMESPACE, SENT_AT = "jos", "bench/at"  # the annotation tells when a change was made
RATE, CALM = 50.0, 10.0  # changes a second: a storm, and what a thousand jobs of some minutes each make of themselves
MOST_MS = 100.0
MOST_GROWTH = 0.03  # of memory, from the end of the first window on: before that things are done for the first time
MOST_CALLS, MOST_LOOKS = 2.1, 2.0  # for a RayJob; besides for each head that died
QUIET = 10.0  # seconds in which nothing changes
KEPT = 10  # what is over stays so long, and not for minutes: memory is to tell of what grows
PATIENT = Limits(silence=300.0)  # the drivers' heartbeats share a process and a machine with all else
PIPELINE = Pipeline(
    pipeline_key="noop",
    pipeline_version="1.0.0",
    name="No-op",
    worker="noop:Noop",
    default_config={},
    config_schema={},
    user_config_schema={},
    inputs={},
    outputs={},
)


class Watched:
    """The launcher and the store of a controller, with a note of when each thing was heard and decided."""

    def __init__(self, launcher: KubeRay, store: Store) -> None:
        self.heard: list[float] = []  # seconds from a change to its arrival
        self.decided: defaultdict[str, list[float]] = defaultdict(list)  # job -> when its driver was given up
        self.looks: list[float] = []  # seconds
        self.lists: list[float] = []  # seconds; after the first ones, of what belongs to a job whose head died
        self._known: dict[str, str] = {}  # RayJob -> when the change was made that was heard of last
        self.dead: defaultdict[str, list[float]] = defaultdict(list)  # job -> when the death of its head arrived
        self._put, self._drop = launcher.cache.put, launcher.cache.drop
        self._transact, self._seen = store.transact, launcher.seen
        launcher.cache.put = self.put  # type: ignore[method-assign]
        launcher.cache.drop = self.drop  # type: ignore[method-assign]
        self._list = launcher.api.list
        launcher.api.list = self.listing  # type: ignore[assignment, method-assign]
        launcher.seen = self.seen  # type: ignore[method-assign]
        store.transact = self.transact  # type: ignore[method-assign]

    def put(self, kind: str, thing: Mapping[str, Any]) -> None:
        sent = (thing["metadata"].get("annotations") or {}).get(SENT_AT)
        if sent is not None and sent != self._known.get(name := thing["metadata"]["name"]):  # it stays with the RayJob
            self._known[name] = sent
            self.heard.append(time.monotonic() - float(sent))
        self._put(kind, thing)

    def drop(self, kind: str, thing: Mapping[str, Any]) -> None:
        self._known.pop(thing["metadata"]["name"], None)
        if kind == PODS:
            self.dead[thing["metadata"]["labels"]["jos.dev/job"]].append(time.monotonic())
        self._drop(kind, thing)

    async def seen(self) -> Any:
        began = time.perf_counter()
        found = await self._seen()
        self.looks.append(time.perf_counter() - began)
        return found

    async def listing(self, *what: Any) -> Any:
        began = time.perf_counter()
        found = await self._list(*what)
        self.lists.append(time.perf_counter() - began)
        return found

    async def transact(self, job_id: str, command: Command, *arguments: Any, **more: Any) -> Job:
        if isinstance(command, DriverGone):
            self.decided[job_id].append(time.monotonic())
        return await self._transact(job_id, command, *arguments, **more)

    def undecided(self, deaths: list[tuple[str, float]]) -> bool:
        return any(max(self.decided[owner], default=0.0) < died for owner, died in deaths)

    def took(self, deaths: list[tuple[str, float]]) -> list[tuple[float, float]]:
        """Of each head that died: seconds until that was heard, and from then on to the decision about its job."""
        found = []
        for owner, died in deaths:
            heard = next(at for at in self.dead[owner] if at >= died)
            found.append((heard - died, next(at for at in self.decided[owner] if at >= heard) - heard))
        return found


class Other:
    """The process behind the API server."""

    def __init__(self, folder: Path, url: str) -> None:
        self.kubeconfig = folder / "kubeconfig"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.kuberay_site", str(self.kubeconfig), url],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(LAB), os.environ.get("PYTHONPATH", "")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> Any:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError("the process behind the API server ended")
        return json.loads(line)

    async def does(self, **order: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return await asyncio.to_thread(self.answer)


def resident() -> float:
    """MB of this process."""
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6


@dataclass(frozen=True)
class Bench:
    other: Other
    store: Store
    launcher: KubeRay
    watched: Watched

    async def spent(self) -> dict[str, float]:
        """Seconds of processor time so far, by process."""
        told = (await self.store.connection.command("INFO", "cpu")).items()
        return {
            CONTROLLER: time.process_time(),
            SITE: (await self.other.does(cpu=True))["cpu"],
            STORE: sum(float(value) for key, value in told if key in ("used_cpu_user", "used_cpu_sys")),
        }

    async def quiet(self) -> dict[str, float]:
        """Seconds of processor time a second when nothing changes, by process."""
        before = await self.spent()
        await asyncio.sleep(QUIET)
        return {who: (after - before[who]) / QUIET for who, after in (await self.spent()).items()}

    async def storm(self, changes: int, rate: float = RATE) -> tuple[list[tuple[str, float]], dict[str, float], float]:
        """The heads that died; seconds of processor time for a change, by process, beyond what is spent anyway; and how
        many changes a second there really were."""
        still = await self.quiet()
        before, began = await self.spent(), time.monotonic()
        deaths = (await self.other.does(changes=changes, rate=rate))["deaths"]
        rate = changes / (time.monotonic() - began)
        while self.watched.undecided(deaths):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        seconds, after = time.monotonic() - began, await self.spent()
        return deaths, {who: (after[who] - before[who] - still[who] * seconds) / changes for who in still}, rate


@asynccontextmanager
async def controlled(folder: Path, other: Other, url: str) -> AsyncIterator[Bench]:
    """A controller at its own pace, as `jos controller` runs it."""
    os.environ["KUBECONFIG"] = str(other.kubeconfig)
    kube_known.FORGET_SECONDS = KEPT

    async def pipeline_of(_job: Job) -> Pipeline:
        return PIPELINE

    async with await Store.open(url) as store:
        launcher = KubeRay(KubeApi.connect(NAMESPACE), KubeProfile(kept_seconds=KEPT), "0123abcd", pipeline_of)
        watched = Watched(launcher, store)
        storage = open_storage(str(folder / "storage"))
        controller = Controller(store, storage, launcher, lambda: QueueConfig.of(None), limits=PATIENT, news=launcher)
        spare_the_collector()
        running = asyncio.create_task(controller.run())
        try:
            yield Bench(other, store, launcher, watched)
        finally:
            controller.stop()
            await running
            await launcher.close()


async def lives(folder: Path, jobs: int, changes: int, windows: int) -> dict[str, Any]:
    url = embedded.ensure(folder / "home" / "redis")
    other = Other(folder, url)
    try:
        await asyncio.to_thread(other.answer)  # it is ready
        async with controlled(folder, other, url) as bench:
            return await measured(bench, jobs, changes, windows)
    finally:
        end(other.process)


async def measured(bench: Bench, jobs: int, changes: int, windows: int) -> dict[str, Any]:
    watched, calls = bench.watched, bench.launcher.api.calls
    memory: dict[str, float] = {}
    change: dict[str, dict[str, float]] = {}
    still: dict[str, float] = {}
    deaths: list[tuple[str, float]] = []
    calm: list[tuple[str, float]] = []
    rates: list[float] = []
    for count in (jobs // 10, jobs):
        await bench.other.does(jobs=count)
        await bench.storm(changes // 10)  # what is measured first is measured warm in the next one
        still[f"{count:,}"] = (await bench.quiet())[CONTROLLER]
        memory[f"{count:,} RayJobs"] = resident()
        say(f"{count} run; {resident():.0f} MB; {still[f'{count:,}'] * 1000:.0f} ms a second")
        looks = watched.looks[-3:]
        if count == jobs:
            calm, _, _ = await bench.storm(changes // 5, CALM)
        watched.heard.clear()
        watched.lists.clear()
        lists = listed(calls)
        for window in range(1 if count < jobs else windows):
            died, change[f"{count:,}"], rate = await bench.storm(changes // 10 if count < jobs else changes)
            if count == jobs:
                deaths, rates = deaths + died, [*rates, rate]
                await asyncio.sleep(KEPT + 3)
                memory[f"after {changes * (window + 1):,} changes"] = resident()
                say(f"{resident():.0f} MB; {change[f'{count:,}']}; load {os.getloadavg()[0]:.1f}")
    again = (listed(calls) - lists) / len(deaths)
    counts = await bench.other.does(finish=True)
    took = watched.took(deaths)
    return {
        "memory": memory,
        "heard": [round(seconds * 1000, 2) for seconds in watched.heard],
        "listed": [round(seconds * 1000, 2) for seconds in watched.lists],
        "decided": [round((heard + decided) * 1000, 2) for heard, decided in took],
        "reconciled": [round(decided * 1000, 2) for _, decided in took],
        "calmly": [round(decided * 1000, 2) for _, decided in watched.took(calm)],
        "look": max(looks) * 1000,
        "still": still,
        "change": change,
        "rate": min(rates),
        "load": os.getloadavg()[1],
        "calls": dict(calls),
        "rayjobs": counts["made"],
        "per_rayjob": (sum(calls.values()) - listed(calls)) / counts["made"],
        "per_death": again,
    }


def listed(calls: Mapping[str, int]) -> int:
    return sum(count for call, count in calls.items() if call.startswith("list"))


def measure(jobs: int, changes: int, windows: int) -> dict[str, Any]:
    with sandbox() as folder:
        return asyncio.run(lives(folder, jobs, changes, windows))


def quantiles(ms: list[float]) -> list[str]:
    ordered = sorted(ms)
    return [f"{len(ms):,}", *(f"{ordered[int(len(ordered) * at)]:.1f}" for at in (0.5, 0.99)), f"{ordered[-1]:.1f}"]


def report(results: list[dict[str, Any]], jobs: int, changes: int, windows: int, small: bool) -> None:
    page = Report("kuberay", f"{jobs:,} RayJobs live at once", small)
    page.add(*of_processors(results), *of_waits(results), *of_memory(results, changes, windows))
    calls, again = (Spread.of([one[what] for one in results]) for what in ("per_rayjob", "per_death"))
    page.add(
        f"Calls to the API server for each RayJob from its making to its deletion: {calls.text(3)} "
        f"(at most {MOST_CALLS:g}: {bar(calls.most <= MOST_CALLS)}): one makes it, one deletes it; watches are for "
        f"all. Lists of its job's objects for each head that died: {again.text(2)} (at most {MOST_LOOKS:g}: "
        f"{bar(again.most <= MOST_LOOKS)})."
    )
    look = Spread.of([one["look"] for one in results])
    page.add(f"One look at all {jobs:,}, once a second, takes {look.text(1)} ms.")
    rate, load = min(one["rate"] for one in results), max(one["load"] for one in results)
    page.add(f"{rate:.0f} changes a second were made; the load of the machine was up to {load:.1f} (five minutes).")
    samples = ("heard", "listed", "decided", "reconciled", "calmly")  # thousands of each
    page.raw = {"rounds": [one | {what: quantiles(one[what]) for what in samples} for one in results]}
    page.write()


def of_processors(results: list[dict[str, Any]]) -> list[str]:
    counts = list(results[0]["still"])

    def row(words: str, ms: list[list[float]]) -> list[str]:
        return [words, *(Spread.of([one * 1000 for one in column]).text(2) for column in ms)]

    rows = [
        row("the controller, each second, when nothing changes", [[r["still"][n] for r in results] for n in counts])
    ]
    for who in (CONTROLLER, SITE, STORE):
        rows.append(row(f"{who}, for each change", [[one["change"][n][who] for one in results] for n in counts]))
    head = ["ms of processor time", *(f"{count} RayJobs" for count in counts)]
    most = max(one["change"][counts[-1]][CONTROLLER] for one in results) * 1000
    return [table(head, rows), f"At most {MOST_MS:g} ms of the controller for a change: {bar(most <= MOST_MS)}."]


def of_waits(results: list[dict[str, Any]]) -> list[str]:
    names = {
        "heard": "from a change to its arrival (the stand-in's time)",
        "reconciled": "from the arrival of a head's death to the decision",
        "listed": "of that, one of two lists of its job's objects (the stand-in's time)",
        "decided": "from the death of a head to the decision",
        "calmly": f"from the arrival of a head's death to the decision, at {CALM:g} changes a second",
    }
    ms = {what: [ms for one in results for ms in one[what]] for what in names}
    rows = [[words, *quantiles(ms[what])] for what, words in names.items()]
    calm, storm = (bar(sorted(ms[what])[int(len(ms[what]) * 0.99)] <= MOST_MS) for what in ("calmly", "reconciled"))
    return [
        table([f"ms, at {RATE:g} changes a second", "changes", "p50", "p99", "most"], rows),
        f"At most {MOST_MS:g} ms from the arrival of a change to its decision (p99): at {CALM:g} changes a second "
        f"{calm}, at {RATE:g} {storm}.",
    ]


def of_memory(results: list[dict[str, Any]], changes: int, windows: int) -> list[str]:
    memory = {what: Spread.of([one["memory"][what] for one in results]) for what in results[0]["memory"]}
    first, last = (memory[f"after {changes * window:,} changes"].median for window in (1, windows))
    return [
        table(["the controller's memory", "MB"], [[what, spread.text(1)] for what, spread in memory.items()]),
        f"Growth from {changes:,} to {changes * windows:,} changes: {last - first:+.1f} MB "
        f"(at most {MOST_GROWTH:.0%} of {first:.0f} MB: {bar(last - first <= first * MOST_GROWTH)}).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--changes", type=int, default=5_000)
    parser.add_argument("--windows", type=int, default=3, help="so many times the changes, one after another")
    parser.add_argument("--small", action="store_true", help="50 RayJobs and two times 200 changes")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    jobs, changes, windows = (50, 200, 2) if arguments.small else (arguments.jobs, arguments.changes, arguments.windows)
    results = rounds({"kuberay": partial(measure, jobs, changes, windows)}, arguments.rounds)
    report(results["kuberay"], jobs, changes, windows, arguments.small)


if __name__ == "__main__":
    main()
