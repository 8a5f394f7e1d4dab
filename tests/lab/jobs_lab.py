"""Real jobs for the suites: one Ray head per test session, drivers as processes, and looks at what they left.

`Lab` is a JOS home of one test. Tests wait for what a job says of itself (events, progress) or for its commit log,
never for time to pass. Processes started here end with the test run, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import pytest
from services_lab import _die_with_parent, free_ports

from jos.core.errors import JosError, NotFound
from jos.core.ledger import Entry, Ledger
from jos.core.model import Event, Job, job_folder
from jos.engine import Engine
from jos.request import build
from jos.settings import Settings
from jos.storage.log import CommitLog
from jos.store import embedded

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
BIN = Path(sys.executable).parent
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",  # beside other tests, workers that give way to everybody would never have their turn
    "RAY_prestart_worker_first_driver": "0",  # as under `jos up`; else a process for each of the head's made-up CPUs
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
}


def alive(pid: int) -> bool:
    """Whether the process still runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] not in "ZX"


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def until(look: Callable[[], Any], seconds: float = 240.0, every: float = 0.02) -> Any:
    """The first true value of `look()`; fails after the deadline. The longer it lasts, the less often it looks: tests
    that ask without a pause take the processor from what they wait for."""
    started = time.monotonic()
    while not (found := look()):
        waited = time.monotonic() - started
        assert waited < seconds, f"did not happen within {seconds} s"
        time.sleep(min(max(every, waited / 50), 0.5))
    return found


# --- Ray ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    address: str
    dashboard: str  # its URL; answers only where the head was started with one


@contextlib.contextmanager
def ray_head(dashboard: bool, cpus: int = 16) -> Iterator[Head]:
    """Ray gives its own parts half a minute to come up, which is not always enough on a machine with much to do."""
    with contextlib.ExitStack() as stack:
        for last in (False, False, True):
            try:
                head = stack.enter_context(_ray_head(dashboard, cpus))
                break
            except HeadDied:
                if last:
                    raise
        yield head


class HeadDied(AssertionError):
    """Ray's head ended while it was starting."""


@contextlib.contextmanager
def _ray_head(dashboard: bool, cpus: int) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="jos-ray-"))  # short: Ray keeps sockets below it
    gcs, client, board, agent, metrics = free_ports(5)
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--num-cpus={cpus}", f"--port={gcs}"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-port={board}", f"--temp-dir={folder}"]
    command += [f"--include-dashboard={str(dashboard).lower()}", "--disable-usage-stats", "--log-style=record"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000", f"--memory={64 << 30}"]
    log = folder / "head.log"
    with log.open("wb") as out:
        options: Any = {"preexec_fn": _die_with_parent} if sys.platform == "linux" else {}
        environment = {**os.environ, **RAY_ENVIRONMENT}
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True, **options)
    try:

        def started() -> bool:
            if process.poll() is not None:
                raise HeadDied(f"ray start ended:\n{log.read_text()[-3000:]}")
            return "Ray runtime started" in log.read_text()

        until(started, 90, 0.1)
        yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{board}")
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)  # what is left is killed next
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray() -> Iterator[Head]:
    """One head for all tests of a session: starting it is most of the time that a small job takes."""
    with ray_head(dashboard=False) as head:
        yield head


# --- one home -----------------------------------------------------------------------------------------


@dataclass
class Ended:
    """A driver that has ended."""

    code: int
    result: dict[str, Any]
    said: str  # its standard error


