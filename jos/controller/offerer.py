"""The admitting loop where the cluster's own queue (Kueue) admits: offers jobs that could run to that queue, admits
those that were given their place there, and withdraws those that wait no more.

`decide` is pure: jobs and offers as they are go in. A token comes from the offer and never from memory, so a new leader
finds the offers of the one before, and a controller that dies between any two steps leaves nothing undone.
May import: jos.controller, jos.core, jos.launch.base, jos.store. Tests: tests/unit/test_offerer.py,
tests/integration/test_controller_kueue.py. For people: docs/controller.md.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter

import structlog

from jos.controller.crew import Crew
from jos.controller.lookout import Lookout
from jos.controller.loops import each
from jos.controller.reconcile import begun
from jos.controller.scribe import AT_ONCE, Scribe, unavailable
from jos.controller.view import View
from jos.core.commands import Reason
from jos.core.errors import JosError
from jos.core.lifecycle import recalled
from jos.core.model import Job, Status
from jos.core.queues import QueueConfig
from jos.core.reasons import closed, waits_first
from jos.core.snapshot import Hold
from jos.launch.base import Offer, Offers, number_of
from jos.store.redis import Store

MOST = 1_000  # jobs that stand in the cluster's queue at one time
LEAST = 0.1  # seconds between two looks: with 10,000 jobs that wait, one takes 0.03 s in which nothing else is done
LASTS = 3  # an offer that went wrong so often in a row is told of: a cut connection is over before anybody reads of it
MOST_OFFERING = 32  # offers on their way at one time, so that other orders need not wait for a thousand of them

log = structlog.get_logger()


# --- what is to be done -------------------------------------------------------------------------------


@dataclass
class Round:
    """What one look finds to do, each in the order of the queues."""

    admits: list[tuple[Job, Offer]] = field(default_factory=list)
    offers: list[tuple[Job, Offer | None]] = field(default_factory=list)  # with the offer that stands already
    withdraws: dict[str, str] = field(default_factory=dict)  # job -> why
    holds: list[Hold] = field(default_factory=list)
    unknown: list[Offer] = field(default_factory=list)  # of jobs that are not active: what became of them?


def decide(
    jobs: Iterable[Job], offers: Mapping[str, Offer], config: QueueConfig, now: datetime, most: int = MOST
) -> Round:
    """`jobs`: all that are active. Offers count for their organisation's `max_running`, since any may be admitted at
    any moment."""
    active = {job.id: job for job in jobs}
    running = Counter(job.org_id for job in active.values() if job.holds_capacity and job.queue)
    found = Round(unknown=[offer for offer in offers.values() if offer.job_id not in active])
    waiting: list[tuple[Job, Offer | None]] = []
    for job in sorted((job for job in active.values() if job.queue and job.status is Status.PENDING), key=_order):
        offer = offers.get(job.id)
        refusal = waits_first(job.not_before, job.holds_capacity, now) or closed(config, job.queue)
        if refusal is not None:
            found.holds.append(Hold(job.id, *refusal))
        over = offer is not None and not stands(job, offer)
        if offer is not None and not job.holds_capacity and (refusal or over):
            found.withdraws[job.id] = "the job cannot run now" if refusal else "its attempt is over"
        elif refusal is None and offer is not None and offer.admitted:
            found.admits.append((job, offer))
            running[job.org_id] += 1
        elif refusal is None:
            waiting.append((job, offer))
    for job, offer in _in_turn(waiting):
        _offer(job, offer, found, running, config, most)
    return found


def _in_turn(waiting: list[tuple[Job, Offer | None]]) -> list[tuple[Job, Offer | None]]:
    """The first of each queue, then the second of each, …: one where very many wait leaves places to the others, for
    which the cluster may have room."""
    passed: Counter[str] = Counter()
    turns = []
    for entry in waiting:
        passed[entry[0].queue] += 1
        turns.append((passed[entry[0].queue], entry))
    return [entry for _, entry in sorted(turns, key=itemgetter(0))]


def _offer(job: Job, offer: Offer | None, found: Round, running: Counter[str], config: QueueConfig, most: int) -> None:
    limit = config.organisation(job.org_id).max_running
    if limit is not None and running[job.org_id] >= limit:
        words = f"Its organisation has {limit} jobs that run or may start at any moment, as many as it may at once."
        found.holds.append(Hold(job.id, Reason.ORGANISATION_LIMIT, words))
    elif len(found.offers) >= most:
        words = f"It is put into the cluster's queue as soon as fewer than {most} jobs stand there before it."
        found.holds.append(Hold(job.id, Reason.WAITING_FOR_CAPACITY, words))
    else:
        running[job.org_id] += 1
        found.offers.append((job, offer))
        return
    if offer is not None:
        found.withdraws[job.id] = "others come first"


def stands(job: Job, offer: Offer) -> bool:
    """Whether it is for the attempt that a waiting job has next. One of an attempt that was driven never is again."""
    attempt = job.attempt
    if attempt is not None and attempt.token == offer.token and not recalled(attempt):
        return False
    return offer.number is None or offer.number == number_of(job, offer.token)


def needless(job: Job, offer: Offer) -> bool:
    """Whether the offer of a job that does not wait is to go. What an attempt left behind is the rescuer's affair."""
    if job.holds_capacity or job.status is Status.PENDING:
        return False
    attempt = job.attempt
    of_begun = attempt is not None and attempt.token == offer.token and not recalled(attempt)
    return not of_begun and (offer.number is None or offer.number > begun(job))


