"""Inputs by path and URL: seekable streams and ranges of exactly the version the job was created for."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import pickle
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest

import jos.storage.s3
from jos.core.errors import InputInvalid, NotFound, StorageUnavailable
from jos.storage import Storage, open_storage
from jos.storage.source import READ_AHEAD, FileSource, stat_input
from jos.worker import Source

CONTENT = b"time,value\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(200_000))


def source_of(url: str) -> FileSource:
    return FileSource("inp_1", "data 1.csv", url, *stat_input(url), {"class": "a"})


@pytest.fixture(params=["path", "file://", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Callable[[bytes], None], Callable[[], None]]:
    """A URL, a way to put content there and a way to take it away."""
    storage: Storage
    if request.param == "s3":
        request.getfixturevalue("s3")
        storage = open_storage(f"s3://jos/{secrets.token_hex(6)}")
    else:
        storage = open_storage(str(tmp_path / "in"))
    key = "folder/data 1.csv"
    url = storage.location(key)
    if request.param == "file://":
        url = Path(url).as_uri()
    return url, lambda data: storage.write(key, data), lambda: storage.delete([key])


def test_an_input_is_read_as_a_stream_and_in_ranges(place: tuple[str, Callable[[bytes], None], object]) -> None:
    url, put, _ = place
    put(CONTENT)
    source: Source = pickle.loads(pickle.dumps(source_of(url)))
    assert (source.num_bytes, source.filename, source.metadata["class"]) == (len(CONTENT), "data 1.csv", "a")
    with source.open() as file:
        assert file.read() == CONTENT
        assert file.seek(-5, io.SEEK_END) == len(CONTENT) - 5
        assert file.read(99) == CONTENT[-5:]
        assert file.read(1) == b""
        file.seek(100)
        assert file.readline() == CONTENT[100:].split(b"\n")[0] + b"\n"
        file.seek(0)
        with io.TextIOWrapper(file) as lines:
            rows = list(csv.reader(lines))
    assert len(rows) == 200_001
    assert source.read_range(4, 10) == CONTENT[4:10]
    assert source.read_range(len(CONTENT) - 3, len(CONTENT) + 50) == CONTENT[-3:]
    assert source.read_range(len(CONTENT), len(CONTENT) + 1) == b""
    assert source.read_range(7, 7) == b""


def test_arrow_and_pandas_read_from_it(place: tuple[str, Callable[[bytes], None], object]) -> None:
    pacsv = pytest.importorskip("pyarrow.csv")
    url, put, _ = place
    put(CONTENT)
    with source_of(url).open() as file, pacsv.open_csv(file) as reader:
        assert sum(batch.num_rows for batch in reader) == 200_000


def test_reading_lines_of_an_object_costs_few_requests(s3: object, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"s3://jos/{secrets.token_hex(6)}")
    storage.write("lines", CONTENT * 4)
    requests: list[int] = []
    real = jos.storage.s3.read_object
    monkeypatch.setattr(jos.storage.s3, "read_object", lambda *a: requests.append(1) or real(*a))
    source = source_of(storage.location("lines"))
    for wrap in (io.TextIOWrapper, lambda file: file):
        requests.clear()
        with wrap(source.open()) as lines:
            assert sum(1 for _ in lines) == 4 * 200_001
        assert len(requests) <= source.num_bytes / READ_AHEAD + 1
    requests.clear()
    with source.open() as file:
        assert len(file.read()) == source.num_bytes
        assert len(requests) <= 2


@pytest.mark.parametrize("change", ["same size", "other size", "gone"])
def test_a_changed_input_is_refused_by_name(
    place: tuple[str, Callable[[bytes], None], Callable[[], None]], change: str
) -> None:
    url, put, take_away = place
    put(CONTENT)
    source = source_of(url)
    assert source.read_range(0, 4) == b"time"
    if change == "gone":
        take_away()
    else:
        put(CONTENT[:-2] + b"x\n" if change == "same size" else CONTENT[:-5])
        if not url.startswith("s3"):  # two writes within one tick of the file system's clock
            path = url.removeprefix("file://").replace("%20", " ")
            os.utime(path, ns=(1, 1))
    for read in (source.open, lambda: source.read_range(0, 4)):
        with pytest.raises(InputInvalid, match=r"data(%20| )1\.csv") as refused:
            read()
        assert refused.value.code == "invalid_input"


def test_an_object_replaced_under_an_open_stream_does_not_mix_versions(s3: object) -> None:
    storage = open_storage(f"s3://jos/{secrets.token_hex(6)}")
    storage.write("big", bytes(9 << 20))
    file = source_of(storage.location("big")).open()
    file.read(10)
    storage.write("big", b"\1" * (9 << 20))
    with pytest.raises(InputInvalid, match="another version"):
        file.read()
    file.close()


def test_what_is_no_file_is_refused_before_a_job_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    for path, reason in [("", "a folder"), ("pipe", "a device, pipe or socket")]:
        with pytest.raises(InputInvalid, match=reason):
            stat_input(str(tmp_path / path))
    for path in ("nope", "file/below"):
        with pytest.raises(NotFound, match=path):
            stat_input(str(tmp_path / path))
    monkeypatch.chdir(tmp_path)
    assert stat_input("file") == stat_input(str(tmp_path / "file"))
    with pytest.raises(NotFound, match=f"{tmp_path}/relative.csv"):
        stat_input("relative.csv")


@pytest.mark.parametrize(
    ("url", "reason"),
    [("memory://x", "one process"), ("nope://x", "not known"), ("s3:///x", "names no bucket"), ("a\0b", "null byte")],
)
def test_a_url_that_cannot_work_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(InputInvalid, match=reason):
        stat_input(url)


def test_folders_and_missing_objects_of_a_bucket_are_refused(s3: object) -> None:
    storage = open_storage(f"s3://jos/{secrets.token_hex(6)}")
    storage.write("folder/x", b"x")
    for url in (storage.location("folder") + "/", "s3://jos/"):
        with pytest.raises(InputInvalid, match="is a folder"):
            stat_input(url)
    for url in (storage.location("folder"), storage.location("nope"), "s3://no-such-bucket/x"):
        with pytest.raises(NotFound):
            stat_input(url)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_input_may_lie_on_a_web_server(web: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "x.csv").write_bytes(CONTENT)
    with pytest.raises(NotFound):
        stat_input(f"{web}/nope")
    assert stat_input(f"{web}/x.csv")[0] == len(CONTENT)


def test_a_web_server_out_of_reach_may_be_tried_again() -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(StorageUnavailable, match="just now"):
        stat_input("http://127.0.0.1:9/x")


def test_a_file_with_a_checksum_is_compared_whenever_it_is_read_whole(
    place: tuple[str, Callable[[bytes], None], object],
) -> None:
    url, put, _ = place
    put(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    source = replace(source_of(url), sha256=digest)
    with source.open() as file:
        assert (file.read(), file.seek(3), file.read(4)) == (CONTENT, 3, CONTENT[3:7])
    assert source.read_range(5, 9) == CONTENT[5:9]
    assert source.read_range(0, len(CONTENT)) == CONTENT
    put(CONTENT[:-1] + b"x")
    damaged = replace(source_of(url), sha256=digest)
    for read in (damaged.open, lambda: damaged.read_range(0, damaged.num_bytes)):
        with pytest.raises(InputInvalid, match="is damaged"):
            read()