@dataclass
class Driver:
    process: subprocess.Popen[str]
    log: Path

    def end(self, seconds: float = 300) -> Ended:
        """Waits for it; fails with what it said if it takes too long."""
        try:
            out, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the driver did not end within {seconds} s:\n{self.said[-6000:]}")
        lines = out.strip().splitlines()
        return Ended(self.process.returncode, json.loads(lines[-1]) if lines else {}, self.said)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """kill -9, and gone."""
        self.process.kill()
        self.process.wait()

    def ask_to_leave(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@dataclass
class Lab:
    """A JOS home, its engine, and drivers on it."""

    folder: Path
    ray_address: str | None
    storage: str | None = None
    pipelines: Sequence[Path] = (HERE / "pipelines",)
    drivers: list[Driver] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return Settings(
            home=self.folder / "home",
            storage=self.storage,
            ray_address=self.ray_address,
            pipelines=os.pathsep.join(map(str, self.pipelines)),
        )

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.settings)

    @property
    def environment(self) -> dict[str, str]:
        own = {f"JOS_{k.upper()}": str(v) for k, v in self.settings.model_dump(exclude_none=True).items()}
        clean = {k: v for k, v in os.environ.items() if not k.startswith("JOS_") and k != "RAY_ADDRESS"}
        return {**clean, **RAY_ENVIRONMENT, **own}

    def close(self) -> None:
        for driver in self.drivers:
            driver.kill()
            assert driver.process.stdout is not None
            driver.process.stdout.close()
        if "engine" in self.__dict__:
            self.engine.close()
        embedded.stop(self.settings.redis_dir)

    # --- making jobs ---

    def write(self, name: str, records: Sequence[Mapping[str, Any]]) -> Path:
        path = self.folder / name
        path.write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in records))
        return path

    def submit(self, pipeline: str, files: Sequence[Path] = (), parallelism: int = 2, **config: Any) -> str:
        """A job, PENDING; its id."""
        inputs = {"data": list(files)} if files else {}
        request = build(pipeline, inputs, {"worker": {"config": config}}, parallelism=parallelism)
        return self.engine.submit(request).id

    def job_yaml(self, pipeline: str, files: Sequence[Path], parallelism: int = 2, **config: Any) -> Path:
        path = self.folder / "job.yaml"
        data = {
            "name": "a test",
            "pipeline_key": pipeline,
            "inputs": {"worker.data": [{"file_id": f.name} for f in files]},
            "parameters": {"worker": {"parallelism": parallelism, "config": config}},
        }
        path.write_text(json.dumps(data))  # JSON is YAML
        return path

    # --- running them ---

    def driver(self, *arguments: object, environment: Mapping[str, str] | None = None) -> Driver:
        """`python -m jos.driver …` as a process."""
        log = self.folder / f"driver-{len(self.drivers)}.log"
        command = [sys.executable, "-m", "jos.driver", *map(str, arguments), "--json"]
        with log.open("wb") as err:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env={**self.environment, **(environment or {})},
                cwd=REPOSITORY,
            )
        driver = Driver(process, log)
        self.drivers.append(driver)
        return driver

    def resume(self, job_id: str, *options: str) -> Driver:
        return self.driver("resume", job_id, *options)

    def jos(self, *arguments: object) -> subprocess.Popen[str]:
        """The installed `jos` as a process; Ctrl-C (SIGINT) means what it does in a terminal."""
        command = [str(BIN / "jos"), *map(str, arguments)]
        pipe = subprocess.PIPE
        restored: Any = {
            "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        }  # `&` in a script ignores it
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            env=self.environment,
            cwd=self.folder,
            **restored,
        )

    def complete(self, job_id: str) -> Job:
        """Drives the job to its end; it must complete."""
        ended = self.resume(job_id).end()
        assert ended.code == 0, f"{ended.result}\n{ended.said[-6000:]}"
        return self.engine.get(job_id)

    # --- looking ---

    def get(self, job_id: str) -> Job:
        return self.engine.get(job_id)

    def events(self, job_id: str, event_type: str | None = None) -> list[Event]:
        """All of them; asserts that they are numbered 1, 2, … without a gap."""
        found: list[Event] = []
        while batch := self.engine.events(job_id, after=found[-1].id if found else 0)[1]:
            found.extend(batch)
        assert [e.id for e in found] == list(range(1, len(found) + 1))
        return [e for e in found if event_type in (None, e.event_type)]

    def wait_for(self, job_id: str, event_type: str, count: int = 1) -> list[Event]:
        """Until so many events of this type are there."""

        def look() -> list[Event]:
            found = self.events(job_id, event_type)
            return found if len(found) >= count else []

        return list(until(look))

    def folder_of(self, job_id: str) -> str:
        return job_folder(self.settings.org, job_id)

    def ledger(self, job_id: str) -> Ledger:
        return CommitLog.open(self.engine.storage, self.folder_of(job_id)).ledger

    def tasks_done(self, job_id: str) -> int:
        with contextlib.suppress(JosError):
            return self.ledger(job_id).tasks_done
        return 0

    def wait_for_tasks(self, job_id: str, tasks: int) -> int:
        """Until so many tasks are in the commit log; how many there are then."""
        until(lambda: self.tasks_done(job_id) >= tasks)
        return self.tasks_done(job_id)

    def log(self, job_id: str) -> list[Entry]:
        """The entries as they lie in storage."""
        storage, entries = self.engine.storage, []
        while True:
            try:
                data = storage.read(f"{self.folder_of(job_id)}log/{len(entries):020d}.json")
            except NotFound:
                return entries
            entries.append(Entry.from_json(orjson.loads(data)))

    def attempts(self, job_id: str) -> list[str]:
        """Tokens in the order in which they wrote."""
        return list(dict.fromkeys(e.attempt for e in self.log(job_id)))

    def committed(self, job_id: str) -> dict[int, int]:
        """Input ordinal -> tasks; asserts that every task is in exactly one commit, from 0 on."""
        ranges: dict[int, list[tuple[int, int]]] = {}
        for entry in self.log(job_id):
            for commit in entry.commits:
                ranges.setdefault(commit.input, []).append((commit.start, commit.end))
        ends = {}
        for ordinal, found in ranges.items():
            at = 0
            for start, end in sorted(found):
                assert start == at, f"input {ordinal}: {at}..{start} is committed twice or not at all"
                at = end
            ends[ordinal] = at
        return ends

    def outputs(self, job_id: str) -> list[bytes]:
        """The contents of all output files, in the order of the inputs."""
        found = self.engine.outputs(job_id)
        return [self.engine.storage.read(self.folder_of(job_id) + o.key) for o in found]


@pytest.fixture
def lab(tmp_path: Path, ray: Head) -> Iterator[Lab]:
    one = Lab(tmp_path, ray.address)
    yield one
    one.close()
