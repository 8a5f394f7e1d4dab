"""Uploads in parts over real HTTP, in a folder and in a real S3: one contract for both."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from files_lab import PART, Api, code, crc
from jobs_lab import until

from jos.core.files import Part
from jos.files.parts import PartUploads
from jos.storage.local import LocalStorage
from jos.storage.uploads_local import LocalUploads

DATA = os.urandom(1 << 16) * (2 * PART // (1 << 16)) + b"the rest"  # three parts


def tokens(api: Api, upload: dict[str, Any], data: bytes = DATA) -> list[dict[str, Any]]:
    return [{"part_number": p["part_number"], "part_token": api.put(p, data)} for p in upload["parts"]]


def started(api: Api, name: str = "big.bin", data: bytes = DATA, **more: Any) -> dict[str, Any]:
    answer = api.initiate(name, len(data), "application/octet-stream", **more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


# --- the way it is meant ----------------------------------------------------------------------------------


def test_a_file_in_parts_arrives_whole_whatever_their_order(api: Api) -> None:
    upload = started(api)
    assert (upload["num_parts"], upload["part_size"], upload["total_bytes"]) == (3, PART, len(DATA))
    assert (upload["strategy"], upload["is_resume"], upload["integrity_algorithm"]) == ("multipart", False, "crc32c")
    assert [(p["part_number"], p["offset"], p["length"]) for p in upload["parts"]] == [
        (1, 0, PART),
        (2, PART, PART),
        (3, 2 * PART, 8),
    ]
    assert upload["expires_at"].endswith("Z")
    assert api.metadata("big.bin")["file_status"] == "Uploading"
    assert code(api.download("big.bin")) == (400, "bad_request")
    with ThreadPoolExecutor(3) as pool:
        sent = list(pool.map(lambda part: api.put(part, DATA), reversed(upload["parts"])))
    parts = [{"part_number": 3 - n, "part_token": token} for n, token in enumerate(sent)]
    parts[0]["part_token"] = parts[0]["part_token"].strip('"')
    done = api.upload(upload["upload_id"], "complete", {"parts": parts, "integrity_checksum": crc(DATA)})
    assert done.status_code == 200, done.text
    assert done.json() == {
        "file_uid": upload["file_uid"],
        "file_name": "big.bin",
        "num_bytes": len(DATA),
        "file_status": "Registered",
        "file_attributes": {},
    }
    assert api.download("big.bin").content == DATA
    assert api.metadata("big.bin")["is_valid"] is True
    assert code(api.upload(upload["upload_id"], "complete", {"parts": parts})) == (409, "conflict")
    assert code(api.upload(upload["upload_id"], "abort")) == (409, "conflict")
    assert api.upload(upload["upload_id"], "parts/checkpoint", {"parts": parts}).json() == {"num_checkpointed": 3}


def test_parts_go_through_the_api_where_a_client_may_ask_nobody_else(api: Api) -> None:
    upload = started(api)
    path = f"/v0.5/files/uploads/{upload['upload_id']}/parts"
    pieces = {p["part_number"]: DATA[p["offset"] : p["offset"] + p["length"]] for p in upload["parts"]}
    for wrong in (pieces[3][:-1], pieces[3] + b"x", b"x" * (2 << 20)):
        refused = api.http.put(f"{path}/3", content=iter([wrong]))  # without a length announced
        assert code(refused) == (400, "bad_request")
        assert "Part 3 has 8 bytes" in refused.text
    sent = {n: api.http.put(f"{path}/{n}", content=piece) for n, piece in pieces.items()}
    assert [answer.status_code for answer in sent.values()] == [200] * 3
    parts = [{"part_number": n, "part_token": answer.headers["etag"]} for n, answer in sent.items()]
    assert api.plain.put(f"{api.url}{path}/1", content=pieces[1]).status_code == 401
    assert code(api.plain.put(f"{api.url}{path}/1", content=b"", headers=api.key("org_b")))[0] == 404
    assert code(api.http.put(f"{path}/4", content=b""))[0] == 400
    done = api.upload(upload["upload_id"], "complete", {"parts": parts, "integrity_checksum": crc(DATA)})
    assert done.status_code == 200, done.text
    assert api.download("big.bin").content == DATA
    assert code(api.http.put(f"{path}/1", content=pieces[1])) == (409, "conflict")


def test_a_small_file_is_one_part_and_its_table_is_looked_at(api: Api) -> None:
    data = b"t,x\n1,2\n3,4\n"
    upload = api.initiate("ünï 漢字.csv", len(data)).json()
    assert (upload["strategy"], upload["num_parts"], len(upload["parts"])) == ("simple", 1, 1)
    (part,) = upload["parts"]
    token = api.plain.put(part["url"], content=data, headers={"Content-Type": "text/csv"}).headers["etag"]
    done = api.upload(upload["upload_id"], "complete", {"parts": [{"part_number": 1, "part_token": token}]})
    assert done.json()["file_attributes"] == {"num_rows": 2, "num_columns": 2, "column_headers": ["t", "x"]}
    assert api.download("ünï 漢字.csv").content == data


def test_when_all_parts_are_checkpointed_complete_needs_to_name_none(api: Api) -> None:
    upload = started(api)
    parts = tokens(api, upload)
    name = upload["upload_id"]
    assert api.upload(name, "parts/checkpoint", {"parts": parts[:2]}).json() == {"num_checkpointed": 2}
    assert api.upload(name, "parts/checkpoint", {"parts": parts[1:]}).json() == {"num_checkpointed": 3}
    assert api.upload(name, "parts/checkpoint", {"parts": parts}).json() == {"num_checkpointed": 3}
    assert api.upload(name, "complete", {"parts": []}).status_code == 200
    assert api.download("big.bin").content == DATA


def test_a_client_that_crashed_goes_on_where_it_checkpointed(api: Api) -> None:
    first = started(api)
    api.put(first["parts"][1], DATA)  # sent, but the client died before it could checkpoint
    done = {"part_number": 1, "part_token": api.put(first["parts"][0], DATA)}
    api.upload(first["upload_id"], "parts/checkpoint", {"parts": [done]})
    again = started(api, resume_if_started=True)
    assert (again["upload_id"], again["file_uid"], again["is_resume"]) == (
        first["upload_id"],
        first["file_uid"],
        True,
    )
    assert (again["num_parts"], again["total_bytes"]) == (3, len(DATA))
    assert [(p["part_number"], p["offset"]) for p in again["parts"]] == [(2, PART), (3, 2 * PART)]
    body = {"parts": tokens(api, again), "integrity_checksum": crc(DATA)}
    assert api.upload(again["upload_id"], "complete", body).status_code == 200
    assert api.download("big.bin").content == DATA


def test_a_resume_must_be_of_the_same_size_and_type(api: Api) -> None:
    started(api)
    other = [api.initiate("big.bin", len(DATA) + 1, "application/octet-stream", resume_if_started=True)]
    other.append(api.initiate("big.bin", len(DATA), "text/csv", resume_if_started=True))
    assert [code(answer) for answer in other] == [(409, "conflict")] * 2


def test_without_the_wish_to_resume_a_new_upload_takes_the_place(api: Api) -> None:
    old = started(api)
    new = started(api)
    assert old["upload_id"] != new["upload_id"]
    assert code(api.upload(old["upload_id"], "complete", {"parts": []})) == (404, "upload_not_found")
    assert api.plain.put(old["parts"][0]["url"], content=DATA[:PART]).status_code in (403, 404)
    assert api.upload(new["upload_id"], "complete", {"parts": tokens(api, new)}).status_code == 200


def test_a_registered_name_is_taken(api: Api) -> None:
    assert api.post("a.csv", b"x\n1\n").status_code == 200
    assert code(api.initiate("a.csv", 5)) == (409, "conflict")
    assert code(api.initiate("a.csv", 4, resume_if_started=True)) == (409, "conflict")


# --- what is refused --------------------------------------------------------------------------------------


def test_what_is_missing_or_wrong_is_named_and_can_be_mended(api: Api) -> None:
    upload = started(api)
    name = upload["upload_id"]
    parts = tokens(api, upload)
    missing = api.upload(name, "complete", {"parts": parts[:1] + parts[2:]})
    assert code(missing) == (400, "bad_request")
    assert "missing: part 2" in missing.text
    wrong = api.upload(name, "complete", {"parts": [*parts[:2], {"part_number": 3, "part_token": '"nope"'}]})
    assert code(wrong) == (400, "bad_request")
    assert "part 3" in wrong.text
    for call, body in [
        ("complete", {"parts": [{"part_number": 4, "part_token": "x"}]}),
        ("parts/checkpoint", {"parts": [{"part_number": 0, "part_token": "x"}]}),
        ("parts/urls", {"part_numbers": [1, 99]}),
    ]:
        answer = api.upload(name, call, body)
        assert code(answer) == (400, "bad_request")
        assert "no part" in answer.text
    assert code(api.upload(name, "complete", {"parts": parts, "integrity_checksum": "xyz"})) == (400, "bad_request")
    assert api.upload(name, "complete", {"parts": parts}).status_code == 200


def test_more_or_fewer_bytes_are_refused_and_the_part_does_not_count(api: Api) -> None:
    upload = started(api)
    first = upload["parts"][0]
    for body in (DATA[: PART - 1], DATA[: PART + 1], b""):
        refused = api.plain.put(first["url"], content=body)
        assert refused.status_code == (403 if api.s3 else 400), refused.text  # S3 says so by the signature
    rest = [{"part_number": p["part_number"], "part_token": api.put(p, DATA)} for p in upload["parts"][1:]]
    missing = api.upload(upload["upload_id"], "complete", {"parts": rest})
    assert "missing: part 1" in missing.text
    rest.append({"part_number": 1, "part_token": api.put(first, DATA)})
    assert api.upload(upload["upload_id"], "complete", {"parts": rest}).status_code == 200
    assert api.download("big.bin").content == DATA


@pytest.mark.parametrize("api", ["local"], indirect=True)
@pytest.mark.parametrize("sent", [PART - 1, PART + 1])
def test_without_a_length_announced_the_bytes_are_counted(api: Api, sent: int) -> None:
    first = started(api)["parts"][0]
    chunks = (DATA[at : min(at + 65536, sent)] for at in range(0, sent, 65536))
    refused = api.plain.put(first["url"], content=chunks)
    assert code(refused) == (400, "bad_request")


def test_a_wrong_checksum_makes_the_file_corrupt_until_it_is_sent_again(api: Api) -> None:
    upload = started(api)
    body = {"parts": tokens(api, upload), "integrity_checksum": crc(DATA + b"x")}
    assert code(api.upload(upload["upload_id"], "complete", body)) == (400, "checksum_mismatch")
    record = api.metadata("big.bin")
    assert (record["file_status"], record["is_valid"]) == ("Corrupt", False)
    assert code(api.download("big.bin")) == (400, "bad_request")
    body["integrity_checksum"] = crc(DATA)
    assert code(api.upload(upload["upload_id"], "complete", body)) == (409, "conflict")
    again = started(api, resume_if_started=True)
    assert again["is_resume"] is False
    body["parts"] = tokens(api, again)
    assert api.upload(again["upload_id"], "complete", body).status_code == 200
    assert api.download("big.bin").content == DATA
    assert api.http.get("/v0.5/files/info").json()["num_bytes"] == len(DATA)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
@pytest.mark.parametrize("read_up_to", [256 << 20, 4], ids=["small", "large"])
def test_a_wrong_checksum_of_a_table_is_found_before_its_rows_are_counted(
    api: Api, monkeypatch: pytest.MonkeyPatch, name: str, read_up_to: int
) -> None:
    monkeypatch.setattr("jos.files.parts.ATTRIBUTES_READ", read_up_to)
    data = b"t,x\n1,2\n"
    upload = api.initiate(name, len(data)).json()
    body = {"parts": tokens(api, upload, data), "integrity_checksum": crc(data + b"x")}
    assert code(api.upload(upload["upload_id"], "complete", body)) == (400, "checksum_mismatch")
    assert api.metadata(name)["file_status"] == "Corrupt"
    assert code(api.download(name)) == (400, "bad_request")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"filename": "a/b.csv", "num_bytes": 5}, 400, "bad_request"),
        ({"filename": "..", "num_bytes": 5}, 400, "bad_request"),
        ({"filename": "a.csv", "num_bytes": 0}, 400, "bad_request"),
        ({"filename": "a.csv", "num_bytes": -1}, 400, "bad_request"),
        ({"filename": "a.csv", "num_bytes": 250_000_000_001}, 413, "invalid_file_size"),
        ({"filename": "a.csv", "num_bytes": 5, "file_type": "é"}, 400, "invalid_file_type"),
        ({"num_bytes": 5}, 422, "validation_error"),
        ({"filename": None, "num_bytes": 5}, 422, "validation_error"),
        ({"filename": "a.csv", "num_bytes": True}, 422, "validation_error"),
        ({"filename": "a.csv", "num_bytes": "5"}, 422, "validation_error"),
        ({"filename": "a.csv", "num_bytes": 5.0}, 422, "validation_error"),
    ],
)
@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_impossible_uploads_are_refused(api: Api, body: dict[str, Any], status: int, said: str) -> None:
    assert code(api.http.post("/v0.5/files/uploads/initiate", json=body)) == (status, said)


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_null_is_as_good_as_left_out_and_a_number_is_no_text(api: Api) -> None:
    body = {"filename": "a.csv", "num_bytes": 5, "file_type": None, "resume_if_started": None}
    upload = api.http.post("/v0.5/files/uploads/initiate", json=body).json()
    assert upload["is_resume"] is False
    wrong = [
        api.upload(upload["upload_id"], "parts/urls", {"part_numbers": ["1"]}),
        api.upload(upload["upload_id"], "parts/urls", {"part_numbers": [1.0]}),
        api.upload(upload["upload_id"], "parts/checkpoint", {"parts": [{"part_number": "1", "part_token": "x"}]}),
        api.upload(upload["upload_id"], "complete", {"parts": [{"part_number": True, "part_token": "x"}]}),
    ]
    assert [code(answer) for answer in wrong] == [(422, "validation_error")] * 4


def test_an_unknown_upload_is_told_by_its_own_code(api: Api) -> None:
    mine = started(api)["upload_id"]
    other = api.key("org_b")
    calls = [("complete", {"parts": []}), ("abort", {}), ("parts/urls", {"part_numbers": [1]})]
    calls.append(("parts/checkpoint", {"parts": []}))
    for call, body in calls:
        for name in ("upl_nothing", "upl_" + "0" * 26, "%00"):
            assert code(api.upload(name, call, body)) == (404, "upload_not_found")
        foreign = api.http.post(f"/v0.5/files/uploads/{mine}/{call}", json=body, headers=other)
        assert code(foreign) == (404, "upload_not_found")


def test_a_reader_may_not_upload_and_nobody_may_without_a_key(api: Api) -> None:
    body = {"filename": "a.csv", "num_bytes": 5}
    reader = api.http.post("/v0.5/files/uploads/initiate", json=body, headers=api.key("org_a", "reader"))
    assert code(reader) == (403, "forbidden")
    assert code(api.plain.post(f"{api.url}/v0.5/files/uploads/initiate", json=body)) == (401, "unauthorized")


# --- URLs -------------------------------------------------------------------------------------------------


def test_part_urls_are_renewed_in_the_asked_order(api: Api) -> None:
    upload = started(api)
    fresh = api.upload(upload["upload_id"], "parts/urls", {"part_numbers": [3, 1]}).json()["parts"]
    assert [(p["part_number"], p["offset"], p["length"]) for p in fresh] == [(3, 2 * PART, 8), (1, 0, PART)]
    api.put(fresh[0], DATA)
    lasts = datetime.fromisoformat(fresh[0]["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=58) < lasts <= timedelta(hours=1)


def test_no_more_urls_are_asked_for_at_once_than_an_upload_can_have_parts(api: Api) -> None:
    upload = api.initiate("greedy.csv", 9).json()
    path = f"/v0.5/files/uploads/{upload['upload_id']}/parts/urls"
    assert api.http.post(path, json={"part_numbers": [1] * 10_001}).status_code == 422


def test_an_expired_url_is_refused(api: Api) -> None:
    upload = started(api)
    record = api.run(api.service.files.uploads.get("org_a", upload["upload_id"]))
    part = Part(3, 2 * PART, 8)
    url = api.service.files.direct.url(record.key, record.handle, part, 1)
    if url is None:
        url = api.service.links.part(record.handle, part, api.url, int(datetime.now(UTC).timestamp()))
    assert until(lambda: api.plain.put(url, content=DATA[-8:]).status_code == 403)


def test_a_url_is_for_its_part_and_method_alone_and_needs_no_key(api: Api) -> None:
    first, second, _ = started(api)["parts"]
    swapped = first["url"].replace("/1?", "/2?").replace("partNumber=1", "partNumber=2")
    assert api.plain.put(swapped, content=DATA[:PART]).status_code == 403
    assert api.plain.put(second["url"][:-1], content=DATA[:PART]).status_code == 403
    assert api.plain.get(first["url"]).status_code in (403, 405)
    if not api.s3:  # S3 takes a header for another way to sign
        bad = api.plain.put(first["url"], content=DATA[:PART], headers={"Authorization": "Bearer sk_wrong"})
        assert bad.status_code == 200


# --- at the same time, and after crashes ------------------------------------------------------------------


def test_of_two_completes_at_once_exactly_one_wins(api: Api) -> None:
    for round_ in range(3):
        name = f"race{round_}.csv"
        data = b"a,b\n1,2\n"
        upload = started(api, name, data)
        body = {"parts": tokens(api, upload, data), "integrity_checksum": crc(data)}
        barrier = Barrier(4)

        def complete(upload: dict[str, Any] = upload, body: Any = body, barrier: Barrier = barrier) -> httpx2.Response:
            barrier.wait()
            return api.upload(upload["upload_id"], "complete", body)

        with ThreadPoolExecutor(4) as pool:
            answers = [f.result() for f in [pool.submit(complete) for _ in range(4)]]
        assert sorted(a.status_code for a in answers) == [200, 409, 409, 409], [a.text for a in answers]
        assert api.download(name).content == data
    assert api.http.get("/v0.5/files/info").json()["num_files"] == 3


def test_an_upload_that_ends_while_it_is_looked_at_is_over_and_no_failure(tmp_path: Path) -> None:
    uploads = LocalUploads(LocalStorage(tmp_path))
    handle = uploads.start("org_a/files/fil_x/data/a.csv", 3)
    folder = tmp_path / ".tmp" / "uploads" / handle
    with ThreadPoolExecutor(1) as pool, (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        looked = pool.submit(uploads.received, "org_a/files/fil_x/data/a.csv", handle)
        until(lambda: sum("lock" in os.readlink(f"/proc/self/fd/{n}") for n in fds()) == 2)
        folder.rename(folder.with_name("gone"))
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert looked.result() is None


def fds() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.readlink(f"/proc/self/fd/{name}")
            found.append(name)
    return found


def test_a_complete_that_died_before_its_record_is_healed_by_the_next(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = started(api)
    body = {"parts": tokens(api, upload), "integrity_checksum": crc(DATA)}

    async def died(*_: Any) -> Any:
        raise KeyError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(PartUploads, "_register", died)
        assert code(api.upload(upload["upload_id"], "complete", body)) == (500, "internal_error")
    again = started(api, resume_if_started=True)  # a client may also start over
    assert again["is_resume"] is True
    done = api.upload(upload["upload_id"], "complete", body)
    assert done.status_code == 200, done.text
    assert api.download("big.bin").content == DATA


def test_a_part_sent_again_counts_with_its_new_content(api: Api) -> None:
    upload = started(api)
    old = api.put(upload["parts"][2], DATA)
    parts = tokens(api, upload, DATA[:-8] + b"the last")
    assert parts[2]["part_token"] != old
    assert api.upload(upload["upload_id"], "complete", {"parts": parts}).status_code == 200
    assert api.download("big.bin").content == DATA[:-8] + b"the last"


def test_one_part_sent_twice_at_once_never_mixes(api: Api) -> None:
    upload = started(api)
    part = upload["parts"][0]
    bodies = [bytes([n]) * PART for n in (1, 2, 3)]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda body: api.plain.put(part["url"], content=body), bodies))
    assert {a.status_code for a in answers} <= {200, 409}
    there = {str(a.headers["etag"]): body for a, body in zip(answers, bodies, strict=True) if a.status_code == 200}
    assert there
    rest = tokens(api, {"parts": upload["parts"][1:]})
    results = [
        api.upload(upload["upload_id"], "complete", {"parts": [{"part_number": 1, "part_token": token}, *rest]})
        for token in there
    ]
    assert [r.status_code for r in results].count(200) == 1
    content = api.download("big.bin").content
    winner = next(body for r, body in zip(results, there.values(), strict=True) if r.status_code == 200)
    assert content == winner + DATA[PART:]


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_a_connection_that_hangs_or_breaks_holds_up_nobody(api: Api) -> None:
    upload = started(api)
    url = urlsplit(upload["parts"][0]["url"])
    with socket.create_connection((url.hostname, url.port)) as hanging:
        head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\nContent-Length: {PART}\r\n\r\n"
        hanging.sendall(head.encode() + bytes(1 << 20))
        storage = api.service.storage
        if isinstance(storage, LocalStorage):  # it is there first: whoever comes last has the part
            until(lambda: list(storage.root.glob(".tmp/uploads/*/1")))
        parts = tokens(api, upload)
        hanging.sendall(bytes(1 << 20))
    assert api.upload(upload["upload_id"], "complete", {"parts": parts}).status_code == 200
    assert api.download("big.bin").content == DATA


# --- the end ----------------------------------------------------------------------------------------------


def test_an_aborted_upload_leaves_nothing_and_frees_its_name(api: Api) -> None:
    upload = started(api)
    api.put(upload["parts"][0], DATA)
    url = f"/v0.5/files/uploads/{upload['upload_id']}/abort"
    assert api.http.post(url).json() == {}  # with no body at all
    assert api.upload(upload["upload_id"], "abort").json() == {}
    assert api.plain.put(upload["parts"][1]["url"], content=DATA[PART : 2 * PART]).status_code == 404
    assert code(api.http.get("/v0.5/files/metadata/big.bin")) == (404, "not_found")
    assert nothing_left(api)
    assert started(api, resume_if_started=True)["is_resume"] is False


def test_an_upload_without_a_sign_of_life_expires(api: Api) -> None:
    upload = started(api)
    api.put(upload["parts"][0], DATA)
    now = datetime.now(UTC)
    assert api.run(api.service.files.prune(now + timedelta(hours=23))) == 0
    assert api.run(api.service.files.prune(now + timedelta(hours=25))) == 1
    assert code(api.upload(upload["upload_id"], "parts/urls", {"part_numbers": [1]})) == (404, "upload_not_found")
    assert nothing_left(api)
    api.run(api.service.files.prune(now + timedelta(days=9)))
    assert api.run(api.service.store.connection.command("KEYS", "jos:*upload*")) == []


def test_a_checkpoint_is_a_sign_of_life(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = started(api)
    later = datetime.now(UTC) + timedelta(hours=20)
    api.run(api.service.files.uploads.checkpoint("org_a", upload["upload_id"], {1: "x"}, later))
    assert api.run(api.service.files.prune(later + timedelta(hours=5))) == 0
    assert api.upload(upload["upload_id"], "parts/urls", {"part_numbers": [1]}).status_code == 200


def test_what_the_store_forgot_is_tidied_up(api: Api) -> None:
    upload = started(api)
    api.put(upload["parts"][0], DATA)
    api.run(api.service.store.connection.command("FLUSHALL"))
    uploads = api.service.files.uploads
    api.run(uploads.tidy(datetime.now(UTC)))
    assert not nothing_left(api)
    api.run(uploads.tidy(datetime.now(UTC) + timedelta(days=9)))
    assert nothing_left(api)


def test_an_upload_is_told_when_a_posted_file_took_its_name(api: Api) -> None:
    upload = started(api, "a.csv", b"x\n1\n")
    parts = tokens(api, upload, b"x\n1\n")
    assert api.post("a.csv", b"y\n2\n").status_code == 200
    assert code(api.upload(upload["upload_id"], "complete", {"parts": parts})) == (409, "conflict")
    assert api.download("a.csv").content == b"y\n2\n"


def nothing_left(api: Api) -> bool:
    """In the storage, of unfinished uploads."""
    storage = api.service.storage
    if isinstance(storage, LocalStorage):
        return not list((storage.root / ".tmp" / "uploads").iterdir())
    from jos.storage.uploads_s3 import client

    found = client(None).list_multipart_uploads(Bucket=storage.bucket.name, Prefix=storage.at(""))
    return not found.get("Uploads")


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_only_so_many_uploads_of_one_organisation_are_under_way(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = api.service.files.uploads
    monkeypatch.setattr(uploads, "_most_open", 3)
    first, second, third = (started(api, f"{n}.bin", b"abc") for n in range(3))

    def full() -> bool:
        answer = api.initiate("more.bin", 3)
        if answer.status_code == 200:
            api.upload(answer.json()["upload_id"], "abort")
            return False
        assert code(answer) == (429, "too_many_requests")
        assert int(answer.headers["Retry-After"]) >= 1
        assert "abort" in answer.json()["errors"][0]["suggestion"]
        return True

    assert full()
    assert started(api, "0.bin", b"abc", resume_if_started=True)["is_resume"] is True
    first = started(api, "0.bin", b"abc")  # in the place of the other
    assert full()
    other = api.http.post(
        "/v0.5/files/uploads/initiate", json={"filename": "x.bin", "num_bytes": 3}, headers=api.key("org_b")
    )
    assert other.status_code == 200
    api.upload(first["upload_id"], "abort")
    assert not full()
    started(api, "3.bin", b"abc")
    assert full()
    done = {"parts": tokens(api, second, b"abc"), "integrity_checksum": crc(b"abc")}
    assert api.upload(second["upload_id"], "complete", done).status_code == 200
    assert not full()
    started(api, "4.bin", b"abc")
    assert full()
    wrong = {"parts": tokens(api, third, b"abc"), "integrity_checksum": crc(b"abcd")}
    assert api.upload(third["upload_id"], "complete", wrong).status_code == 400
    assert not full()
    started(api, "5.bin", b"abc")
    assert full()
    api.run(api.service.files.prune(datetime.now(UTC) + timedelta(days=2)))
    assert api.run(uploads._records.open_uploads("org_a")) == 0
    assert not full()


@pytest.mark.parametrize("api", ["local"], indirect=True)
def test_a_full_disk_is_told_before_anything_is_sent(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr("jos.storage.uploads_local.shutil.disk_usage", lambda _: usage)
    answer = api.initiate("huge.bin", 2 * 10**9)
    assert code(answer) == (503, "storage_unavailable")
    assert "Free some space" in answer.text
    assert str(api.service.storage.root) not in answer.text
