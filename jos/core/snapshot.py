"""What admission looks at, and what it answers: plain frozen data.

May import: stdlib, jos.core. Tests: tests/unit/test_admission.py. The rules are in jos/core/admission.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from jos.core.model import Resources
from jos.core.queues import QueueConfig


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the cluster: all it has, used or not, e.g. {"cpu": 16, "memory": 64e9, "gpu": 8, "gpu:H100": 8}.
    A node that does not name its memory is not limited by it."""

    resources: Mapping[str, float]


def capacity(config: QueueConfig, living: tuple[Node, ...] | None) -> tuple[Node, ...] | None:
    """What plans count with: the configured nodes, where there are any; else those that live."""
    if config.nodes is None:
        return living
    return tuple(Node(shape.resources) for shape in config.nodes for _ in range(shape.count))


@dataclass(frozen=True, slots=True)
class Waiting:
    """A PENDING job."""

    id: str
    org_id: str
    queue: str
    priority: int
    queued_at: datetime
    not_before: datetime | None
    resources: Resources  # of one index
    parallelism: int  # the most indexes it can use; 1 for a trainer
    preemption_count: int = 0
    holds_capacity: bool = False  # the driver of its attempt before has not left; that attempt is in `holding`


@dataclass(frozen=True, slots=True)
class Holding:
    """A job whose attempt holds capacity, whatever its status reads."""

    id: str
    org_id: str
    queue: str
    priority: int
    resources: Resources
    parallelism: int
    indexes: int  # granted
    admitted_at: datetime
    leaving: bool = False  # told to leave, or over: its capacity comes back without anybody else being asked
    preemption_count: int = 0
    work_lost: float = 0.0  # seconds of work that a preemption would throw away
    growable: bool = True


@dataclass(frozen=True, slots=True)
class Snapshot:
    config: QueueConfig
    nodes: tuple[Node, ...] | None  # None: the cluster is not known, only quotas count
    waiting: tuple[Waiting, ...]
    holding: tuple[Holding, ...]
    promised: frozenset[str] = frozenset()  # `Plan.promised` of the plan before: who the leaving jobs leave for
    optional_gpus: bool = True  # where the nodes are not known: whether GPUs that an index can do without are asked for


@dataclass(frozen=True, slots=True)
class Admit:
    job_id: str
    indexes: int


@dataclass(frozen=True, slots=True)
class Grow:
    job_id: str
    indexes: int  # in all


@dataclass(frozen=True, slots=True)
class Preempt:
    job_id: str
    for_job: str
    message: str


@dataclass(frozen=True, slots=True)
class Hold:
    job_id: str
    reason: str  # a jos.core.commands.Reason
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Every waiting job is in `admits` or in `holds`."""

    admits: list[Admit]
    grows: list[Grow]
    preempts: list[Preempt]
    holds: list[Hold]
    promised: frozenset[str]  # they wait for others to leave; give it to the next snapshot
