"""The commit log's content: what entries say, and what all of them together mean.

Pure. The I/O is in jos/storage/log.py. A `Ledger` is a fold over entries, so a first run (no entries) and a resume
are the same code: what is left to do = spans(plan) - ledger.
May import: stdlib, jos.core.spans. Tests: tests/unit/test_ledger.py.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from jos.core.spans import Ranges

STEPS = -1  # the ordinal that stands for a training job's steps, which belong to no input file
MAX_FAILURES = 20  # messages kept per commit; the count is exact all the same


@dataclass(frozen=True, slots=True)
class Blob:
    key: str  # relative to the job's folder
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Commit:
    """The durable fact that tasks [start, end) of an input are done."""

    input: int  # ordinal in JobSpec.inputs, or STEPS
    start: int
    end: int
    part: int = 0  # output part of the input
    index: int = 0
    failed: int = 0  # tasks among them that failed for good
    failures: tuple[tuple[int, str], ...] = ()  # (task, message), the first MAX_FAILURES
    body: Blob | None = None  # this span's piece of the output part, without header; None = no bytes
    state: Blob | None = None  # a trainer's state after `end` steps
    model: Blob | None = None  # a checkpoint that other jobs can use, made with these steps
    stopped: int | None = None  # a training stopped early after so many steps; those up to `end` are not needed
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Of a training: how many steps were really done by then."""
        return self.end if self.stopped is None else self.stopped


@dataclass(frozen=True, slots=True)
class Finished:
    """An output part put together from the bodies of its commits; once this is in the log they may go."""

    input: int
    part: int
    filename: str
    blob: Blob
    tasks: int
    at: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One numbered object of the log. The first of each attempt is empty: it claims the log."""

    number: int
    attempt: str  # token
    at: str  # RFC 3339
    commits: tuple[Commit, ...] = ()
    finished: tuple[Finished, ...] = ()
    retry: int = 0  # in a claim: the job's retry_count; more than before opens all failed tasks again

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Entry:
        return cls(
            number=data["number"],
            attempt=data["attempt"],
            at=data["at"],
            commits=tuple(_commit(c) for c in data["commits"]),
            finished=tuple(Finished(**{**f, "blob": Blob(**f["blob"])}) for f in data["finished"]),
            retry=data.get("retry", 0),
        )


def _commit(data: dict[str, Any]) -> Commit:
    body, state, model = data["body"], data["state"], data.get("model")
    if None in data["metrics"].values():  # JSON has no NaN: a diverged loss comes back as null
        data = {**data, "metrics": {k: math.nan if v is None else v for k, v in data["metrics"].items()}}
    return Commit(
        **{
            **data,
            "failures": tuple((t, m) for t, m in data["failures"]),
            "body": Blob(**body) if body else None,
            "state": Blob(**state) if state else None,
            "model": Blob(**model) if model else None,
        }
    )


@dataclass
class InputLedger:
    """What is committed of one input."""

    done: Ranges = field(default_factory=Ranges)
    failed: int = 0
    first_failure: tuple[int, str] | None = None  # of the lowest task, whatever order they came in
    bodies: dict[int, list[Commit]] = field(default_factory=dict)  # part -> commits not yet put together
    finished: dict[int, Finished] = field(default_factory=dict)  # part -> output
    state: Commit | None = None  # of those that carry a state, the one after the most steps
    models: list[Commit] = field(default_factory=list)  # those that carry one, by step
    flawed: list[tuple[int, int, int, int]] = field(default_factory=list)  # start, end, part, failed of commits
    flawed_parts: set[int] = field(default_factory=set)  # that hold failed tasks: what a retry opens again
    kept: dict[int, list[Commit]] = field(default_factory=dict)  # bodies of finished parts that a retry would need

    def keeps(self, part: int) -> bool:
        """Whether a part's bodies must outlive its putting together, because a retry would mend it."""
        return part in self.flawed_parts

    def reopen(self) -> None:
        """Forgets the commits that hold failed tasks, and the outputs made of them; all others stay."""
        for start, end, _, failed in self.flawed:
            self.done.remove(start, end)
            self.failed -= failed
        gone = {(start, end) for start, end, _, _ in self.flawed}
        for part in self.flawed_parts:
            self.finished.pop(part, None)
            bodies = [*self.bodies.pop(part, []), *self.kept.pop(part, [])]
            if rest := [c for c in bodies if (c.start, c.end) not in gone]:
                self.bodies[part] = rest
        self.flawed, self.flawed_parts, self.first_failure = [], set(), None


