"""How much there is and how much is used: the arithmetic under jos.core.admission.

A Shape is what one index needs; a Ledger counts what is used in the cluster, in each queue and in each cohort, and
says how many more indexes of a shape fit. Amounts are floats by name: cpu, memory, gpu, gpu:TYPE.
May import: stdlib, jos.core. Tests: tests/unit/test_admission.py.

Whether indexes fit on nodes is judged by totals, and by one more number per shape: how many such indexes the empty
cluster holds. So jobs of one shape are never promised more than nodes of their size can carry (nodes of 8 GPUs hold
two indexes of 3, and not 2.67). A mix of shapes may still leave gaps, and an index then waits in Ray for its node.
Where Ray puts an index is not ours to know; a simulation of it would guess, and a plan made again would guess anew.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jos.core.model import Resources
from jos.core.queues import Queue, QueueConfig
from jos.core.snapshot import Node

EPSILON = 1e-9
CLUSTER = "the cluster"
NOTHING: Mapping[str, float] = {}

Amounts = dict[str, float]


def demand(resources: Resources, nodes: Sequence[Node] | None, optional_gpus: bool = True) -> Amounts:
    """What one index is charged for. A GPU that is not required counts only where the cluster has any; where its nodes
    are not known, if such GPUs are asked for there (`optional_gpus`)."""
    amounts = {"cpu": resources.cpu}
    if resources.memory_bytes:
        amounts["memory"] = float(resources.memory_bytes)
    gpu = resources.gpu
    there = optional_gpus if nodes is None else any(node.resources.get("gpu") for node in nodes)
    if gpu.count and (gpu.required or there):
        amounts["gpu"] = gpu.count
        if gpu.type:
            amounts[f"gpu:{gpu.type}"] = gpu.count
    return amounts


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What one index needs. One object for all jobs that need the same, so that it is compared by identity."""

    needs: Amounts
    amounts: tuple[tuple[str, float], ...]  # the same, and one of this shape's places on the nodes
    places: float  # indexes of this shape that the empty cluster holds


class Limits:
    """What may be used where, from the configuration and the nodes."""

    def __init__(self, config: QueueConfig, nodes: Sequence[Node] | None, optional_gpus: bool = True) -> None:
        self.config, self.nodes, self.optional_gpus = config, nodes, optional_gpus
        self.kinds = Counter(tuple(sorted(node.resources.items())) for node in nodes or ())
        self.cluster: Amounts = {}
        for kind, count in self.kinds.items():
            for name, amount in kind:
                self.cluster[name] = self.cluster.get(name, 0.0) + amount * count
        self.cohorts = {queue.cohort: self._pool(queue.cohort) for queue in config.queues.values() if queue.cohort}
        self.caps = {name: self._cap(queue) for name, queue in config.queues.items()}
        self._shapes: dict[tuple[object, ...], Shape] = {}

    def _pool(self, cohort: str) -> Amounts:
        """What the cohort has together: only resources that all its queues have a quota of."""
        quotas = [queue.quota for queue in self.config.queues.values() if queue.cohort == cohort]
        return {name: sum(q[name] for q in quotas) for name in quotas[0] if all(name in q for q in quotas)}

    @staticmethod
    def _cap(queue: Queue) -> Amounts:
        if queue.cohort is None:
            return dict(queue.quota)
        return {n: amount + queue.borrowing_limit.get(n, math.inf) for n, amount in queue.quota.items()}

    def shape(self, resources: Resources) -> Shape:
        gpu = resources.gpu
        key = (resources.cpu, resources.memory_bytes, gpu.count, gpu.type, gpu.required)
        found = self._shapes.get(key)
        if found is None:
            found = self._shapes[key] = self._new_shape(resources, f"places {len(self._shapes)}")
        return found

    def _new_shape(self, resources: Resources, places_name: str) -> Shape:
        needs = demand(resources, self.nodes, self.optional_gpus)
        if self.nodes is None:
            return Shape(needs, tuple(needs.items()), math.inf)
        for name in needs:
            if name != "memory":
                self.cluster.setdefault(name, 0.0)
        places = 0.0
        for kind, count in self.kinds.items():
            has = dict(kind)
            fit = (has.get(n, math.inf if n == "memory" else 0.0) / amount for n, amount in needs.items())
            places += count * whole(min(fit))
        self.cluster[places_name] = places
        return Shape(needs, (*needs.items(), (places_name, 1.0)), places)

    def never(self, queue: str, shape: Shape) -> str | None:
        """The resource of which one index needs more than its queue may ever use."""
        for name, amount in shape.needs.items():
            if amount > self.most(queue, name) * (1 + EPSILON):
                return name
        return None

    def most(self, queue: str, name: str) -> float:
        """What the queue may ever use of a resource, with all it can borrow."""
        cohort = self.config.queues[queue].cohort
        pool = self.cohorts[cohort] if cohort else {}
        return min(self.caps[queue].get(name, math.inf), pool.get(name, math.inf))

    def totals(self) -> Amounts:
        """What shares are measured against: the cluster, or all quotas where it is not known."""
        if self.nodes is not None:
            return {name: total for name, total in self.cluster.items() if total and not name.startswith("places ")}
        totals: Amounts = {}
        for queue in self.config.queues.values():
            for name, amount in queue.quota.items():
                totals[name] = totals.get(name, 0.0) + amount
        return {name: total for name, total in totals.items() if total} or {"cpu": 1.0}


