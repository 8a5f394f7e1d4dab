"""Progress of transfers, and the names of files that a server gave.

May import: jos.shown. Tests: tests/unit/test_client_transfer.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jos.core.errors import BadRequest
from jos.shown.watching import bar


class Meter:
    """Counts bytes of several threads and tells each change."""

    def __init__(self, total: int, told: Callable[[int, int], object]) -> None:
        self.total, self.done, self._told = total, 0, told
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.done += count
            self._told(self.done, self.total)


@contextmanager
def metered(progress: bool | Callable[[int, int], object], total: int, what: str) -> Iterator[Meter]:
    """A bar, a function of the caller's, or nothing."""
    if callable(progress):
        yield Meter(total, progress)
        return
    if not progress:
        yield Meter(total, lambda *_: None)
        return
    with bar(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024) as shown:
        yield Meter(total, lambda done, _: shown.update(done - shown.n))


def plain_name(name: str) -> str:
    """A name from the server as a name within a folder: it cannot lead anywhere else."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise BadRequest(f"the server calls a file {name!r}: it is not written.")
    return name
