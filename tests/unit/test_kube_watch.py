"""How watches go on when the server forgets, without a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jos.launch import kube_watch
from jos.launch.kube_api import Change, Expired, Kind
from jos.launch.kube_cache import Cache
from jos.launch.kube_watch import Watches


class Forgetful:
    """An API server whose lists are too old as soon as they are watched from."""

    server = "http://forgetful"

    def __init__(self) -> None:
        self.lists = 0

    async def list(self, kind: Kind, selector: object) -> tuple[list[Mapping[str, Any]], str]:
        self.lists += kind is kube_watch.RAYJOB
        return [], "7"

    @asynccontextmanager
    async def watch(
        self, kind: Kind, selector: object, version: str, seconds: int
    ) -> AsyncIterator[AsyncIterator[Change]]:
        async def expired() -> AsyncIterator[Change]:
            raise Expired
            yield

        yield expired()


def test_a_watch_that_expires_again_and_again_lists_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    enough = asyncio.Event()
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        if asyncio.current_task() in watches._tasks[:1]:
            paused.append(seconds)
            if len(paused) == 8:
                enough.set()
        await sleep(0)

    async def work() -> None:
        await watches.fresh()
        await enough.wait()
        await watches.close()

    monkeypatch.setattr(kube_watch.asyncio, "sleep", pause)
    watches = Watches(Forgetful(), Cache(lambda evidence: None, lambda name: None), {}, kueue=False)  # type: ignore[arg-type]
    asyncio.run(work())
    assert paused[0] < 0.3
    assert 3.5 <= paused[7] <= kube_watch.LONGEST_PAUSE * 1.3
