"""How much a client may ask for: requests per second, searches at once, bytes of a body, size of the headers.

Token buckets are kept in this process, so a limit is per key and replica. May import: stdlib, starlette, jos.core.
Tests: tests/unit/test_api_limits.py, tests/integration/test_api_security.py.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jos.api.errors import answer
from jos.core.errors import JosError, TooLarge, TooManyRequests

MAX_BODY = 1 << 20  # bytes of a JSON body
MAX_JOB_BODY = 8 << 20  # of a job's creation: it may name 10,000 files and more
MAX_HEADERS = 32 << 10  # bytes of all headers together
MAX_HEADER_COUNT = 100
MAX_TARGET = 16 << 10  # bytes of path and query
SEARCHES = 2  # at once in one process: each looks at every job of an organisation, in Redis
SEARCH_PATIENCE = 5.0  # seconds that one waits for its turn
_MOST_BUCKETS = 20_000

_JOBS = re.compile(r"(/api)?((/v0\.5)?/batch|(/v0\.6)?/fine_tuning)/jobs/?")
# what takes whole files has limits of its own, in its room
_FILES = re.compile(r"(/api)?(/v0\.5)?/(files(/base64)?/?|files/uploads/[^/]+/parts/\d+|signed/.*)")


class HeadersTooLarge(JosError):
    code, http_status = "headers_too_large", 431


class Buckets:
    """One token bucket for each name; the names not heard of for longest are forgotten first."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name -> tokens, when

    def take(self, name: str) -> None:
        """Raises TooManyRequests when `name` asked for more than its share. A rate of 0 means no limit."""
        if self._rate <= 0:
            return
        now = self._clock()
        tokens, when = self._buckets.pop(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - when) * self._rate)
        allowed = tokens >= 1
        self._buckets[name] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > _MOST_BUCKETS:
            self._buckets.popitem(last=False)
        if not allowed:
            raise TooManyRequests(
                f"More than {self._rate:g} requests a second.",
                retry_after=(1 - tokens) / self._rate,
                suggestion="Wait as long as Retry-After says; to watch a job, listen to its stream.",
            )


class Turns:
    """What costs much is done for few at once; whoever would wait too long is told to come again."""

    def __init__(self, at_once: int, patience: float) -> None:
        self._free, self._patience = asyncio.Semaphore(at_once), patience

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Raises TooManyRequests."""
        try:
            await asyncio.wait_for(self._free.acquire(), self._patience)
        except TimeoutError:
            raise TooManyRequests(
                "Too many searches run at once.", self._patience, suggestion="Search less often, or list without q."
            ) from None
        try:
            yield
        finally:
            self._free.release()


class Limits:
    """Refuses requests whose headers or body are too large, before anything reads them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = _headers(scope) or _declared(scope)
        if error is not None:
            await answer(error)(scope, receive, send)
            return
        most = _most(scope)
        await self._app(scope, receive if most is None else _counted(receive, most), send)


def _headers(scope: Scope) -> JosError | None:
    headers = scope["headers"]
    if len(headers) > MAX_HEADER_COUNT or sum(len(name) + len(value) for name, value in headers) > MAX_HEADERS:
        return HeadersTooLarge(f"The headers are more than {MAX_HEADER_COUNT} or {MAX_HEADERS >> 10} KiB.")
    if len(scope.get("raw_path", b"")) + len(scope["query_string"]) > MAX_TARGET:
        return HeadersTooLarge(f"The URL is longer than {MAX_TARGET >> 10} KiB.")
    return None


def _declared(scope: Scope) -> JosError | None:
    most = _most(scope)
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if most is not None and declared.isdigit() and int(declared[:20]) > most:
        return _too_large(most)
    return None


def _most(scope: Scope) -> int | None:
    path = scope["path"]
    if _FILES.fullmatch(path):
        return None
    return MAX_JOB_BODY if _JOBS.fullmatch(path) else MAX_BODY


def _counted(receive: Receive, most: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:  # FastAPI lets an HTTPException through, and makes a 400 of anything else
            raise HTTPException(413, _too_large(most).message)
        return message

    return counted


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"The body is larger than {most >> 20} MiB, the most that this route takes.")