@dataclass(frozen=True, slots=True)
class Lack:
    """Where too little is free for one index, and of what."""

    where: str
    name: str  # of the resource; "places": the nodes are too full, though their sum is not
    free: float  # below 0 where more is used than there is, e.g. since a node went
    limit: float


class Ledger:
    """What is used, and by how many jobs of each organisation. `charge` with negative numbers gives back."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.running: dict[str, int] = {}
        config, cluster = limits.config, (CLUSTER, dict[str, float](), limits.cluster)
        pools = {name: (f"cohort {name}", dict[str, float](), pool) for name, pool in limits.cohorts.items()}
        self._elsewhere = [cluster]  # of jobs whose queue is not configured any more
        self._scopes: dict[str, list[tuple[str, Amounts, Amounts]]] = {}
        self._used: dict[str, Amounts] = {}
        self._quotas = {name: queue.quota for name, queue in config.queues.items()}
        self._lent = {name for name, queue in config.queues.items() if queue.cohort}
        for name, queue in config.queues.items():
            used = self._used[name] = {}
            own = (f"queue {name}", used, limits.caps[name])
            self._scopes[name] = [own, *([pools[queue.cohort]] if queue.cohort else []), cluster]

    def copy(self) -> Ledger:
        other = Ledger(self.limits)
        other.running = dict(self.running)
        other._elsewhere[0][1].update(self._elsewhere[0][1])
        for name, scopes in self._scopes.items():
            for (_, used, _), (_, copied, _) in zip(scopes, other._scopes[name], strict=True):
                copied.update(used)
        return other

    def charge(self, queue: str, org_id: str, shape: Shape, indexes: int, jobs: int = 0) -> None:
        for _, used, _ in self._scopes.get(queue, self._elsewhere):
            for name, amount in shape.amounts:
                used[name] = used.get(name, 0.0) + amount * indexes
        if jobs:
            self.running[org_id] = self.running.get(org_id, 0) + jobs

    def room(self, queue: str, shape: Shape) -> float:
        """How many more indexes fit: a whole number or infinity."""
        least = math.inf
        for _, used, limits in self._scopes[queue]:
            for name, amount in shape.amounts:
                limit = limits.get(name)
                if limit is not None:
                    fit = (limit - used.get(name, 0.0)) / amount
                    if fit < least:
                        least = fit
        return max(0.0, whole(least))

    def fits(self, queue: str, shape: Shape) -> bool:
        return self.room(queue, shape) >= 1

    def lacks(self, queue: str, shape: Shape) -> list[Lack]:
        """Why one more index does not fit: its queue first, the cluster last."""
        found = []
        for where, used, limits in self._scopes[queue]:
            for name, amount in shape.amounts:
                free = limits.get(name, math.inf) - used.get(name, 0.0)
                if whole(free / amount) < 1:
                    found.append(Lack(where, name.partition(" ")[0], free, limits[name]))
        return found

    def may_run(self, org_id: str) -> bool:
        most = self.limits.config.organisation(org_id).max_running
        return most is None or self.running.get(org_id, 0) < most

    def borrows(self, queue: str, shape: Shape) -> bool:
        """Whether one more index would be above the queue's own quota."""
        return queue in self._lent and not self.within(queue, shape)

    def within(self, queue: str, shape: Shape, gone: Mapping[str, float] = NOTHING) -> bool:
        """Whether one more index would be within the queue's own quota, once what is `gone` has left."""
        return self.own_room(queue, shape, gone) >= 1

    def own_room(self, queue: str, shape: Shape, gone: Mapping[str, float] = NOTHING) -> float:
        """How many more indexes would be within the queue's own quota: a whole number or infinity."""
        used, quota = self._used[queue], self._quotas[queue]
        room = math.inf
        for name, amount in shape.needs.items():
            if name in quota:
                room = min(room, whole((quota[name] - used.get(name, 0.0) + gone.get(name, 0.0)) / amount))
        return room

    def has_borrowed(self, queue: str, names: Iterable[str]) -> bool:
        used, quota = self._used[queue], self._quotas[queue]
        return any(used.get(name, 0.0) > quota[name] * (1 + EPSILON) for name in names if name in quota)

    def borrowed_share(self, queue: str, shape: Shape) -> float:
        """The part of its cohort that the queue would have borrowed with one more index, per weight."""
        if queue not in self._lent:
            return 0.0
        config = self.limits.config.queues[queue]
        pool, used = self.limits.cohorts[config.cohort or ""], self._used[queue]
        most = 0.0
        for name, amount in shape.needs.items():
            if total := pool.get(name):
                most = max(most, (used.get(name, 0.0) + amount - config.quota[name]) / total)
        return most / config.weight if most > EPSILON else 0.0


class Shares:
    """Each organisation's dominant share of the cluster, per weight: the larger, the later its turn."""

    def __init__(self, limits: Limits) -> None:
        self._config, self._totals = limits.config, limits.totals()
        self._used: dict[str, Amounts] = {}
        self._known: dict[str, float] = {}

    def charge(self, org_id: str, shape: Shape, indexes: int) -> None:
        used = self._used.setdefault(org_id, {})
        for name, amount in shape.needs.items():
            used[name] = used.get(name, 0.0) + amount * indexes
        self._known.pop(org_id, None)

    def of(self, org_id: str) -> float:
        known = self._known.get(org_id)
        if known is None:
            used = self._used.get(org_id, {})
            most = max((amount / self._totals[n] for n, amount in used.items() if n in self._totals), default=0.0)
            known = self._known[org_id] = most / self._config.organisation(org_id).weight
        return known


def whole(number: float) -> float:
    return math.floor(number + EPSILON) if number < math.inf else math.inf
