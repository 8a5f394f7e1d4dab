"""What can happen to a job, as data: the commands that jos.core.lifecycle turns into transitions, and the reasons
that it leaves in `Job.reason`.

A command about one attempt carries that attempt's token. May import: stdlib, jos.core.model.
Tests: tests/unit/test_lifecycle*.py. For people: docs/lifecycle.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from jos.core.model import JobFailure


@dataclass(frozen=True)
class Admit:
    """The controller grants capacity; `token` is fresh and names the new attempt. Whether the back-off has passed
    and the quota suffices is for jos.core.admission to say, not for the state machine. A driver that admits itself
    says where it is: should it die before it has Started, the next one can see that at once."""

    token: str
    host: str = ""
    pid: int = 0
    indexes: int | None = None  # how many indexes the grant allows at first; None: no limit
    number: int | None = None  # which attempt the token was made for, refused if that is not the next; None: the next


@dataclass(frozen=True)
class Grow:
    """The controller grants a running attempt more indexes, `indexes` in all; it never takes one back."""

    token: str
    indexes: int


@dataclass(frozen=True)
class Shrink:
    """The driver has work for `indexes` of its indexes only, now and to its end, and has stopped the others: what they
    held is free. No Grow of this attempt counts from then on."""

    token: str
    indexes: int


@dataclass(frozen=True)
class Hold:
    """The controller looked at a waiting job and says why it goes on waiting. The same again is a repeat; the same
    reason in other words is written, but no event."""

    reason: str  # a Reason
    message: str


@dataclass(frozen=True)
class Waits:
    """The controller says what an admitted job's driver waits for before it is up. As Hold: the same again is a repeat,
    the same reason in other words is written, but no event. Too late once a driver has taken the attempt."""

    token: str
    reason: str  # a Reason; CapacityGranted: it waits for nothing any more
    message: str = ""


@dataclass(frozen=True)
class Recall:
    """The controller saw that the cluster's own queue took back what it had given, before any driver took the attempt.
    The job waits as before, nothing is counted, and an Admit with the same token takes the attempt up again."""

    token: str
    message: str = ""


@dataclass(frozen=True)
class Taken:
    """A driver process takes an attempt on, before it does anything else. A second process that comes with the
    same token (an order that was sent twice, a cluster that runs it once more) gets StaleAttempt."""

    token: str
    driver: str  # the launcher's name of this process
    host: str = ""
    pid: int = 0
    process: str = ""  # random, one for each process: a cluster that runs an order again uses the same name


@dataclass(frozen=True)
class Started:
    """The driver has its first index up. Sent before any last word, even when nothing is left to do."""

    token: str
    host: str = ""
    pid: int = 0


@dataclass(frozen=True)
class Preempt:
    """The controller wants the capacity for another job, or the cluster took it away; `message` says for which."""

    message: str = ""
    token: str | None = None  # only this attempt; None: whichever there is


@dataclass(frozen=True)
class Cancel:
    """A user stops the job. Wins over whatever its driver still says."""


@dataclass(frozen=True)
class Completed:
    """The driver's last word: all work is committed."""

    token: str
    message: str = ""


@dataclass(frozen=True)
class Exited:
    """The driver's last word: the attempt failed. `retryable`: another attempt may succeed as things are."""

    token: str
    failure: JobFailure
    retryable: bool


@dataclass(frozen=True)
class Drained:
    """The driver's last word: it was asked to leave, committed what it had in hand, and leaves."""

    token: str


@dataclass(frozen=True)
class DriverGone:
    """The launcher is sure that this attempt's driver runs no more, e.g. with "killed: out of memory"."""

    token: str
    message: str = ""


@dataclass(frozen=True)
class Retry:
    """A user wants another go; committed work stays."""

    queue: str | None = None  # where it waits from now on; None: where it did


@dataclass(frozen=True)
class Expire:
    """A timeout of the pipeline ran out; made by `overdue`, and refused when it says otherwise."""

    kind: Literal["queue", "run"]


