"""Server-sent events: a job's events and progress entries as they come, with nothing missed or repeated over
reconnects.

May import: fastapi, jos.api. Tests: tests/integration/test_api_stream.py.
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jos.api.auth import TheirJob
from jos.api.context import Parts
from jos.api.errors import documented
from jos.api.hub import Cursor, Listening
from jos.core.errors import BadRequest

router = APIRouter(prefix="/batch/jobs", tags=["events"])

_ID = re.compile(r"e(\d{1,15})\.p(\d{1,15})")
_DESCRIBED = {
    "description": "A stream of `event` and `progress` messages, whose data are those of the lists, and a last `end`.",
    "content": {"text/event-stream": {}},
}


@router.get(
    "/{job_id}/stream",
    response_class=StreamingResponse,
    responses={200: _DESCRIBED, **documented(400, 404)},
    summary="Listen to a job",
)
async def stream_job(
    job: TheirJob,
    parts: Parts,
    last_event_id: Annotated[str | None, Header(description="Go on after this message.")] = None,
    after: Annotated[
        str | None, Query(alias="last_event_id", description="The same, for clients that cannot set a header.")
    ] = None,
) -> StreamingResponse:
    """Each message has an id; sent back as `Last-Event-ID`, it resumes the stream with nothing missed or repeated.
    Every 15 s of silence there is a comment. A stream ends with `end` when the job is over and nothing more can come;
    after a retry there is more, so come back then with the last id."""
    return _Stream(parts.hub.listen(job, _cursor(last_event_id or after)))


class _Stream(StreamingResponse):
    """Gives the listener's place back however it ends, also where the client is gone before anything was read."""

    def __init__(self, listening: Listening) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(listening, headers=headers, media_type="text/event-stream")
        self.listening = listening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.listening.leave()


def _cursor(text: str | None) -> Cursor:
    if not text:
        return Cursor()
    found = _ID.fullmatch(text)
    if found is None:
        raise BadRequest(f"{text[:60]!a} is no id of this stream: they look like e12.p30.")
    return Cursor(int(found[1]), int(found[2]))
