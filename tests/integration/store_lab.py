"""A store on an embedded Valkey, jobs in it, and what drivers tell of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from valkey_lab import NOW, Valkey, event, make_job

from jos.core.commands import Admit, Started
from jos.core.lifecycle import Transition
from jos.core.model import Checkpoint, Event, Job, Output, Progress, ProgressDraft
from jos.store.redis import Decide, Store


def on(valkey: Valkey, test: Callable[[Store], Awaitable[None]], decide: Decide | None = None) -> None:
    async def run() -> None:
        options = {} if decide is None else {"decide": decide}
        async with await Store.open(None, valkey.data_dir, **options) as store:
            await test(store)

    asyncio.run(run())


async def running(store: Store, token: str = "tok", **fields: object) -> Job:
    job = await store.create(make_job(**fields), [event()])
    await store.transact(job.id, Admit(token), NOW)
    return await store.transact(job.id, Started(token), NOW)


def count_up(job: Job, command: object, now: object) -> Transition:
    """A command that is never the same as the one before: each must leave its own event and its own change."""
    return Transition(job.model_copy(update={"retry_count": job.retry_count + 1}), (event(str(command)),))


def progress(message: str, **fields: object) -> ProgressDraft:
    return ProgressDraft(**{"kind": "inference", "message": message, "created_at": NOW, **fields})


def output(name: str, **fields: object) -> Output:
    defaults = {
        "id": f"out_{name}",
        "port": "worker.results",
        "input_id": "inp_1",
        "filename": f"{name}.csv",
        "key": f"parts/{name}.csv",
        "num_bytes": 10,
        "sha256": "00",
        "tasks": 1,
        "created_at": NOW,
    }
    return Output(**{**defaults, **fields})


def numbers(entries: list[Event] | list[Progress]) -> list[int]:
    return [entry.id for entry in entries]


def checkpoint(step: int, **fields: Any) -> Checkpoint:
    defaults = {
        "id": f"ckp_{step}",
        "name": f"step_{step}",
        "step": step,
        "metrics": {"loss": 0.5},
        "key": f"state/step_{step}",
        "num_bytes": 10,
        "sha256": "00",
        "created_at": NOW,
    }
    return Checkpoint(**{**defaults, **fields})


async def keys(store: Store) -> set[str]:
    """Every key on the server."""
    return {key.decode() for key in await store.connection.command("KEYS", "*")}
