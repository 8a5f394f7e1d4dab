"""From a controller's order to the first committed task: a process for the attempt, or a warm driver.

    python -m benchmarks.service_start [--rounds 5]

On a Ray head of JOS's own, through the launcher, as the controller does it. Cold: the order becomes a Ray Job. Warm:
it goes to a driver that waits. Warm, nothing ahead: the same, with Ray started without processes for its indexes and
without imports ahead. What is waited for is the first log entry with commits in storage, looked for every 2 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import yaml

from benchmarks import data, harness
from benchmarks.harness import LAB, Report, Spread, bar, bars, sandbox, say, table
from jos.core.commands import Admit
from jos.core.model import Job, job_folder
from jos.launch import ray_head
from jos.launch.ray_jobs import RayJobs
from jos.request import read_request
from jos.settings import Settings
from jos.store.drivers import Drivers
from jos.submission import submit
from jos.wiring import Wired, wired

MOST_WARM = 1.0
WORKERS = ("no-op", "machine state")
SETTLE = 3.0  # seconds between jobs, in which the next index's process is started ahead
LIMIT = 90.0

Times = dict[str, list[float]]


def request(folder: Path, worker: str) -> Path:
    made = (
        harness.noop_request(folder, 256, 256)
        if worker == "no-op"
        else data.classify_request("256 windows", *data.sensor_files(folder / "csv", 256, files=1))
    )
    made["parameters"]["worker"]["parallelism"] = 1
    path = folder / f"{worker.replace(' ', '-')}.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


class Site:
    """A head, a store and a launcher."""

    def __init__(self, parts: Wired, launcher: RayJobs) -> None:
        self.parts, self.launcher = parts, launcher

    async def admitted(self, file: Path) -> Job:
        parts = self.parts
        job = await submit(read_request(file), parts.store, parts.storage, parts.registry, parts.settings.org)
        return await parts.store.transact(job.id, Admit(secrets.token_hex(8), indexes=1), datetime.now(UTC))

    async def first_task(self, file: Path, start: Callable[[Job], Awaitable[None]]) -> float:
        job = await self.admitted(file)
        began = time.monotonic()
        await start(job)
        entry = Path(self.parts.storage.url) / f"{job_folder(job.org_id, job.id)}log/{1:020d}.json"
        await self._until(entry.exists, 0.002)
        seconds = time.monotonic() - began
        while not (await self.parts.store.get(job.id)).status.terminal:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return seconds

    async def cold(self, job: Job) -> None:
        with mock.patch.object(self.launcher.drivers, "give", self._nobody):
            await self.launcher.start(job)

    async def _nobody(self, _order: object) -> None:
        return None

    async def one_is_idle(self) -> None:
        await self.launcher.keep_warm(1)
        while not await self.launcher.drivers.idle():  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        await asyncio.sleep(SETTLE)

    @staticmethod
    async def _until(look: Callable[[], bool], every: float) -> None:
        deadline = time.monotonic() + LIMIT
        while not look():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing was committed within {LIMIT:.0f} s")
            await asyncio.sleep(every)


@contextlib.asynccontextmanager
async def site(folder: Path, ahead: bool) -> AsyncIterator[Site]:
    settings = Settings(home=folder / "home", pipelines=str(LAB / "pipelines"), warm_indexes=int(ahead))
    environment = {f"JOS_{k.upper()}": str(v) for k, v in settings.model_dump(exclude_none=True).items()}
    environment |= {**harness.ALONE, "PYTHONPATH": str(harness.ROOT)}
    if not ahead:
        environment |= {
            "RAY_preload_python_modules": "",
            "RAY_prestart_worker_first_driver": "1",
        }  # as Ray is by itself
    async with wired(settings) as parts:
        head = await asyncio.to_thread(ray_head.start, settings.home_dir, environment, 4)
        launcher = RayJobs(head.dashboard, Drivers(parts.store.connection), settings.storage_url)
        try:
            yield Site(parts, launcher)
        finally:
            await launcher.close()
            await asyncio.to_thread(ray_head.stop, settings.home_dir)


async def measure(folder: Path, rounds: int) -> Times:
    times: Times = {}
    files = {worker: request(folder, worker) for worker in WORKERS}
    for ahead in (True, False):
        async with site(folder, ahead) as here:
            for number in range(rounds):
                for worker, file in files.items():
                    await here.one_is_idle()
                    ways: dict[str, Callable[[Job], Awaitable[None]]] = {"warm": here.launcher.start}
                    if ahead:
                        ways["cold"] = here.cold
                    for way, start in ways.items():
                        name = f"{worker}, {way}" + ("" if ahead else ", nothing ahead")
                        times.setdefault(name, []).append(await here.first_task(file, start))
                        say(f"round {number + 1}/{rounds}  {name}: {times[name][-1]:.2f} s")
    return times


def report(times: Mapping[str, list[float]]) -> None:
    spreads = {name: Spread.of(found) for name, found in sorted(times.items())}
    out = Report("service_start", "Seconds from a controller's order to the first committed task")
    out.raw = {"rounds": dict(times)}
    out.add(table(["", "seconds"], [[name, spread.text(2)] for name, spread in spreads.items()]))
    for worker in WORKERS:
        middle = spreads[f"{worker}, warm"].median
        out.add(f"{worker}, warm: {middle:.2f} s (at most {MOST_WARM}: {bar(middle <= MOST_WARM)}).")
    count = len(next(iter(times.values())))
    out.add(f"Medians of {count} rounds (least..most); one index; {SETTLE:.0f} s between jobs on a warm driver.")
    out.write(lambda axes: bars(axes, spreads, "seconds to the first committed task"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with sandbox() as folder:
        times = asyncio.run(measure(folder, arguments.rounds))
    report(times)


if __name__ == "__main__":
    main()
