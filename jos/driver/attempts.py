"""Attempts of one job, one after the other, where no controller manages them: the doors `jos run`, `jos.run(...)`,
`ray job submit` and a RayJob manifest.

Takes the job over if its last driver is dead, runs an attempt, and waits out the back-off before an automatic retry.
May import: jos.core, jos.driver, jos.store, jos.storage. Tests: tests/integration/test_driver.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import secrets
import signal
import time
from datetime import UTC, datetime, timedelta

import structlog

from jos.core.commands import Admit, DriverGone, Exited, Retry
from jos.core.errors import Conflict, JosError
from jos.core.model import Attempt, Job, JobFailure, JobSpec, Status
from jos.driver.cluster import connect, disconnect
from jos.driver.driver import LAST_WORD_SECONDS, Driver, Ending, Outcome
from jos.submission import load_spec
from jos.wiring import Wired, import_paths

SILENCE = timedelta(seconds=15)  # a driver that was not heard for so long is taken for dead

LOOK_SECONDS = 0.5  # how soon a cancel is seen during a back-off

log = structlog.get_logger()


async def take(job_id: str, wired: Wired, *, take_over: bool = False) -> tuple[Job, str]:
    """Makes the job ours: a fresh attempt with its token. Raises Conflict if it is done, or runs elsewhere."""
    store = wired.store
    job = await store.get(job_id)
    if job.status is Status.COMPLETED:
        raise Conflict(f"job {job_id} is already completed.", suggestion=f"See `jos show {job_id}`.")
    if not take_over:
        job = await _left_behind(job, wired)
    now = datetime.now(UTC)
    if job.holds_capacity and job.attempt is not None:
        await _bury_driver(job, wired, now, take_over)
        job = await store.get(job_id)
    if job.status in (Status.FAILED, Status.CANCELLED):
        await store.transact(job_id, Retry(), now)
    token = secrets.token_hex(16)
    admit = Admit(token, platform.node(), os.getpid())
    return await store.transact(job_id, admit, datetime.now(UTC)), token


async def _left_behind(job: Job, wired: Wired) -> Job:
    """A job that was just cancelled still has a driver, on its way out: that is worth waiting for."""
    deadline = time.monotonic() + job.timeouts.drain + LAST_WORD_SECONDS
    while job.status.terminal and job.holds_capacity and time.monotonic() < deadline:
        if job.attempt is None or _dead(job.attempt):
            break
        await asyncio.sleep(0.1)
        job = await wired.store.get(job.id)
    return job


async def _bury_driver(job: Job, wired: Wired, now: datetime, take_over: bool) -> None:
    """Tells the record that the last attempt's driver is gone, if it is; never guesses about a live one. Even a
    wrong guess would cost only its unfinished work: the commit log has one owner."""
    attempt = job.attempt
    assert attempt is not None
    live = await wired.store.live(job.id)
    heard = max((t for t in (attempt.admitted_at, live.at if live else None) if t), default=attempt.admitted_at)
    alive = attempt.host == platform.node() and _is_driver(attempt.pid)  # however silent, e.g. in a busy machine
    if not _dead(attempt) and not take_over and (alive or now - heard < SILENCE):
        who = f"process {attempt.pid} on {attempt.host}" if attempt.host else "a driver that is starting"
        seconds = (SILENCE - (now - heard)).total_seconds()
        raise Conflict(
            f"job {job.id} is running: {who} was heard {(now - heard).total_seconds():.0f} s ago.",
            suggestion=f"Follow it with `jos events {job.id} --follow`; if you know it to be dead, "
            + ("use --take-over." if alive else f"wait {seconds:.0f} s or use --take-over."),
        )
    await wired.store.transact(job.id, DriverGone(attempt.token, "its driver is gone"), now)


def _dead(attempt: Attempt) -> bool:
    """Whether its driver is known to be dead, which only its own machine can tell."""
    here = attempt.host == platform.node() and attempt.pid > 0
    # our own number: a container that was started again, and this is its first process once more
    return here and (attempt.pid == os.getpid() or not _runs(attempt.pid))


def _is_driver(pid: int) -> bool:
    """Whether that process is a driver, and not another that got its number since."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as command:
            return b"jos.driver" in command.read()
    except OSError:
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat") as stat:  # a killed child that nobody waited for is dead all the same
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


