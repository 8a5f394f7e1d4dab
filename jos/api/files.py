"""Files: posted whole, listed, downloaded, deleted. Bodies are streamed in both directions.

May import: fastapi, jos below the API. Tests: tests/contract/test_files_*.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BeforeValidator
from starlette.responses import Response

from jos import wire
from jos.api.auth import Reader, User
from jos.api.context import Parts
from jos.api.errors import documented
from jos.api.signed import BYTES, received, served
from jos.core.files import MAX_POST_BYTES, File, FileStatus
from jos.files.form import decoded, form_file
from jos.files.pour import check_size

router = APIRouter(tags=["files"])

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
_RAW: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_TOKEN: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the part is safe",
        "headers": {"ETag": {"description": "the `part_token`", "schema": {"type": "string"}}},
    }
}
_FRAME = 1 << 20  # bytes that a form may have besides its file


@router.post("/files", openapi_extra=_FORM, responses=documented(400, 409, 413))
async def post_file(request: Request, caller: User, parts: Parts) -> wire.FileAnswer:
    """Takes a file of at most 512,000,000 bytes; one of the same name is replaced."""
    _check_announced(request, MAX_POST_BYTES + _FRAME)
    return await _post(request, caller.org_id, parts, base64=False)


@router.post("/files/base64", openapi_extra=_FORM, responses=documented(400, 409, 413))
async def post_file_base64(request: Request, caller: User, parts: Parts) -> wire.FileAnswer:
    """As `POST /files`, for a part that holds base64 text."""
    _check_announced(request, MAX_POST_BYTES * 3 // 2 + _FRAME)  # a third more, and line feeds
    return await _post(request, caller.org_id, parts, base64=True)


async def _post(request: Request, org_id: str, parts: Parts, base64: bool) -> wire.FileAnswer:
    body: AsyncIterator[bytes] = received(request)
    form = await form_file(request.headers.get("content-type", ""), body)
    chunks = decoded(form.chunks) if base64 else form.chunks
    return _answer(await parts.files.post(org_id, form.filename, form.content_type, chunks))


def _check_announced(request: Request, limit: int) -> None:
    """Refuses at once what says itself that it is too large."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        check_size(int(length), MAX_POST_BYTES)


@router.put(
    "/files/uploads/{upload_id}/parts/{part_number:int}",  # no word: parts/urls and parts/checkpoint are others'
    tags=["uploads"],
    openapi_extra=_RAW,
    responses={**documented(400, 404, 409, 413), **_TOKEN},
    response_class=Response,
)
async def put_part(upload_id: str, part_number: int, request: Request, caller: User, parts: Parts) -> Response:
    """One part of an upload through the API, for clients that cannot ask the storage: a page in a browser, or a network
    that lets nothing else through. Others save the API these bytes and use the part's own URL."""
    token = await parts.files.uploads.send(caller.org_id, upload_id, part_number, received(request))
    return Response(headers={"ETag": f'"{token}"'})


@router.get("/files/info", responses=documented())
async def file_info(caller: Reader, parts: Parts) -> wire.FileInfo:
    info = await parts.files.info(caller.org_id)
    return wire.FileInfo(
        num_files=info.num_files, num_bytes=info.num_bytes, num_ingested=info.num_files, last_updated=info.last_updated
    )


def _else(default: int) -> BeforeValidator:
    """A parameter without a value, as in `limit=`, is as good as left out."""
    return BeforeValidator(lambda said: default if said == "" else said)


@router.get("/files/metadata", response_model=list[wire.FileRecord] | wire.FilePage, responses=documented(400))
async def list_files(
    request: Request,
    caller: Reader,
    parts: Parts,
    shard_index: Annotated[int, Query(ge=-1), _else(-1)] = -1,
    max_items_per_shard: Annotated[int, Query(ge=-1), _else(-1)] = -1,
    file_type: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000), _else(100)] = 100,
    after: str | None = None,
    before: str | None = None,
) -> list[wire.FileRecord] | wire.FilePage:
    """Below `/v0.5` an array, in shards when asked for; below `/api` pages, newest first, with cursors."""
    sharded = request.query_params.get("shard_index") or request.query_params.get("max_items_per_shard")
    if not request.url.path.startswith("/api/") or sharded:
        files = await parts.files.shard(caller.org_id, shard_index, max_items_per_shard, file_type or None)
        return [_record(file) for file in files]
    page = await parts.files.page(caller.org_id, limit, after or None, before or None, file_type or None)
    return wire.FilePage(
        data=[_record(file) for file in page.files],
        has_more=page.newer if before else page.older,
        next_cursor=page.files[-1].uid if page.files and page.older else None,
        prev_cursor=page.files[0].uid if page.files and page.newer else None,
    )


@router.get("/files/metadata/{file_id}", responses=documented(404))
async def get_file(file_id: str, caller: Reader, parts: Parts) -> wire.FileRecord:
    return _record(await parts.files.get(caller.org_id, file_id))


@router.head("/files/download/{file_id}", include_in_schema=False)
@router.get("/files/download/{file_id}", responses={**documented(400, 404, 416), **BYTES}, response_class=Response)
async def download_file(file_id: str, request: Request, caller: Reader, parts: Parts) -> Response:
    """The bytes; `Range` is supported."""
    file = await parts.files.readable(caller.org_id, file_id)
    return await served(request, parts.storage, file.key, file.name)


@router.delete("/files/delete/{file_id}", responses=documented(404, 409))
async def delete_file(file_id: str, caller: User, parts: Parts) -> wire.FileAnswer:
    """409 while a live job reads it."""
    return _answer(await parts.files.delete(caller.org_id, file_id))


def _answer(file: File) -> wire.FileAnswer:
    return wire.FileAnswer(is_valid=True, file_id=file.name, file_uid=file.uid)


def _record(file: File) -> wire.FileRecord:
    good = file.status is FileStatus.REGISTERED
    return wire.FileRecord(
        file_id=file.name,
        file_uid=file.uid,
        is_valid=good,
        file_type=file.file_type,
        num_bytes=file.num_bytes,
        file_status=file.status.value,
        file_attributes=file.attributes,
        ingested=good,
        file_tags=file.tags,
        created_at=file.created_at,
    )
