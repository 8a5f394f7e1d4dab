"""Where a job stands, by its spec, its plans and its commit log alone: the driver tells this while it works, and
recovery and verification find the same without a driver.

Pure. May import: stdlib, jos.core. Tests: tests/unit/test_standing.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jos.core.ids import derived_id
from jos.core.ledger import STEPS, Commit, Entry, Finished, InputLedger, Ledger
from jos.core.model import Checkpoint, Distribute, InputState, InputStatus, JobFailure, JobSpec, Output, ProgressDraft
from jos.core.plan import RETRY_GROUPS, InputPlan, PlanWork, plan_groups

Plans = Mapping[int, InputPlan]
PREPARATION = "preparation"  # kind of the progress entries and events of inputs that a training prepares


def training(spec: JobSpec) -> bool:
    return spec.pipeline.pipeline_type == "training"


def scattered(spec: JobSpec, ordinal: int) -> bool:
    """Whether an input is shared out over the indexes, as tasks of its own; the others are only read."""
    return spec.pipeline.inputs[spec.inputs[ordinal].port].distribute is Distribute.SCATTER


def planning(spec: JobSpec) -> list[PlanWork]:
    """How the inputs of a job are gathered to be planned at first; of a training the steps come last, alone."""
    sizes = [(ordinal, source.num_bytes) for ordinal, source in enumerate(spec.inputs) if scattered(spec, ordinal)]
    groups = plan_groups(sizes)
    return [*groups, PlanWork(len(groups), (STEPS,))] if training(spec) else groups


def planning_again(spec: JobSpec, ordinals: Iterable[int], first: int) -> list[PlanWork]:
    """The same for some of them, in groups numbered from `first` on."""
    wanted = list(ordinals)
    groups = plan_groups([(ordinal, spec.inputs[ordinal].num_bytes) for ordinal in wanted if ordinal != STEPS])
    numbered = [PlanWork(first + group.group, group.inputs) for group in groups]
    return [*numbered, PlanWork(first + len(groups), (STEPS,))] if STEPS in wanted else numbered


def plans_of(stored: Mapping[int, Iterable[Mapping[str, Any]]], era: int) -> dict[int, InputPlan]:
    """The plans that count, from the content of all `plan/` objects by their numbers: after a retry (see Ledger.era),
    an input that could not be planned before has none until it was planned anew, nor have the steps that were to
    follow."""
    plans: dict[int, InputPlan] = {}
    for group in sorted(stored):
        for plan in map(InputPlan.from_json, map(dict, stored[group])):
            if group >= era * RETRY_GROUPS or (plan.error is None and plan.input != STEPS):
                plans[plan.input] = plan
    return plans


def over(plan: InputPlan, ledger: InputLedger) -> bool:
    """Whether all tasks of an input are committed and all its output files put together."""
    return len(ledger.done) == plan.tasks and len(ledger.finished) == plan.parts


def input_state(
    spec: JobSpec, ordinal: int, plan: InputPlan | None, ledger: InputLedger, begun: bool = False
) -> InputState:
    """How far an input with tasks of its own is. `begun`: work of it was given out, though none is committed."""
    source = spec.inputs[ordinal]
    if plan is None:
        return InputState(input_id=source.id, status=InputStatus.PENDING)
    done = len(ledger.done)
    status, error = InputStatus.PROCESSING, plan.error
    if plan.error is not None:
        status = InputStatus.FAILED
    elif over(plan, ledger):
        status = InputStatus.FAILED if ledger.failed else InputStatus.COMPLETED
    elif done == 0 and not begun:
        status = InputStatus.PENDING
    if ledger.first_failure is not None:
        first = ledger.first_failure[1]
        error = first if ledger.failed == 1 else f"{ledger.failed:,} of {plan.tasks:,} tasks failed; the first: {first}"
    return InputState(
        input_id=source.id, status=status, tasks=plan.tasks, done=done, failed=ledger.failed, error_message=error
    )


def state_of(spec: JobSpec, ordinal: int, plans: Plans, ledger: Ledger, begun: bool = False) -> InputState:
    """How far any input is."""
    if training(spec) and not scattered(spec, ordinal):
        return trained_state(spec.inputs[ordinal].id, plans, ledger)
    return input_state(spec, ordinal, plans.get(ordinal), ledger.inputs.get(ordinal, InputLedger()), begun)


def trained_state(input_id: str, plans: Plans, ledger: Ledger) -> InputState:
    """What a training only reads, it uses all at once: these inputs begin and end with it."""
    plan, done = plans.get(STEPS), len(ledger.of(STEPS).done)
    status = InputStatus.PROCESSING if done else InputStatus.PENDING
    if plan is not None and plan.error is not None:
        return InputState(input_id=input_id, status=InputStatus.FAILED, error_message=plan.error)
    if plan is not None and done == plan.tasks:
        status = InputStatus.COMPLETED
    return InputState(input_id=input_id, status=status)


def output_of(spec: JobSpec, plan: InputPlan, finished: Finished) -> Output:
    return Output(
        id=derived_id("out", spec.id, finished.filename),
        port=plan.port,
        input_id=spec.inputs[finished.input].id,
        filename=finished.filename,
        key=finished.blob.key,
        num_bytes=finished.blob.num_bytes,
        sha256=finished.blob.sha256,
        tasks=finished.tasks,
        created_at=datetime.fromisoformat(finished.at),
    )


def input_progress(kind: str, state: InputState, at: datetime) -> ProgressDraft:
    total = state.tasks or 0
    percent = 100.0 if not total else round(100 * state.done / total, 2)
    return ProgressDraft(
        kind=kind,
        step=state.done,
        message=f"{state.done:,} of {total:,}",
        metrics={
            "percent_complete": percent,
            "items_processed": state.done,
            "items_total": total,
            "success": state.done - state.failed,
            "failed": state.failed,
        },
        input_id=state.input_id,
        created_at=at,
    )


def step_progress(commit: Commit, at: datetime) -> ProgressDraft:
    """Of a training job's span: the metrics of its last step."""
    return ProgressDraft(
        kind="training",
        step=commit.steps,
        message=f"step {commit.steps}",
        metrics=dict(commit.metrics),
        index=commit.index,
        created_at=at,
    )


