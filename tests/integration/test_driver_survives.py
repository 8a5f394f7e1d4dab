"""Drivers, indexes, Redis and storage that die, leave, come twice or fill up in the middle of a job: nothing that was
committed is lost or done again, and the end is the same as without."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_lab import Head, Lab, alive, kill, until
from services_lab import BUCKET, S3, missing
from test_driver import shouted, texts

from jos.core.ledger import STEPS
from jos.core.model import Status
from jos.store import embedded


def traced(lab: Lab, name: str, count: int) -> list[dict[str, str]]:
    """Records that leave a line in a file each time they are worked on."""
    return [{"text": f"{name} {n}", "trace": str(lab.folder / "trace")} for n in range(count)]


def worked_on(lab: Lab) -> list[str]:
    trace = lab.folder / "trace"
    return trace.read_text().splitlines() if trace.exists() else []


def slow_job(lab: Lab, count: int = 60) -> str:
    """Some 3 s of work on two indexes, in spans of four records."""
    file = lab.write("a.jsonl", traced(lab, "a", count))
    return lab.submit("shout", [file], span_records=4, seconds=0.1)


def committed_texts(lab: Lab, job_id: str) -> set[str]:
    commits = [c for entry in lab.log(job_id) for c in entry.commits]
    return {f"a {n}" for c in commits for n in range(c.start, c.end)}


def assert_whole(lab: Lab, job_id: str, before: set[str], count: int = 60) -> None:
    """The job is complete, its output right, and nothing of `before` was worked on twice."""
    job = lab.get(job_id)
    assert (job.status, job.holds_capacity) == (Status.COMPLETED, False)
    assert lab.committed(job_id) == {0: count}
    assert lab.outputs(job_id) == [shouted(texts("a", count))]
    work = worked_on(lab)
    assert [text for text in before if work.count(text) != 1] == []
    lab.events(job_id)  # checks their numbers


# --- asked to leave -----------------------------------------------------------------------------------


def test_cancel_stops_soon_and_a_resume_goes_on(lab: Lab) -> None:
    job_id = slow_job(lab)
    driver = lab.resume(job_id)
    lab.wait_for_tasks(job_id, 8)
    assert lab.engine.cancel(job_id).status is Status.CANCELLED
    ended = driver.end(10)
    assert (ended.code, ended.result["ending"]) == (5, "cancelled"), ended.said
    job = lab.get(job_id)
    assert (job.status, job.holds_capacity) == (Status.CANCELLED, False)
    before = committed_texts(lab, job_id)
    assert 8 <= len(before) < 60
    lab.complete(job_id)
    assert_whole(lab, job_id, before)
    kinds = [e.event_type for e in lab.events(job_id)]
    assert kinds.count("job.canceled") == kinds.count("job.retried") == 1


def test_a_cancel_while_it_waits_to_be_tried_again_is_final(lab: Lab) -> None:
    job_id = slow_job(lab)
    driver = lab.driver("resume", job_id, environment={"JOS_RAY_ADDRESS": "127.0.0.1:1"})
    lab.wait_for(job_id, "job.requeued")
    lab.engine.cancel(job_id)
    assert driver.end(5).code == 5  # long before the back-off is over
    assert lab.get(job_id).status is Status.CANCELLED
    assert not lab.events(job_id, "job.retried")


def test_sigterm_commits_what_is_in_hand_and_leaves_the_job_pending(lab: Lab) -> None:
    job_id = slow_job(lab)
    driver = lab.resume(job_id)
    lab.wait_for_tasks(job_id, 8)
    driver.ask_to_leave()
    ended = driver.end(60)
    assert (ended.code, ended.result["ending"]) == (4, "drained"), ended.said
    job = lab.get(job_id)
    assert (job.status, job.holds_capacity, job.automatic_retries) == (Status.PENDING, False, 0)
    before = committed_texts(lab, job_id)
    assert before == set(worked_on(lab))  # all that was begun was finished
    lab.complete(job_id)
    assert_whole(lab, job_id, before)
    assert lab.attempts(job_id) == list(dict.fromkeys(e.attempt for e in lab.log(job_id)))
    assert len(lab.attempts(job_id)) == 2


def test_a_task_in_hand_may_take_longer_than_ray_gives_a_process_after_sigterm(lab: Lab) -> None:
    """Ray's own handler of SIGTERM aborts a process 3 s later."""
    file = lab.write("long.jsonl", [{"text": f"long {n}"} for n in range(4)])
    job_id = lab.submit("shout", [file], parallelism=1, span_records=1, seconds=4.5)
    driver = lab.resume(job_id)
    lab.wait_for_tasks(job_id, 1)
    driver.ask_to_leave()
    ended = driver.end(30)
    assert (ended.code, ended.result["ending"]) == (4, "drained"), ended.said
    assert "*** SIGTERM" not in ended.said  # nor does that handler come before ours


