"""CSV files as sensor windows, in bounded memory: one fast scan finds the rows, each span then parses only its bytes.

A row is one CSV record that is not blank. Scanner and parser share one definition of a record (`_record_ends`):
quotes as in RFC 4180, line ends LF, CRLF or CR, an optional UTF-8 BOM, a final newline or none. A cell that is
no finite number spoils the windows that touch it and nothing else.

May import: jos.worker, numpy, pyarrow, stdlib. Tests: tests/unit/test_csv_windows.py.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv as arrow_csv

from jos.worker import InputInvalid, Source

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CHUNK = 8 << 20
LONGEST_RECORD = 64 << 20  # past this the quote that opened it was never closed
MOST_SAMPLES = 1 << 18  # 2 × 8 bytes each: 4 MB for a file of any length
_NEWLINE, _RETURN, _COMMA, _QUOTE = 10, 13, 44, 34
_BOM = b"\xef\xbb\xbf"
_BORDER = np.zeros(256, dtype=bool)  # what may stand beside a quote that opens or closes a field
_BORDER[[_NEWLINE, _RETURN, _COMMA, _QUOTE]] = True
_FOREIGN = {
    b"\x1f\x8b": ("is gzip-compressed", "Decompress it first."),
    b"PK\x03\x04": ("is a ZIP or Excel file", "Save it as CSV text."),
    b"PAR1": ("is a Parquet file", "Save it as CSV text."),
    b"\xff\xfe": ("is UTF-16 text", "Save it as UTF-8."),
    b"\xfe\xff": ("is UTF-16 text", "Save it as UTF-8."),
}


@dataclass(frozen=True)
class Header:
    """The first record of a file."""

    columns: tuple[str, ...]
    end: int  # the byte after it
    lines: int  # lines up to `end`

    def find(self, name: str, filename: str) -> int:
        """The position of a column. Spaces around a name are forgiven when nothing else matches."""
        for names in (self.columns, tuple(column.strip() for column in self.columns)):
            if names.count(name) == 1:
                return names.index(name)
            if name in names:
                raise InputInvalid(f"{filename} has more than one column named {name!r}.")
        hint = "Check data_columns and timestamp_column in reader_config."
        if len(self.columns) == 1 and any(mark in self.columns[0] for mark in ";\t|"):
            hint = "The file seems to use another separator: save it with commas."
        elif all(_is_number(column) for column in self.columns):
            hint = "The first line must name the columns, but it holds numbers."
        raise InputInvalid(f"{filename} has no column {name!r}; it has {_listed(self.columns)}.", suggestion=hint)


@dataclass(frozen=True)
class Layout:
    """Where the rows of a file are, sampled at every `every`-th row."""

    header: Header
    rows: int
    num_bytes: int
    every: int
    offsets: Ints  # where row 0, every, 2·every … begins
    lines: Ints  # on which line, from 1

    def locate(self, first: int, end: int) -> list[int]:
        """[byte_start, byte_end, rows to skip, line] of a piece that holds rows [first, end)."""
        at, after = first // self.every, -(-end // self.every)
        byte_end = int(self.offsets[after]) if after < len(self.offsets) else self.num_bytes
        return [int(self.offsets[at]), byte_end, first - at * self.every, int(self.lines[at])]


@dataclass(frozen=True)
class Rows:
    """Parsed rows. `bad` maps a row (from 0 in this piece) to what is wrong with it; its values are NaN or junk."""

    values: Floats  # (channels, rows)
    timestamps: pa.Array  # of bytes, exactly as in the file
    bad: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Windows:
    """Windows over scaled values. Slicing gives a view of shape (n, channels, size): no copy is made."""

    values: npt.NDArray[np.float32]  # (channels, rows)
    size: int
    step: int
    timestamps: pa.Array | None = None  # one a window
    failures: Mapping[int, str] = field(default_factory=dict)  # window (from 0 in this span) -> why

    def __len__(self) -> int:
        return count_windows(self.values.shape[1], self.size, self.step)

    def __getitem__(self, at: slice) -> npt.NDArray[np.float32]:
        # writeable only so that torch takes it without a warning; nobody writes
        view = np.lib.stride_tricks.sliding_window_view(self.values, self.size, axis=1, writeable=True)
        return view[:, :: self.step].transpose(1, 0, 2)[at]


def count_windows(rows: int, size: int, step: int) -> int:
    return (rows - size) // step + 1 if rows >= size else 0


def read_header(source: Source) -> Header:
    start = source.read_range(0, 1 << 20)
    _refuse_foreign(source.filename, start)
    if len(start) == source.num_bytes and not start.endswith(b"\n"):
        start += b"\n"
    skip = len(_BOM) if start.startswith(_BOM) else 0
    ends, lines = _record_ends(start[skip:])
    previous = -1
    for end, line in zip(ends.tolist(), lines.tolist(), strict=True):
        record = start[skip + previous + 1 : skip + end].rstrip(b"\r")
        if record:
            try:
                columns = next(csv.reader([record.decode()]))
            except UnicodeDecodeError:
                raise InputInvalid(
                    f"The header of {source.filename} is not UTF-8 text.", suggestion="Save the file as UTF-8."
                ) from None
            except csv.Error as error:
                raise InputInvalid(f"The header of {source.filename} cannot be read: {error}.") from None
            return Header(tuple(columns), min(skip + end + 1, source.num_bytes), line)
        previous = end
    if not start.strip():
        raise InputInvalid(f"{source.filename} is empty: it has no header line.")
    raise InputInvalid(f"{source.filename} has no end of a header line in its first megabyte.")


def scan(source: Source, chunk: int = CHUNK) -> Layout:
    """Find all rows: one pass, `chunk` bytes at a time."""
    header = read_header(source)
    rows, every = 0, 1
    offsets: list[Ints] = []
    lines: list[Ints] = []
    kept = 0
    for starts, at_line in _records(source, header, chunk):
        first = -rows % every
        offsets.append(starts[first::every])
        lines.append(at_line[first::every])
        kept += len(offsets[-1])
        rows += len(starts)
        while kept > MOST_SAMPLES:  # keep every second one: memory stays, the pieces read later grow
            every *= 2
            offsets, lines = [np.concatenate(offsets)[::2]], [np.concatenate(lines)[::2]]
            kept = len(offsets[0])
    none = np.zeros(0, dtype=np.int64)
    joined = (np.concatenate([none, *offsets]), np.concatenate([none, *lines]))
    return Layout(header, rows, source.num_bytes, every, *joined)


def _records(source: Source, header: Header, chunk: int) -> Iterator[tuple[Ints, Ints]]:
    """For each chunk the bytes and the lines at which its rows begin. Every piece looked at begins with a record,
    so no state of quotes has to be carried from one to the next."""
    base, line, rest = header.end, header.lines + 1, b""
    with source.open() as stream:
        stream.seek(header.end)
        while True:
            fresh = stream.read(chunk)
            data = rest + fresh if rest else fresh
            if not fresh:
                if not data:
                    return
                data += b"\n"  # the last record may lack its own
            ends, end_lines = _record_ends(data)
            if len(ends):
                starts, keep = _starts(data, ends)
                yield base + starts[keep], line + np.concatenate(([0], end_lines[:-1]))[keep]
                used = int(ends[-1]) + 1
                base, line, rest = base + used, line + int(end_lines[-1]), data[used:]
            else:
                rest = data
            if rest and (not fresh or len(rest) > LONGEST_RECORD):
                raise InputInvalid(
                    f"{source.filename} line {line}: the row that begins here does not end.",
                    suggestion="A quotation mark is opened and never closed.",
                )
            if not fresh:
                return


def _record_ends(data: bytes) -> tuple[Ints, Ints]:
    """Positions of the last byte of each record in `data`, which begins with a record, and how many lines are
    complete there. A carriage return in the last byte ends nothing yet: a newline may follow."""
    buffer = np.frombuffer(data, dtype=np.uint8)
    breaks = np.flatnonzero(buffer == _NEWLINE)
    if b"\r" in data:
        returns = np.flatnonzero(buffer[:-1] == _RETURN)
        lone = returns[buffer[returns + 1] != _NEWLINE]
        if len(lone):
            breaks = np.sort(np.concatenate((breaks, lone)))
    numbers = np.arange(1, len(breaks) + 1)
    if b'"' in data:
        outside = np.searchsorted(_quote_turns(buffer), breaks) % 2 == 0
        return breaks[outside], numbers[outside]
    return breaks, numbers


def _quote_turns(buffer: npt.NDArray[np.uint8]) -> Ints:
    """Positions at which quoting turns on, off, on … Usually all quotes: a doubled one turns off and on again.
    That holds while each stands at the border of a field; a stray one (6" pipe) asks for the exact rule."""
    quotes = np.flatnonzero(buffer == _QUOTE)
    opening, closing = quotes[0::2], quotes[1::2]
    before = buffer[opening[opening > 0] - 1]
    after = buffer[closing[closing + 1 < len(buffer)] + 1]
    if _BORDER[before].all() and _BORDER[after].all():
        return quotes
    turns: list[int] = []
    doubled = -1
    for at in quotes.tolist():
        if at == doubled:
            continue
        if len(turns) % 2:
            if at + 1 < len(buffer) and buffer[at + 1] == _QUOTE:
                doubled = at + 1
            else:
                turns.append(at)
        elif at == 0 or buffer[at - 1] in (_NEWLINE, _RETURN, _COMMA):
            turns.append(at)
    return np.array(turns, dtype=np.int64)


def _starts(data: bytes, ends: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Where each record begins, and which of them are rows (not blank)."""
    starts = np.concatenate((np.zeros(1, dtype=np.int64), ends[:-1] + 1))
    length = ends - starts
    blank = length == 0
    if b"\r" in data:
        blank |= (length == 1) & (np.frombuffer(data, dtype=np.uint8)[starts] == _RETURN)
    return starts, ~blank


def parse(data: bytes, width: int, numeric: Sequence[int], text: int, where: tuple[str, int, int, Header]) -> Rows:
    """Parse whole records: the columns `numeric` as numbers, `text` as it stands. `where` = file name, number of
    the first row and of its line (both from 1), and the header, for messages."""
    quick = _parse_quickly(data, width, numeric, text)
    if quick is None:
        return _parse_carefully(data, width, numeric, text, where)
    values, timestamps = quick
    spoilt = np.flatnonzero(~np.isfinite(values).all(axis=0))
    bad: dict[int, str] = {}
    if len(spoilt):
        records = _split(data)
        for row in spoilt.tolist():
            _, bad[row] = _numbers(records[row], row, width, numeric, where)
    return Rows(values, timestamps, bad)


def _parse_quickly(data: bytes, width: int, numeric: Sequence[int], text: int) -> tuple[Floats, pa.Array] | None:
    """Arrow's parser; None when any row or cell is not as it should be."""
    ragged: list[Any] = []

    def skip(row: Any) -> str:
        ragged.append(row)
        return "skip"

    types = {str(column): pa.float64() for column in numeric} | {str(text): pa.binary()}
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            arrow_csv.ReadOptions(
                use_threads=False, block_size=len(data) + 1, column_names=[str(i) for i in range(width)]
            ),
            arrow_csv.ParseOptions(newlines_in_values=b'"' in data, invalid_row_handler=skip),
            arrow_csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=False),
        )
        columns = {name: table.column(name).combine_chunks() for name in types}
        if text in numeric:
            columns["number"] = columns[str(text)].cast(pa.string()).cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    if ragged:
        return None
    values = np.empty((len(numeric), table.num_rows))
    for channel, column in enumerate(numeric):
        cells = columns["number" if column == text else str(column)]
        values[channel] = cells.to_numpy(zero_copy_only=False)
    return values, columns[str(text)]


