"""The first half of `jos.verify`: the plans and the commit log of one job, read to the end whatever is wrong with them.

Changes nothing. May import: jos.core, jos.storage. Tests: tests/integration/test_verify.py.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from pydantic import ValidationError

from jos.core import standing
from jos.core.errors import NotFound
from jos.core.ledger import MAX_FAILURES, STEPS, Commit, Entry, Finished, Ledger
from jos.core.model import JobSpec, job_folder
from jos.core.plan import InputPlan
from jos.core.standing import Claim
from jos.storage.base import Storage
from jos.storage.log import SEGMENT

AT_ONCE = 8  # objects being read at one time

Progress = Callable[[str, int, int], None]  # what is looked at, how many are done, of how many


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `entry`: the log entry that is, or that names the object."""

    key: str
    what: str
    entry: int | None = None

    def __str__(self) -> str:
        named = "" if self.entry is None else f" (log entry {self.entry})"
        return f"{self.key}{named}: {self.what}"


@dataclass
class Report:
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth knowing, nothing wrong
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {number:,}" for name, number in self.counts.items())
        lines = [f"PROBLEM  {problem}" for problem in self.problems] + [f"note     {note}" for note in self.notes]
        return "\n".join([*lines, f"{'whole' if self.ok else f'{len(self.problems)} problems'}: {counts}"])


