"""Files posted whole, listed, downloaded, deleted, read by jobs, recovered: over real HTTP, on both storages."""

from __future__ import annotations

import base64
import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from files_lab import PART, Api, code, crc
from jobs_lab import until
from services_lab import _die_with_parent, free_ports

from jos.core.errors import NotFound
from jos.core.ids import new_id
from jos.core.model import EventDraft, Job, Status
from jos.storage.source import stat_input

TABLE = b"t,a,b\n1,2,3\n4,5,6\n"


def job(**fields: Any) -> Job:
    now = datetime.now(UTC)
    basics = {
        "org_id": "org_a",
        "name": "n",
        "pipeline_type": "batch",
        "pipeline_key": "k",
        "pipeline_version": "1.0.0",
    }
    times = {"created_at": now, "updated_at": now, "queued_at": now}
    return Job(**{"id": new_id("job"), **basics, "parameters": {}, **times, **fields})


def put_job(api: Api, one: Job) -> None:
    event = EventDraft(event_type="job.created", message="made", created_at=one.created_at)
    api.run(api.service.store.create(one, [event]))


def uid_of(api: Api, name: str) -> str:
    return str(api.metadata(name)["file_uid"])


# --- posting ----------------------------------------------------------------------------------------------


def test_a_posted_file_can_be_read_back_at_once(api: Api) -> None:
    answer = api.post("a.csv", TABLE).json()
    assert answer == {"is_valid": True, "file_id": "a.csv", "file_uid": answer["file_uid"]}
    assert answer["file_uid"].startswith("fil_")
    record = api.metadata("a.csv")
    assert record.pop("created_at").endswith("Z")
    assert record == {
        "file_id": "a.csv",
        "file_uid": answer["file_uid"],
        "is_valid": True,
        "file_type": "text/csv",
        "num_bytes": len(TABLE),
        "file_status": "Registered",
        "file_attributes": {"num_rows": 2, "num_columns": 3, "column_headers": ["t", "a", "b"]},
        "ingested": True,
        "file_index": 0,
        "file_tags": [],
    }
    assert api.metadata(answer["file_uid"])["file_id"] == "a.csv"
    assert api.download("a.csv").content == TABLE


@pytest.mark.parametrize("name", ["ünï cödé 漢字 🎉.csv", "a b+c%20d&e=f;g#h?i.csv", "it's [x]{y}~.csv", ".hid.csv"])
def test_any_printable_name_works_everywhere(api: Api, name: str) -> None:
    assert api.post(name, TABLE).json()["file_id"] == name
    found = api.run(api.service.files.resolve("org_a", [name]))[name]
    link = api.service.links.download(found.key, name, api.url)
    answer = api.plain.get(link)
    assert answer.content == TABLE
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    quoted = httpx2.URL("http://x").copy_with(path=f"/v0.5/files/download/{name}").raw_path.decode()
    quoted = quoted.replace("?", "%3F").replace("#", "%23")
    assert api.http.get(quoted).content == TABLE
    assert stat_input(api.service.storage.location(found.key)) == (found.num_bytes, found.fingerprint)


@pytest.mark.parametrize("name", ["../x.csv", "a/b.csv", "a\\b.csv", "..", "x" * 252 + ".csv"])
@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_names_that_lead_elsewhere_are_refused(api: Api, name: str) -> None:
    assert code(api.post(name, TABLE)) == (400, "bad_request")


def test_the_extension_decides_what_a_file_is(api: Api) -> None:
    api.post("a.jsonl", b'{"a":1}\n{"a":2}\n', "text/csv")
    record = api.metadata("a.jsonl")
    assert (record["file_type"], record["file_attributes"]) == ("application/x-ndjson", {"num_rows": 2})
    assert code(api.post("a.exe", b"MZ", "text/csv")) == (400, "invalid_file_type")
    assert code(api.post("a.bin", b"x", "application/octet-stream")) == (400, "invalid_file_type")


def test_base64_is_decoded_on_the_way(api: Api) -> None:
    data = os.urandom(300_001)
    lines = base64.encodebytes(data)
    for name, text in [("a.png", lines), ("b.png", base64.b64encode(data))]:
        answer = api.http.post("/v0.5/files/base64", files={"file": (name, text, "image/png")})
        assert answer.status_code == 200, answer.text
        assert api.download(name).content == data