def _parse_carefully(
    data: bytes, width: int, numeric: Sequence[int], text: int, where: tuple[str, int, int, Header]
) -> Rows:
    """Row by row, saying what is wrong with each. Slow, and needed only for pieces that hold a bad row."""
    records = _split(data)
    values = np.full((len(numeric), len(records)), np.nan)
    timestamps: list[bytes] = []
    bad: dict[int, str] = {}
    for row, record in enumerate(records):
        numbers, problem = _numbers(record, row, width, numeric, where)
        if problem:
            bad[row] = problem
        else:
            values[:, row] = numbers
        fields = _fields(record[0])
        timestamps.append(fields[text].encode(errors="surrogateescape") if text < len(fields) else b"")
    return Rows(values, pa.array(timestamps, pa.binary()), bad)


def _split(data: bytes) -> list[tuple[bytes, int]]:
    """The rows of a piece as (bytes, lines before it)."""
    if not data.endswith(b"\n"):
        data += b"\n"
    ends, lines = _record_ends(data)
    starts, keep = _starts(data, ends)
    before = np.concatenate((np.zeros(1, dtype=np.int64), lines[:-1]))
    pieces = zip(starts[keep].tolist(), ends[keep].tolist(), before[keep].tolist(), strict=True)
    return [(data[start:end].removesuffix(b"\r"), line) for start, end, line in pieces]


