"""Run a worker in this process, without Ray, Redis or storage: for a pipeline author's own tests.

    outputs = run_worker(Shout, ["texts.jsonl"], config={"loud": True})
    assert outputs.files["texts"] == b'…'

May import: jos.worker, jos.core. Tests: tests/unit/test_records.py.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from jos.worker import Context, Plan, Source, Span, Trainer, Worker


@dataclass(frozen=True)
class LocalFile:
    """A file as a `Source`."""

    path: Path
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"inp_{self.path.stem}"

    @property
    def filename(self) -> str:
        return self.path.name

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size

    def open(self) -> IO[bytes]:
        return self.path.open("rb")

    def read_range(self, start: int, end: int) -> bytes:
        with self.open() as file:
            file.seek(start)
            return file.read(end - start)


@dataclass
class Outputs:
    """What a run gave: output files by name, failed tasks by file and number, and the events it emitted."""

    files: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, dict[int, str]] = field(default_factory=dict)
    events: list[tuple[str, str, str, Mapping[str, Any]]] = field(default_factory=list)
    metrics: list[Mapping[str, float]] = field(default_factory=list)
    state: bytes = b""


def make_worker(
    kind: type[Worker],
    config: Mapping[str, Any],
    inputs: Mapping[str, Sequence[Source]],
    events: list[tuple[str, str, str, Mapping[str, Any]]],
) -> Worker:
    """A worker that is set up, on the CPU."""
    worker = kind()

    def emit(*event: Any) -> None:
        events.append(event)

    worker.context = Context(config, 0, "cpu", 1, inputs, emit, threading.Event())
    worker.setup()
    return worker


def run_worker(
    kind: type[Worker],
    files: Sequence[str | Path] = (),
    *,
    config: Mapping[str, Any] | None = None,
    replicated: Mapping[str, Sequence[Source]] | None = None,
) -> Outputs:
    """All tasks of all files, span by span, in order. Exceptions come through: nothing is tried again."""
    outputs = Outputs()
    worker = make_worker(kind, config or {}, replicated or {}, outputs.events)
    if isinstance(worker, Trainer):
        plan = worker.steps()
        outputs.metrics = [worker.step(number) for number in range(plan.tasks)]
        outputs.state = worker.save()
        return outputs
    for path in files:
        _run_file(worker, LocalFile(Path(path)), outputs)
    return outputs


def _run_file(worker: Worker, source: LocalFile, outputs: Outputs) -> None:
    plan = worker.plan(source)
    for at in range(len(plan.bounds) - 1):
        start, end = plan.bounds[at], plan.bounds[at + 1]
        part = 0 if plan.part_tasks is None else start // plan.part_tasks
        span = Span(start, end, plan.hints[at] if plan.hints else None, start, end, part)
        data = worker.read(source, span)
        results = [worker.compute(data[i : i + worker.batch_size]) for i in range(0, len(span), worker.batch_size)]
        output = worker.write(source, span, data, results)
        outputs.failures.setdefault(source.filename, {}).update(output.failures)
        _keep(plan, source, part, output.body, outputs)


def _keep(plan: Plan, source: LocalFile, part: int, body: bytes, outputs: Outputs) -> None:
    if plan.output_name is None:
        return
    name = plan.output_name.format(input_id=source.id, stem=source.path.stem, part=part)
    outputs.files[name] = outputs.files.get(name, plan.header) + body
