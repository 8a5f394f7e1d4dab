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
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import structlog

from jos.core.admission import Node
from jos.core.errors import ComputeFailed, ConfigInvalid
from jos.core.model import Job, Pipeline
from jos.launch import pods
from jos.launch import rayjob_truth as truth
from jos.launch.base import DriverSeen, Offer, Offers, number_of
from jos.launch.kube_api import FIELD_MANAGER, POD, RAYCLUSTER, RAYJOB, WORKLOAD, Absent, Kind, KubeApi, Refused
from jos.launch.kube_known import Known
from jos.launch.kube_profile import KubeProfile, read_profile
from jos.launch.kube_stop import Deadlines, Stopper
from jos.launch.kube_watch import Watches
from jos.launch.rayjob import (
    INSTALLATION,
    KUEUE_PRIORITY,
    driver_name,
    installation,
    kubernetes_name,
    kueue_labels,
    rayjob,
)
from jos.settings import Settings
from jos.storage.base import Storage
from jos.submission import load_spec

MOST_AT_ONCE = 20  # old RayJobs that one look deletes

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
        mine, kueue = {INSTALLATION: installation}, profile.admission == "kueue"
        self.known = Known(api, mine, kueue=kueue)
        self.cache = self.known.cache
        self.watches = Watches(api, self.cache, mine, kueue=kueue)
        self._installation, self._pipeline_of = installation, pipeline_of
        self._stopper = Stopper(api, self.cache, self.known.has_ended, deadlines)
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
        memory = self.known.memory(driver, attempt.token)
        if self.known.is_there(kubernetes_name(driver)) or memory.ended is not None:
            return
        try:
            await self._make(job, attempt.token, attempt.number)
        except (Refused, ConfigInvalid) as error:
            log.warning("the cluster refuses a driver", job=job.id, error=str(error))
            self.known.end(driver, DriverSeen(driver, "ended", str(error), token=attempt.token))

    async def stop(self, name: str) -> None:
        await self.watches.fresh()
        rayjob_name = kubernetes_name(name)
        found = self.known.find(rayjob_name)
        if found is None:  # one that the watch has not told of yet, or none at all
            await self._stopper.delete(rayjob_name)
        elif found.state == "starting":
            self.known.say_farewell(self.cache.rayjobs[rayjob_name], "The driver was stopped before it was up.")
            await self._stopper.delete(rayjob_name)
        elif found.state == "running":
            self.known.say_farewell(self.cache.rayjobs[rayjob_name], "The driver was stopped.")
            await self._stopper.stop(rayjob_name)

    async def seen(self) -> dict[str, DriverSeen]:
        await self.watches.fresh()
        now = datetime.now(UTC)
        there = {look.seen.name: look.seen for look in (self.known.glance(name, now) for name in self.cache.rayjobs)}
        gone = {
            name: memory.ended for name, memory in self.known.memories.items() if memory.ended and name not in there
        }
        self.known.forget()
        self._tidy(now)
        return gone | there

    async def news(self, seconds: float) -> dict[str, DriverSeen]:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for loses a cancel that comes together with the event
                await self.known.stirred.wait()
        return self.known.news()

    async def nodes(self) -> tuple[Node, ...] | None:
        """Node pools grow: what they offer now says nothing. Quotas limit, and the scheduler."""
        return None

    async def keep_warm(self, count: int, driving: Collection[str] = ()) -> None:
        """Each attempt has a cluster of its own, so nothing can be kept warm for the next."""

    async def close(self) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
        await self.known.doubts.close()
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
        if self.known.is_there(name):
            return await self._keep_priority(job, name)
        try:
            await self._make(job, token, number)
        except (Refused, ConfigInvalid) as error:
            self.known.refuse(driver, str(error))
            raise Refused(str(error)) from error

    async def offered(self) -> dict[str, Offer]:
        await self.watches.fresh()
        now = datetime.now(UTC)
        found: dict[str, Offer] = {}
        for name in list(self.cache.rayjobs):
            if (offer := self.known.glance(name, now).offer) is None:
                continue
            known = found.get(offer.job_id)
            if known is None or (known.number or 0) < (offer.number or 0):  # one that is about to end may stand beside
                found[offer.job_id] = offer
        return found

    async def _renew(self, driver: str) -> None:
        """An attempt that nobody was given can be offered again, though KubeRay or the cluster refused it; not at once.
        Raises Refused with what was said, until then. What JOS itself took back can be offered at once."""
        name, memory = kubernetes_name(driver), self.known.memories.get(driver)
        if memory is not None and memory.ended is not None:
            if not memory.farewell:
                self.known.refuse(driver, memory.ended.message)
            if name in self.cache.rayjobs:
                await self._stopper.delete(name)
            if memory.gone_at is not None:
                del self.known.memories[driver]
        if (refused := self.known.refusal(driver)) is not None:
            raise Refused(refused)
        self.known.refused.pop(driver, None)

    async def withdraw(self, job_id: str) -> None:
        await self.watches.fresh()
        for name in list(self.known.live(job_id)):
            await self._take_back(name, "It was taken out of Kueue's queue.")

    async def _take_back(self, name: str, why: str) -> None:
        found = self.known.find(name)
        if found is not None and found.state == "running":
            return  # no offer any more
        if found is not None:
            self.known.say_farewell(self.cache.rayjobs[name], why)
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
        self.known.unmake(name, token)
        found = self.cache.rayjobs.get(name)
        if found is None or truth.token(found) in ("", token):
            return False
        log.warning("a RayJob of another attempt is in the way, and is deleted", rayjob=name)
        self.known.say_farewell(found, "Another attempt of the same number took its place.")
        await self._stopper.delete(name)
        return True

    async def _make(self, job: Job, token: str, number: int) -> None:
        """Raises Refused or ConfigInvalid where no repetition would help."""
        pipeline = await self._pipeline_of(job)
        body = rayjob(job, pipeline, self.profile, token=token, number=number, installation=self._installation)
        # a manager of its own: over a RayJob of another token that no watch told of, it is refused
        await self.api.apply(RAYJOB, body, manager=f"{FIELD_MANAGER}-{token}")
        self.known.made(body["metadata"]["name"], job.id, token)
        log.info("RayJob made", job=job.id, rayjob=body["metadata"]["name"])

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
        memory = self.known.memory_of(found)
        if memory.ended is None or memory.ended_at is None or self._stopper.ends(name) or self.known.refusal(driver):
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
                self.known.refuse(driver, str(error))
                log.warning("a RayJob that is over stays for now", rayjob=name, error=str(error))
            except ComputeFailed as error:
                log.warning("RayJobs that are over stay for now", error=str(error))
                return
