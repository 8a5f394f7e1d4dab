"""kill -9 of everything that a service consists of, in random order, under load: API, controller, drivers, indexes,
Valkey. Every job must end in the right state, nothing lost or doubled, capacity back to zero, events without gaps.

JOS_CHAOS_SECONDS says for how long (20 in a test run, 900 in `make chaos`), JOS_CHAOS_JOBS how many jobs,
JOS_CHAOS_SEED draws the victims and moments of an earlier run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from jobs_lab import BIN, Head, alive, kill, until
from lab_workers import TwoStageTrain
from service_lab import Service

from actors.activity import ActivityWorker
from jos.store import embedded
from jos.store.redis import Store
from jos.testing import LocalFile, run_worker

SECONDS = float(os.environ.get("JOS_CHAOS_SECONDS", "20"))
JOBS = int(os.environ.get("JOS_CHAOS_JOBS", "4"))
SEED = int(os.environ.get("JOS_CHAOS_SEED") or secrets.randbelow(1 << 32))
QUEUES = {"queues": {"default": {"quota": {"cpu": 3}, "preemption": {"within_queue": "lower_priority"}}}}


@pytest.fixture
def service(tmp_path: Path, ray_jobs: Head) -> Iterator[Service]:
    (tmp_path / "queues.yaml").write_text(json.dumps(QUEUES))
    one = Service(tmp_path, ray_jobs, settings={"JOS_QUEUES": str(tmp_path / "queues.yaml"), "JOS_WARM_DRIVERS": "1"})
    try:
        one.start()
        yield one
    finally:
        one.close()


def patiently(ask: Callable[[], Any], seconds: float = 120) -> Any:
    """The answer, however often the API is killed before it comes."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx2.TransportError):
            return ask()
        assert time.monotonic() < deadline, "the API stays away"
        time.sleep(0.1)


@dataclass(frozen=True)
class Kind:
    """A sort of job: its pipeline with a configuration, a file for it, and what must come of that undisturbed."""

    pipeline: str
    config: dict[str, Any]
    data: bytes
    output: bytes = b""
    checkpoints: dict[int, bytes] = field(default_factory=dict)


def shouting(chance: random.Random, number: int) -> Kind:
    records = [{"text": f"job {number} record {n}"} for n in range(chance.randrange(60, 240))]
    lines = [orjson.dumps({"line_index": n, "text": r["text"].upper()}) for n, r in enumerate(records)]
    return Kind("shout", {"seconds": 0.05, "span_records": 4}, _lines(records), b"".join(li + b"\n" for li in lines))


def training(folder: Path) -> Kind:
    """Prepared in 15 spans, then 180 steps with three checkpoints."""
    file = folder / "numbers.jsonl"
    file.write_bytes(_lines([{"x": n} for n in range(60)]))
    config = {"epochs": 3, "span_records": 4, "seed": 5, "stop_after": None}
    calm = run_worker(TwoStageTrain, config=config | {"seconds": 0}, scattered={"worker.data": [LocalFile(file)]})
    return Kind("two-stage-train", config | {"seconds": 0.02}, file.read_bytes(), checkpoints=calm.checkpoints)


def talking(folder: Path) -> Kind:
    """A language model's answers, drawn with a seed."""
    file = folder / "talk.jsonl"
    file.write_bytes(_lines([{"system": "You watch a pump.", "prompt": f"flow {n}, state?"} for n in range(16)]))
    generation = {"do_sample": True, "max_new_tokens": 4, "temperature": 0.8, "top_k": 40, "top_p": 0.95}
    config: dict[str, Any] = {"generation": generation, "seed": 11}
    (output,) = run_worker(ActivityWorker, [file], config=config).files.values()
    return Kind("activity-detection", config, file.read_bytes(), output)


def _lines(records: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(r) + b"\n" for r in records)