def checkpoint_of(spec: JobSpec, commit: Commit, at: datetime) -> Checkpoint:
    """The model that a trainer made with these steps, or else its state after them."""
    blob = commit.model or commit.state
    assert blob is not None
    return Checkpoint(
        id=derived_id("ckp", spec.id, str(commit.steps)),
        name=f"step_{commit.steps}",
        step=commit.steps,
        metrics={name: value if math.isfinite(value) else None for name, value in commit.metrics.items()},
        key=blob.key,
        num_bytes=blob.num_bytes,
        sha256=blob.sha256,
        created_at=at,
    )


def last_checkpoint(ledger: Ledger) -> Commit | None:
    """Of a completed training whose trainer made no model: its last state is the checkpoint. States before it are
    not kept: what is listed can be used."""
    steps = ledger.of(STEPS)
    return None if steps.models else steps.state


def internal(plan: InputPlan) -> bool:
    """Whether what is written of an input is only for the job itself: a training's preparation."""
    return plan.port == ""


def complete(spec: JobSpec, plans: Plans, ledger: Ledger) -> bool:
    """Everything planned, committed and put together."""
    planned = all(ordinal in plans for group in planning(spec) for ordinal in group.inputs)
    nothing = InputLedger()
    return planned and all(over(plan, ledger.inputs.get(ordinal, nothing)) for ordinal, plan in plans.items())


@dataclass(frozen=True)
class Verdict:
    """How a complete job has ended: FAILED with `failure`, else COMPLETED."""

    message: str
    failure: JobFailure | None = None


