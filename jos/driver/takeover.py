"""Taking a job over where no controller says who drives it: is its last driver dead, or only silent?

May import: jos.core, jos.driver, jos.store. Tests: tests/integration/test_driver_survives.py.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import time
from datetime import UTC, datetime, timedelta

from jos.core.commands import Admit, DriverGone, Retry
from jos.core.errors import Conflict
from jos.core.model import Attempt, Job, Status
from jos.driver.driver import LAST_WORD_SECONDS
from jos.wiring import Wired

SILENCE = timedelta(seconds=15)  # a driver that was not heard for so long is taken for dead


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
