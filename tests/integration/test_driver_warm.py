"""Drivers that a controller starts: for one attempt, or warm ones that do one attempt after the other."""

from __future__ import annotations

import secrets
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from jobs_lab import Driver, Lab, alive, kill, ray_head, until
from test_driver import shouted, texts

from jos import __version__
from jos.core.commands import Admit, Command, Grow
from jos.core.model import Job, Status
from jos.store.drivers import Drivers, Order

T = TypeVar("T")


def call(lab: Lab, work: Coroutine[Any, Any, T]) -> T:
    return lab.engine._thread.call(work)


def transact(lab: Lab, job_id: str, command: Command) -> Job:
    return call(lab, lab.engine.parts.store.transact(job_id, command, datetime.now(UTC)))


def drivers(lab: Lab) -> Drivers:
    return Drivers(lab.engine.parts.store.connection)


def admit(lab: Lab, job_id: str, indexes: int | None = None) -> str:
    """What a controller does; the attempt's token."""
    token = secrets.token_hex(8)
    transact(lab, job_id, Admit(token, indexes=indexes))
    return token


def job(lab: Lab, count: int = 60, seconds: float = 0.1, parallelism: int = 2, span: int = 4) -> str:
    file = lab.write(f"{secrets.token_hex(4)}.jsonl", texts("a", count))
    return lab.submit("shout", [file], parallelism, span_records=span, seconds=seconds)


def done(lab: Lab, job_id: str, count: int = 60) -> Job:
    """Waits for its end, and checks that it is whole."""
    until(lambda: lab.get(job_id).status.terminal and not lab.get(job_id).holds_capacity)
    found = lab.get(job_id)
    assert found.status is Status.COMPLETED, found.error
    assert lab.outputs(job_id) == [shouted(texts("a", count))]
    return found


# --- one attempt --------------------------------------------------------------------------------------


def test_an_admitted_attempt_is_taken_driven_and_then_the_process_ends(lab: Lab) -> None:
    job_id = job(lab, seconds=0)
    token = admit(lab, job_id, indexes=1)
    ended = lab.driver("attempt", job_id, token, "--name", "jos-one-1").end()
    assert (ended.code, ended.result["ending"]) == (0, "completed"), ended.said
    attempt = done(lab, job_id).attempt
    assert attempt is not None
    assert (attempt.number, attempt.driver, attempt.ended_by) == (1, "jos-one-1", "Completed")
    again = lab.driver("attempt", job_id, token, "--name", "jos-one-1").end()  # as a repeated order would
    assert (again.code, "Traceback" in again.said) == (3, False)


def test_an_attempt_that_another_process_took_is_left_alone(lab: Lab) -> None:
    job_id = job(lab)
    token = admit(lab, job_id)
    first = lab.driver("attempt", job_id, token, environment={"JOS_DRIVER_NAME": "first"})
    lab.wait_for_tasks(job_id, 4)
    for name, known in (("second", token), ("third", "an old token")):
        assert lab.driver("attempt", job_id, known, "--name", name).end().code == 3
    assert first.end().code == 0
    attempt = done(lab, job_id).attempt
    assert attempt is not None
    assert attempt.driver == "first"


def test_the_same_command_that_its_cluster_runs_once_more_ends_at_once_and_touches_nothing(lab: Lab) -> None:
    """KubeRay submits a job again under the same id when its head lost its table of jobs, and the first may yet run."""
    job_id = job(lab)
    token, name = admit(lab, job_id), f"jos-{job_id}-1"
    first = lab.driver("attempt", job_id, token, "--name", name)
    lab.wait_for_tasks(job_id, 4)
    before = lab.get(job_id).attempt
    second = lab.driver("attempt", job_id, token, "--name", name).end()
    assert (second.code, "Traceback" in second.said) == (3, False)
    assert lab.get(job_id).attempt == before
    assert first.end().code == 0
    done(lab, job_id)
    assert lab.attempts(job_id) == [token]


def test_an_attempt_that_comes_before_its_admission_waits_and_another_leaves_when_it_is_asked(lab: Lab) -> None:
    job_id = job(lab, seconds=0)
    left, waits = (lab.driver("attempt", job_id, token, "--name", f"jos-{job_id}-1") for token in ("left", "admitted"))
    for driver in (left, waits):
        until(lambda one=driver: "waiting for the admission" in one.said)
    left.ask_to_leave()
    assert (left.end().code, lab.get(job_id).attempt) == (4, None)
    transact(lab, job_id, Admit("admitted", indexes=1))
    assert waits.end().code == 0
    done(lab, job_id)


