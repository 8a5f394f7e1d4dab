"""Puts the parts together as the settings say: which Redis, which storage, which pipelines.

May import: everything below cli and notebook. Tests: tests/integration/test_driver.py.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from jos.core.errors import ConfigInvalid
from jos.core.queues import QueueConfig
from jos.registry import Registry
from jos.settings import Settings
from jos.storage import open_storage, probe
from jos.storage.base import Storage
from jos.store.redis import Store


@dataclass(frozen=True)
class Wired:
    settings: Settings
    store: Store
    storage: Storage
    registry: Registry


def open_registry(settings: Settings) -> Registry:
    return Registry(extra=[Path(p) for p in settings.pipelines.split(os.pathsep) if p])


def open_queues(settings: Settings) -> QueueConfig:
    """Raises ConfigInvalid with every mistake in the file."""
    if settings.queues is None:
        return QueueConfig.of(None)
    try:
        data = yaml.safe_load(settings.queues.expanduser().read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"{settings.queues} cannot be read: {error}"
        raise ConfigInvalid(
            message, [], suggestion="JOS_QUEUES names a YAML file; docs/queues.md shows one."
        ) from error
    return QueueConfig.of(data)


def import_paths(settings: Settings) -> tuple[str, ...]:
    """Where indexes look for workers: beside each folder of pipelines, and where the driver was started."""
    folders = [str(Path(p).absolute().parent) for p in settings.pipelines.split(os.pathsep) if p]
    return (*folders, os.getcwd())


@asynccontextmanager
async def wired(settings: Settings) -> AsyncIterator[Wired]:
    """Opens store and storage at once, and proves the storage fit. Raises StoreUnavailable, StorageUnavailable or
    StorageUnfit with what to do."""
    storage = open_storage(settings.storage_url)
    proven = asyncio.create_task(asyncio.to_thread(probe, storage))
    try:
        async with await Store.open(settings.redis_url, settings.redis_dir) as store:
            await proven
            yield Wired(settings, store, storage, open_registry(settings))
    finally:
        proven.cancel()


def spare_the_collector() -> None:
    """What is there now stays, so the garbage collector need not walk it again while requests or loops wait: its pauses
    made the API's slowest 1 %, and took the controller a tenth of a second each with a thousand jobs. To be called
    when all is open, before the work begins."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
