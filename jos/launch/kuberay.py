"""Drivers as RayJobs of KubeRay, one for each attempt; with Kueue, jobs that wait stand in its queues as well.

All that is known comes from watches, and no job is asked about by itself but where its head seems to be dead
(jos.launch.kube_doubt): a RayJob costs one call to make it, one to delete it, one for each change of its place in
Kueue's queue, and two at most where its head died. KubeRay wipes what it knew when it suspends or
deletes, so what was said of an attempt that ended is remembered here for some minutes.
May import: jos.core, jos.launch, jos.storage, jos.submission. Tests: tests/integration/test_kuberay_launcher.py.
For people: docs/kubernetes.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import structlog

from jos.core.admission import Node
from jos.core.errors import ComputeFailed, ConfigInvalid
from jos.core.model import Job, Pipeline
from jos.launch import pods
from jos.launch import rayjob_truth as truth
from jos.launch.base import DriverSeen, Offer, Offers, Waits, number_of
from jos.launch.kube_api import FIELD_MANAGER, POD, RAYCLUSTER, RAYJOB, WORKLOAD, Absent, Kind, KubeApi, Refused
from jos.launch.kube_cache import Cache
from jos.launch.kube_doubt import Doubts
from jos.launch.kube_profile import KubeProfile, read_profile
from jos.launch.kube_stop import Deadlines, Stopper
from jos.launch.kube_watch import Watches
from jos.launch.kueue_says import kueue_says
from jos.launch.pods import Object
from jos.launch.rayjob import (
    ATTEMPT,
    INSTALLATION,
    JOB,
    KUEUE_PRIORITY,
    driver_name,
    installation,
    kubernetes_name,
    kueue_labels,
    rayjob,
)
from jos.launch.rayjob_truth import Evidence
from jos.settings import Settings
from jos.storage.base import Storage
from jos.submission import load_spec

FORGET_SECONDS = 600.0  # what was said of one that is gone
ON_ITS_WAY = 10.0  # seconds for a RayJob that was made to appear in the watch
AGAIN = 30.0  # seconds until an offer that the cluster refused is tried again
MOST_AT_ONCE = 20  # old RayJobs that one look deletes
GLANCE = timedelta(seconds=0.5)  # what time alone can change is looked at again so often

log = structlog.get_logger()


def rights(profile: KubeProfile) -> dict[Kind, frozenset[str]]:
    """Every right that is used, for the Role; a test compares them."""
    look = frozenset({"list", "watch"})
    used = {RAYJOB: look | {"create", "patch", "delete"}, RAYCLUSTER: look, POD: look}
    return used | ({WORKLOAD: look} if profile.admission == "kueue" else {})


def open_kuberay(settings: Settings, storage: Storage) -> KubeRay:
    """By JOS_KUBE and this process's way to a cluster. Raises BadRequest or ConfigInvalid."""
    profile = read_profile(settings.kube)

    async def pipeline_of(job: Job) -> Pipeline:
        return (await load_spec(job, storage)).pipeline

    return KubeRay(KubeApi.connect(profile.namespace), profile, installation(storage.url), pipeline_of)


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