@pytest.mark.parametrize("text", [b"###=", b"AAA", b"AAAA=", b"QQ==QQ==", "ä".encode(), b"AA=A"])
@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_what_is_no_base64_is_refused_and_leaves_nothing(api: Api, text: bytes) -> None:
    answer = api.http.post("/v0.5/files/base64", files={"file": ("a.png", text, "image/png")})
    assert code(answer) == (400, "bad_request")
    assert list(api.service.storage.list("org_a/")) == []


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_bodies_that_hold_no_file_are_refused(api: Api) -> None:
    url = "/v0.5/files"
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    answers = [
        api.http.post(url, content=b"a,b\n", headers={"Content-Type": "text/csv"}),
        api.http.post(url, content=b"a,b\n", headers={"Content-Type": "multipart/form-data"}),
        api.http.post(url, content=b"a,b\n", headers=form),
        api.http.post(url, content=b"--x--\r\n", headers=form),
        api.http.post(url),
        api.http.post(url, files={"other": ("a.csv", TABLE)}),
        api.http.post(url, data={"file": "a,b"}, files={"more": ("a.csv", TABLE)}),
        api.http.post(
            url,
            content=b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\na,b\n',
            headers=form,
        ),
    ]
    assert [code(a) for a in answers] == [(400, "bad_request")] * len(answers)
    assert api.http.get("/v0.5/files/metadata").json() == []
    assert list(api.service.storage.list("org_a/")) == []


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_other_parts_of_the_form_are_passed_over(api: Api) -> None:
    answer = api.http.post(
        "/v0.5/files", data={"note": "x" * 100_000}, files={"other": ("b.csv", b"no"), "file": ("a.csv", TABLE)}
    )
    assert answer.json()["file_id"] == "a.csv"
    assert api.download("a.csv").content == TABLE


# --- limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_what_says_itself_that_it_is_too_large_is_refused_before_it_is_sent(api: Api) -> None:
    connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=30)
    for path, size in [("/v0.5/files", 500 << 20), ("/v0.5/files/base64", 800_000_000)]:
        connection.putrequest("POST", path)
        connection.putheader("Authorization", api.http.headers["authorization"])
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        assert (answer.status, b'"invalid_file_size"' in body) == (413, True), body
        connection.close()


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_a_client_that_sends_all_of_500_mib_reads_the_refusal(api: Api) -> None:
    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
        for _ in range(500):
            yield bytes(1 << 20)
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str((500 << 20) + 82)}
    assert code(api.http.post("/v0.5/files", content=body(), headers=headers)) == (413, "invalid_file_size")


