"""kill -9 of whatever a job runs on, at random moments; the end must be the same as without.

JOS_CHAOS_KILLS says how often (2 in a test run, 10 in `make chaos`). JOS_CHAOS_SEED draws the victims and moments of
an earlier run again; what the machine makes of them is up to the machine.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jobs_lab import HERE, REPOSITORY, Driver, Head, Lab, alive, kill, until

from jos.core.model import Status
from jos.request import build
from jos.store import embedded

KILLS = int(os.environ.get("JOS_CHAOS_KILLS", "2"))
SEED = int(os.environ.get("JOS_CHAOS_SEED") or secrets.randbelow(1 << 32))
SPAN, SPANS_PER_PART, WINDOW = 8, 4, 16
CONFIG = {
    "model_type": "stats",
    "batch_size": SPAN,
    "flush_every_n_iteration": SPANS_PER_PART,
    "reader_config": {"data_columns": ["x", "y"], "timestamp_column": "t", "window_size": WINDOW},
}


def slow_states(folder: Path) -> Path:
    """The pipeline as it is, with the slowed worker and spans as small as a batch."""
    template = yaml.safe_load((REPOSITORY / "pipelines/machine-state-classification/1.0.0.yaml").read_text())
    template |= {"pipeline_key": "slow-states", "worker": "slow_states:SlowStates"}
    template["default_config"]["worker"]["config"]["operations"]["span_seconds"] = 1e-6
    (folder / "slow-states").mkdir(parents=True)
    (folder / "slow-states/1.0.0.yaml").write_text(yaml.safe_dump(template))
    return folder


@pytest.fixture
def lab(tmp_path: Path, ray: Head) -> Iterator[Lab]:
    pipelines = (HERE / "pipelines", slow_states(tmp_path / "pipelines"))
    with contextlib.closing(Lab(tmp_path, ray.address, pipelines=pipelines)) as one:
        yield one


def recording(path: Path, rows: int, swing: float, chance: random.Random) -> Path:
    lines = [f"{n},{chance.gauss(0, swing):.4f},{chance.gauss(swing, 1):.4f}\n" for n in range(rows)]
    path.write_text("t,x,y\n" + "".join(lines))
    return path


def submit(lab: Lab) -> list[str]:
    """Two jobs on the very same files."""
    chance = random.Random(1)
    calm, busy = (recording(lab.folder / f"{swing}.csv", 120, swing, chance) for swing in (1.0, 4.0))
    # long enough for each kill to hit something, and one file that ends in the middle of a part
    sizes = [200 + 150 * KILLS, 45, 250 + 150 * KILLS]
    files = [recording(lab.folder / f"plant{n}.csv", rows, 2.0 + n, chance) for n, rows in enumerate(sizes)]
    inputs = {"inference": files, "n_shots": [(calm, "calm"), (busy, "busy")]}
    request = build("slow-states", inputs, {"worker": {"config": CONFIG}}, parallelism=2)
    return [lab.engine.submit(request).id for _ in range(2)]


def results(lab: Lab, job_id: str) -> dict[str, bytes]:
    """Stem and part -> content; the names differ between two jobs by the ids of their inputs only."""
    names = [output.filename.partition("_output_")[2] for output in lab.engine.outputs(job_id)]
    assert len(set(names)) == len(names)
    return dict(zip(names, lab.outputs(job_id), strict=True))


class Killer:
    """Hits the driver, an index or Valkey; `resume` after each hit of a driver."""

    def __init__(self, lab: Lab, job_id: str, seed: int) -> None:
        self.lab, self.job_id, self.chance = lab, job_id, random.Random(seed)
        self.driver: Driver = lab.resume(job_id)
        self.hits: list[str] = []

    def over(self) -> bool:
        return self.driver.process.poll() is not None

    def hit(self) -> None:
        what = self.chance.choice(("driver", "index", "redis"))
        tasks = self.lab.tasks_done(self.job_id) + self.chance.randrange(1, 12 * SPAN)
        events = float("inf")
        if self.chance.random() < 0.25:  # or as soon as an event more is there: often in the middle of a start
            events = len(self.lab.events(self.job_id)) + 1 + self.chance.randrange(3)
        until(
            lambda: (
                self.lab.tasks_done(self.job_id) >= tasks or len(self.lab.events(self.job_id)) >= events or self.over()
            )
        )
        if self.over():
            return
        match what:
            case "driver":
                self.driver.kill()
                self.driver = self.lab.resume(self.job_id)
            case "index":
                pids = until(lambda: [pid for pid in self.indexes() if alive(pid)] or self.over())
                if pids is True:
                    return
                kill(self.chance.choice(pids))
            case "redis":
                kill(int((self.lab.settings.redis_dir / embedded.PID).read_text()))
        self.hits.append(f"{what} at task {self.lab.tasks_done(self.job_id)}")

    def indexes(self) -> list[int]:
        up = (*self.lab.events(self.job_id, "index.started"), *self.lab.events(self.job_id, "index.restarted"))
        return [event.payload["pid"] for event in up]


def test_a_job_killed_again_and_again_ends_as_if_nothing_had_happened(lab: Lab) -> None:
    print(f"\nJOS_CHAOS_SEED={SEED} JOS_CHAOS_KILLS={KILLS}")
    calm, hurt = submit(lab)
    lab.complete(calm)
    assert sum(len(entry.commits) for entry in lab.log(calm)) >= 60
    killer = Killer(lab, hurt, SEED)
    for _ in range(KILLS):
        killer.hit()
    print("; ".join(killer.hits))
    ended = killer.driver.end(120)
    assert ended.code == 0, ended.said
    assert len(killer.hits) == KILLS, "the job was over before every kill had its turn"
    job = lab.get(hurt)
    assert (job.status, job.holds_capacity, job.error) == (Status.COMPLETED, False, None)
    assert lab.committed(hurt) == lab.committed(calm)
    assert results(lab, hurt) == results(lab, calm)
    assert lab.ledger(hurt).tasks_failed == 0
    assert lab.events(hurt)[-1].event_type == "job.completed"  # and without a gap before it
    assert [i.get("done") for i in lab.engine.inputs(hurt)] == [i.get("done") for i in lab.engine.inputs(calm)]


def test_a_driver_that_wakes_up_after_its_job_went_on_without_it_does_no_harm(lab: Lab) -> None:
    """A machine that was suspended, or cut off for a while: a zombie that still believes that it owns the job."""
    records = [{"text": f"a {n}"} for n in range(80)]
    job_id = lab.submit("shout", [lab.write("a.jsonl", records)], span_records=4, seconds=0.05)
    zombie = lab.resume(job_id)
    lab.wait_for_tasks(job_id, 12)
    zombie.process.send_signal(signal.SIGSTOP)
    second = lab.resume(job_id, "--take-over")
    lab.wait_for_tasks(job_id, lab.tasks_done(job_id) + 8)
    zombie.process.send_signal(signal.SIGCONT)
    assert zombie.end(60).code == 3
    assert second.end().code == 0
    assert lab.committed(job_id) == {0: 80}
    writers = [entry.attempt for entry in lab.log(job_id)]
    assert writers == sorted(writers, key=writers.index)
    assert [line.count(b'"text"') for line in lab.outputs(job_id)] == [80]
    assert lab.get(job_id).status is Status.COMPLETED
    lab.events(job_id)
