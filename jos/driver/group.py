"""A group: several processes that do each step of a training together, with the face of one index.

The actor holds no CPU. It starts one process per rank through Ray Train, which also sets up `torch.distributed`
between them, hands the driver's leases to all ranks, and gives back what rank 0 made of them. Each rank is an index
(jos.driver.index) with a trainer of its own. They go in lock-step: before each span all vote, and it is begun by all
or by none, for one that waits in a collective call for another that never comes would wait for ever. Whatever else
goes wrong ends the whole group: a new one goes on from the last committed state.
May import: ray, jos.core, jos.driver.index. Tests: tests/integration/test_group.py.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup

from jos.core.errors import JobImpossible
from jos.core.model import JobSpec
from jos.core.plan import SpanWork, Work
from jos.core.stimuli import SpanFault
from jos.driver.index import Index, _Item
from jos.driver.messages import IndexConfig, LeaseReply, Ready
from jos.worker import Trainer

COLLECTIVE_SECONDS = 600  # that a rank waits for another in a collective call, before it fails
PROBE_SECONDS = 10.0  # for a rank to show that it lives
LEFTOVER_SECONDS = 30.0  # for what a dead group held to come free

T = TypeVar("T")

# Of Ray Train. A lost rank is noticed within the health check's interval. What ranks print goes where an index's
# prints go. Preemption is JOS's own business, and relative paths mean what they mean in an index.
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


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
        started = time.monotonic()
        try:
            await asyncio.to_thread(_release_all)
            trainer = await asyncio.to_thread(_trainer, self.config, self.size, _current_actor())
        except ImportError as error:
            missing = JobImpossible(
                f"{self.size} indexes cannot train together here: {error}.",
                suggestion="Install jos[train] where the indexes run, or give the job a parallelism of 1.",
            )
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
        self.actors[rank] = actor
        if len(self.actors) == self.size:
            self.all_placed.set()

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
            why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        asyncio.run_coroutine_threadsafe(self._fit_ended(why), loop)

    async def _fit_ended(self, why: str) -> None:
        self._lose(await self._gone() or f"the group has ended: {why[:500]}")

    async def _gone(self) -> str | None:
        """Which rank's process does not live any more; None when all do."""
        for rank, actor in sorted(self.actors.items()):
            try:
                await asyncio.wait_for(actor.__ray_ready__.remote(), PROBE_SECONDS)
            except RayError:
                who = f" (process {self.up[rank].pid} on {self.up[rank].host})" if rank in self.up else ""
                return f"rank {rank} of {self.size}{who} died: it was killed, crashed, or the machine ran out of memory"
            except TimeoutError:
                continue  # slow is not dead
        return None

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


def _current_actor() -> Any:
    return ray.get_runtime_context().current_actor


def _spans(work: tuple[Work, ...]) -> list[SpanWork]:
    return [w for w in work if isinstance(w, SpanWork)]


def _dropped(work: SpanWork) -> SpanFault:
    return SpanFault(replace(work, state=None), "dropped: no time was left to finish it", dropped=True)


def combined(work: tuple[Work, ...], replies: dict[int, LeaseReply]) -> LeaseReply:
    """What all ranks say of a lease, as one: rank 0's word, and all events. Each of them has done the same steps, or
    their trainers break the contract of jos.worker.Trainer."""
    first = replies[0]
    ends = {commit.start: commit.end for commit in first.commits}
    for rank in sorted(replies.keys() - {0}):
        other = replies[rank]
        first.events += other.events
        if any(ends.get(commit.start, commit.end) != commit.end for commit in other.commits):
            first.sick = f"rank 0 and rank {rank} did not stop after the same step: `finished` must be the same"
            first.commits, first.faults = [], [SpanFault(replace(w, state=None), first.sick) for w in _spans(work)]
    return first


# --- a rank ---------------------------------------------------------------------------------------------


