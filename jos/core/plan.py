"""How one input was cut: the content of `plan/` objects, and the work items made from it.

May import: stdlib, jos.core. Tests: tests/unit/test_dispatch.py.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jos.core.ledger import STEPS, InputLedger
from jos.core.model import JobInput

RETRY_GROUPS = 10_000_000  # plans made after the n-th retry are numbered from n times this
SINGLE_GROUPS = 5_000_000  # and those of inputs planned alone from here on
_SHORTENED = 16  # leading letters of a uid that may go: what is left of it is random, and names nothing else


@dataclass(frozen=True, slots=True)
class InputPlan:
    """Same input and configuration → same plan, on any machine; written once and read by every attempt."""

    input: int  # ordinal in JobSpec.inputs, or ledger.STEPS
    bounds: list[int]
    hints: list[Any] = field(default_factory=list)
    part_tasks: int | None = None
    output_name: str | None = None
    header: bytes = b""
    port: str = ""
    message: str = ""
    error: str | None = None  # the input cannot be processed; it has no tasks
    group: int = 1  # of a training's steps: how many indexes should do each of them together

    @property
    def tasks(self) -> int:
        return self.bounds[-1]

    @property
    def parts(self) -> int:
        if self.output_name is None or self.tasks == 0:
            return 0
        return 1 if self.part_tasks is None else -(-self.tasks // self.part_tasks)

    def part_range(self, part: int) -> tuple[int, int]:
        if self.part_tasks is None:
            return 0, self.tasks
        return part * self.part_tasks, min((part + 1) * self.part_tasks, self.tasks)

    def part_of(self, task: int) -> int:
        return 0 if self.part_tasks is None else task // self.part_tasks

    def to_json(self) -> dict[str, Any]:
        return {
            "input": self.input,
            "bounds": self.bounds,
            "hints": self.hints,
            "part_tasks": self.part_tasks,
            "output_name": self.output_name,
            "header": b64encode(self.header).decode(),
            "port": self.port,
            "message": self.message,
            "error": self.error,
            "group": self.group,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> InputPlan:
        return cls(**{**data, "header": b64decode(data["header"])})


@dataclass(frozen=True, slots=True)
class SpanWork:
    """Tasks [start, end) of an input, to be done by an index."""

    input: int
    start: int
    end: int
    part: int = 0
    hint: Any = None
    hint_start: int = 0
    hint_end: int = 0
    header: bytes = b""  # of the output part that these tasks begin; empty for all others
    output: bool = False  # whether the bytes that the worker writes are kept
    bury: str | None = None  # do not touch the tasks: record them as failed with this message
    state: str | None = None  # a trainer's state blob to load unless the index already stands at `start`
    last: int = 0  # of a training's steps: how many there are in all, should it stop early

    @property
    def key(self) -> tuple[int, int, int]:
        return self.input, self.start, self.end

    def part_of(self, start: int, end: int) -> SpanWork:
        """The same work for a smaller range; the hint stays that of the planned span."""
        return replace(self, start=start, end=end, header=self.header if start == self.start else b"")


@dataclass(frozen=True, slots=True)
class PlanWork:
    """Cut these inputs (ordinals) and write `plan/{group}.json`."""

    group: int
    inputs: tuple[int, ...]
    bury: str | None = None  # do not touch the inputs: plan them as failed with this message

    def singly(self) -> list[PlanWork]:
        """The same inputs, each in a group of its own (with numbers of their own, above all ordinary ones)."""
        era = self.group - self.group % RETRY_GROUPS
        return [PlanWork(era + SINGLE_GROUPS + ordinal, (ordinal,)) for ordinal in self.inputs]


Work = SpanWork | PlanWork


def remaining(plan: InputPlan, ledger: InputLedger) -> Iterator[SpanWork]:
    """spans(plan) - commits(ledger): what is left to do of one input, in order."""
    for at in range(len(plan.bounds) - 1):
        lo, hi = plan.bounds[at], plan.bounds[at + 1]
        if ledger.done.covers(lo, hi):
            continue
        hint = plan.hints[at] if plan.hints else None
        for start, end in list(ledger.done.missing(lo, hi)):
            part = plan.part_of(start)
            header = plan.header if start == plan.part_range(part)[0] else b""
            work = SpanWork(plan.input, start, end, part, hint, lo, hi, header, output=plan.output_name is not None)
            yield replace(work, last=plan.tasks) if plan.input == STEPS else work


def ready_parts(plan: InputPlan, ledger: InputLedger, start: int, end: int) -> list[int]:
    """Output parts touching tasks [start, end) whose tasks are all committed and that are not yet finished."""
    if plan.output_name is None or start >= end:
        return []
    parts = range(plan.part_of(start), plan.part_of(end - 1) + 1)
    return [p for p in parts if p not in ledger.finished and ledger.done.covers(*plan.part_range(p))]


def uids_for_names(inputs: Sequence[JobInput]) -> list[str]:
    """What {file_uid} stands for in the names of each input's outputs: different for all, of letters and digits.

    Clients look for a name that holds the file's uid or a piece of it. So the first input of a file has the uid without
    its prefix, each further one a letter less; without a uid it is the input's own.
    """
    seen: dict[str, int] = {}
    names = []
    for one in inputs:
        uid = (one.file_uid or "").rpartition("_")[2]
        times = seen[uid] = seen.get(uid, -1) + 1
        own = one.id.rpartition("_")[2]
        names.append(uid[times:] if uid and times <= _SHORTENED else own)
    return names


def plan_groups(sizes: list[tuple[int, int]], most: int = 64, most_bytes: int = 256 << 20) -> list[PlanWork]:
    """Inputs (ordinal, bytes) gathered so that neither 10,000 small files nor one huge file makes a bad group."""
    groups: list[PlanWork] = []
    now: list[int] = []
    weight = 0
    for ordinal, num_bytes in sizes:
        if now and (len(now) == most or weight + num_bytes > most_bytes):
            groups.append(PlanWork(len(groups), tuple(now)))
            now, weight = [], 0
        now.append(ordinal)
        weight += num_bytes
    if now:
        groups.append(PlanWork(len(groups), tuple(now)))
    return groups
