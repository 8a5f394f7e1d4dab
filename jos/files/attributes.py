"""What is told of a table without reading it twice: rows and columns of CSV, rows of JSON lines.

Fed with the bytes in any pieces, in constant memory. May import: jos.core. Tests: tests/unit/test_files_attributes.py.
"""

from __future__ import annotations

import csv
import io
import re
from typing import Protocol

from jos.core.model import Json

_LONGEST_HEADER = 1 << 20  # bytes; a longer first line is no header of a table
_BLANK = re.compile(rb"(?=\n\n)")


class Counter(Protocol):
    def feed(self, data: bytes) -> None: ...

    def result(self, whole: bool = True) -> Json:
        """`whole`: all bytes were fed. Else only what the beginning tells."""
        ...


def counter(file_type: str) -> Counter:
    match file_type:
        case "text/csv":
            return CsvCounter()
        case "application/x-ndjson":
            return LinesCounter()
    return NoCounter()


class NoCounter:
    def feed(self, data: bytes) -> None:
        return

    def result(self, whole: bool = True) -> Json:
        return {}


class LinesCounter:
    """Lines that hold anything; a last line needs no line feed."""

    def __init__(self) -> None:
        self._lines = 0
        self._last = b"\n"

    def feed(self, data: bytes) -> None:
        text = data.replace(b"\r", b"")
        if text:
            self._lines += text.count(b"\n") - _blank_lines(self._last, text)
            self._last = text[-1:]

    def result(self, whole: bool = True) -> Json:
        return {"num_rows": self._lines + (self._last != b"\n")} if whole else {}


class CsvCounter:
    """Records below a header; a quoted cell may hold line feeds."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._header_ends: int | None = None  # where in the head, once known
        self._quoted = False
        self._records = 0
        self._last = b"\n"  # of what is outside quotes; a quoted cell counts as a character

    def feed(self, data: bytes) -> None:
        if self._header_ends is None and len(self._head) <= _LONGEST_HEADER:
            self._head += data
            self._header_ends = _first_record(self._head)
            if self._header_ends is not None:
                del self._head[self._header_ends :]
        for number, piece in enumerate(data.split(b'"')):
            if number:
                self._quoted = not self._quoted
                self._last = b'"'
            if not self._quoted:
                text = piece.replace(b"\r", b"")
                if text:
                    self._records += text.count(b"\n") - _blank_lines(self._last, text)
                    self._last = text[-1:]

    def result(self, whole: bool = True) -> Json:
        if len(self._head) > _LONGEST_HEADER or (self._header_ends is None and not whole):
            return {}
        text = bytes(self._head).decode("utf-8-sig", errors="replace")
        try:
            header = next((row for row in csv.reader(io.StringIO(text, newline="")) if row), [])
        except csv.Error:
            return {}
        columns: Json = {"num_columns": len(header), "column_headers": header}
        records = self._records + (self._last != b"\n")
        return {"num_rows": max(records - 1, 0), **columns} if whole else columns


def _blank_lines(last: bytes, text: bytes) -> int:
    """Line feeds right behind another one, also over the edge of two pieces."""
    blank = len(_BLANK.findall(text)) if b"\n\n" in text else 0
    return blank + (last == b"\n" and text.startswith(b"\n"))


def _first_record(head: bytearray) -> int | None:
    """Where the first record that holds anything ends; None if it is not all there."""
    quoted, start = False, 0
    while start < len(head) and head[start] in b"\r\n":
        start += 1
    at = start
    while (end := head.find(b"\n", at)) >= 0:
        quoted ^= bool(head.count(b'"', at, end) % 2)
        if not quoted:
            return end + 1
        at = end + 1
    return None
