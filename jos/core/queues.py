"""The configuration of queues: who may use how much, in which order, and who may take from whom.

`QueueConfig.of(data)` checks what a YAML file holds (JOS_QUEUES; whoever reads the file parses it) and names every
mistake at once with its path. Without a file there is one queue, `default`, without a quota.
May import: stdlib, pydantic, jos.core. Tests: tests/unit/test_queues.py. For people: docs/queues.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from jos.core.errors import ConfigInvalid, Violation
from jos.core.model import Model

DEFAULT = "default"  # the queue, and the entry of organisations that have none of their own
_RESOURCE = re.compile(r"cpu|memory|gpu|gpu:\S+")

Amounts = dict[str, float]  # cpu, memory (bytes), gpu, gpu:TYPE


def _checked(amounts: Amounts) -> Amounts:
    for name, amount in amounts.items():
        if not _RESOURCE.fullmatch(name):
            raise ValueError(f"{name!r} is no resource: use cpu, memory, gpu or gpu:TYPE")
        if not 0 <= amount < float("inf"):
            raise ValueError(f"{name}: must be a number that is not negative")
    return amounts


class Preemption(Model):
    within_queue: Literal["lower_priority", "never"] = "lower_priority"
    reclaim: Literal["never", "lower_priority", "any"] = "lower_priority"  # from borrowers in the cohort


class Queue(Model):
    quota: Amounts = Field(default_factory=dict)  # a resource that is not named is not limited
    weight: float = Field(default=1, gt=0)  # its part of what is borrowed in the cohort
    cohort: str | None = None  # queues of one cohort lend each other what they do not use
    borrowing_limit: Amounts = Field(
        default_factory=dict
    )  # above its quota, per resource; a resource that is not named is not limited
    strategy: Literal["best_effort", "strict_fifo"] = "best_effort"
    preemption: Preemption = Preemption()
    stopped: bool = False  # nothing new is admitted, what runs goes on

    @field_validator("quota", "borrowing_limit")
    @classmethod
    def _known(cls, amounts: Amounts) -> Amounts:
        return _checked(amounts)

    @model_validator(mode="after")
    def _lender(self) -> Queue:
        """What would be ignored is a mistake: whoever wrote it believes that it limits something."""
        if self.borrowing_limit and self.cohort is None:
            raise ValueError("borrowing_limit means nothing without a cohort")
        if "weight" in self.model_fields_set and self.cohort is None:
            raise ValueError("weight means nothing without a cohort: it parts what is borrowed")
        if without := sorted(self.borrowing_limit.keys() - self.quota.keys()):
            raise ValueError(f"borrowing_limit.{without[0]} means nothing without a quota of {without[0]}")
        return self

    @property
    def strict(self) -> bool:
        return self.strategy == "strict_fifo"


class NodeShape(Model):
    """Machines that the cluster has, or can grow to."""

    count: int = Field(default=1, ge=0)
    resources: Amounts = Field(min_length=1)  # of one: all it has

    @field_validator("resources")
    @classmethod
    def _known(cls, amounts: Amounts) -> Amounts:
        for name in _checked(amounts):
            if name.startswith("gpu:") and amounts.get("gpu", 0.0) < amounts[name]:
                raise ValueError(f"{name}: a GPU of a type counts for gpu as well; say how many gpu there are in all")
        return amounts


class Organisation(Model):
    max_running: int | None = Field(default=None, ge=0)  # jobs that hold capacity at the same time
    weight: float = Field(default=1, gt=0)  # its part at equal priority
    max_pending: int | None = Field(default=10_000, ge=0)  # jobs that wait; one more is refused. None: no limit


class PriorityCeiling(Model):
    """The highest priority that a request with a key of this role may ask for."""

    user: int = 100
    admin: int = 1000


class QueueConfig(Model):
    queues: dict[str, Queue] = Field(default_factory=dict)
    nodes: list[NodeShape] | None = None  # what plans count with; None: the living nodes of the cluster
    routes: dict[str, str] = Field(default_factory=dict)  # pipeline key -> queue, before what the pipeline says
    organisations: dict[str, Organisation] = Field(default_factory=dict)
    priority_ceiling: PriorityCeiling = PriorityCeiling()
    max_preemptions_before_exempt: int = Field(default=5, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: object) -> object:
        """What an organisation leaves out is as in `default`; the default queue is always there."""
        if not isinstance(data, Mapping):
            return data
        organisations, queues = data.get("organisations") or {}, data.get("queues") or {}
        if isinstance(organisations, Mapping) and isinstance(organisations.get(DEFAULT), Mapping):
            default = organisations[DEFAULT]
            organisations = {
                name: {**default, **own} if isinstance(own, Mapping) else own for name, own in organisations.items()
            }
        if isinstance(queues, Mapping):  # `research:` with nothing behind it is a queue as well
            queues = {name: {} if queue is None else queue for name, queue in {DEFAULT: {}, **queues}.items()}
        return {**data, "queues": queues, "organisations": organisations, "routes": data.get("routes") or {}}

    @model_validator(mode="after")
    def _routed(self) -> QueueConfig:
        for key, queue in self.routes.items():
            if queue not in self.queues:
                raise ValueError(f"routes.{key}: there is no queue {queue!r}")
        return self

    @classmethod
    def of(cls, data: object) -> QueueConfig:
        """From parsed YAML (None: an empty file or none). Raises ConfigInvalid with every mistake."""
        try:
            return cls.model_validate({} if data is None else data)
        except ValidationError as error:
            raise ConfigInvalid(
                "The configuration of queues is not valid.",
                [
                    Violation("$" + "".join(f".{part}" for part in e["loc"]), e["msg"].removeprefix("Value error, "))
                    for e in error.errors()
                ],
                suggestion="docs/queues.md has a complete example.",
            ) from None

    def queue_of(self, pipeline_key: str, pipeline_queue: str) -> str:
        if pipeline_key in self.routes:
            return self.routes[pipeline_key]
        return pipeline_queue if pipeline_queue in self.queues else DEFAULT

    def organisation(self, org_id: str) -> Organisation:
        return self.organisations.get(org_id) or self.organisations.get(DEFAULT) or _PLAIN

    def neighbours(self, queue: str) -> set[str]:
        """The other queues of its cohort."""
        cohort = self.queues[queue].cohort
        return {n for n, q in self.queues.items() if cohort and q.cohort == cohort and n != queue}

    def ceiling(self, role: str) -> int:
        return self.priority_ceiling.admin if role == "admin" else self.priority_ceiling.user


_PLAIN = Organisation()