LastWord = Completed | Exited | Drained
OfAttempt = Waits | Recall | Taken | Grow | Shrink | Started | LastWord | DriverGone
Command = Admit | OfAttempt | Hold | Preempt | Cancel | Retry | Expire


class Reason(StrEnum):
    """Why a job is in its status: `Job.reason`."""

    WAITING_FOR_CAPACITY = "WaitingForCapacity"  # PENDING
    QUOTA_EXHAUSTED = "QuotaExhausted"  # PENDING: its queue (and what it may borrow) is in use
    CLUSTER_FULL = "ClusterFull"  # PENDING: quota is there, the cluster's capacity is in use
    NO_NODE_FITS = "NoNodeFits"  # PENDING: no node of the cluster could hold one index
    EXCEEDS_QUOTA = "ExceedsQuota"  # PENDING: one index is more than its queue may ever use
    CLAIMED = "ClaimedByOthers"  # PENDING: it would have to borrow what jobs with a claim on it wait for
    ORGANISATION_LIMIT = "OrganisationLimit"  # PENDING: its organisation runs as many jobs as it may
    BEHIND_HEAD = "BehindHeadOfQueue"  # PENDING: its queue is strict, and an earlier job does not fit yet
    WAITING_FOR_PREEMPTION = "WaitingForPreemption"  # PENDING: jobs were told to leave for it
    QUEUE_STOPPED = "QueueStopped"  # PENDING: an operator stopped its queue
    CLUSTER_UNAVAILABLE = "ClusterUnavailable"  # PENDING, ADMITTED: the cluster does not answer; nothing starts
    WAITING_FOR_BACKOFF = "WaitingForBackoff"  # PENDING until `not_before`, after a failed attempt
    WAITING_FOR_DRIVER = "WaitingForDriver"  # PENDING, but the driver of the attempt before has not left yet
    CAPACITY_GRANTED = "CapacityGranted"  # ADMITTED
    WAITING_IN_KUEUE = "WaitingInKueue"  # PENDING (offered to Kueue) or ADMITTED: Kueue holds no quota for it yet
    WAITING_FOR_OPERATOR = "WaitingForOperator"  # ADMITTED: KubeRay has not looked at its RayJob yet
    PULLING_IMAGE = "PullingImage"  # ADMITTED: a node pulls the image of its pods, or cannot
    NO_NODE_FOR_PODS = "NoNodeForPods"  # ADMITTED: the scheduler finds no node for one of its pods
    CLUSTER_QUOTA = "ClusterQuota"  # ADMITTED: a ResourceQuota of the namespace refuses its pods
    PODS_REFUSED = "PodsRefused"  # ADMITTED: the cluster refuses its pods (Pod Security, a webhook, a limit range)
    POD_CANNOT_START = "PodCannotStart"  # ADMITTED: a container does not come up (a secret is missing, it crashes)
    WAITING_FOR_HEAD = "WaitingForHead"  # ADMITTED: the head of its Ray cluster is on its way
    WAITING_FOR_WORKERS = "WaitingForWorkers"  # ADMITTED: the head is up, the pods of its indexes are on their way
    WAITING_FOR_RAY = "WaitingForRay"  # ADMITTED: the pods are up, Ray has yet to start the driver
    DRIVER_STARTED = "DriverStarted"  # RUNNING
    PREEMPTED = "Preempted"  # PREEMPTED
    ALL_WORK_COMMITTED = "AllWorkCommitted"  # COMPLETED
    ATTEMPT_FAILED = "AttemptFailed"  # FAILED in a way that another attempt cannot mend
    RETRIES_EXHAUSTED = "RetriesExhausted"  # FAILED
    QUEUE_TIMEOUT = "QueueTimeout"  # FAILED
    RUN_TIMEOUT = "RunTimeout"  # FAILED
    CANCELLED_BY_USER = "CancelledByUser"  # CANCELLED
