"""Names, types, parts, checksums and ranges of files: tables of what is taken and what is not."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jos.core import files as rules
from jos.core.errors import BadRequest
from jos.core.files import (
    MIB,
    InvalidFileSize,
    InvalidFileType,
    RangeInvalid,
    Received,
    Upload,
    bare,
    choose_parts,
    crc32c_combine,
    resolve_range,
    whole_crc32c,
)

NOW = datetime(2026, 4, 14, tzinfo=UTC)


def upload(num_bytes: int = 25, part_size: int = 10) -> Upload:
    return Upload(
        id="upl_x",
        org_id="org_a",
        file_uid="fil_x",
        name="a.csv",
        declared_type="text/csv",
        num_bytes=num_bytes,
        part_size=part_size,
        handle="h",
        created_at=NOW,
        expires_at=NOW,
    )


@pytest.mark.parametrize("name", ["a.csv", "ünï cödé 漢字 🎉.csv", "a b", "100%.csv", ".hidden", "x" * 255, "é" * 127])
def test_ordinary_names_are_taken(name: str) -> None:
    assert rules.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "a..b",
        "a\0b",
        "a\nb",
        "\x7f",
        "\x85",
        "x" * 256,
        "é" * 128,
        "\udc80",
    ],
)
def test_names_that_lead_elsewhere_or_fit_nowhere_are_refused(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        rules.check_name(name)
    assert caught.value.message.encode()


@pytest.mark.parametrize(
    ("name", "declared", "found"),
    [
        ("a.jsonl", "text/csv", "application/x-ndjson"),
        ("a.ndjson", None, "application/x-ndjson"),
        ("A.CSV", "application/octet-stream", "text/csv"),
        ("a.json", "text/plain", "application/json"),
        ("a.jpeg", None, "image/jpeg"),
        ("a.mp4", "", "video/mp4"),
        ("a", "text/csv; charset=utf-8", "text/csv"),
        ("a.log", "text/plain", "text/plain"),
        ("a.csv.txt", "text/csv", "text/plain"),
    ],
)
def test_the_extension_decides_before_the_declared_type(name: str, declared: str | None, found: str) -> None:
    assert rules.check_type(name, declared) == found


@pytest.mark.parametrize(
    ("name", "declared"),
    [("a.exe", "text/csv"), ("a.html", "text/plain"), ("a", None), ("a.bin", "application/octet-stream"), (".csv", "")],
)
def test_other_types_are_refused(name: str, declared: str | None) -> None:
    with pytest.raises(InvalidFileType) as caught:
        rules.check_type(name, declared)
    assert (caught.value.code, caught.value.http_status) == ("invalid_file_type", 400)


@pytest.mark.parametrize(
    ("num_bytes", "size"), [(1, 16 * MIB), (16 * MIB, 16 * MIB), (70_000_000, 16 * MIB), (250_000_000_000, 239 * MIB)]
)
def test_parts_are_large_enough_for_s3_and_few_enough_for_one_answer(num_bytes: int, size: int) -> None:
    assert rules.part_size(num_bytes) == size
    assert upload(num_bytes, size).num_parts <= rules.MAX_PARTS


def test_sizes_of_uploads_have_two_ends() -> None:
    rules.check_upload_size(1)
    rules.check_upload_size(250_000_000_000)
    with pytest.raises(InvalidFileSize):
        rules.check_upload_size(250_000_000_001)
    with pytest.raises(BadRequest):
        rules.check_upload_size(0)


@given(st.integers(1, 10**12), st.integers(5 * MIB, 50 * MIB))
def test_parts_cover_the_file_without_gap_or_overlap(num_bytes: int, smallest: int) -> None:
    one = upload(num_bytes, rules.part_size(num_bytes, smallest))
    edges = [1, 2, one.num_parts - 1, one.num_parts]
    for part in (one.part(n) for n in edges if 1 <= n <= one.num_parts):
        assert part.offset == (part.number - 1) * one.part_size
        assert 0 < part.length <= one.part_size
    last = one.part(one.num_parts)
    assert last.offset + last.length == num_bytes


def test_numbers_out_of_range_are_named() -> None:
    with pytest.raises(BadRequest, match="no part 0, 4"):
        upload().check_numbers([1, 0, 4, 3])


@pytest.mark.parametrize(
    ("token", "inner"), [('"ab"', "ab"), ("ab", "ab"), ('W/"ab"', "ab"), ('"', '"'), (' "ab" ', "ab")]
)
def test_a_token_counts_with_and_without_quotes(token: str, inner: str) -> None:
    assert bare(token) == inner


def test_everything_wrong_with_the_parts_is_told_at_once() -> None:
    there = {1: [Received(1, "a", 10)], 2: [Received(2, "b", 9)], 3: [Received(3, "c", 5)]}
    with pytest.raises(BadRequest) as caught:
        choose_parts(upload(35), there, {1: "other", 2: "b", 3: "c"})
    said = caught.value.message
    assert "missing: part 4" in said
    assert "not that of what was uploaded: part 1" in said
    assert "of the wrong size: part 2 (9 bytes, not 10), 3 (5 bytes, not 10)" in said
    good = {1: [Received(1, "x", 9), Received(1, "a", 10)], 2: [Received(2, "b", 10)], 3: [Received(3, "c", 5)]}
    assert [p.token for p in choose_parts(upload(25), good, {1: "a", 2: "b", 3: "c"})] == ["a", "b", "c"]


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_checksums_of_parts_give_the_checksum_of_the_whole(pieces: list[bytes]) -> None:
    parts = [Received(n, "", len(piece), google_crc32c.value(piece)) for n, piece in enumerate(pieces)]
    assert whole_crc32c(parts) == google_crc32c.value(b"".join(pieces))


def test_checksums_combine_over_megabytes() -> None:
    first, second = os.urandom(3 * MIB + 1), bytes(5 * MIB)
    whole = google_crc32c.value(first + second)
    assert crc32c_combine(google_crc32c.value(first), google_crc32c.value(second), len(second)) == whole
    assert whole_crc32c([Received(1, "", 3)]) is None


@pytest.mark.parametrize("text", ["", "AAAA", "no base64", "AAAAAAAA", "é"])
def test_a_checksum_is_four_bytes_of_base64(text: str) -> None:
    assert rules.parse_checksum("4waSgw==") == google_crc32c.value(b"123456789")
    with pytest.raises(BadRequest):
        rules.parse_checksum(text)


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, None),
        ("bytes=0-", (0, 10)),
        ("bytes=2-4", (2, 5)),
        ("bytes=2-99", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("Bytes = 9-9", (9, 10)),
        ("bytes=5-2", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=-", None),
        ("bytes=0-" + "9" * 5000, (0, 10)),
        ("bytes=-" + "9" * 5000, (0, 10)),
        ("bytes=" + "0" * 5000 + "2-4", (2, 5)),
    ],
)
def test_ranges_as_the_standard_has_them(header: str | None, span: tuple[int, int] | None) -> None:
    assert resolve_range(header, 10) == span


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("bytes=10-", 10),
        ("bytes=99-100", 10),
        ("bytes=-0", 10),
        ("bytes=0-", 0),
        ("bytes=" + "9" * 5000 + "-", 10),
        ("bytes=" + "9" * 5000 + "-" + "9" * 5000, 10),
    ],
)
def test_a_range_outside_is_refused(header: str, size: int) -> None:
    with pytest.raises(RangeInvalid):
        resolve_range(header, size)
