"""The processes of `jos up`: started, started again with back-off when they die, ended with their parent; and the
choice of a port.

May import: stdlib, jos.core.errors. Tests: tests/unit/test_up_rules.py, tests/e2e/test_up.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jos.core.errors import BadRequest, Conflict

STOP_SECONDS = 25.0  # the API gives requests 20
LOG_BYTES = 64 << 20  # a log that has grown so long becomes the old one, of which one is kept
CALM = 60.0  # a child that lived so long begins its back-off anew
PORTS = 50  # tried, from the wanted one on
CHILD = "JOS_CHILD"  # set for children: they end when their standard input does, that is with their parent

Tell = Callable[[str], object]


def backoff(deaths: int) -> float:
    """Seconds before a child that died is started again."""
    return float(min(30.0, 0.5 * 2 ** max(0, deaths - 1)))


def free_port(host: str, wanted: int, fixed: bool) -> int:
    """The wanted port, or unless it is fixed the next free one."""
    for port in range(wanted, wanted + (1 if fixed else PORTS)):
        if is_free(host, port):
            return port
    raise Conflict(
        f"port {wanted} of {host} is taken." if fixed else f"no port of {host} from {wanted} on is free.",
        suggestion="Give another with --port.",
    )


def is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise BadRequest(f"port {port} of {host} may not be used: {error.strerror}.") from error
        except OSError:
            return False
    return True


@dataclass
class Child:
    name: str
    command: Sequence[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    born: float = 0.0
    again_at: float | None = None  # when it is started again, while it is dead

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,  # never written to: its end tells the child that we are gone
                stdout=out,
                stderr=out,
                env=self.environment | {CHILD: "1"},
                start_new_session=True,  # Ctrl-C is for us, who stop all in order
            )
        self.born, self.again_at = time.monotonic(), None

    def look(self, now: float, tell: Tell) -> None:
        """Starts it again if it is dead and its back-off has passed. Keeps its log short."""
        self._turn_log()
        if self.again_at is not None:
            if now >= self.again_at:
                self.start()
                tell(f"{self.name} is started again")
            return
        if self.process is None or self.process.poll() is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.deaths = 1 if now - self.born > CALM else self.deaths + 1
        wait = backoff(self.deaths)
        self.again_at = now + wait
        tell(f"{self.name} ended with code {self.process.returncode}; starting it again in {wait:g} s ({self.log})")

    def _turn_log(self) -> None:
        """Copied and cut, for the child goes on writing into the file that it has; what it writes in between is lost.
        It appends, so the file begins anew."""
        with contextlib.suppress(OSError):  # e.g. a full disk: the log matters less than the service
            if self.log.stat().st_size > LOG_BYTES:
                shutil.copyfile(self.log, self.log.with_name(f"{self.log.name}.1"))
                os.truncate(self.log, 0)

    @property
    def running(self) -> bool:
        return self.process is not None and self.again_at is None and self.process.poll() is None

    def kill(self) -> None:
        """At once; `look` starts it again."""
        if self.process is not None:
            self.process.kill()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        process, self.process, self.again_at = self.process, None, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def leave_with_parent() -> None:
    """In a child of `jos up`: ends this process when the parent is gone, also by kill -9."""
    if os.environ.pop(CHILD, None) is None:
        return

    def watch() -> None:
        while os.read(0, 1024):
            continue
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="jos-parent", daemon=True).start()
