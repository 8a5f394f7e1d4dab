"""Inputs: files named by an absolute path or an fsspec URL, opened by whoever works on them.

An input is pinned by its fingerprint when the job is created. Each opening checks it, so that no job mixes two
versions of a file; a changed or vanished file fails alone, as InputInvalid. One whose checksum is known (a checkpoint)
is compared whenever it is read whole, before anybody sees a byte of it.
May import: jos.core, jos.storage. Implements jos.worker.Source. Tests: tests/contract/test_source.py.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

from jos.core.errors import InputInvalid, NotFound, ObjectMissing, StorageUnavailable, StorageUnfit
from jos.core.model import JobInput

READ_AHEAD = 4 << 20  # bytes per request of a stream over an object
_IN_MEMORY = 64 << 20  # bytes of a compared file that are held in memory; a larger one is held on disk


@dataclass(frozen=True)
class FileSource:
    """One input of a job. Picklable; holds nothing open."""

    id: str
    filename: str
    url: str
    num_bytes: int
    fingerprint: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None  # of the whole content, in hexadecimal

    def open(self) -> IO[bytes]:
        """A seekable binary stream of the version that the job was created with."""
        return self._open() if self.sha256 is None else self._compared(self.sha256)

    def _compared(self, sha256: str) -> IO[bytes]:
        """The content in a place where nothing changes it any more, once it has the right checksum."""
        copy, digest = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY), hashlib.sha256()  # noqa: SIM115
        try:
            with self._open() as file:
                while data := file.read(READ_AHEAD):
                    digest.update(data)
                    copy.write(data)
            if digest.hexdigest() != sha256:
                raise InputInvalid(
                    f"{self.filename} ({self.url}) is damaged: its content does not have the checksum that it was "
                    "saved with.",
                    suggestion="Restore it from a copy, or make it anew: run the training job again.",
                )
            copy.seek(0)
        except BaseException:
            copy.close()
            raise
        return cast("IO[bytes]", copy)

    def _open(self) -> IO[bytes]:
        kind, place = locate(self.url)
        if kind == "file":
            return self._open_file(place)
        num_bytes, fingerprint, opened = _opened_object(place) if kind == "object" else _opened_by_fsspec(place)
        try:
            self._check(num_bytes, fingerprint)
        except InputInvalid:
            opened.close()
            raise
        return opened

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes [start, end); shorter at the end of the file. Checked like an opening."""
        start, end = max(start, 0), min(end, self.num_bytes)
        if self.sha256 is not None and (start, end) == (0, self.num_bytes):
            with self._compared(self.sha256) as file:
                return file.read()
        kind, place = locate(self.url)
        if kind == "object" and start < end and (etag := _etag(self.fingerprint)):
            from jos.storage.s3 import read_object, split_url

            with _told(self.url):
                return read_object(*split_url(place), start, end, etag)  # one request reads and checks
        with self._open() as file:
            file.seek(start)
            return file.read(max(end - start, 0))

    def _open_file(self, path: str) -> IO[bytes]:
        with _told(self.url):
            file = open(path, "rb")  # noqa: SIM115 - the caller closes it
            try:
                found = os.fstat(file.fileno())
                self._check(found.st_size, _file_fingerprint(found))
            except BaseException:
                file.close()
                raise
            return file

    def _check(self, num_bytes: int, fingerprint: str) -> None:
        if (num_bytes, fingerprint) != (self.num_bytes, self.fingerprint):
            sizes = "" if num_bytes == self.num_bytes else f": {self.num_bytes} bytes then, {num_bytes} now"
            raise InputInvalid(
                f"{self.filename} ({self.url}) was changed after the job was created{sizes}.",
                suggestion="Create a new job for the new content.",
            )


def source_of(one: JobInput) -> FileSource:
    return FileSource(one.id, one.filename, one.url, one.num_bytes, one.fingerprint, one.metadata, one.sha256)


