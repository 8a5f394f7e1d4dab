"""Whom a waiting job may push out, and the fewest of them that make room.

Jobs of lower priority in its own queue (`within_queue`), and, where it stays within its queue's own quota, jobs of
queues of its cohort that have borrowed (`reclaim`). Never: jobs that are leaving, and jobs that were preempted
`max_preemptions_before_exempt` times.
May import: stdlib, jos.core. Tests: tests/unit/test_admission.py, tests/unit/test_admission_walks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jos.core.capacity import EPSILON, Amounts, Lack, Ledger, Shape
from jos.core.queues import QueueConfig
from jos.core.snapshot import Holding, Waiting


@dataclass(frozen=True, slots=True, eq=False)
class Victim:
    job: Holding
    shape: Shape


class Victims:
    """All that could be pushed out, in the order in which they would be. `ledgers` are what is used once those that
    are told to leave have left: the first decides what is lacking, all are kept up to date."""

    def __init__(
        self, config: QueueConfig, holding: Iterable[tuple[Holding, Shape]], ledgers: Sequence[Ledger]
    ) -> None:
        self._config, self._ledgers = config, ledgers
        exempt = config.max_preemptions_before_exempt
        able = [Victim(j, s) for j, s in holding if not j.leaving and j.preemption_count < exempt]
        self._able = sorted(able, key=_order)
        self._candidates: dict[tuple[str, int], dict[str, Victim]] = {}  # by queue and priority of the newcomer
        self._most: dict[tuple[str, int], dict[str, Amounts]] = {}  # what they hold together, by their queue

        self.looks = 0  # at victims one by one, which is what costs
        self._looked = False

    def tell(self, victims: Iterable[Victim]) -> None:
        """They are told to leave: nobody else's victims any more."""
        for victim in victims:
            self._able.remove(victim)
            for key, candidates in self._candidates.items():
                if candidates.pop(victim.job.id, None) and key in self._most:
                    _add(self._most[key], victim, -1)

    def release(self, victims: Iterable[Victim], sign: int = 1) -> None:
        for v in victims:
            for ledger in self._ledgers:
                ledger.charge(v.job.queue, v.job.org_id, v.shape, -sign * v.job.indexes, -sign)

    def choose(self, job: Waiting, shape: Shape, fits: Callable[[], bool]) -> list[Victim]:
        """The fewest that must leave so that `fits()`; empty if that is not to be had. Leaves the ledgers as they
        were.

        Takes victims away until the newcomer fits, then gives back those that are not needed, the dearest first.
        """
        chosen = self._choose(job, shape, fits, foreign=True)
        if not chosen and self._looked and self._config.queues[job.queue].cohort is not None:
            # those of other queues may only be taken for a job within its quota; perhaps its own suffice
            chosen = self._choose(job, shape, fits, foreign=False)
        return chosen

    def _choose(self, job: Waiting, shape: Shape, fits: Callable[[], bool], foreign: bool) -> list[Victim]:
        soon = self._ledgers[0]
        lacks = soon.lacks(job.queue, shape)
        names = {lack.name for lack in lacks or self._ledgers[-1].lacks(job.queue, shape)}
        names = set(shape.needs) if "places" in names else names
        self._looked = self._hope(job, shape, lacks, names)
        if not self._looked:
            return []
        self.looks += 1
        taken: list[Victim] = []

        def enough() -> bool:
            if not fits():
                return False
            return all(v.job.queue == job.queue for v in taken) or soon.within(job.queue, shape)

        reached = False
        for victim in self._of(job).values():
            if names.isdisjoint(victim.shape.needs):
                continue
            if victim.job.queue != job.queue and not (foreign and soon.has_borrowed(victim.job.queue, names)):
                continue
            self.release([victim])
            taken.append(victim)
            if reached := enough():
                break
        if reached:
            self._give_back(taken, enough)
        self.release(taken, -1)
        return taken if reached else []

    def _give_back(self, taken: list[Victim], enough: Callable[[], bool]) -> None:
        again = True
        while again:  # one that was given back may make another one unneeded
            again = False
            for victim in reversed(list(taken)):
                self.release([victim], -1)
                place = taken.index(victim)
                taken.remove(victim)
                if enough():
                    again = True
                else:
                    self.release([victim])
                    taken.insert(place, victim)

    def _of(self, job: Waiting) -> dict[str, Victim]:
        """Whom the rules let it push out, in order; whether their queues have borrowed is another matter."""
        key = (job.queue, job.priority)
        found = self._candidates.get(key)
        if found is None:
            rules = self._config.queues[job.queue].preemption
            foreign = self._config.neighbours(job.queue) if rules.reclaim != "never" else set()
            own = {job.queue} if rules.within_queue == "lower_priority" else set()
            found = self._candidates[key] = {
                v.job.id: v
                for v in self._able
                if (v.job.priority < job.priority and (v.job.queue in own or v.job.queue in foreign))
                or (rules.reclaim == "any" and v.job.queue in foreign)
            }
        return found

    def _hope(self, job: Waiting, shape: Shape, lacks: Sequence[Lack], names: set[str]) -> bool:
        """Whether all candidates together hold what is lacking: nearly all of those that wait in vain end here."""
        key, soon = (job.queue, job.priority), self._ledgers[0]
        most = self._most.get(key)
        if most is None:
            most = self._most[key] = {}
            for victim in self._of(job).values():
                _add(most, victim)
        own = most.get(job.queue, {})
        others: list[Amounts] = []
        if len(most) > (job.queue in most) and soon.within(job.queue, shape, own):
            others = [held for queue, held in most.items() if queue != job.queue and soon.has_borrowed(queue, names)]
        for lack in lacks:
            if lack.name == "places":
                continue
            gain = own.get(lack.name, 0.0)
            if not lack.where.startswith("queue "):
                gain += sum(held.get(lack.name, 0.0) for held in others)
            if lack.free + gain < shape.needs[lack.name] * (1 - EPSILON):
                return False
        return bool(own or others)


def _add(most: dict[str, Amounts], victim: Victim, sign: int = 1) -> None:
    held = most.setdefault(victim.job.queue, {})
    for name, amount in victim.shape.needs.items():
        held[name] = held.get(name, 0.0) + sign * amount * victim.job.indexes


def _order(victim: Victim) -> tuple[int, float, float, str]:
    """Lowest priority, least work lost, most recently admitted; the id so that the order is one."""
    job = victim.job
    return job.priority, job.work_lost, -job.admitted_at.timestamp(), job.id
