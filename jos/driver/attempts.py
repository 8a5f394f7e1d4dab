"""Attempts of a job. Two doors: `run_admitted` does the one attempt that a controller admitted, and leaves back-off
and retries to it. `run_attempts` is for where no controller is (`jos run`, `jos.run(...)`, `ray job submit`, a RayJob):
it takes the job over if its last driver is dead, runs an attempt, and waits out the back-off before the next.

May import: jos.core, jos.driver, jos.store, jos.storage. Tests: tests/integration/test_driver*.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog

from jos.core.commands import Drained, Exited, Taken
from jos.core.errors import JosError, NotFound, StaleAttempt
from jos.core.lifecycle import recalled
from jos.core.model import Job, JobFailure, JobSpec, Status
from jos.driver.cluster import Cluster, connect, disconnect
from jos.driver.driver import Driver, Ending, Outcome
from jos.driver.takeover import take
from jos.submission import load_spec
from jos.tracing import span
from jos.wiring import Wired, import_paths

LOOK_SECONDS = 0.5  # how soon a cancel is seen during a back-off, or an admission by a driver that came before it
ADMISSION_SECONDS = 120.0  # a driver waits for so long: the controller may have to be replaced first
_PROCESS = secrets.token_hex(8)  # tells this process from another that a cluster starts with the same command
_NUMBER = re.compile(r"jos-job_[0-9a-z]+-(\d+)")  # a launcher's name says which attempt it is for

log = structlog.get_logger()


@dataclass
class Leave:
    """Set once this process is asked to end (SIGTERM, SIGINT). `listen` again after anything that may install
    handlers of its own, as connecting to Ray does: its handler of SIGTERM calls ours, and aborts the process 3 s later,
    however long the drain may take."""

    event: asyncio.Event = field(default_factory=asyncio.Event)

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked)

    def _asked(self) -> None:
        signal.alarm(0)  # Ray's, if its handler came before ours
        self.event.set()

    @contextlib.contextmanager
    def draining(self, driver: Driver) -> Iterator[None]:
        """While this lasts, being asked to end drains the driver."""
        leaver = asyncio.create_task(self._drain(driver))
        try:
            yield
        finally:
            leaver.cancel()

    async def _drain(self, driver: Driver) -> None:
        await self.event.wait()
        driver.drain("this process was asked to end")


# --- one attempt, admitted by a controller ------------------------------------------------------------


async def run_admitted(
    job_id: str,
    token: str,
    name: str,
    wired: Wired,
    leave: Leave,
    connecting: Callable[[], Cluster] | None = None,
    admission: float = ADMISSION_SECONDS,
) -> Outcome:
    """Takes the attempt and drives it to its end. `name`: the launcher's, of this process; `connecting`: where this
    process is connected to Ray already; `admission`: seconds to wait where the attempt is not admitted yet. FENCED
    when the attempt is over or another process has taken it."""
    try:
        job = await _take(job_id, Taken(token, name, platform.node(), os.getpid(), _PROCESS), wired, leave, admission)
    except StaleAttempt as error:
        return Outcome(Ending.FENCED, str(error))
    except NotFound as error:
        asked = f"{wired.store.connection.name}; the storage is {wired.storage.url}"
        return Outcome(
            Ending.FENCED,
            f"{error} This driver asked {asked}. If the controller has others, the environment of drivers is not the "
            "controller's (JOS_PASS_ENV).",
        )
    if job is None:
        return Outcome(Ending.DRAINED, "before it was admitted")
    if not job.holds_capacity:  # a repeat of an order that was carried out
        return Outcome(Ending.FENCED, f"this attempt of job {job_id} is over")
    if job.status not in (Status.ADMITTED, Status.RUNNING) or leave.event.is_set():
        await wired.store.transact(job_id, Drained(token), datetime.now(UTC))
        return await _why_drained(job_id, Outcome(Ending.DRAINED, "before any work began"), wired)
    return await _drive(job, token, wired, leave, connecting)


async def _take(job_id: str, taken: Taken, wired: Wired, leave: Leave, seconds: float) -> Job | None:
    """Where a cluster's own queue admits, it starts the driver first, and the controller writes Admit a moment later.
    None: asked to leave meanwhile. Nothing is written before the attempt is ours."""
    began = time.monotonic()
    while True:
        try:
            return await wired.store.transact(job_id, taken, datetime.now(UTC))
        except StaleAttempt:
            if not _may_come(await wired.store.get(job_id), taken):
                raise
        waited = time.monotonic() - began
        if waited > seconds:
            raise StaleAttempt(f"This attempt of job {job_id} was not admitted within {seconds:g} s.")
        log.info("waiting for the admission of this attempt", job=job_id, seconds=round(waited, 1))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(leave.event.wait(), LOOK_SECONDS)
            return None


def _may_come(job: Job, taken: Taken) -> bool:
    """Whether the attempt is yet to be admitted, or was while we asked."""
    attempt = job.attempt
    if attempt is not None and attempt.token == taken.token:
        return job.status is Status.PENDING if recalled(attempt) else job.holds_capacity and not attempt.driver
    number = _NUMBER.fullmatch(taken.driver)
    begun = attempt.number if attempt is not None else 0
    return job.status is Status.PENDING and number is not None and int(number[1]) > begun


# --- attempts one after the other, without a controller -----------------------------------------------


async def run_attempts(job_id: str, wired: Wired, *, take_over: bool = False) -> Outcome:
    """Runs the job until it is over or this process is told to leave (SIGTERM, SIGINT)."""
    try:
        return await _run_attempts(job_id, wired, take_over)
    finally:
        await asyncio.to_thread(disconnect)


async def _run_attempts(job_id: str, wired: Wired, take_over: bool) -> Outcome:
    leave = Leave()
    leave.listen()
    if (await wired.store.get(job_id)).status is Status.COMPLETED:  # a RayJob's pod that was started once more
        return Outcome(Ending.COMPLETED, "it was completed before")
    while True:
        job, token = await take(job_id, wired, take_over=take_over)
        outcome = await _drive(job, token, wired, leave)
        if outcome.ending is not Ending.FAILED or leave.event.is_set():
            return outcome
        job = await wired.store.get(job_id)
        if job.status is not Status.PENDING:
            return outcome
        if (ended := await _back_off(job, outcome, leave.event, wired)) is not None:
            return ended
        take_over = False


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


# --- what both share ----------------------------------------------------------------------------------


async def _drive(
    job: Job, token: str, wired: Wired, leave: Leave, connecting: Callable[[], Cluster] | None = None
) -> Outcome:
    spec = await _spec(job, token, wired)
    loop = asyncio.get_running_loop()

    def connect_and_listen() -> Cluster:
        cluster = connecting() if connecting else connect(wired.settings.ray_address)
        loop.call_soon_threadsafe(leave.listen)
        return cluster

    driver = Driver(
        spec,
        token,
        wired.storage,
        wired.store,
        connect_and_listen,
        import_paths(wired.settings),
        retry=job.retry_count - job.automatic_retries,  # a user's: those try again what failed for good
        granted=job.attempt.indexes if job.attempt else None,
    )
    leave.listen()
    with leave.draining(driver), span("attempt", job.id, number=job.attempt.number if job.attempt else 0):
        outcome = await driver.run()
    return await _why_drained(job.id, outcome, wired) if outcome.ending is Ending.DRAINED else outcome


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
        return replace(outcome, ending=Ending.CANCELLED, message="a user cancelled it")
    if job.status is Status.FAILED and job.error is not None:  # the run timeout
        return replace(outcome, ending=Ending.FAILED, message=job.error.message, failure=job.error)
    return outcome
