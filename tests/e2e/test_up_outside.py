"""`jos up --redis-url … --storage s3://… --ray-address …`: one command on a Redis, an S3 and a Ray cluster that are
there already, from a job over HTTP to its outputs, and gone without a trace when it is stopped."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_lab import Head, alive, ray_head, until
from services_lab import BUCKET, S3, _die_with_parent, free_ports
from up_lab import Up

from jos import up
from jos.controller import leadership
from jos.core.errors import ComputeFailed
from jos.core.model import Status
from jos.settings import Settings
from jos.storage import open_storage
from jos.store import embedded
from jos.store.lease import Lease
from jos.store.redis import Store


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey on loopback TCP."""
    (port,) = free_ports(1)
    command = [str(embedded.server_binary()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    options: Any = {"preexec_fn": _die_with_parent} if sys.platform == "linux" else {}
    folder = tmp_path_factory.mktemp("valkey")
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder, **options)
    yield f"redis://127.0.0.1:{port}/0"
    assert server.poll() is None
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def cluster(seaweedfs: S3) -> Iterator[Head]:
    """A head whose own environment holds the S3 credentials, and nothing of JOS."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, seaweedfs.environment[name])
        with ray_head(dashboard=True, cpus=4) as head:
            yield head


def test_one_command_on_real_services_from_a_job_to_its_outputs_and_gone(
    own_up: Up, redis_url: str, seaweedfs: S3, cluster: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    root = f"s3://{BUCKET}/outside"
    own_up.start("--redis-url", redis_url, "--storage", root, "--ray-address", cluster.dashboard)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"a {n}"}) + "\n" for n in range(10)))
    with own_up.client() as client:
        job = client.jobs.create("shout", {"data": tmp_path / "a.jsonl"}, parallelism=1).wait(120)
        assert job.record.status is Status.COMPLETED, own_up.said()
        [path] = job.download(tmp_path / "out")
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == [f"A {n}" for n in range(10)]
    drivers = ray_jobs(cluster)
    assert drivers
    assert seaweedfs.secret_key not in json.dumps(drivers)

    children = [own_up.child(name) for name in ("api", "controller")]
    assert own_up.stop() == 0
    assert not any(map(alive, children))
    until(lambda: not [d for d in ray_jobs(cluster) if d["status"] in ("PENDING", "RUNNING")], 20)
    assert not [p for p in Path("/proc").glob("[0-9]*") if serves(p, own_up.home)]
    assert open_storage(root).read(f"{job.record.org_id}/jobs/{job.id}/job.json")


def test_what_a_cluster_elsewhere_cannot_reach_is_refused_before_anything_starts(own_up: Up, redis_url: str) -> None:
    elsewhere = ("up", "--port", own_up.port, "--ray-address", "http://192.0.2.1:8265")
    assert "Redis on a socket" in own_up.jos(*elsewhere, code=2)["errors"][0]["message"]
    assert "the folder" in own_up.jos(*elsewhere, "--redis-url", redis_url, code=2)["errors"][0]["message"]
    assert not (own_up.home / "redis").exists()


def test_drivers_are_left_to_another_controller_that_leads_on(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "TAKEOVER_SECONDS", 0.3)
    settings = Settings(home=tmp_path, redis_url=redis_url)
    nowhere = "http://127.0.0.1:1"

    async def test() -> None:
        async with await Store.open(redis_url) as store:
            other = Lease(store.connection, leadership.NAME, "another")
            assert await other.acquire()
            assert await up.drain(settings, nowhere, shared=True) == 0
            await other.release()
            with pytest.raises(ComputeFailed):  # nobody leads: the cluster is asked
                await up.drain(settings, nowhere, shared=True)

    asyncio.run(test())


def ray_jobs(cluster: Head) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/", timeout=10) as answer:
        return list(json.loads(answer.read()))


def serves(process: Path, home: Path) -> bool:
    """Whether it is one of JOS's programs; Ray keeps an idle worker for a while."""
    try:
        command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        return b"\0jos." in command and f"JOS_HOME={home}".encode() in environment
    except OSError:
        return False