def test_an_attempt_cancelled_before_it_was_taken_only_frees_its_capacity(lab: Lab) -> None:
    job_id = job(lab)
    token = admit(lab, job_id)
    lab.engine.cancel(job_id)
    assert lab.get(job_id).holds_capacity
    assert lab.driver("attempt", job_id, token).end().code == 5
    assert (lab.get(job_id).status, lab.get(job_id).holds_capacity) == (Status.CANCELLED, False)
    assert not lab.events(job_id, "index.started")


def test_an_attempt_that_fails_is_not_tried_again_by_its_driver(lab: Lab) -> None:
    job_id = lab.submit("fragile", [lab.write("a.jsonl", texts("a", 3))], broken_setup=True)
    ended = lab.driver("attempt", job_id, admit(lab, job_id)).end()
    assert (ended.code, lab.get(job_id).status) == (1, Status.PENDING)
    assert lab.get(job_id).not_before is not None


def test_a_grant_holds_the_indexes_back_until_it_grows(lab: Lab) -> None:
    job_id = job(lab, 200, parallelism=3)
    token = admit(lab, job_id, indexes=1)
    driver = lab.driver("attempt", job_id, token)
    lab.wait_for_tasks(job_id, 12)
    assert len(lab.events(job_id, "index.started")) == 1
    transact(lab, job_id, Grow(token, 3))
    lab.wait_for(job_id, "index.started", 3)
    assert driver.end().code == 0
    done(lab, job_id, 200)


def test_what_indexes_held_for_which_nothing_is_left_is_free_before_the_job_ends(lab: Lab) -> None:
    job_id = job(lab, 40, parallelism=3, span=40)  # one span: work for one index
    token = admit(lab, job_id, indexes=3)
    driver = lab.driver("attempt", job_id, token)

    def granted() -> int | None:
        attempt = lab.get(job_id).attempt
        return attempt.indexes if attempt is not None and lab.get(job_id).status is Status.RUNNING else None

    until(lambda: granted() == 1)
    assert driver.end().code == 0
    done(lab, job_id, 40)


# --- warm drivers -------------------------------------------------------------------------------------


def warm(lab: Lab, *options: object, name: str = "warm-1") -> Driver:
    """A warm driver that waits."""
    driver = lab.driver("warm", "--name", name, *options)
    until(lambda: driver.process.poll() is not None or name in call(lab, drivers(lab).idle()))
    assert driver.process.poll() is None, driver.said
    return driver


def order(lab: Lab, job_id: str, indexes: int | None = None) -> str:
    """Gives it to an idle driver, whose name is returned."""
    given = Order(job_id, admit(lab, job_id, indexes), __version__)
    return str(until(lambda: call(lab, drivers(lab).give(given))))


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def indexes_of(lab: Lab, job_id: str) -> list[int]:
    return [e.payload["pid"] for e in lab.events(job_id, "index.started")]


def test_twenty_jobs_in_one_warm_driver_leave_nothing_behind(lab: Lab) -> None:
    driver = warm(lab, "--jobs", 20)
    counts, pids = [], []
    for _ in range(20):
        job_id = job(lab, 8, seconds=0)
        assert order(lab, job_id) == "warm-1"
        attempt = done(lab, job_id, 8).attempt
        assert attempt is not None
        assert attempt.pid == driver.process.pid
        pids += indexes_of(lab, job_id)
        counts.append(threads(driver.process.pid) if alive(driver.process.pid) else 0)
    until(lambda: not any(map(alive, pids)), 10)
    # pools of threads fill up at first, and one or another is busy for a moment: what is left behind stays
    assert min(counts[14:19]) <= max(counts[2:10]) + 2, counts
    assert driver.end(60).code == 0
    assert "served as many jobs as it may" in driver.said


def test_a_failing_a_cancelled_and_a_stale_order_do_not_hurt_the_next_job(lab: Lab) -> None:
    driver = warm(lab)
    broken = lab.submit("fragile", [lab.write("a.jsonl", texts("a", 3))], impossible="not today")
    order(lab, broken)
    until(lambda: lab.get(broken).status is Status.FAILED)
    cancelled = job(lab, 600)
    order(lab, cancelled)
    lab.wait_for_tasks(cancelled, 8)
    pids = indexes_of(lab, cancelled)
    lab.engine.cancel(cancelled)
    until(lambda: not any(map(alive, pids)), 5)
    until(lambda: not lab.get(cancelled).holds_capacity)
    until(lambda: call(lab, drivers(lab).give(Order(cancelled, "a stale token", __version__))))
    good = job(lab, seconds=0)
    assert order(lab, good) == "warm-1"
    done(lab, good)
    assert driver.process.poll() is None


