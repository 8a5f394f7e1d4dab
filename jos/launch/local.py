"""Starts a driver as a process of its own on this machine, for `jos run` and `jos.run(...)`.

May import: jos.settings. Tests: tests/e2e.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jos.settings import Settings


@dataclass(frozen=True)
class LocalDriver:
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


# Kept, because a handle that goes while its process runs makes Python complain.
_started: list[subprocess.Popen[bytes]] = []


def start_driver(job_id: str, settings: Settings, *, take_over: bool = False) -> LocalDriver:
    """`python -m jos.driver resume JOB` in a session of its own: a Ctrl-C in the terminal reaches only who asks."""
    settings.log_dir.mkdir(parents=True, exist_ok=True)
    log = settings.log_dir / f"{job_id}.log"
    named = settings.model_dump(exclude_none=True)
    environment = {**os.environ, **{f"JOS_{k.upper()}": str(v) for k, v in named.items()}}
    command = [sys.executable, "-m", "jos.driver", "resume", job_id, *(["--take-over"] if take_over else [])]
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    _started[:] = [*(p for p in _started if p.poll() is None), process]
    return LocalDriver(process, log)
