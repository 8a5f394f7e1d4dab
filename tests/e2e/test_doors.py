"""Every door through which a user comes: `ray job submit`, `jos.run(...)` in a script, the command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from jobs_lab import BIN, RAY_ENVIRONMENT, REPOSITORY, Lab, ray_head, until

from jos.core.model import Status


def texts(count: int) -> list[dict[str, Any]]:
    return [{"text": f"a {n}"} for n in range(count)]


def shouted(count: int) -> bytes:
    return b"".join(orjson.dumps({"line_index": n, "text": f"A {n}"}) + b"\n" for n in range(count))


def told(lab: Lab, *arguments: object, code: int = 0) -> Any:
    """What a `jos … --json` command says, and nothing but JSON on its standard output."""
    process = lab.jos(*arguments, "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"{out}\n{err}"
    return json.loads(out)


# --- ray job submit -----------------------------------------------------------------------------------


@pytest.fixture
def dashboard() -> Iterator[str]:
    with ray_head(dashboard=True) as head:
        yield head.dashboard


def test_ray_job_submit_runs_a_job_file_with_no_service_at_all(tmp_path: Path, dashboard: str) -> None:
    with contextlib.closing(Lab(tmp_path, None)) as lab:
        file = lab.job_yaml("shout", [lab.write("a.jsonl", texts(50))])
        own = {k: v for k, v in lab.environment.items() if k.startswith("JOS_")}
        command = [str(BIN / "ray"), "job", "submit", "--address", dashboard]
        command += ["--runtime-env-json", json.dumps({"env_vars": own}), "--"]
        command += ["python", "-m", "jos.driver", "run", str(file), "--json"]
        environment = {**os.environ, **RAY_ENVIRONMENT}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout
        total, [job] = lab.engine.jobs()
        assert (total, job.status, job.holds_capacity) == (1, Status.COMPLETED, False)
        assert f'"id": "{job.id}"' in done.stdout
        assert lab.outputs(job.id) == [shouted(50)]


# --- Python -------------------------------------------------------------------------------------------

SCRIPT = """
import sys
import jos

job = jos.run("shout", inputs={"data": sys.argv[1:]}, parameters={"worker": {"config": {"seconds": 0.05,
              "span_records": 4}}}, parallelism=2)
while job.progress.get("items_processed", 0) < 4:
    pass
assert job.status == "RUNNING", job.status
job.cancel()
try:
    job.wait(60, progress=False)
except Exception as error:
    assert "is CANCELLED" in str(error) and "resume() goes on" in str(error), error
else:
    raise AssertionError("a cancelled job was said to be complete")
done = job.progress["items_processed"]
job.resume().wait(60)
assert job.status == "COMPLETED"
assert 4 <= done < job.progress["items_processed"] == 60
frame = job.to_pandas()
assert list(frame["input_file"].unique()) == ["a.jsonl", "b.jsonl"]
assert list(frame["text"]) == [f"A {n}" for n in range(30)] * 2
events = job.events()
assert [e.id for e in events] == list(range(1, len(events) + 1))
assert [e.event_type for e in events][-1] == "job.completed"
assert len(job.outputs()) == len(job.inputs()) == 2
assert jos.Job(job.id).status == "COMPLETED"
try:
    jos.run("shout", inputs={"data": ["nothing.jsonl"]}, parameters={"worker": {"config": {"loud": 1}}})
except Exception as error:
    assert "$.parameters.worker.config.loud" in str(error), error
else:
    raise AssertionError("a wrong request was taken")
"""


def test_a_script_runs_cancels_resumes_and_reads_a_job(lab: Lab) -> None:
    files = [lab.write(name, texts(30)) for name in ("a.jsonl", "b.jsonl")]
    command = [sys.executable, "-W", "error", "-c", SCRIPT, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, env=lab.environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "60/60" in done.stderr  # the progress bar of `wait`


# --- the command line ---------------------------------------------------------------------------------


def test_the_command_line_runs_and_shows_a_job(lab: Lab) -> None:
    lab.write("a.jsonl", texts(40))
    lab.write("b.jsonl", [])
    shape = ("--pipeline", "shout", "--input", "worker.data=*.jsonl", "--set", "worker.config.span_records=8")
    job = told(lab, "run", *shape, "--parallelism", 2, "--name", "mine")
    assert (job["status"], job["name"], job["progress"]["items_processed"]) == ("COMPLETED", "mine", 40)
    job_id = job["id"]
    listed = told(lab, "jobs")
    assert (listed["total"], [j["id"] for j in listed["jobs"]]) == (1, [job_id])
    shown = told(lab, "show", "last")
    assert [(i["filename"], i["status"]) for i in shown["inputs"]] == [
        ("a.jsonl", "completed"),
        ("b.jsonl", "completed"),
    ]
    assert shown["parameters"]["worker"]["config"]["span_records"] == 8
    outputs = told(lab, "outputs", job_id, "--download", "results")
    assert [o["filename"] for o in outputs["outputs"]] == [f"{shown['inputs'][0]['id']}_output.jsonl"]
    assert (lab.folder / "results" / outputs["outputs"][0]["filename"]).read_bytes() == shouted(40)
    out, _ = lab.jos("events", job_id, "--json").communicate(timeout=120)
    events = [json.loads(line) for line in out.splitlines()]
    assert [e["id"] for e in events] == list(range(1, len(events) + 1))
    assert events[-1]["event_type"] == "job.completed"
    assert told(lab, "resume", job_id)["status"] == "COMPLETED"  # nothing is left to do, and nothing is done
    assert told(lab, "cancel", job_id, code=2)["errors"][0]["code"] == "conflict"


def test_the_command_line_shows_pipelines_and_this_machine(lab: Lab) -> None:
    found = told(lab, "pipelines")
    assert {"shout", "machine-state-classification"} <= {p["pipeline_key"] for p in found["pipelines"]}
    schema = told(lab, "schema", "machine-state-classification")
    assert set(schema["inputs"]) >= {"worker.inference", "worker.n_shots"}
    doctor = told(lab, "doctor")
    assert doctor["ok"]
    assert {"redis", "storage", "ray"} <= {f["name"] for f in doctor["findings"]}


def test_every_mistake_of_a_request_is_told_at_once(lab: Lab) -> None:
    file = lab.job_yaml("shout", [lab.write("a.jsonl", texts(3))], parallelism=0, loud=True)
    [error] = told(lab, "run", file, code=2)["errors"]
    assert error["code"] == "validation_error"
    paths = {v["path"] for v in error["violations"]}
    assert paths == {"$.parameters.worker.parallelism", "$.parameters.worker.config.loud"}
    assert told(lab, "show", "job_nothing", code=2)["errors"][0]["code"] == "not_found"


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(lab: Lab) -> None:
    file = lab.job_yaml("shout", [lab.write("a.jsonl", texts(60))], span_records=4, seconds=0.1)
    process = lab.jos("run", file)
    until(lambda: lab.engine.jobs()[0])
    [job] = lab.engine.jobs()[1]
    lab.wait_for_tasks(job.id, 8)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 4, out + err
    assert "Traceback" not in out + err
    assert f"resume {job.id}" in err
    stopped = lab.get(job.id)
    assert (stopped.status, stopped.holds_capacity) == (Status.PENDING, False)
    done = lab.tasks_done(job.id)
    assert 8 <= done < 60
    again = lab.jos("resume", job.id)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, out + err
    assert f"{job.id} COMPLETED" in out
    assert lab.outputs(job.id) == [shouted(60)]
    assert len(lab.attempts(job.id)) == 2
