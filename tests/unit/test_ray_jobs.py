"""What Ray's dashboard says, and what it means."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from jos.core.errors import ComputeFailed
from jos.core.snapshot import Node
from jos.launch.ray_jobs import RayJobs


def nodes(*found: dict[str, Any]) -> tuple[Node, ...] | None:
    async def ask() -> tuple[Node, ...] | None:
        launcher = RayJobs("http://ray", None, "storage")  # type: ignore[arg-type]
        await launcher.client.aclose()
        answer = httpx2.Response(200, json={"data": {"result": {"result": list(found)}}})
        launcher.client = httpx2.AsyncClient(base_url="http://ray", transport=httpx2.MockTransport(lambda _: answer))
        try:
            return await launcher.nodes()
        finally:
            await launcher.close()

    return asyncio.run(ask())


def test_living_nodes_are_what_there_is() -> None:
    alive = {"state": "ALIVE", "resources_total": {"CPU": 4, "memory": 1e9, "GPU": 2, "accelerator_type:H100": 1}}
    assert nodes(alive, {"state": "DEAD", "resources_total": {"CPU": 8}}) == (
        Node({"cpu": 4.0, "memory": 1e9, "gpu": 2.0, "gpu:H100": 2.0}),
    )


class Warm:
    """A dashboard that lists warm drivers as running since long ago, and what the store knows of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.now, self.stopped, self.submitted = 1000.0, list[str](), 0
        self.known_ones: set[str] = set()
        self.idle_ones: list[str] = []
        monkeypatch.setattr("jos.launch.ray_jobs.time.monotonic", lambda: self.now)
        self.launcher = RayJobs("http://ray", self, "storage")  # type: ignore[arg-type]
        self.names = [self.launcher.warm_prefix + name for name in names]

    async def known(self) -> set[str]:
        return set(self.known_ones)

    async def idle(self) -> list[str]:
        return self.idle_ones

    async def forget(self, names: set[str]) -> None:
        self.known_ones -= names

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            if request.url.path.endswith("/stop"):
                self.stopped.append(request.url.path.split("/")[-2])
            else:
                self.submitted += 1
            return httpx2.Response(200, json={})
        jobs = [{"submission_id": name, "status": "RUNNING", "start_time": 1000} for name in self.names]
        return httpx2.Response(200, json=jobs)

    async def look(self, seconds: float = 0, driving: tuple[str, ...] = ()) -> None:
        self.now += seconds
        self.launcher.client = httpx2.AsyncClient(base_url="http://ray", transport=httpx2.MockTransport(self.answer))
        await self.launcher.keep_warm(1, driving)
        await self.launcher.client.aclose()


def test_a_store_that_lost_its_memory_ends_no_warm_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are older than those that come up late, and nothing is known of them until they say that they are up."""

    async def test() -> None:
        warm = Warm(monkeypatch, "idle", "busy")
        idle, busy = warm.names
        warm.known_ones, warm.idle_ones = {idle, busy}, [idle]
        await warm.look()
        warm.known_ones, warm.idle_ones = set(), []
        await warm.look(1)
        warm.known_ones, warm.idle_ones = {idle}, [idle]  # its next word
        await warm.look(1, driving=(busy,))
        await warm.look(1000, driving=(busy,))
        await warm.look(1000, driving=(busy,))
        assert (warm.stopped, warm.submitted) == ([], 0)

    asyncio.run(test())


def test_a_warm_driver_that_does_not_come_up_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        warm = Warm(monkeypatch, "stuck")
        await warm.look()
        await warm.look(179)
        assert warm.stopped == []
        await warm.look(2)
        assert warm.stopped == warm.names

    asyncio.run(test())


def test_a_cluster_without_a_living_node_is_no_cluster_without_a_limit() -> None:
    """A head that has just come up: with an unknown capacity every waiting job would be admitted at once."""
    with pytest.raises(ComputeFailed, match="no living node"):
        nodes()
