"""JOS's own Ray on this machine, for `jos up`: one head with its dashboard, all of it on loopback ports.

The head's environment holds JOS's settings, so that drivers that are submitted to it have them without anybody
seeing them. Nothing of an earlier head is used again: if that died, what is left of it is ended first.
May import: stdlib, jos.core.errors. Tests: tests/integration/test_launch_head.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from jos.core.errors import ComputeFailed

STATE, LOG, LOCK, KEY = "head.json", "head.log", "head.lock", "head.key"
START_SECONDS = 90.0
STOP_SECONDS = 5.0  # after that nothing of it is waited for: what jobs did is in their logs
PROC = Path("/proc")  # Linux; elsewhere `ps` is asked
OBJECT_STORE_BYTES = 100_000_000  # JOS sends no data through Ray

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # its default is about to change; all ports are on loopback
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: listen on 127.0.0.1 alone
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_JOB_STOP_WAIT_TIME_S": "35",  # between SIGTERM and SIGKILL: beyond the 30 s that a driver may drain
    "RAY_preload_python_modules": "jos.driver.preload",
    "RAY_prestart_worker_first_driver": "0",  # warm drivers ask for what they need (jos.driver.cluster.prestart)
}

_TELLING = ("JOS_", "AWS_", "GOOGLE_", "PYTHONPATH")
# they are of API and controller alone, and a port differs when another program has the usual one
_OF_EACH_START = ("JOS_API_HOST", "JOS_API_PORT", "JOS_RAY_DASHBOARD", "JOS_CONTROLLER_HOST", "JOS_CONTROLLER_PORT")

_children: list[subprocess.Popen[bytes]] = []  # heads that this process started


@dataclass(frozen=True)
class RayHead:
    address: str  # host:port, for ray.init
    dashboard: str  # URL
    pid: int  # of `ray start --block`, which leads a process group of its own
    started: str  # what tells that process from a later one with its number
    folder: str  # Ray's sessions and their logs
    given: str = ""  # a digest of the settings that its drivers have


def find(home: Path) -> RayHead | None:
    """The head that an earlier call started for this home, if it lives and its dashboard answers."""
    head = _read(home)
    return head if head is not None and _lives(head) and _answers(head.dashboard) else None


def alive(home: Path) -> bool:
    """Whether the head's process lives, however busy it is."""
    head = _read(home)
    return head is not None and _lives(head)


def start(home: Path, environment: Mapping[str, str], cpus: int | None = None) -> RayHead:
    """The head of this home: the one that lives and has the same `environment` (JOS_…, AWS_… and the like) for its
    drivers, else a new one. Raises ComputeFailed with the end of Ray's log."""
    folder = home / "ray"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two `jos up` of one home at once
        head = find(home)
        if head is None or head.given != _digest(folder, _environment(environment)):
            stop(home)
            head = _start(folder, environment, cpus)
        return head


def stop(home: Path) -> None:
    """Ends the head and everything that runs on it."""
    head = _read(home)
    if head is None:
        return
    if _lives(head):
        os.kill(head.pid, signal.SIGTERM)
        _wait(lambda: not _lives(head), STOP_SECONDS)
    for pid in _left_of(head):  # also of a head that was killed itself
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    for process in [p for p in _children if p.pid == head.pid]:
        process.wait()
        _children.remove(process)
    shutil.rmtree(head.folder, ignore_errors=True)
    (home / "ray" / STATE).unlink(missing_ok=True)


# --- starting -----------------------------------------------------------------------------------------


def _start(folder: Path, environment: Mapping[str, str], cpus: int | None) -> RayHead:
    sessions = _short_folder(folder)
    shutil.rmtree(sessions, ignore_errors=True)
    sessions.mkdir(mode=0o700, parents=True)
    gcs, board, agent, metrics, client = _free_ports(5)
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    command += [f"--port={gcs}", "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={board}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
    command += [f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={sessions}", "--disable-usage-stats"]
    command += ["--log-style=record", *([f"--num-cpus={cpus}"] if cpus is not None else [])]
    given = _environment(environment)
    with (folder / LOG).open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=given,
            cwd=folder,
            start_new_session=True,
        )
    head = RayHead(
        f"127.0.0.1:{gcs}",
        f"http://127.0.0.1:{board}",
        process.pid,
        _started(process.pid),
        str(sessions),
        _digest(folder, given),
    )
    _children.append(process)
    _write(folder, head)  # at once, so that a start that is cut off is cleaned up by the next
    up = _wait(lambda: process.poll() is not None or _answers(head.dashboard), START_SECONDS)
    if not up or process.poll() is not None:
        said = (folder / LOG).read_text(errors="replace").strip()[-2000:]
        stop(folder.parent)
        raise ComputeFailed(f"Ray did not start: {said}", suggestion="See `jos doctor`.")
    return head


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JOS_") and k != "RAY_ADDRESS"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # drivers run `python`: this one
    return {**inherited, **ENVIRONMENT, "PATH": path, **settings}


def _digest(folder: Path, environment: Mapping[str, str]) -> str:
    """Of the variables that change what drivers do. Keyed, so that nobody can try passwords on it who sees only it."""
    path = folder / KEY
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))
    told = {k: v for k, v in environment.items() if k.startswith(_TELLING) and k not in _OF_EACH_START}
    return hmac.new(path.read_bytes(), json.dumps(told, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _short_folder(folder: Path) -> Path:
    """Ray keeps sockets below it, whose paths have 107 characters at most."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    return Path("/tmp") / f"jos-{os.getuid()}" / f"ray-{name}"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


# --- looking ------------------------------------------------------------------------------------------


def _read(home: Path) -> RayHead | None:
    try:
        return RayHead(**json.loads((home / "ray" / STATE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(folder: Path, head: RayHead) -> None:
    new = folder / f"{STATE}.new"
    new.write_text(json.dumps(asdict(head)))
    new.replace(folder / STATE)


def _started(pid: int) -> str:
    """When the process began, in the kernel's own words; "" if there is none, or it is dead."""
    if PROC.is_dir():
        try:
            state, *fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if state in "ZX" else fields[18]
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    asked = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False)
    state, _, when = asked.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else when.strip()


def _lives(head: RayHead) -> bool:
    return head.started != "" and _started(head.pid) == head.started


def _answers(dashboard: str) -> bool:
    try:
        with urllib.request.urlopen(f"{dashboard}/api/version", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _left_of(head: RayHead) -> list[int]:
    """What still runs of a head that is dead itself: its servers name Ray's folder in their command, its agents,
    their helpers and the workers are of its session."""
    found = []
    for pid, session, command in _processes():
        rays = command.startswith("ray") or ("multiprocessing.forkserver" in command and "'ray'" in command)
        ours = head.folder in command or (session == head.pid and rays)
        if ours and pid != os.getpid():
            found.append(pid)
    return found


def _processes() -> Iterator[tuple[int, int, str]]:
    """Number, session and command of each."""
    if PROC.is_dir():
        for process in PROC.glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                session = (process / "stat").read_text().rpartition(")")[2].split()[3]
                yield int(process.name), int(session), (process / "cmdline").read_text(errors="replace")
        return
    asked = subprocess.run(["ps", "-axww", "-o", "pid=,sess=,command="], capture_output=True, text=True, check=True)
    for line in asked.stdout.splitlines():
        pid, session, command = line.split(None, 2)
        yield int(pid), int(session) if session.isdigit() else 0, command


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
