"""Moves the bytes of one file, up or down, with constant memory.

Up: parts in parallel by a bounded number of threads, each checkpointed as it finishes, so that a second call after a
crash sends only what is missing; URLs are renewed when they expire; the CRC32C of the whole comes out of those of the
parts. Down: into a hidden file beside the target, taken up by Range after a lost connection, complete or not there.
May import: httpx2, jos.client.{http,crc}. Tests: tests/unit/test_client_transfer.py.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import httpx2

from jos.client import crc
from jos.client.errors import ServerFault, ServerUnreachable
from jos.client.http import Http, ambiguous
from jos.core.errors import BadRequest, Conflict, Forbidden, JosError, NotFound, TooManyRequests
from jos.wire import (
    FileComplete,
    FileRecord,
    NumCheckpointed,
    PartNumbers,
    PartToken,
    PartTokens,
    Upload,
    UploadComplete,
    UploadPart,
    UploadParts,
    UploadStart,
)

CHUNK = 1 << 20
PIECE = 256 << 20  # local bytes that one thread sums up in one go
RENEW_BEFORE = timedelta(seconds=60)
MOST_RENEWALS = 5
WRITE_TIMEOUT = httpx2.Timeout(120.0, connect=10.0)
COMPLETE_TIMEOUT = httpx2.Timeout(600.0, connect=10.0)  # the server may read all of a large file once more

Add = Callable[[int], object]  # told of bytes as they move; negative when a part starts over


@dataclass(frozen=True)
class Piece:
    """A stretch of the file whose checksum is known."""

    offset: int
    length: int
    checksum: int


@dataclass(frozen=True)
class Sent:
    piece: Piece
    token: PartToken


class Stopped(Exception):
    """Another part failed, or the caller wants to end: this one is not sent to its end."""


def gaps(total: int, parts: list[UploadPart]) -> list[tuple[int, int]]:
    """(offset, length) of what is not among the parts to send, because an earlier run sent it; in pieces."""
    found, at = [], 0
    for offset, length in [*sorted((p.offset, p.length) for p in parts), (total, 0)]:
        while at < offset:
            step = min(PIECE, offset - at)
            found.append((at, step))
            at += step
        at = offset + length
    return found


def renewal_due(part: UploadPart, now: datetime) -> bool:
    return part.expires_at - now < RENEW_BEFORE


class Sending:
    """One upload, from its initiation to a registered file."""

    def __init__(self, http: Http, path: Path, start: UploadStart, workers: int, add: Add) -> None:
        self.http, self.path, self.start, self.workers, self.add = http, path, start, workers, add
        self.upload: Upload | None = None
        self.stop = threading.Event()

    def run(self) -> FileComplete:
        """Raises Conflict when the name is taken. Whatever else ends it early, the same call later goes on."""
        before = self.path.stat()
        upload = self.upload = self.http.post("/files/uploads/initiate", Upload, self.start, twice=True)
        with self.path.open("rb") as file:
            pieces, tokens = self._send(upload, file.fileno())
        after = self.path.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            with suppress(JosError):
                self.abort(upload.upload_id)
            raise BadRequest(f"{self.path} changed while it was uploaded.", suggestion="Upload it again.")
        whole = crc.of_parts((p.checksum, p.length) for p in sorted(pieces, key=lambda p: p.offset))
        return self._complete(upload, tokens, crc.text(whole) if upload.integrity_algorithm == "crc32c" else None)

    def abort(self, upload_id: str) -> None:
        self.http.send("POST", f"/files/uploads/{upload_id}/abort", json={}, repeatable=True)

    def _send(self, upload: Upload, file: int) -> tuple[list[Piece], list[PartToken]]:
        """All parts, at most `workers` at once; what is done is checkpointed while the rest goes on."""
        pieces: list[Piece] = []
        tokens: list[PartToken] = []
        kept = 0  # tokens that are checkpointed
        tasks: Iterator[Callable[[], Piece | Sent]] = self._tasks(upload, file)
        with ThreadPoolExecutor(self.workers, "jos-upload") as pool:
            running: set[Future[Piece | Sent]] = set()
            try:
                while True:
                    while len(running) < self.workers and (task := next(tasks, None)) is not None:
                        running.add(pool.submit(task))
                    if not running:
                        return pieces, tokens  # the last ones go with `complete`
                    kept = self._checkpoint(upload, tokens, kept)
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for result in (one.result() for one in done):
                        if isinstance(result, Sent):
                            tokens.append(result.token)
                        pieces.append(result.piece if isinstance(result, Sent) else result)
            except BaseException:
                self.stop.set()
                with suppress(JosError):
                    self._checkpoint(upload, tokens, kept)
                raise

    def _tasks(self, upload: Upload, file: int) -> Iterator[Callable[[], Piece | Sent]]:
        for part in upload.parts:
            yield lambda part=part: self._put(upload, part, file)  # type: ignore[misc]
        for offset, length in gaps(upload.total_bytes, upload.parts):
            self.add(length)  # there already
            if upload.integrity_algorithm == "crc32c":
                yield lambda offset=offset, length=length: self._sum(file, offset, length)  # type: ignore[misc]

    def _checkpoint(self, upload: Upload, tokens: list[PartToken], kept: int) -> int:
        if len(tokens) > kept:
            path = f"/files/uploads/{upload.upload_id}/parts/checkpoint"
            self.http.post(path, NumCheckpointed, PartTokens(parts=tokens[kept:]), twice=True)
        return len(tokens)

    # --- one part, in a thread of the pool ---

    def _put(self, upload: Upload, part: UploadPart, file: int) -> Sent:
        renewals = 0
        while True:
            if renewal_due(part, datetime.now(UTC)) and renewals < MOST_RENEWALS:
                part, renewals = self._renewed(upload, part), renewals + 1
            try:
                return self._put_retrying(part, file)
            except Forbidden:  # expired on the way, or by the server's clock
                if renewals >= MOST_RENEWALS:
                    raise
                part, renewals = self._renewed(upload, part), renewals + 1

    def _renewed(self, upload: Upload, part: UploadPart) -> UploadPart:
        path = f"/files/uploads/{upload.upload_id}/parts/urls"
        return self.http.post(path, UploadParts, PartNumbers(part_numbers=[part.part_number]), twice=True).parts[0]

    def _put_retrying(self, part: UploadPart, file: int) -> Sent:
        body = _Body(self, file, part.offset, part.length)
        headers = {"Content-Length": str(part.length), "Content-Type": "application/octet-stream"}

        def once() -> httpx2.Response:
            body.rewind()
            return self.http.plain.put(part.url, content=body.chunks(), headers=headers, timeout=WRITE_TIMEOUT)

        try:
            answer = self.http.repeat(once, f"PUT of part {part.part_number} of {self.path.name}", True)
        except BaseException:
            body.rewind()
            raise
        token = answer.headers.get("etag", "")
        piece = Piece(part.offset, part.length, body.checksum)
        return Sent(piece, PartToken(part_number=part.part_number, part_token=token))

    def _sum(self, file: int, offset: int, length: int) -> Piece:
        body = _Body(self, file, offset, length, told=False)
        for _ in body.chunks():
            continue
        return Piece(offset, length, body.checksum)

    def _complete(self, upload: Upload, tokens: list[PartToken], checksum: str | None) -> FileComplete:
        body = UploadComplete(parts=sorted(tokens, key=lambda t: t.part_number), integrity_checksum=checksum)
        try:
            return self.http.post(
                f"/files/uploads/{upload.upload_id}/complete", FileComplete, body, twice=True, timeout=COMPLETE_TIMEOUT
            )
        except Conflict as error:
            if not ambiguous(error):
                raise
            record = self.http.get(f"/files/metadata/{upload.file_name}", FileRecord)  # the first try had worked
            if record.file_uid != upload.file_uid:
                raise
            return FileComplete(
                file_uid=record.file_uid,
                file_name=record.file_id,
                num_bytes=record.num_bytes,
                file_status=record.file_status,
                file_attributes=record.file_attributes,
            )


class _Body:
    """A stretch of the file as the body of a request: read as it is sent, summed up on the way."""

    def __init__(self, sending: Sending, file: int, offset: int, length: int, told: bool = True) -> None:
        self.sending, self.file, self.offset, self.length, self.told = sending, file, offset, length, told
        self.checksum = self.moved = 0

    def rewind(self) -> None:
        if self.moved:
            self.sending.add(-self.moved)
        self.checksum = self.moved = 0

    def chunks(self) -> Iterator[bytes]:
        at, end = self.offset, self.offset + self.length
        while at < end:
            if self.sending.stop.is_set():
                raise Stopped
            data = os.pread(self.file, min(CHUNK, end - at), at)
            if not data:
                raise BadRequest(f"{self.sending.path} became shorter while it was uploaded.")
            self.checksum = crc.extend(self.checksum, data)
            at += len(data)
            yield data
            if self.told:
                self.moved += len(data)
                self.sending.add(len(data))


def checksum_of(path: Path) -> str:
    total = 0
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            total = crc.extend(total, data)
    return crc.text(total)


# --- down ---------------------------------------------------------------------------------------------


def fetch(
    http: Http,
    url: str,
    target: Path,
    *,
    keyed: bool,
    num_bytes: int | None = None,
    renew: Callable[[], str] | None = None,
    add: Add = lambda _: None,
) -> Path:
    """One GET into `target`; a signed URL that expires on the way is renewed by `renew`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            _Fetching(http, keyed, file, num_bytes, renew, add).run(url)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


