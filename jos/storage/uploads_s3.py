"""Uploads in parts into S3: multipart uploads, their parts presigned, so that no byte of them passes through JOS.

Also a file of one part goes as a multipart upload: its URL dies with the upload, where a presigned PUT of the object
itself could overwrite a registered file until it expires. Signed by botocore (obstore signs no query of its own), with
the part's length, so that S3 itself refuses more or fewer bytes.
May import: botocore, httpx2, jos.core, jos.storage. Tests: tests/contract/test_files_uploads.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import botocore.session
import httpx2
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from jos.core.errors import BadRequest, JosError, StorageUnavailable, StorageUnfit
from jos.core.files import OCTETS, Part, Received, UploadNotFound
from jos.storage.s3 import ObjectStorage
from jos.storage.uploads_local import PartWriter

MAX_READ_BACK = 5_000_000_000  # bytes that are read once more for a checksum; S3 knows none of the whole
_SEND_SECONDS = 3600  # that one part may take
_GONE = ("NoSuchUpload", "NoSuchKey", "404")


class S3Uploads:
    def __init__(self, storage: ObjectStorage, public_endpoint: str | None = None) -> None:
        """`public_endpoint`: where clients reach the store, if not where this process does."""
        self._storage, self._public = storage, public_endpoint
        self._bucket = storage.bucket.name

    def checks(self, num_bytes: int) -> bool:
        return num_bytes <= MAX_READ_BACK

    def start(self, key: str, num_bytes: int) -> str:
        with self._told():
            return str(self._client().create_multipart_upload(**self._at(key), ContentType=OCTETS)["UploadId"])

    def url(self, key: str, handle: str, part: Part, seconds: int) -> str | None:
        where = {**self._at(key), "UploadId": handle, "PartNumber": part.number, "ContentLength": part.length}
        with self._told():
            return presigned(self._public, "upload_part", where, seconds)

    def writer(self, handle: str, part: Part) -> PartWriter:
        raise BadRequest("The parts of this upload go to the storage's own URLs.")

    def send(self, key: str, handle: str, part: Part, chunks: Iterator[bytes]) -> str:
        """By the URL that a client would get, because botocore itself sends only what it can read twice."""
        where = {**self._at(key), "UploadId": handle, "PartNumber": part.number, "ContentLength": part.length}
        with self._told():
            url = presigned(None, "upload_part", where, _SEND_SECONDS)
        try:
            headers = {"Content-Length": str(part.length)}
            answer = _http().put(url, content=_exactly(part, chunks), headers=headers)
        except httpx2.HTTPError as error:
            raise _unavailable(self._storage.bucket.words, error) from error
        if answer.status_code == 404:
            raise UploadNotFound("This upload is over.")
        if answer.status_code != 200:
            raise StorageUnavailable(f"{self._storage.bucket.words} refuses a part ({answer.status_code}).")
        return answer.headers["ETag"].strip('"')

    def received(self, key: str, handle: str) -> Mapping[int, list[Received]] | None:
        found: dict[int, list[Received]] = {}
        more: dict[str, Any] = {}
        while True:
            with self._told():
                try:
                    answer = self._client().list_parts(**self._at(key), UploadId=handle, **more)
                except ClientError as error:
                    if _code(error) in _GONE:
                        return None
                    raise
            for part in answer.get("Parts", ()):
                one = Received(part["PartNumber"], part["ETag"].strip('"'), part["Size"])
                found.setdefault(one.number, []).append(one)
            if not answer.get("IsTruncated"):
                return found
            more = {"PartNumberMarker": answer["NextPartNumberMarker"]}

    def finish(self, key: str, handle: str, parts: Sequence[Received]) -> None:
        chosen = [{"PartNumber": part.number, "ETag": f'"{part.token}"'} for part in parts]
        with self._told():
            try:
                self._client().complete_multipart_upload(
                    **self._at(key), UploadId=handle, MultipartUpload={"Parts": chosen}
                )
            except ClientError as error:
                if _code(error) in ("InvalidPart", "InvalidPartOrder", "EntityTooSmall"):
                    raise BadRequest(f"The storage does not accept the parts: {_code(error)}.") from error
                if _code(error) not in _GONE:
                    raise
                if self._storage.stat(key) is None:
                    raise UploadNotFound("This upload was aborted.") from error

    def discard(self, key: str, handle: str) -> None:
        with self._told():
            try:
                self._client().abort_multipart_upload(**self._at(key), UploadId=handle)
            except ClientError as error:
                if _code(error) not in _GONE:
                    raise

    def tidy(self, older_than: float) -> None:
        more: dict[str, Any] = {}
        prefix = self._storage.at("")
        while True:
            with self._told():
                answer = self._client().list_multipart_uploads(Bucket=self._bucket, Prefix=prefix, **more)
            for upload in answer.get("Uploads", ()):
                if upload["Initiated"] < datetime.fromtimestamp(older_than, UTC) and "/files/" in upload["Key"]:
                    self.discard(upload["Key"][len(prefix) :], upload["UploadId"])
            if not answer.get("IsTruncated"):
                return
            more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    # --- inside ---------------------------------------------------------------------------------------

    def _client(self) -> Any:
        return client(None)

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._storage.at(key)}

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except NoCredentialsError as error:
            raise StorageUnavailable(
                f"There are no credentials for {self._storage.bucket.words}.",
                suggestion="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
            ) from error
        except (BotoCoreError, ClientError) as error:
            raise _unavailable(self._storage.bucket.words, error) from error


def _exactly(part: Part, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Raises BadRequest in the middle of the request when there are more or fewer: the store drops what it has."""
    length = 0
    for chunk in chunks:
        length += len(chunk)
        if length > part.length:
            raise BadRequest(f"Part {part.number} has {part.length} bytes; more were sent.")
        yield chunk
    if length < part.length:
        raise BadRequest(f"Part {part.number} has {part.length} bytes; {length} were sent.")


