"""Deleting a job: its record goes at once, its folder in storage next, however large it is and whatever is killed.
The API does so for a user, the controller after the retention time.

A mark in Redis names each folder that is to go; whoever finds an old one goes on with it. `job.json` is the first
object to go: without it a recovery makes no job of what is left.
May import: jos.core, jos.files, jos.storage, jos.store. Tests: tests/integration/test_api_jobs.py and
test_controller_chores.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from jos import checkpoints
from jos.core.errors import Conflict, JosError, NotFound
from jos.core.files import uids_in
from jos.core.model import Job, job_folder
from jos.files.service import Files
from jos.storage.base import Storage
from jos.store.connection import Connection
from jos.store.idempotency import KEEP_SECONDS
from jos.store.readers import LEAVING_TAKES, LOOK_AGAIN, when_left
from jos.store.redis import Store

log = structlog.get_logger()

MARKS = "jos:deleting"  # ZSET "org job" -> when its deletion began, in seconds
_GRAVE = "jos:deleted:"
SWEEPS = 2  # folders at once: each takes a thread of those that all share, for as long as the storage takes
_PATIENCE = 10.0  # seconds that an answer waits for the folder; a large one goes on after it
_EVERY = 60.0
_BATCH = 1000


def check_deletable(job: Job) -> None:
    if not job.status.terminal:
        raise Conflict(
            f"Job {job.id} is {job.status}: only a job that is over can be deleted.", suggestion="Cancel it."
        )
    if job.holds_capacity:
        raise Conflict(
            f"Job {job.id} is {job.status}, but its driver has not left yet: it commits what it has in hand.",
            suggestion="Delete it again in a minute.",
        )


async def mark(connection: Connection, org_id: str, job_id: str) -> str:
    """From now on the job's folder is to go, once there is no record of it."""
    name = f"{org_id} {job_id}"
    await connection.command("ZADD", MARKS, int(datetime.now(UTC).timestamp()), name)
    return name


async def marked(connection: Connection, org_id: str, job_id: str) -> bool:
    """Whether the job is being deleted."""
    return await connection.command("ZSCORE", MARKS, f"{org_id} {job_id}") is not None


async def deleted(connection: Connection, job_id: str) -> bool:
    """Whether there was such a job, within the life of an idempotency key that may still name it."""
    return bool(await connection.command("EXISTS", _GRAVE + job_id))


class Removals:
    def __init__(self, store: Store, storage: Storage, files: Files) -> None:
        self._store, self._storage, self._files = store, storage, files
        self._places = asyncio.Semaphore(SWEEPS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._resuming: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._resuming = asyncio.create_task(self._resume(), name="removals")

    async def close(self) -> None:
        """What is not done is marked, and goes on in another process or life."""
        tasks = [*self._tasks, *([self._resuming] if self._resuming else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def left(self, job: Job) -> Job:
        """The job once its driver has left, or as it is when that takes too long: whoever cleans up cancels a job and
        deletes it at once."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LEAVING_TAKES
        while job.status.terminal and job.holds_capacity and loop.time() < until:
            await asyncio.sleep(LOOK_AGAIN)
            job = await self._store.get(job.id)
        return job

    async def remove(self, job: Job, check: Callable[[Job], None] = check_deletable) -> None:
        """`check` looks at the job, and once more at the very record that is removed. Raises Conflict when it does, or
        while a live job reads one of its checkpoints."""
        check(job)
        readers = await when_left(lambda: checkpoints.readers(self._store, job.id))
        readers.check_none(f"A checkpoint of job {job.id}")
        connection = self._store.connection
        name = await mark(connection, job.org_id, job.id)
        await connection.command("SET", _GRAVE + job.id, "", "EX", KEEP_SECONDS + 3600)
        try:
            await self._store.delete(job.id, check=check, readers=readers.marked)
        except Conflict:  # it was retried meanwhile, or a job that is being created reads a checkpoint
            await connection.commands([("ZREM", MARKS, name), ("DEL", _GRAVE + job.id)])
            raise
        task = asyncio.create_task(self._sweep(job.org_id, job.id), name=f"remove {job.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), _PATIENCE)

    async def _sweep(self, org_id: str, job_id: str) -> None:
        try:
            # again: the deletion may have waited for Redis until the first mark looked like that of a dead process
            name = await mark(self._store.connection, org_id, job_id)
            async with self._places:
                await self._release(org_id, job_id)
                await asyncio.to_thread(self._empty, job_folder(org_id, job_id))
            await self._store.connection.command("ZREM", MARKS, name)
        except JosError as error:  # the mark stays
            log.warning("the folder of a deleted job could not be removed yet", job=job_id, error=str(error))

    async def _release(self, org_id: str, job_id: str) -> None:
        """The files and checkpoints that it read may be deleted from now on."""
        try:
            request = await asyncio.to_thread(self._storage.read, f"{job_folder(org_id, job_id)}job.json")
        except NotFound:
            return
        await self._files.release(org_id, uids_in(request.decode()), job_id)
        await checkpoints.release(self._store.connection, org_id, request.decode(), job_id)

    def _empty(self, folder: str) -> None:
        self._storage.delete([f"{folder}job.json"])
        keys: list[str] = []
        for stat in self._storage.list(folder):
            keys.append(stat.key)
            if len(keys) == _BATCH:
                self._storage.delete(keys)
                keys = []
        self._storage.delete(keys)

    async def _resume(self) -> None:
        while True:
            try:
                await self.go_on()
            except JosError as error:
                log.warning("deletions wait", error=str(error))
            await asyncio.sleep(_EVERY)

    async def go_on(self) -> None:
        """With deletions that whoever began them did not end."""
        before = int(datetime.now(UTC).timestamp() - _PATIENCE)
        for name in await self._store.connection.command("ZRANGEBYSCORE", MARKS, "-inf", before):
            org_id, _, job_id = name.decode().partition(" ")
            try:
                await self._store.get(job_id)
            except NotFound:
                await self._sweep(org_id, job_id)
            else:  # killed between the mark and the deletion of the record: the job was never deleted
                await self._store.connection.command("ZREM", MARKS, name)