def test_a_cancel_does_not_wait_for_a_long_task(lab: Lab) -> None:
    warm(lab)
    job_id = job(lab, 8, seconds=60)
    order(lab, job_id)
    pids = [e.payload["pid"] for e in lab.wait_for(job_id, "index.started", 2)]
    lab.wait_for(job_id, "input_started")
    lab.engine.cancel(job_id)
    until(lambda: not any(map(alive, pids)), 5)
    until(lambda: not lab.get(job_id).holds_capacity, 5)


def test_sigterm_drains_the_job_in_hand_and_leaves(lab: Lab) -> None:
    driver = warm(lab)
    job_id = job(lab, 600)
    order(lab, job_id)
    lab.wait_for_tasks(job_id, 8)
    driver.ask_to_leave()
    assert driver.end(60).code == 0
    assert (lab.get(job_id).status, lab.get(job_id).holds_capacity) == (Status.PENDING, False)
    assert call(lab, drivers(lab).known()) == set()


def test_an_idle_driver_leaves_at_once_when_it_is_asked_to(lab: Lab) -> None:
    driver = warm(lab)
    assert call(lab, drivers(lab).dismiss()) == "warm-1"
    assert driver.end(10).code == 0
    other = warm(lab, name="warm-2")
    other.ask_to_leave()
    assert other.end(10).code == 0
    assert call(lab, drivers(lab).idle()) == []


def test_a_driver_of_another_version_makes_way(lab: Lab) -> None:
    driver = warm(lab)
    job_id = job(lab)
    assert call(lab, drivers(lab).give(Order(job_id, admit(lab, job_id), "0.0.0"))) == "warm-1"
    assert driver.end(10).code == 0
    assert lab.get(job_id).status is Status.ADMITTED  # not taken: the controller has it driven by another


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_driver_whose_ray_is_gone_ends(tmp_path: Path, busy: bool) -> None:
    with ray_head(dashboard=False, cpus=2) as head:
        lab = Lab(tmp_path, head.address)
        try:
            driver = warm(lab)
            job_id = job(lab, 600)
            if busy:
                order(lab, job_id)
                lab.wait_for_tasks(job_id, 4)
            for process in ("raylet", "gcs_server"):
                for pid in _servers(head.address, process):
                    kill(pid)
            driver.process.communicate(timeout=90)  # Ray writes its last words there
            assert driver.process.returncode != 0
        finally:
            lab.close()


def _servers(address: str, name: str) -> list[int]:
    """Ray's processes of the head that listens on this address."""
    port, found = address.rpartition(":")[2], []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_text(errors="replace").split("\0")
        except OSError:
            continue
        if words[0].endswith(name) and any(port in word for word in words):
            found.append(int(entry.parent.name))
    return found


# --- the lists of warm drivers ------------------------------------------------------------------------


def test_an_order_goes_to_one_idle_driver_once(lab: Lab) -> None:
    room = drivers(lab)
    for name in ("one", "two"):
        call(lab, room.register(name))
    first = call(lab, room.give(Order("job_a", "token")))
    assert call(lab, room.give(Order("job_a", "token"))) == first  # asked again: it is under way
    second = call(lab, room.give(Order("job_b", "token")))
    assert {first, second} == {"one", "two"}
    assert call(lab, room.give(Order("job_c", "token"))) is None
    call(lab, room.beat("one"))  # before it saw its order: still not idle
    assert call(lab, room.idle()) == []
    for name in ("one", "two"):
        assert call(lab, room.next_order(name, 1)) is not None
        call(lab, room.beat(name))
    assert sorted(call(lab, room.idle())) == ["one", "two"]


def test_a_driver_that_went_silent_is_given_nothing(lab: Lab) -> None:
    room = drivers(lab)
    call(lab, room.register("gone"))
    until(lambda: not call(lab, room.idle()), 10)
    assert call(lab, room.give(Order("job_a", "token"))) is None
    call(lab, room.forget({"gone"}))
    assert call(lab, room.known()) == set()
