"""Object ids: `prefix_` + 26 lower-case base-32 characters, ordered by time of creation.

May import: nothing of ours. Tests: tests/unit/test_ids.py.
"""

from __future__ import annotations

import hashlib
import os
import re
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u
_SHAPE = re.compile(r"[a-z]{3}_[0-9a-hjkmnp-tv-z]{26}")


def _encode(value: int) -> str:
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def new_id(prefix: str) -> str:
    """A fresh id: 48 bits of milliseconds, then 80 random bits, so ids sort by creation."""
    return f"{prefix}_{_encode((time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), 'big'))}"


def derived_id(prefix: str, *parts: str) -> str:
    """The same id for the same parts, for what must not be doubled when it is written twice."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return f"{prefix}_{_encode(int.from_bytes(digest[:16], 'big'))}"


def is_id(text: str, prefix: str) -> bool:
    return text.startswith(f"{prefix}_") and bool(_SHAPE.fullmatch(text))