class Load:
    """Jobs of three kinds and mixed priorities, and users who cancel and retry them. What must be true at the end is
    kept here."""

    def __init__(self, service: Service, chance: random.Random) -> None:
        self.service, self.chance = service, chance
        self.training, self.talking = training(service.folder), talking(service.folder)
        self.expected: dict[str, Kind] = {}
        self.cancelled: set[str] = set()  # and not retried since

    def answer(self, method: str, path: str, **options: Any) -> httpx2.Response:
        def ask() -> httpx2.Response:
            answer = self.service.http.request(method, f"/v0.5{path}", **options)
            if answer.status_code in (429, 503):
                raise httpx2.ConnectError("come back later")
            return answer

        found: httpx2.Response = patiently(ask)
        assert found.status_code < 500, found.text
        return found

    def add(self, number: int) -> None:
        kind = (shouting(self.chance, number), self.training, self.talking)[number % 3]
        name = f"load-{number}.jsonl"
        self.answer("POST", "/files", files={"file": (name, kind.data, "application/x-ndjson")})
        body = {
            "name": f"load {number}",
            "pipeline_type": "training" if kind.checkpoints else "batch",
            "pipeline_key": kind.pipeline,
            "priority": self.chance.choice([0, 0, 0, 10, 50]),
            "inputs": {"worker.data": [{"file_id": name}]},
            "parameters": {"worker": {"parallelism": 2, "config": kind.config}},
        }
        answer = self.answer("POST", "/batch/jobs", json=body, headers={"Idempotency-Key": f"load-{number}"})
        assert answer.status_code in (200, 201), answer.text
        self.expected[answer.json()["id"]] = kind

    def assert_as_undisturbed(self, job_id: str) -> None:
        kind = self.expected[job_id]
        if not kind.checkpoints:
            (output,) = self.service.outputs(job_id).values()
            assert output == kind.output, job_id
            return
        found = self.answer("GET", f"/batch/jobs/{job_id}/checkpoints").json()["checkpoints"]
        assert {one["step"]: httpx2.get(one["data"]["ref"]).content for one in found} == kind.checkpoints, job_id

    def unfinished(self) -> list[str]:
        """By status, so that a job list of any length is not asked for one by one."""
        found = []
        for status in ("PENDING", "ADMITTED", "RUNNING", "PREEMPTED"):
            page = self.answer("GET", "/batch/jobs", params={"status": status, "limit": 1000}).json()["jobs"]
            found += [job["id"] for job in page]
        return sorted(set(found))

    def meddle(self, jobs: list[str]) -> None:
        if not jobs:
            return
        job_id = self.chance.choice(jobs)
        if job_id in self.cancelled:
            if self.answer("POST", f"/batch/jobs/{job_id}/retry").status_code == 200:
                self.cancelled.discard(job_id)
        elif self.answer("POST", f"/batch/jobs/{job_id}/cancel").status_code == 200:
            self.cancelled.add(job_id)

    def settle(self) -> None:
        """Users come back and retry what is not done. A cancel whose answer was lost may have been carried out."""
        for job_id in self.expected:
            status = self.answer("GET", f"/batch/jobs/{job_id}").json()["status"]
            if status in ("FAILED", "CANCELLED") and job_id not in self.cancelled:
                self.answer("POST", f"/batch/jobs/{job_id}/retry")


class Killer:
    def __init__(self, service: Service, chance: random.Random) -> None:
        self.service, self.chance = service, chance
        self.hits: Counter[str] = Counter()

    def hit(self, jobs: list[str]) -> None:
        what = self.chance.choice(("api", "controller", "driver", "driver", "index", "index", "redis"))
        if self.strike(what, jobs):
            self.hits[what] += 1

    def strike(self, what: str, jobs: list[str]) -> bool:
        match what:
            case "api" | "controller":  # and started again, as `jos up` or Kubernetes would
                process = self.service.api if what == "api" else self.service.controller
                process.kill()
                process.start()
            case "driver":
                pids = self.service.driver_pids()
                if not pids:
                    return False
                kill(self.chance.choice(pids))
            case "index":
                pids = [pid for job in jobs for pid in index_pids(self.service, job) if alive(pid)]
                if not pids:
                    return False
                kill(self.chance.choice(pids))
            case "redis":
                with contextlib.suppress(FileNotFoundError, ValueError):
                    kill(int((self.service.home / "redis" / embedded.PID).read_text()))
        return True


