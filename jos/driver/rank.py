"""A rank of a group, and how Ray Train starts all of them with `torch.distributed` set up between them.

Each rank is an index (jos.driver.index) in a process of its own, with a trainer of its own.
May import: ray, jos.core, jos.driver.index. Tests: tests/integration/test_group.py, tests/unit/test_rank.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup

from jos.core.model import JobSpec
from jos.core.plan import Work
from jos.driver.index import Index, _Item
from jos.driver.messages import IndexConfig
from jos.worker import Trainer

COLLECTIVE_SECONDS = 600  # that a rank waits for another in a collective call, before it fails
LEFTOVER_SECONDS = 10.0  # for what a dead group held to come free

# Of Ray Train. What ranks print goes where an index's prints go. Preemption is JOS's own business, and relative paths
# mean what they mean in an index.
_SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class Rank(Index):
    """One of the processes that do each step together. Only rank 0 keeps what comes of it. A rank is never told to
    stop, and drops nothing by itself: the group does not begin what it does not want."""

    def __init__(self, config: IndexConfig, agree: Callable[[int, int, bool], bool]) -> None:
        """`agree(lease, start, can)`: this rank's vote, and what all together have said; Group.agree."""
        super().__init__(config)
        self.agree = agree
        self.broken = False

    def _steps(self, trainer: Trainer, item: _Item) -> bool:
        work = item.work
        can = not self.broken and (self.position == work.start or work.state is not None or work.start == 0)
        if self.broken or not self.agree(item.lease.reply.lease, work.start, can):
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


def current_actor() -> Any:
    return ray.get_runtime_context().current_actor


def _rank(settings: dict[str, Any]) -> None:
    """What Ray Train calls in each of its processes; it ends with the process."""
    asyncio.run(_serve(settings["config"], settings["group"]))


async def _serve(config: IndexConfig, group: Any) -> None:
    from ray.train import get_context

    rank, ranks = get_context().get_world_rank(), get_context().get_world_size()
    await group.here.remote(rank, current_actor())

    def agree(*vote: Any) -> bool:
        return bool(ray.get(group.agree.remote(rank, *vote)))

    index = Rank(replace(config, rank=rank, ranks=ranks), agree)
    await group.join.remote(rank, await index.ready())
    doing: set[asyncio.Task[None]] = set()
    while True:
        task = asyncio.create_task(_do(index, group, *await group.order.remote(rank)))
        doing.add(task)  # two leases may be in hand: one is written while the other is computed
        task.add_done_callback(doing.discard)


async def _do(index: Rank, group: Any, lease: int, work: tuple[Work, ...]) -> None:
    await group.done.remote(index.config.rank, await index.run(lease, work))


# --- Ray Train ------------------------------------------------------------------------------------------


def make_trainer(config: IndexConfig, size: int, group: Any) -> Any:
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
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
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


def release_all() -> None:
    """A group that was killed a moment ago takes a moment to die. Where Ray does not answer, nothing is held either."""
    deadline = time.monotonic() + LEFTOVER_SECONDS
    with contextlib.suppress(RayError, ValueError, RuntimeError):
        while not release_leftovers() and time.monotonic() < deadline:
            time.sleep(0.1)
