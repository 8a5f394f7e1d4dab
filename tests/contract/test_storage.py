"""What every Storage promises, on a folder and on a real S3; then the faults that each kind can have."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jos.core.errors import BadRequest, NotFound, StorageUnavailable, StorageUnfit
from jos.storage import Storage, open_storage, probe
from jos.storage.local import LEFTOVER_SECONDS, LocalStorage

MIB = 1 << 20


def keys(storage: Storage, prefix: str = "", after: str = "") -> list[str]:
    return [stat.key for stat in storage.list(prefix, after)]


# --- one suite for all ------------------------------------------------------------------------------------


def test_what_is_written_is_read_back_whole_and_in_ranges(storage: Storage) -> None:
    storage.write("a/b.bin", b"0123456789")
    assert storage.read("a/b.bin") == b"0123456789"
    assert storage.read("a/b.bin", 3) == b"3456789"
    assert storage.read("a/b.bin", 3, 5) == b"34"
    assert storage.read("a/b.bin", 8, 99) == b"89"
    assert storage.read("a/b.bin", 10, 20) == b""
    assert storage.read("a/b.bin", 99) == b""
    assert storage.read("a/b.bin", 4, 4) == b""


@pytest.mark.parametrize("window", [(0, None), (1, None), (1, 2), (1, 1)])
def test_reading_what_is_not_there_is_not_found(storage: Storage, window: tuple[int, int | None]) -> None:
    storage.write("a/b", b"x")
    for key in ("nope", "a", "a/nope"):
        with pytest.raises(NotFound, match=key):
            storage.read(key, *window)
        assert storage.stat(key) is None


def test_a_write_replaces_and_changes_the_fingerprint(storage: Storage) -> None:
    storage.write("k", b"one")
    first = storage.stat("k")
    storage.write("k", b"two")
    second = storage.stat("k")
    assert first is not None
    assert second is not None
    assert storage.read("k") == b"two"
    assert first.fingerprint != second.fingerprint
    assert (second.key, second.num_bytes) == ("k", 3)


def test_empty_blobs_are_blobs(storage: Storage) -> None:
    storage.write("empty/written", b"")
    storage.write("empty/streamed", iter(()))
    assert storage.create("empty/created", b"") is True
    assert storage.create("empty/created", b"x") is False
    assert storage.read("empty/written") == storage.read("empty/written", 0, 10) == b""
    assert keys(storage, "empty/") == ["empty/created", "empty/streamed", "empty/written"]


def test_create_refuses_what_is_there_and_leaves_it_alone(storage: Storage) -> None:
    assert storage.create("c", b"first") is True
    assert storage.create("c", b"second") is False
    assert storage.read("c") == b"first"
    storage.delete(["c"])
    assert storage.create("c", b"third") is True


def test_keys_may_hold_any_printable_characters(storage: Storage) -> None:
    names = [
        "ünïcödé 漢字 🎉.csv",
        "a b",
        "100%",
        "a%20b",
        "a+b",
        "q?x#y",
        "[x]{y}*",
        "~t^`|",
        "<\"'>",
        "a&b=c;d",
        ".hid",
    ]
    for name in names:
        storage.write(f"u/{name}", name.encode())
    assert keys(storage, "u/") == sorted(f"u/{n}" for n in names)
    for name in names:
        assert storage.read(f"u/{name}") == name.encode()
        assert storage.location(f"u/{name}").endswith(f"/u/{name}")
    storage.delete([f"u/{n}" for n in names])
    assert keys(storage, "u/") == []


@pytest.mark.parametrize(
    "key", ["", "/etc/x", "../x", "a/../../x", "a//b", "a/", "./a", "a/.", "a\0b", "a\nb", "a\\b", "x" * 300, "\udc80"]
)
def test_keys_that_lead_out_of_the_root_or_fit_nowhere_are_refused(storage: Storage, key: str) -> None:
    with pytest.raises(BadRequest):
        storage.read(key)
    with pytest.raises(BadRequest):
        storage.write(key, b"x")
    with pytest.raises(BadRequest):
        storage.create(key, b"x")
    with pytest.raises(BadRequest):
        storage.delete([key])


def test_list_is_in_key_order_and_resumes_after_any_key(storage: Storage) -> None:
    everything = ["l/a", "l/a-b", "l/a.c", "l/b/x", "l/b/y/z", "l/b-c", "l/b.d/1", "l/b0", "l/c", "m/x"]
    for key in everything:
        storage.write(key, b"12")
    inside = sorted(k for k in everything if k.startswith("l/"))
    assert keys(storage, "l/") == inside
    assert keys(storage) == sorted(everything)
    assert keys(storage, "l/b/") == ["l/b/x", "l/b/y/z"]
    assert keys(storage, "nothing/") == []
    assert all(stat.num_bytes == 2 for stat in storage.list("l/"))
    for after in [*inside, "l/b/", "l/b/xx", "l/", "k", "zzz", "l/b/y"]:
        assert keys(storage, "l/", after) == [k for k in inside if k > after], after
    with pytest.raises(BadRequest):
        keys(storage, "l")


def test_folders_are_the_names_right_below(storage: Storage) -> None:
    for key in ["org_b/x/1", "org_a/y/2", "org_a/y/3", "org_a/z", "top"]:
        storage.write(key, b"1")
    assert list(storage.folders("")) == ["org_a", "org_b"]
    assert list(storage.folders("org_a/")) == ["y"]
    assert list(storage.folders("nothing/")) == []
    with pytest.raises(BadRequest):
        list(storage.folders("org_a"))


def test_list_is_lazy_and_pages_through_more_than_a_thousand(storage: Storage) -> None:
    names = [f"many/{n:05d}" for n in range(1203)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: storage.write(key, b""), names))
    listing = iter(storage.list("many/"))
    assert [next(listing).key for _ in range(3)] == names[:3]
    assert keys(storage, "many/", names[1100]) == names[1101:]
    storage.delete(iter(names))
    assert keys(storage, "many/") == []


def test_list_gives_the_same_fingerprints_as_stat(storage: Storage) -> None:
    storage.write("f/x", b"abc")
    assert list(storage.list("f/")) == [storage.stat("f/x")]


def test_delete_of_what_is_not_there_is_no_error(storage: Storage) -> None:
    storage.write("d/x", b"1")
    storage.write("d/y", b"1")
    storage.delete(["d/nope", "d/x", "d/x/below"])
    storage.delete([])
    assert keys(storage, "d/") == ["d/y"]


def chunks(total: int, size: int) -> Iterator[bytes]:
    for n in range(total // size):
        yield n.to_bytes(8, "big") * (size // 8)


@pytest.mark.parametrize("size", [4096, 3 * MIB, 20 * MIB])
def test_a_stream_arrives_whole(storage: Storage, size: int) -> None:
    total = 40 * MIB // size * size
    digest = hashlib.sha256()
    for chunk in chunks(total, size):
        digest.update(chunk)
    storage.write("stream", chunks(total, size))
    assert hashlib.sha256(storage.read("stream")).digest() == digest.digest()


def test_a_stream_needs_constant_memory(storage: Storage) -> None:
    """In a process of its own: 30 MB to warm up (the client's buffers), then 300 MB must cost little more."""
    code = """
import resource, sys
from jos.storage import open_storage
storage = open_storage(sys.argv[1])
def stream(mib):
    storage.write("big", (bytes(1 << 20) for _ in range(mib)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
warm = stream(30)
print(stream(300) - warm)
"""
    ran = subprocess.run([sys.executable, "-c", code, storage.url], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found = storage.stat("big")
    assert found is not None
    assert found.num_bytes == 300 * MIB
    assert int(ran.stdout) < 60 * 1024, f"{ran.stdout} KiB more"


def test_a_stream_that_breaks_leaves_nothing_and_keeps_what_was_there(storage: Storage) -> None:
    def broken(after: int) -> Iterator[bytes]:
        for _ in range(after):
            yield bytes(MIB)
        raise OSError(errno.EIO, "the source broke, not the storage")

    storage.write("s/old", b"old")
    for key in ("s/new", "s/old"):
        for after in (1, 20):
            with pytest.raises(OSError, match="the source broke"):
                storage.write(key, broken(after))
    assert keys(storage, "s/") == ["s/old"]
    assert storage.read("s/old") == b"old"


def test_a_storage_goes_to_another_process_by_url_or_by_pickle(storage: Storage) -> None:
    storage.write("k", b"v")
    assert open_storage(storage.url).read("k") == b"v"
    assert pickle.loads(pickle.dumps(storage)).read("k") == b"v"
    assert open_storage(storage.url).url == storage.url


# --- races ------------------------------------------------------------------------------------------------

ROUNDS, THREADS, PROCESSES = 20, 8, 4


def content(who: str, number: int) -> bytes:
    return f"{who} {number} ".encode() * 500


def test_of_racing_threads_exactly_one_creates(storage: Storage) -> None:
    """All rounds at once: SeaweedFS makes losers wait for whole seconds."""
    starts = [threading.Barrier(THREADS) for _ in range(ROUNDS)]

    def race(number: int, who: int) -> bool:
        starts[number].wait(60)
        return storage.create(f"race/{number}", content(f"thread{who}", number))

    with ThreadPoolExecutor(ROUNDS * THREADS) as pool:
        results = [[pool.submit(race, number, who) for who in range(THREADS)] for number in range(ROUNDS)]
    for number in range(ROUNDS):
        winners = [who for who in range(THREADS) if results[number][who].result()]
        assert len(winners) == 1, f"round {number}: {winners}"
        assert storage.read(f"race/{number}") == content(f"thread{winners[0]}", number)


def _race_in_process(url: str, who: int, start: Any, results: Any) -> None:
    storage = open_storage(url)
    won = []
    for number in range(ROUNDS):
        start.wait(60)
        won.append(storage.create(f"race/{number}", content(f"process{who}", number)))
    results.put((who, won))


def test_of_racing_processes_exactly_one_creates(storage: Storage) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(PROCESSES), context.Queue()
    processes = [
        context.Process(target=_race_in_process, args=(storage.url, who, start, results)) for who in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    won = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
    for number in range(ROUNDS):
        winners = [who for who in range(PROCESSES) if won[who][number]]
        assert len(winners) == 1, f"round {number}: {winners}"
        assert storage.read(f"race/{number}") == content(f"process{winners[0]}", number)


# --- opening and probing ----------------------------------------------------------------------------------


def test_the_probe_passes_and_leaves_nothing(storage: Storage) -> None:
    probe(storage)
    assert keys(storage) == []


class IgnoresCreate:
    """What rclone's and other S3 servers do: they take no notice of If-None-Match."""

    def __init__(self, storage: Storage) -> None:
        self.inner = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def create(self, key: str, data: bytes) -> bool:
        self.inner.write(key, data)
        return True


class RefusesButOverwrites(IgnoresCreate):
    def create(self, key: str, data: bytes) -> bool:
        there = self.inner.stat(key) is not None
        self.inner.write(key, data)
        return not there


@pytest.mark.parametrize("fault", [IgnoresCreate, RefusesButOverwrites])
def test_a_store_that_ignores_create_if_absent_is_refused(storage: Storage, fault: type[IgnoresCreate]) -> None:
    with pytest.raises(StorageUnfit, match=r"create-if-absent.*SeaweedFS"):
        probe(fault(storage))
    assert keys(storage) == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("memory://x", "could not see each other's files"),
        ("ftp://host/x", "not supported.*s3://"),
        ("", "empty"),
        ("s3://", "names no bucket"),
        ("file://host/x", "host"),
    ],
)
def test_a_root_that_cannot_work_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(StorageUnfit, match=reason):
        open_storage(url)


def test_a_folder_may_be_named_by_path_or_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("a b", str(tmp_path / "a b"), f"file://{tmp_path}/a%20b"):
        assert open_storage(url).url == str(tmp_path / "a b")


# --- faults of a folder -----------------------------------------------------------------------------------


def test_leftovers_of_killed_writers_are_not_listed_and_go_when_old(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    code = """
import os, signal, sys
from jos.storage import open_storage
def stream():
    yield b"half"
    os.kill(os.getpid(), signal.SIGKILL)
    yield b"never"
open_storage(sys.argv[1]).write("a/killed", stream())
"""
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert ran.returncode == -signal.SIGKILL
    left = list((tmp_path / ".tmp").iterdir())
    assert [f.read_bytes() for f in left] == [b"half"]
    assert keys(storage) == []
    LocalStorage(tmp_path)
    assert left[0].exists(), "it might still be written"
    old = time.time() - LEFTOVER_SECONDS - 60
    os.utime(left[0], (old, old))
    LocalStorage(tmp_path)
    assert not left[0].exists()
    with pytest.raises(BadRequest):
        storage.write(".tmp/x", b"")


def test_foreign_files_and_a_tidied_up_folder_do_no_harm(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (tmp_path / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"")
    (tmp_path / ".tmp").rmdir()
    storage.write("k", b"v")
    assert keys(storage) == ["k"]
    with pytest.raises(BadRequest, match="folder is needed"):
        storage.write("k/below", b"")
    storage.write("f/x", b"")
    for put in (storage.write, storage.create):
        with pytest.raises(BadRequest, match="folder is needed"):
            put("f", b"")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_and_loses_nothing(tiny_disk: Path) -> None:
    storage = LocalStorage(tiny_disk)
    storage.write("kept", b"old")
    for put in (
        lambda: storage.write("kept", bytes(2 * MIB)),
        lambda: storage.write("new", chunks(2 * MIB, 4096)),
        lambda: storage.create("new", bytes(2 * MIB)),
    ):
        with pytest.raises(StorageUnavailable, match=r"tiny: No space left.*disk is full"):
            put()
    assert keys(storage) == ["kept"]
    assert storage.read("kept") == b"old"
    storage.write("new", bytes(MIB // 2))  # the failed ones gave their space back


def test_a_read_only_file_system_is_told(tiny_disk: Path) -> None:
    storage = LocalStorage(tiny_disk)
    storage.write("k", b"v")
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(StorageUnavailable, match=r"tiny.*read-only"):
        storage.create("x", b"")
    assert LocalStorage(tiny_disk).read("k") == b"v"
    with pytest.raises(StorageUnavailable, match="read-only"):
        probe(storage)


def test_a_file_size_limit_is_told(tmp_path: Path) -> None:
    """Needs no root: the limit makes write(2) fail with EFBIG."""
    storage = LocalStorage(tmp_path / "limited")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        with pytest.raises(StorageUnavailable, match=r"limited.*ulimit"):
            storage.write("k", bytes(2 * MIB))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert keys(storage) == []


def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    """In a process of its own that is not root, to whom no folder is closed."""
    LocalStorage(tmp_path / "closed").write("k", b"v")
    code = """
import os, sys
from jos.core.errors import StorageUnavailable
from jos.storage import open_storage
os.chdir("/")
if os.geteuid() == 0:
    os.setuid(65534)
for attempt in (lambda: open_storage(sys.argv[1]).write("x", b""), lambda: open_storage(sys.argv[1] + "/sub")):
    try:
        attempt()
    except StorageUnavailable as error:
        print(error)
"""
    for folder in (tmp_path / "closed", tmp_path / "closed" / ".tmp"):
        folder.chmod(0o555)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)  # pytest closes its folders to others
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "closed")], capture_output=True, text=True, timeout=60
    )
    told = ran.stdout.splitlines()
    assert len(told) == 2, ran.stderr
    assert all("closed" in line and "permission" in line.lower() and "user that runs JOS" in line for line in told)


# --- faults of an S3 --------------------------------------------------------------------------------------


def every_call(storage: Storage) -> list[Any]:
    return [
        lambda: storage.read("k"),
        lambda: storage.write("k", b""),
        lambda: storage.create("k", b""),
        lambda: list(storage.list("k/")),
        lambda: storage.delete(["k"]),
        lambda: probe(storage),
    ]


def test_an_endpoint_that_refuses_connections_is_told(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        storage = open_storage("s3://jos/x")
        calls = [*every_call(storage), lambda: storage.stat("k")]
        started = time.monotonic()
        with ThreadPoolExecutor(len(calls)) as pool:
            errors = [attempt.exception() for attempt in [pool.submit(call) for call in calls]]
        assert time.monotonic() - started < 15
    for error in errors:
        assert isinstance(error, StorageUnavailable)
        assert f"Cannot reach bucket 'jos' at {endpoint}: HTTP error" in str(error)
        assert "AWS_ENDPOINT_URL" in str(error)


def test_an_endpoint_that_takes_no_connection_is_told(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full backlog drops connection attempts, like a firewall."""
    with socket.socket() as deaf, socket.socket() as a, socket.socket() as b, socket.socket() as c:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for filler in (a, b, c):
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        storage = open_storage("s3://jos/x")
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match="Cannot reach bucket 'jos'"):
            storage.create("k", b"")
        assert time.monotonic() - started < 20  # 13 by design; slack for a busy machine


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_bad_credentials_are_told_and_never_shown(s3: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "wrong-value")
    storage = open_storage("s3://jos/x")
    for call in [*every_call(storage), lambda: storage.stat("k")]:
        with pytest.raises(StorageUnavailable, match=r"Access to bucket 'jos' at http.*refused.*AWS_SECRET") as told:
            call()
        assert "wrong-value" not in str(told.value)
        assert s3.secret_key not in str(told.value)


def test_a_missing_bucket_is_told(s3: Any) -> None:
    for call in every_call(open_storage("s3://no-such-bucket/x")):
        with pytest.raises(StorageUnavailable, match=r"There is no bucket 'no-such-bucket' at http.*Create it"):
            call()


def test_a_server_that_is_no_s3_is_not_taken_for_an_empty_one(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's plain 404 must not read as "nothing there": an empty log would start the job anew."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(StorageUnavailable, match="does not speak S3"):
            open_storage("s3://jos/x").read("k")
        thread.join()
