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


def test_a_cluster_without_a_living_node_is_no_cluster_without_a_limit() -> None:
    """A head that has just come up: with an unknown capacity every waiting job would be admitted at once."""
    with pytest.raises(ComputeFailed, match="no living node"):
        nodes()
