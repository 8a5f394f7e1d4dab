"""Uploads in parts: the client sends the parts to signed URLs, of the storage itself where it has them.

May import: fastapi, jos below the API. Tests: tests/contract/test_files_uploads.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime

from fastapi import APIRouter, Request

from jos import wire
from jos.api.auth import User
from jos.api.bodies import JsonRoute
from jos.api.context import Parts, Service, base_url
from jos.api.errors import documented
from jos.core.files import Part, Upload
from jos.files.parts import URL_LASTS

router = APIRouter(prefix="/files/uploads", tags=["uploads"], route_class=JsonRoute)


@router.post("/initiate", responses=documented(400, 409, 413, 422))
async def initiate_upload(body: wire.UploadStart, request: Request, caller: User, parts: Parts) -> wire.Upload:
    """Starts an upload of up to 250 GB, or goes on with an unfinished one of the same name, size and type."""
    started = await parts.files.uploads.initiate(
        caller.org_id, body.filename, body.file_type, body.num_bytes, body.resume_if_started, datetime.now(UTC)
    )
    upload = started.upload
    checked = parts.files.direct.checks(upload.num_bytes)
    return wire.Upload(
        upload_id=upload.id,
        file_uid=upload.file_uid,
        file_name=upload.name,
        total_bytes=upload.num_bytes,
        num_parts=upload.num_parts,
        part_size=upload.part_size,
        strategy="simple" if upload.num_parts == 1 else "multipart",
        is_resume=started.is_resume,
        integrity_algorithm="crc32c" if checked else "none",
        parts=await _urls(parts, base_url(request), upload, started.left),
        expires_at=upload.expires_at,
    )


@router.post("/{upload_id}/parts/urls", responses=documented(400, 404, 409, 413, 422))
async def renew_part_urls(
    upload_id: str, body: wire.PartNumbers, request: Request, caller: User, parts: Parts
) -> wire.UploadParts:
    """Fresh URLs, in the asked order."""
    upload, asked = await parts.files.uploads.renewed(caller.org_id, upload_id, body.part_numbers)
    return wire.UploadParts(parts=await _urls(parts, base_url(request), upload, asked))


@router.post("/{upload_id}/parts/checkpoint", responses=documented(400, 404, 409, 413, 422))
async def checkpoint_parts(upload_id: str, body: wire.PartTokens, caller: User, parts: Parts) -> wire.NumCheckpointed:
    """Remembers parts that are uploaded, so that a resumed upload does not send them again."""
    tokens = {part.part_number: part.part_token for part in body.parts}
    count = await parts.files.uploads.checkpoint(caller.org_id, upload_id, tokens, datetime.now(UTC))
    return wire.NumCheckpointed(num_checkpointed=count)


@router.post("/{upload_id}/complete", responses=documented(400, 404, 409, 413, 422))
async def complete_upload(upload_id: str, body: wire.UploadComplete, caller: User, parts: Parts) -> wire.FileComplete:
    """Makes the file of its parts, those that were checkpointed and those named here."""
    tokens = {part.part_number: part.part_token for part in body.parts}
    file = await parts.files.uploads.complete(
        caller.org_id, upload_id, tokens, body.integrity_checksum, datetime.now(UTC)
    )
    return wire.FileComplete(
        file_uid=file.uid,
        file_name=file.name,
        num_bytes=file.num_bytes,
        file_status=file.status.value,
        file_attributes=file.attributes,
    )


@router.post("/{upload_id}/abort", responses=documented(404, 409))
async def abort_upload(upload_id: str, caller: User, parts: Parts) -> dict[str, str]:
    """Gives the upload up, and its name free. The body may be empty."""
    await parts.files.uploads.abort(caller.org_id, upload_id, datetime.now(UTC))
    return {}


async def _urls(parts: Service, base: str, upload: Upload, wanted: Iterable[Part]) -> list[wire.UploadPart]:
    """Signing a thousand takes a fifth of a second on S3, so it is done beside the event loop."""
    expires = datetime.now(UTC) + URL_LASTS

    def urls() -> list[wire.UploadPart]:
        return [
            wire.UploadPart(
                part_number=part.number,
                url=parts.files.uploads.url(upload, part)
                or parts.links.part(upload.handle, part, base, int(expires.timestamp())),
                offset=part.offset,
                length=part.length,
                expires_at=expires,
            )
            for part in wanted
        ]

    return await asyncio.to_thread(urls)
