"""The driver: carries one attempt of one job to its end.

It opens the commit log, claims it, plans what is not yet planned, lets the brain (jos.core.dispatch) say what to do
and does it: indexes on Ray (pool), commits (committer), the world's view (mirror). A first run and a resume are the
same code.
May import: jos.core, jos.storage, jos.store, ray through cluster and pool. Tests: tests/integration/test_driver.py.
"""

from __future__ import annotations

import asyncio
import math
import os
import platform
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson
import structlog

from jos.core import standing
from jos.core.commands import Completed, Drained, Exited, Expire, Shrink, Started
from jos.core.dispatch import Dispatch, Limits
from jos.core.errors import FenceLost, JosError, NotFound, StaleAttempt, StoreUnavailable
from jos.core.ledger import STEPS, Entry
from jos.core.model import JobFailure, JobSpec, Level, Status, job_folder, utc
from jos.core.plan import RETRY_GROUPS, SINGLE_GROUPS, InputPlan, PlanWork, SpanWork
from jos.core.stimuli import (
    AllCommitted,
    Committed,
    Drain,
    GiveUp,
    Grant,
    NoRoom,
    Push,
    StartIndex,
    Stimulus,
    StopIndex,
    Tick,
    WriteCommits,
)
from jos.driver.cluster import Cluster
from jos.driver.committer import Committer
from jos.driver.messages import IndexConfig, LeaseReply, Ready
from jos.driver.mirror import Mirror
from jos.storage.base import Storage
from jos.storage.log import CommitLog
from jos.store.records import MirrorReply
from jos.store.redis import Store

log = structlog.get_logger()

NO_ROOM_SECONDS = 300.0  # that an attempt holds capacity while no node has room for any of its indexes
CANCEL_SECONDS = 3.0  # for what a cancelled job has in hand
LAST_WORD_SECONDS = 60.0  # how long the end of a job may wait for a Redis that is away


