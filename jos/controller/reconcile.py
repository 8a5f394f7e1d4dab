"""What is to be done about one job's driver: looks at what is, never at what happened, so a crash between a write and
its effect heals at the next look.

Pure: the record, what is known of the driver and the time go in, orders come out.
May import: jos.controller.telling, jos.core, jos.launch.base. Tests: tests/unit/test_reconcile.py.
For people: docs/controller.md.

Gone needs no proof in two cases, because neither can let two drivers do the same work. An attempt that nobody has
taken: the record refuses Taken once the attempt has ended. A driver that was silent for a minute longer than allowed,
and that the launcher could not stop: if it lives after all, the next attempt has claimed the commit log by then, and
the old one ends at its next commit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from jos.controller.telling import AWAY, NO_ANSWER, news
from jos.core.commands import Reason
from jos.core.lifecycle import recalled
from jos.core.model import Attempt, Job, Status
from jos.launch.base import DriverSeen, Waits

LOG_LINES, LOG_CHARACTERS = 15, 2000  # of a driver's log, in the failure of its job
_RAYS_LOG = ", last available logs"  # behind it Ray puts up to 20,000 characters of log


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    silence: float = 15.0  # a driver beats every 0.5 s; silent for longer, it is stopped
    alone: float = 60.0  # the same for a driver that no launcher of ours can stop
    moment: float = 2.0  # what a driver waits for is told once it waits for longer: most is over by then
    start: float = 120.0  # from Admit to the first heartbeat: an environment may have to be built first
    evicted: float = 3.0  # a driver whose place the cluster took is heard no more for so long: it is dead
    drain: float = 10.0  # beyond the pipeline's own drain time
    proof: float = 60.0  # beyond `silence`, when the launcher cannot say or do anything
    orphan: float = 10.0  # a driver that spoke its last word closes down for so long


LIMITS = Limits()


@dataclass(frozen=True)
class Sight:
    """What is known of one attempt's driver at one moment. Times are of the controller's own clock."""

    name: str  # of the process that took the attempt, or else of the one that was ordered for it
    driver: DriverSeen | None  # what the launcher says of it; None: it knows no such process, or does not answer
    answers: bool  # whether the launcher answers
    since: datetime  # how long it has answered, or has not
    heard: datetime  # the latest of: a heartbeat arrived, the attempt was admitted, we began to listen
    beats: bool  # whether a heartbeat of this attempt ever arrived
    displaced: str | None = None  # in the cluster's own queue the attempt waits again, and why; None: it does not


@dataclass(frozen=True)
class Start:
    """Order a driver. Comes again until one has taken the attempt."""


@dataclass(frozen=True)
class Stop:
    name: str
    why: str


@dataclass(frozen=True)
class Gone:
    token: str
    message: str


@dataclass(frozen=True)
class Tell:
    """What its driver waits for; CapacityGranted: for nothing any more."""

    token: str
    reason: str
    message: str


@dataclass(frozen=True)
class Evict:
    """The cluster took the place of a driver that was at work: the job is preempted."""

    token: str
    message: str


@dataclass(frozen=True)
class PutBack:
    """The cluster took the place back before a driver had come: the job waits as before."""

    token: str
    message: str


Action = Start | Stop | Gone | Tell | Evict | PutBack


def decide(job: Job, sight: Sight, now: datetime, limits: Limits = LIMITS) -> tuple[Action, ...]:
    """Orders for the attempt that holds capacity; none for a job that holds nothing."""
    attempt = job.attempt
    if attempt is None or not job.holds_capacity:
        return ()
    if admitted_itself(attempt):
        return _alone(attempt, sight, now, limits)
    if (missed := _missed_eviction(job, attempt, sight.driver)) is not None:
        return (Evict(attempt.token, missed),)
    if sight.driver is not None and sight.driver.state == "ended":
        return (Gone(attempt.token, _how_it_ended(attempt, sight, now, limits)),)
    if not attempt.driver and attempt.started_at is None:
        return _untaken(job, attempt, sight, now, limits)
    return _taken(job, attempt, sight, now, limits)


def admitted_itself(attempt: Attempt) -> bool:
    """By `jos run` and the other doors without a controller: no grant, and no launcher's name."""
    return attempt.indexes is None and not attempt.driver


def _alone(attempt: Attempt, sight: Sight, now: datetime, limits: Limits) -> tuple[Action, ...]:
    silence = _seconds(sight.heard, now)
    if silence <= limits.alone:
        return ()
    return (Gone(attempt.token, f"Its driver was not heard for {silence:.0f} s."),)


def _untaken(job: Job, attempt: Attempt, sight: Sight, now: datetime, limits: Limits) -> tuple[Action, ...]:
    token = attempt.token
    if job.status is not Status.ADMITTED:
        return (Gone(token, f"The job was {job.status.lower()} before a driver took it."), *_stop(sight, "not needed"))
    if not sight.answers:  # the time to start counts from when it answers again
        away = now - sight.since >= AWAY
        return _tell(job, attempt, Waits(Reason.CLUSTER_UNAVAILABLE, NO_ANSWER), now, limits) if away else ()
    if sight.displaced is not None:
        return (PutBack(token, sight.displaced),)
    waited = _seconds(max(attempt.admitted_at, sight.since), now)
    if waited > limits.start:
        message = f"No driver came up within {limits.start:g} s{_last_seen(sight)}."
        return (Gone(token, message), *_stop(sight, "it did not come up in time"))
    return (Start(),) if sight.driver is None else _tell(job, attempt, sight.driver.waits, now, limits)


