"""The simplest worker: JSON lines in, JSON lines out, one record at a time.

    class Shout(RecordWorker):
        def process(self, record):
            return {"text": record["text"].upper()}

A line that is no JSON object, or for which `process` raises RecordFailed, becomes an error line in the output and a
failed task; the rest of the file goes on. Any other exception is tried again before the record is given up.
May import: jos.worker, jos.core, orjson. Tests: tests/unit/test_records.py. For people: docs/pipelines.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from jos.worker import InputInvalid, Output, Plan, Source, Span, Worker

CHUNK = 8 << 20
SPAN_BYTES = 16 << 20  # of a span's lines together, unless it is a single one: two or three spans are in hand at once
LONGEST_LINE = 64 << 20  # a longer one is not read
TAIL = 64 << 10  # looked at a time for the end of the last line
BLANK = b" \t\r\n"
BOM = b"\xef\xbb\xbf"  # begins a text that some programs write
PARSE_ERROR = "parse error"  # begins the message of a line that is no JSON object


class RecordFailed(Exception):
    """This record cannot be answered and never will; the message goes into its output line."""


@dataclass(frozen=True)
class Line:
    """One line of an input: its 0-based number, and the record or why there is none."""

    number: int
    record: dict[str, Any] | None
    error: str = ""


class RecordWorker(Worker):
    """`process` or `process_batch` is all that a pipeline must write."""

    batch_size = 32
    span_records = 256  # records per span: choose 0.2–1 s of work
    output_name = "{input_id}_output.jsonl"  # as in jos.worker.Plan

    def process(self, record: dict[str, Any]) -> Mapping[str, Any]:
        """One record's answer."""
        raise NotImplementedError

    def process_batch(self, records: Sequence[dict[str, Any]]) -> Sequence[Mapping[str, Any] | RecordFailed]:
        """The answers of a batch, in order; override it where a model answers many records at once."""
        return [self._one(record) for record in records]

    def _one(self, record: dict[str, Any]) -> Mapping[str, Any] | RecordFailed:
        try:
            return self.process(record)
        except RecordFailed as failed:
            return failed

    def error_line(self, message: str) -> Mapping[str, Any]:
        """What stands in the output for a record that failed, beside its line_index."""
        return {"error": message}

    # --- the worker contract ---

    def plan(self, source: Source) -> Plan:
        bounds, hints = _spans(source, self.span_records)
        message = "" if hints else "the file holds no record"
        return Plan(bounds, hints, output_name=self.output_name, message=message)

    def read(self, source: Source, span: Span) -> list[Line]:
        start, end = span.hint
        if end - start > LONGEST_LINE and span.hint_end - span.hint_start == 1:
            return [Line(span.start, None, f"the line has {end - start} bytes, and {LONGEST_LINE} are the most")]
        lines = source.read_range(start, end).split(b"\n")[span.start - span.hint_start :][: len(span)]
        return [parse(span.start + at, line) for at, line in enumerate(lines)]

    def compute(self, batch: list[Line]) -> list[Mapping[str, Any] | RecordFailed]:
        records = [line.record for line in batch if line.record is not None]
        answered = self.process_batch(records)
        if len(answered) != len(records):
            raise ValueError(f"process_batch gave {len(answered)} answers to {len(records)} records")
        answers = iter(answered)
        return [next(answers) if line.record is not None else RecordFailed(line.error) for line in batch]

    def write(self, source: Source, span: Span, data: list[Line], results: list[Any]) -> Output:
        answers = [answer for batch in results for answer in batch]
        failures = {
            line.number: f"{self.where(source, line.number)}: {answer}"
            for line, answer in zip(data, answers, strict=True)
            if isinstance(answer, RecordFailed)
        }
        body = b"".join(
            _line(line.number, self.error_line(str(a)) if isinstance(a, RecordFailed) else a)
            for line, a in zip(data, answers, strict=True)
        )
        return Output(body, failures)

    def where(self, source: Source, task: int) -> str:
        return f"{source.filename} line {task + 1}"

    def failed(self, source: Source, span: Span, message: str) -> bytes:
        return b"".join(_line(number, self.error_line(message)) for number in range(span.start, span.end))


def _line(number: int, answer: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"line_index": number, **answer}) + b"\n"


def parse(number: int, line: bytes) -> Line:
    """Line `number` of a file, 0-based."""
    try:
        record = orjson.loads(line.removeprefix(BOM) if number == 0 else line)
    except orjson.JSONDecodeError as error:
        return Line(number, None, f"{PARSE_ERROR}: {error}")
    if not isinstance(record, dict):
        return Line(number, None, f"{PARSE_ERROR}: a JSON object is expected, not {type(record).__name__}")
    return Line(number, record)


def scan(source: Source, every: int) -> tuple[int, list[int]]:
    """Counts lines in constant memory, and gives the byte offset of every `every`-th. Blank lines at the end are none.
    Raises InputInvalid for what is no text at all."""
    lines, offsets = 0, []
    for start in _line_starts(source, _content_end(source)):
        if lines % every == 0:
            offsets.append(start)
        lines += 1
    return lines, offsets


def _spans(source: Source, records: int) -> tuple[list[int], list[tuple[int, int]]]:
    """The bounds of spans of at most `records` lines and SPAN_BYTES, and the bytes that each lies in. A line that is
    longer than SPAN_BYTES stands alone."""
    bounds, offsets, lines = [0], list[int](), 0
    content = _content_end(source)
    starts = _line_starts(source, content)
    for start, end in itertools.pairwise(itertools.chain(starts, [content])):
        if not offsets:
            offsets.append(start)
        elif lines - bounds[-1] >= records or end - offsets[-1] > SPAN_BYTES:
            bounds.append(lines)
            offsets.append(start)
        lines += 1
    if lines:
        bounds.append(lines)
    return bounds, list(itertools.pairwise([*offsets, content]))


def _content_end(source: Source) -> int:
    """The byte after the last one that is not blank: editors and scripts leave empty lines at the end of a file."""
    end = source.num_bytes
    while end > 0:
        piece = source.read_range(max(end - TAIL, 0), end)
        if not piece:
            raise InputInvalid(f"{source.filename} ends early: it has changed while it was read.")
        if kept := piece.rstrip(BLANK):
            return end - len(piece) + len(kept)
        end -= len(piece)
    return 0


def _line_starts(source: Source, end: int) -> Iterator[int]:
    """The byte offsets at which lines begin before `end`, where the last line ends."""
    at = 0
    with source.open() as file:
        while at < end and (chunk := file.read(CHUNK)):
            if at == 0:
                _check_text(source, chunk)
                yield 0
            position = chunk.find(b"\n")
            while 0 <= position < end - at:
                yield at + position + 1
                position = chunk.find(b"\n", position + 1)
            at += len(chunk)


def _check_text(source: Source, beginning: bytes) -> None:
    if beginning[:2] == b"\x1f\x8b":
        raise InputInvalid(f"{source.filename} is compressed with gzip.", suggestion="Decompress it first.")
    if b"\0" in beginning[:4096]:
        raise InputInvalid(f"{source.filename} is a binary file, not JSON lines.")