def test_the_limit_holds_for_what_announces_no_length(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jos.core.files.MAX_POST_BYTES", 3_000_000)

    def body(size: int) -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
        yield bytes(size)
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert api.http.post("/v0.5/files", content=body(3_000_000), headers=headers).status_code == 200
    api.http.delete("/v0.5/files/delete/a.csv")
    assert code(api.http.post("/v0.5/files", content=body(3_000_001), headers=headers)) == (413, "invalid_file_size")
    assert list(api.service.storage.list("org_a/")) == []


# --- replacing and deleting -------------------------------------------------------------------------------


def test_the_same_name_again_replaces_silently(api: Api) -> None:
    first = api.post("a.csv", TABLE).json()["file_uid"]
    second = api.post("a.csv", b"x\n1\n").json()["file_uid"]
    assert first != second
    assert api.download("a.csv").content == b"x\n1\n"
    assert code(api.http.get(f"/v0.5/files/metadata/{first}")) == (404, "not_found")
    info = api.http.get("/v0.5/files/info").json()
    assert (info["num_files"], info["num_bytes"], info["num_ingested"]) == (1, 4, 1)
    assert isinstance(info["last_updated"], float)
    assert info["last_updated"] == pytest.approx(datetime.now(UTC).timestamp(), abs=60)
    assert [s.key for s in api.service.storage.list("org_a/")] == [
        f"org_a/files/{second}/data/a.csv",
        f"org_a/files/{second}/file.json",
    ]


def test_what_a_live_job_reads_stays_when_it_is_replaced_until_the_job_is_over(api: Api) -> None:
    uid = api.post("a.csv", TABLE).json()["file_uid"]
    one = job()
    file = api.run(api.service.files.resolve("org_a", ["a.csv"]))["a.csv"]
    api.run(api.service.files.readers("org_a", [uid], one.id))
    put_job(api, one)
    api.post("a.csv", b"x\n1\n")
    later = datetime.now(UTC) + timedelta(hours=1)
    assert api.run(api.service.files.prune(later)) == 0
    assert api.service.storage.read(file.key) == TABLE
    api.run(api.service.store.delete(one.id))
    put_job(api, one.model_copy(update={"status": Status.COMPLETED}))
    assert api.run(api.service.files.prune(later)) == 1
    with pytest.raises(NotFound):
        api.service.storage.read(file.key)
    assert api.download("a.csv").content == b"x\n1\n"


def test_a_file_that_a_live_job_reads_cannot_be_deleted(api: Api) -> None:
    uid = api.post("a.csv", TABLE).json()["file_uid"]
    one = job()
    api.run(api.service.files.readers("org_a", [uid], one.id))
    refused = api.http.delete("/v0.5/files/delete/a.csv")  # the mark comes first, the job's record right after it
    assert code(refused) == (409, "conflict")
    assert one.id in refused.text
    put_job(api, one)
    assert code(api.http.delete("/v0.5/files/delete/a.csv")) == (409, "conflict")
    api.run(api.service.store.delete(one.id))
    put_job(api, one.model_copy(update={"status": Status.FAILED}))
    assert api.http.delete("/v0.5/files/delete/a.csv").json() == {"is_valid": True, "file_id": "a.csv", "file_uid": uid}
    assert code(api.http.delete("/v0.5/files/delete/a.csv")) == (404, "not_found")
    assert code(api.download("a.csv")) == (404, "not_found")
    assert list(api.service.storage.list("org_a/")) == []
    assert api.http.get("/v0.5/files/info").json()["num_files"] == 0
    with pytest.raises(NotFound):
        api.run(api.service.files.mark_reader("org_a", uid, new_id("job")))


def test_released_marks_no_longer_hold_a_file(api: Api) -> None:
    uid = api.post("a.csv", TABLE).json()["file_uid"]
    api.run(api.service.files.readers("org_a", [uid], "job_gone"))
    api.run(api.service.files.release("org_a", [uid], "job_gone"))
    assert api.http.delete(f"/v0.5/files/delete/{uid}").status_code == 200


def test_a_delete_that_died_half_way_is_finished_by_the_pruner(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.post("a.csv", TABLE)

    def died(*_: Any) -> None:
        raise KeyError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(type(api.service.storage), "delete", died)
        assert code(api.http.delete("/v0.5/files/delete/a.csv")) == (500, "internal_error")
    assert code(api.http.get("/v0.5/files/metadata/a.csv")) == (404, "not_found")
    assert api.run(api.service.files.prune(datetime.now(UTC))) == 1
    assert list(api.service.storage.list("org_a/")) == []


def test_deleting_a_name_that_is_being_uploaded_aborts_the_upload(api: Api) -> None:
    upload = api.initiate("a.csv", 5).json()
    assert api.http.delete("/v0.5/files/delete/a.csv").json()["file_uid"] == upload["file_uid"]
    assert code(api.upload(upload["upload_id"], "complete", {"parts": []})) == (404, "upload_not_found")


# --- lists ------------------------------------------------------------------------------------------------


def test_metadata_is_an_array_below_v05_and_pages_below_api(api: Api) -> None:
    names = [f"{n}.csv" for n in range(7)]
    for name in names:
        api.post(name, TABLE)
    api.post("z.jsonl", b"{}\n")

    def array(**query: Any) -> list[str]:
        return [f["file_id"] for f in api.http.get("/v0.5/files/metadata", params=query).json()]

    everything = array()
    assert sorted(everything) == [*names, "z.jsonl"]
    shards = [array(shard_index=n, max_items_per_shard=3) for n in range(4)]
    assert [len(s) for s in shards] == [3, 3, 2, 0]
    assert sum(shards, []) == everything
    assert array(file_type="application/x-ndjson") == array(file_type="jsonl") == ["z.jsonl"]
    assert len(array(file_type="text/csv", shard_index=1, max_items_per_shard=4)) == 3

    def page(**query: Any) -> tuple[list[str], dict[str, Any]]:
        body = api.http.get("/api/files/metadata", params=query).json()
        return [f["file_id"] for f in body["data"]], body

    first, body = page(limit=3)
    assert (body["has_more"], body["prev_cursor"]) == (True, None)
    second, body = page(limit=3, after=body["next_cursor"])
    third, last = page(limit=3, after=body["next_cursor"])
    assert first + second + third == everything[::-1]
    assert (last["has_more"], last["next_cursor"]) == (False, None)
    back, body = page(limit=3, before=body["prev_cursor"])
    assert (back, body["has_more"], body["prev_cursor"]) == (first, False, None)
    assert page()[0] == everything[::-1]
    assert page(file_type="csv", limit=2)[0] == [n for n in everything[::-1] if n.endswith("csv")][:2]
    assert code(api.http.get("/api/files/metadata", params={"after": "x"})) == (400, "bad_request")
    assert code(api.http.get("/api/files/metadata", params={"limit": 1001})) == (400, "bad_request")


def test_organisations_do_not_see_each_other(api: Api) -> None:
    uid = api.post("a.csv", TABLE).json()["file_uid"]
    other = {"headers": api.key("org_b")}
    for name in ("a.csv", uid):
        assert code(api.http.get(f"/v0.5/files/metadata/{name}", **other)) == (404, "not_found")
        assert code(api.http.get(f"/v0.5/files/download/{name}", **other)) == (404, "not_found")
        assert code(api.http.delete(f"/v0.5/files/delete/{name}", **other)) == (404, "not_found")
    assert api.http.get("/v0.5/files/metadata", **other).json() == []
    assert api.http.get("/v0.5/files/info", **other).json()["num_files"] == 0
    assert api.run(api.service.files.resolve("org_b", ["a.csv", uid])) == {}
    assert api.http.post("/v0.5/files", files={"file": ("a.csv", b"x\n")}, **other).status_code == 200
    assert api.download("a.csv").content == TABLE
    reader = {"headers": api.key("org_a", "reader")}
    assert api.http.get("/v0.5/files/download/a.csv", **reader).content == TABLE
    assert code(api.http.delete("/v0.5/files/delete/a.csv", **reader)) == (403, "forbidden")


# --- downloads --------------------------------------------------------------------------------------------


def test_downloads_know_ranges_heads_and_etags(api: Api) -> None:
    data = os.urandom(9 << 20)
    api.post("a.csv", data)
    whole = api.download("a.csv")
    assert whole.content == data
    assert whole.headers["content-type"] == "application/octet-stream"
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.headers["content-disposition"] == "attachment; filename=\"a.csv\"; filename*=UTF-8''a.csv"
    etag = whole.headers["etag"]
    for header, start, end in [
        ("bytes=0-0", 0, 1),
        ("bytes=4194300-4194310", 4194300, 4194311),
        ("bytes=-5", len(data) - 5, len(data)),
        ("bytes=100-", 100, len(data)),
    ]:
        part = api.download("a.csv", Range=header)
        assert (part.status_code, part.content) == (206, data[start:end])
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{len(data)}"
    outside = api.download("a.csv", Range=f"bytes={len(data)}-")
    assert code(outside) == (416, "range_not_satisfiable")
    assert outside.headers["content-range"] == f"bytes */{len(data)}"
    head = api.http.head("/v0.5/files/download/a.csv")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(data)), b"")
    assert api.download("a.csv", **{"If-None-Match": etag}).status_code == 304
    assert api.download("a.csv", **{"If-Range": '"other"', "Range": "bytes=0-0"}).status_code == 200
    assert api.download("a.csv", **{"If-Range": etag, "Range": "bytes=0-0"}).status_code == 206


