"""What the driver's brain hears and says: stimuli in, instructions out. Plain data; jos/core/dispatch.py decides.

A `life` counts the processes that an index has had: what a former life still says is ignored.
May import: stdlib, jos.core. Tests: tests/unit/test_dispatch.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from jos.core.ledger import Commit
from jos.core.plan import InputPlan, SpanWork, Work

# --- stimuli ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IndexUp:
    index: int
    life: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A node had room for the index: its process runs, and is being set up."""

    index: int
    life: int


@dataclass(frozen=True, slots=True)
class IndexDown:
    """The index's process is gone, or could not be set up."""

    index: int
    life: int
    reason: str


@dataclass(frozen=True, slots=True)
class SpanFault:
    """A span that an index could not do. `final`: trying again cannot help. `dropped`: not tried at all (drain,
    or a trainer standing elsewhere)."""

    work: SpanWork
    message: str
    final: bool = False
    dropped: bool = False
    whole: bool = False  # the span as a whole cannot be done (its input cannot be read): cutting it cannot help


@dataclass(frozen=True, slots=True)
class LeaseDone:
    index: int
    life: int
    lease: int
    seconds: float  # that the index was busy with it
    commits: tuple[Commit, ...] = ()
    faults: tuple[SpanFault, ...] = ()
    plans: tuple[InputPlan, ...] = ()
    sick: str | None = None  # the process works no more (e.g. a CUDA fault): replace it
    storage_error: str | None = None  # storage refused a write; the spans come back as dropped


@dataclass(frozen=True, slots=True)
class Committed:
    """A log entry with these commits is durable and applied to the ledger."""

    commits: tuple[Commit, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes; sent about once a second."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Finish what is in hand, push nothing more."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A controller allows `indexes` indexes in all. It takes none back: fewer than before changes nothing."""

    indexes: int


Stimulus = Placed | IndexUp | IndexDown | LeaseDone | Committed | Tick | Drain | Grant


# --- instructions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartIndex:
    index: int
    life: int
    delay: float
    why: str = ""  # for a restart: what happened to the former life
    group: int = 1  # so many processes that do each step of a training together


@dataclass(frozen=True, slots=True)
class StopIndex:
    """`kill`: the process hangs or is sick, do not wait for it."""

    index: int
    life: int
    kill: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Push:
    index: int
    life: int
    lease: int
    work: tuple[Work, ...]


@dataclass(frozen=True, slots=True)
class WriteCommits:
    commits: tuple[Commit, ...]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The attempt has failed. `retryable`: another attempt may succeed."""

    code: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class NoRoom:
    """No node has had room for any index for long: the attempt leaves, through no fault of the job."""

    message: str


@dataclass(frozen=True, slots=True)
class AllCommitted:
    """Every task is in a commit (or, after Drain, everything in hand is)."""


Instruction = StartIndex | StopIndex | Push | WriteCommits | GiveUp | NoRoom | AllCommitted