def test_sigterm_before_any_work_leaves_at_once(lab: Lab) -> None:
    job_id = slow_job(lab)
    driver = lab.resume(job_id)
    lab.wait_for(job_id, "job.admitted")
    driver.ask_to_leave()
    assert driver.end(60).code == 4
    assert lab.get(job_id).status is Status.PENDING
    lab.complete(job_id)
    assert_whole(lab, job_id, set())


# --- killed -------------------------------------------------------------------------------------------


def test_a_killed_driver_is_followed_at_once_by_the_next(lab: Lab) -> None:
    job_id = slow_job(lab)
    driver = lab.resume(job_id)
    lab.wait_for_tasks(job_id, 8)
    driver.kill()
    before = committed_texts(lab, job_id)
    lab.complete(job_id)
    assert_whole(lab, job_id, before)
    assert len(lab.attempts(job_id)) == 2
    assert lab.get(job_id).automatic_retries == 1


def test_what_failed_for_good_is_not_tried_again_because_a_driver_was_killed(lab: Lab) -> None:
    """Only a user's retry does that."""
    records = [{"text": f"a {n}"} for n in range(60)]
    records[2]["refuse"] = records[5]["do"] = "raise"
    job_id = lab.submit("fragile", [lab.write("a.jsonl", records)], span_records=4, seconds=0.1)
    driver = lab.resume(job_id)
    until(lambda: lab.tasks_done(job_id) and lab.ledger(job_id).tasks_failed == 2)
    driver.kill()
    lab.complete(job_id)
    assert lab.committed(job_id) == {0: 60}
    assert lab.ledger(job_id).tasks_failed == 2


def test_a_driver_killed_before_it_began_is_followed_at_once_by_the_next(lab: Lab) -> None:
    job_id = slow_job(lab)
    driver = lab.resume(job_id)
    lab.wait_for(job_id, "job.admitted")
    driver.kill()
    lab.complete(job_id)
    assert_whole(lab, job_id, set())


def test_a_driver_killed_after_its_last_commit_leaves_only_words_to_be_said(lab: Lab) -> None:
    job_id = slow_job(lab)
    driver = lab.resume(job_id)
    lab.wait_for_tasks(job_id, 60)
    driver.kill()
    lab.complete(job_id)
    assert_whole(lab, job_id, committed_texts(lab, job_id))
    assert len(lab.events(job_id, "inference.success")) == 1
    assert len(lab.events(job_id, "inference.completed")) == 1


def test_a_second_driver_is_refused_while_the_first_is_heard(lab: Lab) -> None:
    job_id = slow_job(lab)
    first = lab.resume(job_id)
    lab.wait_for_tasks(job_id, 4)
    refused = lab.resume(job_id).end(10)
    assert refused.code == 2
    assert refused.result["error"]["code"] == "conflict"
    assert "is running: process" in refused.result["error"]["message"]
    assert first.end().code == 0
    assert_whole(lab, job_id, committed_texts(lab, job_id))


def test_a_driver_that_was_taken_over_leaves_and_writes_nothing_more(lab: Lab) -> None:
    job_id = slow_job(lab)
    first = lab.resume(job_id)
    lab.wait_for_tasks(job_id, 8)
    second = lab.resume(job_id, "--take-over")
    ended = first.end(60)
    assert (ended.code, ended.result["ending"]) == (3, "fenced"), ended.said
    assert second.end().code == 0
    assert_whole(lab, job_id, set())
    writers = [entry.attempt for entry in lab.log(job_id)]
    assert len(set(writers)) == 2
    assert writers == sorted(writers, key=writers.index)  # the first wrote nothing after the second's claim


def test_a_killed_index_is_replaced(lab: Lab) -> None:
    job_id = slow_job(lab)
    driver = lab.resume(job_id)
    pid = lab.wait_for(job_id, "index.started", 2)[1].payload["pid"]
    lab.wait_for_tasks(job_id, 8)
    kill(pid)
    assert driver.end().code == 0
    assert_whole(lab, job_id, set())
    assert len(lab.events(job_id, "index.lost")) == len(lab.events(job_id, "index.restarted")) == 1
    assert f"its process {pid} died" in lab.events(job_id, "index.lost")[0].message


