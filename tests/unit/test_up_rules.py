"""Pieces of `jos up` that need no service: ports, back-off, and children that are kept alive."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_lab import until

from jos import up, up_child
from jos.core.errors import Conflict
from jos.settings import Settings
from jos.up_child import Child, backoff, free_port


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


def test_a_taken_port_is_passed_over_unless_it_was_asked_for(taken: int) -> None:
    assert taken < free_port("127.0.0.1", taken, fixed=False) < taken + 50
    with pytest.raises(Conflict, match=f"port {taken} of 127.0.0.1 is taken"):
        free_port("127.0.0.1", taken, fixed=True)


def test_back_off_doubles_up_to_half_a_minute() -> None:
    assert [backoff(n) for n in (1, 2, 3, 4, 20)] == [0.5, 1, 2, 4, 30]


def test_a_child_that_dies_is_started_again_after_its_back_off(tmp_path: Path) -> None:
    told: list[str] = []
    child = Child("api", [sys.executable, "-c", "import sys; sys.exit(3)"], dict(os.environ), tmp_path / "api.log")
    child.start()
    assert child.process is not None
    child.process.wait()
    child.look(0.0, told.append)
    assert told == [f"api ended with code 3; starting it again in 0.5 s ({tmp_path}/api.log)"]
    child.look(0.4, told.append)
    assert len(told) == 1
    child.look(0.5, told.append)
    assert told[1:] == ["api is started again"]
    child.stop()


def test_a_child_leaves_when_its_parent_is_gone(tmp_path: Path) -> None:
    code = "from jos.up_child import leave_with_parent as l; l(); print('up', flush=True); import time; time.sleep(60)"
    child = Child("api", [sys.executable, "-c", code], dict(os.environ), tmp_path / "api.log")
    child.start()
    assert child.process is not None
    assert child.process.stdin is not None
    until(lambda: child.log.read_text() == "up\n")
    child.process.stdin.close()  # what the kernel does when the parent is killed
    assert child.process.wait(10) == -15


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    child = Child("api", [sys.executable, "-c", code], dict(os.environ), tmp_path / "api.log")
    child.start()
    until(lambda: child.log.read_text() == "up\n")
    began = time.monotonic()
    process: subprocess.Popen[bytes] | None = child.process
    child.stop(0.2)
    assert time.monotonic() - began < 10
    assert process is not None
    assert process.returncode == -9


def test_a_long_log_becomes_the_old_one_and_the_child_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up_child, "LOG_BYTES", 5)
    code = "import sys\nfor line in ('first', 'again'): print(line, flush=True); sys.stdin.read(1)"
    child = Child("api", [sys.executable, "-c", code], dict(os.environ), tmp_path / "api.log")
    child.start()
    assert child.process is not None
    assert child.process.stdin is not None
    until(lambda: child.log.read_text() == "first\n")
    child.look(0.0, print)
    assert (tmp_path / "api.log.1").read_text() == "first\n"
    child.process.stdin.write(b"x")
    child.process.stdin.flush()
    until(lambda: child.log.read_bytes() == b"again\n")
    child.stop()


def test_a_controller_that_leaves_the_lead_free_for_long_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = True

    async def nobody_leads(_settings: Settings) -> bool:
        return free

    monkeypatch.setattr(up, "_nobody_leads", nobody_leads)
    told: list[str] = []
    service = up.Service(up.Options(Settings(home=tmp_path)), told.append)
    hung = Child(
        "controller", [sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ), tmp_path / "log"
    )
    hung.start()
    assert hung.process is not None
    for look in range(2 * up.LEADERLESS - 1):
        free = look != up.LEADERLESS - 1  # it led once in between, or Redis was away
        service._look_at_lead(hung)
    assert told == []
    service._look_at_lead(hung)
    assert told == ["controller hangs: it does not lead, and nobody else does; it is ended"]
    assert hung.process.wait(10) == -9
    service._look_at_lead(hung)  # dead: it has its own back-off
    assert service.leaderless == 0
    hung.stop()


def test_a_redis_that_is_away_is_not_a_free_lead(tmp_path: Path) -> None:
    assert not asyncio.run(up._nobody_leads(Settings(home=tmp_path, redis_url="redis://127.0.0.1:1")))