def verdict(spec: JobSpec, plans: Plans, ledger: Ledger) -> Verdict:
    """A job of which nothing at all succeeded has failed; a bad file or record among good ones fails alone."""
    if (steps := plans.get(STEPS)) is not None and steps.error is not None:
        return Verdict(steps.error, JobFailure(code="training_impossible", message=steps.error))
    nothing = InputLedger()
    states = [input_state(spec, o, p, ledger.inputs.get(o, nothing)) for o, p in plans.items() if o != STEPS]
    bad = [s for s in states if s.error_message]
    if states and len(bad) == len(states) and not any(s.done > s.failed for s in states):
        first = bad[0].error_message or ""
        text = first if len(bad) == 1 else f"all {len(bad)} inputs failed; the first: {first}"
        names = {i.id: i.filename for i in spec.inputs}
        details = {"inputs": {names[s.input_id]: s.error_message for s in bad[:20]}}
        return Verdict(text, JobFailure(code="all_inputs_failed", message=text, details=details))
    done, failed = ledger.tasks_done, ledger.tasks_failed
    text = f"{done - failed:,} tasks done" + (f", {failed:,} failed" if failed else "")
    if bad:
        text += f"; {len(bad)} of {len(states)} inputs failed"
    return Verdict(text)


@dataclass(frozen=True)
class Claim:
    """One attempt, as the log has it."""

    token: str
    at: datetime  # of its first entry


class Replay:
    """What the log says beyond its fold, from its entries in order: who drove the job and when, and when each input
    was over. `see` is called with each entry after the ledger has taken it in."""

    def __init__(self, spec: JobSpec, plans: Plans) -> None:
        self.spec, self.plans, self.ledger = spec, plans, Ledger()
        self.claims: list[Claim] = []
        self.steps: list[ProgressDraft] = []  # of training
        self.models: list[tuple[Commit, datetime]] = []  # and the checkpoints that were made on the way
        self.last_at: datetime | None = None
        self.ended: dict[int, tuple[int, datetime]] = {}  # ordinal -> rank and time
        self.rank = 0
        self.retry = 0
        self._tracked = [o for o, source in enumerate(spec.inputs) if source.tracked]

    def see(self, entry: Entry, ledger: Ledger) -> None:
        self.ledger = ledger
        at = datetime.fromisoformat(entry.at)
        if not self.claims or self.claims[-1].token != entry.attempt:
            self.claims.append(Claim(entry.attempt, at))
        self.last_at = at
        if len(self.claims) == 1 and not self.ended:  # what has no tasks was over as soon as it was planned
            self._end((o for o in self._tracked if o in self.plans and not self.plans[o].tasks), at)
        if entry.retry > self.retry:
            self.retry = entry.retry
            self.ended = {o: when for o, when in self.ended.items() if self._is_over(o)}
        touched = {c.input: None for c in entry.commits} | {f.input: None for f in entry.finished}
        if STEPS in touched:
            touched = dict.fromkeys(self._tracked)
            self.steps += (step_progress(commit, at) for commit in entry.commits if commit.state is not None)
        self.models += ((commit, at) for commit in entry.commits if commit.model is not None)
        self._end((o for o in touched if self._is_over(o)), at)

    def _is_over(self, ordinal: int) -> bool:
        plan = self.plans.get(ordinal if scattered(self.spec, ordinal) else STEPS)
        return plan is not None and over(plan, self.ledger.of(plan.input))

    def _end(self, ordinals: Iterable[int], at: datetime) -> None:
        for ordinal in ordinals:
            if ordinal not in self.ended:
                self.rank += 1
                self.ended[ordinal] = (self.rank, at)

    def states(self) -> list[InputState]:
        """All tracked inputs as they stand now, in the order of the request."""
        found = []
        for ordinal in self._tracked:
            state = state_of(self.spec, ordinal, self.plans, self.ledger)
            if ordinal in self.ended and state.status in (InputStatus.COMPLETED, InputStatus.FAILED):
                rank, at = self.ended[ordinal]
                state = state.model_copy(update={"step": rank, "completed_at": at})
            found.append(state)
        return found

    def outputs(self) -> list[Output]:
        return [
            output_of(self.spec, self.plans[ordinal], finished)
            for ordinal, one in sorted(self.ledger.inputs.items())
            if ordinal in self.plans and ordinal != STEPS and not internal(self.plans[ordinal])
            for _, finished in sorted(one.finished.items())
        ]

    def checkpoints(self) -> list[Checkpoint]:
        """The models that a training left."""
        if self.models:
            return [checkpoint_of(self.spec, commit, at) for commit, at in self.models]
        last = last_checkpoint(self.ledger)
        if last is None or self.last_at is None or not complete(self.spec, self.plans, self.ledger):
            return []
        return [checkpoint_of(self.spec, last, self.last_at)]
