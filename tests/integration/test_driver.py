"""Drivers and indexes as processes on a real Ray: what a job becomes when all goes well, and when its records, its
workers or its users do not. Deaths and outages are in test_driver_survives.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from jobs_lab import Lab

from jos.core.ledger import STEPS
from jos.core.model import Level, Status

Records = list[dict[str, Any]]


def texts(name: str, count: int, **more: Any) -> Records:
    return [{"text": f"{name} {n}", **more} for n in range(count)]


def shouted(records: Records, bad: dict[int, str] | None = None) -> bytes:
    """What the shout worker makes of records, byte for byte."""
    answers = [{"error": bad[n]} if bad and n in bad else {"text": r["text"].upper()} for n, r in enumerate(records)]
    return b"".join(orjson.dumps({"line_index": n, **answer}) + b"\n" for n, answer in enumerate(answers))


# --- when all goes well -------------------------------------------------------------------------------


def test_a_job_file_becomes_one_output_per_input_in_order(lab: Lab) -> None:
    sizes = {"a.jsonl": 100, "b.jsonl": 1, "c.jsonl": 37, "empty.jsonl": 0}
    files = [lab.write(name, texts(name, size)) for name, size in sizes.items()]
    files[2].write_bytes(files[2].read_bytes().removesuffix(b"\n"))  # the last line may be open
    ended = lab.driver("run", lab.job_yaml("shout", files, span_records=8)).end()
    assert (ended.code, ended.result["ending"]) == (0, "completed"), ended.said
    job = lab.get(ended.result["id"])
    assert (job.status, job.holds_capacity) == (Status.COMPLETED, False)
    assert lab.outputs(job.id) == [shouted(texts(name, size)) for name, size in sizes.items() if size]
    inputs = lab.engine.inputs(job.id)
    assert [o.filename for o in lab.engine.outputs(job.id)] == [f"{i['id']}_output.jsonl" for i in inputs[:3]]
    assert [(i["filename"], i["done"]) for i in inputs] == list(sizes.items())
    assert {i["status"] for i in inputs} == {"completed"}
    assert lab.committed(job.id) == {0: 100, 1: 1, 2: 37}
    assert [e.message for e in lab.events(job.id, "input.empty")] == ["empty.jsonl: the file holds no record"]
    kinds = [e.event_type for e in lab.events(job.id)]
    assert kinds[:2] == ["job.created", "job.admitted"]
    assert kinds[-2:] == ["inference.completed", "job.completed"]
    assert kinds.count("inference.success") == len(sizes)


def test_a_job_id_of_ones_own_is_started_once_and_then_gone_on_with(lab: Lab) -> None:
    """As a RayJob does whose pod is started again: the same command line, after the job was completed."""
    file = lab.job_yaml("shout", [lab.write("a.jsonl", texts("a", 20))])
    job_id = "job_" + "0" * 26
    assert lab.driver("run", file, "--job-id", job_id).end().code == 0
    before = lab.events(job_id), lab.log(job_id), lab.get(job_id)
    for again in (("run", file, "--job-id", job_id), ("resume", job_id)):
        ended = lab.driver(*again).end()
        assert (ended.code, ended.result["ending"]) == (0, "completed")
    assert (lab.events(job_id), lab.log(job_id), lab.get(job_id)) == before


def test_a_job_without_any_work_completes(lab: Lab) -> None:
    job_id = lab.submit("shout", [lab.write("empty.jsonl", [])])
    assert lab.complete(job_id).status is Status.COMPLETED
    assert lab.outputs(job_id) == []


def test_a_completed_training_leaves_its_last_state_as_a_checkpoint(lab: Lab) -> None:
    job_id = lab.submit("quick-train", steps=40, span_steps=10)
    lab.complete(job_id)
    last = lab.ledger(job_id).of(STEPS).state
    [one] = lab.engine._thread.call(lab.engine.parts.store.checkpoints(job_id))
    assert last is not None
    assert last.state is not None
    assert (one.name, one.step, one.metrics, one.key) == ("step_40", 40, dict(last.metrics), last.state.key)
    assert len(lab.engine.storage.read(lab.folder_of(job_id) + one.key)) == one.num_bytes
    [event] = lab.events(job_id, "checkpoint.saved")
    assert event.payload["checkpoint_id"] == one.id


# --- records that fail --------------------------------------------------------------------------------


def test_poison_records_fail_alone_and_are_named(lab: Lab, tmp_path: Path) -> None:
    good, bad = texts("good", 40), texts("bad", 40)
    bad[3]["do"] = "raise"
    bad[17]["do"] = "die"
    bad[20] |= {"do": "die once", "mark": str(tmp_path / "died")}
    bad[33]["refuse"] = "not this one"
    files = [lab.write("good.jsonl", good), lab.write("bad.jsonl", bad)]
    job_id = lab.submit("fragile", files, span_records=4)
    job = lab.complete(job_id)
    assert (job.status, job.holds_capacity) == (Status.COMPLETED, False)
    assert lab.committed(job_id) == {0: 40, 1: 40}
    first, second = lab.outputs(job_id)
    assert first == shouted(good)
    lines = [orjson.loads(line) for line in second.splitlines()]
    errors = {line["line_index"]: line["error"] for line in lines if "error" in line}
    assert sorted(errors) == [3, 17, 33]
    assert "this record is poison" in errors[3]
    assert "died" in errors[17]
    assert errors[33] == "not this one"
    assert [line.get("text") for line in lines] == [None if n in errors else f"BAD {n}" for n in range(40)]
    [event] = lab.events(job_id, "inference.failed")
    assert event.level is Level.ERROR
    assert "3 of 40 tasks failed" in event.message
    assert "bad.jsonl line 4: ValueError: this record is poison" in event.message
    assert {i["filename"]: i["status"] for i in lab.engine.inputs(job_id)} == {
        "good.jsonl": "completed",
        "bad.jsonl": "failed",
    }
    assert lab.events(job_id, "index.lost")


def test_a_record_that_hangs_is_timed_out_and_buried(lab: Lab) -> None:
    records = texts("a", 12)
    records[5]["do"] = "hang"
    job_id = lab.submit(
        "impatient", [lab.write("a.jsonl", records), lab.write("b.jsonl", texts("b", 4))], span_records=2
    )
    assert lab.complete(job_id).status is Status.COMPLETED
    lines = [orjson.loads(line) for line in lab.outputs(job_id)[0].splitlines()]
    assert [n for n, line in enumerate(lines) if "error" in line] == [5]
    assert "timed out" in lines[5]["error"]
    assert "a.jsonl line 6" in lab.events(job_id, "inference.failed")[0].message


def test_one_bad_line_in_the_only_file_does_not_fail_the_job(lab: Lab) -> None:
    path = lab.write("a.jsonl", texts("a", 10))
    path.write_bytes(path.read_bytes().replace(b'{"text":"a 4"}', b"{no json"))
    job_id = lab.submit("shout", [path])
    assert lab.complete(job_id).status is Status.COMPLETED
    assert [i["status"] for i in lab.engine.inputs(job_id)] == ["failed"]
    assert "a.jsonl line 5: parse error" in lab.events(job_id, "inference.failed")[0].message


def test_a_job_none_of_whose_inputs_gave_anything_fails(lab: Lab) -> None:
    files = [lab.write(f"{n}.jsonl", texts("a", 3, refuse="no")) for n in range(2)]
    files.append(lab.folder / "binary.jsonl")
    files[-1].write_bytes(b"\0" * 100)
    job_id = lab.submit("shout", files)
    assert lab.resume(job_id).end().code == 1
    job = lab.get(job_id)
    assert (job.status, job.holds_capacity, job.automatic_retries) == (Status.FAILED, False, 0)
    assert job.error is not None
    assert "all 3 inputs failed" in job.error.message
    assert "0.jsonl line 1: no" in job.error.message
    assert "binary.jsonl" in job.error.details["inputs"]


def test_an_input_that_was_changed_fails_alone(lab: Lab) -> None:
    files = [lab.write(name, texts(name, 20)) for name in ("kept.jsonl", "changed.jsonl", "gone.jsonl")]
    job_id = lab.submit("shout", files)
    lab.write("changed.jsonl", texts("other", 21))
    files[2].unlink()
    assert lab.complete(job_id).status is Status.COMPLETED
    assert lab.outputs(job_id) == [shouted(texts("kept.jsonl", 20))]
    states = {i["filename"]: (i["status"], i.get("error_message") or "") for i in lab.engine.inputs(job_id)}
    assert states["kept.jsonl"] == ("completed", "")
    assert states["changed.jsonl"][0] == states["gone.jsonl"][0] == "failed"
    assert "was changed after the job was created" in states["changed.jsonl"][1]
    assert "There is no file" in states["gone.jsonl"][1]
    assert len(lab.events(job_id, "inference.failed")) == 2


def test_out_of_memory_halves_the_batch_and_goes_on(lab: Lab) -> None:
    records = texts("a", 64)
    job_id = lab.submit("hungry", [lab.write("a.jsonl", records)], parallelism=1)
    assert lab.complete(job_id).status is Status.COMPLETED
    assert lab.outputs(job_id) == [shouted(records)]
    events = lab.events(job_id, "inference.oom")
    assert [e.payload["batch_size"] for e in events] == [8, 4, 2]
    assert {e.level for e in events} == {Level.WARN}


# --- workers that cannot start ------------------------------------------------------------------------


def test_an_impossible_job_fails_at_once_with_the_workers_words(lab: Lab) -> None:
    job_id = lab.submit("fragile", [lab.write("a.jsonl", texts("a", 3))], impossible="too few examples: 2 of 5")
    ended = lab.resume(job_id).end()
    job = lab.get(job_id)
    assert (ended.code, job.status, job.holds_capacity) == (1, Status.FAILED, False)
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("invalid_job", "too few examples: 2 of 5")
    assert not lab.events(job_id, "job.requeued")
    assert len(lab.attempts(job_id)) == 1


def test_a_worker_that_dies_in_setup_is_tried_again_and_then_given_up(lab: Lab) -> None:
    job_id = lab.submit("fragile", [lab.write("a.jsonl", texts("a", 3))], broken_setup=True)
    ended = lab.resume(job_id).end(120)
    job = lab.get(job_id)
    assert (ended.code, job.status, job.holds_capacity) == (1, Status.FAILED, False)
    assert job.error is not None
    assert job.error.code == "compute_failed"
    assert "in a row" in job.error.message
    assert "while it was being set up: its process" in job.error.message
    [again] = lab.events(job_id, "job.requeued")
    assert "Retry 1 of 1 in 0.5 s" in again.message
    assert len(lab.attempts(job_id)) == 2
    assert lab.committed(job_id) == {}


# --- set-ups that cannot work -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("JOS_REDIS_URL", "redis://127.0.0.1:1", "Redis at redis://127.0.0.1:1 does not serve"),
        ("JOS_STORAGE", "s3://nothing-here/jobs", "nothing-here"),
        ("JOS_STORAGE", "memory://jobs", "every process would have a memory of its own"),
    ],
    ids=["redis", "storage", "memory"],
)
def test_what_cannot_be_reached_is_told_in_time(lab: Lab, setting: str, value: str, says: str) -> None:
    job = lab.job_yaml("shout", [lab.write("a.jsonl", texts("a", 3))])
    environment = {setting: value, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a"}
    environment |= {"AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    ended = lab.driver("run", job, environment=environment).end(40)
    assert ended.code == 2, ended.said
    assert says in ended.result["error"]["message"]
    assert "Traceback" not in ended.said
    assert ended.said.count("error (") == 1


def test_a_ray_that_cannot_be_reached_is_told_and_tried_again(lab: Lab) -> None:
    """It may only be starting: unlike a wrong request, that is worth another attempt."""
    job_id = lab.submit("fragile", [lab.write("a.jsonl", texts("a", 3))])
    ended = lab.driver("resume", job_id, environment={"JOS_RAY_ADDRESS": "127.0.0.1:1"}).end(40)
    job = lab.get(job_id)
    assert (ended.code, job.status, job.automatic_retries) == (1, Status.FAILED, 1)
    assert job.error is not None
    assert "Ray at 127.0.0.1:1 cannot be reached" in job.error.message
    assert lab.complete(job_id).status is Status.COMPLETED
