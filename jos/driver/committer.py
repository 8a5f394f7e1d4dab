"""The driver's pen: gathers commits into numbered log entries, and puts output parts together.

Commits that arrive while an entry is being written go into the next one, so a slow store gets fewer, larger
entries. An output part made of one span is the span's own object; of several, they are concatenated once all are
committed, and the concatenation is itself a fact in the log.
May import: jos.core, jos.storage. Tests: tests/integration/test_driver.py, tests/unit/test_committer.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import PurePosixPath

import structlog

from jos.core.dispatch import STORAGE_BACKOFF
from jos.core.errors import JosError, StorageUnavailable
from jos.core.ledger import STEPS, Blob, Commit, Entry, Finished
from jos.core.model import JobSpec, utc
from jos.core.plan import InputPlan, ready_parts, uids_for_names
from jos.storage.base import Storage
from jos.storage.log import CommitLog

LINGER = 0.1  # seconds between entries: a busy job writes ten a second
ENOUGH = 128  # commits that are not kept waiting for it: many tiny spans would meet the brain's back-pressure
ASSEMBLERS = 2
LONGEST_NAME = 255  # bytes of a file's name, wherever the outputs are saved; an input's name alone may have as many
READ_AHEAD = 8  # bodies of a part, each of one span

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
        self.uids = uids_for_names(spec.inputs)
        self.commits: list[Commit] = []
        self.finished: list[tuple[Finished, list[str]]] = []  # and the bodies that it makes superfluous
        self.wake = asyncio.Event()
        self.enough = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.error: JosError | None = None
        self.broken = asyncio.Event()  # set with `error`: nothing more will be written
        self.hurried = False  # the end is near: do not linger
        self.assembling: set[tuple[int, int]] = set()
        self.slots = asyncio.Semaphore(ASSEMBLERS)
        self.tasks: set[asyncio.Task[None]] = set()
        self.leaving = False  # commits only: parts are put together by the next attempt

    def put(self, commits: tuple[Commit, ...]) -> None:
        self.commits.extend(commits)
        if len(self.commits) >= ENOUGH:
            self.enough.set()
        self._nudge()

    def hurry(self, near_end: bool) -> None:
        """Near the end nothing is gained by letting commits gather, and everybody waits for them."""
        self.hurried = near_end
        if near_end:
            self.enough.set()

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
                if not (self.commits or self.finished) and (self.leaving or not self.assembling):
                    self.idle.set()
                await self.wake.wait()
                self.wake.clear()
                await self._linger(last + LINGER - time.monotonic())
                if self.commits or self.finished:
                    last = time.monotonic()
                    await self._write()
        except Exception as error:
            self._break(error)

    async def _linger(self, seconds: float) -> None:
        """Lets commits gather, until there are enough or the end is near."""
        if seconds > 0 and not self.hurried:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.enough.wait()
        self.enough.clear()

    def _break(self, error: Exception) -> None:
        """Nothing more will be written by this attempt; what is in the log stays."""
        if not isinstance(error, JosError):
            log.exception("the committer failed", exc_info=error)
            error = JosError(f"{type(error).__name__}: {error}")
        self.error = error
        self.broken.set()
        self.failed(error)

    async def _write(self) -> None:
        commits, self.commits = tuple(self.commits), []
        assembled, self.finished = self.finished, []
        now = utc(datetime.now(UTC))
        whole = [self._whole(c, now) for c in commits]
        finished = (*(f for f, _ in assembled), *(f for f in whole if f is not None))
        entry = await self._append(now, commits, finished)
        garbage = [key for one, keys in assembled if not self._keeps(one) for key in keys]
        if any(c.state for c in commits):
            garbage += self._old_states(commits)
        self.log.ledger.apply(entry)  # here and not in the thread: the rest of the driver reads it meanwhile
        for one in finished:
            self.assembling.discard((one.input, one.part))
        for commit in commits:
            if (plan := self.plans.get(commit.input)) is not None:
                self.assemble_ready(plan, commit.start, commit.end)
        await self.committed(entry)
        if garbage:
            self._spawn(self._delete(garbage))

    async def _append(self, now: str, commits: tuple[Commit, ...], finished: tuple[Finished, ...]) -> Entry:
        """The entry, durable. A store that is away for a moment is tried again, with the very same entry."""
        for pause in (*STORAGE_BACKOFF, None):
            try:
                return await asyncio.to_thread(self.log.append, self.attempt, now, commits, finished, fold=False)
            except StorageUnavailable as error:
                if pause is None:
                    raise
                log.warning("the commit log cannot be written; trying again", error=str(error), seconds=pause)
                await asyncio.sleep(pause)
        raise AssertionError("the loop above returns or raises")

    def _keeps(self, finished: Finished) -> bool:
        return self.log.ledger.of(finished.input).keeps(finished.part)

    def _old_states(self, commits: tuple[Commit, ...]) -> list[str]:
        """A trainer's states that the latest one replaces; only that is ever loaded again."""
        former = self.log.ledger.of(STEPS).state
        states = [c.state.key for c in (former, *sorted(commits, key=lambda c: c.end)) if c and c.state]
        return states[:-1]

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
        uid = self.uids[plan.input]
        name = functools.partial(plan.output_name.format, input_id=source.id, file_uid=uid, part=part)
        spare = LONGEST_NAME - len(name(stem="").encode())
        return name(stem=stem.encode()[: max(spare, 0)].decode(errors="ignore")).replace("/", "_")

    def assemble_ready(self, plan: InputPlan, start: int, end: int) -> None:
        if self.leaving:
            return
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
                start, end = plan.part_range(part)
                now = utc(datetime.now(UTC))
                one = Finished(plan.input, part, self.filename(plan, part), blob, end - start, now)
            except Exception as error:
                self._break(error)
                return
        self.finished.append((one, keys))  # the bodies go only once this is in the log
        self._nudge()

    def _concatenate(self, name: str, keys: list[str]) -> Blob:
        digest, size = hashlib.sha256(), 0

        def chunks() -> Iterator[bytes]:
            nonlocal size
            with ThreadPoolExecutor(READ_AHEAD) as pool:
                for at in range(0, len(keys), READ_AHEAD):  # a store's round trips side by side
                    for data in pool.map(lambda key: self.storage.read(self.folder + key), keys[at : at + READ_AHEAD]):
                        digest.update(data)
                        size += len(data)
                        yield data

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

    async def settle(self, *, parts: bool) -> None:
        """Waits until everything that was put is durable and, with `parts`, every complete part put together."""
        self.leaving = not parts
        self.hurry(True)
        self.wake.set()
        await self.idle.wait()
        if self.tasks and parts:
            await asyncio.gather(*self.tasks)
