"""The seam of uploads in parts: how a large file gets into the storage without passing through anybody's memory.

On S3 the parts go to the store by its own presigned URLs; in a folder the API writes them, each at its place in one
file. Sync and safe in many threads and processes, like jos.storage.base. One contract suite for both.
May import: jos.core, jos.storage. Tests: tests/contract/test_files_uploads.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from jos.core.errors import StorageUnfit
from jos.core.files import Part, Received
from jos.storage.base import Storage
from jos.storage.local import LocalStorage
from jos.storage.uploads_local import LocalUploads, PartWriter


class Uploads(Protocol):
    """`key` is where the file is to be, `handle` what `start` gave."""

    def checks(self, num_bytes: int) -> bool:
        """Whether a checksum of a whole file of this size is looked at."""
        ...

    def start(self, key: str, num_bytes: int) -> str: ...

    def url(self, key: str, handle: str, part: Part, seconds: int) -> str | None:
        """The storage's own URL for one part; None: the API takes it."""
        ...

    def writer(self, handle: str, part: Part) -> PartWriter:
        """What takes one part where there is no URL. Raises UploadNotFound."""
        ...

    def send(self, key: str, handle: str, part: Part, chunks: Iterator[bytes]) -> str:
        """Puts one part there, which came through this process; its token. Raises BadRequest when it has another
        length, and then it does not count."""
        ...

    def received(self, key: str, handle: str) -> Mapping[int, list[Received]] | None:
        """What is there of each part (several answers where the storage keeps older tries); None: there is no such
        upload, because it was finished or aborted."""
        ...

    def finish(self, key: str, handle: str, parts: Sequence[Received]) -> None:
        """Makes the object of its parts, without copying. Done twice it does no harm. Raises UploadNotFound where
        there is neither the upload nor an object."""
        ...

    def discard(self, key: str, handle: str) -> None:
        """Frees what an upload that is over still holds: all of an aborted one, the traces of a finished one."""
        ...

    def tidy(self, older_than: float) -> None:
        """Discards uploads that nothing touched since this Unix time, e.g. after Redis lost their records."""
        ...


def takes_parts(storage: Storage) -> bool:
    return isinstance(storage, LocalStorage) or storage.url.startswith("s3://")


def open_uploads(storage: Storage, public_endpoint: str | None = None) -> Uploads:
    if isinstance(storage, LocalStorage):
        return LocalUploads(storage)
    if not takes_parts(storage):
        raise StorageUnfit(
            f"{storage.url} takes no uploads in parts.",
            suggestion="Post the file whole (POST /v0.5/files), or use a folder or s3://bucket/prefix as storage.",
        )
    from jos.storage.s3 import ObjectStorage  # loads native libraries: not for those who use a folder
    from jos.storage.uploads_s3 import S3Uploads

    assert isinstance(storage, ObjectStorage)
    return S3Uploads(storage, public_endpoint)
