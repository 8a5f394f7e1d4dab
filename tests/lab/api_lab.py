"""The API alone, in a thread of the test, over an embedded Valkey and a folder; no controller and no driver: a test
moves jobs on by the commands that those would give.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2
import pytest
import structlog
from jobs_lab import HERE, until
from services_lab import free_ports

from jos.core.commands import Admit, Cancel, Completed, Drained, Started
from jos.core.model import Job
from jos.settings import Settings
from jos.store import embedded
from jos.store.keys import ApiKeys, Role
from jos.store.records import Mirror
from jos.store.redis import Store

if TYPE_CHECKING:
    from fastapi import FastAPI

    from jos.api.context import Service

T = TypeVar("T")
CONFIG: dict[str, Any] = {"worker": {"parallelism": 1, "config": {}}}


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Api:
    """One API process's worth, running; `http` carries the key of an admin of org_a."""

    folder: Path
    settings_: Mapping[str, Any] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = Settings(
            home=self.folder / "home", pipelines=os.fspath(HERE / "pipelines"), org="org_operator", **self.settings_
        )
        from jos.api.app import create_app  # here: most test sessions use none of it
        from jos.api.serve import server
        from jos.logs import log_to

        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "api.log"
        self.logging = structlog.get_config()  # another one's may go on
        log_to(self.stack.enter_context(self.log.open("a")))

        self.app: FastAPI = create_app(self.settings)
        self.server = server(self.app, "127.0.0.1", self.port)
        self.thread = threading.Thread(target=self._run, name="api", daemon=True)

    def _run(self) -> None:
        self.server.run()

    def start(self) -> None:
        self.thread.start()
        until(lambda: self.server.started or not self.thread.is_alive())
        assert self.server.started, "the API did not start"
        self.key = self.make_key("org_a", "admin")
        self.http = self.as_(self.key)

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive(), "the API did not end"

    def close(self) -> None:
        self.stop()
        structlog.configure(**self.logging)
        self.stack.close()
        embedded.stop(self.settings.redis_dir)

    @property
    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text()

    @property
    def service(self) -> Service:
        found: Service = self.app.state.service
        return found

    def as_(self, key: str | None) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.stack.enter_context(httpx2.Client(base_url=self.url, timeout=30, headers=headers))

    def make_key(self, org_id: str, role: Role = "user") -> str:
        async def work(store: Store) -> str:
            return (await ApiKeys(store.connection).create(org_id, role, "test", now()))[1]

        return self.with_store(work)

    def with_store(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """`work(store)` with a store of this thread's own."""

        async def run() -> T:
            async with await Store.open(self.settings.redis_url, self.settings.redis_dir) as store:
                return await work(store)

        return asyncio.run(run())

    # --- plain calls ---

    def call(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        answer = self.http.request(method, f"/v0.5{path}", **options)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def get(self, path: str, **parameters: Any) -> Any:
        return self.call("GET", path, params=parameters)

    def upload(self, name: str, data: bytes = b'{"text": "a"}\n', kind: str = "application/x-ndjson") -> str:
        return str(self.call("POST", "/files", files={"file": (name, data, kind)})["file_id"])

    def create(self, *files: str, pipeline: str = "shout", **fields: Any) -> str:
        return str(self.call("POST", "/batch/jobs", 201, json=self.body(*files, pipeline=pipeline, **fields))["id"])

    @staticmethod
    def body(*files: str, pipeline: str = "shout", **fields: Any) -> dict[str, Any]:
        body = {"name": "a job", "pipeline_type": "batch", "pipeline_key": pipeline, "parameters": CONFIG}
        return {**body, "inputs": {"worker.data": [{"file_id": name} for name in files]}, **fields}

    # --- what a controller and a driver would do ---

    def admit(self, job_id: str) -> Job:
        """Admitted and started; its token is `job_id`'s own."""

        async def work(store: Store) -> Job:
            await store.transact(job_id, Admit(job_id), now())
            return await store.transact(job_id, Started(job_id), now())

        return self.with_store(work)

    def tell(self, job_id: str, seq: int = 1, **told: Any) -> None:
        self.with_store(lambda store: store.mirror(job_id, Mirror(token=job_id, seq=seq, at=now(), **told)))

    def complete(self, job_id: str) -> Job:
        return self.with_store(lambda store: store.transact(job_id, Completed(job_id), now()))

    def cancel(self, job_id: str) -> Job:
        return self.with_store(lambda store: store.transact(job_id, Cancel(), now()))

    def drained(self, job_id: str) -> Job:
        return self.with_store(lambda store: store.transact(job_id, Drained(job_id), now()))


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    one = Api(tmp_path)
    try:
        one.start()
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def shared_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """For tests that leave one another alone."""
    one = Api(tmp_path_factory.mktemp("api"))
    try:
        one.start()
        yield one
    finally:
        one.close()
