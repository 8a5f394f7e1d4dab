"""The HTTP API over the store, in a thread of its own on a free port of this machine, and the ways to hurt it.

`Server(objects)` runs at once; `close` ends it. Clients get a kubeconfig and a token; see `kube.rbac` for what a
service account may do. `down` and `up` are an API server that is away for a while: the store lives on.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from kube import discovery
from kube.calls import Call, as_json, read
from kube.errors import ApiError
from kube.objects import Objects
from kube.paths import Target, nowhere, target
from kube.rbac import REVIEWS, Guard, Use
from kube.watching import Bell, Pages, Watch, events

Body = dict[str, Any]
_HOUR = 3600.0


@dataclass
class Fault:
    """Requests that are answered with `status` in place of what they asked; `left` of them."""

    status: int
    left: int
    verb: str | None
    resource: str | None
    retry_after: int


@dataclass
class Trap:
    """Once: `spring` is called when such a request comes, which then gets no answer, or after it was carried out."""

    verb: str
    resource: str
    name: str
    after: bool
    spring: Callable[[], None]


class Server:
    """`bookmarks` is how often a watch that wants them gets one, in seconds."""

    def __init__(self, objects: Objects, *, bookmarks: float = 60.0) -> None:
        self.objects, self.guard = objects, Guard(objects)
        self._pages, self.bookmarks = Pages(objects), bookmarks
        self._faults: list[Fault] = []
        self._traps: list[Trap] = []
        self._lock = threading.Lock()
        self._bell: Bell | None = None
        self._leave = objects.subscribe(lambda change: self._ring())
        self.port = 0
        self._runner: uvicorn.Server | None = None
        self.up()

    # --- for clients ---

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kubeconfig(self, path: Path, *, token: str | None = None, namespace: str = "default") -> Path:
        """Writes a kubeconfig for the bearer of `token`; without one, for an administrator."""
        user = {"token": token or self.guard.admin_token}
        context = {"cluster": "lab", "user": "lab", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {"server": self.url}}],
            "users": [{"name": "lab", "user": user}],
            "contexts": [{"name": "lab", "context": context}],
            "current-context": "lab",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    @property
    def used(self) -> dict[str, set[Use]]:
        """What each identity asked for and was allowed: (verb, API group, resource, subresource)."""
        return self.guard.used

    @property
    def calls(self) -> Counter[tuple[str, str, str]]:
        """How often: by (identity, verb, resource)."""
        return self.guard.calls

    # --- ways to hurt it ---

    def fail(
        self,
        times: int = 1,
        status: int = 500,
        *,
        verb: str | None = None,
        resource: str | None = None,
        retry_after: int = 1,
    ) -> None:
        """The next `times` requests (of this verb and resource) are answered with `status`; 429 says Retry-After."""
        with self._lock:
            self._faults.append(Fault(status, times, verb, resource, retry_after))

    def trap(self, verb: str, resource: str, name: str, spring: Callable[[], None], *, after: bool) -> None:
        """Calls `spring`, once, in a thread of the server's: before such a request is carried out, which it then is
        not, or after that and before it is answered."""
        with self._lock:
            self._traps.append(Trap(verb, resource, name, after, spring))

    def expire(self) -> None:
        """History is compacted: who comes with an older resourceVersion gets 410."""
        self.objects.compact()

    def drop(self) -> None:
        """Cuts every open connection, as a load balancer in front of it does that restarts."""
        runner = self._runner
        if runner is not None and self._bell is not None:
            done = threading.Event()
            self._bell.loop.call_soon_threadsafe(_abort, runner, done)
            done.wait(10)

    def down(self) -> None:
        """Away: connections are cut and new ones refused, until `up`."""
        if self._runner is None:
            return
        self._runner.should_exit = True
        if self._bell is not None:
            self._bell.end()
        self.drop()
        self._thread.join(20)
        self._runner = None

    def up(self) -> None:
        if self._runner is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        listener.listen(512)  # whoever connects from now on is answered once the loop runs
        ready = threading.Event()
        app = Starlette(routes=[Route("/{path:path}", self._serve, methods=_METHODS)], lifespan=self._lifespan(ready))
        config = uvicorn.Config(app, log_level="error", access_log=False, ws="none", timeout_graceful_shutdown=2)
        self._runner = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._runner.run, args=([listener],), name="kube-api", daemon=True)
        self._thread.start()
        if not ready.wait(30):
            raise RuntimeError("the fake API server did not start")

    def close(self) -> None:
        self._leave()
        self.down()

    # --- inside ---

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.ring()

    def _lifespan(self, ready: threading.Event) -> Callable[[Starlette], Any]:
        @asynccontextmanager
        async def life(app: Starlette) -> AsyncIterator[None]:
            self._bell = Bell.here()
            ready.set()
            yield
            self._bell = None

        return life

    async def _serve(self, request: Request) -> Response:
        try:
            return await self._answer(request)
        except ApiError as error:
            seconds = (error.details or {}).get("retryAfterSeconds")
            headers = {} if seconds is None else {"Retry-After": str(seconds)}
            return as_json(error.body(), error.status, headers)
        except ClientDisconnect:  # it was killed
            return Response(status_code=499)

    async def _answer(self, request: Request) -> Response:
        user = self.guard.user(request.headers)
        path = request.url.path
        if path in ("/healthz", "/livez", "/readyz"):
            return Response("ok", media_type="text/plain")
        accept = request.headers.get("accept", "")
        steps = [step for step in path.split("/") if step]
        told = discovery.answer(steps, "APIGroupDiscoveryList" in accept)
        if told is not None:
            aggregate = told.get("kind") == "APIGroupDiscoveryList"
            return as_json(told, 200, {"Content-Type": discovery.AGGREGATED} if aggregate else {})
        if not steps or steps[0] not in ("api", "apis"):
            raise nowhere()
        if path == REVIEWS:
            return as_json(self.guard.reviewed(user, read(await request.body())), 201)
        asked = target(request.method, path, request.query_params)
        self._hurt(asked)
        self.guard.check(user, asked)
        if asked.verb == "watch":
            return self._watch(asked, request)
        body = await request.body()
        call = Call(self.objects, self.guard, self._pages, request, user, asked, body)
        return await run_in_threadpool(self._carried_out, call)

    def _carried_out(self, call: Call) -> Response:
        if self._sprung(call.asked, after=False):
            raise ApiError(503, "ServiceUnavailable", "a trap of the test")
        answer = call.answer()
        self._sprung(call.asked, after=True)
        return answer

    def _sprung(self, asked: Target, *, after: bool) -> bool:
        seen = (asked.verb, asked.kind.plural, asked.name, after)
        with self._lock:
            found = [t for t in self._traps if (t.verb, t.resource, t.name, t.after) == seen]
            self._traps = [t for t in self._traps if t not in found]
        for trap in found:
            trap.spring()
        return bool(found)

    def _hurt(self, asked: Target) -> None:
        with self._lock:
            fault = next((f for f in self._faults if _hits(f, asked)), None)
            if fault is None:
                return
            fault.left -= 1
            if not fault.left:
                self._faults.remove(fault)
        reason = {429: "TooManyRequests", 503: "ServiceUnavailable"}.get(fault.status, "InternalError")
        details = {"retryAfterSeconds": fault.retry_after} if fault.status in (429, 503) else None
        raise ApiError(fault.status, reason, f"a fault of the test: {reason}", details)

    def _watch(self, asked: Target, request: Request) -> Response:
        bell = self._bell
        assert bell is not None
        watch = Watch.asked(asked, request.query_params)
        seconds = float(request.query_params.get("timeoutSeconds") or _HOUR)
        lines = events(self.objects, watch, bell, seconds, self.bookmarks)
        return StreamingResponse(lines, headers={"Content-Type": "application/json"})


_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def _hits(fault: Fault, asked: Target) -> bool:
    return fault.verb in (None, asked.verb) and fault.resource in (None, asked.kind.plural)


def _abort(runner: uvicorn.Server, done: threading.Event) -> None:
    for connection in list(runner.server_state.connections):
        connection.transport.abort()
    done.set()
