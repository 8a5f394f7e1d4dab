"""What a pipeline author writes: a Worker. No knowledge of Ray, Redis or object storage is needed.

JOS makes one worker in each index (a process of its own, with the pipeline's CPUs and GPU), then calls

    setup()                            once, with `self.context` set: load models and reference data
    plan(source) -> Plan               for each input: how many tasks, and hints to find them again
    read(source, span) -> data         in the reading thread;  data[i:j] must slice tasks
    compute(data[i:j]) -> result       in the computing thread, in batches of `batch_size` tasks
    write(source, span, data, results) in the writing thread -> Output

The three stages of neighbouring spans overlap, so the accelerator never waits for a file. A worker that trains a
model derives from `Trainer` instead; a worker of one record in, one record out from `RecordWorker`
(jos/records.py). See docs/pipelines.md.

May import: stdlib and `jos.core.errors`. Tests: tests/unit/test_index.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from jos.core.errors import InputInvalid, JobImpossible

__all__ = [
    "Context",
    "InputInvalid",
    "JobImpossible",
    "Output",
    "Plan",
    "Prepared",
    "Source",
    "Span",
    "Trainer",
    "Worker",
]


class Source(Protocol):
    """An input file as a worker sees it; opened only when asked."""

    @property
    def id(self) -> str: ...  # inp_…
    @property
    def filename(self) -> str: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    def open(self) -> IO[bytes]:
        """A seekable binary stream. Raises InputInvalid if the file changed since the job was created."""
        ...

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes [start, end); shorter at the end of the file."""
        ...


@dataclass(frozen=True)
class Span:
    """Tasks [start, end) of one input. `hint` was made by `plan` for the planned span [hint_start, hint_end)
    that this one lies in (a span that keeps failing is cut in half, its hint stays)."""

    start: int
    end: int
    hint: Any = None
    hint_start: int = 0
    hint_end: int = 0
    part: int = 0  # which output part of the input these tasks belong to

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Plan:
    """How an input is cut. Must be the same for the same input and configuration, on every machine.

    bounds      span i = tasks [bounds[i], bounds[i+1]); made by `jos.core.spans.cut`; [0] for no tasks at all
    hints       one JSON value per span, or [] for none
    part_tasks  tasks per output file; spans never cross its multiples
    output_name format of the output files' names with {input_id} {file_uid} {stem} {part}; None = no output files.
                {file_uid} = the uploaded file's uid without its prefix, letters and digits only
    header      bytes put once at the start of every output file
    """

    bounds: Sequence[int]
    hints: Sequence[Any] = ()
    part_tasks: int | None = None
    output_name: str | None = None
    header: bytes = b""
    message: str = ""  # a note shown as a WARN event, e.g. "shorter than one window: no tasks"
    group: int = 1  # of a trainer's steps: how many indexes should do each step together, see `Trainer`

    @property
    def tasks(self) -> int:
        return self.bounds[-1] if self.bounds else 0


