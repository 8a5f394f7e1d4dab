"""What driver and indexes send each other: ids, counts and digests; never payloads.

May import: jos.core. Tests: tests/unit/test_index.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jos.core.errors import JosError
from jos.core.ledger import Commit
from jos.core.plan import InputPlan
from jos.core.stimuli import SpanFault


@dataclass(frozen=True)
class IndexConfig:
    """What an index is made from; travels once, at the actor's creation."""

    spec_json: bytes  # JobSpec
    storage_url: str
    folder: str  # of the job in the storage root, ending in "/"
    attempt: str  # token
    index: int
    life: int
    device: str
    threads: int
    import_paths: tuple[str, ...] = ()  # where to look for the worker's module
    rank: int = 0  # among those that do each step of a training together (jos.driver.group)
    ranks: int = 1


@dataclass(frozen=True)
class WorkerEvent:
    event_type: str
    level: str
    message: str
    payload: Mapping[str, Any]


@dataclass
class Ready:
    host: str
    pid: int
    seconds: float
    trainer: bool
    progress_kind: str
    events: list[WorkerEvent]
    error: JosError | None = None  # no other index would fare better


@dataclass
class LeaseReply:
    lease: int
    seconds: float = 0.0
    commits: list[Commit] = field(default_factory=list)
    faults: list[SpanFault] = field(default_factory=list)
    plans: list[InputPlan] = field(default_factory=list)
    events: list[WorkerEvent] = field(default_factory=list)
    sick: str | None = None
    storage_error: str | None = None  # storage refused a write: no fault of the span
