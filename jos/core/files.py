"""Rules of files: names, types, how a large one is cut into parts, and checksums of what was cut.

A file's id is its name; its uid (`fil_…`) names one content, which never changes: another content of the same name is
another uid. Pure. May import: pydantic, jos.core. Tests: tests/unit/test_files_rules.py.
"""

from __future__ import annotations

import base64
import math
import mimetypes
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Self

from pydantic import Field

from jos.core.errors import BadRequest, Forbidden, JosError, NotFound, TooLarge
from jos.core.model import Json, Model

MAX_POST_BYTES = 512_000_000  # of one POST /files
MAX_FILE_BYTES = 250_000_000_000  # of one upload in parts
MAX_NAME_BYTES = 255
MIB = 1 << 20
PART_SIZE = 16 * MIB  # S3 wants at least 5 MiB of every part but the last
OPEN_UPLOADS = 1000  # of one organisation, by default; each holds a folder, or parts that S3 bills
MAX_PARTS = 1000  # S3 allows 10,000; with these, all URLs of an upload fit one answer


class InvalidFileSize(TooLarge):
    code = "invalid_file_size"


class InvalidFileType(BadRequest):
    code = "invalid_file_type"


class UploadNotFound(NotFound):
    code = "upload_not_found"


class ChecksumMismatch(BadRequest):
    code = "checksum_mismatch"


class LinkRefused(Forbidden):
    """A signed URL that expired, or that this service did not sign."""


class RangeInvalid(JosError):
    code, http_status = "range_not_satisfiable", 416


class FileStatus(StrEnum):
    UPLOADING = "Uploading"
    REGISTERED = "Registered"  # whole and checked; jobs may read it
    CORRUPT = "Corrupt"  # its checksum was not the announced one; its bytes are gone
    REPLACED = "Replaced"  # another content has its name; kept while a live job reads it
    REMOVING = "Removing"  # deleted; its bytes go next


class Record(Model):
    """A record of the store. `raw` is its JSON as it was read, which a change is guarded by: a newer JOS may write the
    same record otherwise."""

    raw: str = Field(default="", exclude=True, repr=False)

    def but(self, **fields: object) -> Self:
        """A changed copy."""
        return self.model_copy(update={"raw": "", **fields})


class File(Record):
    """One content under one name. Kept in Redis, and once registered as `file.json` beside its bytes."""

    uid: str  # fil_…
    org_id: str
    name: str  # the file_id of the API
    file_type: str
    num_bytes: int
    status: FileStatus
    created_at: datetime
    upload_id: str | None = None  # where it came in parts
    fingerprint: str = ""  # as jos.storage.source.stat_input tells it; set when registered
    attributes: Json = Field(default={})  # set when registered: num_rows, num_columns, column_headers
    tags: list[str] = Field(default=[])

    @property
    def key(self) -> str:
        """Where its bytes lie in the storage root."""
        return f"{file_folder(self.org_id, self.uid)}data/{self.name}"

    @property
    def record_key(self) -> str:
        return f"{file_folder(self.org_id, self.uid)}file.json"


class UploadStatus(StrEnum):
    UPLOADING = "Uploading"
    REGISTERED = "Registered"
    CORRUPT = "Corrupt"
    ABORTED = "Aborted"
    EXPIRED = "Expired"


@dataclass(frozen=True)
class Part:
    number: int  # from 1
    offset: int
    length: int


class Upload(Record):
    """One file on its way in parts. Kept in Redis only."""

    id: str  # upl_…
    org_id: str
    file_uid: str
    name: str
    declared_type: str
    num_bytes: int
    part_size: int
    handle: str  # the storage's own name of the upload
    status: UploadStatus = UploadStatus.UPLOADING
    created_at: datetime
    expires_at: datetime  # moves on while the upload is in use
    completed_by: str = ""  # random, of the call that completed it: of two at once each knows whether it was the one

    @property
    def num_parts(self) -> int:
        return math.ceil(self.num_bytes / self.part_size)

    @property
    def key(self) -> str:
        return f"{file_folder(self.org_id, self.file_uid)}data/{self.name}"

    def part(self, number: int) -> Part:
        offset = (number - 1) * self.part_size
        return Part(number, offset, min(self.part_size, self.num_bytes - offset))

    def check_numbers(self, numbers: Iterable[int]) -> None:
        """BadRequest that names the parts that there are not."""
        wrong = [str(n) for n in numbers if not 1 <= n <= self.num_parts]
        if wrong:
            raise BadRequest(
                f"Upload {self.id} has no part {_enumerate(wrong)}: its parts are 1 to {self.num_parts}.",
            )