def _tell(job: Job, attempt: Attempt, waits: Waits | None, now: datetime, limits: Limits) -> tuple[Action, ...]:
    told = job.reason not in ("", Reason.CAPACITY_GRANTED)
    if not told and (waits is None or _seconds(attempt.admitted_at, now) < limits.moment):
        return ()
    reason, message = (waits.reason, waits.message) if waits is not None else (Reason.CAPACITY_GRANTED.value, "")
    return (Tell(attempt.token, reason, message),) if news(job, reason, message, now) else ()


def _taken(job: Job, attempt: Attempt, sight: Sight, now: datetime, limits: Limits) -> tuple[Action, ...]:
    suspended = sight.driver is not None and sight.driver.suspended
    if suspended and job.status in (Status.ADMITTED, Status.RUNNING):
        return (Evict(attempt.token, _why_evicted(sight.driver)),)
    silence, allowed = _seconds(sight.heard, now), _allowed(sight, limits)
    silent = silence > allowed
    evicted = suspended and silence > limits.evicted  # until then it may drain
    asked = attempt.asked_to_leave_at
    overstayed = asked is not None and _seconds(asked, now) > job.timeouts.drain + limits.drain
    actions: list[Action] = []
    if silent or overstayed or evicted:
        why = f"not heard for {silence:.0f} s" if silent else f"{job.status}, and did not leave in time"
        actions += _stop(sight, "the cluster took its place" if evicted else why)
    unknown = sight.answers and sight.driver is None
    if silent and (unknown or silence > allowed + limits.proof):
        actions.append(Gone(attempt.token, f"Its driver was not heard for {silence:.0f} s{_last_seen(sight)}."))
    return tuple(actions)


def _missed_eviction(job: Job, attempt: Attempt, driver: DriverSeen | None) -> str | None:
    """Why the cluster took the place of a driver at work, where nobody saw that: it has given the place back since, and
    what came up there is another process, to which this attempt is closed. One that runs is let be, for its clock and
    the cluster's may differ: it ends by itself. Nothing is known of it where what stood in the cluster is gone."""
    evicted = driver.evicted if driver is not None and driver.state != "running" else None
    if evicted is None or attempt.started_at is None or job.status not in (Status.ADMITTED, Status.RUNNING):
        return None
    return evicted.message if evicted.back_at > attempt.started_at else None


def _why_evicted(driver: DriverSeen | None) -> str:
    waits = driver.waits.message if driver is not None and driver.waits is not None else ""
    return (driver.message if driver is not None else "") or waits or "The cluster took its place away."


def _stop(sight: Sight, why: str) -> tuple[Action, ...]:
    running = sight.answers and sight.driver is not None and sight.driver.state != "ended"
    return (Stop(sight.name, why),) if running else ()


def _allowed(sight: Sight, limits: Limits) -> float:
    return limits.silence if sight.beats else limits.start


def _how_it_ended(attempt: Attempt, sight: Sight, now: datetime, limits: Limits) -> str:
    assert sight.driver is not None
    said = _words(sight.driver)
    if not said:
        code = sight.driver.exit_code
        how = "" if code is None else f" with exit code {code}"
        before = "without a last word" if attempt.driver else "before it took the job"
        said = f"The driver ended{how} {before}."
    silence = _seconds(sight.heard, now)
    if attempt.driver and silence > _allowed(sight, limits):  # it was us who stopped it
        return f"Its driver was not heard for {silence:.0f} s and was stopped. {said}"
    return said


def _words(driver: DriverSeen) -> str:
    """What the launcher says of its end, with the last lines of its log; but the log of a warm driver is not shown,
    for it tells of other jobs too, perhaps of other organisations."""
    said, _, log = driver.message.strip().partition(_RAYS_LOG)
    if not log or job_of(driver.name) is None:
        return said
    lines = log.partition("\n")[2].strip().splitlines()
    return f"{said}. Its log ends:\n" + "\n".join(lines[-LOG_LINES:])[-LOG_CHARACTERS:]


def _last_seen(sight: Sight) -> str:
    if not sight.answers:
        return ", and the cluster does not answer"
    if sight.driver is None:
        return ", and the cluster knows of none"
    words = _words(sight.driver).rstrip(".")
    said = f": {words}" if words else ""
    return f" (it is {sight.driver.state}{said})"


def _seconds(since: datetime, now: datetime) -> float:
    return (now - since).total_seconds()


# --- drivers that nobody needs ------------------------------------------------------------------------

_COLD = re.compile(r"jos-(job_[0-9a-z]+)-(\d+)")


def job_of(driver: str) -> str | None:
    """The job that a driver was started for; None for a spare one, and for what is not ours."""
    found = _COLD.fullmatch(driver)
    return found[1] if found else None


def yet_to_come(job: Job, driver: str) -> bool:
    """Whether a driver stands for an attempt that has not begun, as an offer does."""
    found = _COLD.fullmatch(driver)
    return found is not None and found[1] == job.id and int(found[2]) > begun(job)


def begun(job: Job) -> int:
    """How many attempts it has had. One that the cluster took back before it was driven may yet come."""
    if job.attempt is None:
        return 0
    return job.attempt.number - (1 if recalled(job.attempt) else 0)


def orphans(drivers: Mapping[str, DriverSeen], needed: Iterable[str]) -> list[str]:
    """Names of drivers that run for an attempt that is over."""
    wanted = set(needed)
    return [n for n, d in drivers.items() if d.state != "ended" and n not in wanted and job_of(n) is not None]
