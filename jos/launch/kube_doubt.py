"""A second look at RayJobs that run, as KubeRay says, though their head seems to be dead: a stream may be cut without a
word, and then what is known of pods is half a minute older than what is known of RayJobs, or the other way round.

All that are doubted at one time are looked at together, by their jobs' labels: two calls for a hundred of them, however
many RayJobs there are besides. What is found does not go into the cache, which only watches write: an event that is on
its way could undo it. May import: jos.launch. Tests: tests/unit/test_kube_doubt.py,
tests/integration/test_kuberay_cluster.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from jos.launch import pods
from jos.launch.kube_api import POD, RAYJOB, Kind, KubeApi
from jos.launch.kube_cache import PODS, RAYJOBS, slim
from jos.launch.pods import Object
from jos.launch.rayjob import JOB
from jos.launch.rayjob_truth import Evidence

MOST = 100  # RayJobs of one look: their jobs stand in an address, which proxies take up to some 8,000 characters of
AGAIN = 5.0  # seconds until the next look, where the one before does not bear out the doubt

log = structlog.get_logger()


@dataclass(frozen=True)
class Doubt:
    death: str  # how its head seems to have died
    rayjob: Object  # as it was known
    since: float  # monotonic


@dataclass(frozen=True)
class Found:
    at: float  # monotonic: when it was asked for
    rayjob: Object | None  # None: it is no more
    pods: Sequence[Object]  # of its job


class Doubts:
    """`selector`: the labels of what is ours. `tell` is called with the name of each RayJob that was looked at."""

    def __init__(self, api: KubeApi, selector: Mapping[str, str], tell: Callable[[str], None]) -> None:
        self._api, self._selector, self._tell = api, selector, tell
        self._doubted: dict[str, Doubt] = {}  # by RayJob
        self._wanted: dict[str, str] = {}  # RayJob -> its job
        self._found: dict[str, Found] = {}  # by RayJob
        self._looking: asyncio.Task[None] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._doubted

    def looked_again(self, known: Evidence, death: str) -> Evidence | None:
        """What is `known` of a RayJob as a look found it since it, as it is, first seemed to have died that death;
        None: that look is on its way."""
        name, now = pods.name(known.rayjob), time.monotonic()
        doubt = self._doubted.get(name)
        if doubt is None or doubt.death != death or doubt.rayjob is not known.rayjob:
            doubt = self._doubted[name] = Doubt(death, known.rayjob, now)
        since, found = doubt.since, self._found.get(name)
        if found is None or found.at < max(since, now - AGAIN):
            self._wanted[name] = pods.labels(known.rayjob).get(JOB, "")
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look(), name="doubts")
        return None if found is None or found.at < since else borne_out(known, found)

    def settle(self, name: str) -> None:
        """It is not doubted any more."""
        for known in (self._doubted, self._wanted, self._found):
            known.pop(name, None)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        """Until nothing is doubted; what comes meanwhile is looked at together in the next turn."""
        try:
            while asked := dict(list(self._wanted.items())[:MOST]):
                began = time.monotonic()
                jobs = sorted(set(asked.values()))
                of_job = await self._list(POD, PODS, jobs)
                rayjobs = await self._list(RAYJOB, RAYJOBS, jobs)  # last: what ran then had lost its head before
                for name, job in asked.items():
                    if self._wanted.pop(name, None) is not None:
                        rayjob = next((found for found in rayjobs.get(job, ()) if pods.name(found) == name), None)
                        self._found[name] = Found(began, rayjob, of_job.get(job, ()))
                        self._tell(name)
        except Exception as error:  # whatever it is, the next glance at one of them asks again
            log.warning("heads that seem to be dead cannot be looked at again", error=str(error) or repr(error))

    async def _list(self, kind: Kind, of: str, jobs: Sequence[str]) -> dict[str, list[Object]]:
        """By job."""
        found: dict[str, list[Object]] = {}
        for thing in (await self._api.list(kind, {**self._selector, JOB: jobs}))[0]:
            found.setdefault(pods.labels(thing).get(JOB, ""), []).append(slim(of, thing))
        return found


def borne_out(known: Evidence, found: Found) -> Evidence:
    """`known` with what was found. A RayJob that is no more, or was made again, did not come to life by that."""
    rayjob = known.rayjob
    if found.rayjob is not None and found.rayjob["metadata"]["uid"] == rayjob["metadata"]["uid"]:
        rayjob = found.rayjob
    cluster, before = ((one.get("status") or {}).get("rayClusterName") for one in (rayjob, known.rayjob))
    mine = tuple(pod for pod in found.pods if pods.labels(pod).get("ray.io/cluster") == cluster)
    if cluster == before:
        return replace(known, rayjob=rayjob, pods=mine)
    return replace(known, rayjob=rayjob, pods=mine, cluster=None, dead_head=None, headless_since=None)
