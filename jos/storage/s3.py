"""S3-compatible object storage and Google Cloud Storage, on obstore's native calls.

Connection and credentials come from the environment, the same in every process: AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN for s3://, GOOGLE_APPLICATION_CREDENTIALS for gs://.
Buckets are addressed by path unless AWS_VIRTUAL_HOSTED_STYLE_REQUEST is true. obstore's fsspec adapter is not
used: it overwrites where it was told to create.
May import: jos.core, jos.storage.base, jos.storage.keys. Tests: tests/contract/test_storage.py.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions as obstore_errors
from obstore.store import GCSStore, S3Store

from jos.core.errors import InputInvalid, JosError, ObjectMissing, StorageUnavailable, StorageUnfit
from jos.storage.base import Stat
from jos.storage.keys import check_key, check_prefix

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PART = 8 << 20  # bytes per part of a streamed upload; S3 allows 10,000 parts, so 80 GB
UPLOADS = 2  # parts in flight per stream
DELETES = 1000  # keys per request, S3's most
# What an endpoint that cannot be reached may cost: 10 s of retries and the try under way, so at most 13 s. One that
# accepts a connection and then says nothing: 20 s.
_CLIENT = {
    "connect_timeout": timedelta(seconds=3),
    "read_timeout": timedelta(seconds=20),
    "timeout": timedelta(seconds=600),
}
_RETRY = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=3), "base": 2},
}
_WALL_OF_TEXT = "\n\nDebug source"


@dataclass(frozen=True)
class Bucket:
    """One bucket and how it is reached; `store` is obstore's client, safe in many threads."""

    scheme: str
    name: str
    endpoint: str
    store: Any

    @property
    def words(self) -> str:
        return f"bucket '{self.name}' at {self.endpoint}"


def bucket(scheme: str, name: str) -> Bucket:
    """The bucket's client, one per process and environment."""
    variables = sorted((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "GOOGLE_")))
    return _bucket(scheme, name, tuple(variables))


@lru_cache(maxsize=32)
def _bucket(scheme: str, name: str, variables: tuple[tuple[str, str], ...]) -> Bucket:
    env = dict(variables)
    if scheme == "gs":
        store: Any = GCSStore(name, client_options=_CLIENT, retry_config=_RETRY)
        return Bucket(scheme, name, "Google Cloud Storage", store)
    endpoint = (env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or "").rstrip("/")
    config = {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint} if endpoint else {}
    client = {**_CLIENT, "allow_http": endpoint.startswith("http://")}
    try:
        store = S3Store(name, config=config, client_options=client, retry_config=_RETRY)
    except (obstore_errors.BaseError, ValueError) as error:
        raise StorageUnfit(f"s3://{name} cannot be opened: {_short(error)}.") from error
    return Bucket(scheme, name, endpoint or "AWS S3", store)


def split_url(url: str) -> tuple[Bucket, str]:
    """`s3://bucket/some/key` -> the bucket and `some/key`."""
    scheme, _, rest = url.partition("://")
    name, _, key = rest.partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}", name):
        raise StorageUnfit(f"'{url}' names no bucket.", suggestion="Write s3://bucket/prefix or gs://bucket/prefix.")
    return bucket(scheme.lower(), name), key