class Ending(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    DRAINED = "drained"  # asked to leave; another attempt goes on
    CANCELLED = "cancelled"
    FENCED = "fenced"  # another driver owns the job


@dataclass(frozen=True)
class Outcome:
    ending: Ending
    message: str = ""
    failure: JobFailure | None = None
    retryable: bool = False
    processes: int = 0  # of indexes, that were started on the way


class Driver:
    """One attempt. `run` returns its outcome after the last word is in the store."""

    def __init__(
        self,
        spec: JobSpec,
        token: str,
        storage: Storage,
        store: Store,
        connect: Callable[[], Cluster],
        import_paths: tuple[str, ...] = (),
        retry: int = 0,
        granted: int | None = None,
    ) -> None:
        """`granted`: how many indexes a controller allows at first; None: all, for no controller is there."""
        self.spec, self.token, self.storage, self.store, self.connect = spec, token, storage, store, connect
        self.import_paths, self.retry, self.granted = import_paths, retry, granted
        self.folder = job_folder(spec.org_id, spec.id)
        self.stimuli: asyncio.Queue[Stimulus] = asyncio.Queue()
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.plans: dict[int, InputPlan] = {}
        self.aside: set[asyncio.Task[object]] = set()  # what is told or looked at beside the work
        self.grace = spec.pipeline.timeouts.drain
        self.started = False
        self.runs_since = math.inf  # monotonic: when the first index was up
        self.draining = False
        self.returning = False  # a Shrink is on its way
        self.seen = 0  # version of the record that was last looked at for a larger grant

    # --- from the outside ---

    def drain(self, why: str, within: float = math.inf) -> None:
        """Commit what is in hand and leave (SIGTERM, cancel, preemption), after `within` seconds at the latest."""
        if self.draining or self.outcome.done():
            return
        self.draining = True
        log.info("draining", job=self.spec.id, why=why)
        self.grace = grace = min(self.grace, within)
        if hasattr(self, "pool"):
            self.pool.drain(grace / 2)
            self.stimuli.put_nowait(Drain())
            asyncio.get_running_loop().call_later(grace, self._end, Outcome(Ending.DRAINED, "out of time"))
        else:
            self._end(Outcome(Ending.DRAINED, "before any work began"))

    # --- life ---

    async def run(self) -> Outcome:
        self.began = time.monotonic()
        connecting = asyncio.get_running_loop().run_in_executor(None, self.connect)
        working: list[asyncio.Task[None]] = []  # gives out work: ends with the outcome
        telling: list[asyncio.Task[None]] = []  # pen and heartbeat: go on for what is in hand
        try:
            await self._open()
            await self.mirror.reconcile()
            telling = [self._watched(self.mirror.beat())]
            self._wire(await connecting)
            log.info("driver is up", job=self.spec.id, seconds=round(time.monotonic() - self.began, 2))
            telling.append(self._watched(self.committer.run()))
            working = [self._watched(self._brain()), self._watched(self._ticks())]
            outcome = await self.outcome
        except Exception as error:
            outcome = self._outcome_of(error)
        finally:
            for task in working:
                task.cancel()
            await asyncio.wait([connecting])  # else the next attempt would connect while this one still does
        try:
            outcome = await self._finish(outcome, bool(working))
            return replace(outcome, processes=self.pool.started) if hasattr(self, "pool") else outcome
        finally:
            for task in telling:
                task.cancel()
            if hasattr(self, "pool"):
                await self.pool.close()

    async def _open(self) -> None:
        """The log, claimed: from here on any older driver fails at its next entry."""
        self.log = await asyncio.to_thread(CommitLog.open, self.storage, self.folder)
        await asyncio.to_thread(self.log.claim, self.token, utc(datetime.now(UTC)), self.retry)
        self.plans, self.to_plan = await asyncio.to_thread(self._load_plans)
        self.mirror = Mirror(
            self.store, self.spec, self.token, self.log.ledger, self.plans, heard=self._heard, stale=self._stale
        )

    def _load_plans(self) -> tuple[dict[int, InputPlan], list[PlanWork]]:
        """The stored plans, and what is still to be planned: groups that are not there yet, and after a retry the
        inputs that could not be planned before."""
        prefix = f"{self.folder}plan/"
        groups = {int(s.key.removeprefix(prefix).partition(".")[0]): s.key for s in self.storage.list(prefix)}
        with ThreadPoolExecutor(8) as pool:
            stored = list(pool.map(lambda key: orjson.loads(self.storage.read(key)), groups.values()))
        retried = self.log.ledger.era * RETRY_GROUPS
        plans = standing.plans_of(dict(zip(groups, stored, strict=True)), self.log.ledger.era)
        untouched: list[PlanWork] = []
        again: list[int] = []
        for work in standing.planning(self.spec):
            if work.group in groups or any(o in plans for o in work.inputs):
                again.extend(o for o in work.inputs if o not in plans)
            else:
                untouched.append(work)
        first = max([retried, *(g + 1 for g in groups if g % RETRY_GROUPS < SINGLE_GROUPS)])
        return plans, [*untouched, *standing.planning_again(self.spec, again, first)]

    def _wire(self, cluster: Cluster) -> None:
        from jos.driver.pool import Pool  # imports ray, which takes a second: not while the log is being opened

        spec, pipeline = self.spec, self.spec.pipeline
        self.cluster = cluster
        self.committer = Committer(spec, self.storage, self.log, self.token, self.plans, self._committed, self._failed)
        config = IndexConfig(
            spec_json=spec.model_dump_json().encode(),
            storage_url=self.storage.url,
            folder=self.folder,
            attempt=self.token,
            index=0,
            life=0,
            device=cluster.device(pipeline.resources),
            threads=max(1, int(pipeline.resources.cpu)),
            import_paths=self.import_paths,
        )
        gpu = config.device == "cuda"
        self.pool = Pool(config, pipeline.resources, gpu, self.tell, self._ready, self._reply, impossible=self._failed)
        limits = Limits(
            task_attempts=pipeline.retry_policy.task_attempts,
            task_seconds=pipeline.timeouts.task,
            no_progress_seconds=pipeline.timeouts.no_progress,
            no_room_seconds=None if self.granted is None else NO_ROOM_SECONDS,  # without a controller nobody queues it
            training=standing.training(spec),
            # a controller grants what there is; without one, a group that never fits would wait for ever
            most_together=cluster.room(pipeline.resources) if self.granted is None else None,
        )
        self.brain = Dispatch(
            self.log.ledger, self.plans.values(), self.to_plan, spec.parallelism, limits, time.monotonic(), self.granted
        )

    def _watched(self, loop: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A loop that dies of a bug ends the attempt instead of leaving it hanging."""
        return asyncio.create_task(self._watch(loop))

    async def _watch(self, loop: Coroutine[Any, Any, None]) -> None:
        try:
            await loop
        except Exception as error:
            self._failed(error)

    # --- the loop ---

    def tell(self, stimulus: Stimulus) -> None:
        self.stimuli.put_nowait(stimulus)

    async def _brain(self) -> None:
        if misfit := self.cluster.misfit(self.spec.pipeline.resources):
            self.mirror.event("index.waiting", f"{misfit}; waiting for the cluster to grow", Level.WARN)
        self.committer.resume()
        self._obey(self.brain.start())
        while True:
            stimulus = await self.stimuli.get()
            self._obey(self.brain.handle(stimulus, time.monotonic()))
            self.committer.hurry(self.brain.nothing_left())
            self._give_back()

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.tell(Tick())
            limit = self.spec.pipeline.timeouts.run
            if limit is not None and time.monotonic() - self.runs_since > limit:
                await self._transact(Expire("run"))  # the record turns FAILED, the heartbeat sees it, we drain

    def _obey(self, instructions: list[Any]) -> None:
        for what in instructions:
            match what:
                case StartIndex():
                    self._start_index(what)
                case StopIndex():
                    self._stop_index(what)
                case Push():
                    self._note_push(what)
                    self.pool.push(what)
                case WriteCommits(commits):
                    self.committer.put(commits)
                case GiveUp(code, message, retryable):
                    self._end(Outcome(Ending.FAILED, message, JobFailure(code=code, message=message), retryable))
                case NoRoom(message):
                    text = f"{message}; the job goes back into the queue"
                    self.mirror.event("index.waiting", text, Level.WARN)
                    self._end(Outcome(Ending.DRAINED, message))
                case AllCommitted():
                    self._end(self._all_in())

    def _start_index(self, what: StartIndex) -> None:
        line = self.mirror.line(what.index)
        line.state = "starting"
        if what.why:
            line.restarts += 1
            text = f"index {what.index} was lost: {what.why}"
            self.mirror.event("index.lost", text, Level.WARN, index=what.index, payload={"life": what.life - 1})
        self.pool.start(what)

    def _stop_index(self, what: StopIndex) -> None:
        self.mirror.line(what.index).state = "stopped"
        if not what.kill:
            self.mirror.event("index.completed", f"index {what.index}: {what.reason}", index=what.index)
        self.pool.stop(what)

    def _give_back(self) -> None:
        """The capacity of indexes that were sent home, or that were granted when nothing was left for them."""
        if self.granted is None or self.returning or not self.brain.settled() or self.brain.wanted() >= self.granted:
            return
        self.returning = True
        self._aside(self._shrink(self.brain.wanted()))

    async def _shrink(self, wanted: int) -> None:
        """Until the record has heard it: nobody else would ever free what was granted."""
        if await self._transact(Shrink(self.token, wanted)):
            self.granted = wanted
        self.returning = False

    def _note_push(self, what: Push) -> None:
        self.mirror.began = self.mirror.began or time.monotonic()
        for work in what.work:
            if isinstance(work, SpanWork) and work.input != STEPS:
                self.mirror.note_begun(what.index, work.input)

    def _ready(self, index: int, life: int, ready: Ready) -> None:
        if not self.started:
            self.started, self.runs_since = True, time.monotonic()
            self.mirror.progress_kind = ready.progress_kind
            self._say(Started(self.token, platform.node(), os.getpid()))
        self.mirror.line(index).state = "running"
        kind = "index.restarted" if self.mirror.line(index).restarts else "index.started"
        text = f"index {index} is up on {ready.host} after {ready.seconds:.1f} s"
        self.mirror.event(kind, text, index=index, payload={"pid": ready.pid, "host": ready.host, "life": life})
        self._worker_events(index, ready.events)

    def _reply(self, index: int, reply: LeaseReply) -> None:
        for plan in reply.plans:
            if plan.input not in self.plans:
                self.plans[plan.input] = plan
                self.mirror.note_plan(plan)
        line = self.mirror.line(index)
        line.seconds = round(line.seconds + reply.seconds, 3)
        self._worker_events(index, reply.events)
        if reply.storage_error:
            self.mirror.event("storage.error", reply.storage_error, Level.ERROR, index=index, once=True)

    def _worker_events(self, index: int, events: list[Any]) -> None:
        for one in events:
            self.mirror.event(
                one.event_type, one.message, Level(one.level), index=index, payload=one.payload, once=True
            )

    async def _committed(self, entry: Entry) -> None:
        self.mirror.note_entry(entry)
        self.tell(Committed(entry.commits))

    # --- ends ---

    def _say(self, command: Any) -> None:
        """A command to the record, from inside the loop; what it comes to is seen by the heartbeat too."""
        self._aside(self._transact(command))

    def _aside(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self.aside.add(task)
        task.add_done_callback(self.aside.discard)
        task.add_done_callback(self._aside_ended)

    def _aside_ended(self, task: asyncio.Task[object]) -> None:
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._failed(error)

    async def _transact(self, command: Any) -> bool:
        """Whether it was accepted."""
        try:
            await self.store.transact(self.spec.id, command, datetime.now(UTC))
            return True
        except StaleAttempt:
            self._stale()
        except StoreUnavailable as error:
            log.warning("redis is away; the job goes on", error=str(error))
        except JosError as error:
            log.info("not accepted", command=type(command).__name__, error=str(error))
        return False

    def _heard(self, reply: MirrorReply) -> None:
        """What the record reads, by each heartbeat."""
        if reply.status is Status.ADMITTED and self.started:
            self._say(Started(self.token, platform.node(), os.getpid()))  # Redis was away when it was said first
        elif reply.status not in (Status.RUNNING, Status.ADMITTED):
            within = CANCEL_SECONDS if reply.status is Status.CANCELLED else math.inf  # nobody waits for its work
            self.drain(f"the job is {reply.status}", within)
        if self.granted is not None and reply.version != self.seen and hasattr(self, "brain"):
            self.seen = reply.version
            self._aside(self._look_at_grant())

    async def _look_at_grant(self) -> None:
        """The record has changed: perhaps a controller allows more indexes now."""
        try:
            attempt = (await self.store.get(self.spec.id)).attempt
        except JosError:
            self.seen = 0  # looked at again with the next heartbeat
            return
        if attempt is None or attempt.token != self.token or attempt.indexes is None:
            return
        if self.granted is not None and attempt.indexes > self.granted:
            self.granted = attempt.indexes
            self.tell(Grant(attempt.indexes))

    def _stale(self) -> None:
        self._end(Outcome(Ending.FENCED, "another attempt runs this job now"))

    def _failed(self, error: Exception) -> None:
        self._end(self._outcome_of(error))

    def _outcome_of(self, error: Exception) -> Outcome:
        if not isinstance(error, JosError):
            log.error("a fault of JOS itself", exc_info=error)
            text = f"{type(error).__name__}: {error}"
            return Outcome(Ending.FAILED, text, JobFailure(code="internal_error", message=text), retryable=True)
        if isinstance(error, FenceLost | StaleAttempt):
            return Outcome(Ending.FENCED, str(error))
        failure = JobFailure(code=error.code, message=str(error))
        return Outcome(Ending.FAILED, str(error), failure, error.retryable)

    def _end(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def _all_in(self) -> Outcome:
        """Nothing is in hand any more. That the work is complete is counted once more, not believed."""
        planned = all(o in self.plans for group in standing.planning(self.spec) for o in group.inputs)
        ledger = self.log.ledger
        if planned and all(len(ledger.of(o).done) == p.tasks for o, p in self.plans.items()):
            return Outcome(Ending.COMPLETED)
        if self.draining:
            return Outcome(Ending.DRAINED)
        message = "the plan and the commit log do not agree: some tasks were never given out"
        return Outcome(Ending.FAILED, message, JobFailure(code="internal_error", message=message), retryable=True)

    async def _finish(self, outcome: Outcome, running: bool) -> Outcome:
        """Everything in hand to disk, everything told, then the last word."""
        if outcome.ending is Ending.FENCED:
            return outcome
        if running:
            await self._settled(outcome)
        if hasattr(self, "pool"):
            await self.pool.close()  # the last word frees the job's capacity: its indexes must be gone by then
        if outcome.ending is Ending.COMPLETED:
            outcome = self._verdict()
        return await self._last_word(outcome)

    async def _settled(self, outcome: Outcome) -> None:
        """What is in hand, on disk. A job that is done waits for its outputs as long as that takes; one that must
        leave only for its commits, and not for ever. If the pen is broken there is nothing to wait for."""
        done = outcome.ending is Ending.COMPLETED
        settle = asyncio.create_task(self.committer.settle(parts=done))
        broken = asyncio.create_task(self.committer.broken.wait())
        limit = None if done else self.grace
        ended, _ = await asyncio.wait({settle, broken}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not ended:
            log.warning("not everything in hand could be written in time")
        for task in (settle, broken):
            task.cancel()

    def _verdict(self) -> Outcome:
        """A job of which nothing at all succeeded has failed; a bad file or record among good ones fails alone."""
        if self.committer.error is not None:
            return self._outcome_of(self.committer.error)
        missing = sum(p.parts - len(self.log.ledger.of(o).finished) for o, p in self.plans.items())
        if missing:
            return self._outcome_of(RuntimeError(f"{missing} output files were not put together"))
        verdict = standing.verdict(self.spec, self.plans, self.log.ledger)
        if verdict.failure is not None:
            return Outcome(Ending.FAILED, verdict.message, verdict.failure)
        return Outcome(Ending.COMPLETED, verdict.message)

    async def _last_word(self, outcome: Outcome) -> Outcome:
        """Told until Redis has heard it, or gives no answer for too long: the work itself is safe by then."""
        deadline = time.monotonic() + LAST_WORD_SECONDS
        while True:
            try:
                return await self._say_last(outcome)
            except StaleAttempt:
                return Outcome(Ending.FENCED, "another attempt runs this job now")
            except (StoreUnavailable, NotFound) as error:  # away, or come back empty
                if time.monotonic() > deadline:
                    log.error("redis stayed away; run `jos resume` once it is back", error=str(error))
                    return outcome
                await asyncio.sleep(1.0)

    async def _say_last(self, outcome: Outcome) -> Outcome:
        now = datetime.now(UTC)
        if hasattr(self, "mirror"):
            await self.mirror.flush()
            if outcome.ending is Ending.COMPLETED:
                if (last := standing.last_checkpoint(self.log.ledger)) is not None:
                    await self.mirror.note_checkpoints([last])
                kind = f"{self.mirror.progress_kind}.completed"
                self.mirror.event(kind, outcome.message, Level.SUCCESS, once=True)
                await self.mirror.flush()
        if outcome.ending is Ending.DRAINED:
            await self.store.transact(self.spec.id, Drained(self.token), now)
        elif outcome.ending is Ending.COMPLETED:
            await self._ensure_started(now)
            await self.store.transact(self.spec.id, Completed(self.token, outcome.message), now)
        elif outcome.failure is not None:
            command = Exited(self.token, outcome.failure, outcome.retryable)
            await self.store.transact(self.spec.id, command, now)
        return outcome

    async def _ensure_started(self, now: datetime) -> None:
        """A resume that finds nothing left to do never had an index up; COMPLETED only follows RUNNING."""
        job = await self.store.get(self.spec.id)
        if job.status is Status.ADMITTED:
            await self.store.transact(self.spec.id, Started(self.token, platform.node(), os.getpid()), now)
