"""Requests to one server: the key, retries with back-off and jitter, errors as JosError.

A request is sent again after 429, 5xx and lost connections if doing it twice does no harm: all but POST by nature,
a POST where the caller says so. An error after an answer may have been lost carries `ambiguous`: the first try may
have worked. May import: httpx2, jos.wire, jos.client.errors. Tests: tests/unit/test_client_http.py.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from jos.client.errors import ServerFault, ServerUnreachable, error_of
from jos.core.errors import BadRequest, JosError

T = TypeVar("T", bound=BaseModel)

BASE = "/v0.5"
TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
MOST_RETRY_AFTER = 120.0  # seconds; a server that wants more is told to the caller instead


@dataclass(frozen=True)
class RetryPolicy:
    """When to try again. `tries` counts the first one."""

    tries: int = 7
    first: float = 0.25
    most: float = 8.0

    def again(self, status: int | None, tried: int) -> bool:
        """After `tried` tries, the last of which ended with this status (None: no answer)."""
        return tried < self.tries and (status is None or status == 429 or status >= 500)

    def delay(self, tried: int, retry_after: float | None, random_: float) -> float:
        """Seconds until the next try: doubling, half of it jitter, never before the server wants it."""
        backoff = float(min(self.most, self.first * 2.0 ** (tried - 1))) * (0.5 + random_ / 2)
        return max(backoff, retry_after or 0.0)


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """The header's seconds, whether it is a number or a date."""
    text = headers.get("retry-after")
    if text is None:
        return None
    with suppress(ValueError):
        seconds: float = float(text)
        return max(0.0, seconds)
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    aware: datetime = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (aware - now).total_seconds())


class Http:
    """One server. Safe to use from several threads."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        retry: RetryPolicy | None = None,
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/").removesuffix(BASE)
        if not self.url.startswith(("http://", "https://")):
            raise BadRequest(f"{url!r} is not the URL of a server.", suggestion="It begins with http:// or https://.")
        self.retry = retry or RetryPolicy()
        self.sleep = sleep
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx2.Limits(max_connections=64, max_keepalive_connections=32)
        common: dict[str, Any] = {"timeout": TIMEOUT, "limits": limits, "transport": transport}
        self.keyed = httpx2.Client(base_url=self.url, headers=headers, **common)
        # signed URLs carry their own proof; an Authorization header beside it makes S3 refuse them
        self.plain = httpx2.Client(base_url=self.url, follow_redirects=True, **common)
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()
        self.keyed.close()
        self.plain.close()

    # --- the API ---

    def get(self, path: str, model: type[T], **params: Any) -> T:
        return self._parse(self.send("GET", path, params=_given(params)), model)

    def post(
        self,
        path: str,
        model: type[T],
        body: Any = None,
        *,
        twice: bool = False,
        key: str | None = None,
        timeout: httpx2.Timeout = TIMEOUT,
    ) -> T:
        """`twice`: sending it again does no harm, or the caller sorts it out by `ambiguous`."""
        headers = {"Idempotency-Key": key} if key else {}
        content = body.model_dump(mode="json", exclude_none=True) if isinstance(body, BaseModel) else body or {}
        answer = self.send(
            "POST", path, json=content, headers=headers, repeatable=twice or key is not None, timeout=timeout
        )
        return self._parse(answer, model)

    def delete(self, path: str, model: type[T]) -> T:
        return self._parse(self.send("DELETE", path), model)

    def send(self, method: str, path: str, *, repeatable: bool | None = None, **options: Any) -> httpx2.Response:
        """An answer below 400, with its body read."""
        url = path if path.startswith("/v0.") else BASE + path
        return self.repeat(lambda: self.keyed.request(method, url, **options), f"{method} {url}", repeatable, method)

    def repeat(
        self, call: Callable[[], httpx2.Response], asked: str, repeatable: bool | None = None, method: str = "GET"
    ) -> httpx2.Response:
        """`call` until it is answered below 400 or the policy gives up."""
        tried, ambiguous = 0, False
        may_repeat = method != "POST" if repeatable is None else repeatable
        while True:
            tried += 1
            status, wanted, error = None, None, None
            try:
                answer = call()
            except httpx2.TransportError as lost:
                error = self._lost(lost, asked)
                unsent = isinstance(lost, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
                ambiguous |= not unsent
            else:
                if answer.status_code < 400:
                    return answer
                status, wanted = answer.status_code, retry_after(answer.headers, datetime.now(UTC))
                error = error_of(status, answer.content, asked, wanted)
                unsent = status == 429
            error.__dict__["ambiguous"] = ambiguous
            ambiguous |= status is not None and status >= 500
            patient = wanted is None or wanted <= MOST_RETRY_AFTER
            if not (self.retry.again(status, tried) and (may_repeat or unsent) and patient):
                raise error
            self.sleep(self.retry.delay(tried, wanted, random.random()))

    def _lost(self, error: httpx2.TransportError, asked: str) -> JosError:
        what = str(error) or type(error).__name__
        return ServerUnreachable(
            f"{self.url} does not answer ({asked}: {what}).",
            suggestion="Does the server run? `jos up` starts one here.",
        )

    def _parse(self, answer: httpx2.Response, model: type[T]) -> T:
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as error:
            said = answer.text[:200]
            raise ServerFault(
                f"{answer.request.method} {answer.url} was answered by something that is no {model.__name__}: {said!r}",
                suggestion="Is this the URL of a JOS server?",
            ) from error

    # --- streams ---

    @contextmanager
    def open(
        self, url: str, *, keyed: bool, headers: dict[str, str] | None = None, read_timeout: float = 60.0
    ) -> Iterator[httpx2.Response]:
        """One try at a streamed GET. Raises JosError for an answer from 400 on, httpx2.TransportError as it comes."""
        timeout = httpx2.Timeout(30.0, connect=10.0, read=read_timeout)
        client = self.keyed if keyed else self.plain
        with client.stream("GET", url, headers=headers, timeout=timeout) as answer:
            if answer.status_code >= 400:
                wanted = retry_after(answer.headers, datetime.now(UTC))
                raise error_of(answer.status_code, answer.read(), f"GET {answer.url.path}", wanted)
            yield answer


def ambiguous(error: JosError) -> bool:
    """Whether an earlier try of the same request may have worked unheard."""
    return bool(error.__dict__.get("ambiguous"))


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {k: str(v) if not isinstance(v, list) else v for k, v in params.items() if v is not None}