def stat_input(url: str) -> tuple[int, str]:
    """(num_bytes, fingerprint) of a file that a job may be created for. Raises NotFound if there is none,
    InputInvalid for a folder or what may not be read, StorageUnavailable if it cannot be reached."""
    kind, place = locate(url)
    try:
        with _told(place):
            if kind == "file":
                if not stat.S_ISREG(mode := os.stat(place).st_mode):
                    kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
                    raise InputInvalid(f"{place} is {kind}, not a file.")
                with open(place, "rb") as file:
                    found = os.fstat(file.fileno())
                return found.st_size, _file_fingerprint(found)
            num_bytes, fingerprint, opened = _opened_object(place) if kind == "object" else _opened_by_fsspec(place)
            opened.close()
            return num_bytes, fingerprint
    except Missing as error:
        raise ObjectMissing(error.message, suggestion=error.suggestion) from error


def locate(url: str) -> tuple[str, str]:
    """("file", absolute path), ("object", s3:// or gs:// URL) or ("fsspec", any other URL)."""
    scheme, found, _ = url.partition("://")
    if not found:
        return "file", os.path.abspath(os.path.expanduser(url))
    match scheme.lower():
        case "file" | "local":
            return "file", os.path.abspath(unquote(urlsplit(url).path))
        case "s3" | "gs":
            return "object", url
        case "memory":
            raise InputInvalid(f"{url} exists in one process only; an index could not read it.")
    return "fsspec", url


class Missing(InputInvalid):
    """There is no such file. While a job runs that is the input's fault, before it NotFound."""


def _file_fingerprint(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_mtime_ns}"


def _etag(fingerprint: str) -> str | None:
    return fingerprint if fingerprint.startswith('"') else None  # stores without ETags are told by their time


def _opened_object(url: str) -> tuple[int, str, IO[bytes]]:
    from jos.storage.s3 import ObjectFile, ReadAhead, split_url, stat_object

    with _told(url):
        where, key = split_url(url)
        if not key or key.endswith("/"):
            raise InputInvalid(f"{url} is a folder, not a file.")
        found = stat_object(where, key, key)
        if found is None:
            raise FileNotFoundError
        raw = ObjectFile(where, key, found.num_bytes, _etag(found.fingerprint))
        return found.num_bytes, found.fingerprint, ReadAhead(raw, READ_AHEAD)


def _opened_by_fsspec(url: str) -> tuple[int, str, IO[bytes]]:
    import fsspec

    with _told(url):
        fs, path = fsspec.core.url_to_fs(url)
        fs.invalidate_cache()
        info = _info(fs, path, url)
        if info.get("type") == "directory":
            raise InputInvalid(f"{url} is a folder, not a file.")
        if info.get("size") is None:
            raise InputInvalid(f"{url} has no known size.", suggestion="Download it and name the local copy.")
        marks = ("ETag", "etag", "mtime", "modified", "LastModified", "last_modified", "updated")
        mark = next((str(info[m]) for m in marks if info.get(m)), "")
        fingerprint = f"{info['size']}-{hashlib.sha256(mark.encode()).hexdigest()[:16]}"
        return int(info["size"]), fingerprint, cast("IO[bytes]", fs.open(path, "rb", block_size=READ_AHEAD))


def _info(fs: Any, path: str, url: str) -> Mapping[str, Any]:
    try:
        return cast("Mapping[str, Any]", fs.info(path))
    except FileNotFoundError as error:  # fsspec says so of a web server that cannot be reached, too
        cause = error.__cause__
        if cause is not None and getattr(cause, "status", None) not in (404, 410):
            raise StorageUnavailable(f"{url} cannot be read just now: {cause}.") from error
        raise


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Anything that keeps us from reading -> an error that names the file."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, NotFound) as error:
        raise Missing(f"There is no file {url}.") from error
    except IsADirectoryError as error:
        raise InputInvalid(f"{url} is a folder, not a file.") from error
    except PermissionError as error:
        raise InputInvalid(
            f"{url} may not be read.", suggestion="Give the user that runs JOS permission to read it."
        ) from error
    except (ValueError, ImportError) as error:  # fsspec: an unknown scheme, or one whose library is missing
        raise InputInvalid(f"{url} cannot be opened: {error}.") from error
    except StorageUnfit as error:
        raise InputInvalid(error.message, suggestion=error.suggestion) from error
    except OSError as error:
        raise StorageUnavailable(f"{url} cannot be read just now: {error.strerror or error}.") from error