class _Fetching:
    def __init__(
        self, http: Http, keyed: bool, file: IO[bytes], num_bytes: int | None, renew: Callable[[], str] | None, add: Add
    ) -> None:
        self.http, self.keyed, self.num_bytes, self.add = http, keyed, num_bytes, add
        self.file, self.renew = file, renew
        self.at, self.tag, self.tried, self.renewals = 0, "", 0, 0

    def run(self, url: str) -> None:
        while True:
            self.tried += 1
            try:
                self._once(url)
                return
            except (Forbidden, NotFound):
                if self.renew is None or self.renewals >= MOST_RENEWALS:
                    raise
                url, self.renewals = self.renew(), self.renewals + 1
            except (httpx2.TransportError, ServerFault, TooManyRequests, ServerUnreachable) as error:
                if not self.http.retry.again(None, self.tried):
                    if isinstance(error, JosError):
                        raise
                    raise ServerUnreachable(f"the download of {url.partition('?')[0]} broke off: {error}") from error
                wanted = error.retry_after if isinstance(error, TooManyRequests) else None
                self.http.sleep(self.http.retry.delay(self.tried, wanted, random.random()))

    def _once(self, url: str) -> None:
        headers = {"Accept-Encoding": "identity"}
        if self.at:
            headers |= {"Range": f"bytes={self.at}-"} | ({"If-Range": self.tag} if self.tag else {})
        with self.http.open(url, keyed=self.keyed, headers=headers) as answer:
            if self.at and answer.status_code != 206:
                self.add(-self.at)
                self.file.seek(0)
                self.file.truncate()
                self.at = 0
            self.tag = answer.headers.get("etag", "")
            for data in answer.iter_bytes():  # as it comes: what was received before a break counts
                self.file.write(data)
                self.at += len(data)
                self.add(len(data))
                self.tried = 0  # it moves
        if self.num_bytes is not None and self.at < self.num_bytes:
            raise ServerFault(f"{url.partition('?')[0]} ended after {self.at} of {self.num_bytes} bytes.")
