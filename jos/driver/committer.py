"""The driver's pen: gathers commits into numbered log entries, and puts output parts together.

Commits that arrive while an entry is being written go into the next one, so a slow store gets fewer, larger
entries. An output part made of one span is the span's own object; of several, they are concatenated once all are
committed, and the concatenation is itself a fact in the log.
May import: jos.core, jos.storage. Tests: tests/integration/test_driver.py, tests/unit/test_committer.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath

import structlog

from jos.core.errors import JosError
from jos.core.ledger import Blob, Commit, Entry, Finished
from jos.core.model import JobSpec, utc
from jos.core.plan import InputPlan, ready_parts
from jos.storage.base import Storage
from jos.storage.log import CommitLog

LINGER = 0.1  # seconds between entries: a busy job writes ten a second
ASSEMBLERS = 2
CHUNK = 8 << 20

log = structlog.get_logger()


class Committer:
    """`put` takes commits; `committed` is called with each durable entry. `idle` is set when all is on disk and
    every complete part is put together."""

    def __init__(
        self,
        spec: JobSpec,
        storage: Storage,
        commit_log: CommitLog,
        attempt: str,
        plans: Mapping[int, InputPlan],
        committed: Callable[[Entry], Awaitable[None]],
        failed: Callable[[JosError], None],
    ) -> None:
        self.spec, self.storage, self.log, self.attempt, self.plans = spec, storage, commit_log, attempt, plans
        self.committed, self.failed = committed, failed
        self.folder = commit_log.prefix
        self.commits: list[Commit] = []
        self.finished: list[Finished] = []
        self.wake = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.error: JosError | None = None
        self.broken = asyncio.Event()  # set with `error`: nothing more will be written
        self.hurry = False  # the end is near: do not linger
        self.assembling: set[tuple[int, int]] = set()
        self.slots = asyncio.Semaphore(ASSEMBLERS)
        self.tasks: set[asyncio.Task[None]] = set()
        self.garbage: list[str] = []  # bodies of parts that are in the log as put together

    def put(self, commits: tuple[Commit, ...]) -> None:
        self.commits.extend(commits)
        self._nudge()

    def _nudge(self) -> None:
        self.idle.clear()
        self.wake.set()

    def resume(self) -> None:
        """Parts whose commits an earlier attempt made, but that it did not live to put together."""
        for plan in self.plans.values():
            self.assemble_ready(plan, 0, plan.tasks)

    async def run(self) -> None:
        """Until cancelled. Reports the first error of storage, or a lost fence, and ends."""
        try:
            last = 0.0
            while True:
                if not (self.commits or self.finished or self.assembling):
                    self.idle.set()
                await self.wake.wait()
                self.wake.clear()
                if not self.hurry:
                    await asyncio.sleep(max(0.0, last + LINGER - time.monotonic()))
                if self.commits or self.finished:
                    last = time.monotonic()
                    await self._write()
        except JosError as error:
            self._break(error)

    def _break(self, error: JosError) -> None:
        self.error = error
        self.broken.set()
        self.failed(error)

    async def _write(self) -> None:
        commits, self.commits = tuple(self.commits), []
        finished, self.finished = self.finished, []
        now = utc(datetime.now(UTC))
        whole = [self._whole(c, now) for c in commits]
        finished.extend(f for f in whole if f is not None)
        entry = await asyncio.to_thread(self.log.append, self.attempt, now, commits, tuple(finished))
        for one in finished:
            self.assembling.discard((one.input, one.part))
        for commit in commits:
            if (plan := self.plans.get(commit.input)) is not None:
                self.assemble_ready(plan, commit.start, commit.end)
        await self.committed(entry)
        if self.garbage:
            garbage, self.garbage = self.garbage, []
            self._spawn(self._delete(garbage))

    def _whole(self, commit: Commit, now: str) -> Finished | None:
        """An output part that is just one span needs no putting together: both facts go in one entry."""
        plan = self.plans.get(commit.input)
        if plan is None or plan.output_name is None or commit.body is None:
            return None
        if (commit.start, commit.end) != plan.part_range(commit.part):
            return None
        return Finished(
            commit.input, commit.part, self.filename(plan, commit.part), commit.body, commit.end - commit.start, now
        )

    def filename(self, plan: InputPlan, part: int) -> str:
        assert plan.output_name is not None
        source = self.spec.inputs[plan.input]
        stem = PurePosixPath(source.filename).stem
        return plan.output_name.format(input_id=source.id, stem=stem, part=part).replace("/", "_")

    def assemble_ready(self, plan: InputPlan, start: int, end: int) -> None:
        ledger = self.log.ledger.of(plan.input)
        for part in ready_parts(plan, ledger, start, end):
            if (plan.input, part) not in self.assembling:
                self.assembling.add((plan.input, part))
                self.idle.clear()
                bodies = sorted(ledger.bodies.get(part, []), key=lambda c: c.start)
                self._spawn(self._assemble(plan, part, [c.body.key for c in bodies if c.body is not None]))

    async def _assemble(self, plan: InputPlan, part: int, keys: list[str]) -> None:
        async with self.slots:
            try:
                name = f"outputs/{self.attempt}/{plan.input:06d}-{part:06d}"
                blob = await asyncio.to_thread(self._concatenate, name, keys)
            except JosError as error:
                self._break(error)
                return
        start, end = plan.part_range(part)
        now = utc(datetime.now(UTC))
        self.finished.append(Finished(plan.input, part, self.filename(plan, part), blob, end - start, now))
        if not self.log.ledger.of(plan.input).keeps(part):
            self.garbage.extend(keys)
        self._nudge()

    def _concatenate(self, name: str, keys: list[str]) -> Blob:
        digest, size = hashlib.sha256(), 0

        def chunks() -> Iterator[bytes]:
            nonlocal size
            for key in keys:
                at = 0
                while data := self.storage.read(self.folder + key, at, at + CHUNK):
                    digest.update(data)
                    at += len(data)
                    size += len(data)
                    yield data
                    if len(data) < CHUNK:
                        break

        self.storage.write(self.folder + name, chunks())
        return Blob(name, size, digest.hexdigest())

    async def _delete(self, keys: list[str]) -> None:
        """Only what the log no longer needs; if it fails, some space is lost and nothing else."""
        try:
            await asyncio.to_thread(self.storage.delete, [self.folder + k for k in keys])
        except JosError as error:
            log.warning("superseded parts were not deleted", error=str(error), parts=len(keys))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def settle(self) -> None:
        """Waits until everything that was put is durable and every complete part is put together."""
        self.hurry = True
        self.wake.set()
        await self.idle.wait()
        if self.tasks:
            await asyncio.gather(*self.tasks)
