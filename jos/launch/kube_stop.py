"""Ends the driver of a RayJob: Ray's stop, so that it may drain, then the deletion of the RayJob, each with a deadline.
That it should drain was asked over the store before, by whoever stops it.

KubeRay's finalizer keeps a RayJob until its operator has looked at it. Where that takes too long it is taken off: all
that the RayJob owns is then deleted by Kubernetes itself.
May import: httpx2, jos.core.errors, jos.launch. Tests: tests/integration/test_kuberay_launcher.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx2
import structlog

from jos.core.errors import JosError
from jos.launch.kube_api import RAYJOB, Absent, KubeApi, Taken
from jos.launch.kube_cache import Cache
from jos.launch.pods import Object
from jos.launch.ray_jobs import authorization

FINALIZER = "ray.io/rayjob-finalizer"
LOOK = 0.1  # seconds between looks at the cache

log = structlog.get_logger()


@dataclass(frozen=True)
class Deadlines:
    """Seconds."""

    answer: float = 5.0  # for the head to say that it will stop the driver
    drain: float = 15.0  # from then on until KubeRay says that it ended; the deletion lets it drain, too
    deletion: float = 30.0  # until the RayJob is gone, before the finalizer is taken off


class Stopper:
    """`ended`: whether the driver of a RayJob (by its name) has ended, as far as is known."""

    def __init__(
        self, api: KubeApi, cache: Cache, ended: Callable[[str], bool], deadlines: Deadlines = Deadlines()
    ) -> None:
        self._api, self._cache, self._ended, self._deadlines = api, cache, ended, deadlines
        self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(deadlines.answer), headers=authorization())
        self._under_way: dict[str, asyncio.Task[None]] = {}  # RayJob -> the rest of its end

    async def stop(self, name: str) -> None:
        """Asks for the end of a driver that runs; the rest goes on by itself."""
        if name in self._under_way:
            return
        rayjob = self._cache.rayjobs.get(name)
        asked = rayjob is not None and await self._ask_ray(rayjob)
        if not asked:
            await self.delete(name)
        elif name not in self._under_way:
            self._go_on(name, lambda: self._drain(name))

    async def delete(self, name: str) -> None:
        """Deletes the RayJob that is known, not one that was made again since, and sees to it that it goes. One that is
        gone is no error."""
        rayjob = self._cache.rayjobs.get(name)
        if rayjob is None or "deletionTimestamp" not in rayjob["metadata"]:
            uid = None if rayjob is None else rayjob["metadata"]["uid"]
            try:
                await self._api.delete(RAYJOB, name, uid)
            except (Absent, Taken):
                return
        if rayjob is not None and name not in self._under_way:
            uid = rayjob["metadata"]["uid"]
            self._go_on(name, lambda: self._see_it_go(name, uid))

    def ends(self, name: str) -> bool:
        """Whether the rest of its end is seen to."""
        return name in self._under_way

    async def close(self) -> None:
        """Lets go of what is under way; whoever comes next sees what is left, and asks again."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def _go_on(self, name: str, rest: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.create_task(self._guarded(name, rest))
        self._under_way[name] = task
        task.add_done_callback(lambda _: self._under_way.pop(name, None))

    async def _guarded(self, name: str, rest: Callable[[], Awaitable[None]]) -> None:
        try:
            await rest()
        except JosError as error:
            log.warning("a driver is not stopped yet", rayjob=name, error=str(error))

    async def _ask_ray(self, rayjob: Object) -> bool:
        """Whether the head will stop the driver. A head that cannot be reached, or knows of no driver, will not."""
        status = rayjob.get("status") or {}
        dashboard, submission = status.get("dashboardURL"), status.get("jobId")
        if not dashboard or not submission:
            return False
        base = dashboard if "://" in dashboard else f"http://{dashboard}"
        try:
            answer = await self._client.post(f"{base}/api/jobs/{submission}/stop")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            log.info("a head does not answer", dashboard=dashboard, error=str(error) or type(error).__name__)
            return False
        return answer.is_success

    async def _drain(self, name: str) -> None:
        if await self._within(self._deadlines.drain, lambda: name not in self._cache.rayjobs or self._ended(name)):
            return
        log.warning("a driver did not end in time; its RayJob is deleted", rayjob=name)
        if (rayjob := self._cache.rayjobs.get(name)) is not None:
            await self.delete(name)
            await self._see_it_go(name, rayjob["metadata"]["uid"])

    async def _see_it_go(self, name: str, uid: str) -> None:
        if await self._within(self._deadlines.deletion, lambda: self._is_gone(name, uid)):
            return
        log.warning("KubeRay does not let a RayJob go; its finalizer is taken off", rayjob=name)
        kept = [f for f in self._cache.rayjobs[name]["metadata"].get("finalizers") or () if f != FINALIZER]
        try:
            await self._api.merge(RAYJOB, name, {"metadata": {"uid": uid, "finalizers": kept}})
        except Absent:
            return

    def _is_gone(self, name: str, uid: str) -> bool:
        rayjob = self._cache.rayjobs.get(name)
        return rayjob is None or rayjob["metadata"]["uid"] != uid

    async def _within(self, seconds: float, done: Callable[[], bool]) -> bool:
        """Looks at what is known, which costs the cluster nothing."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(LOOK)
        return True
