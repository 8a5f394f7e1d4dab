"""What the driver tells the world through Redis: events, progress, inputs, outputs, a live line per index.

Everything told here is in the commit log first. Batches are numbered, so that a batch whose reply was lost is not
told twice; while Redis is away the driver goes on working and this keeps what is to be told (progress thinned out).
May import: jos.core, jos.store, jos.removal. Tests: tests/unit/test_mirror.py, tests/integration/test_driver.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from jos import removal
from jos.core import standing
from jos.core.errors import JosError, NotFound, StaleAttempt, StoreUnavailable
from jos.core.ledger import STEPS, Commit, Entry, Finished, Ledger
from jos.core.model import (
    Checkpoint,
    EventDraft,
    InputState,
    InputStatus,
    JobSpec,
    Level,
    Output,
    ProgressDraft,
)
from jos.core.plan import InputPlan
from jos.store.records import Mirror as Batch
from jos.store.records import MirrorReply
from jos.store.redis import Store

EVERY = 0.5  # seconds between batches; also the heartbeat and how soon a cancel is seen
MOST = 2000  # things told in one batch
MOST_SAID = 1000  # different notes of workers in one job
KEEP_PROGRESS = 10_000  # entries kept while Redis is away

log = structlog.get_logger()


@dataclass
class IndexLine:
    """One index, as a live display shows it."""

    state: str = "starting"
    tasks: int = 0
    failed: int = 0
    seconds: float = 0.0  # busy
    now: str = ""  # the input it works on
    restarts: int = 0


@dataclass
class Told:
    """Inputs as they were last told, to tell only what changed."""

    status: InputStatus = InputStatus.PENDING
    tasks: int | None = None
    done: int = -1
    error: str | None = None

    @classmethod
    def of(cls, state: InputState) -> Told:
        return cls(state.status, state.tasks, state.done, state.error_message)


@dataclass
class Mirror:
    """`beat` runs until cancelled; `note_*` collect; `flush` tells all that was collected."""

    store: Store
    spec: JobSpec
    token: str
    ledger: Ledger
    plans: Mapping[int, InputPlan]
    heard: Callable[[MirrorReply], None]  # what the record reads, at each batch
    stale: Callable[[], None]  # another attempt runs this job
    progress_kind: str = "inference"
    seq: int = 0
    events: list[EventDraft] = field(default_factory=list)
    progress: list[ProgressDraft] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    changed: dict[int, None] = field(default_factory=dict)  # ordinals, in order
    told: dict[int, Told] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    completed: int = 0  # inputs that are over
    rank: int = 0  # the last that was given to one, see InputState.step
    tasks: int = 0  # of all plans
    planned: int = 0  # tracked inputs that have a plan
    pending: Batch | None = None  # sent, reply not seen
    lines: dict[int, IndexLine] = field(default_factory=dict)
    said: set[tuple[str, str]] = field(default_factory=set)
    began: float | None = None  # monotonic; when the first work was given out
    done_before: int = 0  # tasks that earlier attempts committed
    commits_before: int = 0
    telling: asyncio.Lock = field(default_factory=asyncio.Lock)
    away: str | None = None  # why Redis cannot be reached, while it cannot

    def __post_init__(self) -> None:
        if standing.training(self.spec):
            self.progress_kind = "training"  # also where nothing is left to do and no index comes up to say so
        self.tracked = [o for o, source in enumerate(self.spec.inputs) if source.tracked]

    # --- collecting ---

    def event(
        self,
        event_type: str,
        message: str,
        level: Level = Level.INFO,
        *,
        input_id: str | None = None,
        index: int | None = None,
        payload: Mapping[str, Any] | None = None,
        once: bool = False,
    ) -> None:
        if once:
            if (event_type, message) in self.said or len(self.said) > MOST_SAID:
                return
            self.said.add((event_type, message))
            if len(self.said) > MOST_SAID:
                event_type, message = "events.limited", f"more than {MOST_SAID} different notes; no more are shown"
        self.events.append(
            EventDraft(
                event_type=event_type,
                level=level,
                message=message,
                payload=dict(payload or {}),
                input_id=input_id,
                index=index,
                created_at=datetime.now(UTC),
            )
        )

    def line(self, index: int) -> IndexLine:
        return self.lines.setdefault(index, IndexLine())

    def note_plan(self, plan: InputPlan) -> None:
        self._count_plan(plan)
        if plan.message and plan.input != STEPS:
            source = self.spec.inputs[plan.input]
            self.event("input.empty", f"{source.filename}: {plan.message}", Level.WARN, input_id=source.id)
        self.changed[plan.input] = None

    def _count_plan(self, plan: InputPlan) -> None:
        self.tasks += plan.tasks
        self.planned += plan.input != STEPS and self.spec.inputs[plan.input].tracked

    def note_begun(self, index: int, ordinal: int) -> None:
        """An index was given work of this input."""
        source = self.spec.inputs[ordinal]
        self.line(index).now = source.filename
        told = self.told.setdefault(ordinal, Told())
        if told.status is InputStatus.PENDING and ordinal not in self.begun:
            self.begun.add(ordinal)
            self.changed[ordinal] = None
            text = f"{source.filename}: {self.plans[ordinal].tasks:,} tasks"
            self.event("input_started", text, input_id=source.id, index=index)

    def note_entry(self, entry: Entry) -> None:
        for commit in entry.commits:
            line = self.line(commit.index)
            line.tasks += commit.end - commit.start
            line.failed += commit.failed
            self.changed[commit.input] = None
            self._note_training(commit)
        for finished in entry.finished:
            if not standing.internal(self.plans[finished.input]):
                self.outputs.append(self.output(finished))
            self.changed[finished.input] = None

    def _note_training(self, commit: Commit) -> None:
        if commit.state is None:
            return
        self.progress.append(standing.step_progress(commit, datetime.now(UTC)))
        if commit.model is not None:
            self._note_checkpoint(commit)
        if commit.stopped is not None:
            left = commit.end - commit.stopped
            text = f"training stopped early after step {commit.stopped:,}: the {left:,} steps left are not needed"
            self.event("training.stopped", text, index=commit.index, payload={"step": commit.stopped})

    def _note_checkpoint(self, commit: Commit) -> None:
        one = standing.checkpoint_of(self.spec, commit, datetime.now(UTC))
        self.checkpoints.append(one)
        payload = {"checkpoint_id": one.id, "step": one.step, "metrics": one.metrics}
        self.event("checkpoint.saved", f"{one.name} is saved", Level.SUCCESS, index=commit.index, payload=payload)

    async def note_checkpoints(self, commits: Iterable[Commit]) -> None:
        """Those that Redis may not know yet: an earlier attempt died before it told, or the job was done already."""
        if wanted := list(commits):
            known = {one.step for one in await self.store.checkpoints(self.spec.id)}
            for commit in wanted:
                if commit.steps not in known:
                    self._note_checkpoint(commit)

    def output(self, finished: Finished) -> Output:
        return standing.output_of(self.spec, self.plans[finished.input], finished)

    # --- where the job stands ---

    async def reconcile(self) -> None:
        """At an attempt's start: what the log knows and Redis may not (its last attempt died in between, or Redis
        was lost) is told now, and nothing that was told before is told again."""
        states = await self.store.inputs(self.spec.id)
        for ordinal, source in enumerate(self.spec.inputs):
            if (state := states.get(source.id)) is not None:
                self.told[ordinal] = Told.of(state)
                self.rank = max(self.rank, state.step or 0)
                if state.status is InputStatus.PROCESSING:
                    self.begun.add(ordinal)
                # a retry opened it again, or it is as finished as it was
                self.completed += state.step is not None and self.input_state(ordinal).status is state.status
        self.done_before, self.commits_before = self.ledger.tasks_done, self.ledger.commits
        for ordinal, one in self.ledger.inputs.items():
            if ordinal in self.plans and not standing.internal(self.plans[ordinal]):
                self.outputs.extend(self.output(f) for _, f in sorted(one.finished.items()))
        for plan in self.plans.values():
            self._count_plan(plan)
        self.changed.update(dict.fromkeys(self.tracked))
        await self.note_checkpoints(self.ledger.of(STEPS).models)
        _, warnings = await self.store.events(self.spec.id, limit=MOST_SAID, order="desc", level=Level.WARN)
        self.said.update((e.event_type, e.message) for e in warnings)  # once per job, not per attempt

    def input_state(self, ordinal: int) -> InputState:
        """The state of an input as plan and ledger have it."""
        return standing.state_of(self.spec, ordinal, self.plans, self.ledger, ordinal in self.begun)

    def totals(self) -> dict[str, Any]:
        """The job as a whole; `items_total` counts planned inputs only until `planned` is true."""
        planned = STEPS in self.plans if standing.training(self.spec) else self.planned == len(self.tracked)
        total, done = self.tasks, self.ledger.tasks_done
        elapsed = time.monotonic() - self.began if self.began is not None else 0.0
        rate = (done - self.done_before) / elapsed if elapsed > 0 else 0.0
        return {
            "items_total": total,
            "items_processed": done,
            "failed": self.ledger.tasks_failed,
            "planned": planned,
            "percent_complete": round(100 * done / total, 2) if total and planned else 0.0,
            "inputs_total": len(self.tracked),
            "inputs_done": self.completed,
            "tasks_per_second": round(rate, 1),
            "seconds_left": round((total - done) / rate, 1) if rate > 0 and planned else None,
            "storage_waits": self.away,
            "attempt": {"tasks": done - self.done_before, "commits": self.ledger.commits - self.commits_before},
            "indexes": {str(i): vars(line).copy() for i, line in sorted(self.lines.items())},
        }

    def _changes(self) -> list[InputState]:
        """States that differ from what was told, with the events and progress entries of the difference."""
        changed, self.changed = self.changed, {}
        if STEPS in changed:
            changed |= dict.fromkeys(self.tracked)
        wanted = (o for o in changed if o != STEPS and self.spec.inputs[o].tracked)
        return [s for o in wanted if (s := self._change(o)) is not None]

    def _change(self, ordinal: int) -> InputState | None:
        state, was = self.input_state(ordinal), self.told.setdefault(ordinal, Told())
        if Told.of(state) == was:
            return None
        self.told[ordinal] = Told.of(state)
        own = standing.scattered(self.spec, ordinal)
        kind = standing.PREPARATION if own and standing.training(self.spec) else self.progress_kind
        name, now = self.spec.inputs[ordinal].filename, datetime.now(UTC)
        ended = state.status in (InputStatus.COMPLETED, InputStatus.FAILED) and state.status is not was.status
        if ended:
            self.completed += 1
            self.rank += 1
            state = state.model_copy(update={"completed_at": now, "step": self.rank})
            good = state.status is InputStatus.COMPLETED
            does = f"all {state.done:,} tasks done" if own else "used to the end"
            message = f"{name}: {does if good else state.error_message}"
            self.event(
                f"{kind}.{'success' if good else 'failed'}",
                message,
                Level.SUCCESS if good else Level.ERROR,
                input_id=state.input_id,
                payload={"items_processed": state.done, "failed": state.failed},
            )
        if (state.done != max(was.done, 0) or ended) and own:
            self.progress.append(standing.input_progress(kind, state, now))
        return state

    # --- telling ---

    async def flush(self) -> None:
        """Tells what was collected. Raises StoreUnavailable (all is kept) or StaleAttempt.

        One at a time: the heartbeat and the last word may both be at it, and two that send one batch would then
        give its number to two more."""
        async with self.telling:
            while True:
                batch = self.pending or self._batch()
                self.pending = batch
                reply = await self.store.mirror(self.spec.id, batch)
                self.pending = None
                self.seq = batch.seq
                self.heard(reply)
                if not (self.events or self.outputs or self.checkpoints or self.progress or self.changed):
                    return

    def _batch(self) -> Batch:
        states = self._changes()
        events, self.events = self.events[:MOST], self.events[MOST:]
        progress, self.progress = self.progress[:MOST], self.progress[MOST:]
        outputs, self.outputs = self.outputs[:MOST], self.outputs[MOST:]
        checkpoints, self.checkpoints = self.checkpoints, []
        return Batch(
            token=self.token,
            seq=self.seq + 1,
            at=datetime.now(UTC),
            events=events,
            progress=progress,
            inputs=states,
            outputs=outputs,
            checkpoints=checkpoints,
            live=self.totals(),
        )

    async def beat(self) -> None:
        """The heartbeat. A Redis that is away stops nothing: work goes on and is told later."""
        while True:
            try:
                await self.flush()
                if self.away:
                    log.info("redis is back", job=self.spec.id)
                self.away = None
            except NotFound as error:
                if await self._deleted():
                    self.stale()
                    return
                self._note_away(error)  # come back empty
            except StoreUnavailable as error:
                self._note_away(error)
            except StaleAttempt:
                self.stale()
                return
            await asyncio.sleep(EVERY)

    async def _deleted(self) -> bool:
        try:
            return await removal.deleted(self.store.connection, self.spec.id)
        except StoreUnavailable:
            return False

    def _note_away(self, error: JosError) -> None:
        if self.away is None:
            log.warning("redis is away; the job goes on", job=self.spec.id, error=str(error))
        self.away = str(error)
        del self.progress[:-KEEP_PROGRESS]
