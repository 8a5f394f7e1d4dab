"""From a URL to a Storage, and the start-up check that a storage can do what JOS relies on.

May import: jos.core, jos.storage. Tests: tests/contract/test_storage.py.
"""

from __future__ import annotations

import contextlib
import secrets
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote, urlsplit

from jos.core.errors import StorageUnavailable, StorageUnfit
from jos.storage.base import Storage
from jos.storage.local import LocalStorage

SUPPORTED = "a folder path, file://, s3://bucket/prefix or gs://bucket/prefix"
RACERS = 4


def open_storage(url: str) -> Storage:
    """A folder path or `file://` URL, `s3://bucket/prefix` or `gs://bucket/prefix`. Raises StorageUnfit for
    anything else. Cheap: what is slow or may fail is left to the first use, or to `probe`."""
    scheme, found, rest = url.partition("://")
    if not found:
        if not url.strip():
            raise StorageUnfit("The storage root is empty.", suggestion=f"Give {SUPPORTED}.")
        return LocalStorage(url)
    match scheme.lower():
        case "file" | "local":
            parts = urlsplit(url)
            if parts.netloc not in ("", "localhost"):
                raise StorageUnfit(f"{url} names the host '{parts.netloc}'.", suggestion=f"Write file:///{rest}.")
            return LocalStorage(unquote(parts.path))
        case "s3" | "gs":
            from jos.storage.s3 import ObjectStorage  # loads a native library: not for those who use a folder

            return ObjectStorage(url)
        case "memory":
            raise StorageUnfit(
                "memory:// cannot hold jobs: every process would have a memory of its own, so the driver and its "
                "indexes could not see each other's files, and nothing would survive the process.",
                suggestion=f"Use {SUPPORTED}.",
            )
    raise StorageUnfit(f"Storage of the kind '{scheme}://' is not supported.", suggestion=f"Use {SUPPORTED}.")


def probe(storage: Storage) -> None:
    """Proves with a handful of requests that the storage can be written, read, and refuses a second writer: the
    commit log stands on that, and some S3 servers silently ignore the condition. Raises StorageUnavailable or
    StorageUnfit. For start-up: `jos up`, the API and each driver's first attempt."""
    key = f"probe/{secrets.token_hex(8)}"
    contents = [f"writer {n} of {RACERS} {secrets.token_hex(4)}".encode() for n in range(RACERS)]
    try:
        with ThreadPoolExecutor(RACERS) as pool:
            won = list(pool.map(lambda content: storage.create(key, content), contents))
        late = storage.create(key, b"too late")
        there = storage.read(key)
        range_read = storage.read(key, 2, 5)
    finally:
        # If storage is out of reach, the probe's own error says so; a stray probe object harms nobody.
        with contextlib.suppress(StorageUnavailable):
            storage.delete([key])
    winners = [content for content, first in zip(contents, won, strict=True) if first]
    # None may know that it won if a reply was lost on the way, but then one of them is there all the same.
    if late or len(winners) > 1 or there not in (winners or contents):
        raise StorageUnfit(
            f"{storage.url} ignores create-if-absent: {len(winners) + late} of {RACERS + 1} writers of one object were "
            "told that they were first. Two drivers of one job could both believe that they own it.",
            suggestion="Use a folder, AWS S3, Google Cloud Storage, MinIO, Cloudflare R2 or SeaweedFS 4.",
        )
    if range_read != there[2:5]:
        raise StorageUnfit(f"{storage.url} does not answer reads of byte ranges rightly.")
