"""Rows and columns of tables, in whatever pieces the bytes come."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jos.files.attributes import counter


def told(kind: str, data: bytes, size: int = 1 << 20, whole: bool = True) -> dict[str, Any]:
    one = counter(kind)
    for at in range(0, len(data), size):
        one.feed(data[at : at + size])
    return one.result(whole)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    ("data", "rows", "headers"),
    [
        (b"a,b\n1,2\n3,4\n", 2, ["a", "b"]),
        (b"a,b\n1,2\n3,4", 2, ["a", "b"]),
        (b"a,b\r\n1,2\r\n\r\n3,4\r\n\r\n\r\n", 2, ["a", "b"]),
        (b'\xef\xbb\xbfa,"b,c"\n1,2\n', 1, ["a", "b,c"]),
        (b'a,b\n"x\ny","z"\n"1 ""q"" ",2\n', 2, ["a", "b"]),
        (b'"a\nb",c\n1,2\n', 1, ["a\nb", "c"]),
        (b"\n\na,b\n1,2\n", 1, ["a", "b"]),
        ("größe,漢字\n1,2\n".encode(), 1, ["größe", "漢字"]),
        (b"a,b\n", 0, ["a", "b"]),
        (b"a,b", 0, ["a", "b"]),
        (b"", 0, []),
    ],
)
def test_csv(data: bytes, rows: int, headers: list[str], size: int) -> None:
    expected = {"num_rows": rows, "num_columns": len(headers), "column_headers": headers}
    assert told("text/csv", data, size) == expected


@given(
    st.lists(st.lists(st.text('ab,"\n ', max_size=4), min_size=2, max_size=2), min_size=1, max_size=8),
    st.integers(1, 9),
)
def test_csv_is_counted_as_pythons_reader_does(rows: list[list[str]], size: int) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([["x", "y"], *rows])
    assert told("text/csv", text.getvalue().encode(), size)["num_rows"] == len(rows)


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_json_lines(size: int) -> None:
    assert told("application/x-ndjson", b'{"a":1}\n\n{"b":2}\r\n{"c":3}', size) == {"num_rows": 3}
    assert told("application/x-ndjson", b"", size) == {"num_rows": 0}


def test_the_beginning_alone_tells_the_columns_but_not_the_rows() -> None:
    assert told("text/csv", b"a,b\n1,2\n3", whole=False) == {"num_columns": 2, "column_headers": ["a", "b"]}
    assert told("text/csv", b"a,b", whole=False) == {}
    assert told("application/x-ndjson", b"{}\n", whole=False) == {}


def test_other_types_have_no_attributes_and_an_endless_line_is_no_header() -> None:
    assert told("video/mp4", b"\0\n\0") == {}
    assert told("text/csv", b"x" * (3 << 20)) == {}