_IN_URL = re.compile(r"/files/(fil_[0-9a-z]{26})/data/")  # see File.key


def uids_in(text: str) -> list[str]:
    """Of the files whose contents are named in it: a job's request, or the URLs of its inputs."""
    return sorted(set(_IN_URL.findall(text)))


def file_folder(org_id: str, uid: str) -> str:
    return f"{org_id}/files/{uid}/"


def part_size(num_bytes: int, smallest: int = PART_SIZE) -> int:
    """Bytes of each part but the last."""
    return max(smallest, math.ceil(num_bytes / MAX_PARTS / MIB) * MIB)


def check_upload_size(num_bytes: int) -> None:
    if num_bytes < 1:
        raise BadRequest(f"num_bytes is {num_bytes}: an upload in parts has at least 1 byte.")
    if num_bytes > MAX_FILE_BYTES:
        raise InvalidFileSize(f"A file may have at most {MAX_FILE_BYTES:,} bytes; this one has {num_bytes:,}.")


_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f/\\\ud800-\udfff]|\.\.")


def check_name(name: str) -> str:
    """The name itself, or BadRequest: what every storage holds and no path leads out of."""
    shown = repr(name[:80])[1:-1]
    if not name.strip() or name == ".":
        raise BadRequest("A file needs a name.", suggestion="Send the file's basename as filename.")
    if _UNFIT.search(name):
        raise BadRequest(
            f"'{shown}' is no file name: it may hold no '/', no '\\', no '..' and no control characters.",
            suggestion="Send the file's basename.",
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        raise BadRequest(f"The file name '{shown}…' has more than {MAX_NAME_BYTES} bytes.")
    return name


# --- types ------------------------------------------------------------------------------------------------

_BY_EXTENSION = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "png": "image/png",
    "mp4": "video/mp4",
    "txt": "text/plain",
    "csv": "text/csv",
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "ndjson": "application/x-ndjson",
}
ALLOWED = tuple(dict.fromkeys(_BY_EXTENSION.values()))
_KNOWN = mimetypes.MimeTypes()  # Python's own table: what the machine has installed plays no part
OCTETS = "application/octet-stream"


def extension(name: str) -> str:
    """Lower-case and without the dot; "" if there is none."""
    stem, dot, end = name.rpartition(".")
    return end.lower() if dot and stem else ""


def file_type(name: str, declared: str | None = None) -> str:
    """The type by extension; where that says nothing the declared one. A client is known to declare `text/csv` for
    `.jsonl`."""
    by_name = _BY_EXTENSION.get(extension(name)) or _KNOWN.guess_type(f"x.{extension(name)}", strict=True)[0]
    stated = (declared or "").partition(";")[0].strip().lower()
    return by_name or stated or OCTETS


def check_declared_type(declared: str) -> None:
    if len(declared) > MAX_NAME_BYTES or not declared.isascii() or not declared.isprintable():
        raise InvalidFileType("file_type is no media type such as text/csv.")


def check_type(name: str, declared: str | None) -> str:
    """The type of a file that is posted whole, or InvalidFileType."""
    found = file_type(name, declared)
    if found not in ALLOWED:
        raise InvalidFileType(
            f"'{name}' is of type {found}, which is not taken here.", suggestion=f"Types taken: {', '.join(ALLOWED)}."
        )
    return found


def matches_type(found: str, wanted: str) -> bool:
    """Whether a filter means this type: `text/csv`, `csv` and `.csv` are the same wish."""
    wish = wanted.strip().lower().lstrip(".")
    return found == wish or _BY_EXTENSION.get(wish) == found


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Received:
    """One part as the storage has it."""

    number: int
    token: str  # without quotes
    num_bytes: int
    crc32c: int | None = None  # where the storage knows it


