"""What spec, plans and log say together of a job, without a driver."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import pytest
from kept_lab import spec

from jos.core.ledger import STEPS, Blob, Commit, Entry, Finished, Ledger
from jos.core.model import Checkpoint, Distribute, InputPort, InputStatus
from jos.core.plan import RETRY_GROUPS, InputPlan
from jos.core.standing import Replay, complete, plans_of, verdict

AT = "2026-04-14T10:00:{:02d}.000000Z"


def plan(ordinal: int, tasks: int = 10, error: str | None = None) -> InputPlan:
    bounds = [0, tasks] if tasks else [0]
    return InputPlan(ordinal, bounds, output_name="{input_id}.txt", port="worker.out", error=error)


def replayed(inputs: int, plans: list[InputPlan], *entries: dict[str, Any], training: bool = False) -> Replay:
    """Entry n was written at second n, by attempt "a" unless it says else."""
    replay = Replay(spec(inputs, training=training), {p.input: p for p in plans})
    ledger = Ledger()
    for number, content in enumerate(entries):
        entry = Entry(number, **{"attempt": "a", "at": AT.format(number), **content})
        ledger.apply(entry)
        replay.see(entry, ledger)
    return replay


def done(ordinal: int, failed: int = 0, start: int = 0, end: int = 10) -> dict[str, Any]:
    blob = Blob("k", 1, "0")
    commit = Commit(ordinal, start, end, failed=failed, failures=tuple((n, "bad") for n in range(failed)), body=blob)
    finished = Finished(ordinal, 0, f"inp_{ordinal}.txt", blob, 10, AT.format(0))
    return {"commits": (commit,), "finished": (finished,) if end == 10 else ()}


def test_inputs_are_ranked_in_the_order_in_which_they_were_over() -> None:
    replay = replayed(
        4, [plan(0), plan(1), plan(2, 0), plan(3)], {}, done(3), done(0, end=4), done(0, start=4), done(1)
    )
    found = [(s.status, s.done, s.step, s.completed_at) for s in replay.states()]
    ends = [datetime.fromisoformat(AT.format(n)) for n in range(5)]
    assert found == [
        (InputStatus.COMPLETED, 10, 3, ends[3]),
        (InputStatus.COMPLETED, 10, 4, ends[4]),
        (InputStatus.COMPLETED, 0, 1, ends[0]),
        (InputStatus.COMPLETED, 10, 2, ends[1]),
    ]
    assert complete(replay.spec, replay.plans, replay.ledger)


def test_a_retry_takes_back_the_ends_of_inputs_with_failed_tasks_only() -> None:
    plans = [plan(0), plan(1)]
    first = ({}, done(0, failed=1), done(1))
    assert [s.step for s in replayed(2, plans, *first).states()] == [1, 2]
    replay = replayed(2, plans, *first, {"attempt": "b", "retry": 1})
    assert [(s.step, s.done) for s in replay.states()] == [(None, 0), (2, 10)]
    assert not complete(replay.spec, replay.plans, replay.ledger)
    replay = replayed(2, plans, *first, {"attempt": "b", "retry": 1}, {**done(0), "attempt": "b"})
    assert [(s.step, s.failed) for s in replay.states()] == [(3, 0), (2, 0)]
    assert [claim.token for claim in replay.claims] == ["a", "b"]


def test_a_training_that_is_impossible_used_none_of_its_inputs() -> None:
    replay = replayed(1, [InputPlan(STEPS, [0], error="one class only")], {}, training=True)
    assert [(s.status, s.error_message) for s in replay.states()] == [(InputStatus.FAILED, "one class only")]


def test_a_checkpoint_of_a_training_that_diverged_can_be_read_again() -> None:
    metrics = {"loss": math.inf, "macro_f1": 0.5, "rate": math.nan}
    commit = Commit(STEPS, 0, 5, state=Blob("s", 1, "0"), model=Blob("m", 1, "0"), metrics=metrics)
    (one,) = replayed(1, [InputPlan(STEPS, [0, 5])], {}, {"commits": (commit,)}, training=True).checkpoints()
    assert one.metrics == {"loss": None, "macro_f1": 0.5, "rate": None}
    assert Checkpoint.stored(one.model_dump_json()) == one


def test_training_ends_all_inputs_at_once() -> None:
    commits = [Commit(STEPS, n, n + 5, state=Blob("s", 1, "0"), metrics={"loss": 1.0}) for n in (0, 5)]
    plans = [InputPlan(STEPS, [0, 5, 10])]
    half = replayed(2, plans, {}, {"commits": (commits[0],)}, training=True)
    assert {(s.status, s.step) for s in half.states()} == {(InputStatus.PROCESSING, None)}
    whole = replayed(2, plans, {}, *({"commits": (c,)} for c in commits), training=True)
    assert [(s.status, s.step) for s in whole.states()] == [(InputStatus.COMPLETED, 1), (InputStatus.COMPLETED, 2)]
    assert [(p.step, p.metrics) for p in whole.steps] == [(5, {"loss": 1.0}), (10, {"loss": 1.0})]
    assert complete(whole.spec, whole.plans, whole.ledger)
    assert verdict(whole.spec, whole.plans, whole.ledger).message == "10 tasks done"


@pytest.mark.parametrize(
    ("failed", "message", "is_failure"),
    [
        ((0, 0), "20 tasks done", False),
        ((3, 0), "17 tasks done, 3 failed; 1 of 2 inputs failed", False),
        ((10, 10), "all 2 inputs failed; the first: 10 of 10 tasks failed; the first: bad", True),
    ],
)
def test_a_job_has_failed_only_if_nothing_of_it_succeeded(
    failed: tuple[int, int], message: str, is_failure: bool
) -> None:
    replay = replayed(2, [plan(0), plan(1)], {}, *(done(o, f) for o, f in enumerate(failed)))
    found = verdict(replay.spec, replay.plans, replay.ledger)
    assert (found.message, found.failure is not None) == (message, is_failure)


def test_an_input_without_a_plan_keeps_a_job_from_being_complete() -> None:
    replay = replayed(2, [plan(0)], {}, done(0))
    assert not complete(replay.spec, replay.plans, replay.ledger)
    assert [s.status for s in replay.states()] == [InputStatus.COMPLETED, InputStatus.PENDING]
    ports = {"worker.data": InputPort(name="data", distribute=Distribute.REPLICATE)}
    replicated = replay.spec.model_copy(update={"pipeline": replay.spec.pipeline.model_copy(update={"inputs": ports})})
    assert complete(replicated, replay.plans, replay.ledger), "what every index reads whole is never planned"


def test_a_plan_that_failed_counts_until_a_retry() -> None:
    stored = {0: [plan(0, 0, "unreadable").to_json(), plan(1).to_json()]}
    assert plans_of(stored, 0)[0].error == "unreadable"
    assert sorted(plans_of(stored, 1)) == [1]
    stored[RETRY_GROUPS] = [plan(0, 7).to_json()]
    assert plans_of(stored, 1)[0].tasks == 7
