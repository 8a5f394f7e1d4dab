"""Where driver processes come from, as the controller sees it.

May import: jos.core. Tests: tests/contract/test_launcher.py runs against every launcher.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from jos.core.admission import Node
from jos.core.lifecycle import recalled
from jos.core.model import Job


@dataclass(frozen=True)
class Waits:
    """Why a driver is not up yet."""

    reason: str  # a jos.core.commands.Reason: PullingImage, NoNodeForPods, WaitingInKueue …
    message: str  # in words for the job's owner: which pod, which image, what to do


@dataclass(frozen=True)
class Eviction:
    """The cluster took a driver's place away, and gave it another one since."""

    message: str  # why, in the cluster's words
    back_at: datetime


@dataclass(frozen=True)
class DriverSeen:
    """One driver process that the launcher knows of."""

    name: str
    state: Literal["starting", "running", "ended"]
    message: str = ""  # of one that ended: why, with the end of its log
    exit_code: int | None = None
    started_at: datetime | None = None
    waits: Waits | None = None  # of one that is starting: what it waits for, where the launcher can say
    suspended: bool = False  # its cluster took its place away, or has not given it one yet; it does nothing meanwhile
    evicted: Eviction | None = None  # the last time; whatever it had in hand before that was lost with its place
    token: str = ""  # of the attempt that it was made for, where the launcher can say


@dataclass(frozen=True)
class Offer:
    """A job that stands in the queue of another system (Kueue) with all that its next attempt needs."""

    job_id: str
    token: str  # of the attempt that begins once it is admitted there
    admitted: bool  # the other system holds capacity for it
    message: str = ""  # why it still waits, in that system's words; empty: it has not looked at it yet
    number: int | None = None  # of that attempt; None: not known


class Launcher(Protocol):
    """Every method may be called again and again. Raises ComputeFailed (retryable) while the cluster cannot be
    reached; `start`, `stop` and `keep_warm` raise StoreUnavailable too."""

    @property
    def optional_gpus(self) -> bool:
        """Whether an index gets a GPU that it can do without; looked at where `nodes` knows nothing."""
        ...

    async def start(self, job: Job) -> None:
        """Has the job's present attempt driven: by an idle warm driver, else by a process of its own. Once, however
        often it is asked; but an order that no driver took in some seconds is given again."""
        ...

    async def stop(self, name: str) -> None:
        """Ends a driver process: it may drain for some seconds, then it is killed. One that is gone is no error."""
        ...

    async def seen(self) -> dict[str, DriverSeen]:
        """All driver processes by name, warm ones too; those that ended for some minutes more."""
        ...

    async def nodes(self) -> tuple[Node, ...] | None:
        """What the living nodes offer; None: this launcher cannot know, so that only quotas limit."""
        ...

    def name_of(self, job: Job) -> str:
        """What the driver of the present attempt is called if it gets a process of its own."""
        ...

    async def keep_warm(self, count: int, driving: Collection[str] = ()) -> None:
        """Sees to it that so many spare drivers wait for a job, or are on their way. `driving`: names of drivers that
        have an attempt in hand, whatever else is known of them; they are left alone."""
        ...

    async def close(self) -> None: ...


def number_of(job: Job, token: str) -> int:
    """Which attempt of a waiting job one with this token would be: the next one, or the last one once more when the
    other system took it back before anybody drove it."""
    attempt = job.attempt
    if attempt is None:
        return 1
    return attempt.number if recalled(attempt) and attempt.token == token else attempt.number + 1


class News(Protocol):
    """What a launcher has besides that is told of changes, and need not ask: nobody has to wait for the next look."""

    async def news(self, seconds: float) -> Mapping[str, DriverSeen]:
        """Waits so long at most until something happened to a driver, and says of those what `seen` would."""
        ...


class Offers(Protocol):
    """What a launcher has besides, where another system's queue admits. The controller offers jobs that wait, admits
    those that the other system admitted, and withdraws those that wait no more. Same errors as Launcher."""

    async def offer(self, job: Job, token: str) -> None:
        """Puts the job's next attempt (`number_of`) into the other queue. Once, however often it is asked; changes its
        priority there when the job's has changed. Token of an earlier offer of the same attempt stays."""
        ...

    async def offered(self) -> dict[str, Offer]:
        """All offers by job id, admitted or not."""
        ...

    async def withdraw(self, job_id: str) -> None:
        """Takes an offer back. One that is gone is no error."""
        ...
