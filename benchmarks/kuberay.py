"""What do a thousand RayJobs cost the controller? The real controller and its launcher for Kubernetes, against an API
server over HTTP in another process (tests/lab/kube: the real schemas, watches, bookmarks), on an embedded Valkey.

    python -m benchmarks.kuberay [--rounds 1] [--jobs 1000] [--changes 5000] [--small]

RayJobs run as soon as they are made (benchmarks/kuberay_site.py plays KubeRay, drivers and users), so that what is
measured is JOS: from a change in the API server to its arrival here, and to the decision that a lost head leads to;
memory with 100 and 1,000 RayJobs, and after 5,000 changes more; calls to the API server for each RayJob from its
making to its deletion. Bars: 100 ms from a change to its decision; memory that does not grow with changes; 2.1 calls.
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
from jos.launch import kuberay
from jos.launch.kube_api import KubeApi
from jos.launch.kube_cache import PODS
from jos.launch.kube_profile import KubeProfile
from jos.launch.kuberay import KubeRay
from jos.storage import open_storage
from jos.store import embedded
from jos.store.redis import Store

NAMESPACE, SENT_AT = "jos", "bench/at"  # the annotation tells when a change was made
RATE = 50.0  # changes a second
MOST_MS = 100.0
MOST_GROWTH = 0.1  # of the memory with all RayJobs
MOST_CALLS = 2.1
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
        self._known: set[str] = set()
        self.dead: defaultdict[str, list[float]] = defaultdict(list)  # job -> when the death of its head arrived
        self._put, self._drop, self._transact, self._seen = (
            launcher.cache.put,
            launcher.cache.drop,
            store.transact,
            launcher.seen,
        )
        launcher.cache.put = self.put  # type: ignore[method-assign]
        launcher.cache.drop = self.drop  # type: ignore[method-assign]
        launcher.seen = self.seen  # type: ignore[method-assign]
        store.transact = self.transact  # type: ignore[method-assign]

    def put(self, kind: str, thing: Mapping[str, Any]) -> None:
        sent = (thing["metadata"].get("annotations") or {}).get(SENT_AT)
        if sent is not None and sent not in self._known:  # it stays with the RayJob
            self._known.add(sent)
            self.heard.append(time.monotonic() - float(sent))
        self._put(kind, thing)

    def drop(self, kind: str, thing: Mapping[str, Any]) -> None:
        if kind == PODS:
            self.dead[thing["metadata"]["labels"]["jos.dev/job"]].append(time.monotonic())
        self._drop(kind, thing)

    async def seen(self) -> Any:
        began = time.perf_counter()
        found = await self._seen()
        self.looks.append(time.perf_counter() - began)
        return found

    async def transact(self, job_id: str, command: Command, *arguments: Any, **more: Any) -> Job:
        if isinstance(command, DriverGone):
            self.decided[job_id].append(time.monotonic())
        return await self._transact(job_id, command, *arguments, **more)

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


@asynccontextmanager
async def controlled(folder: Path, other: Other, url: str) -> AsyncIterator[tuple[KubeRay, Watched]]:
    """A controller at its own pace, as `jos controller` runs it."""
    os.environ["KUBECONFIG"] = str(other.kubeconfig)
    kuberay.FORGET_SECONDS = KEPT

    async def pipeline_of(_job: Job) -> Pipeline:
        return PIPELINE

    async with await Store.open(url) as store:
        launcher = KubeRay(KubeApi.connect(NAMESPACE), KubeProfile(kept_seconds=KEPT), "0123abcd", pipeline_of)
        watched = Watched(launcher, store)
        storage = open_storage(str(folder / "storage"))
        controller = Controller(store, storage, launcher, lambda: QueueConfig.of(None), limits=PATIENT, news=launcher)
        running = asyncio.create_task(controller.run())
        try:
            yield launcher, watched
        finally:
            controller.stop()
            await running
            await launcher.close()


async def lives(folder: Path, jobs: int, changes: int) -> dict[str, Any]:
    url = embedded.ensure(folder / "home" / "redis")
    other = Other(folder, url)
    try:
        await asyncio.to_thread(other.answer)  # it is ready
        async with controlled(folder, other, url) as (launcher, watched):
            return await measured(other, launcher, watched, jobs, changes)
    finally:
        end(other.process)


async def measured(other: Other, launcher: KubeRay, watched: Watched, jobs: int, changes: int) -> dict[str, Any]:
    few = jobs // 10
    memory = {}
    for count in (few, jobs):
        await other.does(jobs=count)
        memory[f"{count:,} RayJobs"] = resident()
        say(f"{count} run; {resident():.0f} MB")
    await asyncio.sleep(3)
    looks = watched.looks[-3:]
    watched.heard.clear()
    deaths: list[tuple[str, float]] = []
    for part in (changes // 10, changes - changes // 10):  # what is measured first is measured warm in the second
        deaths += (await other.does(changes=part, rate=RATE))["deaths"]
        memory[f"after {part if part == changes // 10 else changes:,} changes"] = resident()
    await asyncio.sleep(5)
    took = watched.took(deaths)
    counts = await other.does(finish=True)
    calls = dict(launcher.api.calls)
    return {
        "memory": memory,
        "heard": [round(seconds * 1000, 2) for seconds in watched.heard],
        "decided": [round((heard + decided) * 1000, 2) for heard, decided in took],
        "reconciled": [round(decided * 1000, 2) for _, decided in took],
        "look": max(looks) * 1000,
        "calls": calls,
        "rayjobs": counts["made"],
        "per_rayjob": sum(calls.values()) / counts["made"],
    }


def measure(jobs: int, changes: int) -> dict[str, Any]:
    with sandbox() as folder:
        return asyncio.run(lives(folder, jobs, changes))


def quantiles(ms: list[float]) -> list[str]:
    ordered = sorted(ms)
    return [f"{len(ms):,}", *(f"{ordered[int(len(ordered) * at)]:.1f}" for at in (0.5, 0.99)), f"{ordered[-1]:.1f}"]


def report(results: list[dict[str, Any]], jobs: int, changes: int, small: bool) -> None:
    page = Report("kuberay", f"{jobs:,} RayJobs live at once", small)
    names = {
        "heard": "from a change to its arrival",
        "reconciled": "from the arrival of a head's death to the decision",
        "decided": "from the death of a head to the decision",
    }
    ms = {what: [ms for one in results for ms in one[what]] for what in names}
    rows = [[words, *quantiles(ms[what])] for what, words in names.items()]
    page.add(table([f"ms, at {RATE:g} changes a second", "changes", "p50", "p99", "most"], rows))
    met = sorted(ms["reconciled"])[int(len(ms["reconciled"]) * 0.99)] <= MOST_MS
    page.add(f"At most {MOST_MS:g} ms from the arrival of a change to its decision (p99): {bar(met)}.")
    memory = {what: Spread.of([one["memory"][what] for one in results]) for what in results[0]["memory"]}
    page.add(table(["the controller's memory", "MB"], [[what, spread.text(1)] for what, spread in memory.items()]))
    last, full = memory[f"after {changes:,} changes"].median, memory[f"{jobs:,} RayJobs"].median
    page.add(
        f"Growth through {changes:,} changes: {last - full:+.1f} MB "
        f"(at most {MOST_GROWTH:.0%} of {full:.0f} MB: {bar(last - full <= full * MOST_GROWTH)})."
    )
    calls = Spread.of([one["per_rayjob"] for one in results])
    page.add(
        f"Calls to the API server for each RayJob from its making to its deletion: {calls.text(3)} "
        f"(at most {MOST_CALLS:g}: {bar(calls.most <= MOST_CALLS)}): one makes it, one deletes it; lists and watches "
        f"are for all. One look at {jobs:,} takes {Spread.of([one['look'] for one in results]).text(1)} ms."
    )
    page.raw = {"rounds": results}
    page.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--changes", type=int, default=5_000)
    parser.add_argument("--small", action="store_true", help="50 RayJobs and 200 changes")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    jobs, changes = (50, 200) if arguments.small else (arguments.jobs, arguments.changes)
    results = rounds({"kuberay": partial(measure, jobs, changes)}, arguments.rounds)
    report(results["kuberay"], jobs, changes, arguments.small)


if __name__ == "__main__":
    main()
