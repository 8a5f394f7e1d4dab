"""CRC32C of files, from those of their parts: parts are read and sent in any order.

Pure. May import: google-crc32c, jos.core.files. Tests: tests/unit/test_client_transfer.py.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

import google_crc32c

from jos.core.files import crc32c_combine


def extend(checksum: int, data: bytes) -> int:
    return int(google_crc32c.extend(checksum, data))


def of_parts(parts: Iterable[tuple[int, int]]) -> int:
    """Of (checksum, length) in order."""
    whole = 0
    for checksum, length in parts:
        whole = crc32c_combine(whole, checksum, length)
    return whole


def text(checksum: int) -> str:
    """Base64 of the big-endian bytes, as it is sent."""
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()