def parse_checksum(text: str) -> int:
    """CRC32C as clients send it: base64 of its four bytes, highest first."""
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 4:
        raise BadRequest("integrity_checksum is not the base64 of a CRC32C (four bytes, highest first).")
    return int.from_bytes(raw, "big")


def bare(token: str) -> str:
    """A part's token without the quotes that an ETag header carries."""
    text = token.strip().removeprefix("W/")
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text


def choose_parts(upload: Upload, received: Mapping[int, list[Received]], tokens: Mapping[int, str]) -> list[Received]:
    """The parts that make up the file, in order. BadRequest names all that are missing, of another content than the
    token says, or of the wrong size."""
    missing, other, wrong, chosen = [], [], [], []
    for number in range(1, upload.num_parts + 1):
        there = received.get(number, [])
        if number not in tokens or not there:
            missing.append(str(number))
            continue
        found = next((one for one in there if one.token == tokens[number]), None)
        length = upload.part(number).length
        if found is None:
            other.append(str(number))
        elif found.num_bytes != length:
            wrong.append(f"{number} ({found.num_bytes} bytes, not {length})")
        else:
            chosen.append(found)
    said = []
    if missing:
        said.append(f"missing: part {_enumerate(missing)}")
    if other:
        said.append(f"the token is not that of what was uploaded: part {_enumerate(other)}")
    if wrong:
        said.append(f"of the wrong size: part {_enumerate(wrong)}")
    if said:
        raise BadRequest(
            f"Upload {upload.id} of '{upload.name}' is not complete: {'; '.join(said)}.",
            suggestion="Upload these parts (again), then complete with the ETag that each answer carried.",
        )
    return chosen


def _enumerate(names: list[str]) -> str:
    return ", ".join(names[:50]) + (f" and {len(names) - 50} more" if len(names) > 50 else "")


# --- CRC32C of a whole from the CRC32C of its parts -------------------------------------------------------

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed: the highest bit is x^0


def crc32c_combine(first: int, second: int, second_length: int) -> int:
    """CRC32C of two strings put together: the first's register moved over as many zero bytes as the second has."""
    return _times(_shift(second_length), first) ^ second


def whole_crc32c(parts: Iterable[Received]) -> int | None:
    """None if the storage does not know that of every part."""
    total = 0
    for part in parts:
        if part.crc32c is None:
            return None
        total = crc32c_combine(total, part.crc32c, part.num_bytes)
    return total


@lru_cache(maxsize=64)
def _shift(num_bytes: int) -> int:
    """x to the power of 8 · num_bytes, by squaring."""
    power, factor, bits = 1 << 31, 1 << 30, 8 * num_bytes
    while bits:
        if bits & 1:
            power = _times(factor, power)
        factor, bits = _times(factor, factor), bits >> 1
    return power


def _times(a: int, b: int) -> int:
    """Product of two polynomials over GF(2), modulo the CRC's own."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


# --- byte ranges --------------------------------------------------------------------------------------------

_RANGE = re.compile(r"bytes\s*=\s*([0-9]*)\s*-\s*([0-9]*)\s*", re.IGNORECASE)
_BEYOND = 10**18  # of any file; a client may send more digits than Python cares to read


def resolve_range(header: str | None, num_bytes: int) -> tuple[int, int] | None:
    """[start, end) of a `Range` header, None for the whole. A header that is none, or that names several ranges, is
    ignored as RFC 9110 allows; RangeInvalid for one that lies outside."""
    found = _RANGE.fullmatch(header.strip()) if header else None
    if header is None or found is None or found[1] == found[2] == "":
        return None
    first, last = _position(found[1]), _position(found[2])
    if first is None:
        start, end = max(num_bytes - (last or 0), 0), num_bytes
    else:
        start, end = first, num_bytes if last is None else last + 1
        if end <= start and last is not None:
            return None
    if start >= num_bytes or (first is None and not last):
        raise RangeInvalid(f"The range '{header[:80]}' lies outside the {num_bytes} bytes of the file.")
    return start, min(end, num_bytes)


def _position(digits: str) -> int | None:
    if not digits:
        return None
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) <= 18 else _BEYOND
