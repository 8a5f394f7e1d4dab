"""How fast is the API with 100,000 jobs stored, and what do 1,000 listeners cost it?

    python -m benchmarks.api [--seconds 60] [--stored 100000] [--listeners 1000] [--rounds 1] [--small]

One `jos api` process over its own Valkey and a folder; the load comes from another process of the same machine, which
therefore shares its two CPUs. Requests are sent on a schedule and timed from the moment they were due, so a server
that stalls cannot hide it (no coordinated omission). Bars: creation p99 <= 50 ms at 50/s sustained; list and get p99
<= 30 ms then; every listener sees every event within 1 s, and the API answers meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from benchmarks.harness import LAB, ROOT, Report, bar, end, sandbox, say, table
from jos.core import lifecycle
from jos.core.commands import Admit, Completed, Started
from jos.core.ids import new_id
from jos.core.model import EventDraft, JobSpec
from jos.registry import Registry
from jos.store.keys import ApiKeys
from jos.store.records import Mirror
from jos.store.redis import Store

ORG = "org_bench"
EVENTS_PER_SECOND = 20


@dataclass
class Server:
    url: str
    key: str
    store: Store
    process: subprocess.Popen[bytes]
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


# --- set-up -------------------------------------------------------------------------------------------


def spec_of(number: int) -> JobSpec:
    pipeline = Registry(extra=[LAB / "pipelines"]).get("shout", None)
    parameters = {"worker": {"parallelism": 1, "config": pipeline.default_config["worker"]["config"]}}
    when = datetime.now(UTC) - timedelta(days=1) + timedelta(milliseconds=number)
    return JobSpec(
        id=new_id("job"), org_id=ORG, name=f"job {number}", pipeline=pipeline, parameters=parameters, inputs=[],
        created_at=when,
    )  # fmt: skip


async def fill(store: Store, count: int, org: str = ORG) -> None:
    """So many finished jobs, each through the store's own door."""
    template = spec_of(0).model_copy(update={"org_id": org})

    async def one(number: int) -> None:
        when = template.created_at + timedelta(milliseconds=number)
        spec = template.model_copy(update={"id": new_id("job"), "name": f"job {number}", "created_at": when})
        made = lifecycle.new_job(spec, when)
        job = made.job
        for command in (Admit("t"), Started("t"), Completed("t")):
            job = lifecycle.decide(job, command, when).job
        await store.create(job, list(made.events))

    for start in range(0, count, 200):
        await asyncio.gather(*(one(n) for n in range(start, min(start + 200, count))))
        if start % 20_000 == 0:
            say(f"{start:,} of {count:,} jobs stored")


async def start_server(folder: Path, stored: int) -> Server:
    port = 20_000 + os.getpid() % 20_000
    url, home = f"http://127.0.0.1:{port}", folder / "home"
    store = await Store.open(None, home / "redis")
    await fill(store, stored)
    _, key = await ApiKeys(store.connection).create(ORG, "user", "bench", datetime.now(UTC))
    process = start_api(folder, home, port)
    async with httpx2.AsyncClient() as client:
        for _ in range(600):
            try:
                if (await client.get(f"{url}/healthz")).status_code == 200:
                    return Server(url, key, store, process)
            except httpx2.TransportError:
                await asyncio.sleep(0.1)
    raise RuntimeError(f"the API did not start:\n{(folder / 'api.log').read_text()[-3000:]}")


def start_api(folder: Path, home: Path, port: int) -> subprocess.Popen[bytes]:
    own = {"JOS_HOME": str(home), "JOS_PIPELINES": str(LAB / "pipelines"), "JOS_API_PORT": str(port)}
    environment = {**os.environ, **own, "JOS_RATE_LIMIT": "100000"}
    command = [str(Path(sys.executable).parent / "jos"), "api"]
    with (folder / "api.log").open("wb") as out:
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=out, stderr=out)


# --- load ---------------------------------------------------------------------------------------------


