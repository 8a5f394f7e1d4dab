"""Files listed, downloaded, linked to and recovered, and the memory that all of it takes: over real HTTP, on both
storages."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from files_lab import PART, Api, code, crc
from jobs_lab import until
from services_lab import _die_with_parent, free_ports

from jos.core.ids import new_id

TABLE = b"t,a,b\n1,2,3\n4,5,6\n"


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
    assert [name for shard in shards for name in shard] == everything
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
    blank = {"shard_index": "", "max_items_per_shard": "", "file_type": "", "limit": "", "after": "", "before": ""}
    assert page(**blank)[0] == everything[::-1]
    assert array(**blank) == everything
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
    for known in (etag, f"W/{etag}", "*", f'"other", W/{etag}'):
        assert api.download("a.csv", **{"If-None-Match": known}).status_code == 304
    assert api.download("a.csv", **{"If-None-Match": '"other"'}).status_code == 200
    assert api.download("a.csv", **{"If-Range": '"other"', "Range": "bytes=0-0"}).status_code == 200
    assert api.download("a.csv", **{"If-Range": etag, "Range": "bytes=0-0"}).status_code == 206


def test_an_empty_file_is_a_file(api: Api) -> None:
    api.post("a.txt", b"", "text/plain")
    assert (api.download("a.txt").status_code, api.download("a.txt").content) == (200, b"")
    assert code(api.download("a.txt", Range="bytes=0-")) == (416, "range_not_satisfiable")


@pytest.mark.parametrize("through_api", [False, True])
def test_a_link_opens_one_object_without_a_key_until_it_expires(api: Api, through_api: bool) -> None:
    links = api.service.links
    make = links.through_api if through_api else links.download
    key = "org_a/jobs/job_x/outputs/1/r.csv"
    api.service.storage.write(key, TABLE)
    url = make(key, 'a "b" 漢字.csv', api.url)
    answer = api.plain.get(url)
    assert (answer.status_code, answer.content) == (200, TABLE)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "%E6%BC%A2" in answer.headers["content-disposition"]
    part = api.plain.get(url, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, TABLE[2:5])
    assert url.startswith(api.url) == (through_api or not api.s3)
    if through_api or not api.s3:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert api.plain.head(url).headers["content-length"] == str(len(TABLE))
        assert api.plain.get(url, headers={"Authorization": "Bearer sk_wrong"}).status_code == 200
        assert api.plain.put(url, content=b"x").status_code == 405
    api.service.storage.write("org_a/jobs/job_x/outputs/1/s.csv", b"secret")
    assert api.plain.get(url.replace("r.csv", "s.csv")).status_code == 403
    short = make(key, "r.csv", api.url, seconds=1)
    assert until(lambda: api.plain.get(short).status_code == 403)


@pytest.mark.parametrize("base", ["/v0.5", "/api", "/api/v0.5"])
@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_signed_urls_are_served_below_the_base_that_was_asked(api: Api, base: str) -> None:
    upload = api.http.post(f"{base}/files/uploads/initiate", json={"filename": "a.csv", "num_bytes": len(TABLE)}).json()
    (part,) = upload["parts"]
    assert part["url"].startswith(f"{api.url}{'/api' if base.startswith('/api') else ''}/v0.5/signed/")
    below = "?".join((f"{api.url}{base}{part['url'].split('/v0.5')[1].partition('?')[0]}", part["url"].split("?")[1]))
    for url in (part["url"], below):
        token = api.put({**part, "url": url}, TABLE)
    done = {"parts": [{"part_number": 1, "part_token": token}]}
    assert api.http.post(f"{base}/files/uploads/{upload['upload_id']}/complete", json=done).status_code == 200
    key = f"org_a/files/{upload['file_uid']}/data/a.csv"
    assert api.plain.get(api.service.links.download(key, "a.csv", f"{api.url}/api")).content == TABLE


@pytest.mark.parametrize("path", ["/", "/api", "/api/", "/api/v0.5", "/v0.5/"])
@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_a_public_url_with_a_path_gives_links_that_work(api: Api, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(api.settings, "public_url", api.url + path)
    (part,) = api.initiate("a.csv", len(TABLE)).json()["parts"]
    assert part["url"].startswith(api.url + path.rstrip("/"))
    api.put(part, TABLE)


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_a_range_of_thousands_of_digits_is_past_the_end(api: Api) -> None:
    uid = api.post("a.csv", TABLE).json()["file_uid"]
    link = api.service.links.download(f"org_a/files/{uid}/data/a.csv", "a.csv", api.url)
    for client, url in ((api.http, "/v0.5/files/download/a.csv"), (api.plain, link)):
        answer = client.get(url, headers={"Range": f"bytes={'9' * 5000}-"})
        assert code(answer) == (416, "range_not_satisfiable")
        answer = client.get(url, headers={"Range": f"bytes=2-{'9' * 5000}"})
        assert (answer.status_code, answer.content) == (206, TABLE[2:])


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_a_live_file_is_found_by_its_uid_as_by_its_name(api: Api) -> None:
    uid = api.post("a.csv", TABLE).json()["file_uid"]
    assert api.metadata(uid) == api.metadata("a.csv")
    assert api.download(uid).content == TABLE
    assert api.http.head(f"/v0.5/files/download/{uid}").headers["content-length"] == str(len(TABLE))


# --- recovery ---------------------------------------------------------------------------------------------


def test_records_are_restored_from_the_storage(api: Api) -> None:
    api.post("gone.csv", TABLE)
    api.http.delete("/v0.5/files/delete/gone.csv")
    old = api.post("a.csv", b"old\n").json()["file_uid"]
    api.run(api.service.files.readers("org_a", [old], new_id("job")))
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
    assert api.run(api.service.files.prune(datetime.now(UTC))) == 0  # whoever reads it may not be marked yet
    assert api.run(api.service.files.prune(datetime.now(UTC) + timedelta(hours=2))) >= 1  # no live job reads it
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

    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=dict(api.http.headers), timeout=120)
    try:
        until(answers)
        api = replace(api, url=str(client.base_url), http=client)
        small, data = os.urandom(8 << 20), os.urandom(70 << 20)
        give_and_take(api, "warm", small)
        warm = peak()
        give_and_take(api, "big", data)
        assert peak() - warm < 60, f"{peak() - warm} MiB more"
    finally:
        server.kill()
        server.wait()
        client.close()


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
