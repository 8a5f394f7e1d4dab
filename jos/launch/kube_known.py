"""What is known of drivers that are RayJobs: what the cluster says now, as jos.launch.kube_cache has it, and what it
does not say any more, or not yet. Of a thousand RayJobs only those are looked at anew of which something has changed.

May import: jos.core, jos.launch. Tests: tests/integration/test_kuberay_launcher.py, …_kueue.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from jos.launch import pods
from jos.launch import rayjob_truth as truth
from jos.launch.base import DriverSeen, Offer, Waits
from jos.launch.kube_api import KubeApi
from jos.launch.kube_cache import Cache
from jos.launch.kube_doubt import Doubts
from jos.launch.kueue_says import kueue_says
from jos.launch.pods import Object
from jos.launch.rayjob import ATTEMPT, JOB, kubernetes_name
from jos.launch.rayjob_truth import Evidence

FORGET_SECONDS = 600.0  # what was said of one that is gone
ON_ITS_WAY = 10.0  # seconds for a RayJob that was made to appear in the watch
AGAIN = 30.0  # seconds until an offer that the cluster refused is tried again
GLANCE = timedelta(seconds=0.5)  # what time alone can change is looked at again so often


@dataclass
class Memory:
    """What is known of a driver besides what the cluster says now."""

    token: str  # of its attempt: one of another token that is called the same is another driver
    ended: DriverSeen | None = None  # the first that was said of its end: KubeRay may wipe it, or start another
    ended_at: datetime | None = None
    waited: Waits | None = None  # the last that it waited for
    headless_since: datetime | None = None
    farewell: str = ""  # why JOS deleted its RayJob
    gone_at: float | None = None  # monotonic: its RayJob is no more


@dataclass(frozen=True)
class Order:
    job: str
    token: str
    at: float  # monotonic


@dataclass(frozen=True)
class Look:
    """What was last found out about a RayJob; another look is needed only when something has changed, or may have."""

    seen: DriverSeen
    offer: Offer | None  # of one that has not ended, where Kueue admits
    at: datetime
    steady: bool


class Known:
    """`selector`: the labels of what is ours. `kueue`: whether what waits stands in Kueue's queues."""

    def __init__(self, api: KubeApi, selector: Mapping[str, str], *, kueue: bool) -> None:
        self.cache = Cache(self._gone, self._changed)
        self.doubts = Doubts(api, selector, self._changed)
        self.memories: dict[str, Memory] = {}  # by driver
        self._kueue = kueue
        self._made: dict[str, Order] = {}  # by RayJob, just made
        self.refused: dict[str, tuple[str, float]] = {}  # driver -> why it cannot be offered or deleted, and when
        self._looks: dict[str, Look] = {}  # by RayJob
        self._news: dict[str, str] = {}  # RayJobs of which something is new -> the driver of one that is no more
        self.stirred = asyncio.Event()

    # --- what was just done ---

    def made(self, name: str, job_id: str, token: str) -> None:
        """A RayJob was just made, of which the watch has not told yet."""
        self._made[name] = Order(job_id, token, time.monotonic())

    def unmake(self, name: str, token: str) -> None:
        """Forgets one that was just made with another token."""
        if (order := self._made.get(name)) is not None and order.token != token:
            del self._made[name]

    def refuse(self, driver: str, why: str) -> None:
        self.refused[driver] = why, time.monotonic()

    def refusal(self, driver: str) -> str | None:
        refused = self.refused.get(driver)
        return None if refused is None or time.monotonic() - refused[1] >= AGAIN else refused[0]

    def is_there(self, name: str) -> bool:
        made = self._made.get(name)
        return name in self.cache.rayjobs or (made is not None and time.monotonic() - made.at < ON_ITS_WAY)

    def live(self, job_id: str) -> Iterator[str]:
        """RayJobs of a job whose driver has not ended, those that the watch has not told of yet included."""
        known = self.cache.of_job(job_id)  # no list of all: a thousand jobs may be asked about in a row
        for name in known:
            found = self._look(name, datetime.now(UTC))
            if found.state != "ended" and not _leaves(self.cache.evidence(name)):
                yield name
        for name, order in list(self._made.items()):
            if order.job == job_id and name not in known and self.is_there(name):
                yield name

    # --- what is known of them ---

    def news(self) -> dict[str, DriverSeen]:
        """Of those of which something is new since this was last asked."""
        self.stirred.clear()
        news, self._news = self._news, {}
        found: dict[str, DriverSeen] = {}
        now = datetime.now(UTC)
        for name, driver in news.items():
            if name in self.cache.rayjobs:
                seen = self.glance(name, now).seen
                found[seen.name] = seen
            elif (memory := self.memories.get(driver)) is not None and memory.ended is not None:
                found[driver] = memory.ended
        return found

    def find(self, name: str) -> DriverSeen | None:
        return self._look(name, datetime.now(UTC)) if name in self.cache.rayjobs else None

    def has_ended(self, name: str) -> bool:
        found = self.find(name)
        return found is None or found.state == "ended"

    def glance(self, name: str, now: datetime) -> Look:
        """As `_look`, as long as nothing is different: of a thousand RayJobs few are."""
        known = self._looks.get(name)
        if known is None or not (known.steady or timedelta() <= now - known.at < GLANCE):
            evidence, seen = self.cache.evidence(name), self._look(name, now)
            offers = self._kueue and seen.state != "ended" and not _leaves(evidence)
            steady = truth.steady(evidence, seen) and name not in self.doubts
            known = Look(seen, _offer(evidence, now) if offers else None, now, steady)
            self._looks[name] = known
        return known

    def _look(self, name: str, now: datetime) -> DriverSeen:
        evidence = self.cache.evidence(name)
        memory = self.memory_of(evidence.rayjob)
        if memory.ended is not None:
            return memory.ended
        memory.headless_since = (memory.headless_since or now) if truth.headless(evidence) else None
        seen = truth.truth(replace(evidence, headless_since=memory.headless_since, waited=memory.waited), now)
        memory.waited = seen.waits or memory.waited
        if seen.state != "ended":
            self.doubts.settle(name)
            return seen
        if truth.runs(evidence.rayjob):  # as KubeRay says, or said when it was last heard
            again = self.doubts.looked_again(replace(evidence, headless_since=memory.headless_since), seen.message)
            if again is None:
                return replace(seen, state="running", message="", exit_code=None)
            seen = truth.truth(replace(again, waited=memory.waited), now)
        if seen.state == "ended":
            self.end(seen.name, seen)
        return seen

    def end(self, driver: str, seen: DriverSeen) -> None:
        memory = self.memory(driver, seen.token)
        memory.ended, memory.ended_at = seen, datetime.now(UTC)
        self._looks.pop(kubernetes_name(driver), None)
        self.doubts.settle(kubernetes_name(driver))
        if kubernetes_name(driver) not in self.cache.rayjobs:
            memory.gone_at = time.monotonic()

    def memory(self, driver: str, token: str) -> Memory:
        known = self.memories.get(driver)
        if known is None or known.token != token:
            known = self.memories[driver] = Memory(token)
        return known

    def memory_of(self, rayjob: Object) -> Memory:
        return self.memory(truth.driver_name(rayjob), truth.token(rayjob))

    def say_farewell(self, rayjob: Object, words: str) -> None:
        memory = self.memory_of(rayjob)
        memory.farewell = memory.farewell or words

    def _changed(self, name: str) -> None:
        self._looks.pop(name, None)
        self._news[name] = ""
        self.stirred.set()

    def _gone(self, evidence: Evidence) -> None:
        """Its RayJob was deleted, by whomever."""
        driver, name = truth.driver_name(evidence.rayjob), evidence.rayjob["metadata"]["name"]
        self._made.pop(name, None)
        self.doubts.settle(name)
        self._changed(name)
        self._news[name] = driver
        memory = self.memory_of(evidence.rayjob)
        if memory.ended is None:
            last = truth.truth(replace(evidence, waited=memory.waited), datetime.now(UTC))
            words = memory.farewell or f"Its RayJob {name} was deleted, and not by JOS."
            memory.ended = last if last.state == "ended" else _ended(last, words)
        memory.gone_at = time.monotonic()

    def forget(self) -> None:
        before = time.monotonic() - FORGET_SECONDS
        for driver in [d for d, m in self.memories.items() if m.gone_at is not None and m.gone_at < before]:
            del self.memories[driver]
        for driver in [d for d, (_, at) in self.refused.items() if at < before]:
            del self.refused[driver]
        for name in [n for n, made in self._made.items() if time.monotonic() - made.at > ON_ITS_WAY]:
            del self._made[name]


def _offer(evidence: Evidence, now: datetime) -> Offer:
    labels = pods.labels(evidence.rayjob)
    number, admitted = labels.get(ATTEMPT, ""), truth.admitted(evidence)
    return Offer(
        job_id=labels.get(JOB, ""),
        token=truth.token(evidence.rayjob),
        admitted=admitted,
        message="" if admitted else kueue_says(evidence.rayjob, evidence.workload, now),
        number=int(number) if number.isdecimal() else None,
    )


def _ended(last: DriverSeen, words: str) -> DriverSeen:
    return replace(last, state="ended", message=words, exit_code=None, waits=None, suspended=False)


def _leaves(evidence: Evidence) -> bool:
    return "deletionTimestamp" in evidence.rayjob["metadata"]