async def on_schedule(rate: float, seconds: float, work: Callable[[int, float], Coroutine[Any, Any, None]]) -> None:
    """Starts `work(number, due)` at each due moment, whether the ones before have ended or not."""
    began, tasks = time.perf_counter(), list[asyncio.Task[None]]()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(work(number, due)))
    await asyncio.gather(*tasks)


async def load(server: Server, seconds: float, create_rate: float, read_rate: float) -> None:
    """Creations at one rate; gets and lists in turn at the other."""
    limits = httpx2.Limits(max_connections=100, max_keepalive_connections=100)
    async with httpx2.AsyncClient(base_url=server.url, headers=server.headers, timeout=30, limits=limits) as client:
        made: list[str] = []

        async def timed(name: str, due: float, method: str, path: str, **options: Any) -> Any:
            answer = await client.request(method, f"/v0.5{path}", **options)
            server.times[name].append(1000 * (time.perf_counter() - due))
            if answer.status_code not in (200, 201):
                server.errors.append(f"{name}: {answer.status_code} {answer.text[:200]}")
            return answer

        async def create(number: int, due: float) -> None:
            body = {
                "name": f"load {number}", "pipeline_type": "batch", "pipeline_key": "shout",
                "inputs": {"worker.data": [{"file_id": "records.jsonl"}]},
                "parameters": {"worker": {"parallelism": 1, "config": {"span_records": 4}}},
            }  # fmt: skip
            answer = await timed("create", due, "POST", "/batch/jobs", json=body)
            made.append(answer.json().get("id", ""))

        async def read(number: int, due: float) -> None:
            match number % 4:
                case 0:
                    await timed("list", due, "GET", f"/batch/jobs?offset={(number * 37) % 5000}")
                case 1:
                    await timed("list, by status", due, "GET", "/batch/jobs?status=COMPLETED&limit=50")
                case 2:
                    await timed("list, waiting", due, "GET", "/batch/jobs?status=PENDING&pipeline_type=batch")
                case _:
                    await timed("get", due, "GET", f"/batch/jobs/{made[number % len(made)]}" if made else "/batch/jobs")

        file = {"file": ("records.jsonl", b'{"text": "a"}\n', "application/x-ndjson")}
        (await client.post("/v0.5/files", files=file)).raise_for_status()
        await asyncio.gather(on_schedule(create_rate, seconds, create), on_schedule(read_rate, seconds, read))


# --- listeners ----------------------------------------------------------------------------------------