def _order(job: Job) -> tuple[int, datetime, str]:
    return -job.priority, job.queued_at, job.id


# --- and how it is done -------------------------------------------------------------------------------


class Offerer:
    def __init__(
        self,
        store: Store,
        scribe: Scribe,
        view: View,
        lookout: Lookout,
        crew: Crew,
        offers: Offers,
        config: Callable[[], QueueConfig],
        idle: float,
    ) -> None:
        self._store, self._scribe, self._view, self._lookout = store, scribe, view, lookout
        self._crew, self._offers, self._config = crew, offers, config
        self._idle = idle
        self._looked = float("-inf")  # monotonic
        self._behind = False  # whether something changed since
        self._told: dict[str, int] = {}  # job -> priority that its offer has; saves calls, no more
        self._refused: dict[str, str] = {}  # job -> why it could not be offered; words, no more
        self._failed: Counter[str] = Counter()  # job -> how often that went wrong in a row
        self._known: set[str] = set()  # jobs that waited with an offer: once they are gone, they were deleted

    async def step(self) -> None:
        rest = self._rest()
        block = 1 if rest <= 0 or self._scribe.says_on else max(1, round(rest * 1000))
        self._behind |= await self._view.follow(block)
        if self._rest() <= 0:
            self._looked, self._behind = time.monotonic(), False
            now = datetime.now(UTC)
            if self._lookout.answers:
                jobs, offers = self._view.jobs.values(), self._lookout.offers
                await self._apply(decide(jobs, offers, self._config(), now, MOST))
            else:
                self._scribe.to_say(unavailable(self._lookout, self._view.waiting, now))
        await self._scribe.say()

    def _rest(self) -> float:
        """Seconds until the next look is due."""
        pause = min(LEAST, self._idle) if self._behind else self._idle
        return self._looked + pause - time.monotonic()

    async def _apply(self, what: Round) -> None:
        await each(AT_ONCE, what.admits, self._admit)
        for job_id, why in (what.withdraws | await self._no_more(what.unknown)).items():
            self._withdraw(job_id, why)
        for job, offer in what.offers:
            self._put(job, offer)
        offered = {job.id for job, _ in what.offers}
        self._told = {name: priority for name, priority in self._told.items() if name in offered}
        self._refused = {name: words for name, words in self._refused.items() if name in offered}
        self._failed = Counter({name: times for name, times in self._failed.items() if name in offered})
        self._known = (self._known | offered) & self._lookout.offers.keys()
        self._scribe.to_say([*what.holds, *(hold for entry in what.offers for hold in self._waits(*entry))])

    async def _admit(self, what: tuple[Job, Offer]) -> None:
        job, offer = what
        if not self._crew.withdraws(job.id):  # the look may be older than that order
            await self._scribe.admit(job.id, offer.token, job.parallelism, offer.number)

    async def _no_more(self, unknown: list[Offer]) -> dict[str, str]:
        """Those of jobs that ended or were deleted. One that this store has never known may be there again tomorrow,
        rebuilt from storage, or is somebody else's."""
        jobs = await self._store.get_many([offer.job_id for offer in unknown]) if unknown else {}
        gone = {o.job_id: "the job was deleted" for o in unknown if o.job_id not in jobs and o.job_id in self._known}
        return gone | {
            offer.job_id: f"the job is {jobs[offer.job_id].status}"
            for offer in unknown
            if offer.job_id in jobs and needless(jobs[offer.job_id], offer)
        }

    def _withdraw(self, job_id: str, why: str) -> None:
        self._told.pop(job_id, None)
        self._crew.withdraw(job_id, lambda: self._offers.withdraw(job_id), why)

    def _put(self, job: Job, offer: Offer | None) -> None:
        if offer is not None and self._told.get(job.id) == job.priority:
            return
        token = secrets.token_hex(16) if offer is None else offer.token

        async def put() -> None:
            try:
                await self._offers.offer(job, token)
            except JosError as error:
                self._failed[job.id] += 1
                known = self._refused.get(job.id) == str(error)
                if not error.retryable or self._failed[job.id] >= LASTS:
                    self._refused[job.id] = str(error)
                if known:  # it is in the log, and its user reads it as the reason for the wait
                    return
                raise
            self._refused.pop(job.id, None)
            self._failed.pop(job.id, None)
            self._told[job.id] = job.priority

        self._crew.offer(job.id, put, MOST_OFFERING)

    def _waits(self, job: Job, offer: Offer | None) -> list[Hold]:
        """None as long as nobody there has said anything: other words would have to wait for a minute."""
        words = self._refused.get(job.id) if offer is None else offer.message
        return [Hold(job.id, Reason.WAITING_IN_KUEUE, words)] if words else []
