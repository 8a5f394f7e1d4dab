"""What this process keeps of jobs so as not to read it again: resolved requests, which never change, and
how far each progress stream was read. All of it may be forgotten at any time.

May import: jos.core, jos.store, jos.archive. Tests: tests/integration/test_api_jobs.py.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from jos import archive, wire
from jos.api.traces import Trace
from jos.core.model import Job, JobSpec
from jos.storage.base import Storage
from jos.store.counts import input_counts
from jos.store.redis import Store
from jos.submission import load_spec

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_MOST_INPUTS = 300_000  # of all requests that are kept
_MOST_TRACED = 320_000  # inputs of all jobs whose progress is kept
_TRACE = 5000  # what a trace weighs besides
_PAGE = 1000


class Recent(Generic[K, V]):
    """The values asked for last, up to a total weight."""

    def __init__(self, most: int) -> None:
        self._most, self._weight = most, 0
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, weight: int = 1) -> None:
        self.drop(key)
        self._kept[key] = (value, weight)
        self._weight += weight
        while self._weight > self._most and len(self._kept) > 1:
            self.drop(next(iter(self._kept)))

    def drop(self, key: K) -> None:
        found = self._kept.pop(key, None)
        self._weight -= found[1] if found else 0


class Remembered:
    def __init__(self, store: Store, storage: Storage) -> None:
        self._store, self._storage = store, storage
        self._specs: Recent[str, JobSpec] = Recent(_MOST_INPUTS)
        self._traces: Recent[str, tuple[Trace, asyncio.Lock]] = Recent(_MOST_TRACED)

    async def spec(self, job: Job) -> JobSpec:
        spec = self._specs.get(job.id)
        if spec is None:
            spec = await load_spec(job, self._storage)
            self._specs.put(job.id, spec, len(spec.inputs) + 10)
        return spec

    async def counts(self, jobs: Sequence[Job]) -> dict[str, wire.InputCounts]:
        """Of each job, in one round trip; what no driver has spoken of yet is pending."""
        told = await input_counts(self._store.connection, [job.id for job in jobs])
        found: dict[str, wire.InputCounts] = {}
        for job in jobs:
            counts = told[job.id]
            begun = counts["processing"] + counts["completed"] + counts["failed"]
            pending = max(job.tracked_inputs - begun, counts["pending"])
            found[job.id] = wire.InputCounts(**{**counts, "pending": pending})
        return found

    async def trace(self, job: Job) -> Trace:
        """What the job's progress entries add up to, brought up to now."""
        kept = self._traces.get(job.id) or (Trace(), asyncio.Lock())
        self._traces.put(job.id, kept, _TRACE + job.tracked_inputs)
        trace, lock = kept
        async with lock:
            while True:
                _, entries = await archive.progress(
                    self._store, self._storage, job, after=trace.seen, limit=_PAGE, order="asc"
                )
                for entry in entries:
                    trace.add(entry)
                if len(entries) < _PAGE:
                    return trace

    def forget(self, job_id: str) -> None:
        self._specs.drop(job_id)
        self._traces.drop(job_id)