class ObjectStorage:
    """Storage under a prefix of a bucket."""

    def __init__(self, url: str) -> None:
        self._bucket, prefix = split_url(url)
        prefix = prefix.strip("/")
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        self._store = self._bucket.store

    @property
    def url(self) -> str:
        return f"{self._bucket.scheme}://{self._bucket.name}/{self._prefix}".rstrip("/")

    def __repr__(self) -> str:
        return f"ObjectStorage({self.url!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (ObjectStorage, (self.url,))  # credentials stay out of pickles: each process has its environment

    def location(self, key: str) -> str:
        return f"{self._bucket.scheme}://{self._bucket.name}/{self._at(key)}"

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        if end is not None and end <= start:
            if self.stat(key) is None:
                raise ObjectMissing(f"There is no {self.location(key)}.")
            return b""
        return read_object(self._bucket, self._at(key), start, end)

    def stat(self, key: str) -> Stat | None:
        return stat_object(self._bucket, self._at(key), key)

    def write(self, key: str, data: bytes | Iterable[bytes]) -> None:
        at = self._at(key)
        if not isinstance(data, bytes):
            chunks = iter(data)
            first = list(_until(chunks, PART))
            size = sum(map(len, first))
            if size > PART:
                with told(self._bucket, at):
                    self._put(at, _of_at_most_a_part(itertools.chain(first, chunks)), True)
                return
            data = b"".join(first)
        with told(self._bucket, at):
            self._put(at, data, len(data) > PART)

    def _put(self, at: str, data: bytes | Iterator[bytes], multipart: bool) -> None:
        obstore.put(self._store, at, data, use_multipart=multipart, chunk_size=PART, max_concurrency=UPLOADS)

    def create(self, key: str, data: bytes) -> bool:
        at = self._at(key)
        with told(self._bucket, at):
            try:
                obstore.put(self._store, at, data, mode="create", use_multipart=False)
            except (obstore_errors.AlreadyExistsError, obstore_errors.PreconditionError):
                return False
            except obstore_errors.BaseError as error:
                if _status(error) == 501:
                    raise _no_conditions(self._bucket) from error
                raise
        return True

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        """One folder at a time: SeaweedFS lists "a/b" before "a-b", contrary to S3, and folder by folder the
        order can be put right. Holds the names of one folder per level in memory, no more."""
        check_prefix(prefix)
        return self._walk(prefix, after)

    def delete(self, keys: Iterable[str]) -> None:
        ats = (self._at(key) for key in keys)
        while batch := list(itertools.islice(ats, DELETES)):
            if self._bucket.scheme == "s3":
                with told(self._bucket, batch[0]):
                    obstore.delete(self._store, batch)
                continue
            for at in batch:  # GCS has no request for many, and an error for what is not there
                with told(self._bucket, at), contextlib.suppress(FileNotFoundError):
                    obstore.delete(self._store, at)

    def folders(self, prefix: str) -> Iterator[str]:
        check_prefix(prefix)
        with told(self._bucket, self._prefix + prefix):
            found = obstore.list_with_delimiter(self._store, self._prefix + prefix or None)
        yield from sorted(folder.rstrip("/").rpartition("/")[2] for folder in found["common_prefixes"])

    # --- for presigned URLs -----------------------------------------------------------------------------

    @property
    def bucket(self) -> Bucket:
        return self._bucket

    def at(self, key: str) -> str:
        """The object's name in the bucket; of "" the prefix that all names start with."""
        return self._at(key) if key else self._prefix

    def signed_url(self, key: str, seconds: int) -> str:
        """A URL to read one object, signed by obstore: for stores that botocore does not speak to."""
        with told(self._bucket, self._at(key)):
            return str(obstore.sign(self._store, "GET", self._at(key), timedelta(seconds=seconds)))

    # --- inside ---------------------------------------------------------------------------------------

    def _at(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _walk(self, prefix: str, after: str) -> Iterator[Stat]:
        with told(self._bucket, self._prefix + prefix):
            found = obstore.list_with_delimiter(self._store, self._prefix + prefix or None)
        cut = len(self._prefix)
        names: list[tuple[str, Any]] = [(f"{folder.rstrip('/')}/"[cut:], None) for folder in found["common_prefixes"]]
        names += [(meta["path"][cut:], meta) for meta in found["objects"] if not _marks_folder(meta, prefix, cut)]
        names.sort(key=lambda name: name[0])
        for key, meta in names:
            if meta is not None:
                if key > after:
                    yield _stat(key, meta)
            elif key > after or after.startswith(key):
                yield from self._walk(key, after)


# --- single objects, also for inputs outside the storage root ---------------------------------------------


def stat_object(where: Bucket, at: str, key: str) -> Stat | None:
    """None if there is no such object."""
    with told(where, at):
        try:
            return _stat(key, obstore.head(where.store, at))
        except FileNotFoundError:  # the answer to HEAD has no body, so it cannot tell a missing bucket
            return None


def read_object(where: Bucket, at: str, start: int = 0, end: int | None = None, etag: str | None = None) -> bytes:
    """Bytes [start, end). With `etag`, raises InputInvalid if the object is another one by now."""
    options: dict[str, Any] = {"if_match": etag} if etag else {}
    if start or end is not None:
        options["range"] = {"offset": start} if end is None else (start, end)
    with told(where, at):
        try:
            return bytes(obstore.get(where.store, at, options=options or None).bytes())
        except obstore_errors.PreconditionError as error:
            raise InputInvalid(f"{where.scheme}://{where.name}/{at} has been replaced by another version.") from error
        except obstore_errors.BaseError as error:
            if _status(error) == 416:  # past the end
                return b""
            raise


class ObjectFile(io.RawIOBase):
    """A seekable file over ranged reads of one version of an object. Wrap it in a ReadAhead."""

    def __init__(self, where: Bucket, at: str, size: int, etag: str | None) -> None:
        self._where, self._key, self._size, self._etag = where, at, size, etag
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("seek before the start of the file")
        self._position = base + offset
        return self._position

    def readall(self) -> bytes:
        """One request; Python's own way asks for 8 KiB at a time."""
        if self._position >= self._size:
            return b""
        data = read_object(self._where, self._key, self._position, self._size, self._etag)
        self._position += len(data)
        return data

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._size)
        if end <= self._position:
            return 0
        data = read_object(self._where, self._key, self._position, end, self._etag)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