class Listener:
    """One connection that reads server-sent events, and notes how late each of them came."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self.ready = asyncio.Event()

    async def listen(self, server: Server, job_id: str, wanted: int) -> None:
        place = urlsplit(server.url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        request = f"GET /v0.5/batch/jobs/{job_id}/stream HTTP/1.1\r\nHost: {place.netloc}\r\n"
        writer.write(f"{request}Authorization: Bearer {server.key}\r\nAccept: text/event-stream\r\n\r\n".encode())
        self.ready.set()
        while len(self.late) < wanted:
            line = await reader.readline()
            if not line:
                break
            if line.startswith(b"data:") and (at := line.find(b'"sent":')) > 0:
                sent = float(line[at + 7 :].split(b"}")[0].split(b",")[0])
                self.late.append(time.time() - sent)
        writer.close()


async def listening(server: Server, listeners: int, seconds: float) -> dict[str, Any]:
    """1,000 listeners on one job that tells 20 events a second, and gets meanwhile."""
    spec = spec_of(0)
    made = lifecycle.new_job(spec, datetime.now(UTC))
    await server.store.create(made.job, list(made.events))
    await server.store.transact(spec.id, Admit("token"), datetime.now(UTC))
    events = int(seconds * EVENTS_PER_SECOND)
    all_of_them = [Listener() for _ in range(listeners)]
    tasks = [asyncio.create_task(one.listen(server, spec.id, events)) for one in all_of_them]
    for one in all_of_them:
        await one.ready.wait()
    await asyncio.sleep(3)  # all have their history

    async def tell(number: int, _due: float) -> None:
        now = datetime.now(UTC)
        event = EventDraft(event_type="lab.told", message="told", payload={"sent": time.time()}, created_at=now)
        await server.store.mirror(spec.id, Mirror("token", number + 1, now, events=[event]))

    async with httpx2.AsyncClient(base_url=server.url, headers=server.headers, timeout=30) as client:

        async def look(_number: int, due: float) -> None:
            await client.get(f"/v0.5/batch/jobs/{spec.id}")
            server.times["get, with listeners"].append(1000 * (time.perf_counter() - due))

        await asyncio.gather(on_schedule(EVENTS_PER_SECOND, seconds, tell), on_schedule(5, seconds, look))
    done, late = await asyncio.wait(tasks, timeout=30)
    for task in late:
        task.cancel()
    heard = [x for one in all_of_them for x in one.late]
    return {"expected": events * listeners, "heard": len(heard), "late": heard, "unfinished": len(late), "n": len(done)}


# --- the whole ----------------------------------------------------------------------------------------


async def measure(folder: Path, stored: int, seconds: float, listeners: int) -> dict[str, Any]:
    server = await start_server(folder, stored)
    try:
        await load(server, min(5, seconds), 50, 20)  # warm: compiled schemas, connections
        server.times.clear()
        await load(server, seconds, 50, 20)
        heard = await listening(server, listeners, min(20.0, seconds))
    finally:
        await asyncio.to_thread(end, server.process)
        await server.store.close()
    if server.errors:
        raise RuntimeError(f"{len(server.errors)} calls failed, e.g. {server.errors[0]}")
    late = heard.pop("late")
    heard |= {"p50": percentile(late, 0.5), "p99": percentile(late, 0.99), "most": max(late)}
    return {"times": dict(server.times), "listeners": heard}


def report(rounds: list[dict[str, Any]], stored: int, seconds: float, listeners: int, small: bool) -> None:
    out = Report("api", f"The API with {stored:,} jobs stored", small)
    out.raw = {"rounds": [{"listeners": r["listeners"], "p99": tails(r["times"])} for r in rounds]}
    rows = []
    for name in rounds[0]["times"]:
        most = 50 if name == "create" else 30 if not name.endswith("listeners") else None
        tail = statistics.median(percentile(r["times"][name], 0.99) for r in rounds)
        cells = [statistics.median(percentile(r["times"][name], share) for r in rounds) for share in (0.5, 0.9)]
        worst = max(max(r["times"][name]) for r in rounds)
        verdict = "" if most is None else f"{most} ms: {bar(tail <= most)}"
        rows.append([name, *(f"{c:.1f}" for c in (*cells, tail, worst)), verdict])
    out.add(table(["call", "p50, ms", "p90", "p99", "most", "bar, p99"], rows))
    out.add(f"50 creations and 20 reads a second for {seconds:g} s, server and load on the same CPUs.")
    heard = rounds[-1]["listeners"]
    missed = heard["expected"] - heard["heard"]
    out.add(
        f"{listeners:,} listeners on one job that tells {EVENTS_PER_SECOND} events a second: {heard['heard']:,} of "
        f"{heard['expected']:,} events heard ({missed:,} missed), after {1000 * heard['p50']:.0f} ms (median), "
        f"{1000 * heard['p99']:.0f} ms (p99), {1000 * heard['most']:.0f} ms at most "
        f"(bar 1 s: {bar(missed == 0 and heard['most'] <= 1)})."
    )
    out.write(None)


def tails(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: percentile(values, 0.99) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--stored", type=int, default=100_000)
    parser.add_argument("--listeners", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    stored, seconds, listeners = arguments.stored, arguments.seconds, arguments.listeners
    if arguments.small:
        stored, seconds, listeners = 2_000, 5.0, 50
    rounds = []
    for _ in range(arguments.rounds):
        with sandbox() as folder:
            rounds.append(asyncio.run(measure(folder, stored, seconds, listeners)))
    report(rounds, stored, seconds, listeners, arguments.small)


if __name__ == "__main__":
    main()