def final_state(lab: Lab, job_id: str) -> bytes:
    last = lab.ledger(job_id).of(STEPS).state
    assert last is not None
    assert last.state is not None
    assert last.end == 200
    return lab.engine.storage.read(lab.folder_of(job_id) + last.state.key)


def test_a_training_killed_again_and_again_ends_in_the_very_same_state(lab: Lab) -> None:
    calm, hurt = (lab.submit("quick-train", steps=200, span_steps=10, seconds=0.02) for _ in range(2))
    lab.complete(calm)
    chance = random.Random(4)
    for what in ("driver", "index", "driver"):
        driver = lab.resume(hurt)
        lab.wait_for_tasks(hurt, lab.tasks_done(hurt) + chance.randrange(1, 30))
        if what == "index":
            [pid] = until(lambda: [p for e in lab.events(hurt, "index.started") if alive(p := e.payload["pid"])])
            kill(pid)
            lab.wait_for(hurt, "index.restarted")
        driver.kill()
    lab.complete(hurt)
    assert final_state(lab, hurt) == final_state(lab, calm)
    assert lab.committed(hurt) == lab.committed(calm) == {STEPS: 200}
    assert len(lab.attempts(hurt)) == 4
    assert len(lab.events(hurt, "index.lost")) == 1


def test_a_killed_redis_costs_neither_work_nor_events(lab: Lab) -> None:
    job_id = slow_job(lab)
    driver = lab.resume(job_id)
    for tasks in (8, 24):
        lab.wait_for_tasks(job_id, tasks)
        kill(int((lab.settings.redis_dir / embedded.PID).read_text()))
    assert driver.end().code == 0
    assert_whole(lab, job_id, committed_texts(lab, job_id))
    assert len(lab.attempts(job_id)) == 1
    kinds = [e.event_type for e in lab.events(job_id)]
    assert kinds[-2:] == ["inference.completed", "job.completed"]
    twice = {kind for kind in kinds if kinds.count(kind) > 1}
    assert twice <= {"index.started"}  # nothing was told again


# --- storage ------------------------------------------------------------------------------------------


def test_a_job_on_s3_survives_its_driver(tmp_path: Path, seaweedfs: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Ray of its own: indexes have their credentials from the environment of Ray."""
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    lab = Lab(tmp_path, None, storage=f"s3://{BUCKET}/{tmp_path.name}")
    with contextlib.closing(lab):
        job_id = slow_job(lab)
        driver = lab.resume(job_id)
        lab.wait_for_tasks(job_id, 8)
        driver.kill()
        before = committed_texts(lab, job_id)
        lab.complete(job_id)
        assert_whole(lab, job_id, before)


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    sudo = ["sudo", "-n"] if os.getuid() and shutil.which("sudo") else []
    command = [*sudo, "mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        missing("a file system cannot be mounted here")
    yield folder
    subprocess.run([*sudo, "umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_once_there_is_room_the_job_goes_on(
    tmp_path: Path, ray: Head, little_disk: Path
) -> None:
    lab = Lab(tmp_path, ray.address, storage=str(little_disk / "storage"))
    with contextlib.closing(lab):
        file = lab.write("a.jsonl", traced(lab, "a", 60))
        job_id = lab.submit("fragile", [file], span_records=4, seconds=0.1)
        driver = lab.resume(job_id)
        lab.wait_for_tasks(job_id, 8)
        filler = little_disk / "filler"
        with filler.open("wb", buffering=0) as out, contextlib.suppress(OSError):
            while True:
                out.write(b"x" * 4096)
        ended = driver.end(60)
        job = lab.get(job_id)
        assert (ended.code, job.status, job.holds_capacity) == (1, Status.FAILED, False)
        assert job.error is not None
        assert job.error.code == "storage_unavailable"
        assert "No space left on device. The disk is full: free some space" in job.error.message
        before = committed_texts(lab, job_id)
        assert len(before) >= 8
        filler.unlink()
        lab.complete(job_id)
        assert_whole(lab, job_id, before)


def test_a_job_leaves_no_process_behind(tmp_path: Path) -> None:
    """Also when its driver is killed that had started a Ray of its own."""
    lab = Lab(tmp_path, None)
    with contextlib.closing(lab):
        job_id = slow_job(lab)
        driver = lab.resume(job_id)
        pids = [e.payload["pid"] for e in lab.wait_for(job_id, "index.started", 1)]
        lab.wait_for_tasks(job_id, 4)
        driver.kill()
        until(lambda: not any(map(alive, pids)), 20)
