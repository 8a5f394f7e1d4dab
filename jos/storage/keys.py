"""What a key may look like, the same for every storage, so that a job that works on a laptop works on S3.

May import: jos.core. Tests: tests/contract/test_storage.py.
"""

from __future__ import annotations

import re

from jos.core.errors import BadRequest

RESERVED = ".tmp"  # where LocalStorage keeps half-written files, at the top of its root
MAX_KEY_BYTES = 1024  # S3's limit
MAX_SEGMENT_BYTES = 255  # a file name's limit nearly everywhere
_UNFIT = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")  # surrogates: file names that are not UTF-8


def check_key(key: str) -> str:
    """The key itself, or BadRequest: no way out of the root, nothing that one of the storages cannot hold."""
    segments = key.split("/")
    if any(segment in ("", ".", "..") for segment in segments) or segments[0] == RESERVED:
        raise BadRequest(f"'{key}' is no storage key: it must be a relative path without '.', '..' or '//'.")
    if _UNFIT.search(key):
        raise BadRequest(f"{key!r} is no storage key: it has a control character or a backslash.")
    if len(key.encode()) > MAX_KEY_BYTES or max(len(s.encode()) for s in segments) > MAX_SEGMENT_BYTES:
        raise BadRequest(f"'{key[:80]}…' is no storage key: it or one of its names is too long.")
    return key


def check_prefix(prefix: str) -> str:
    """A folder to list: a key and a slash, or "" for everything."""
    if prefix:
        if not prefix.endswith("/"):
            raise BadRequest(f"'{prefix}' is no folder to list: it must end in '/'.")
        check_key(prefix[:-1])
    return prefix
