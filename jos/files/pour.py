"""Bytes from the network into the storage, and back for a look, in constant memory.

May import: jos.core, jos.storage. Tests: tests/contract/test_files_post.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import google_crc32c

from jos.core.errors import BadRequest
from jos.core.files import InvalidFileSize
from jos.files.attributes import Counter
from jos.storage.base import Storage

T = TypeVar("T")

_BATCH = 1 << 20
_WINDOW = 8 << 20
_IDLE_SECONDS = 120  # without a byte: the client is gone, or wants to tie up a thread
# Threads of their own: each waits for a client as long as that takes, and must not keep others from theirs.
_pouring = ThreadPoolExecutor(256, "jos-files")
_looking = ThreadPoolExecutor(16, "jos-look")  # and slow clients do not keep an upload from being completed


async def in_thread(work: Callable[[], T]) -> T:
    """For work that takes as long as a file is large."""
    return await asyncio.get_running_loop().run_in_executor(_looking, work)


async def pour(storage: Storage, key: str, chunks: AsyncIterator[bytes], counter: Counter, limit: int) -> int:
    """Writes what comes to `key`, all or nothing; the number of bytes. Raises InvalidFileSize beyond `limit`."""
    size = 0

    def fed(batches: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal size
        for batch in batches:
            size += len(batch)
            check_size(size, limit)
            counter.feed(batch)
            yield batch

    await through(chunks, lambda batches: storage.write(key, fed(batches)))
    return size


async def through(chunks: AsyncIterator[bytes], work: Callable[[Iterator[bytes]], T]) -> T:
    """`work` in a thread, with what comes from the network in batches, each asked for when it is wanted."""
    loop = asyncio.get_running_loop()
    given_up = False

    async def batch() -> bytes:
        gathered, length = [], 0
        while length < _BATCH:
            if given_up:
                raise asyncio.CancelledError
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    chunk = await anext(chunks, None)
            except TimeoutError:
                raise BadRequest(f"Nothing came for {_IDLE_SECONDS} seconds.") from None
            if chunk is None:
                break
            gathered.append(chunk)
            length += len(chunk)
        return b"".join(gathered)

    def pulled() -> Iterator[bytes]:
        while data := asyncio.run_coroutine_threadsafe(batch(), loop).result():
            yield data

    try:
        return await loop.run_in_executor(_pouring, lambda: work(pulled()))
    except asyncio.CancelledError:
        given_up = True
        raise


def check_size(num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        raise InvalidFileSize(
            f"A file posted whole may have at most {limit:,} bytes.",
            suggestion="Send larger ones in parts: POST /v0.5/files/uploads/initiate.",
        )


def look_through(storage: Storage, key: str, num_bytes: int, counter: Counter) -> int:
    """Feeds the counter with the whole object; its CRC32C."""
    crc = 0
    for at in range(0, num_bytes, _WINDOW):
        data = storage.read(key, at, min(at + _WINDOW, num_bytes))
        crc = google_crc32c.extend(crc, data)
        counter.feed(data)
    return crc
