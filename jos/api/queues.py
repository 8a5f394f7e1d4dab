"""Queues: what each may use, what it uses, and how many run and wait in it.

May import: fastapi, jos below the API. Tests: tests/integration/test_api_queues.py. For people: docs/queues.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter
from starlette.responses import Response

from jos import wire
from jos.api.auth import Reader
from jos.api.context import Parts
from jos.api.errors import documented
from jos.api.shapes import Limit, Offset, said
from jos.core.capacity import demand
from jos.core.model import Job
from jos.core.queues import QueueConfig
from jos.core.snapshot import capacity
from jos.store import indexes

router = APIRouter(prefix="/batch/queues", tags=["jobs"])


@router.get("", response_model=wire.QueueUseList, responses=documented(400), summary="What queues may use, and do use")
async def list_queues(_caller: Reader, parts: Parts, offset: Offset = 0, limit: Limit = 20) -> Response:
    """By name, over all organisations, since they share them. `used` is what was granted to jobs that are at work or
    about to leave. Whose jobs these are is not told."""
    config = parts.queues
    names = sorted(config.queues)
    page = names[offset : offset + limit]
    waiting = await indexes.queued(parts.connection, page)
    uses = used(await indexes.at_work(parts.connection), config)
    queues = [
        wire.QueueUse(
            name=name,
            quota=config.queues[name].quota,
            used=uses[name][1] if name in uses else {},
            running=uses[name][0] if name in uses else 0,
            waiting=waiting[name],
            cohort=config.queues[name].cohort,
            stopped=config.queues[name].stopped,
        )
        for name in page
    ]
    return said(wire.QueueUseList(total=len(names), offset=offset, limit=limit, queues=queues))


def used(jobs: Iterable[Job], config: QueueConfig) -> dict[str, tuple[int, dict[str, float]]]:
    """By queue: (how many of `jobs` hold capacity in it, what was granted to them).

    A GPU that a job can do without is charged where the cluster has any. This process does not see the cluster: it
    goes by the configured nodes, else by whether the queue has a quota of GPUs."""
    nodes = capacity(config, None)
    found: dict[str, tuple[int, dict[str, float]]] = {}
    for job in jobs:
        if not (job.queue and job.holds_capacity):  # a job of `jos run` is in no queue
            continue
        count, amounts = found.get(job.queue, (0, {}))
        queue = config.queues.get(job.queue)
        for name, amount in demand(job.resources, nodes, bool(queue and queue.quota.get("gpu"))).items():
            amounts[name] = amounts.get(name, 0.0) + amount * job.granted
        found[job.queue] = (count + 1, amounts)
    return found
