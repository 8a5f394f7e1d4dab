"""The CSV scanner against Python's csv module, the parser against both, and what people do to CSV files."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import csv_windows
from actors.csv_windows import Windows, count_windows, parse, read_header, scan, spoilt_windows
from jos.worker import InputInvalid


@dataclass
class Memory:
    """A Source over bytes."""

    data: bytes
    filename: str = "sensor.csv"
    id: str = "inp_1"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    def open(self) -> IO[bytes]:
        return io.BytesIO(self.data)

    def read_range(self, start: int, end: int) -> bytes:
        return self.data[start:end]


def read(source: Memory, first: int, end: int, numeric: list[int], text: int, chunk: int = 1 << 20) -> Any:
    """Rows [first, end) by way of a scan and its sample."""
    layout = scan(source, chunk)
    start, stop, skip, line = layout.locate(first, end)
    where = (source.filename, first - skip + 1, line, layout.header)
    rows = parse(source.data[start:stop], len(layout.header.columns), numeric, text, where)
    return rows, skip


# --- files as they should be -----------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False], ids=["final newline", "no final newline"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_line_ends_byte_order_mark_and_final_newline(newline: str, last: bool, bom: bytes) -> None:
    text = newline.join(["time,a,b", "1,0.5,2", "", '"2, or so",1e3,-3', "3,7,8"]) + newline * last
    source = Memory(bom + text.encode())
    layout = scan(source, chunk=3)
    assert layout.header.columns == ("time", "a", "b")
    assert layout.rows == 3
    rows, skip = read(source, 0, 3, [2, 1], 0)
    assert skip == 0
    assert rows.values.tolist() == [[2, -3, 8], [0.5, 1000, 7]]
    assert rows.timestamps.to_pylist() == [b"1", b"2, or so", b"3"]
    assert not rows.bad


CELL = st.text(alphabet='ab,"\n\r 1.', max_size=6)
ROW = st.lists(CELL, min_size=3, max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(ROW | st.just([]), max_size=12),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    chunk=st.integers(1, 60),
    bom=st.booleans(),
    cut=st.booleans(),
)
def test_scan_and_parse_agree_with_pythons_csv_module(
    rows: list[list[str]], newline: str, quoting: Any, chunk: int, bom: bool, cut: bool
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=newline, quoting=quoting).writerows([["x", "y", "z"], *rows])
    text = out.getvalue().removesuffix(newline) if cut else out.getvalue()
    wanted = [row for row in csv.reader(io.StringIO(text, newline="")) if row][1:]
    source = Memory((b"\xef\xbb\xbf" if bom else b"") + text.encode())
    layout = scan(source, chunk)
    assert layout.rows == len(wanted)
    for first, end in itertools.combinations(range(len(wanted) + 1), 2):
        parsed, skip = read(source, first, end, [], 1, chunk)
        cells = [cell.decode() for cell in parsed.timestamps.to_pylist()[skip : skip + end - first]]
        assert cells == [row[1] if len(row) > 1 else "" for row in wanted[first:end]]


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet='a,"\n\r', max_size=40), chunk=st.integers(1, 50))
def test_stray_quotes_are_read_as_python_reads_them(text: str, chunk: int) -> None:
    def python(text: str) -> list[list[str]]:
        return [row for row in csv.reader(io.StringIO(text, newline="")) if row]

    try:
        layout = scan(Memory(b"h\n" + text.encode()), chunk)
    except InputInvalid:  # a quote left open: Python takes all the rest as one cell
        assert python(text + "\nX")[-1] != ["X"]
        return
    assert layout.rows == len(python(text))


def test_the_sample_thins_out_and_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_windows, "MOST_SAMPLES", 16)
    source = Memory(b"t,v\n" + b"".join(b"t%d,%d\n" % (row, row) for row in range(1000)))
    layout = scan(source, chunk=500)
    assert layout.rows == 1000
    assert len(layout.offsets) <= 16
    assert layout.every == 64
    for first, end in [(0, 1000), (63, 65), (64, 128), (999, 1000), (500, 777)]:
        start, stop, skip, line = layout.locate(first, end)
        assert line == first - skip + 2
        rows = parse(source.data[start:stop], 2, [1], 0, ("f", 1, line, layout.header))
        assert rows.values[0, skip : skip + end - first].tolist() == list(range(first, end))


def test_large_chunks_are_scanned_by_columns_not_by_rows() -> None:
    line = b"2015-12-28 10:29:14,1.5,2.5,3.5\r\n"
    assert scan(Memory(b"t,a,b,c\r\n" + line * 200_000)).rows == 200_000


# --- files as they are -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"\n\r\n\n", "empty"),
        (b"\x1f\x8b\x08\x00abc", "gzip"),
        (b"PK\x03\x04...", "Excel"),
        (b"\xff\xfea\0,\0", "UTF-16"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary"),
        (b"time,Temp\xe9rature\n1,2\n", "UTF-8"),
        (b'time,a\n1,2\n2,"3\n4,5\n', "line 3"),
    ],
)
def test_a_file_that_cannot_be_csv_is_refused_with_the_reason(data: bytes, said: str) -> None:
    with pytest.raises(InputInvalid, match=said):
        scan(Memory(data))


def test_a_missing_column_lists_those_there_are_and_guesses_why() -> None:
    with pytest.raises(InputInvalid, match=r"no column 'HKLD'; it has 'time', 'a'"):
        read_header(Memory(b"time,a\n")).find("HKLD", "sensor.csv")
    with pytest.raises(InputInvalid, match="separator"):
        read_header(Memory(b"time;a;HKLD\n")).find("HKLD", "sensor.csv")
    with pytest.raises(InputInvalid, match="holds numbers"):
        read_header(Memory(b"1,2.5\n")).find("HKLD", "sensor.csv")
    with pytest.raises(InputInvalid, match="more than one"):
        read_header(Memory(b"a,a\n")).find("a", "sensor.csv")
    assert read_header(Memory(b"time, a\n")).find("a", "sensor.csv") == 1


def test_bad_rows_are_named_by_row_line_column_and_text_and_harm_no_other() -> None:
    body = b'1,1,1\n2,abc,1\n\n3,,1\n"4\n",inf,1\n5,5\n6,1_000,1\n7,7,+7\n8,8,8\n9,8,"1,5"\n'
    rows, _ = read(Memory(b"time,a,b\n" + body), 0, 9, [1, 2], 0)
    assert rows.bad == {
        1: "sensor.csv row 2 (line 3), column 'a': 'abc' is not a number",
        2: "sensor.csv row 3 (line 5), column 'a': the cell is empty",
        3: "sensor.csv row 4 (line 6), column 'a': 'inf' is not a finite number",
        4: "sensor.csv row 5 (line 8) has 2 fields where the header has 3",
        5: "sensor.csv row 6 (line 9), column 'a': '1_000' is not a number",
        8: "sensor.csv row 9 (line 12), column 'b': '1,5' is not a number",
    }
    assert rows.values[:, [0, 6, 7]].tolist() == [[1, 7, 8], [1, 7, 8]]
    assert rows.timestamps.to_pylist() == [b"1", b"2", b"3", b"4\n", b"5", b"6", b"7", b"8", b"9"]


def test_gaps_alone_stay_on_the_fast_path_and_are_named_too() -> None:
    rows, _ = read(Memory(b"time,a\n1,1\n2,\n3,NaN\n"), 0, 3, [1], 0)
    assert rows.bad == {
        1: "sensor.csv row 2 (line 3), column 'a': the cell is empty",
        2: "sensor.csv row 3 (line 4), column 'a': 'NaN' is not a finite number",
    }
    assert math.isnan(rows.values[0, 1])


def test_a_column_may_be_both_timestamp_and_data() -> None:
    rows, _ = read(Memory(b"a,b\n07,1\n8,2\n"), 0, 2, [0, 1], 0)
    assert rows.values.tolist() == [[7, 8], [1, 2]]
    assert rows.timestamps.to_pylist() == [b"07", b"8"]
    assert list(read(Memory(b"a,b\n7,1\nx,2\n"), 0, 2, [0, 1], 0)[0].bad) == [1]


def test_bytes_that_are_no_utf8_matter_only_where_they_are_needed() -> None:
    rows, _ = read(Memory(b"time,note,a\n1,caf\xe9,2\n\xe9,x,3\n3,y,4\xb0\n"), 0, 3, [2], 0)
    assert rows.timestamps.to_pylist() == [b"1", b"\xe9", b"3"]
    assert list(rows.bad) == [2]


# --- windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(16, 185), (64, 137), (128, 73), (200, 1), (201, 0)])
def test_windows_of_200_rows(size: int, count: int) -> None:
    assert count_windows(200, size, 1) == count


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 9), st.data())
def test_windows_are_views_in_row_order(rows: int, size: int, step: int, data: st.DataObject) -> None:
    values = np.arange(2 * rows, dtype=np.float32).reshape(2, rows)
    wanted = [values[:, at : at + size] for at in range(0, rows - size + 1, step)]
    windows = Windows(values, size, step)
    assert len(windows) == len(wanted)
    if wanted:
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(wanted))] * 2)))
        piece = windows[start:end]
        assert np.shares_memory(piece, values) or start == end
        assert piece.tolist() == [window.tolist() for window in wanted[start:end]]


@given(st.sets(st.integers(0, 60)), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9))
def test_exactly_the_windows_that_touch_a_bad_row_are_spoilt(bad: set[int], start: int, size: int, step: int) -> None:
    wanted = {}
    for window in range(6):
        touched = sorted(bad & set(range(start + window * step, start + window * step + size)))
        if touched:
            wanted[window] = str(touched[0])
    assert spoilt_windows({row: str(row) for row in bad}, start, 6, size, step) == wanted


def test_timestamps_stay_a_column_of_bytes() -> None:
    rows, _ = read(Memory(b"t,a\n007,1\n"), 0, 1, [1], 0)
    assert rows.timestamps.type == pa.binary()
