"""Trainings in two stages on real Ray: preparation over the indexes, then steps; checkpoints on the way."""

from __future__ import annotations

import os
import random
from pathlib import Path

from jobs_lab import Lab, alive, kill, until

from jos.core.ledger import STEPS, Commit
from jos.core.model import Checkpoint, Status
from jos.verify import verify


def numbers(lab: Lab, files: int = 3) -> list[Path]:
    return [lab.write(f"{n}.jsonl", [{"x": n * 10 + at} for at in range(40)]) for n in range(files)]


def models(lab: Lab, job_id: str) -> dict[int, bytes]:
    """Step -> checkpoint, by the log."""
    commits: list[Commit] = lab.ledger(job_id).of(STEPS).models
    folder = lab.folder_of(job_id)
    return {c.steps: lab.engine.storage.read(folder + c.model.key) for c in commits if c.model is not None}


def checkpoints(lab: Lab, job_id: str) -> list[Checkpoint]:
    return lab.engine.checkpoints(job_id)


def test_inputs_are_prepared_by_all_indexes_and_the_steps_done_by_one(lab: Lab) -> None:
    job_id = lab.submit("two-stage-train", numbers(lab), epochs=3, seconds=0.02)
    job = lab.complete(job_id)
    assert (job.status, job.holds_capacity) == (Status.COMPLETED, False)
    assert lab.committed(job_id) == {0: 40, 1: 40, 2: 40, STEPS: 360}
    commits = [c for entry in lab.log(job_id) for c in entry.commits]
    assert {c.index for c in commits if c.input != STEPS} == {0, 1}
    assert len({c.index for c in commits if c.input == STEPS}) == 1
    assert lab.outputs(job_id) == []  # what was prepared is nobody's output
    assert [i["status"] for i in lab.engine.inputs(job_id)] == ["completed"] * 3
    found = checkpoints(lab, job_id)
    assert [(c.name, c.step) for c in found] == [("step_120", 120), ("step_240", 240), ("step_360", 360)]
    assert [e.payload["checkpoint_id"] for e in lab.events(job_id, "checkpoint.saved")] == [c.id for c in found]
    assert len(lab.events(job_id, "preparation.success")) == 3
    assert len(lab.events(job_id, "training.completed")) == 1
    report = verify(lab.engine.storage, lab.settings.org, job_id)
    assert (report.problems, report.counts["orphans"]) == ([], 0)


def test_a_training_that_stops_early_is_complete(lab: Lab) -> None:
    job_id = lab.submit("two-stage-train", numbers(lab, files=1), epochs=50, stop_after=2)
    assert lab.complete(job_id).status is Status.COMPLETED
    assert lab.committed(job_id) == {0: 40, STEPS: 2000}
    [stopped] = lab.events(job_id, "training.stopped")
    assert stopped.payload["step"] == 80
    assert sorted(models(lab, job_id)) == [40, 80]


def pids(lab: Lab, job_id: str) -> list[int]:
    """Of the indexes that live."""
    started = (e for e in lab.events(job_id) if e.event_type in ("index.started", "index.restarted"))
    return [pid for e in started if alive(pid := e.payload["pid"])]


def test_killed_in_either_stage_it_ends_with_the_same_checkpoints(lab: Lab) -> None:
    files = numbers(lab)
    calm, hurt = (lab.submit("two-stage-train", files, epochs=2, seconds=0.01) for _ in range(2))
    lab.complete(calm)
    chance = random.Random(11)
    for what, until_tasks in (("index", 16), ("driver", 60), ("index", 150), ("driver", 240)):
        driver = lab.resume(hurt)
        lab.wait_for_tasks(hurt, max(until_tasks, lab.tasks_done(hurt)) + chance.randrange(1, 30))
        if what == "index":
            lost = len(lab.events(hurt, "index.lost"))
            kill(chance.choice(until(lambda: pids(lab, hurt))))
            lab.wait_for(hurt, "index.lost", lost + 1)
        driver.kill()
    assert lab.complete(hurt).status is Status.COMPLETED
    assert models(lab, hurt) == models(lab, calm)
    assert lab.committed(hurt) == lab.committed(calm)
    assert [c.step for c in checkpoints(lab, hurt)] == [c.step for c in checkpoints(lab, calm)] == [120, 240]
    assert len(lab.events(hurt, "checkpoint.saved")) == 2


def test_a_bad_file_fails_alone_and_the_training_goes_on_without_it(lab: Lab) -> None:
    good = lab.write("good.jsonl", [{"x": n} for n in range(8)])
    gone = lab.write("gone.jsonl", [{"x": n} for n in range(8)])
    job_id = lab.submit("two-stage-train", [good, gone], epochs=1)
    gone.unlink()
    assert lab.complete(job_id).status is Status.COMPLETED
    assert lab.committed(job_id) == {0: 8, STEPS: 8}
    assert [i["status"] for i in lab.engine.inputs(job_id)] == ["completed", "failed"]
    assert "gone.jsonl" in lab.events(job_id, "preparation.failed")[0].message


def test_a_training_that_can_learn_nothing_fails_and_a_retry_prepares_anew(lab: Lab) -> None:
    gone = lab.write("gone.jsonl", [{"x": n} for n in range(8)])
    kept = gone.read_bytes()
    stamp = gone.stat().st_mtime_ns
    job_id = lab.submit("two-stage-train", [gone], epochs=1)
    gone.unlink()
    assert lab.resume(job_id).end().code == 1
    job = lab.get(job_id)
    assert job.error is not None
    assert (job.status, job.error.code) == (Status.FAILED, "training_impossible")
    assert "no numbers to learn from" in job.error.message
    gone.write_bytes(kept)
    os.utime(gone, ns=(stamp, stamp))
    assert lab.complete(job_id).status is Status.COMPLETED
    assert lab.committed(job_id) == {0: 8, STEPS: 8}
