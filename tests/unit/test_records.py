"""Record workers, and the documented example, run without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jos import records
from jos.records import RecordFailed, RecordWorker, scan
from jos.testing import LocalFile, run_worker
from jos.worker import InputInvalid, Span


class Double(RecordWorker):
    batch_size = 2
    span_records = 3

    def process(self, record: dict[str, Any]) -> dict[str, Any]:
        if record.get("refuse"):
            raise RecordFailed("as told")
        return {"twice": 2 * record["x"]}


def lines(*records: Any) -> bytes:
    return b"".join(r if isinstance(r, bytes) else orjson.dumps(r) + b"\n" for r in records)


def test_each_record_has_its_line_and_bad_ones_fail_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines({"x": 1}, b"{oops\n", {"x": 2}, b"[1]\n", b"\n", {"refuse": 1}, {"x": 3}))
    outputs = run_worker(Double, [file])
    answers = [orjson.loads(line) for line in outputs.files["inp_a_output.jsonl"].splitlines()]
    assert [a["line_index"] for a in answers] == list(range(7))
    assert [a.get("twice") for a in answers] == [2, None, 4, None, None, None, 6]
    assert set(outputs.failures["a.jsonl"]) == {1, 3, 4, 5}
    assert outputs.failures["a.jsonl"][5] == "a.jsonl line 6: as told"


@given(st.lists(st.binary(max_size=12).filter(lambda b: b"\n" not in b and b"\0" not in b), max_size=20), st.booleans())
def test_lines_are_counted_and_found_again_as_python_splits_them(texts: list[bytes], open_end: bool) -> None:
    content = b"\n".join(texts) + (b"" if open_end or not texts else b"\n")
    sound = content.rstrip(b" \t\r\n")  # blank lines at the end are none
    wanted = sound.split(b"\n") if sound else []

    class Memory(LocalFile):
        num_bytes = len(content)  # type: ignore[assignment]

        def open(self) -> Any:
            import io

            return io.BytesIO(content)

    if content[:2] == b"\x1f\x8b":
        return
    source = Memory(Path("x"))
    count, offsets = scan(source, 3)
    assert count == len(wanted)
    assert len(offsets) == -(-count // 3)
    plan = Double().plan(source)
    worker, seen = Double(), []
    for at in range(len(plan.bounds) - 1):
        a, b = plan.bounds[at], plan.bounds[at + 1]
        seen.extend(worker.read(source, Span(a, b, plan.hints[at], a, b)))
    assert [line.number for line in seen] == list(range(count))


def test_spans_are_cut_by_bytes_too_and_a_line_that_is_too_long_fails_alone_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", 50)
    monkeypatch.setattr(records, "LONGEST_LINE", 200)
    file = tmp_path / "a.jsonl"
    sound = [{"x": n, "more": "." * (100 if n == 3 else 2)} for n in range(6)]
    file.write_bytes(lines(*sound[:5], {"x": 0, "more": "." * 200}, sound[5]))
    plan = Double().plan(LocalFile(file))
    assert plan.bounds == [0, 2, 3, 4, 5, 6, 7]  # the third record of a span would be too much; two are not
    assert [b - a for a, b in plan.hints][:4] == [40, 20, 118, 20]
    reads: list[int] = []
    read_range = LocalFile.read_range
    monkeypatch.setattr(LocalFile, "read_range", lambda s, a, b: reads.append(b - a) or read_range(s, a, b))
    outputs = run_worker(Double, [file])
    assert outputs.failures["a.jsonl"] == {5: "a.jsonl line 6: the line has 218 bytes, and 200 are the most"}
    assert len(outputs.files["inp_a_output.jsonl"].splitlines()) == 7
    assert sorted(reads)[:-1] == sorted(b - a for a, b in plan.hints if b - a <= 200)  # and one look at the end


def test_a_byte_order_mark_and_blank_last_lines_cost_no_record(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + lines({"x": 1}, b"\n", {"x": 2}) + b"\n \r\n" + b" " * 100_000)
    outputs = run_worker(Double, [file])
    answers = [orjson.loads(line) for line in outputs.files["inp_a_output.jsonl"].splitlines()]
    assert [a.get("twice") for a in answers] == [2, None, 4]  # a blank line among others still counts
    assert list(outputs.failures["a.jsonl"]) == [1]
    file.write_bytes(b" \n\n")
    assert run_worker(Double, [file]).files.get("inp_a_output.jsonl", b"") == b""


@pytest.mark.parametrize(("content", "what"), [(b"\x1f\x8b\x08\0", "gzip"), (b"PK\x03\x04\0\0", "binary")])
def test_what_is_no_text_is_refused_with_the_reason(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputInvalid, match=what):
        run_worker(Double, [file])
