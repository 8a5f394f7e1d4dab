"""What a submitted Ray job does in the fake cluster: what a test says, or a real driver on a Ray head of this machine.

May import: httpx2. Tests: tests/contract/test_fake_kuberay.py, tests/integration/test_fake_kuberay_ray.py.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import httpx2

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
MARK = "JOS_LAB_SUBMISSION"  # in the environment of all processes of a job: so they are found when their pod dies
BIN = Path(sys.executable).parent


class JobNotFound(Exception):
    """The head answers, and does not know this job."""


class Unreachable(Exception):
    """No head answers."""


@dataclass(frozen=True)
class RayInfo:
    """What a head says of a job. `status` is Ray's word."""

    status: str
    message: str = ""
    started: datetime | None = None
    ended: datetime | None = None


class RayClusterStandIn(Protocol):
    """The heads of all RayClusters. A submission id means one job at a time."""

    @property
    def follows_pods(self) -> bool:
        """A head answers only while its pod is ready."""
        ...

    @property
    def dashboard(self) -> str | None:
        """host:port of all heads; None: the service's name, as in a real cluster."""
        ...

    def submit(
        self,
        submission_id: str,
        entrypoint: str,
        env: Mapping[str, str],
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> None:
        """`env`: the head container's variables."""
        ...

    def status(self, submission_id: str) -> RayInfo:
        """Raises JobNotFound, Unreachable."""
        ...

    def stop(self, submission_id: str) -> None:
        """Ray's StopJob: SIGTERM, and SIGKILL a little later. A job that is not there is no error."""
        ...

    def head_gone(self, submission_id: str) -> None:
        """The pod that ran it is dead: its processes are gone at once, and so is what its head knew."""
        ...

    def lose_table(self) -> None:
        """The heads forget all jobs; what runs goes on."""
        ...


class Scripted:
    """A test says what jobs do. `remembers`: a new head knows the old one's jobs, as in the recordings."""

    dashboard = None

    def __init__(self, clock: Callable[[], datetime], remembers: bool = False) -> None:
        self.clock, self.remembers, self.follows_pods = clock, remembers, not remembers
        self.changed: Callable[[str], None] = lambda submission_id: None  # who is told that a job's state changed
        self.jobs: dict[str, RayInfo] = {}
        self.submitted: list[str] = []  # ids, in the order in which they came: an id twice was submitted twice
        self.stopped: list[str] = []
        self.environments: dict[str, dict[str, str]] = {}

    def submit(
        self,
        submission_id: str,
        entrypoint: str,
        env: Mapping[str, str],
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> None:
        self.submitted.append(submission_id)
        self.environments[submission_id] = {**env, **runtime_env.get("env_vars", {})}
        self.jobs[submission_id] = RayInfo("RUNNING", "ok", self.clock())

    def say(self, submission_id: str, status: str, message: str = "ok") -> None:
        """The job is in this state from now on."""
        ended = self.clock() if status in ENDED else None
        self.jobs[submission_id] = replace(self.jobs[submission_id], status=status, message=message, ended=ended)
        self.changed(submission_id)

    def status(self, submission_id: str) -> RayInfo:
        if submission_id not in self.jobs:
            raise JobNotFound(submission_id)
        return self.jobs[submission_id]

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)
        if submission_id in self.jobs:
            self.say(submission_id, "STOPPED")

    def head_gone(self, submission_id: str) -> None:
        if not self.remembers:
            self.jobs.pop(submission_id, None)

    def lose_table(self) -> None:
        lost = list(self.jobs)
        self.jobs.clear()
        for submission_id in lost:
            self.changed(submission_id)


class LocalRay:
    """Runs the entrypoints on one real Ray head. The jobs' `python` is the interpreter that runs the tests."""

    follows_pods = True

    def __init__(self, dashboard: str) -> None:
        """`dashboard` is the URL of the head's dashboard."""
        self.dashboard = dashboard.removeprefix("http://").rstrip("/")
        self.client = httpx2.Client(base_url=f"http://{self.dashboard}", timeout=30.0)
        self.submitted: list[str] = []
        self.stopped: list[str] = []
        self.names: dict[str, list[str]] = {}  # submission id -> what it is called in this Ray, which takes a name once
        self.known: set[str] = set()  # what the heads' tables hold
        self._lock = threading.Lock()  # a head does not die in the middle of a submission
        self._burials: list[threading.Thread] = []

    def submit(
        self,
        submission_id: str,
        entrypoint: str,
        env: Mapping[str, str],
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> None:
        with self._lock:
            names = self.names.setdefault(submission_id, [])
            names.append(f"{submission_id}-again-{len(names)}" if names else submission_id)
            path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
            variables = {"PATH": path, **env, **runtime_env.get("env_vars", {}), MARK: names[-1]}
            body = {"entrypoint": entrypoint, "submission_id": names[-1], "metadata": dict(metadata)}
            answer = self.client.post("/api/jobs/", json=body | {"runtime_env": {**runtime_env, "env_vars": variables}})
            answer.raise_for_status()
            self.known.add(submission_id)
            self.submitted.append(submission_id)

    def status(self, submission_id: str) -> RayInfo:
        if submission_id not in self.known:
            raise JobNotFound(submission_id)
        name = self.names[submission_id][-1]
        found = self._seen(name)
        if submission_id not in self.known or self.names[submission_id][-1] != name:
            raise JobNotFound(submission_id)  # its head died meanwhile: what Ray tells of that is nobody's to hear
        return RayInfo(
            found["status"], found.get("message") or "", _time(found, "start_time"), _time(found, "end_time")
        )

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)
        if submission_id in self.known:
            self.client.post(f"/api/jobs/{self.names[submission_id][-1]}/stop")

    def head_gone(self, submission_id: str) -> None:
        with self._lock:
            self.known.discard(submission_id)
            names = list(self.names.get(submission_id, ()))  # what is submitted from now on lives
        for name in names:
            _kill(name)
            if self._seen(name)["status"] not in ENDED:  # what was being started meanwhile dies too
                self._burials.append(threading.Thread(target=self._bury, args=(name,), daemon=True))
                self._burials[-1].start()

    def lose_table(self) -> None:
        self.known.clear()

    def exits(self, submission_id: str) -> list[int | None]:
        """The exit code of each entrypoint that was submitted under this id; none while it runs or if it was killed."""
        return [self._seen(name).get("driver_exit_code") for name in self.names.get(submission_id, ())]

    def close(self) -> None:
        """Nothing that was submitted runs any more."""
        for submission_id in list(self.names):
            self.head_gone(submission_id)
        for burial in self._burials:
            burial.join()
        self.client.close()

    def _seen(self, name: str) -> Mapping[str, Any]:
        try:
            answer = self.client.get(f"/api/jobs/{name}")
        except httpx2.HTTPError as error:
            raise Unreachable from error
        if answer.status_code == 404:
            raise JobNotFound(name)
        if answer.status_code >= 400:
            raise Unreachable(answer.text)
        found: Mapping[str, Any] = answer.json()
        return found

    def _bury(self, name: str) -> None:
        """Until Ray has seen that the job ended."""
        deadline = time.monotonic() + 30
        with suppress(JobNotFound, Unreachable, httpx2.HTTPError):
            self.client.post(f"/api/jobs/{name}/stop")
            while self._seen(name)["status"] not in ENDED and time.monotonic() < deadline:
                _kill(name)
                time.sleep(0.05)
        _kill(name)


def _kill(name: str) -> None:
    while pids := processes(name):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def processes(name: str) -> list[int]:
    """All that run in the environment of what is called so in Ray: supervisor, driver, its children, workers."""
    wanted = f"{MARK}={name}".encode()
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0") and _runs(folder):
                pids.append(int(folder.name))
    return pids


def _runs(folder: Path) -> bool:
    return (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"


def _time(info: Mapping[str, Any], name: str) -> datetime | None:
    """Ray tells milliseconds."""
    return datetime.fromtimestamp(info[name] / 1000, UTC) if info.get(name) else None