class ReadAhead(io.BufferedReader):
    """A BufferedReader that fills its buffer for `read1`, too: Python's asks storage for just the 8 KiB that a
    TextIOWrapper (csv, pandas) wants next, a request each."""

    def read1(self, size: int = -1, /) -> bytes:
        self.peek(1)
        return super().read1(size)

    def readinto1(self, buffer: WriteableBuffer, /) -> int:
        self.peek(1)
        return super().readinto1(buffer)


def _stat(key: str, meta: Any) -> Stat:
    return Stat(key, meta["size"], meta["e_tag"] or meta["last_modified"].isoformat())


def _marks_folder(meta: Any, prefix: str, cut: int) -> bool:
    """Some stores list a folder as an object: the one listed itself, or (SeaweedFS) an empty one, without ETag."""
    return meta["path"][cut:] + "/" == prefix or (meta["size"] == 0 and meta["e_tag"] in (None, "", '""'))


def _until(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    while size <= limit and (chunk := next(chunks, None)) is not None:
        size += len(chunk)
        yield chunk


def _of_at_most_a_part(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for at in range(0, len(chunk), PART):
            yield chunk[at : at + PART]


# --- errors -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def told(where: Bucket, key: str) -> Iterator[None]:
    """obstore's errors -> errors that name endpoint and bucket and say what to check."""
    try:
        yield
    except FileNotFoundError as error:
        if not hasattr(error, "errno") or error.errno is not None:  # a real one, from the caller's own iterable
            raise
        raise _not_found(where, key, str(error)) from None
    except obstore_errors.BaseError as error:
        raise _unavailable(where, error) from error


def _not_found(where: Bucket, key: str, text: str) -> JosError:
    if "NoSuchBucket" in text:
        return _no_bucket(where)
    if where.scheme == "s3" and "NoSuchKey" not in text:  # an empty log must not be read out of a proxy's 404
        return StorageUnavailable(
            f"What answers at {where.endpoint} does not speak S3: it says 404 without an S3 error code.",
            suggestion="Check AWS_ENDPOINT_URL, and any proxy in between.",
        )
    return ObjectMissing(f"There is no {where.scheme}://{where.name}/{key}.")


def _unavailable(where: Bucket, error: Exception) -> JosError:
    text = str(error)
    status, code = _status(error), _code(text)
    keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if where.scheme == "s3" else "GOOGLE_APPLICATION_CREDENTIALS"
    if "169.254.169.254" in text or "metadata.google" in text:  # obstore's last resort
        return StorageUnavailable(f"There are no credentials for {where.words}.", suggestion=f"Set {keys}.")
    if code == "NoSuchBucket":
        return _no_bucket(where)
    if status in (401, 403) or isinstance(
        error, obstore_errors.PermissionDeniedError | obstore_errors.UnauthenticatedError
    ):
        return StorageUnavailable(
            f"Access to {where.words} is refused ({code or status or 'no reason given'}).",
            suggestion=f"Check {keys}, and that they may list, read, write and delete in this bucket.",
        )
    if status in (301, 307, 400) and code in ("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed"):
        return StorageUnavailable(f"{where.words} is in another region.", suggestion="Set AWS_REGION to that region.")
    if status is None:
        return StorageUnavailable(
            f"Cannot reach {where.words}: {_short(error)}.",
            suggestion="Check that the storage is up and this host can reach it, and AWS_ENDPOINT_URL and AWS_REGION.",
        )
    return StorageUnavailable(f"{where.words} answered {status} {code}.", suggestion="See the storage's own log.")


def _no_bucket(where: Bucket) -> StorageUnavailable:
    return StorageUnavailable(
        f"There is no {where.words}.", suggestion="Create it, or check the storage root and AWS_ENDPOINT_URL."
    )


def _no_conditions(where: Bucket) -> StorageUnfit:
    return StorageUnfit(
        f"{where.words} does not know create-if-absent (If-None-Match), which keeps two drivers of one job apart.",
        suggestion="Use AWS S3, Google Cloud Storage, MinIO, Cloudflare R2 or SeaweedFS 4.",
    )


def _status(error: Exception) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error).partition(_WALL_OF_TEXT)[0])
    return int(found[1]) if found else None


def _code(text: str) -> str:
    found = re.search(r"<Code>(\w+)</Code>", text)
    return found[1] if found else ""


def _short(error: Exception) -> str:
    """The first line of obstore's wall of text, without the request and the retries it names."""
    line = str(error).partition(_WALL_OF_TEXT)[0].splitlines()[0]
    line = re.sub(r"^Generic \w+ error: |Error performing (list request: )?|[A-Z]+ \S+ in [\d.]+\S*s", "", line)
    return re.sub(r"^, after .* - ", "", line).strip(" -.")