@dataclass(frozen=True)
class Output:
    """What a span became: `body` is appended to the input's output file in task order; `failures` maps a task
    (numbered within the input) to why it failed. A failed task is recorded and never stops the job."""

    body: bytes = b""
    failures: Mapping[int, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


class Prepared(Protocol):
    """What the first stage of a training made of one input: see `Trainer`."""

    @property
    def source(self) -> Source: ...
    @property
    def port(self) -> str: ...  # "worker.train_data"
    @property
    def tasks(self) -> int: ...  # that it was cut into, failed ones included
    def read(self) -> bytes:
        """The plan's header and all bodies that `write` gave, in the order of tasks."""
        ...


EmitEvent = Callable[[str, str, str, Mapping[str, Any]], None]
Make = Callable[[], bytes]


def _made_anew(name: str, make: Make) -> bytes:
    return make()


@dataclass(frozen=True)
class Context:
    """What a worker is told at its start."""

    config: Mapping[str, Any]  # the merged configuration of the worker's component
    index: int  # 0 … parallelism - 1
    device: str  # "cpu" or "cuda"
    threads: int  # CPU threads this index may use
    inputs: Mapping[str, Sequence[Source]]  # replicated inputs: "worker.n_shots" -> sources
    emit: EmitEvent  # emit(event_type, level, message, payload): an event of the job
    stopping: threading.Event  # set when the index must leave: finish or drop what is in hand
    # once(name, make): bytes that the whole job shares and that are costly to make (a fitted encoder). The first index
    # to ask makes and stores them; what is stored counts for all others, and for every later attempt.
    once: Callable[[str, Make], bytes] = _made_anew
    rank: int = 0  # of this index among those that do each step of a training together
    ranks: int = 1

    def warn(self, event_type: str, message: str, **payload: Any) -> None:
        """Tell the job's owner something, as a WARN event. Said once per job, whichever index says it."""
        self.emit(event_type, "WARN", message, payload)


class Worker:
    """Base of all workers. `context` is set before `setup` is called."""

    context: Context
    batch_size: int = 1024  # tasks per `compute` call; halved by JOS when the GPU runs out of memory
    port: str = "worker.results"  # output port that `write` fills
    progress_kind: str = "inference"

    def setup(self) -> None:
        """Load models and reference data. Raise JobImpossible when no attempt could ever succeed."""

    def plan(self, source: Source) -> Plan:
        """Cut an input. Raise InputInvalid when it cannot be processed at all: it alone fails."""
        raise NotImplementedError

    def read(self, source: Source, span: Span) -> Any:
        """The span's tasks as something that slices: data[i:j] = the i-th to j-th task of the span."""
        raise NotImplementedError

    def compute(self, batch: Any) -> Any:
        """One model call. An exception fails the span, which is tried again and then cut in half until the
        task at fault stands alone."""
        raise NotImplementedError

    def write(self, source: Source, span: Span, data: Any, results: list[Any]) -> Output:
        """The bytes of the span's tasks; `results` holds what `compute` returned, batch after batch."""
        raise NotImplementedError

    def where(self, source: Source, task: int) -> str:
        """A task as people find it in the input, for messages."""
        return f"{source.filename} task {task}"

    def failed(self, source: Source, span: Span, message: str) -> bytes:
        """Bytes to stand in the output for tasks that failed for good (default: none). Must not touch them."""
        return b""


class Trainer(Worker):
    """A worker that trains a model, in two stages.

    1. Preparation, only of inputs on scatter ports, over all indexes: `plan`, `read`, `compute`, `write` as in any
       worker. With `Plan.output_name` the bytes are kept in the job's storage, where only the trainer sees them.
    2. Steps: `begin` with all that was prepared, then a task is a step. Steps run in order on one index; after each
       span the state is saved and committed, and after any death the next index goes on from the last committed
       state, to the same weights.

    A plan of steps with `group` > 1 asks for several indexes that do each step together, as far as the job has them.
    Each then has a trainer of its own in the same state, `torch.distributed` is set up between them (gloo, or nccl on
    GPUs), and `context.rank` and `context.ranks` say which share of a step is whose. All of them must say the same in
    `finished`; only rank 0 is asked to `save` and for a `checkpoint`.
    """

    progress_kind = "training"
    port = ""
    finished = False  # set it in `step` to stop early: the steps that are left count as done

    def begin(self, prepared: Sequence[Prepared]) -> None:
        """Load what the first stage made, before `steps` or any step. In the order of the job's inputs; those that
        could not be planned are missing. Raise JobImpossible where no model can come of it."""

    def steps(self) -> Plan:
        """The whole training as one plan, e.g. Plan(bounds=cut(1000, 50))."""
        raise NotImplementedError

    def step(self, number: int) -> Mapping[str, float]:
        """Do step `number` (0-based) on the present state; returns metrics for the progress entry."""
        raise NotImplementedError

    def save(self) -> bytes:
        """The state after the last step: everything that the next step depends on (model, optimiser, random
        generators)."""
        raise NotImplementedError

    def load(self, state: bytes) -> None:
        """Go back to a saved state. Never called before the first step of a fresh job: `setup` and `begin` leave the
        initial state."""
        raise NotImplementedError

    def checkpoint(self) -> bytes | None:
        """Asked after each span: a model as other jobs can use it, if there is one worth keeping since the last call;
        it becomes the checkpoint `step_N` with the span's metrics. Without any, the last state is the checkpoint."""
        return None
