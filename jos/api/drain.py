"""A refusal that the client gets to read: it may still be sending its body, and many clients look at an answer only
after that. Closing the connection under them would lose it.

So the answer goes out at once, and what still comes is read and thrown away, to a bound.
May import: starlette. Tests: tests/contract/test_files_post.py.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 128 << 20
SECONDS = 10.0


class Drain:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        ended = refused = False

        async def received() -> Message:
            nonlocal ended
            message = await receive()
            ended = ended or not message.get("more_body")
            return message

        async def sent(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] >= 400
            elif refused and not ended and not message.get("more_body"):
                await send({**message, "more_body": True})
                await _throw_away(receive)
                message = {"type": "http.response.body"}
            await send(message)

        await self._app(scope, received, sent)


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


async def _throw_away(receive: Receive) -> None:
    left = MOST_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SECONDS):
            while left > 0 and (message := await receive()).get("more_body"):
                left -= len(message.get("body", b""))
