"""A group: several processes that do each step of a training together, with the face of one index.

The actor holds no CPU. It starts one process per rank (jos.driver.rank), hands the driver's leases to all ranks, and
gives back what rank 0 made of them. They go in lock-step: before each span all vote, and it is begun by all or by
none, for one that waits in a collective call for another that never comes would wait for ever. Whatever else goes
wrong ends the whole group: a new one goes on from the last committed state.
May import: ray, jos.core, jos.driver.rank. Tests: tests/integration/test_group.py.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ray.exceptions import RayError

from jos.core.errors import JobImpossible
from jos.core.plan import SpanWork, Work
from jos.core.stimuli import SpanFault
from jos.driver.messages import IndexConfig, LeaseReply, Ready
from jos.driver.rank import current_actor, make_trainer, release_all

PROBE_EVERY = 0.5  # seconds between looks whether all ranks live
PROBE_SECONDS = 10.0  # for a rank to show that it does

T = TypeVar("T")


class GroupLost(Exception):
    """A rank is gone, and with it the group."""


@dataclass
class _Held:
    """A lease in hand, and what ranks have answered."""

    work: tuple[Work, ...]
    done: asyncio.Future[LeaseReply]
    replies: dict[int, LeaseReply] = field(default_factory=dict)


@dataclass
class _Vote:
    """Whether the ranks can begin a span."""

    agreed: asyncio.Future[bool]
    yes: dict[int, bool] = field(default_factory=dict)


class Group:
    """The actor. `ready`, `run` and `stop` as an index has them; `placed` comes back when all ranks' processes run.
    Raises GroupLost from any of them when a rank is gone."""

    def __init__(self, config: IndexConfig, size: int) -> None:
        self.config, self.size = config, size
        self.actors: dict[int, Any] = {}  # the ranks' processes
        self.up: dict[int, Ready] = {}
        self.orders: list[asyncio.Queue[tuple[int, tuple[Work, ...]]]] = [asyncio.Queue() for _ in range(size)]
        self.leases: dict[int, _Held] = {}
        self.votes: dict[tuple[int, int], _Vote] = {}
        self.all_placed, self.all_up, self.lost = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.why = ""
        self.stopping = False

    # --- called by the driver ---

    async def placed(self) -> None:
        await self._unless_lost(self.all_placed.wait())

    async def ready(self) -> Ready:
        try:
            return await self._ready()
        except Exception as error:  # whoever waits for `placed` must hear of it
            self._lose(f"{type(error).__name__}: {error}")
            raise

    async def _ready(self) -> Ready:
        started = time.monotonic()
        try:
            await asyncio.to_thread(release_all)
            trainer = await asyncio.to_thread(make_trainer, self.config, self.size, current_actor())
        except ImportError as error:
            missing = JobImpossible(
                f"{self.size} indexes cannot train together here: {error}.",
                suggestion="Install jos[train] where the indexes run, or give the job a parallelism of 1.",
            )
            self.all_placed.set()
            return Ready(os.uname().nodename, os.getpid(), 0.0, True, "", [], missing)
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._fit, args=(trainer, loop), name="jos-fit", daemon=True).start()
        await self._unless_lost(self.all_up.wait())
        first = self.up[0]
        events = [event for rank in sorted(self.up) for event in self.up[rank].events]
        wrong = next((one.error for one in self.up.values() if one.error is not None), None)
        return replace(first, seconds=time.monotonic() - started, events=events, error=wrong)

    async def run(self, lease: int, work: tuple[Work, ...]) -> LeaseReply:
        """Has all ranks do it. Raises GroupLost if one of them is lost on the way."""
        held = _Held(work, asyncio.get_running_loop().create_future())
        self.leases[lease] = held
        for orders in self.orders:
            orders.put_nowait((lease, work))
        try:
            return await self._unless_lost(held.done)
        finally:
            del self.leases[lease]

    async def stop(self, grace: float) -> None:
        """No span is begun any more. One in hand that takes longer than `grace` seconds is dropped too."""
        self.stopping = True
        asyncio.get_running_loop().call_later(grace, self._drop_all)

    # --- called by the ranks ---

    async def here(self, rank: int, actor: Any) -> None:
        if rank in self.actors:  # by Ray Train, which knows nothing of what was in hand
            self._lose(f"rank {rank} of {self.size} was started anew")
        self.actors[rank] = actor
        if len(self.actors) == self.size:
            self.all_placed.set()
            self.watching = asyncio.create_task(self._watch())

    async def join(self, rank: int, ready: Ready) -> None:
        self.up[rank] = ready
        if len(self.up) == self.size:
            self.all_up.set()

    async def order(self, rank: int) -> tuple[int, tuple[Work, ...]]:
        """The next lease for this rank, as soon as there is one."""
        return await self.orders[rank].get()

    async def agree(self, rank: int, lease: int, start: int, can: bool) -> bool:
        """Whether to begin a span: the same answer for all ranks, when all have said whether they can."""
        key = (lease, start)
        vote = self.votes.setdefault(key, _Vote(asyncio.get_running_loop().create_future()))
        vote.yes[rank] = can
        if len(vote.yes) == self.size:
            vote.agreed.set_result(all(vote.yes.values()) and not self.stopping)
            del self.votes[key]
        return await asyncio.shield(vote.agreed)

    async def done(self, rank: int, reply: LeaseReply) -> None:
        held = self.leases.get(reply.lease)
        if held is None or held.done.done():
            return
        held.replies[rank] = reply
        if reply.sick is not None:
            await self._broken(held, reply)
        elif len(held.replies) == self.size:
            held.done.set_result(combined(held.work, held.replies))

    # --- ends ---

    async def _broken(self, held: _Held, reply: LeaseReply) -> None:
        """A rank failed. If it failed because another is gone, nothing is to be said of the span."""
        if (gone := await self._gone()) is not None:
            self._lose(gone)
        elif not held.done.done():
            told = {fault.work.key: fault for fault in reply.faults}
            reply.commits, reply.faults = [], [told.get(w.key, _dropped(w)) for w in _spans(held.work)]
            held.done.set_result(reply)

    def _drop_all(self) -> None:
        for lease, held in self.leases.items():
            if not held.done.done():
                held.done.set_result(LeaseReply(lease, faults=[_dropped(w) for w in _spans(held.work)]))

    def _fit(self, trainer: Any, loop: asyncio.AbstractEventLoop) -> None:
        why = "the ranks have returned"
        try:
            trainer.fit()
        except Exception as error:  # whatever Ray Train raises, the ranks are gone
            why = self._why(error)
        loop.call_soon_threadsafe(self._lose, why)

    def _why(self, error: Exception) -> str:
        """Ray Train's report as one line: the ranks that died, else the first that failed; the others fail of it."""
        if isinstance(error, RayError):
            return "the process that watches over the ranks died"
        failures: dict[int, Exception] = getattr(error, "worker_failures", {})
        for rank, failure in sorted(failures.items()):
            if isinstance(getattr(failure, "health_check_failure", None), RayError):
                return self._died(rank)
        first = min(failures, default=None)
        failure = error if first is None else failures[first]
        last = (str(failure).strip().splitlines() or [type(failure).__name__])[-1][:500]
        return f"the group has ended: {last}" if first is None else f"rank {first} of {self.size} failed: {last}"

    async def _watch(self) -> None:
        """Ray Train tells of a lost rank only when it has ended the others, which may hang in a collective call."""
        while not self.lost.is_set():
            if (gone := await self._gone()) is not None:
                self._lose(gone)
            await asyncio.sleep(PROBE_EVERY)

    async def _gone(self) -> str | None:
        """Which rank's process does not live any more; None when all do."""
        for rank, actor in sorted(self.actors.items()):
            try:
                await asyncio.wait_for(actor.__ray_ready__.remote(), PROBE_SECONDS)
            except RayError:
                return self._died(rank)
            except TimeoutError:
                continue  # slow is not dead
        return None

    def _died(self, rank: int) -> str:
        who = f" (process {self.up[rank].pid} on {self.up[rank].host})" if rank in self.up else ""
        return f"rank {rank} of {self.size}{who} died: it was killed, crashed, or the machine ran out of memory"

    def _lose(self, why: str) -> None:
        self.why = self.why or why
        self.lost.set()

    async def _unless_lost(self, wanted: Awaitable[T]) -> T:
        task, lost = asyncio.ensure_future(wanted), asyncio.ensure_future(self.lost.wait())
        await asyncio.wait([task, lost], return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        if task.done():
            return task.result()
        task.cancel()
        raise GroupLost(self.why)


def _spans(work: tuple[Work, ...]) -> list[SpanWork]:
    return [w for w in work if isinstance(w, SpanWork)]


def _dropped(work: SpanWork) -> SpanFault:
    return SpanFault(replace(work, state=None), "dropped: no time was left to finish it", dropped=True)


def combined(work: tuple[Work, ...], replies: dict[int, LeaseReply]) -> LeaseReply:
    """What all ranks say of a lease, as one: rank 0's word, and all events. Each of them has done the same steps, or
    their trainers break the contract of jos.worker.Trainer."""
    first = replies[0]
    ends = {commit.start: commit.steps for commit in first.commits}
    for rank in sorted(replies.keys() - {0}):
        other = replies[rank]
        first.events += other.events
        if any(ends.get(commit.start, commit.steps) != commit.steps for commit in other.commits):
            first.sick = f"rank 0 and rank {rank} did not stop after the same step: `finished` must be the same"
            first.commits, first.faults = [], [SpanFault(replace(w, state=None), first.sick) for w in _spans(work)]
    return first
