"""The engine from plain sync code: submit, start, look, cancel, resume, fetch. The command line and the Python API
are two faces of this.

The store is async; one event loop in a thread of its own serves all calls of the process.
May import: everything below cli and notebook. Tests: tests/e2e.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from jos import submission
from jos.core.commands import Cancel, Retry
from jos.core.errors import StorageUnavailable
from jos.core.model import Checkpoint, Event, Job, JobRequest, JobSpec, Output, Progress, Status, job_folder
from jos.launch.local import LocalDriver, start_driver
from jos.settings import Settings
from jos.storage.base import Storage
from jos.store.records import Live
from jos.wiring import Wired, wired

T = TypeVar("T")


class _LoopThread:
    """One event loop for the process's sync callers."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="jos-loop", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return self.submit(work).result()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


class Engine:
    """A connection to store and storage; `with Engine(settings) as engine: …`, or `close()` at the end."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._thread = _LoopThread()
        self._wired: AbstractAsyncContextManager[Wired] = wired(self.settings)
        try:
            self.parts = self._thread.call(self._wired.__aenter__())
        except BaseException:
            self._thread.close()
            raise

    def close(self) -> None:
        self._thread.call(self._wired.__aexit__(None, None, None))
        self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def storage(self) -> Storage:
        return self.parts.storage

    # --- jobs ---

    def submit(self, request: JobRequest) -> Job:
        """Creates a job, PENDING. Raises ConfigInvalid, BadRequest or NotFound with all that is wrong."""
        parts = self.parts
        return self._thread.call(
            submission.submit(request, parts.store, parts.storage, parts.registry, self.settings.org)
        )

    def start(self, job_id: str, *, take_over: bool = False) -> LocalDriver:
        """A driver for the job, as a process of its own."""
        return start_driver(job_id, self.settings, take_over=take_over)

    def get(self, job_id: str) -> Job:
        return self._thread.call(self.parts.store.get(job_id))

    def spec(self, job_id: str) -> JobSpec:
        return self._thread.call(submission.load_spec(self.get(job_id), self.storage))

    def jobs(self, offset: int = 0, limit: int = 20, status: Status | None = None) -> tuple[int, list[Job]]:
        return self._thread.call(self.parts.store.jobs(self.settings.org, offset, limit, status))

    def cancel(self, job_id: str) -> Job:
        return self._thread.call(self.parts.store.transact(job_id, Cancel(), datetime.now(UTC)))

    def retry(self, job_id: str) -> Job:
        """FAILED or CANCELLED: waits for a driver again."""
        return self._thread.call(self.parts.store.transact(job_id, Retry(), datetime.now(UTC)))

    def live(self, job_id: str) -> Live | None:
        return self._thread.call(self.parts.store.live(job_id))

    def inputs(self, job_id: str) -> list[dict[str, Any]]:
        """Every input with its state, in the order of the request."""
        states = self._thread.call(self.parts.store.inputs(job_id))
        rows = []
        for source in self.spec(job_id).inputs:
            state = states.get(source.id)
            row = {"id": source.id, "port": source.port, "filename": source.filename, "num_bytes": source.num_bytes}
            row |= state.model_dump(mode="json", exclude={"input_id"}) if state else {"status": "pending"}
            if not source.tracked:
                row = {k: row[k] for k in ("id", "port", "filename", "num_bytes")} | {"status": "reference"}
            rows.append(row)
        return rows

    # --- events ---

    def events(self, job_id: str, after: int = 0, limit: int = 1000, **filters: Any) -> tuple[int, list[Event]]:
        """Oldest first, unless `order` is `desc`. Filters: level, event_type, input_id."""
        wanted = {"order": "asc", **filters}
        return self._thread.call(self.parts.store.events(job_id, after=after, limit=limit, **wanted))

    def progress(self, job_id: str, after: int = 0, limit: int = 1000, **filters: Any) -> list[Progress]:
        """Oldest first, unless `order` is `desc`. Filters: kind, input_id."""
        wanted = {"order": "asc", **filters}
        return self._thread.call(self.parts.store.progress(job_id, after=after, limit=limit, **wanted))[1]

    def follow(self, job_id: str, after: int = 0, wait_ms: int = 500) -> Iterator[list[Event | Progress]]:
        """Events and progress entries as they come; an empty list when nothing came for a while."""
        return self._iterate(self.parts.store.follow(job_id, after, 0, wait_ms))

    def _iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        while True:
            try:
                yield self._thread.call(anext(source))  # type: ignore[arg-type]
            except StopAsyncIteration:
                return

    # --- what it made ---

    def outputs(self, job_id: str) -> list[Output]:
        """Finished output files, also while the job runs; in the order of the inputs."""
        outputs = self._thread.call(self.parts.store.outputs(job_id))
        order = {source.id: at for at, source in enumerate(self.spec(job_id).inputs)}
        return sorted(outputs, key=lambda o: (order.get(o.input_id or "", -1), len(o.filename), o.filename))

    def location(self, job: Job, made: Output | Checkpoint) -> str:
        return self.storage.location(job_folder(job.org_id, job.id) + made.key)

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Of a training job, by step: the last is the best."""
        return self._thread.call(self.parts.store.checkpoints(job_id))

    def download(self, job_id: str, made: Output | Checkpoint, folder: Path) -> Path:
        """One output or checkpoint as a file in `folder`; complete or not there at all."""
        job = self.get(job_id)
        folder.mkdir(parents=True, exist_ok=True)
        target, partial = folder / made.filename, folder / f".{made.filename}.partial"
        key, at = job_folder(job.org_id, job.id) + made.key, 0
        with partial.open("wb") as file:
            while at < made.num_bytes:
                data = self.storage.read(key, at, min(at + (8 << 20), made.num_bytes))
                if not data:
                    raise StorageUnavailable(
                        f"{made.filename} ends after {at} of {made.num_bytes} bytes: the object is damaged."
                    )
                file.write(data)
                at += len(data)
        shutil.move(partial, target)
        return target
