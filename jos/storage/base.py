"""The storage seam: a small set of blobs under one root. Two implementations, one contract suite.

Plain sync and safe to call from many threads; async callers use `asyncio.to_thread`.
May import: jos.core. Tests: tests/contract/test_storage.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Stat:
    key: str
    num_bytes: int
    fingerprint: str  # changes when the content may have changed


class Storage(Protocol):
    """Keys are relative posix paths such as `org_x/jobs/job_y/job.json`. Every method raises
    StorageUnavailable (network, credentials, full disk) with a message that says what to do."""

    @property
    def url(self) -> str:
        """What `jos.storage.open_storage` takes to open the same root in another process."""
        ...

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end). Raises NotFound."""
        ...

    def stat(self, key: str) -> Stat | None: ...

    def write(self, key: str, data: bytes | Iterable[bytes]) -> None:
        """Puts or replaces, all or nothing: no reader ever sees half, and on return the data is durable.
        An iterable is streamed in constant memory."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Puts only if nothing is there: of any number of racing calls exactly one returns True. Durable on
        return. After an unclear network failure it may return False although this very call won: a caller that
        must know compares what is there with what it wrote."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        """All objects whose key starts with `prefix` (a folder, ending in `/`), in key order, after key `after`.
        Half-written leftovers are never listed."""
        ...

    def folders(self, prefix: str) -> Iterator[str]:
        """The names of the folders right below `prefix` ("" or a folder, ending in `/`), in order. Holds all of them
        in memory."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Removes; what is not there is no error."""
        ...

    def location(self, key: str) -> str:
        """The fsspec URL or absolute path of one object, for people and for pandas."""
        ...
