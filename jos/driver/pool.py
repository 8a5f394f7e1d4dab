"""The Ray side of indexes: starts actors, sends them leases, tells of their deaths.

Actors are plain, with no restarts and no retries of Ray's own: the driver sees a death within milliseconds, and the
brain (jos.core.dispatch) decides.
May import: ray, jos.core, jos.driver.{index,group,rank}. Tests: tests/integration/test_driver.py, test_group.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import ray
import structlog
from ray.exceptions import RayError

from jos.core.errors import JosError
from jos.core.model import Resources
from jos.core.stimuli import IndexDown, IndexUp, LeaseDone, Placed, Push, StartIndex, Stimulus, StopIndex
from jos.driver.group import Group
from jos.driver.index import Index
from jos.driver.messages import IndexConfig, LeaseReply, Ready
from jos.driver.rank import LEFTOVER_SECONDS, release_all

log = structlog.get_logger()


class Pool:
    """`tell` takes stimuli for the brain; `on_ready` each index that came up; `on_reply` each lease's reply."""

    def __init__(
        self,
        template: IndexConfig,
        resources: Resources,
        gpu: bool,
        tell: Callable[[Stimulus], None],
        on_ready: Callable[[int, int, Ready], None],
        on_reply: Callable[[int, LeaseReply], None],
        impossible: Callable[[JosError], None],
    ) -> None:
        self.template, self.tell, self.on_ready, self.on_reply = template, tell, on_ready, on_reply
        self.impossible = impossible
        self.options: dict[str, Any] = {
            "num_cpus": resources.cpu,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 16,
        }
        if resources.memory_bytes:
            self.options["memory"] = resources.memory_bytes
        if gpu:
            self.options["num_gpus"] = resources.gpu.count
            if resources.gpu.type:
                self.options["accelerator_type"] = resources.gpu.type
        self.actors: dict[tuple[int, int], Any] = {}
        self.unwanted: set[tuple[int, int]] = set()  # stopped before they were started
        self.started = 0
        self.grouped = False
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, what: StartIndex) -> None:
        self._spawn(self._start(what))

    async def _start(self, what: StartIndex) -> None:
        if what.delay:
            await asyncio.sleep(what.delay)
        if (what.index, what.life) in self.unwanted:
            return
        config = replace(self.template, index=what.index, life=what.life)
        self.started += what.group
        actor = self._actor(config, what.group)
        self.actors[what.index, what.life] = actor
        try:
            up = actor.ready.remote()
            # a node has room for it, and its process runs; or those of all its ranks
            await (actor.__ray_ready__ if what.group == 1 else actor.placed).remote()
            self.tell(Placed(what.index, what.life))
            ready: Ready = await up
        except RayError as error:
            self._down(what.index, what.life, error)
            return
        if ready.error is not None:
            self.impossible(ready.error)
            return
        self.on_ready(what.index, what.life, ready)
        self.tell(IndexUp(what.index, what.life))

    def _actor(self, config: IndexConfig, group: int) -> Any:
        if group == 1:
            return ray.remote(**self.options)(Index).remote(config)
        self.grouped = True
        # it holds nothing itself: its ranks do. Each of them has calls of its own under way
        options = self.options | {"num_cpus": 0, "num_gpus": 0, "memory": 0, "accelerator_type": None}
        return ray.remote(**options | {"max_concurrency": 1000})(Group).remote(config, group)

    def push(self, what: Push) -> None:
        self._spawn(self._push(what))

    async def _push(self, what: Push) -> None:
        actor = self.actors.get((what.index, what.life))
        if actor is None:
            return  # died since; the brain has taken the lease back
        try:
            reply: LeaseReply = await actor.run.remote(what.lease, what.work)
        except RayError as error:
            self._down(what.index, what.life, error)
            return
        self.on_reply(what.index, reply)
        self.tell(
            LeaseDone(
                what.index,
                what.life,
                reply.lease,
                reply.seconds,
                tuple(reply.commits),
                tuple(reply.faults),
                tuple(reply.plans),
                reply.sick,
                reply.storage_error,
            )
        )

    def stop(self, what: StopIndex) -> None:
        """Idle indexes and those that hang alike: nothing that is not committed is worth waiting for."""
        self.unwanted.add((what.index, what.life))
        self._kill(what.index, what.life)

    def drain(self, grace: float) -> None:
        """Asks every index to finish what it has in hand within `grace` seconds."""
        for actor in self.actors.values():
            actor.stop.remote(grace)

    def _down(self, index: int, life: int, error: RayError) -> None:
        self._kill(index, life)
        self.tell(IndexDown(index, life, _reason(error)))

    def _kill(self, index: int, life: int) -> None:
        actor = self.actors.pop((index, life), None)
        if actor is not None:
            with contextlib.suppress(RayError):  # already dead is as good
                ray.kill(actor, no_restart=True)

    async def close(self) -> None:
        for index, life in list(self.actors):
            self._kill(index, life)
        for task in self.tasks:
            task.cancel()
        if self.grouped:  # what it held is not free by itself before this process leaves Ray
            with contextlib.suppress(TimeoutError):  # the last word does not wait for a Ray that is gone
                await asyncio.wait_for(asyncio.to_thread(release_all), 2 * LEFTOVER_SECONDS)
            self.grouped = False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            wrapped = error if isinstance(error, JosError) else JosError(f"{type(error).__name__}: {error}")
            self.impossible(wrapped)


def _reason(error: RayError) -> str:
    """Ray's many-line report as the one line that tells people what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "creation task" in lines[0] or isinstance(error, ray.exceptions.RayTaskError):
        return lines[-1].removeprefix("jos.driver.group.GroupLost: ")[:500]  # a traceback
    if any("exits with a connection error" in line for line in lines):  # how Ray sees a death without a word
        pid = next((line for line in lines if line.startswith("pid: ")), "")
        return f"its process{pid.replace('pid:', '')} died: it was killed, crashed, or the machine ran out of memory"
    telling = [li for li in lines if "cause" in li.lower() or "killed" in li.lower()]
    return (telling or lines)[0][:500]