def _fields(record: bytes) -> list[str]:
    try:
        return next(csv.reader([record.decode(errors="surrogateescape")]))
    except csv.Error:  # e.g. a field of over 128 KiB
        return []


def _numbers(
    record: tuple[bytes, int], row: int, width: int, numeric: Sequence[int], where: tuple[str, int, int, Header]
) -> tuple[list[float], str]:
    """The numbers of a row, or what is wrong with it."""
    filename, first_row, first_line, header = where
    place = f"{filename} row {first_row + row} (line {first_line + record[1]})"
    fields = _fields(record[0])
    if len(fields) != width:
        return [], f"{place} has {len(fields)} fields where the header has {width}"
    numbers: list[float] = []
    for column in numeric:
        cell = fields[column]
        numbers.append(float(cell) if _is_number(cell) else math.nan)
        if not math.isfinite(numbers[-1]):
            shown = cell.encode(errors="surrogateescape").decode(errors="replace")
            shown = repr(shown if len(shown) <= 40 else shown[:40] + "…")
            wrong = "the cell is empty" if not cell.strip() else f"{shown} is not a number"
            if _is_number(cell):
                wrong = f"{shown} is not a finite number"
            return numbers, f"{place}, column {header.columns[column]!r}: {wrong}"
    return numbers, ""


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python reads 1_000; nobody else does


def _refuse_foreign(filename: str, start: bytes) -> None:
    for magic, (what, remedy) in _FOREIGN.items():
        if start.startswith(magic):
            raise InputInvalid(f"{filename} {what}, not a CSV file.", suggestion=remedy)
    if b"\0" in start[: 1 << 16]:
        raise InputInvalid(f"{filename} is a binary file, not CSV text.")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def spoilt_windows(bad: Mapping[int, str], start: int, windows: int, size: int, step: int) -> dict[int, str]:
    """Which of the windows that begin at row `start`, `start + step` … touch a bad row, each with the reason of
    the first one that it touches."""
    if not bad:
        return {}
    rows = np.array(sorted(bad), dtype=np.int64)
    begins = start + step * np.arange(windows)
    at = np.searchsorted(rows, begins)
    nearest = np.append(rows, np.iinfo(np.int64).max)[at]
    hit = np.flatnonzero(nearest < begins + size)
    return {window: bad[row] for window, row in zip(hit.tolist(), nearest[hit].tolist(), strict=True)}