def index_pids(service: Service, job_id: str) -> list[int]:
    def ask() -> list[dict[str, Any]]:
        answer = service.http.get(f"/v0.5/batch/jobs/{job_id}/events", params={"limit": 1000})
        return list(answer.json()["events"]) if answer.status_code == 200 else []

    events: list[dict[str, Any]] = patiently(ask)
    return [e["payload"]["pid"] for e in events if e["event_type"] in ("index.started", "index.restarted")]


def verified(service: Service, job_id: str) -> None:
    done = subprocess.run(
        [str(BIN / "jos"), "verify", job_id, "--json"], capture_output=True, env=service.environment, check=False
    )
    assert done.returncode == 0, f"{done.stdout.decode()}\n{done.stderr.decode()}"


def test_everything_killed_in_random_order_under_load(service: Service) -> None:
    print(f"\nJOS_CHAOS_SEED={SEED} JOS_CHAOS_SECONDS={SECONDS:g} JOS_CHAOS_JOBS={JOBS}")
    chance = random.Random(SEED)
    load, killer = Load(service, chance), Killer(service, chance)
    for number in range(JOBS):
        load.add(number)
    added, deadline = JOBS, time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        moment = time.monotonic() + chance.uniform(0.5, 6)  # chance, not a wait for anything
        while time.monotonic() < moment:
            time.sleep(0.1)
        open_jobs = load.unfinished()
        killer.hit(open_jobs)
        if chance.random() < 0.3:
            load.meddle([*open_jobs, *load.cancelled])
        while len(load.unfinished()) < JOBS / 2:  # the load stays on
            load.add(added)
            added += 1
    print(dict(killer.hits), f"{len(load.expected)} jobs, {len(load.cancelled)} cancelled")
    service.wait_ready()

    def settled() -> bool:
        load.settle()
        found = {j: load.answer("GET", f"/batch/jobs/{j}").json()["status"] for j in load.expected}
        return all(s == ("CANCELLED" if j in load.cancelled else "COMPLETED") for j, s in found.items())

    until(settled, 300 + SECONDS, 1.0)
    for job_id in load.expected:
        service.events(job_id)  # numbered without gaps
        if job_id in load.cancelled:
            continue
        load.assert_as_undisturbed(job_id)
        verified(service, job_id)
    until(lambda: capacity_is_free(service), 30)


def capacity_is_free(service: Service) -> bool:
    """No job that the store knows of is unfinished or holds any."""

    async def active() -> int:
        async with await Store.open(None, service.home / "redis") as store:
            return len(await store.active())

    return asyncio.run(active()) == 0


def test_a_leader_that_sleeps_past_its_lease_admits_nothing_twice(service: Service) -> None:
    """SIGSTOP of the leading controller in the middle of a busy queue; the other takes over; then it wakes up."""
    second = service.process("controller", "-2")
    service.controllers.append(second)
    second.start()
    files = [service.records(f"f{n}.jsonl", [{"text": f"{n}"}] * 20) for n in range(JOBS)]
    jobs = [service.create("shout", [f], seconds=0.05, span_records=2, name=f) for f in files]
    service.wait_for(jobs[0], "job.admitted")
    for sleeper in (service.controllers[0], service.controllers[1]):  # whichever leads
        sleeper.pause()
        more = [service.create("shout", [f], seconds=0.02, span_records=2, name=f) for f in files[: JOBS // 2]]
        service.wait_for(more[0], "job.admitted", seconds=240)  # all that came before it has its turn first
        sleeper.go_on()
        jobs += more
    for job_id in jobs:
        assert service.wait(job_id)["status"] == "COMPLETED"
        assert len(service.events(job_id, "job.admitted")) == 1, "admitted twice"
        assert len(service.events(job_id, "job.started")) == 1
        verified(service, job_id)
    until(lambda: capacity_is_free(service), 30)