@lru_cache(maxsize=1)
def _http() -> httpx2.Client:
    """One per process, safe in many threads. A part is worth a connection of its own; none stays open."""
    return httpx2.Client(timeout=httpx2.Timeout(60, pool=None), limits=httpx2.Limits(max_keepalive_connections=0))


def presigned(public_endpoint: str | None, method: str, where: Mapping[str, Any], seconds: int) -> str:
    """A URL that carries its own proof. No request is made."""
    return str(client(public_endpoint).generate_presigned_url(method, Params=where, ExpiresIn=seconds))


def client(public_endpoint: str | None) -> Any:
    """botocore's S3 client, one per process and environment, safe in many threads."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    endpoint = public_endpoint or next((os.environ[n] for n in names if os.environ.get(n)), None)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    virtual = os.environ.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("true", "1")
    keys = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))
    return _client(endpoint, region, "virtual" if virtual else "path", keys)


@lru_cache(maxsize=8)
def _client(endpoint: str | None, region: str, addressing: str, _keys: tuple[tuple[str, str], ...]) -> Any:
    if endpoint is not None and "://" not in endpoint:
        raise StorageUnfit(f"'{endpoint}' is no endpoint.", suggestion="Write http://host:port or https://host.")
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": addressing},
        connect_timeout=3,
        read_timeout=60,
        retries={"max_attempts": 4, "mode": "standard"},
        # botocore's newer default adds a checksum header to what it signs, which a plain PUT does not send
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = botocore.session.get_session()
    return session.create_client("s3", region_name=region, endpoint_url=endpoint, config=config)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _unavailable(words: str, error: Exception) -> JosError:
    code = _code(error) if isinstance(error, ClientError) else str(error)
    if code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return StorageUnavailable(
            f"Access to {words} is refused ({code}).",
            suggestion="Check the AWS_ variables, and that they may list, read, write and delete in this bucket.",
        )
    return StorageUnavailable(
        f"{words} does not do as asked: {code}.", suggestion="Check that it is up and this host can reach it."
    )