class Rank(Index):
    """One of the processes that do each step together. Only rank 0 keeps what comes of it."""

    def __init__(self, config: IndexConfig, group: Any) -> None:
        super().__init__(config)
        self.group = group
        self.broken = False

    def _steps(self, trainer: Trainer, item: _Item) -> bool:
        work = item.work
        can = not self.broken and (self.position == work.start or work.state is not None or work.start == 0)
        vote = (self.config.rank, item.lease.reply.lease, work.start, can)
        if self.broken or not ray.get(self.group.agree.remote(*vote)):
            self._fault(item, "dropped: not all ranks of the group could begin it", dropped=True)
            return False
        return super()._steps(trainer, item)

    def _failed(self, item: _Item, error: Exception) -> None:
        """The others may be waiting for this rank in a collective call: only a new group gets out of that."""
        self.broken = True
        item.lease.reply.sick = f"rank {self.config.rank} failed in a step: {type(error).__name__}"
        super()._failed(item, error)

    def _setup(self) -> None:
        self._use_own_gpu()
        super()._setup()

    def _forever(self, step: Any) -> None:
        self._use_own_gpu()
        super()._forever(step)

    def _use_own_gpu(self) -> None:
        """Ray Train shows each rank the GPUs of all ranks on its node, and torch's choice of one holds for the
        calling thread only."""
        if self.config.device == "cuda":
            import torch
            from ray.train.torch import get_device

            torch.cuda.set_device(get_device())


def _rank(settings: dict[str, Any]) -> None:
    """What Ray Train calls in each of its processes; it ends with the process."""
    asyncio.run(_serve(settings["config"], settings["group"]))


async def _serve(config: IndexConfig, group: Any) -> None:
    from ray.train import get_context

    rank, ranks = get_context().get_world_rank(), get_context().get_world_size()
    await group.here.remote(rank, _current_actor())
    index = Rank(replace(config, rank=rank, ranks=ranks), group)
    await group.join.remote(rank, await index.ready())
    doing: set[asyncio.Task[None]] = set()
    while True:
        task = asyncio.create_task(_do(index, group, *await group.order.remote(rank)))
        doing.add(task)  # two leases may be in hand: one is written while the other is computed
        task.add_done_callback(doing.discard)


async def _do(index: Rank, group: Any, lease: int, work: tuple[Work, ...]) -> None:
    await group.done.remote(index.config.rank, await index.run(lease, work))


# --- Ray Train ------------------------------------------------------------------------------------------


def _trainer(config: IndexConfig, size: int, group: Any) -> Any:
    """The ranks as Ray Train is to run them. Raises ImportError where torch or pandas is missing."""
    os.environ.update(_SETTINGS)
    from fsspec.implementations.memory import MemoryFileSystem
    from pyarrow.fs import FSSpecHandler, PyFileSystem
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class Bare(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            """Without a process for data sets, of which there are none, and one that frees the CPUs of a dead group,
            which never ends itself where Ray has no dashboard; `release_leftovers` does that."""
            unwanted = (DatasetsCallback, PlacementGroupCleanerCallback)
            return [c for c in super()._create_default_callbacks() if not isinstance(c, unwanted)]

    wanted = JobSpec.stored(config.spec_json).pipeline.resources
    gpu = config.device == "cuda"
    resources = {"CPU": wanted.cpu, "GPU": wanted.gpu.count if gpu else 0, "memory": wanted.memory_bytes or 0}
    return Bare(
        _rank,
        train_loop_config={"config": config, "group": group},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=size,
            use_gpu=gpu,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
            accelerator_type=(wanted.gpu.type or None) if gpu else None,
        ),
        run_config=RunConfig(
            storage_path="/jos",  # nothing is kept there: states and checkpoints go to the job's storage
            storage_filesystem=PyFileSystem(FSSpecHandler(MemoryFileSystem())),
            failure_config=FailureConfig(max_failures=0),
        ),
    )


def release_leftovers() -> bool:
    """Frees what dead groups of this Ray job held: their placement groups live until the job ends, and keep CPUs and
    GPUs from whoever comes next. True when nothing is left of any."""
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    ours, left = bytes.fromhex(ray.get_runtime_context().get_job_id()), False
    for data in state._connect_and_get_accessor().get_placement_group_table():
        one = gcs_pb2.PlacementGroupTableData.FromString(data)
        if one.creator_job_id != ours or one.state == gcs_pb2.PlacementGroupTableData.REMOVED:
            continue
        left = True
        if one.creator_actor_dead:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(one.placement_group_id)))
    return not left


def _release_all() -> None:
    """A group that was killed a moment ago takes a moment to die."""
    deadline = time.monotonic() + LEFTOVER_SECONDS
    while not release_leftovers() and time.monotonic() < deadline:
        time.sleep(0.1)
