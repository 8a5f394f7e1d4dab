"""Files posted whole, replaced, deleted, and read by jobs: over real HTTP, on both storages."""

from __future__ import annotations

import asyncio
import base64
import http.client
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from files_lab import Api, code
from jobs_lab import until

from jos.core.commands import Admit, Cancel, Drained, Started
from jos.core.errors import Conflict, NotFound
from jos.core.files import File
from jos.core.ids import new_id
from jos.core.model import EventDraft, Job, Status
from jos.files.removal import Removal
from jos.storage.source import stat_input
from jos.store.readers import Readers

TABLE = b"t,a,b\n1,2,3\n4,5,6\n"
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
OPENING = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
CLOSING = b"\r\n--x--\r\n"


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
    quoted = f"/v0.5/files/download/{quote(name, safe='')}"
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
        api.http.post(url, data={"file": "a,b"}),
        api.http.post(url, content=OPENING.replace(b"a.csv", b"") + TABLE + CLOSING, headers=form),
        api.http.post(
            url, content=OPENING.replace(b'file"; ', b'more"; ').replace(b"a.csv", b"") + CLOSING, headers=form
        ),
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


@pytest.mark.parametrize("size", [0, 30, 5 << 20])
@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_a_file_under_another_name_counts_if_none_is_called_file(api: Api, size: int) -> None:
    data = os.urandom(size)
    answer = api.http.post("/v0.5/files", data={"note": "x"}, files={"myname": ("a.csv", data)})
    assert answer.json()["file_id"] == "a.csv"
    assert api.download("a.csv").content == data
    text = base64.b64encode(data)
    assert api.http.post("/v0.5/files/base64", files={"x": ("a.png", text)}).json()["file_id"] == "a.png"
    assert api.download("a.png").content == data


@pytest.mark.parametrize(
    "files",
    [
        {"one": ("a.csv", TABLE), "two": ("b.csv", TABLE)},
        {"one": ("a.csv", bytes(5 << 20)), "two": ("b.csv", TABLE)},
        {"one": ("a.csv", bytes(5 << 20)), "file": ("b.csv", TABLE)},
    ],
    ids=["small", "large", "large before the right one"],
)
@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_of_several_files_that_may_be_meant_none_is_taken(api: Api, files: dict[str, Any]) -> None:
    answer = api.http.post("/v0.5/files", files=files)
    assert code(answer) == (400, "bad_request")
    assert "several" in answer.text
    assert list(api.service.storage.list("org_a/")) == []


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
def test_a_client_that_sends_all_and_then_closes_reads_that_its_key_is_bad(api: Api) -> None:
    request = urllib.request.Request(
        f"{api.url}/v0.5/files", bytes(70_000_000), {**FORM, "Authorization": "Bearer sk_bad"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:  # urllib asks for the connection to be closed
        urllib.request.urlopen(request, timeout=60)
    with refused.value as answer:
        assert answer.code == 401
        assert b'"unauthorized"' in answer.read()


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_a_client_that_sends_all_of_500_mib_reads_the_refusal(api: Api) -> None:
    def body() -> Iterator[bytes]:
        yield OPENING
        for _ in range(500):
            yield bytes(1 << 20)
        yield CLOSING

    headers = {**FORM, "Content-Length": str((500 << 20) + len(OPENING) + len(CLOSING))}
    assert code(api.http.post("/v0.5/files", content=body(), headers=headers)) == (413, "invalid_file_size")


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_a_client_that_goes_away_leaves_nothing(api: Api) -> None:
    connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/v0.5/files")
    for name, value in {
        **FORM,
        "Authorization": api.http.headers["authorization"],
        "Content-Length": "9000000",
    }.items():
        connection.putheader(name, value)
    connection.endheaders(OPENING + bytes(3 << 20))
    tmp = api.service.storage.root / ".tmp"
    assert until(lambda: [f for f in tmp.iterdir() if f.is_file() and f.stat().st_size])
    connection.close()
    assert until(lambda: not [f for f in tmp.iterdir() if f.is_file()])
    assert list(api.service.storage.list("org_a/")) == []


def test_the_limit_holds_for_what_announces_no_length(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jos.core.files.MAX_POST_BYTES", 3_000_000)

    def body(size: int) -> Iterator[bytes]:
        yield OPENING
        yield bytes(size)
        yield CLOSING

    headers = FORM
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


def cancelled_job(api: Api, uid: str) -> Job:
    """It read the file, and its driver has not left yet."""
    one = job()
    api.run(api.service.files.readers("org_a", [uid], one.id))
    put_job(api, one)
    for command in (Admit(one.id), Started(one.id), Cancel()):
        api.run(api.service.store.transact(one.id, command, datetime.now(UTC)))
    return one


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_a_delete_right_after_a_cancel_waits_for_the_driver_to_leave(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    one = cancelled_job(api, api.post("a.csv", TABLE).json()["file_uid"])
    looked, look = threading.Event(), Removal.readers

    async def seen(self: Removal, file: File, now: datetime) -> Readers:
        found = await look(self, file, now)
        looked.set()
        return found

    monkeypatch.setattr(Removal, "readers", seen)
    with ThreadPoolExecutor(1) as pool:
        deleted = pool.submit(api.http.delete, "/v0.5/files/delete/a.csv")
        assert looked.wait(30)
        api.run(api.service.store.transact(one.id, Drained(one.id), datetime.now(UTC)))
        assert deleted.result(30).status_code == 200
    assert list(api.service.storage.list("org_a/files/")) == []


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_a_driver_that_stays_keeps_the_file_and_nobody_is_told_to_cancel_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jos.store.readers.LEAVING_TAKES", 0)
    one = cancelled_job(api, api.post("a.csv", TABLE).json()["file_uid"])
    refused = api.http.delete("/v0.5/files/delete/a.csv")
    assert code(refused) == (409, "conflict")
    assert one.id in refused.text
    assert refused.json()["errors"][0]["suggestion"] == "Try again soon."
    assert api.download("a.csv").content == TABLE


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


# --- races ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_a_job_and_a_delete_at_the_same_moment_never_both_have_the_file(api: Api) -> None:
    files = api.service.files

    async def race(uid: str) -> tuple[Any, Any]:
        marked, deleted = await asyncio.gather(
            files.mark_reader("org_a", uid, new_id("job")), files.delete("org_a", uid), return_exceptions=True
        )
        return marked, deleted

    for _ in range(20):
        uid = api.post("a.csv", TABLE).json()["file_uid"]
        marked, deleted = api.run(race(uid))
        if marked is None:
            assert isinstance(deleted, Conflict), deleted
        else:
            assert isinstance(marked, NotFound), marked
            assert deleted.uid == uid


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_of_many_posts_of_one_name_at_once_one_is_left(api: Api) -> None:
    tables = [b"x\n" + b"1\n" * n for n in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda table: api.post("a.csv", table), tables))
    assert [a.status_code for a in answers] == [200] * 8, [a.text for a in answers]
    api.run(api.service.files.prune(datetime.now(UTC)))
    left = api.download("a.csv").content
    assert left in tables
    info = api.http.get("/v0.5/files/info").json()
    assert (info["num_files"], info["num_bytes"]) == (1, len(left))
    assert [f["file_id"] for f in api.http.get("/v0.5/files/metadata").json()] == ["a.csv"]
    assert len(list(api.service.storage.list("org_a/"))) == 2
