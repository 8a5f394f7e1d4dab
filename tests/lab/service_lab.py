"""A whole service for the suites: API and controller as processes over a Valkey and a storage root of one test, on a
Ray head with Ray Jobs. Spoken to with plain HTTP and nothing of JOS's own client, so that the wire is what is tested.

Every process may be killed and started again; what they logged is shown when a wait fails.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from jobs_lab import BIN, HERE, RAY_ENVIRONMENT, Head, kill, ray_head, until
from services_lab import _die_with_parent, free_ports

from jos.store import embedded

TERMINAL = {"COMPLETED", "FAILED", "CANCELLED"}
PASSED = ["JOS_HOME", "JOS_STORAGE", "JOS_PIPELINES", "JOS_REDIS_URL", "JOS_QUEUES", "PYTHONPATH"]
PASSED += ["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "LAB_MARK"]


@pytest.fixture(scope="session")
def ray_jobs() -> Iterator[Head]:
    """One head with Ray Jobs for all tests of a session."""
    with ray_head(dashboard=True) as head:
        yield head


@dataclass
class Process:
    """One of the service's processes, which may have several lives."""

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            options: Any = {"preexec_fn": _die_with_parent} if sys.platform == "linux" else {}
            self.process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(self.environment),
                **options,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9, and gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def end(self, seconds: float = 30) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(seconds)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""


