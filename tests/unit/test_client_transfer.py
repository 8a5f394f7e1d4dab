"""Uploads and downloads against a server in memory: parts, resumes, renewals, checksums, names."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import google_crc32c
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jos.client import Client, ServerUnreachable, crc
from jos.client.bars import plain_name
from jos.client.files import distinct, expand
from jos.client.http import RetryPolicy
from jos.client.transfer import gaps
from jos.core.errors import BadRequest, ConfigInvalid, Conflict, JosError
from jos.wire import UploadPart

NEVER, LONG_AGO = "2999-01-01T00:00:00.000000Z", "2001-01-01T00:00:00.000000Z"
PART = 1000


def checksum(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@dataclass
class FakeFiles:
    """The files part of the contract, in memory. `puts` hears of each part first, and may answer instead."""

    files: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    puts: Callable[[int], httpx2.Response | None] = lambda _: None
    expires: str = NEVER
    lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self) -> Client:
        client = Client(
            "http://jos.test", "sk_1", retry=RetryPolicy(tries=3), transport=httpx2.MockTransport(self.answer)
        )
        client._http.sleep = lambda _: None
        return client

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        method, path = request.method, unquote(request.url.path).removeprefix("/v0.5")
        with self.lock:
            self.asked.append(f"{method} {path}")
        if path.startswith("/put/"):
            assert "authorization" not in request.headers
            return self.put(request, path)
        assert request.headers["authorization"] == "Bearer sk_1"
        body = json.loads(request.content) if request.content else {}
        with self.lock:
            if path == "/files/uploads/initiate":
                return self.initiate(body)
            if found := re.fullmatch(r"/files/uploads/(\w+)/(.*)", path):
                return self.step(self.uploads[found[1]], found[1], found[2], body)
            name = path.rpartition("/")[2]
            if name not in self.files:
                return self.error(404, "not_found")
            if method == "DELETE":
                del self.files[name]
                return httpx2.Response(200, json={"is_valid": True, "file_id": name, "file_uid": "fil_1"})
            return self.record(name) if "metadata" in path else self.bytes_of(request, self.files[name])

    def error(self, status: int, code: str) -> httpx2.Response:
        return httpx2.Response(status, json={"errors": [{"code": code, "message": code, "error_uid": "err-1"}]})

    def record(self, name: str) -> httpx2.Response:
        size = len(self.files[name])
        known = {"is_valid": True, "file_id": name, "file_uid": "fil_1", "file_type": "text/csv", "num_bytes": size}
        return httpx2.Response(200, json={**known, "file_status": "Registered"})

    def bytes_of(self, request: httpx2.Request, data: bytes) -> httpx2.Response:
        return httpx2.Response(200, content=data)

    def initiate(self, body: dict[str, Any]) -> httpx2.Response:
        name, size = body["filename"], body["num_bytes"]
        if name in self.files:
            return self.error(409, "conflict")
        upload = self.uploads.setdefault(name.partition(".")[0], {"name": name, "size": size, "parts": {}, "kept": {}})
        upload["count"] = max(1, -(-size // PART))
        left = [n for n in range(1, upload["count"] + 1) if n not in upload["kept"]]
        key = name.partition(".")[0]
        answer = {"upload_id": key, "file_uid": "fil_1", "file_name": name, "total_bytes": size, "part_size": PART}
        answer |= {"num_parts": upload["count"], "strategy": "multipart", "is_resume": bool(upload["kept"])}
        answer |= {"integrity_algorithm": "crc32c", "expires_at": NEVER}
        return httpx2.Response(200, json=answer | {"parts": [self.part(key, n, self.expires) for n in left]})

    def part(self, key: str, number: int, expires: str) -> dict[str, Any]:
        offset = (number - 1) * PART
        length = min(PART, self.uploads[key]["size"] - offset)
        url = f"http://jos.test/put/{key}/{number}"
        return {"part_number": number, "url": url, "offset": offset, "length": length, "expires_at": expires}

    def put(self, request: httpx2.Request, path: str) -> httpx2.Response:
        _, _, key, number = path.split("/")
        told = self.puts(int(number))
        if told is not None:
            return told
        assert int(request.headers["content-length"]) == len(request.content)
        with self.lock:
            self.uploads[key]["parts"][int(number)] = request.content
        return httpx2.Response(200, headers={"ETag": f'"tag-{number}"'})

    def step(self, upload: dict[str, Any], key: str, what: str, body: dict[str, Any]) -> httpx2.Response:
        tokens = {p["part_number"]: p["part_token"] for p in body.get("parts", [])}
        match what:
            case "parts/urls":
                return httpx2.Response(200, json={"parts": [self.part(key, n, NEVER) for n in body["part_numbers"]]})
            case "parts/checkpoint":
                upload["kept"] |= tokens
                return httpx2.Response(200, json={"num_checkpointed": len(upload["kept"])})
            case "abort":
                del self.uploads[key]
                return httpx2.Response(200, json={})
        assert set(upload["kept"] | tokens) == set(range(1, upload["count"] + 1))
        data = b"".join(upload["parts"][n] for n in sorted(upload["parts"]))
        if body["integrity_checksum"] != checksum(data):
            return self.error(400, "checksum_mismatch")
        self.files[upload["name"]] = data
        answer = {"file_uid": "fil_1", "file_name": upload["name"], "num_bytes": len(data)}
        return httpx2.Response(200, json=answer | {"file_status": "Registered"})

    def count(self, asked: str) -> int:
        return sum(a.startswith(asked) for a in self.asked)


def written(path: Path, size: int, seed: int = 7) -> Path:
    path.write_bytes(bytes((n * seed + n // 251) % 256 for n in range(size)))
    return path


# --- up -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PART, 10 * PART, 10 * PART + 1])
def test_a_file_arrives_as_it_is(tmp_path: Path, size: int) -> None:
    server, path = FakeFiles(), written(tmp_path / "a.csv", size)
    [record] = server.client().files.upload(path)
    assert (record.num_bytes, server.files["a.csv"]) == (size, path.read_bytes())


def test_progress_is_told_and_ends_with_all(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    FakeFiles().client().files.upload(written(tmp_path / "a.csv", 5500), progress=lambda *n: told.append(n))
    assert told[-1] == (5500, 5500)
    assert all(total == 5500 for _, total in told)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_upload_that_was_cut_off_sends_only_what_is_missing(tmp_path: Path, workers: int) -> None:
    server, path = FakeFiles(), written(tmp_path / "a.csv", 20 * PART)
    server.puts = lambda number: httpx2.Response(500) if number == 12 else None
    with pytest.raises(JosError):
        server.client().files.upload(path, workers=workers)
    kept = len(server.uploads["a"]["kept"])
    assert kept == 11 if workers == 1 else 0 < kept < 20  # of several, one may be far behind the others
    server.puts, server.asked = lambda _: None, []
    told: list[tuple[int, int]] = []
    server.client().files.upload(path, progress=lambda *n: told.append(n))
    assert server.files["a.csv"] == path.read_bytes()
    assert server.count("PUT") == 20 - kept
    assert told[-1][0] == 20 * PART


def test_a_file_that_changed_between_the_two_runs_is_found_out(tmp_path: Path) -> None:
    server, path = FakeFiles(), written(tmp_path / "a.csv", 5 * PART)
    server.puts = lambda number: httpx2.Response(500) if number == 5 else None
    with pytest.raises(JosError):
        server.client().files.upload(path, workers=1)
    server.puts = lambda _: None
    written(path, 5 * PART, seed=11)
    with pytest.raises(BadRequest, match="checksum_mismatch"):
        server.client().files.upload(path)


def test_urls_that_expired_are_renewed(tmp_path: Path) -> None:
    server, path = FakeFiles(expires=LONG_AGO), written(tmp_path / "a.csv", 3 * PART)
    server.client().files.upload(path)
    assert server.count("POST /files/uploads/a/parts/urls") == 3


def test_a_url_that_is_refused_is_renewed(tmp_path: Path) -> None:
    server, path = FakeFiles(), written(tmp_path / "a.csv", 3 * PART)
    refused = iter([httpx2.Response(403), None, None, None])
    server.puts = lambda _: next(refused)
    server.client().files.upload(path, workers=1)
    assert server.files["a.csv"] == path.read_bytes()
    assert server.count("POST /files/uploads/a/parts/urls") == 1


def test_a_part_is_sent_again_after_a_fault(tmp_path: Path) -> None:
    server, path = FakeFiles(), written(tmp_path / "a.csv", 3 * PART)
    answers = iter([httpx2.Response(503), None, None, None])
    server.puts = lambda _: next(answers)
    told: list[int] = []
    server.client().files.upload(path, workers=1, progress=lambda done, _: told.append(done))
    assert server.files["a.csv"] == path.read_bytes()
    assert told[-1] == 3 * PART


def test_a_file_that_is_there_with_the_same_content_is_not_sent(tmp_path: Path) -> None:
    server, path = FakeFiles(), written(tmp_path / "a.csv", 3 * PART)
    server.files["a.csv"] = path.read_bytes()
    server.client().files.upload(path)
    assert server.count("PUT") == 0


def test_a_file_that_is_there_with_other_content_is_a_conflict_or_replaced(tmp_path: Path) -> None:
    server, path = FakeFiles(), written(tmp_path / "a.csv", 3 * PART)
    server.files["a.csv"] = bytes(3 * PART)
    with pytest.raises(Conflict, match=r"a\.csv is on the server already.*--name.*--replace"):
        server.client().files.upload(path)
    server.client().files.upload(path, replace=True)
    assert server.files["a.csv"] == path.read_bytes()


def test_a_file_goes_by_another_name_when_told(tmp_path: Path) -> None:
    server = FakeFiles()
    server.client().files.upload(written(tmp_path / "a.csv", 10), name="b.csv")
    assert list(server.files) == ["b.csv"]


def test_an_unfinished_upload_can_be_thrown_away(tmp_path: Path) -> None:
    server, path = FakeFiles(), written(tmp_path / "a.csv", 3 * PART)
    server.puts = lambda number: httpx2.Response(500) if number == 3 else None
    with pytest.raises(JosError):
        server.client().files.upload(path)
    server.client().files.abort(path)
    assert server.uploads == {}


def test_a_folder_is_uploaded_as_its_files(tmp_path: Path) -> None:
    server = FakeFiles()
    (tmp_path / "deep").mkdir()
    names = ["a.csv", "deep/b.csv", ".hidden", "c.csv"]
    for name in names:
        written(tmp_path / name, 100)
    records = server.client().files.upload(tmp_path)
    assert [r.file_id for r in records] == ["a.csv", "c.csv", "b.csv"]


# --- names --------------------------------------------------------------------------------------------


def test_what_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"nothing\.csv, .*\*\.jsonl"):
        expand([tmp_path / "nothing.csv", f"{tmp_path}/*.jsonl"])


def test_two_files_of_one_name_are_refused_and_one_named_twice_is_one(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    one, other = written(tmp_path / "a.csv", 1), written(tmp_path / "deep" / "a.csv", 1)
    with pytest.raises(BadRequest, match="same name"):
        distinct([one, other])
    assert distinct([one, tmp_path / "deep" / ".." / "a.csv"]) == [one] or len(distinct([one, one])) == 1


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/etc/passwd", "a\\b", "a\0"])
def test_a_server_cannot_make_the_client_write_elsewhere(name: str) -> None:
    with pytest.raises(BadRequest):
        plain_name(name)


def test_inputs_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jos.client.inputs import sort_out

    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b.csv"):
        written(tmp_path / name, 10)
    named = sort_out({"n_shots": [("a.csv", "idle"), ("there.csv", "busy")], "worker.inference": "*.csv"}, tmp_path)
    assert [p.name for p in named.local] == ["a.csv", "b.csv"]
    shots = [(r.file_id, r.metadata) for r in named.inputs["worker.n_shots"]]
    assert shots == [("a.csv", {"class": "idle"}), ("there.csv", {"class": "busy"})]
    assert [r.file_id for r in named.inputs["worker.inference"]] == ["a.csv", "b.csv"]
    with pytest.raises(ConfigInvalid) as caught:
        sort_out({"data": ["x/none.csv", "s3://bucket/a.csv"]}, tmp_path)
    assert [v.path for v in caught.value.violations] == [
        '$.inputs["worker.data"][0]',
        '$.inputs["worker.data"][1]',
    ]


# --- pure ---------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_the_checksum_of_the_whole_comes_out_of_those_of_the_parts(parts: list[bytes]) -> None:
    sums = [(google_crc32c.value(p), len(p)) for p in parts]
    assert crc.text(crc.of_parts(sums)) == checksum(b"".join(parts))


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=12))
def test_gaps_and_parts_make_the_whole_file(stretches: list[tuple[int, bool]]) -> None:
    parts, at = [], 0
    for number, (length, listed) in enumerate(stretches, 1):
        if listed:
            part = {"part_number": number, "url": "u", "offset": at, "length": length, "expires_at": NEVER}
            parts.append(UploadPart.model_validate(part))
        at += length
    covered = sorted([(p.offset, p.length) for p in parts] + gaps(at, parts))
    ends = [0]
    for offset, length in covered:
        assert offset == ends[-1]
        ends.append(offset + length)
    assert ends[-1] == at


# --- down ---------------------------------------------------------------------------------------------


class Dropping(httpx2.SyncByteStream):
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __iter__(self) -> Any:
        yield self.data
        raise httpx2.ReadError("gone")


def test_a_download_goes_on_where_the_connection_broke(tmp_path: Path) -> None:
    data, ranges = bytes(range(200)) * 20, list[str | None]()

    def answer(request: httpx2.Request, whole: bytes) -> httpx2.Response:
        asked = request.headers.get("range")
        ranges.append(asked)
        start = int(asked[6:-1]) if asked else 0
        headers = {"ETag": '"1"'}
        if len(ranges) < 3:
            return httpx2.Response(206 if asked else 200, headers=headers, stream=Dropping(data[start : start + 1500]))
        return httpx2.Response(206, headers=headers, content=data[start:])

    server = FakeFiles({"a.csv": data})
    server.bytes_of = answer  # type: ignore[method-assign]
    path = server.client().files.download("a.csv", tmp_path)
    assert path.read_bytes() == data
    assert ranges == [None, "bytes=1500-", "bytes=3000-"]


def test_a_download_that_cannot_be_finished_leaves_nothing_behind(tmp_path: Path) -> None:
    server = FakeFiles({"a.csv": bytes(100)})
    server.bytes_of = lambda *_: httpx2.Response(200, stream=Dropping(b""))  # type: ignore[method-assign]
    with pytest.raises(ServerUnreachable, match="broke off"):
        server.client().files.download("a.csv", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_parts_are_checkpointed_as_they_finish(tmp_path: Path) -> None:
    server, kept = FakeFiles(), list[int]()

    def seen(number: int) -> None:
        kept.append(len(server.uploads["a"]["kept"]))

    server.puts = seen
    server.client().files.upload(written(tmp_path / "a.csv", 5 * PART), workers=1)
    assert kept == sorted(kept)
    assert kept[-1] >= 3  # while the last part was on its way
