"""JOS's own Ray on this machine: found again while it lives, replaced when it died, and gone when it is stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_lab import alive, until

from jos.controller.reconcile import LIMITS
from jos.core.model import Timeouts
from jos.launch import ray_head

SETTINGS = {"JOS_HOME": "/nowhere", "JOS_ORG": "org_a"}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / ("a-long-name-" * 8)  # no socket of Ray's fits below such a home
    ray_head.stop(tmp_path / ("a-long-name-" * 8))


def test_a_head_lives_until_it_is_stopped_and_nothing_of_it_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of some other cluster
    assert ray_head.find(home) is None
    head = ray_head.start(home, SETTINGS, cpus=1)
    assert ray_head.find(home) == head
    assert ray_head.start(home, SETTINGS, cpus=1) == head
    environment = Path(f"/proc/{head.pid}/environ").read_text().split("\0")
    assert "JOS_ORG=org_a" in environment
    assert not [v for v in environment if v.startswith("RAY_ADDRESS=")]
    [wait] = [v.partition("=")[2] for v in environment if v.startswith("RAY_JOB_STOP_WAIT_TIME_S=")]
    assert int(wait) > Timeouts().drain, "a driver that is stopped is not killed while it may drain"
    assert int(wait) < LIMITS.proof, "one that hangs is killed before it is given up without proof"
    assert _listens_elsewhere(ray_head._left_of(head)) == []

    os.kill(head.pid, 9)
    until(lambda: not alive(head.pid))
    assert ray_head.find(home) is None
    old = [pid for pid in ray_head._left_of(head) if alive(pid)]
    assert old  # Ray's servers outlive the process that started them
    second = ray_head.start(home, {**SETTINGS, "JOS_REDIS_URL": "redis://:hush@a"}, cpus=1)
    assert second.pid != head.pid
    until(lambda: not any(map(alive, old)), 20)

    assert "hush" not in (home / "ray" / ray_head.STATE).read_text()
    same = {**SETTINGS, "JOS_REDIS_URL": "redis://:hush@a", "JOS_API_PORT": "1"}
    assert ray_head.start(home, same, cpus=1) == second
    third = ray_head.start(home, {**same, "JOS_REDIS_URL": "redis://:hush@b"}, cpus=1)  # its drivers had the old one
    assert not alive(second.pid)
    assert "JOS_REDIS_URL=redis://:hush@b" in Path(f"/proc/{third.pid}/environ").read_text().split("\0")

    ray_head.stop(home)
    assert ray_head.find(home) is None
    until(lambda: not any(map(alive, ray_head._left_of(third))), 20)
    assert not Path(third.folder).exists()
    ray_head.stop(home)  # again: no error


def _listens_elsewhere(pids: list[int]) -> list[str]:
    """Local addresses, other than loopback, on which one of these processes accepts connections."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(descriptor))
            except OSError:
                continue
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            host = local.partition(":")[0]
            loopback = host.endswith("0100007F") or host == "0" * 24 + "01000000"
            if state == "0A" and not loopback and f"socket:[{rest[5]}]" in inodes:
                found.append(local)
    return found


def test_half_a_state_file_is_as_good_as_none(home: Path) -> None:
    (home / "ray").mkdir(parents=True)
    (home / "ray" / ray_head.STATE).write_text("{")  # half a file
    assert ray_head.find(home) is None
    ray_head.stop(home)