def test_an_empty_file_is_a_file(api: Api) -> None:
    api.post("a.txt", b"", "text/plain")
    assert (api.download("a.txt").status_code, api.download("a.txt").content) == (200, b"")
    assert code(api.download("a.txt", Range="bytes=0-")) == (416, "range_not_satisfiable")


def test_a_link_opens_one_object_without_a_key_until_it_expires(api: Api) -> None:
    key = "org_a/jobs/job_x/outputs/1/r.csv"
    api.service.storage.write(key, TABLE)
    url = api.service.links.download(key, 'a "b" 漢字.csv', api.url)
    answer = api.plain.get(url)
    assert (answer.status_code, answer.content) == (200, TABLE)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "%E6%BC%A2" in answer.headers["content-disposition"]
    part = api.plain.get(url, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, TABLE[2:5])
    if not api.s3:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert api.plain.head(url).headers["content-length"] == str(len(TABLE))
        assert api.plain.get(url, headers={"Authorization": "Bearer sk_wrong"}).status_code == 200
        assert api.plain.put(url, content=b"x").status_code == 405
    api.service.storage.write("org_a/jobs/job_x/outputs/1/s.csv", b"secret")
    assert api.plain.get(url.replace("r.csv", "s.csv")).status_code == 403
    short = api.service.links.download(key, "r.csv", api.url, seconds=1)
    assert until(lambda: api.plain.get(short).status_code == 403)


