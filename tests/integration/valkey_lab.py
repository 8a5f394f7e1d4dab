"""An embedded Valkey to look at and to hurt, and the smallest records to put into it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jos.store
from jos.core.ids import new_id
from jos.core.model import EventDraft, Job
from jos.store import embedded

NOW = datetime(2026, 4, 14, 10, 5, 0, 123456, tzinfo=UTC)


class Valkey:
    """An embedded server on a folder of its own."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def ensure(self) -> str:
        return embedded.ensure(self.data_dir)

    def pid(self) -> int:
        return int((self.data_dir / embedded.PID).read_text())

    def kill(self) -> int:
        """`kill -9`; returns when the process is gone."""
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid))
        return pid


def wait_until(look: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true value of `look()`; fails after the deadline."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.002)
    return found


def alive(pid: int) -> bool:
    """Whether the process still runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] not in "ZX"


def servers_on(data_dir: Path) -> list[int]:
    """The server processes that work in this folder, by what the kernel says."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve() == data_dir.resolve() and "valkey" in (entry / "comm").read_text():
                found.append(int(entry.name))
        except OSError:
            continue  # it ended while we looked
    return found


# Starts the server from a thread that ends, tells its process number, and stays until its input ends.
OWNER = """
import sys, threading
from pathlib import Path
from jos.store import embedded
folder = Path(sys.argv[1])
thread = threading.Thread(target=embedded.ensure, args=(folder,))
thread.start()
thread.join()
print((folder / embedded.PID).read_text().strip(), flush=True)
sys.stdin.read()
"""


def python(script: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(jos.store.__file__).parents[2])},
    )


def make_job(**fields: Any) -> Job:
    defaults: dict[str, Any] = {
        "id": new_id("job"),
        "org_id": "org_a",
        "name": "nightly",
        "pipeline_type": "batch",
        "pipeline_key": "sensor-classify",
        "pipeline_version": "1.0.0",
        "parameters": {"worker": {"parallelism": 1, "config": {}}},
        "created_at": NOW,
        "updated_at": NOW,
        "queued_at": NOW,
    }
    return Job(**{**defaults, **fields})


def event(message: str = "it happened", **fields: Any) -> EventDraft:
    return EventDraft(**{"event_type": "job.created", "message": message, "created_at": NOW, **fields})
