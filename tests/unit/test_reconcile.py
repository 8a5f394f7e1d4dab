"""What is done about a driver: a row for each thing that can be seen of it, by the sentence that says what is right."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jos.controller.reconcile import (
    LIMITS,
    Evict,
    Gone,
    PutBack,
    Sight,
    Start,
    Stop,
    Tell,
    decide,
    job_of,
    orphans,
    yet_to_come,
)
from jos.controller.telling import NO_ANSWER
from jos.core.model import Attempt, Job, Status, Timeouts
from jos.launch.base import DriverSeen, Eviction, Waits

NOW = datetime(2026, 4, 14, 10, 5, 0, tzinfo=UTC)
NAME = "jos-job_1-1"


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def job(
    status: Status = Status.RUNNING, *, holds: bool = True, attempt: dict[str, Any] | None = None, **more: Any
) -> Job:
    """By default an attempt that was admitted an hour ago, was taken, and runs."""
    running = status not in (Status.ADMITTED,)
    fields: dict[str, Any] = {"number": 1, "token": "tok", "admitted_at": ago(3600), "indexes": 1, "driver": NAME}
    fields |= {"started_at": ago(3500) if running else None, **(attempt or {})}
    defaults: dict[str, Any] = {
        "id": "job_1", "org_id": "org_a", "name": "n", "pipeline_type": "batch", "pipeline_key": "k",
        "pipeline_version": "1.0.0", "parameters": {}, "created_at": ago(4000), "updated_at": ago(1),
        "queued_at": ago(4000), "timeouts": Timeouts(drain=30),
    }  # fmt: skip
    return Job(**{**defaults, **more}, status=status, holds_capacity=holds, attempt=Attempt(**fields))


def sight(state: str | None = "running", heard: float = 0.5, **more: Any) -> Sight:
    """By default a driver that runs and was just heard. `heard`: seconds ago."""
    driver = None if state is None else DriverSeen(NAME, state)  # type: ignore[arg-type]
    seen = Sight(name=NAME, driver=driver, answers=True, since=ago(7200), heard=ago(heard), beats=True)
    return replace(seen, **more)


def ended(message: str = "", exit_code: int | None = None) -> DriverSeen:
    return DriverSeen(NAME, "ended", message, exit_code)


def kinds(actions: tuple[Any, ...]) -> list[type]:
    return [type(action) for action in actions]


def asked(seconds: float) -> dict[str, Any]:
    return {"asked_to_leave_at": ago(seconds)}


UNTAKEN = {"driver": "", "started_at": None, "admitted_at": ago(5)}
ALONE = {"driver": "", "indexes": None}
AWAY = sight(None, answers=False)
EVICTED = DriverSeen(NAME, "starting", waits=Waits("WaitingInKueue", "Preempted by job_2."), suspended=True)
BACK = Eviction("Preempted by job_2.", ago(30))
PULLS = DriverSeen(NAME, "starting", waits=Waits("PullingImage", "pulls jos:1"))
TOLD = {"reason": "PullingImage", "reason_message": "pulls jos:1"}


@pytest.mark.parametrize(
    ("_sentence", "what", "seen", "actions"),
    [
        ("a job that holds nothing needs nothing", job(Status.PENDING, holds=False), sight(), []),
        ("a driver that runs and is heard is left alone", job(), sight(), []),
        ("a job that was admitted, and no driver seen: start one", job(Status.ADMITTED, attempt=UNTAKEN),
         sight(None, beats=False), [Start]),
        ("a driver on its way is waited for", job(Status.ADMITTED, attempt=UNTAKEN),
         sight("starting", beats=False), []),
        ("a driver that runs but has not taken the job yet is waited for", job(Status.ADMITTED, attempt=UNTAKEN),
         sight("running", beats=False), []),
        ("what a driver on its way waits for is told", job(Status.ADMITTED, attempt=UNTAKEN, updated_at=ago(5)),
         sight(driver=PULLS, beats=False), [Tell]),
        ("once", job(Status.ADMITTED, attempt=UNTAKEN, **TOLD, updated_at=ago(999)),
         sight(driver=PULLS, beats=False), []),
        ("another reason not within ten seconds",
         job(Status.ADMITTED, attempt=UNTAKEN, **{**TOLD, "reason": "NoNodeForPods"}, updated_at=ago(9)),
         sight(driver=PULLS, beats=False), []),
        ("but then", job(Status.ADMITTED, attempt=UNTAKEN, **{**TOLD, "reason": "NoNodeForPods"}, updated_at=ago(11)),
         sight(driver=PULLS, beats=False), [Tell]),
        ("that it waits no more is told too", job(Status.ADMITTED, attempt=UNTAKEN, **TOLD, updated_at=ago(11)),
         sight("starting", beats=False), [Tell]),
        ("what a driver waits for does not stop the clock",
         job(Status.ADMITTED, attempt={**UNTAKEN, "admitted_at": ago(121)}), sight(driver=PULLS, beats=False),
         [Gone, Stop]),
        ("a driver that is not up and has no place yet is waited for", job(Status.ADMITTED, attempt=UNTAKEN, **{
         **TOLD, "reason": "WaitingInKueue", "reason_message": "Preempted by job_2."}),
         sight(driver=EVICTED, beats=False), []),
        ("a place that the cluster took back before a driver came: the job waits as before",
         job(Status.ADMITTED, attempt=UNTAKEN), sight(driver=EVICTED, beats=False, displaced="others"), [PutBack]),
        ("whether or not anything is seen of the driver", job(Status.ADMITTED, attempt=UNTAKEN),
         sight(None, beats=False, displaced="others"), [PutBack]),
        ("a job that was cancelled before its driver came does not wait again",
         job(Status.CANCELLED, attempt=UNTAKEN), sight(driver=EVICTED, beats=False, displaced="others"), [Gone, Stop]),
        ("the cluster took the place of a driver at work: the job is preempted", job(), sight(driver=EVICTED), [Evict]),
        ("also where its first index was not up yet", job(Status.ADMITTED), sight(driver=EVICTED), [Evict]),
        ("a place that was taken and given back while nobody looked: what ended there is the next process",
         job(attempt={"started_at": ago(60)}), sight(driver=replace(ended("fenced"), evicted=BACK)), [Evict]),
        ("or is still on its way", job(attempt={"started_at": ago(60)}), sight(driver=replace(PULLS, evicted=BACK)),
         [Evict]),
        ("but one that runs may be the one that began", job(attempt={"started_at": ago(60)}),
         sight(driver=DriverSeen(NAME, "running", evicted=BACK)), []),
        ("and a place that was lost before it began cost it nothing", job(attempt={"started_at": ago(20)}),
         sight(driver=replace(ended("boom"), evicted=BACK)), [Gone]),
        ("such a preemption is counted once", job(Status.PREEMPTED, attempt={"started_at": ago(60), **asked(1)}),
         sight(driver=replace(ended("fenced"), evicted=BACK)), [Gone]),
        ("then the driver may drain while it is heard", job(Status.PREEMPTED, attempt=asked(1)),
         sight(driver=EVICTED, heard=2), []),
        ("and is stopped when it is heard no more", job(Status.PREEMPTED, attempt=asked(3)),
         sight(driver=EVICTED, heard=4), [Stop]),
        ("only when it has ended is it gone", job(Status.PREEMPTED, attempt=asked(3)),
         sight(driver=ended("deleted"), heard=4), [Gone]),
        ("a place that is taken from a driver that leaves is no preemption", job(Status.CANCELLED, attempt=asked(3)),
         sight(driver=EVICTED, heard=4), [Stop]),
        ("a driver that ended before it took the job is gone", job(Status.ADMITTED, attempt=UNTAKEN),
         sight(driver=ended(), beats=False), [Gone]),
        ("no driver is ordered from a cluster that does not answer", job(Status.ADMITTED, attempt=UNTAKEN),
         replace(AWAY, since=ago(9)), []),
        ("but the job is told once that lasts",
         job(Status.ADMITTED, attempt=UNTAKEN, updated_at=ago(60)), AWAY, [Tell]),
        ("and is not told the same again",
         job(Status.ADMITTED, attempt=UNTAKEN, reason="ClusterUnavailable", reason_message=NO_ANSWER), AWAY, []),
        ("a driver that does not come up in time is stopped and given up",
         job(Status.ADMITTED, attempt={**UNTAKEN, "admitted_at": ago(121)}),
         sight("starting", beats=False), [Gone, Stop]),
        ("an order that no driver took in time is given up",
         job(Status.ADMITTED, attempt={**UNTAKEN, "admitted_at": ago(121)}), sight(None, beats=False), [Gone]),
        ("the time to start begins when the cluster answers again",
         job(Status.ADMITTED, attempt={**UNTAKEN, "admitted_at": ago(600)}),
         sight(None, beats=False, since=ago(3)), [Start]),
        ("a driver that took the job may need minutes until its first index, as long as it is heard",
         job(Status.ADMITTED), sight(), []),
        ("a driver that took the job has time until its first heartbeat",
         job(Status.ADMITTED), sight(heard=60, beats=False), []),
        ("a driver that took the job and is never heard is stopped", job(Status.ADMITTED),
         sight(heard=121, beats=False), [Stop]),
        ("a driver that ended without a last word is gone", job(), sight(driver=ended()), [Gone]),
        ("a driver that is silent while the launcher says it runs is stopped", job(), sight(heard=16), [Stop]),
        ("a short silence is nothing", job(), sight(heard=14), []),
        ("one that could not be stopped is given up a minute later", job(), sight(heard=76), [Stop, Gone]),
        ("a silent driver that the launcher does not know is gone", job(), sight(None, heard=16), [Gone]),
        ("a driver that the launcher does not know but that is heard goes on", job(), sight(None), []),
        ("a silent driver of a cluster that does not answer is not given up at once", job(),
         replace(AWAY, heard=ago(16)), []),
        ("but after a minute more", job(), replace(AWAY, heard=ago(76)), [Gone]),
        ("a preempted driver has its time to drain", job(Status.PREEMPTED, attempt=asked(39)), sight(), []),
        ("then it is stopped", job(Status.PREEMPTED, attempt=asked(41)), sight(), [Stop]),
        ("a preempted driver that left is gone", job(Status.PREEMPTED), sight(driver=ended()), [Gone]),
        ("a cancelled driver has its time to drain", job(Status.CANCELLED, attempt=asked(39)), sight(), []),
        ("a cancelled driver that stays is stopped", job(Status.CANCELLED, attempt=asked(41)), sight(), [Stop]),
        ("a driver whose job timed out is stopped if it stays", job(Status.FAILED, attempt=asked(41)), sight(), [Stop]),
        ("a driver whose job was cancelled and retried is stopped if it stays",
         job(Status.PENDING, attempt=asked(41)), sight(), [Stop]),
        ("a driver that overstays but is heard keeps its capacity until it is dead",
         job(Status.CANCELLED, attempt=asked(9999)), sight(), [Stop]),
        ("nobody need leave a job that nobody took", job(Status.CANCELLED, attempt=UNTAKEN),
         sight(None, beats=False), [Gone]),
        ("a driver on its way to a job that was preempted meanwhile is called off",
         job(Status.PREEMPTED, attempt=UNTAKEN), sight("starting", beats=False), [Gone, Stop]),
        ("a driver that admitted itself is not ours to stop", job(attempt=ALONE), sight(None, heard=59), []),
        ("nor to time", job(Status.CANCELLED, attempt={**ALONE, **asked(999)}), sight(None), []),
        ("but after a minute of silence it is gone", job(attempt=ALONE), sight(None, heard=61), [Gone]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_done(_sentence: str, what: Job, seen: Sight, actions: list[type]) -> None:
    assert kinds(decide(what, seen, NOW, LIMITS)) == actions


@pytest.mark.parametrize(
    ("what", "seen", "words"),
    [
        (job(), sight(driver=ended("killed: out of memory", 137)), "killed: out of memory"),
        (job(), sight(driver=ended("", 1)), "The driver ended with exit code 1 without a last word."),
        (job(Status.ADMITTED, attempt=UNTAKEN), sight(driver=ended(), beats=False),
         "The driver ended before it took the job."),
        (job(), sight(driver=ended("stopped"), heard=20), "Its driver was not heard for 20 s and was stopped. stopped"),
        (job(Status.ADMITTED, attempt={**UNTAKEN, "admitted_at": ago(130)}),
         sight(driver=DriverSeen(NAME, "starting", "Waiting for resources."), beats=False),
         "No driver came up within 120 s (it is starting: Waiting for resources)."),
        (job(), replace(AWAY, heard=ago(80)), "Its driver was not heard for 80 s, and the cluster does not answer."),
    ],
)  # fmt: skip
def test_a_lost_driver_is_told_in_words(what: Job, seen: Sight, words: str) -> None:
    [gone] = [a for a in decide(what, seen, NOW, LIMITS) if isinstance(a, Gone)]
    assert gone == Gone("tok", words)


def test_the_clusters_own_words_are_told() -> None:
    assert decide(job(), sight(driver=EVICTED), NOW) == (Evict("tok", "Preempted by job_2."),)
    silent = replace(EVICTED, waits=None)
    assert decide(job(), sight(driver=silent), NOW) == (Evict("tok", "The cluster took its place away."),)
    untaken = job(Status.ADMITTED, attempt=UNTAKEN)
    assert decide(untaken, sight(driver=PULLS, beats=False), NOW) == (Tell("tok", "PullingImage", "pulls jos:1"),)
    told = job(Status.ADMITTED, attempt=UNTAKEN, **TOLD, updated_at=ago(60))
    assert decide(told, sight("running", beats=False), NOW) == (Tell("tok", "CapacityGranted", ""),)
    back = sight(driver=EVICTED, beats=False, displaced="others")
    assert decide(untaken, back, NOW) == (PutBack("tok", "others"),)


def test_what_a_driver_waits_for_is_not_told_when_it_is_over_in_a_moment() -> None:
    fresh = job(Status.ADMITTED, attempt={**UNTAKEN, "admitted_at": ago(1)})
    assert decide(fresh, sight(driver=PULLS, beats=False), NOW) == ()
    other = job(Status.ADMITTED, attempt={**UNTAKEN, "admitted_at": ago(1)}, **TOLD, updated_at=ago(60))
    assert decide(other, sight("running", beats=False), NOW) == (Tell("tok", "CapacityGranted", ""),)


def test_an_offer_stands_for_an_attempt_that_is_yet_to_come() -> None:
    waits = job(Status.PENDING, holds=False, attempt={"ended_at": ago(5), "ended_by": "DriverGone"})
    recalled = job(Status.PENDING, holds=False, attempt={**UNTAKEN, "ended_at": ago(5), "ended_by": "Recall"})
    assert [yet_to_come(waits, f"jos-job_1-{n}") for n in (1, 2)] == [False, True]
    assert [yet_to_come(recalled, f"jos-job_1-{n}") for n in (1, 2)] == [True, True]
    assert not yet_to_come(waits, "jos-job_2-2")
    assert not yet_to_come(waits, "jos-warm-2")


RAYS = "Job entrypoint command failed with exit code -9, last available logs (truncated to 20,000 chars):\n"


def test_the_log_of_a_drivers_end_is_cut_short() -> None:
    lines = "".join(f"line {i}\n" for i in range(500))
    [gone] = decide(job(), sight(driver=ended(RAYS + lines)), NOW)
    assert isinstance(gone, Gone)
    assert gone.message.startswith("Job entrypoint command failed with exit code -9. Its log ends:\nline 485\n")
    assert gone.message.endswith("line 499")


def test_the_log_of_a_warm_driver_is_not_shown_for_it_tells_of_other_jobs() -> None:
    warm = DriverSeen("jos-warm-7", "ended", RAYS + "driving the job of somebody else")
    [gone] = decide(job(attempt={"driver": "jos-warm-7"}), sight(name="jos-warm-7", driver=warm), NOW)
    assert gone == Gone("tok", "Job entrypoint command failed with exit code -9")


def test_the_process_that_took_the_job_is_the_one_to_stop() -> None:
    warm = sight(name="jos-warm-7", driver=DriverSeen("jos-warm-7", "running"), heard=20)
    assert decide(job(attempt={"driver": "jos-warm-7"}), warm, NOW)[0] == Stop("jos-warm-7", "not heard for 20 s")


def test_only_drivers_of_one_attempt_that_run_and_are_not_needed_are_orphans() -> None:
    seen = {
        name: DriverSeen(name, state)  # type: ignore[arg-type]
        for name, state in [
            ("jos-job_1-1", "ended"), ("jos-job_1-2", "running"), ("jos-job_1-3", "running"),
            ("jos-warm-x", "running"), ("someone-else", "running"),
        ]
    }  # fmt: skip
    assert orphans(seen, {"jos-job_1-3"}) == ["jos-job_1-2"]
    assert job_of("jos-job_1-2") == "job_1"
    assert job_of("jos-warm-x") is None