# --- recovery ---------------------------------------------------------------------------------------------


def test_records_are_restored_from_the_storage(api: Api) -> None:
    api.post("gone.csv", TABLE)
    api.http.delete("/v0.5/files/delete/gone.csv")
    old = api.post("a.csv", b"old\n").json()["file_uid"]
    one = job()
    api.run(api.service.files.readers("org_a", [old], one.id))
    api.post("a.csv", TABLE)
    upload = api.initiate("b.bin", 3, "x/y").json()
    token = api.put(upload["parts"][0], b"abc")
    api.upload(upload["upload_id"], "complete", {"parts": [{"part_number": 1, "part_token": token}]})
    api.initiate("never.bin", 3)
    before = api.http.get("/v0.5/files/metadata").json()[:2], api.http.get("/v0.5/files/info").json()
    keys = api.run(api.service.store.connection.command("KEYS", "jos:*files*"))
    api.run(api.service.store.connection.command("DEL", *keys))
    assert api.http.get("/v0.5/files/metadata").json() == []
    assert api.run(api.service.files.recover()) == 3
    assert api.run(api.service.files.recover()) == 0
    after = api.http.get("/v0.5/files/metadata").json(), api.http.get("/v0.5/files/info").json()
    assert after[0] == before[0]
    assert {**after[1], "last_updated": 0} == {**before[1], "last_updated": 0}
    assert api.download("a.csv").content == TABLE
    assert api.run(api.service.files.prune(datetime.now(UTC))) >= 1  # the replaced one, which no live job reads
    assert old not in " ".join(s.key for s in api.service.storage.list("org_a/"))


# --- memory -----------------------------------------------------------------------------------------------


SERVER = """
import uvicorn
from jos.api.app import create_app
from jos.settings import Settings
settings = Settings()
uvicorn.run(create_app(settings), host="127.0.0.1", port=settings.api_port, log_level="error")
"""


def test_a_server_that_takes_and_gives_70_mb_stays_small(api: Api, tmp_path: Path) -> None:
    """Another process on the same home, so that what is measured is the server alone."""
    (port,) = free_ports(1)
    environment = {
        **os.environ,
        "JOS_HOME": str(api.settings.home_dir),
        "JOS_API_PORT": str(port),
        "JOS_STORAGE": api.settings.storage_url,
    }
    options: Any = {"preexec_fn": _die_with_parent} if sys.platform == "linux" else {}
    with open(tmp_path / "server.log", "wb") as log:
        server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, stdout=log, stderr=log, **options)

    def peak() -> int:
        text = Path(f"/proc/{server.pid}/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0]) >> 10  # MiB

    def answers() -> bool:
        assert server.poll() is None, (tmp_path / "server.log").read_text()
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/healthz").is_success
        except httpx2.TransportError:
            return False

    try:
        until(answers)
        client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=dict(api.http.headers), timeout=120)
        api = Api(str(client.base_url), api.service, api.settings, api.loop, client, api.plain)
        small, data = os.urandom(8 << 20), os.urandom(70 << 20)
        give_and_take(api, "warm", small)
        warm = peak()
        give_and_take(api, "big", data)
        assert peak() - warm < 60, f"{peak() - warm} MiB more"
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def give_and_take(api: Api, name: str, data: bytes) -> None:
    assert api.post(f"{name}.csv", data).status_code == 200
    text = base64.b64encode(data)
    assert api.http.post("/v0.5/files/base64", files={"file": (f"{name}.png", text)}).status_code == 200
    upload = api.initiate(f"{name}.bin", len(data)).json()
    assert upload["part_size"] >= PART
    parts = [{"part_number": p["part_number"], "part_token": api.put(p, data)} for p in upload["parts"]]
    body = {"parts": parts, "integrity_checksum": crc(data)}
    assert api.upload(upload["upload_id"], "complete", body).status_code == 200
    for extension in ("csv", "png", "bin"):
        assert api.download(f"{name}.{extension}").content == data