class KubeRay:
    """A Launcher and a News, and with Kueue an Offers. `pipeline_of` gives the pipeline that a job was made with."""

    def __init__(
        self,
        api: KubeApi,
        profile: KubeProfile,
        installation: str,
        pipeline_of: Callable[[Job], Awaitable[Pipeline]],
        deadlines: Deadlines = Deadlines(),
    ) -> None:
        self.api, self.profile = api, profile
        self._kept = timedelta(seconds=max(profile.kept_seconds, profile.ttl_seconds_after_finished))
        self.cache = Cache(self._gone, self._changed)
        kueue = profile.admission == "kueue"
        mine = {INSTALLATION: installation}
        self.watches = Watches(api, self.cache, mine, kueue=kueue)
        self._doubts = Doubts(api, mine, self._changed)
        self._installation, self._pipeline_of = installation, pipeline_of
        self._stopper = Stopper(api, self.cache, self._has_ended, deadlines)
        self._memories: dict[str, Memory] = {}  # by driver
        self._made: dict[str, Order] = {}  # by RayJob, just made
        self._refused: dict[str, tuple[str, float]] = {}  # driver -> why it cannot be offered or deleted, and when
        self._looks: dict[str, Look] = {}  # by RayJob
        self._news: dict[str, str] = {}  # RayJobs of which something is new -> the driver of one that is no more
        self._stirred = asyncio.Event()
        self._tidying: asyncio.Task[None] | None = None

    @property
    def optional_gpus(self) -> bool:
        return self.profile.optional_gpus

    # --- drivers ---

    def name_of(self, job: Job) -> str:
        return driver_name(job.id, job.attempt.number if job.attempt else 0)

    async def start(self, job: Job) -> None:
        attempt = job.attempt
        assert attempt is not None, "only an admitted job can be started"
        driver = self.name_of(job)
        if attempt.driver or attempt.started_at is not None:
            return
        await self.watches.fresh()
        if await self._make_way(kubernetes_name(driver), attempt.token):
            return
        memory = self._memory(driver, attempt.token)
        if self._is_there(kubernetes_name(driver)) or memory.ended is not None:
            return
        try:
            await self._make(job, attempt.token, attempt.number)
        except (Refused, ConfigInvalid) as error:
            log.warning("the cluster refuses a driver", job=job.id, error=str(error))
            self._end(driver, DriverSeen(driver, "ended", str(error), token=attempt.token))

    async def stop(self, name: str) -> None:
        await self.watches.fresh()
        rayjob_name = kubernetes_name(name)
        found = self._find(rayjob_name)
        if found is None:  # one that the watch has not told of yet, or none at all
            await self._stopper.delete(rayjob_name)
        elif found.state == "starting":
            self._say_farewell(self.cache.rayjobs[rayjob_name], "The driver was stopped before it was up.")
            await self._stopper.delete(rayjob_name)
        elif found.state == "running":
            self._say_farewell(self.cache.rayjobs[rayjob_name], "The driver was stopped.")
            await self._stopper.stop(rayjob_name)

    async def seen(self) -> dict[str, DriverSeen]:
        await self.watches.fresh()
        now = datetime.now(UTC)
        there = {look.seen.name: look.seen for look in (self._glance(name, now) for name in self.cache.rayjobs)}
        gone = {name: memory.ended for name, memory in self._memories.items() if memory.ended and name not in there}
        self._forget()
        self._tidy(now)
        return gone | there

    async def news(self, seconds: float) -> dict[str, DriverSeen]:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for loses a cancel that comes together with the event
                await self._stirred.wait()
        self._stirred.clear()
        news, self._news = self._news, {}
        found: dict[str, DriverSeen] = {}
        now = datetime.now(UTC)
        for name, driver in news.items():
            if name in self.cache.rayjobs:
                seen = self._glance(name, now).seen
                found[seen.name] = seen
            elif (memory := self._memories.get(driver)) is not None and memory.ended is not None:
                found[driver] = memory.ended
        return found

    async def nodes(self) -> tuple[Node, ...] | None:
        """Node pools grow: what they offer now says nothing. Quotas limit, and the scheduler."""
        return None

    async def keep_warm(self, count: int, driving: Collection[str] = ()) -> None:
        """Each attempt has a cluster of its own, so nothing can be kept warm for the next."""

    async def close(self) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
        await self._doubts.close()
        await self._stopper.close()
        await self.watches.close()
        await self.api.close()

    # --- jobs that wait in Kueue ---

    @property
    def offers(self) -> Offers | None:
        """Itself, where Kueue admits."""
        return self if self.profile.admission == "kueue" else None

    async def offer(self, job: Job, token: str) -> None:
        await self.watches.fresh()
        number = number_of(job, token)
        driver = driver_name(job.id, number)
        name = kubernetes_name(driver)
        await self._renew(driver)
        if self._is_there(name):
            return await self._keep_priority(job, name)
        try:
            await self._make(job, token, number)
        except (Refused, ConfigInvalid) as error:
            self._refused[driver] = str(error), time.monotonic()
            raise Refused(str(error)) from error

    async def offered(self) -> dict[str, Offer]:
        await self.watches.fresh()
        now = datetime.now(UTC)
        found: dict[str, Offer] = {}
        for name in list(self.cache.rayjobs):
            if (offer := self._glance(name, now).offer) is None:
                continue
            known = found.get(offer.job_id)
            if known is None or (known.number or 0) < (offer.number or 0):  # one that is about to end may stand beside
                found[offer.job_id] = offer
        return found

    async def _renew(self, driver: str) -> None:
        """An attempt that nobody was given can be offered again, though KubeRay or the cluster refused it; not at once.
        Raises Refused with what was said, until then. What JOS itself took back can be offered at once."""
        name, memory = kubernetes_name(driver), self._memories.get(driver)
        if memory is not None and memory.ended is not None:
            if not memory.farewell:
                self._refused[driver] = memory.ended.message, time.monotonic()
            if name in self.cache.rayjobs:
                await self._stopper.delete(name)
            if memory.gone_at is not None:
                del self._memories[driver]
        if (refused := self._refusal(driver)) is not None:
            raise Refused(refused)
        self._refused.pop(driver, None)

    def _refusal(self, driver: str) -> str | None:
        refused = self._refused.get(driver)
        return None if refused is None or time.monotonic() - refused[1] >= AGAIN else refused[0]

    async def withdraw(self, job_id: str) -> None:
        await self.watches.fresh()
        for name in list(self._live(job_id)):
            await self._take_back(name, "It was taken out of Kueue's queue.")

    async def _take_back(self, name: str, why: str) -> None:
        found = self._find(name)
        if found is not None and found.state == "running":
            return  # no offer any more
        if found is not None:
            self._say_farewell(self.cache.rayjobs[name], why)
        await self._stopper.delete(name)

    async def _keep_priority(self, job: Job, name: str) -> None:
        """A merge patch: to apply all of it again would undo what Kueue has written into the pods' templates. The label
        cannot be taken away in Kueue, so below the lowest band the next offer makes another RayJob."""
        if name not in self.cache.rayjobs:
            return  # just made; the next look will tell
        wanted = kueue_labels(job.queue, job.priority, self.profile).get(KUEUE_PRIORITY)
        has = pods.labels(self.cache.rayjobs[name]).get(KUEUE_PRIORITY)
        if wanted == has:
            return
        if wanted is None:
            return await self._take_back(name, "Its priority fell below all of Kueue's classes.")
        log.info("priority changes in Kueue", job=job.id, rayjob=name, priority=wanted)
        try:
            await self.api.merge(RAYJOB, name, {"metadata": {"labels": {KUEUE_PRIORITY: wanted}}})
        except Absent:
            return

    # --- RayJobs ---

    async def _make_way(self, name: str, token: str) -> bool:
        """Whether a RayJob with another token has the name of one that is wanted, as after the store was lost and the
        same number was given again. It is no driver of ours, and is deleted; ours is made once it is gone."""
        order = self._made.get(name)
        if order is not None and order.token != token:
            del self._made[name]
        found = self.cache.rayjobs.get(name)
        if found is None or truth.token(found) in ("", token):
            return False
        log.warning("a RayJob of another attempt is in the way, and is deleted", rayjob=name)
        self._say_farewell(found, "Another attempt of the same number took its place.")
        await self._stopper.delete(name)
        return True

    async def _make(self, job: Job, token: str, number: int) -> None:
        """Raises Refused or ConfigInvalid where no repetition would help."""
        pipeline = await self._pipeline_of(job)
        body = rayjob(job, pipeline, self.profile, token=token, number=number, installation=self._installation)
        # a manager of its own: over a RayJob of another token that no watch told of, it is refused
        await self.api.apply(RAYJOB, body, manager=f"{FIELD_MANAGER}-{token}")
        self._made[body["metadata"]["name"]] = Order(job.id, token, time.monotonic())
        log.info("RayJob made", job=job.id, rayjob=body["metadata"]["name"])

    def _is_there(self, name: str) -> bool:
        made = self._made.get(name)
        return name in self.cache.rayjobs or (made is not None and time.monotonic() - made.at < ON_ITS_WAY)

    def _live(self, job_id: str) -> Iterator[str]:
        """RayJobs of a job whose driver has not ended, those that the watch has not told of yet included."""
        known = self.cache.of_job(job_id)  # no list of all: a thousand jobs may be asked about in a row
        for name in known:
            found = self._look(name, datetime.now(UTC))
            if found.state != "ended" and not _leaves(self.cache.evidence(name)):
                yield name
        for name, order in list(self._made.items()):
            if order.job == job_id and name not in known and self._is_there(name):
                yield name

    # --- what is known of them ---

    def _find(self, name: str) -> DriverSeen | None:
        return self._look(name, datetime.now(UTC)) if name in self.cache.rayjobs else None

    def _has_ended(self, name: str) -> bool:
        found = self._find(name)
        return found is None or found.state == "ended"

    def _glance(self, name: str, now: datetime) -> Look:
        """As `_look`, as long as nothing is different: of a thousand RayJobs few are."""
        known = self._looks.get(name)
        if known is None or not (known.steady or timedelta() <= now - known.at < GLANCE):
            evidence, seen = self.cache.evidence(name), self._look(name, now)
            offers = self.offers is not None and seen.state != "ended" and not _leaves(evidence)
            steady = truth.steady(evidence, seen) and name not in self._doubts
            known = Look(seen, _offer(evidence, now) if offers else None, now, steady)
            self._looks[name] = known
        return known

    def _look(self, name: str, now: datetime) -> DriverSeen:
        evidence = self.cache.evidence(name)
        memory = self._memory_of(evidence.rayjob)
        if memory.ended is not None:
            return memory.ended
        memory.headless_since = (memory.headless_since or now) if truth.headless(evidence) else None
        seen = truth.truth(replace(evidence, headless_since=memory.headless_since, waited=memory.waited), now)
        memory.waited = seen.waits or memory.waited
        if seen.state != "ended":
            self._doubts.settle(name)
            return seen
        if truth.runs(evidence.rayjob):  # as KubeRay says, or said when it was last heard
            again = self._doubts.looked_again(replace(evidence, headless_since=memory.headless_since), seen.message)
            if again is None:
                return replace(seen, state="running", message="", exit_code=None)
            seen = truth.truth(replace(again, waited=memory.waited), now)
        if seen.state == "ended":
            self._end(seen.name, seen)
        return seen

    def _end(self, driver: str, seen: DriverSeen) -> None:
        memory = self._memory(driver, seen.token)
        memory.ended, memory.ended_at = seen, datetime.now(UTC)
        self._looks.pop(kubernetes_name(driver), None)
        self._doubts.settle(kubernetes_name(driver))
        if kubernetes_name(driver) not in self.cache.rayjobs:
            memory.gone_at = time.monotonic()

    def _memory(self, driver: str, token: str) -> Memory:
        known = self._memories.get(driver)
        if known is None or known.token != token:
            known = self._memories[driver] = Memory(token)
        return known

    def _memory_of(self, rayjob: Object) -> Memory:
        return self._memory(truth.driver_name(rayjob), truth.token(rayjob))

    def _say_farewell(self, rayjob: Object, words: str) -> None:
        memory = self._memory_of(rayjob)
        memory.farewell = memory.farewell or words

    def _changed(self, name: str) -> None:
        self._looks.pop(name, None)
        self._news[name] = ""
        self._stirred.set()

    def _gone(self, evidence: Evidence) -> None:
        """Its RayJob was deleted, by whomever."""
        driver, name = truth.driver_name(evidence.rayjob), evidence.rayjob["metadata"]["name"]
        self._made.pop(name, None)
        self._doubts.settle(name)
        self._changed(name)
        self._news[name] = driver
        memory = self._memory_of(evidence.rayjob)
        if memory.ended is None:
            last = truth.truth(replace(evidence, waited=memory.waited), datetime.now(UTC))
            words = memory.farewell or f"Its RayJob {name} was deleted, and not by JOS."
            memory.ended = last if last.state == "ended" else _ended(last, words)
        memory.gone_at = time.monotonic()

    def _forget(self) -> None:
        before = time.monotonic() - FORGET_SECONDS
        for driver in [d for d, m in self._memories.items() if m.gone_at is not None and m.gone_at < before]:
            del self._memories[driver]
        for driver in [d for d, (_, at) in self._refused.items() if at < before]:
            del self._refused[driver]
        for name in [n for n, made in self._made.items() if time.monotonic() - made.at > ON_ITS_WAY]:
            del self._made[name]

    # --- what is over ---

    def _tidy(self, now: datetime) -> None:
        """Deletes RayJobs whose driver is dead though KubeRay thinks otherwise, and those that ended long ago."""
        if self._tidying is not None and not self._tidying.done():
            return
        old = [name for name in self.cache.rayjobs if self._is_over(name, now)][:MOST_AT_ONCE]
        if old:
            self._tidying = asyncio.create_task(self._delete(old))

    def _is_over(self, name: str, now: datetime) -> bool:
        found = self.cache.rayjobs[name]
        driver = truth.driver_name(found)
        memory = self._memory_of(found)
        if memory.ended is None or memory.ended_at is None or self._stopper.ends(name) or self._refusal(driver):
            return False
        if "deletionTimestamp" in found["metadata"]:  # whoever was to see it go is no more
            return True
        return not truth.is_over(found) or now - (truth.ended_at(found) or memory.ended_at) > self._kept

    async def _delete(self, names: list[str]) -> None:
        for name in filter(self.cache.rayjobs.__contains__, names):
            driver = truth.driver_name(self.cache.rayjobs[name])
            try:
                await self._stopper.delete(name)
            except Refused as error:
                self._refused[driver] = str(error), time.monotonic()
                log.warning("a RayJob that is over stays for now", rayjob=name, error=str(error))
            except ComputeFailed as error:
                log.warning("RayJobs that are over stay for now", error=str(error))
                return


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
