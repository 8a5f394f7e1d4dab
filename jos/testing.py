"""Run a worker in this process, without Ray, Redis or storage: for a pipeline author's own tests.

    outputs = run_worker(Shout, ["texts.jsonl"], config={"loud": True})
    assert outputs.files["texts"] == b'…'

May import: jos.worker, jos.core. Tests: tests/unit/test_records.py.
"""

from __future__ import annotations

import itertools
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


@dataclass(frozen=True)
class LocalPrepared:
    """What the first stage of a training made of one input, as a `Prepared`."""

    source: Source
    port: str
    tasks: int
    body: bytes

    def read(self) -> bytes:
        return self.body


@dataclass
class Outputs:
    """What a run gave: output files by name, failed tasks by file and number, the events it emitted; of a trainer
    also the metrics of each step, its checkpoints by the number of steps before them, and its last state."""

    files: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, dict[int, str]] = field(default_factory=dict)
    events: list[tuple[str, str, str, Mapping[str, Any]]] = field(default_factory=list)
    metrics: list[Mapping[str, float]] = field(default_factory=list)
    checkpoints: dict[int, bytes] = field(default_factory=dict)
    state: bytes = b""


def make_worker(
    kind: type[Worker],
    config: Mapping[str, Any],
    inputs: Mapping[str, Sequence[Source]],
    events: list[tuple[str, str, str, Mapping[str, Any]]],
    device: str = "cpu",
) -> Worker:
    """A worker that is set up, on `device` ("cpu" or "cuda")."""
    worker = kind()

    def emit(*event: Any) -> None:
        events.append(event)

    worker.context = Context(config, 0, device, 1, inputs, emit, threading.Event())
    worker.setup()
    return worker


def run_worker(
    kind: type[Worker],
    files: Sequence[str | Path] = (),
    *,
    config: Mapping[str, Any] | None = None,
    replicated: Mapping[str, Sequence[Source]] | None = None,
    scattered: Mapping[str, Sequence[Source]] | None = None,
    device: str = "cpu",
) -> Outputs:
    """All tasks of all files, span by span, in order; a trainer's steps after what it prepares of `scattered`, ports
    to sources, which it finds among its inputs too. Exceptions come through: nothing is tried again."""
    outputs = Outputs()
    inputs = {**(replicated or {}), **(scattered or {})}
    ids = [source.id for sources in inputs.values() for source in sources]
    if len(set(ids)) < len(ids):
        raise ValueError("two inputs have the same id, by which workers tell them apart: name the files differently")
    worker = make_worker(kind, config or {}, inputs, outputs.events, device)
    if isinstance(worker, Trainer):
        _train(worker, scattered or {}, outputs)
        return outputs
    for path in files:
        source = LocalFile(Path(path))
        plan, bodies = _run_file(worker, source, outputs)
        for part, body in bodies.items():
            _keep(plan, source, part, body, outputs)
    return outputs


def _train(trainer: Trainer, scattered: Mapping[str, Sequence[Source]], outputs: Outputs) -> None:
    prepared: list[LocalPrepared] = []
    for port, sources in scattered.items():
        for source in sources:
            plan, bodies = _run_file(trainer, source, outputs)
            whole = b"".join(plan.header + body for _, body in sorted(bodies.items()))
            prepared.append(LocalPrepared(source, port, plan.tasks, whole))
    trainer.begin(prepared)
    plan = trainer.steps()
    for start, end in itertools.pairwise(plan.bounds):
        outputs.metrics += [trainer.step(number) for number in range(start, end)]
        if (model := trainer.checkpoint()) is not None:
            outputs.checkpoints[end] = model
        if trainer.finished:
            break
    outputs.state = trainer.save()


def _run_file(worker: Worker, source: Source, outputs: Outputs) -> tuple[Plan, dict[int, bytes]]:
    """The plan of one input and what was written for each of its parts, without headers."""
    plan = worker.plan(source)
    bodies: dict[int, bytes] = {}
    for at in range(len(plan.bounds) - 1):
        start, end = plan.bounds[at], plan.bounds[at + 1]
        part = 0 if plan.part_tasks is None else start // plan.part_tasks
        span = Span(start, end, plan.hints[at] if plan.hints else None, start, end, part)
        data = worker.read(source, span)
        results = [worker.compute(data[i : i + worker.batch_size]) for i in range(0, len(span), worker.batch_size)]
        output = worker.write(source, span, data, results)
        outputs.failures.setdefault(source.filename, {}).update(output.failures)
        bodies[part] = bodies.get(part, b"") + output.body
    return plan, bodies


def _keep(plan: Plan, source: LocalFile, part: int, body: bytes, outputs: Outputs) -> None:
    if plan.output_name is not None:
        name = plan.output_name.format(input_id=source.id, file_uid=source.path.stem, stem=source.path.stem, part=part)
        outputs.files[name] = plan.header + body
