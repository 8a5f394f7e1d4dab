"""A trainer's index without Ray: what was prepared, states, models, stopping early, what is made once for the job."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from test_index import FOLDER, make_index, stored, using

from jos.core.ledger import STEPS, Blob, Commit, Finished, InputLedger
from jos.core.model import JobSpec
from jos.core.plan import InputPlan, PlanWork, SpanWork, remaining
from jos.driver.index import Index
from jos.driver.prepared import prepared
from jos.storage.log import CommitLog
from jos.worker import Trainer

LINES = [f'{{"x": {n}}}' for n in range(20)]


def prepare(index: Index) -> None:
    """The first stage, as driver and committer do it: every span committed, and the parts put together."""
    (reply,) = using(index, lambda i: i.run(0, (PlanWork(0, (0,)),)))
    (plan,) = reply.plans
    log = CommitLog.open(index.storage, FOLDER)
    log.claim("token", "2026-01-01T00:00:00Z")
    commits = done(index, *remaining(plan, InputLedger()))
    pieces = [c.body for c in sorted(commits, key=lambda c: c.start) if c.body is not None]
    index.storage.write(f"{FOLDER}whole", [index.storage.read(FOLDER + piece.key) for piece in pieces])
    whole = Finished(0, 0, "inp_a.numbers", Blob("whole", 0, ""), plan.tasks, "2026-01-01T00:00:00Z")
    log.append("token", "2026-01-01T00:00:00Z", commits, [whole])


def steps(index: Index) -> InputPlan:
    plan: InputPlan = asyncio.run(index.run(2, (PlanWork(1, (STEPS,)),))).plans[0]
    return plan


def done(index: Index, *work: SpanWork) -> list[Commit]:
    reply = asyncio.run(index.run(3, work))
    assert not reply.faults
    return reply.commits


def test_a_trainer_is_given_what_was_prepared_and_makes_models_on_the_way(tmp_path: Path) -> None:
    index = make_index(tmp_path, "two-stage-train", LINES, epochs=2)
    prepare(index)
    (one,) = prepared(index.spec, index.storage, FOLDER)
    assert (one.port, one.tasks, one.source.filename) == ("worker.data", 20, "in.jsonl")
    assert one.read().splitlines() == [b"numbers", *(b"%r" % (2.0 * n) for n in range(20))]
    plan = steps(index)
    assert plan.bounds == [0, 10, 20, 30, 40]
    commits = done(index, *remaining(plan, InputLedger()))
    assert [c.model is not None for c in commits] == [False, True, False, True]
    assert commits[1].model is not None
    assert stored(tmp_path, commits[1].model.key) == b"mean %r" % commits[1].metrics["mean"]


def test_what_a_job_makes_once_is_made_by_the_first_and_read_by_all_others(tmp_path: Path) -> None:
    first = make_index(tmp_path, "two-stage-train", LINES)
    using(first)
    second = make_index(tmp_path, "two-stage-train", LINES)
    using(second)
    assert stored(tmp_path, "once/scale") == b"2.0"
    assert second.worker.context.once("scale", lambda: b"another") == b"2.0"
    with pytest.raises(ValueError, match="letters"):
        second.worker.context.once("../scale", lambda: b"")


def test_a_training_that_stops_early_resolves_all_its_steps_and_drops_what_was_read_ahead(tmp_path: Path) -> None:
    index = make_index(tmp_path, "two-stage-train", LINES, epochs=5, stop_after=2)
    prepare(index)
    work = list(remaining(steps(index), InputLedger()))
    commits = done(index, *work[:4])
    assert [(c.start, c.end, c.steps) for c in commits] == [(0, 10, 10), (10, 20, 20), (20, 30, 30), (30, 100, 40)]
    ahead = asyncio.run(index.run(4, (work[4],)))
    assert not ahead.commits
    assert [fault.dropped for fault in ahead.faults] == [True]


def test_a_second_index_goes_on_from_a_state_with_what_was_prepared(tmp_path: Path) -> None:
    index = make_index(tmp_path, "two-stage-train", LINES, epochs=2)
    prepare(index)
    work = list(remaining(steps(index), InputLedger()))
    commits = done(index, *work)
    assert commits[1].state is not None
    other = make_index(tmp_path, "two-stage-train", LINES, epochs=2)
    using(other)
    again = done(other, replace(work[2], state=commits[1].state.key), work[3])
    assert [c.metrics for c in again] == [c.metrics for c in commits[2:]]
    assert [c.model.sha256 for c in again if c.model] == [c.model.sha256 for c in commits[2:] if c.model]


def test_a_trainer_that_can_learn_nothing_says_so_in_the_plan_of_its_steps(tmp_path: Path) -> None:
    index = make_index(tmp_path, "two-stage-train", [])
    using(index)
    CommitLog.open(index.storage, FOLDER).claim("token", "2026-01-01T00:00:00Z")
    assert steps(index).error == "there are no numbers to learn from"


def test_a_trainer_sees_all_ports_among_its_inputs(tmp_path: Path) -> None:
    index = make_index(tmp_path, "two-stage-train", LINES)
    using(index)
    assert isinstance(index.worker, Trainer)
    assert [s.filename for s in index.worker.context.inputs["worker.data"]] == ["in.jsonl"]
    assert JobSpec.stored(index.config.spec_json).inputs[0].port == "worker.data"
