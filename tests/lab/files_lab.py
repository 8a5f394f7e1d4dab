"""The API's files over real HTTP: the whole app in a thread of this process, on a free port, and a client of its own.

Nothing of JOS's client is used, so that the wire is what is tested.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google_crc32c
import httpx2
import structlog.testing
import uvicorn
from services_lab import free_ports

from jos.api.app import create_app
from jos.files.service import Files
from jos.settings import Settings
from jos.store import embedded
from jos.store.keys import ApiKeys, Role

PART = 5 << 20  # the smallest that S3 takes


def crc(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@dataclass
class Api:
    """One running service. `http` carries a user's key of org_a; `plain` carries none."""

    url: str
    service: Any
    settings: Settings
    loop: asyncio.AbstractEventLoop
    http: httpx2.Client
    plain: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=60))

    @property
    def s3(self) -> bool:
        return self.settings.storage_url.startswith("s3://")

    def run(self, coroutine: Any) -> Any:
        """In the server's event loop, as its controller would."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def key(self, org_id: str, role: Role = "user") -> dict[str, str]:
        _, secret = self.run(ApiKeys(self.service.store.connection).create(org_id, role, "", datetime.now(UTC)))
        return {"Authorization": f"Bearer {secret}"}

    def post(self, name: str, data: bytes, kind: str = "text/csv", **more: Any) -> httpx2.Response:
        return self.http.post("/v0.5/files", files={"file": (name, data, kind)}, **more)

    def initiate(self, name: str, num_bytes: int, kind: str = "text/csv", **more: Any) -> httpx2.Response:
        body = {"filename": name, "file_type": kind, "num_bytes": num_bytes, **more}
        return self.http.post("/v0.5/files/uploads/initiate", json=body)

    def upload(self, upload_id: str, call: str, body: Any = None) -> httpx2.Response:
        return self.http.post(f"/v0.5/files/uploads/{upload_id}/{call}", json={} if body is None else body)

    def put(self, part: Mapping[str, Any], data: bytes) -> str:
        """Sends one part of `data` and gives its token."""
        answer = self.plain.put(part["url"], content=data[part["offset"] : part["offset"] + part["length"]])
        assert answer.status_code == 200, answer.text
        return str(answer.headers["etag"])

    def metadata(self, name: str) -> dict[str, Any]:
        answer = self.http.get(f"/v0.5/files/metadata/{name}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def download(self, name: str, **headers: str) -> httpx2.Response:
        return self.http.get(f"/v0.5/files/download/{name}", headers=headers)


def code(answer: httpx2.Response) -> tuple[int, str]:
    """Status and code of an error; that its shape is right is checked on the way."""
    (error,) = answer.json()["errors"]
    assert error["message"], answer.text
    assert error["error_uid"].startswith("err-"), answer.text
    return answer.status_code, error["code"]


@contextlib.contextmanager
def serving(folder: Path, storage: str | None = None) -> Iterator[Api]:
    (port,) = free_ports(1)
    settings = Settings(home=folder / "home", storage=storage, api_port=port)
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error", lifespan="on"))
    started: list[asyncio.AbstractEventLoop] = []
    ready = threading.Event()

    async def serve() -> None:
        started.append(asyncio.get_running_loop())
        await server._serve()

    real = server.startup

    async def startup(*arguments: Any, **named: Any) -> None:
        await real(*arguments, **named)
        ready.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(60)
    service = app.state.service
    service.files = Files(service.store, service.storage, smallest_part=PART)
    url = f"http://127.0.0.1:{port}"
    api = Api(url, service, settings, started[0], httpx2.Client(base_url=url, timeout=60))
    api.http.headers.update(api.key("org_a"))
    try:
        with api.http, api.plain, structlog.testing.capture_logs():
            yield api
    finally:
        server.should_exit = True
        thread.join(30)
        embedded.stop(settings.redis_dir)