async def run_attempts(job_id: str, wired: Wired, *, take_over: bool = False) -> Outcome:
    """Runs the job until it is over or this process is told to leave (SIGTERM, SIGINT)."""
    try:
        return await _run_attempts(job_id, wired, take_over)
    finally:
        await asyncio.to_thread(disconnect)


async def _run_attempts(job_id: str, wired: Wired, take_over: bool) -> Outcome:
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    if (await wired.store.get(job_id)).status is Status.COMPLETED:  # a RayJob's pod that was started once more
        return Outcome(Ending.COMPLETED, "it was completed before")
    while True:
        job, token = await take(job_id, wired, take_over=take_over)
        spec = await _spec(job, token, wired)
        driver = Driver(
            spec,
            token,
            wired.storage,
            wired.store,
            lambda: connect(wired.settings.ray_address),
            import_paths(wired.settings),
            retry=job.retry_count - job.automatic_retries,  # a user's: those try again what failed for good
        )
        for number in (signal.SIGTERM, signal.SIGINT):  # again: connecting to Ray may install its own
            loop.add_signal_handler(number, leave.set)
        leaver = asyncio.create_task(_leave_on(leave, driver))
        outcome = await driver.run()
        leaver.cancel()
        if outcome.ending is Ending.DRAINED:
            return await _why_drained(job_id, outcome, wired)
        if outcome.ending is not Ending.FAILED or leave.is_set():
            return outcome
        job = await wired.store.get(job_id)
        if job.status is not Status.PENDING:
            return outcome
        if (ended := await _back_off(job, outcome, leave, wired)) is not None:
            return ended
        take_over = False


async def _spec(job: Job, token: str, wired: Wired) -> JobSpec:
    """The job's `job.json`. Without it nothing can run: then the attempt ends here, and frees what it holds."""
    try:
        return await load_spec(job, wired.storage)
    except (JosError, ValueError) as error:
        failure = JobFailure(code="job_unreadable", message=f"job.json of {job.id} cannot be read: {error}")
        retryable = isinstance(error, JosError) and error.retryable
        await wired.store.transact(job.id, Exited(token, failure, retryable), datetime.now(UTC))
        raise


async def _why_drained(job_id: str, outcome: Outcome, wired: Wired) -> Outcome:
    """It left because it was asked to; the record knows by whom."""
    job = await wired.store.get(job_id)
    if job.status is Status.CANCELLED:
        return Outcome(Ending.CANCELLED, "a user cancelled it")
    if job.status is Status.FAILED and job.error is not None:  # the run timeout
        return Outcome(Ending.FAILED, job.error.message, job.error)
    return outcome


async def _leave_on(leave: asyncio.Event, driver: Driver) -> None:
    await leave.wait()
    driver.drain("this process was asked to end")


async def _back_off(job: Job, outcome: Outcome, leave: asyncio.Event, wired: Wired) -> Outcome | None:
    """Waits until another attempt may begin; an outcome if there is to be none, or not by us."""
    until = job.not_before or job.updated_at
    wait = max(0.0, (until - datetime.now(UTC)).total_seconds())
    log.warning("the attempt failed; trying again", job=job.id, seconds=round(wait, 1), error=outcome.message)
    while not leave.is_set():
        job = await wired.store.get(job.id)
        if job.status is Status.CANCELLED:
            return Outcome(Ending.CANCELLED, "a user cancelled it while it waited to be tried again")
        if job.status is not Status.PENDING:
            return Outcome(Ending.FENCED, f"the job is {job.status} elsewhere now")
        seconds = (until - datetime.now(UTC)).total_seconds()
        if seconds <= 0:
            return None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(leave.wait(), min(seconds, LOOK_SECONDS))
    return Outcome(Ending.DRAINED, "asked to leave while waiting to retry")
