"""Keeps a Cache true to a cluster through watches, one for each kind of object, however many jobs there are.

Each watch is a list, and then a stream of changes that goes on from the list's version; the server ends a stream after
half a minute, and the next one goes on where it was. A version that the server has forgotten (410) means a new list.
May import: jos.core.errors, jos.launch. Tests: tests/integration/test_kuberay_launcher.py.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from jos.core.errors import ComputeFailed, JosError
from jos.launch.kube_api import POD, RAYCLUSTER, RAYJOB, WORKLOAD, Expired, Kind, KubeApi
from jos.launch.kube_cache import Cache

LIFE = 25  # seconds of one stream; a server that is silent for longer is not there
STALE = 10.0  # seconds for which a watch may be broken before what is known counts as too old
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds, doubled at each failure in a row
PATIENCE = 8.0  # seconds for the first lists
HOPELESS = 3  # failures of one of them, after which nobody waits for it any longer

log = structlog.get_logger()


@dataclass
class Watch:
    """How one kind is followed."""

    kind: Kind
    selector: Mapping[str, str]
    version: str | None = None  # the latest that is known; None: everything must be listed
    listed_at: float | None = None  # monotonic: when the latest list was asked for; None: never
    broken_since: float | None = None  # monotonic
    error: JosError | None = None  # the latest, while it is broken
    failures: int = 0  # in a row

    def answers(self) -> None:
        """What is known is as good as new. Whether it stays so, only a stream shows that brings something or lasts."""
        self.broken_since, self.error = None, None

    def works(self) -> None:
        self.answers()
        self.failures = 0

    def fails(self, error: JosError) -> None:
        self.broken_since = time.monotonic() if self.broken_since is None else self.broken_since
        self.error = error
        self.failures += 1

    @property
    def pause(self) -> float:
        doubled = FIRST_PAUSE * float(2 ** min(max(self.failures - 1, 0), 10))
        return min(doubled, LONGEST_PAUSE) * random.uniform(0.7, 1.3)


class Watches:
    """`selector`: the labels of what is ours; Kueue's Workloads do not carry them."""

    def __init__(self, api: KubeApi, cache: Cache, selector: Mapping[str, str], *, kueue: bool) -> None:
        self.api, self.cache = api, cache
        self.watches = [Watch(kind, selector) for kind in (RAYJOB, RAYCLUSTER, POD)]
        if kueue:
            self.watches.append(Watch(WORKLOAD, {}))
        self._tasks: list[asyncio.Task[None]] = []

    async def fresh(self) -> None:
        """Returns when what is known is as good as new. Raises ComputeFailed: nothing can be said of the cluster."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._follow(watch), name=watch.kind.plural) for watch in self.watches]
        deadline = time.monotonic() + PATIENCE
        while any(watch.listed_at is None for watch in self.watches):
            if time.monotonic() > deadline or any(watch.failures >= HOPELESS for watch in self.watches):
                raise self._unknown(f"It has not listed {self._unlisted()} yet.")
            await asyncio.sleep(0.02)
        now = time.monotonic()
        for watch in self.watches:
            if watch.broken_since is not None and now - watch.broken_since > STALE:
                raise self._unknown(f"{watch.kind.plural} were not heard of for {now - watch.broken_since:.0f} s.")

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def _unlisted(self) -> str:
        return " and ".join(watch.kind.plural for watch in self.watches if watch.listed_at is None)

    def _unknown(self, otherwise: str) -> ComputeFailed:
        error = next((watch.error for watch in self.watches if watch.error is not None), None)
        if error is not None:
            return ComputeFailed(error.message, suggestion=error.suggestion)
        return ComputeFailed(f"The Kubernetes API server at {self.api.server} does not answer. {otherwise}")

    async def _follow(self, watch: Watch) -> None:
        while True:
            try:
                if watch.version is None:
                    await self._list(watch)
                await self._stream(watch)
            except Expired:
                if watch.failures == 0:
                    log.info("a watch is too far behind; all is listed again", kind=watch.kind.plural)
                watch.version = None
                watch.fails(ComputeFailed(f"{watch.kind.plural} must be listed again."))
                await asyncio.sleep(watch.pause)
            except Exception as error:  # whatever it is, the next try may go well
                known = error if isinstance(error, JosError) else ComputeFailed(f"{type(error).__name__}: {error}")
                if watch.failures == 0:
                    log.warning("a watch broke", kind=watch.kind.plural, error=str(known))
                watch.fails(known)
                await asyncio.sleep(watch.pause)

    async def _list(self, watch: Watch) -> None:
        began = time.monotonic()
        things, version = await self.api.list(watch.kind, watch.selector)
        self.cache.replace(watch.kind.plural, things)
        watch.version = version
        watch.answers()
        watch.listed_at = began

    async def _stream(self, watch: Watch) -> None:
        """One stream, until the server ends it."""
        assert watch.version is not None
        began = time.monotonic()
        async with self.api.watch(watch.kind, watch.selector, watch.version, LIFE) as changes:
            watch.answers()
            async for change in changes:
                watch.works()
                if change.type == "DELETED":
                    self.cache.drop(watch.kind.plural, change.thing)
                elif change.type != "BOOKMARK":
                    self.cache.put(watch.kind.plural, change.thing)
                watch.version = change.version
        watch.works()
        if time.monotonic() - began < 1:
            await asyncio.sleep(watch.pause)  # a server that goes down ends streams at once
