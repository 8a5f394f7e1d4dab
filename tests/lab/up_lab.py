"""`jos up` for the suites: the whole service on a home of its own, as a process that is stopped as a person would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jobs_lab import BIN, HERE
from services_lab import _die_with_parent, free_ports

from jos.client import Client
from jos.launch import ray_head


@dataclass
class Up:
    """One home, on which `jos up` may run several times."""

    home: Path
    port: int
    told: dict[str, Any] = field(default_factory=dict)  # what it printed at its latest start
    key: str = ""
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return str(self.told["url"])

    @property
    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("JOS_") and k != "RAY_ADDRESS"}
        own = {"JOS_HOME": str(self.home), "JOS_PIPELINES": str(HERE / "pipelines"), "JOS_WARM_DRIVERS": "1"}
        return {**clean, **own, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}

    @property
    def log(self) -> Path:
        return self.home.with_suffix(".log")

    def said(self) -> str:
        logs = [self.log, *sorted((self.home / "logs").glob("*.log"))]
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in logs if p.exists())

    def start(self, *options: str) -> None:
        """Returns when it says that it is up."""
        command = [str(BIN / "jos"), "up", "--json", "--port", str(self.port), "--num-cpus", "8", *options]
        linux: Any = {"preexec_fn": _die_with_parent} if sys.platform == "linux" else {}
        with self.log.open("ab") as err:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env=self.environment,
                **linux,
            )
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if line == "}\n":
                break
        assert said, self.said()
        self.told = json.loads(said)
        self.key = self.told["api_key"] or self.key

    def stop(self, number: int = signal.SIGINT, seconds: float = 90) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(seconds)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def kill(self) -> None:
        """kill -9, of `jos up` alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def client(self) -> Client:
        return Client(self.url, self.key)

    def jos(self, *arguments: object, code: int = 0, cwd: Path | None = None) -> Any:
        """What `jos … --json` says; a list for those that say a line each."""
        command = [str(BIN / "jos"), *map(str, arguments), "--json"]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=cwd, timeout=180, check=False
        )
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}\n{self.said()}"
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError:
            return [json.loads(line) for line in done.stdout.splitlines()]

    def child(self, name: str) -> int:
        """The process that is `jos NAME` of this home."""
        assert self.process is not None
        for folder in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (folder / "children").read_text().split():
                if f"jos.cli\0{name}\0" in Path(f"/proc/{pid}/cmdline").read_text():
                    return int(pid)
        return 0

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop(seconds=60)
            except subprocess.TimeoutExpired:
                self.kill()
        ray_head.stop(self.home)
        shutil.rmtree(self.home, ignore_errors=True)


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One running service for all tests that only use it."""
    one = Up(tmp_path_factory.mktemp("up") / "home", free_ports(1)[0])
    one.start()
    yield one
    one.close()


@pytest.fixture
def own_up(tmp_path: Path) -> Iterator[Up]:
    """One of the test's own, not started."""
    one = Up(tmp_path / "home", free_ports(1)[0])
    yield one
    one.close()
