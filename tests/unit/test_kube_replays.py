"""What a user sees of a job while a real KubeRay and Kueue do what they did in eight recordings: its statuses with
their reasons, its events, and what JOS ordered meanwhile. tests/lab/kube_replay.py tells how recordings are played."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from kube_replay import Play, Recording, waiting

from jos.core.model import Job

ADMITTED, RUNNING, COMPLETED = "ADMITTED CapacityGranted", "RUNNING DriverStarted", "COMPLETED AllWorkCommitted"
WAITS, BACKOFF = "PENDING WaitingForCapacity", "PENDING WaitingForBackoff"
DONE = "job.completed: All work is committed."
REQUEUED = "job.requeued: Back in the queue after preemption."
RETRY = "job.requeued: Retry 1 of 1 in 2 s."
HANDED = "job.waiting: Its pods are ready; KubeRay is about to hand the driver to Ray."
UNSEEN = "job.waiting: KubeRay is about to look at its RayJob."
LACKS = "couldn't assign flavors to pod set w: insufficient unused quota for cpu in flavor default, 1 more needed"
REFUSED = (
    "KubeRay refuses its RayJob: it is older than 1.7, or something changed what JOS wrote. "
    "The RayJob spec is invalid: TTLSecondsAfterFinished must be a non-negative integer"
)
DEADLINE = (
    "Its RayJob ran for longer than its activeDeadlineSeconds. The RayJob has passed the activeDeadlineSeconds. "
    "StartTime: 2026-11-23 13:24:37 +0000 UTC. ActiveDeadlineSeconds: 6"
)


def admitted(attempt: int) -> str:
    return f"job.admitted: Capacity granted for attempt {attempt}."


def started(attempt: int) -> str:
    return f"job.started: Attempt {attempt} runs on fake-0."


@dataclass(frozen=True)
class Story:
    """One job: in which recordings its attempts live, and what is to be seen of it."""

    recordings: tuple[str, ...]
    statuses: list[str]
    events: list[str]
    orders: list[str] = field(default_factory=lambda: ["make 1"])
    counted: tuple[int, int] = (0, 0)  # preemptions, retries


STORIES = {
    "a job that succeeds": Story(("s1",), [WAITS, ADMITTED, RUNNING, COMPLETED], [admitted(1), started(1), DONE]),
    "a job whose RayJob somebody suspends and resumes goes on in a RayJob of its own": Story(
        ("s2",),
        [
            *(WAITS, ADMITTED, RUNNING, "PREEMPTED Preempted"),
            *(WAITS, ADMITTED, "ADMITTED WaitingForHead", ADMITTED, RUNNING, COMPLETED),
        ],
        [
            admitted(1),
            started(1),
            "job.preempted: Somebody suspended its RayJob (spec.suspend).",
            REQUEUED,
            admitted(2),
            "job.waiting: Head pod s2-7wmpg-head-kf8rq is starting on node fake-0.",
            started(2),
            DONE,
        ],
        ["make 1", "delete 1", "make 2"],
        (1, 0),
    ),
    "a job that fails twice has KubeRay's words for both, and its retries are JOS's own": Story(
        ("s4",),
        [WAITS, ADMITTED, RUNNING, BACKOFF, ADMITTED, RUNNING, "FAILED RetriesExhausted"],
        [
            admitted(1),
            started(1),
            "attempt.failed: boom 1",
            RETRY,
            admitted(2),
            started(2),
            "job.failed: boom 2",
        ],
        ["make 1", "delete 1", "make 2"],  # KubeRay was about to try the first again
        (0, 1),
    ),
    "a job whose RayJob has a deadline ends with it, though its Ray job is said to run": Story(
        ("s5", "s1"),
        [WAITS, ADMITTED, RUNNING, BACKOFF, ADMITTED, "ADMITTED WaitingForOperator", ADMITTED, RUNNING, COMPLETED],
        [admitted(1), started(1), f"attempt.failed: {DEADLINE}", RETRY, admitted(2), UNSEEN, started(2), DONE],
        ["make 1", "make 2"],
        (0, 1),
    ),
    "a job whose head pod is deleted goes on at once, and its old RayJob goes": Story(
        ("s6", "s1"),
        [
            *(WAITS, ADMITTED, "ADMITTED WaitingForRay", ADMITTED, RUNNING, BACKOFF),
            *(ADMITTED, "ADMITTED WaitingForOperator", "ADMITTED WaitingForRay", ADMITTED, RUNNING, COMPLETED),
        ],
        [
            admitted(1),
            HANDED,
            started(1),
            "attempt.failed: The head pod s6-4k8s8-head-7hw78 was deleted on node fake-0: its driver is lost.",
            RETRY,
            admitted(2),
            UNSEEN,
            HANDED,
            started(2),
            DONE,
        ],
        ["make 1", "delete 1", "make 2"],
        (0, 1),
    ),
    "a job whose RayJob KubeRay refuses fails with what is wrong": Story(
        ("s7", "s7"),
        [WAITS, ADMITTED, BACKOFF, ADMITTED, "ADMITTED WaitingForOperator", "FAILED RetriesExhausted"],
        [
            admitted(1),
            f"attempt.failed: {REFUSED}",
            RETRY,
            admitted(2),
            UNSEEN,
            f"job.failed: {REFUSED}",
        ],
        ["make 1", "make 2"],
        (0, 1),
    ),
    "a job that a submitter pod submits runs once it is submitted": Story(
        ("s8",),
        [WAITS, ADMITTED, "ADMITTED WaitingForRay", ADMITTED, RUNNING, COMPLETED],
        [admitted(1), "job.waiting: Its pods are up; Ray starts the driver.", started(1), DONE],
    ),
}
IN_KUEUE = "PENDING WaitingInKueue"
UNDER_KUEUE = {
    "s3-low": Story(
        ("s3",),
        [WAITS, ADMITTED, RUNNING, "PREEMPTED Preempted", WAITS, IN_KUEUE, ADMITTED, RUNNING, COMPLETED],
        [
            admitted(1),
            started(1),
            "job.preempted: Kueue: Preempted to accommodate a workload",
            REQUEUED,
            f"job.waiting: Kueue: {LACKS}",
            admitted(2),
            started(2),
            DONE,
        ],
        ["make 1", "delete 1", "make 2"],
        (1, 0),
    ),
    "s3-high": Story(
        ("s3",),
        [WAITS, IN_KUEUE, ADMITTED, RUNNING, COMPLETED],
        [
            f"job.waiting: Kueue: {LACKS}. Pending the preemption of 1 workload(s)",
            admitted(1),
            started(1),
            DONE,
        ],
    ),
}


def played(
    monkeypatch: pytest.MonkeyPatch, recordings: tuple[str, ...], jobs: dict[str, Job], *, kueue: bool = False
) -> Mapping[str, Story]:
    """What was seen of each job."""
    same = dict.fromkeys(recordings, recordings[0]) if len(jobs) == 1 else {}
    play = Play([Recording(name) for name in recordings], jobs, same, kueue)
    asyncio.run(play.run(monkeypatch))
    assert not play.drivers, "a driver runs on"
    assert not any(job.holds_capacity for job in play.jobs.values())
    return {known: _seen(play, known, recordings) for known in jobs}


def _seen(play: Play, known: str, recordings: tuple[str, ...]) -> Story:
    job = play.jobs[known]
    rayjob = f"jos-{job.id}-".replace("_", "-")
    return Story(
        recordings,
        [f"{status} {reason}" for status, reason in play.told[known]],
        [f"{kind}: {message.partition(' (UID')[0]}" for kind, message in play.events[known]],
        [order.replace(rayjob, "") for order in play.orders if rayjob in order],
        (job.preemption_count, job.retry_count),
    )


@pytest.mark.parametrize("what", STORIES)
def test_of_each_recording_a_user_sees(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    story = STORIES[what]
    seen = played(monkeypatch, story.recordings, {story.recordings[0]: waiting(1)})
    assert seen[story.recordings[0]] == story


def test_under_kueue_a_preemption_after_running_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = {"s3-low": waiting(1), "s3-high": waiting(2, priority=100)}
    assert played(monkeypatch, ("s3",), jobs, kueue=True) == UNDER_KUEUE
