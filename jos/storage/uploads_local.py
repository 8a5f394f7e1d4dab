"""Uploads in parts into a folder.

    .tmp/uploads/HANDLE/data     the file at its full length, without blocks until written; every part at its offset
    .tmp/uploads/HANDLE/lock     flock: one writer at a time may touch data or parts, for one chunk
    .tmp/uploads/HANDLE/NUMBER   one part: a ticket while it is being written, then its token and checksum

So completing means renaming `data`, however large it is. A second PUT of a part takes the part over by putting its own
ticket there; the first then finds that it lost and stops, so that no two mix, and a connection that hangs holds up
nobody. May import: jos.core, jos.storage. Tests: tests/contract/test_files_uploads.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import orjson

from jos.core.errors import BadRequest, Conflict, StorageUnavailable
from jos.core.files import Part, Received, UploadNotFound
from jos.storage.keys import RESERVED
from jos.storage.local import LocalStorage

SPARE = 64 << 20  # bytes of the disk that an upload must leave free


class LocalUploads:
    def __init__(self, storage: LocalStorage) -> None:
        self._storage = storage
        self._root = storage.root / RESERVED / "uploads"

    def checks(self, num_bytes: int) -> bool:
        return True

    def start(self, key: str, num_bytes: int) -> str:
        handle = secrets.token_hex(16)
        folder = self._root / handle
        with self._storage.told("write to", key):
            self._storage.make_folder(self._root)
            free = shutil.disk_usage(self._root).free
            if free < num_bytes + SPARE:
                raise StorageUnavailable(
                    f"The storage folder {self._storage.root} has {free:,} bytes free; the upload needs {num_bytes:,}.",
                    suggestion="Free some space or choose another storage root.",
                )
            folder.mkdir()
            (folder / "lock").touch()
            with open(folder / "data", "xb") as data:
                data.truncate(num_bytes)
        return handle

    def url(self, key: str, handle: str, part: Part, seconds: int) -> str | None:
        return None

    def writer(self, handle: str, part: Part) -> PartWriter:
        return PartWriter(self._storage, self._root / handle, part)

    def send(self, key: str, handle: str, part: Part, chunks: Iterator[bytes]) -> str:
        writer = self.writer(handle, part)
        try:
            for chunk in chunks:
                writer.write(chunk)
            return writer.done()
        finally:
            writer.close()

    def received(self, key: str, handle: str) -> Mapping[int, list[Received]] | None:
        folder = self._root / handle
        with self._storage.told("read from", key):
            try:
                with _locked(folder):
                    found = {int(name): _read(folder / name) for name in os.listdir(folder) if name.isdecimal()}
            except (UploadNotFound, FileNotFoundError):  # over, perhaps while this waited for the lock
                return None
        return {
            number: [Received(number, entry["token"], entry["num_bytes"], entry["crc32c"])]
            for number, entry in found.items()
            if "token" in entry
        }

    def finish(self, key: str, handle: str, parts: Sequence[Received]) -> None:
        """Under the lock, so that no PUT changes a part between the look at it and the rename."""
        folder = self._root / handle
        with self._storage.told("write to", key), _locked(folder):
            if not (folder / "data").exists():
                if self._storage.stat(key) is None:
                    raise UploadNotFound("This upload was aborted.")
                return
            for part in parts:
                if _read(folder / str(part.number)).get("token") != part.token:
                    raise Conflict(f"Part {part.number} is being uploaded again.", suggestion="Complete after that.")
            self._storage.place(folder / "data", key)

    def discard(self, key: str, handle: str) -> None:
        self._remove(self._root / handle)

    def tidy(self, older_than: float) -> None:
        with self._storage.told("read from"), contextlib.suppress(FileNotFoundError):
            for folder in list(self._root.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    times = [entry.stat().st_mtime for entry in (folder, folder / "lock")]
                    if max(times) < older_than:
                        self._remove(folder)

    def _remove(self, folder: Path) -> None:
        with self._storage.told("delete from"), contextlib.suppress(UploadNotFound):
            with _locked(folder):  # a writer in the middle of a chunk ends it first, and then finds nothing
                gone = folder.with_name(f"{folder.name}.gone-{secrets.token_hex(4)}")
                folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


class PartWriter:
    """Takes one part in chunks; `done` makes it count and gives its token. Without that, or after a wrong length, the
    part is as if it had never been sent."""

    def __init__(self, storage: LocalStorage, folder: Path, part: Part) -> None:
        self._storage, self._folder, self._part = storage, folder, part
        self._entry = folder / str(part.number)
        self._ticket = secrets.token_hex(8)
        self._crc, self._length = 0, 0
        self._busy = threading.Lock()  # a cancelled caller closes while its write still runs in a thread
        with storage.told("write to"), _locked(folder):
            try:
                self._data = os.open(folder / "data", os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                raise UploadNotFound("This upload is over.") from None
            # Synced, so that after a power cut no old token stands for bytes that are half overwritten.
            _write(self._entry, {"ticket": self._ticket}, sync=self._entry.exists())
        os.utime(folder / "lock")  # a sign of life for `tidy`

    def write(self, chunk: bytes) -> None:
        """Raises BadRequest when more comes than the part has."""
        if self._length + len(chunk) > self._part.length:
            raise BadRequest(
                f"Part {self._part.number} has {self._part.length} bytes; more were sent.", suggestion=_AGAIN
            )
        view, at = memoryview(chunk), self._part.offset + self._length
        with self._busy, self._storage.told("write to"), self._mine():
            while view:
                written = os.pwrite(self._data, view, at)
                view, at = view[written:], at + written
        self._crc = google_crc32c.extend(self._crc, chunk)
        self._length += len(chunk)

    def done(self) -> str:
        """The part's token. Raises BadRequest when fewer bytes came than the part has."""
        if self._length != self._part.length:
            raise BadRequest(
                f"Part {self._part.number} has {self._part.length} bytes; {self._length} were sent.", suggestion=_AGAIN
            )
        token = f"{self._crc:08x}-{self._length:x}"
        with self._busy, self._storage.told("write to"):
            os.fsync(self._data)  # not under the lock: others go on meanwhile
            with self._mine():
                _write(self._entry, {"token": token, "num_bytes": self._length, "crc32c": self._crc}, sync=True)
        return token

    def close(self) -> None:
        with self._busy:
            os.close(self._data)

    @contextlib.contextmanager
    def _mine(self) -> Iterator[None]:
        with _locked(self._folder):
            if _read(self._entry).get("ticket") != self._ticket:
                raise Conflict(f"Part {self._part.number} is being uploaded a second time; that one counts.")
            yield


_AGAIN = "Send exactly the bytes from offset to offset + length."


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UploadNotFound("This upload is over.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # frees the lock, too, as the end of the process does


def _read(entry: Path) -> dict[str, Any]:
    try:
        return dict(orjson.loads(entry.read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError):  # a power cut can leave an empty one
        return {}


def _write(entry: Path, content: dict[str, Any], sync: bool) -> None:
    """Under the lock, so nobody reads half of it."""
    handle = os.open(entry, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        os.write(handle, orjson.dumps(content))
        if sync:
            os.fsync(handle)
    finally:
        os.close(handle)