@dataclass
class Service:
    """A service of one test. `http` is a plain client that carries the key of the first admin."""

    folder: Path
    head: Head
    storage: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)  # further JOS_… variables
    pipelines: Path = HERE / "pipelines"

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("JOS_") and k != "RAY_ADDRESS"},
            **RAY_ENVIRONMENT,
            "JOS_HOME": str(self.home),
            "JOS_PIPELINES": str(self.pipelines),
            "JOS_RAY_DASHBOARD": self.head.dashboard,
            "JOS_RAY_ADDRESS": self.head.address,
            "JOS_API_PORT": str(self.port),
            "JOS_WARM_DRIVERS": "0",
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
            **({"JOS_STORAGE": self.storage} if self.storage else {}),
            **self.settings,
        }
        self.environment["JOS_PASS_ENV"] = ",".join(n for n in PASSED if n in self.environment)
        self.api = self.process("api")
        self.controllers = [self.process("controller")]
        self.http = httpx2.Client(base_url=self.url, timeout=60)

    def process(self, name: str, tag: str = "") -> Process:
        return Process([str(BIN / "jos"), name], self.environment, self.folder / f"{name}{tag}.log")

    @property
    def controller(self) -> Process:
        return self.controllers[0]

    def start(self, *, controller: bool = True) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.api.start()
        self.wait_ready()
        self.key = self.make_key("org_first", "admin")
        self.http.headers["Authorization"] = f"Bearer {self.key}"
        if controller:
            self.controller.start()

    def wait_ready(self, seconds: float = 120) -> None:
        def ready() -> bool:
            assert self.api.process is not None
            assert self.api.process.poll() is None, f"the API ended:\n{self.api.said}"
            with contextlib.suppress(httpx2.TransportError):
                return self.http.get("/healthz").status_code == 200
            return False

        until(ready, seconds, 0.05)

    def make_key(self, org: str, role: str = "user") -> str:
        """By the operator's own command, as an administrator would."""
        command = [str(BIN / "jos"), "keys", "create", "--role", role, "--here", "--json"]
        environment = {**self.environment, "JOS_ORG": org}
        done = subprocess.run(command, capture_output=True, env=environment, cwd=self.folder, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return str(orjson.loads(done.stdout)["key"])

    def as_(self, key: str) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60, headers={"Authorization": f"Bearer {key}"})

    def close(self) -> None:
        for one in [*self.controllers, self.api]:
            with contextlib.suppress(ProcessLookupError):
                if one.process is not None:
                    one.go_on() if one.process.poll() is None else None
                    one.kill()
        for pid in self.driver_pids():  # the head outlives this service; spare drivers would wait on it for ever
            kill(pid)
        self.http.close()
        embedded.stop(self.home / "redis")

    def driver_pids(self) -> list[int]:
        """Processes of `python -m jos.driver` that serve this home."""
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
                ours = f"JOS_HOME={self.home}".encode() in environment.split(b"\0")
                if ours and b"jos.driver" in command and b"python" in command.split(b"\0")[0]:
                    found.append(int(folder.name))
        return found

    # --- plain HTTP -----------------------------------------------------------------------------------

    def call(self, method: str, path: str, status: int | tuple[int, ...] = (200, 201), **options: Any) -> Any:
        answer = self.http.request(method, f"/v0.5{path}", **options)
        wanted = (status,) if isinstance(status, int) else status
        assert answer.status_code in wanted, f"{method} {path}: {answer.status_code} {answer.text}\n{self.api.said}"
        return answer.json() if answer.content else None

    def get(self, path: str, **parameters: Any) -> Any:
        return self.call("GET", path, params=parameters)

    def upload(self, name: str, data: bytes, kind: str = "application/json") -> str:
        return str(self.call("POST", "/files", files={"file": (name, data, kind)})["file_id"])

    def records(self, name: str, records: Sequence[Mapping[str, Any]]) -> str:
        data = b"".join(orjson.dumps(r) + b"\n" for r in records)
        return self.upload(name, data, "application/x-ndjson")

    def create(self, pipeline: str, files: Sequence[str], parallelism: int = 1, **config: Any) -> str:
        """A job, PENDING; its id. `priority` and `name` among the configuration are the job's."""
        extra = {k: config.pop(k) for k in ("priority", "name") if k in config}
        body = {
            "name": "a job",
            "pipeline_type": "batch",
            "pipeline_key": pipeline,
            "inputs": {"worker.data": [{"file_id": f} for f in files]},
            "parameters": {"worker": {"parallelism": parallelism, "config": config}},
            **extra,
        }
        return str(self.call("POST", "/batch/jobs", json=body)["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/batch/jobs/{job_id}")
        return found

    def wait(self, job_id: str, *statuses: str, seconds: float = 300) -> dict[str, Any]:
        """Until the job reads one of the statuses (default: any final one)."""
        wanted = set(statuses) or TERMINAL
        started = time.monotonic()
        while (job := self.job(job_id))["status"] not in wanted:
            waited = time.monotonic() - started
            if waited > seconds or (job["status"] in TERMINAL and not wanted & TERMINAL):
                events = [f"{e['event_type']}: {e['message']}" for e in self.events(job_id)]
                said = "\n".join(f"{p.log.name}:\n{p.said}" for p in (self.api, *self.controllers))
                pytest.fail(f"{job_id} is {job['status']}, not {wanted}:\n{job}\n" + "\n".join(events) + f"\n{said}")
            time.sleep(min(max(0.05, waited / 50), 0.5))
        return job

    def events(self, job_id: str, event_type: str | None = None) -> list[dict[str, Any]]:
        """All of them, oldest first; asserts that they are numbered 1, 2, … without a gap."""
        found: list[dict[str, Any]] = []
        while batch := self.get(f"/batch/jobs/{job_id}/events", order="asc", offset=len(found), limit=1000)["events"]:
            found += batch
        assert [e["id"] for e in found] == list(range(1, len(found) + 1))
        return [e for e in found if event_type in (None, e["event_type"])]

    def wait_for(self, job_id: str, event_type: str, count: int = 1, seconds: float = 240) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]]:
            found = self.events(job_id, event_type)
            return found if len(found) >= count else []

        return list(until(look, seconds))

    def outputs(self, job_id: str) -> dict[str, bytes]:
        """Filename -> content of all outputs, each read by its own link with no key."""
        found = {}
        for output in self.get(f"/batch/jobs/{job_id}/outputs", limit=1000)["outputs"]:
            answer = httpx2.get(output["data"]["ref"])
            assert answer.status_code == 200, answer.text
            found[output["data"]["filename"]] = answer.content
        return found
