"""activity-detection as it is shipped, on real drivers and indexes with the built-in model, killed on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from jobs_lab import Head, Lab, alive, kill, until

from actors.activity import ActivityWorker
from jos.core.model import Status
from jos.testing import run_worker

pytest.importorskip("xllamacpp")
SHIPPED = Path(__file__).parents[2] / "pipelines"
COUNT = int(os.environ.get("JOS_RECORDS", "24"))  # 200 in `make chaos`
CONFIG: dict[str, Any] = {
    "generation": {"do_sample": True, "max_new_tokens": 4, "temperature": 0.8, "top_k": 40, "top_p": 0.95},
    "seed": 11,
}


@pytest.fixture
def shipped(tmp_path: Path, ray: Head) -> Iterator[Lab]:
    one = Lab(tmp_path, ray.address, pipelines=(SHIPPED,))
    yield one
    one.close()


def write(folder: Path) -> Path:
    """Records, two of which are bad."""
    lines = [orjson.dumps({"system": "You watch a pump.", "prompt": f"flow {n}, state?"}) for n in range(COUNT)]
    lines[3], lines[9] = b"{oops", b'{"prompt": 5}'
    path = folder / "pump.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def commits(lab: Lab, job_id: str) -> list[tuple[int, int]]:
    return sorted((c.start, c.end) for entry in lab.log(job_id) for c in entry.commits)


def test_asked_to_leave_and_killed_twice_it_loses_no_record_and_gives_the_same_bytes(shipped: Lab) -> None:
    """As a preemption does it first, then an index is killed, then the driver. What was committed stays as it is; only
    what was in hand is done again, and the answers are those of the worker alone in one process."""
    file = write(shipped.folder)
    job_id = shipped.submit("activity-detection", [file], parallelism=1, **CONFIG)
    driver = shipped.resume(job_id)
    shipped.wait_for_tasks(job_id, 2)
    driver.ask_to_leave()
    assert driver.end(60).code == 4
    assert shipped.get(job_id).status is Status.PENDING
    assert shipped.tasks_done(job_id) < COUNT - 8
    driver = shipped.resume(job_id)
    [pid] = until(lambda: [p for e in shipped.events(job_id, "index.started") if alive(p := e.payload["pid"])])
    kill(pid)
    shipped.wait_for(job_id, "index.restarted")
    shipped.wait_for_tasks(job_id, shipped.tasks_done(job_id) + 2)
    driver.kill()
    before = commits(shipped, job_id)
    assert before[-1][1] < COUNT
    job = shipped.complete(job_id)
    assert job.status is Status.COMPLETED
    assert set(before) <= set(commits(shipped, job_id))
    assert shipped.committed(job_id) == {0: COUNT}  # each record in exactly one commit
    assert len(shipped.attempts(job_id)) == 3
    alone = run_worker(ActivityWorker, [file], config=CONFIG)
    (found,) = shipped.outputs(job_id)
    assert found == alone.files["inp_pump_output.jsonl"]
    answers = [orjson.loads(line) for line in found.splitlines()]
    assert [a["line_index"] for a in answers] == list(range(COUNT))
    assert [n for n, a in enumerate(answers) if a["prediction"] is None] == [3, 9]
    (output,) = shipped.engine.outputs(job_id)
    assert output.filename == f"inp_{str(output.input_id).removeprefix('inp_')}_output.jsonl"