class LogCheck:
    """`request`, `plan`, `log`, in this order; then `spec`, `plans`, `ledger`, `claims` and `named` hold what could be
    read, and `grown` reads what came since."""

    def __init__(self, storage: Storage, org_id: str, job_id: str, progress: Progress) -> None:
        self.storage, self.folder, self.org_id, self.job_id = storage, job_folder(org_id, job_id), org_id, job_id
        self.progress = progress
        self.report = Report()
        self.spec: JobSpec | None = None
        self.stored: dict[int, list[dict[str, Any]]] = {}
        self.plans: dict[int, InputPlan] = {}
        self.ledger = Ledger()
        self.claims: list[Claim] = []
        self.named: dict[str, int] = {}  # object -> the entry that named it last
        self.due = 0  # the next entry

    def problem(self, key: str, what: str, entry: int | None = None) -> None:
        self.report.problems.append(Problem(self.folder + key, what, entry))

    def read(self, key: str) -> bytes | None:
        try:
            return self.storage.read(self.folder + key)
        except NotFound:
            return None

    # --- job.json and plan/

    def request(self) -> None:
        data = self.read("job.json")
        if data is None:
            self.problem("job.json", "is missing")
            return
        try:
            self.spec = JobSpec.stored(data)
        except ValidationError as error:
            self.problem("job.json", f"cannot be read: {error.errors()[0]['msg']}")
            return
        if (self.spec.org_id, self.spec.id) != (self.org_id, self.job_id):
            self.problem("job.json", f"is that of {self.spec.org_id}/{self.spec.id}")

    def plan(self) -> None:
        for stat in self.storage.list(f"{self.folder}plan/"):
            key = stat.key.removeprefix(self.folder)
            try:
                content = orjson.loads(self.read(key) or b"")
                for plan in map(InputPlan.from_json, content):
                    self._check_plan(key, plan)
                self.stored[int(key.removeprefix("plan/").partition(".")[0])] = content
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self.problem(key, f"cannot be used: {error!r}")
        self.report.counts["plan groups"] = len(self.stored)

    def _check_plan(self, key: str, plan: InputPlan) -> None:
        bounds = plan.bounds
        if not bounds or bounds[0] != 0 or any(a >= b for a, b in itertools.pairwise(bounds)):
            self.problem(key, f"the bounds of input {plan.input} do not begin at 0 and grow")
        if self.spec is not None and not (plan.input == STEPS or 0 <= plan.input < len(self.spec.inputs)):
            self.problem(key, f"plans an input {plan.input} that the job does not have")

    # --- log/

    def log(self) -> None:
        self.plans = standing.plans_of(self.stored, 0)  # every plan that ever counted; after the log, those that do
        there, segments = set(self._numbers()), self._segments()
        copied = {number for first in segments for number in range(first, first + SEGMENT)}
        numbers = sorted(there | copied)
        window: list[tuple[int, bytes]] = []
        copies: list[bytes] | None = None
        segment = -1
        for at, (number, data) in enumerate(self._entries(numbers, there)):
            if number // SEGMENT != segment:
                segment, window = number // SEGMENT, []
                copies = self._copies(segment * SEGMENT, segments)
            if number > self.due:
                self._missing(self.due, number - 1)
            self.due = number + 1
            if data is None:
                read = "" if copies is None else ", but its copy in the segment could be read"
                self.problem(_entry(number), f"is missing{read}", number)
                data = copies[number % SEGMENT] if copies is not None else None
            elif copies is not None:
                window.append((number, data))
            if data is not None:
                self._fold(number, data)
            if copies is not None and self.due % SEGMENT == 0:
                self._compare(window, copies)
            self.progress("log", at + 1, len(numbers))
        for first in sorted(set(range(0, self.due - self.due % SEGMENT, SEGMENT)) - segments):
            self.report.notes.append(f"{self.folder}{_segment(first)} is not there: opening the log makes it again")
        self.plans = standing.plans_of(self.stored, self.ledger.era)
        counts = {"log entries": len(numbers), "attempts": len(self.claims), "commits": self.ledger.commits}
        self.report.counts |= counts | {"tasks": self.ledger.tasks_done, "failed": self.ledger.tasks_failed}

    def grown(self) -> bool:
        """Reads entries that were written since the log was read; whether there were any."""
        before = self.due
        while (data := self.read(_entry(self.due))) is not None:
            self._fold(self.due, data)
            self.due += 1
        return self.due > before

    def _missing(self, first: int, last: int) -> None:
        rest = f", and so are all up to {last}" if last > first else ""
        self.problem(_entry(first), f"is missing, while later ones are there{rest}", first)

    def _numbers(self) -> list[int]:
        prefix, numbers = f"{self.folder}log/", []
        for stat in self.storage.list(prefix):
            name = stat.key.removeprefix(prefix)
            if name.startswith("segments/"):
                break  # after the entries, which begin with digits
            if name.removesuffix(".json").isdecimal():
                numbers.append(int(name.removesuffix(".json")))
            else:
                self.report.notes.append(f"{stat.key} is no log entry")
        return numbers

    def _segments(self) -> set[int]:
        prefix = f"{self.folder}log/segments/"
        firsts = set()
        for stat in self.storage.list(prefix):
            name = stat.key.removeprefix(prefix).removesuffix(".json")
            if name.isdecimal() and int(name) % SEGMENT == 0:
                firsts.add(int(name))
            else:
                self.problem(stat.key.removeprefix(self.folder), "is no segment of the log")
        return firsts

    def _entries(self, numbers: Iterable[int], there: set[int]) -> Iterator[tuple[int, bytes | None]]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting: deque[tuple[int, Future[bytes | None] | None]] = deque()
            for number in numbers:
                waiting.append((number, pool.submit(self.read, _entry(number)) if number in there else None))
                if len(waiting) > 2 * AT_ONCE:
                    at, reading = waiting.popleft()
                    yield at, reading.result() if reading else None
            for at, reading in waiting:
                yield at, reading.result() if reading else None

    def _copies(self, first: int, segments: set[int]) -> list[bytes] | None:
        if first not in segments:
            return None
        lines = (self.read(_segment(first)) or b"").splitlines()
        if len(lines) != SEGMENT:
            self.problem(
                _segment(first), f"holds {len(lines)} entries instead of {SEGMENT}; delete it, it is made again"
            )
            return None
        return lines

    def _compare(self, window: list[tuple[int, bytes]], copies: list[bytes]) -> None:
        for number, data in window:
            if data != copies[number % SEGMENT]:
                self.problem(_segment(number - number % SEGMENT), "differs from the entry", number)

    def _fold(self, number: int, data: bytes) -> None:
        key = _entry(number)
        try:
            entry = Entry.from_json(orjson.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.problem(key, f"cannot be used: {error!r}", number)
            return
        if entry.number != number:
            self.problem(key, f"says that it is entry {entry.number}", number)
        self._check_claim(number, entry)
        commits = [c for c in entry.commits if self._check_commit(number, entry, c)]
        once = self._once(number, commits, entry.finished)
        self.ledger.next_number = number  # reads on after a gap
        self.ledger.apply(Entry(number, entry.attempt, entry.at, once[0], once[1], entry.retry))
        for finished in once[1]:
            self._check_finished(number, finished)
        blobs = [b for c in entry.commits for b in (c.body, c.state, c.model) if b] + [f.blob for f in entry.finished]
        self.named.update((blob.key, number) for blob in blobs)

    def _check_claim(self, number: int, entry: Entry) -> None:
        if self.claims and self.claims[-1].token == entry.attempt:
            return
        if any(claim.token == entry.attempt for claim in self.claims):
            self.problem(_entry(number), f"was written by attempt {entry.attempt} after another had taken over", number)
        elif entry.commits or entry.finished:
            self.problem(_entry(number), f"attempt {entry.attempt} begins with work instead of its claim", number)
        self.claims.append(Claim(entry.attempt, datetime.fromisoformat(entry.at)))

    def _check_commit(self, number: int, entry: Entry, commit: Commit) -> bool:
        """Whether it can be folded."""
        what, told = f"{commit.start}..{commit.end} of input {commit.input}", len(commit.failures)
        if commit.start < 0 or commit.start >= commit.end:
            self.problem(_entry(number), f"commits an empty range {what}", number)
            return False
        if commit.failed > commit.end - commit.start or told != min(commit.failed, MAX_FAILURES):
            self.problem(_entry(number), f"{what}: {commit.failed} tasks failed and {told} messages", number)
        if any(not commit.start <= task < commit.end for task, _ in commit.failures):
            self.problem(_entry(number), f"{what}: a failure is of none of its tasks", number)
        plan = self.plans.get(commit.input)
        if plan is None:
            self.problem(_entry(number), f"commits {what}, which has no plan", number)
        elif commit.end > plan.tasks or commit.part != plan.part_of(commit.start):
            self.problem(_entry(number), f"commits {what}, part {commit.part}, against its plan", number)
        return True

    def _once(
        self, number: int, commits: Sequence[Commit], finished: Sequence[Finished]
    ) -> tuple[tuple[Commit, ...], tuple[Finished, ...]]:
        """What of an entry had not been in the log before; the rest is a problem and left out."""
        good: list[Commit] = []
        for commit in commits:
            before = self.ledger.inputs.get(commit.input)
            twice = before is not None and before.done.overlaps(commit.start, commit.end)
            twice = twice or any(
                c.input == commit.input and c.start < commit.end and commit.start < c.end for c in good
            )
            if twice:
                what = f"commits {commit.start}..{commit.end} of input {commit.input} a second time"
                self.problem(_entry(number), what, number)
            else:
                good.append(commit)
        new: dict[tuple[int, int], Finished] = {}
        for one in finished:
            if one.part in self.ledger.of(one.input).finished or (one.input, one.part) in new:
                what = f"finishes part {one.part} of input {one.input} a second time"
                self.problem(_entry(number), what, number)
            else:
                new[one.input, one.part] = one
        return tuple(good), tuple(new.values())

    def _check_finished(self, number: int, one: Finished) -> None:
        plan = self.plans.get(one.input)
        if plan is None or one.part >= plan.parts:
            self.problem(_entry(number), f"finishes part {one.part} of input {one.input} against its plan", number)
            return
        start, end = plan.part_range(one.part)
        if one.tasks != end - start:
            self.problem(_entry(number), f"{one.filename} is said to hold {one.tasks} of {end - start} tasks", number)
        for low, high in self.ledger.of(one.input).done.missing(start, end):
            self.problem(_entry(number), f"{one.filename} was put together without tasks {low}..{high}", number)


def _entry(number: int) -> str:
    return f"log/{number:020d}.json"


def _segment(first: int) -> str:
    return f"log/segments/{first:020d}.json"