class Ledger:
    """The fold of a whole log. `apply` refuses an entry that commits anything twice."""

    def __init__(self) -> None:
        self.next_number = 0
        self.attempts: list[str] = []  # tokens in order of their claims
        self.inputs: dict[int, InputLedger] = {}
        self.commits = 0
        self.retry = 0  # the last retry that opened failed tasks again
        self.tasks_done = 0
        self.tasks_failed = 0

    def of(self, ordinal: int) -> InputLedger:
        return self.inputs.setdefault(ordinal, InputLedger())

    def check(self, entry: Entry) -> None:
        """Raises ValueError if the entry is out of order or repeats committed work; changes nothing."""
        if entry.number != self.next_number:
            raise ValueError(f"log entry {entry.number} where {self.next_number} was due")
        new: dict[int, Ranges] = {}
        for commit in entry.commits:
            one = self.inputs.get(commit.input)
            if one is not None and one.done.overlaps(commit.start, commit.end):
                raise ValueError(f"{commit.start}..{commit.end} of input {commit.input} was committed before")
            new.setdefault(commit.input, Ranges()).add(commit.start, commit.end)
        parts = set()
        for finished in entry.finished:
            one = self.inputs.get(finished.input)
            part = (finished.input, finished.part)
            if part in parts or (one is not None and finished.part in one.finished):
                raise ValueError(f"output part {finished.part} of input {finished.input} finished twice")
            parts.add(part)

    def apply(self, entry: Entry) -> None:
        """Raises ValueError, with nothing changed, if the entry is out of order or repeats committed work."""
        self.check(entry)
        self.next_number += 1
        if not self.attempts or self.attempts[-1] != entry.attempt:
            self.attempts.append(entry.attempt)
        if entry.retry > self.retry:
            self.retry = entry.retry
            self._reopen()
        for commit in entry.commits:
            self._commit(commit)
        for finished in entry.finished:
            one = self.of(finished.input)
            one.finished[finished.part] = finished
            bodies = one.bodies.pop(finished.part, [])
            if one.keeps(finished.part):
                one.kept[finished.part] = bodies

    @property
    def era(self) -> int:
        """The retry since which failed inputs are open again. Once steps of a training are committed, none is: what
        they were made from must not change any more."""
        return 0 if STEPS in self.inputs and len(self.inputs[STEPS].done) else self.retry

    def _reopen(self) -> None:
        if self.era == 0:
            return
        for one in self.inputs.values():
            one.reopen()
        self.tasks_done = sum(len(i.done) for i in self.inputs.values())
        self.tasks_failed = sum(i.failed for i in self.inputs.values())

    def _commit(self, commit: Commit) -> None:
        one = self.of(commit.input)
        one.done.add(commit.start, commit.end)
        one.failed += commit.failed
        self.commits += 1
        self.tasks_done += commit.end - commit.start
        self.tasks_failed += commit.failed
        if commit.failed:
            one.flawed.append((commit.start, commit.end, commit.part, commit.failed))
            one.flawed_parts.add(commit.part)
        if commit.failures:
            lowest = min(commit.failures)
            if one.first_failure is None or lowest < one.first_failure:
                one.first_failure = lowest
        if commit.body is not None:
            one.bodies.setdefault(commit.part, []).append(commit)
        if commit.state is not None and (one.state is None or commit.end > one.state.end):
            one.state = commit
        if commit.model is not None:
            one.models.append(commit)
