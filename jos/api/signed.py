"""Routes that a signed URL opens, without a key: bytes of one object, and one part of an upload into a folder.

An `Authorization` header is not looked at. May import: fastapi, jos below the API.
Tests: tests/contract/test_files_*.py.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from jos.api.context import Parts
from jos.api.errors import answer
from jos.api.shapes import known_already
from jos.core.errors import BadRequest, NotFound
from jos.core.files import OCTETS, Part, RangeInvalid, resolve_range
from jos.links import SIGNED, disposition
from jos.storage.base import Storage
from jos.storage.uploads_local import PartWriter

router = APIRouter(prefix=f"/{SIGNED}", include_in_schema=False)

# how a route that answers with `served` is described
BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "the file"},
    206: {"content": {"application/octet-stream": {}}, "description": "the range that was asked for"},
}

_WINDOW = 4 << 20  # bytes read at once; two of them are in memory
_BATCH = 1 << 20


@router.head("/files/{filename}")
@router.get("/files/{filename}")
async def signed_download(
    filename: str, key: str, expires: int, signature: str, request: Request, parts: Parts
) -> Response:
    parts.links.check_download(key, filename, expires, signature)
    return await served(request, parts.storage, key, filename)


@router.put("/parts/{handle}/{number}")
async def signed_part(
    handle: str, number: int, offset: int, length: int, expires: int, signature: str, request: Request, parts: Parts
) -> Response:
    """Answers once the part is safe on disk. Its ETag is the token that completing asks for."""
    part = Part(number, offset, length)
    parts.links.check_part(handle, part, expires, signature)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) != length:
        raise BadRequest(f"Part {number} has {length} bytes; {announced} were announced.")
    writer = await asyncio.to_thread(parts.files.direct.writer, handle, part)
    try:
        async for batch in _batches(received(request)):
            await asyncio.to_thread(writer.write, batch)
        token = await asyncio.to_thread(writer.done)
    finally:
        await _closed(writer)
    return Response(headers={"ETag": f'"{token}"'})


async def received(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes. A client that goes away is an error of its own, and no failure of ours."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise BadRequest("The connection was closed before the whole body had come.") from None


async def _closed(writer: PartWriter) -> None:
    """Also when the client goes: a write that is under way in its thread must not meet a closed file."""
    await asyncio.to_thread(writer.close)


async def _batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    gathered, length = [], 0
    async for chunk in chunks:
        gathered.append(chunk)
        length += len(chunk)
        if length >= _BATCH:
            yield b"".join(gathered)
            gathered, length = [], 0
    if gathered:
        yield b"".join(gathered)


# --- bytes of the storage -----------------------------------------------------------------------------


async def served(request: Request, storage: Storage, key: str, filename: str) -> Response:
    """The object as an attachment, or the range of it that was asked for; in constant memory."""
    found = await asyncio.to_thread(storage.stat, key)
    if found is None:
        raise NotFound(f"The bytes of {filename!r} are gone.")
    etag = f'"{hashlib.sha256(found.fingerprint.encode()).hexdigest()[:32]}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Content-Disposition": disposition(filename),
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private",
    }
    if known_already(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range") if request.headers.get("if-range", etag) == etag else None
    try:
        span = resolve_range(asked, found.num_bytes)
    except RangeInvalid as error:
        refused = answer(error)
        refused.headers["Content-Range"] = f"bytes */{found.num_bytes}"
        return refused
    start, end = span or (0, found.num_bytes)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.num_bytes}"
    headers["Content-Length"] = str(end - start)
    body = _nothing() if request.method == "HEAD" else _read(storage, key, start, end)
    return StreamingResponse(body, 206 if span is not None else 200, headers, media_type=OCTETS)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def _read(storage: Storage, key: str, start: int, end: int) -> AsyncIterator[bytes]:
    """The next window is read while one is being sent."""

    def window(at: int) -> asyncio.Task[bytes]:
        return asyncio.create_task(asyncio.to_thread(storage.read, key, at, min(at + _WINDOW, end)))

    ahead = window(start) if start < end else None
    try:
        while ahead is not None:
            data = await ahead
            start += _WINDOW
            ahead = window(start) if start < end else None
            yield data
    finally:
        if ahead is not None:
            ahead.cancel()
