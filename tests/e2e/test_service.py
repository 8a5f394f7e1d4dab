"""A whole service at work: priorities and preemption, stopping, losing Redis, several processes of each kind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jobs_lab import BIN, Head, alive, until
from service_lab import Service

from jos.store.redis import Store

ONE_AT_A_TIME = {"queues": {"default": {"quota": {"cpu": 1}, "preemption": {"within_queue": "lower_priority"}}}}
Started = Callable[..., Service]


@pytest.fixture
def started(tmp_path: Path, ray_jobs: Head) -> Iterator[Started]:
    """Starts services with a queue configuration of their own."""
    services: list[Service] = []

    def start(queues: dict[str, Any] | None = None, **settings: str) -> Service:
        if queues is not None:
            (tmp_path / "queues.yaml").write_text(json.dumps(queues))
            settings["JOS_QUEUES"] = str(tmp_path / "queues.yaml")
        one = Service(tmp_path, ray_jobs, settings=settings)
        services.append(one)
        one.start()
        return one

    try:
        yield start
    finally:
        for one in services:
            one.close()


def jos(service: Service, *arguments: str) -> Any:
    """An operator's command on the service's own machine."""
    done = subprocess.run(
        [str(BIN / "jos"), *arguments, "--json"], capture_output=True, env=service.environment, check=False
    )
    assert done.returncode == 0, f"{done.stdout.decode()}\n{done.stderr.decode()}"
    return json.loads(done.stdout)


def slow(service: Service, name: str, records: int, **options: Any) -> str:
    file = service.records(f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(records)])
    return service.create("shout", [file], name=name, seconds=0.05, span_records=2, **options)


def contents(service: Service, job_id: str) -> list[bytes]:
    return list(service.outputs(job_id).values())


def test_a_higher_priority_takes_the_capacity_and_the_other_goes_on_where_it_was(started: Started) -> None:
    service = started(ONE_AT_A_TIME)
    file = service.records("low.jsonl", [{"text": f"low {n}"} for n in range(120)])
    low = service.create("shout", [file], seconds=0.05, span_records=2)
    service.wait(low, "RUNNING")
    until(lambda: service.get(f"/batch/jobs/{low}/progress")["total"] > 1)
    high = slow(service, "high", 80, priority=50)  # some seconds: it still runs when the queue is looked at
    began = time.monotonic()
    service.wait_for(high, "input_started")
    print(f"higher priority at work after {time.monotonic() - began:.2f} s")
    assert service.job(low)["status"] in ("PREEMPTED", "PENDING")
    waiting = slow(service, "waiting", 10)
    until(lambda: service.job(waiting)["waiting"] is not None)
    assert service.job(waiting)["queue_depth"] == 2
    assert service.wait(high)["status"] == "COMPLETED"
    ended = service.wait(low)
    assert (ended["status"], ended["preemption_count"], ended["retry_count"]) == ("COMPLETED", 1, 0)
    kinds = [e["event_type"] for e in service.events(low)]
    order = ["job.admitted", "job.started", "job.preempted", "job.requeued", "job.admitted", "job.started"]
    assert [k for k in kinds if k in order] == order
    undisturbed = service.create("shout", [file], seconds=0, span_records=2)
    assert service.wait(undisturbed)["status"] == "COMPLETED"
    assert contents(service, low) == contents(service, undisturbed)
    assert jos(service, "verify", low)["problems"] == []
    assert service.wait(waiting)["status"] == "COMPLETED"


def test_cancel_reads_at_once_and_the_workers_are_gone_within_seconds(started: Started) -> None:
    service = started(JOS_WARM_DRIVERS="1")
    job_id = slow(service, "long", 2000, parallelism=2)
    up = service.wait_for(job_id, "index.started", 2)
    pids = [e["payload"]["pid"] for e in up]
    began = time.monotonic()
    service.call("POST", f"/batch/jobs/{job_id}/cancel")
    assert service.job(job_id)["status"] == "CANCELLED"
    until(lambda: not any(alive(p) for p in pids), 10)
    print(f"workers gone after {time.monotonic() - began:.2f} s")
    after = slow(service, "after", 4)
    assert service.wait(after)["status"] == "COMPLETED"  # the capacity is free again


async def wipe(service: Service) -> None:
    async with await Store.open(None, service.home / "redis") as store:
        await store.connection.command("FLUSHALL")


def test_redis_is_wiped_and_everything_comes_back_from_storage(started: Started) -> None:
    service = started(ONE_AT_A_TIME)
    finished = slow(service, "finished", 10)
    assert service.wait(finished)["status"] == "COMPLETED"
    content, events = contents(service, finished), service.events(finished)
    archive = service.home / "storage" / "org_first" / "jobs" / finished / "archive" / "end.json"
    until(archive.exists)
    unfinished = slow(service, "unfinished", 200)
    until(lambda: service.get(f"/batch/jobs/{unfinished}/progress")["total"] > 1)
    for process in (service.controller, service.api):
        process.end()
    asyncio.run(wipe(service))  # under a driver that is still at work
    recovered = jos(service, "recover")
    assert recovered["problems"] == []
    service.api.start()
    service.wait_ready()
    assert contents(service, finished) == content  # the key still holds, too
    assert [e["event_type"] for e in service.events(finished)][: len(events)] == [e["event_type"] for e in events]
    service.controller.start()
    assert service.wait(unfinished)["status"] == "COMPLETED"
    assert jos(service, "verify", unfinished)["problems"] == []
    (lines,) = contents(service, unfinished)
    assert lines.count(b"UNFINISHED") == 200


def test_several_api_processes_serve_one_service(started: Started) -> None:
    service = started(JOS_WARM_DRIVERS="1")
    second = Service(service.folder, service.head)
    second.home = service.home
    second.api = service.process("api", "-2")
    second.api.environment = {**service.environment, "JOS_API_PORT": str(second.port)}
    second.http.headers["Authorization"] = f"Bearer {service.key}"
    second.api.start()
    try:
        second.wait_ready()
        file = second.records("there.jsonl", [{"text": "a"}] * 5)
        job_id = service.create("shout", [file])
        with second.http.stream("GET", f"/v0.5/batch/jobs/{job_id}/stream") as answer:
            lines = "\n".join(answer.iter_lines())
        assert "job.completed" in lines
        output = service.get(f"/batch/jobs/{job_id}/outputs")["outputs"][0]["data"]["ref"]
        other = output.replace(str(service.port), str(second.port))
        assert httpx2.get(other).content == httpx2.get(output).content
    finally:
        second.api.kill()
        second.http.close()


def test_an_idle_service_ends_quietly_when_told_to(started: Started) -> None:
    service = started(JOS_WARM_DRIVERS="1")
    assert service.wait(slow(service, "one", 2))["status"] == "COMPLETED"
    assert service.controller.end() == 0
    assert service.api.end() == 0
