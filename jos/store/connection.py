"""The way to Redis: finds it, starts it when it is the embedded one, and carries work over broken connections.

Every command may be sent twice, because a lost reply cannot be told from a lost request; what changes
data must therefore carry a version, a sequence number or its own id (see scripts/*.lua).
May import: redis, jos.core.errors, jos.store.embedded. Tests: tests/integration/test_store.py.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from jos.core.errors import StoreUnavailable
from jos.store import embedded

T = TypeVar("T")
Argument = str | int | float | bytes

BLOCK_LIMIT_MS = 5_000  # one blocking read; well below the socket's own limit
_SOCKET_TIMEOUT = 15.0
_MOST_SOCKETS = 5_000  # each blocking read has its own: one for each job that is followed
_DELAYS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5)  # before each further try; about 3 s in all
_PATIENCE = 20.0  # seconds after which there is no further try: a server that hangs, not one that refuses

# Replies of a server that will answer properly soon: a fail-over, a restart. LOADING is a ConnectionError.
_PASSING = (ReadOnlyError, MasterDownError, ClusterDownError, TryAgainError)


class Connection:
    """One client (a pool of sockets) of one event loop."""

    def __init__(self, url: str, data_dir: Path | None) -> None:
        # Only when the server is the embedded one; absolute, for the process may change its working folder.
        self._data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._name = f"Redis at {_place(url)}" if data_dir is None else f"The embedded Valkey of {data_dir}"
        try:
            self._redis: Redis = Redis.from_url(
                url,
                protocol=2,
                socket_timeout=_SOCKET_TIMEOUT,
                socket_connect_timeout=5.0,
                max_connections=_MOST_SOCKETS,
                retry=Retry(NoBackoff(), 0),  # retrying is done here, where the server can be started again
            )
        except ValueError as error:
            raise StoreUnavailable(
                f"{_place(url)} is no Redis URL: {error}",
                suggestion="Use redis://host:port/0, rediss://… for TLS or unix:///path.",
            ) from error
        folder = resources.files("jos.store") / "scripts"
        steps = (folder / "steps.lua").read_text()
        self._scripts = {
            file.name.removesuffix(".lua"): self._redis.register_script(steps + file.read_text())
            for file in folder.iterdir()
            if file.name.endswith(".lua")
        }

    @classmethod
    async def open(cls, url: str | None, data_dir: Path | None) -> Connection:
        """Connects to `url`, or without one to the embedded server on `data_dir`."""
        if url is None:
            if data_dir is None:
                raise StoreUnavailable("Neither a Redis URL nor a data folder is given.")
            url = await asyncio.to_thread(embedded.ensure, data_dir)
            connection = cls(url, data_dir)
        else:
            connection = cls(url, None)
        try:
            await connection.command("PING")
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def name(self) -> str:
        """Which server this is, for people; holds no password."""
        return self._name

    async def command(self, *parts: Argument) -> Any:
        """The reply to one command."""
        return await self._run(lambda: self._redis.execute_command(*parts))  # type: ignore[no-untyped-call]

    async def commands(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """The replies to many commands in one round trip; they are not one transaction."""

        async def work() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for parts in commands:
                    pipeline.execute_command(*parts)
                return await pipeline.execute()

        return await self._run(work) if commands else []

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """The reply of scripts/NAME.lua."""
        return await self._run(lambda: self._scripts[name](keys=keys, args=arguments))

    async def close(self) -> None:
        await self._redis.aclose()

    async def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work()` gives; again and again while the connection fails, then StoreUnavailable."""
        last: Exception | None = None
        started = time.monotonic()
        for delay in (None, *_DELAYS):
            if delay is not None:
                if time.monotonic() - started > _PATIENCE:
                    break
                await self._recover(delay)
            try:
                return await _heeding_cancellation(work)
            except (AuthenticationError, AuthorizationError) as error:
                raise self._unavailable(error, "Check user name and password in its URL.") from error
            except (ConnectionError, TimeoutError, OSError) as error:
                last = error
            except ResponseError as error:
                if advice := _refusal(error):
                    raise self._unavailable(error, advice) from error
                if not isinstance(error, _PASSING):
                    raise
                last = error
        assert last is not None
        raise self._unavailable(last, "Check that it runs and that its address and port are right.") from last

    async def _recover(self, delay: float) -> None:
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))
        # All idle sockets are suspect: as many tries could fail as there are of them.
        await self._redis.connection_pool.disconnect(inuse_connections=False)
        if self._data_dir is not None:
            # The address depends on the folder alone, so the pool finds the new server in the old place.
            await asyncio.to_thread(embedded.ensure, self._data_dir)

    def _unavailable(self, error: Exception, advice: str) -> StoreUnavailable:
        return StoreUnavailable(f"{self._name} does not serve: {str(error).rstrip('.')}.", suggestion=advice)


async def _heeding_cancellation(work: Callable[[], Awaitable[T]]) -> T:
    """redis-py sends by `asyncio.wait_for`, which in Python 3.11 swallows a cancellation that comes just as the
    bytes are out; a task that only talks to the store would then never end. So it is raised again here."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        return await work()
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


def _refusal(error: ResponseError) -> str | None:
    """What to do about a server that takes no commands of ours until somebody mends it."""
    if isinstance(error, NoPermissionError):
        return "Its ACL must let JOS read, write and run scripts on keys `jos:*`."
    if isinstance(error, OutOfMemoryError) or "OOM command" in str(error):  # 6.2 words it so inside a script
        return "It reached its `maxmemory`: give it more, and keep `maxmemory-policy noeviction`."
    if isinstance(error, MovedError):
        return "It is one node of a cluster: give the address of a server or proxy that holds all keys."
    if "MISCONF" in str(error):
        return "It cannot write to its disk: make room."
    return None


def _place(url: str) -> str:
    """Host and port, or path: what may be shown of a URL that can hold a password."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    try:
        return f"{parts.scheme}://{parts.hostname or '?'}:{parts.port or 6379}"
    except ValueError:  # a port that is no number
        return f"{parts.scheme}://{parts.hostname or '?'}"
